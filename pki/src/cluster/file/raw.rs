//! The form of cluster.yaml, as it is written: every value with its place, nothing checked yet.

use serde::Deserialize;
use serde_saphyr::Spanned;

pub(super) type Text = Spanned<String>;
pub(super) type Days = Spanned<u64>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct File {
    pub(super) version: Spanned<u64>,
    pub(super) cluster: Text,
    #[serde(default)]
    pub(super) kubernetes: Kubernetes,
    #[serde(default)]
    pub(super) control_planes: Vec<Spanned<Machine>>,
    #[serde(default)]
    pub(super) etcd: Etcd,
    #[serde(default)]
    pub(super) nodes: Vec<Spanned<Machine>>,
    #[serde(default)]
    pub(super) towline: Towline,
    #[serde(default)]
    pub(super) keys: Keys,
    #[serde(default)]
    pub(super) lives: Lives,
    #[serde(default)]
    pub(super) authorities: Authorities,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Kubernetes {
    pub(super) endpoint: Option<Text>,
    pub(super) port: Option<Spanned<u16>>,
    #[serde(rename = "serviceCIDRs")]
    pub(super) service_cidrs: Option<Vec<Text>>,
    pub(super) cluster_domain: Option<Text>,
    pub(super) apiserver_names: Vec<Text>,
    pub(super) signer_on_control_planes: Option<Spanned<bool>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Machine {
    pub(super) name: Text,
    #[serde(default)]
    pub(super) addresses: Vec<Text>,
    #[serde(default)]
    pub(super) names: Vec<Text>,
    pub(super) kubelet: Option<Spanned<bool>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Etcd {
    pub(super) members: Option<Vec<Spanned<Machine>>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Towline {
    pub(super) servers: Option<Vec<Spanned<Machine>>>,
    pub(super) agents: Option<bool>,
    pub(super) clients: Vec<Text>,
    pub(super) operators: Vec<Text>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Keys {
    pub(super) authorities: Option<Text>,
    pub(super) certificates: Option<Text>,
    pub(super) service_accounts: Option<Text>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Lives {
    pub(super) authorities: Option<Days>,
    pub(super) issuers: Option<Days>,
    pub(super) components: Option<Days>,
    pub(super) kubelets: Option<Days>,
    pub(super) admins: Option<Days>,
    pub(super) servers: Option<Days>,
    pub(super) agents: Option<Days>,
    pub(super) clients: Option<Days>,
    pub(super) operators: Option<Days>,
    pub(super) renew_before: Option<Days>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Authorities {
    pub(super) kubelet_serving: Option<Text>,
    pub(super) leave_out: Vec<Text>,
    pub(super) external: Externals,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Externals {
    pub(super) kubernetes: Option<Spanned<External>>,
    pub(super) etcd: Option<Spanned<External>>,
    pub(super) front_proxy: Option<Spanned<External>>,
    pub(super) kubelets: Option<Spanned<External>>,
    pub(super) agents: Option<Spanned<External>>,
    pub(super) servers: Option<Spanned<External>>,
    pub(super) gateway: Option<Spanned<External>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct External {
    pub(super) certificate: Text,
    pub(super) key: Option<Text>,
}
