//! An approver against a fake API, and the requests that it is shown.

use std::sync::Arc;

use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use towline_link::kube::csr::encoded;
use towline_link::kube::{Access, Client};
use towline_link::process::ready::Readiness;
use towline_pki::{KeyKind, PrivateKey, RequestSpec};
use towline_proto::target::HostName;
use towline_server::agents::Agents;
use towline_server::audit::trail::Audit;
use towline_server::classify::Prefixes;
use towline_server::csr::issuer::Issuer;
use towline_server::csr::told::SigningMetrics;
use towline_server::csr::{Around, Signing, SigningConfig};
use towline_server::directory::FileDirectory;
use towline_server::grants::Grants;
use towline_server::metrics::Metrics;
use towline_server::nodes::NodeWatch;
use towline_tests::authority::Authority;
use towline_tests::kube::FakeKube;
use towline_tests::kube::signing::decisions;
use towline_tests::scenario::{eventually, expect};
use towline_tests::scratch::Scratch;

pub(crate) const SIGNER: &str = "kubernetes.io/kubelet-serving";

pub(crate) async fn until(what: &str, mut met: impl FnMut() -> bool) {
    eventually(what, || std::future::ready(met().then_some(()))).await;
}

pub(crate) struct World {
    pub(crate) kube: FakeKube,
    pub(crate) scratch: Scratch,
    pub(crate) client: Client,
}

/// An approver. Dropping it ends it.
pub(crate) struct Approver {
    pub(crate) registry: Registry,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
pub(crate) struct Options {
    pub(crate) grants: Option<&'static str>,
    pub(crate) denied: Option<&'static str>,
    pub(crate) domains: Vec<HostName>,
    pub(crate) control_plane: Vec<ipnet::IpNet>,
    pub(crate) issuer: Option<Arc<Issuer>>,
}

impl World {
    pub(crate) async fn new() -> Self {
        let authority = Authority::new("prod.example");
        let kube = FakeKube::start(&authority).await.unwrap();
        kube.caller("secret", "towline-server");
        let scratch = Scratch::new().unwrap();
        let (config, _) = kube.kubeconfig(&scratch, "secret").unwrap();
        let access = Access::load(Some(&config), &|_| None).unwrap();
        Self {
            kube,
            scratch,
            client: Client::new(access),
        }
    }

    pub(crate) fn approver(&self, options: Options) -> Approver {
        let nets = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
        let prefixes = Prefixes {
            kubelet_port: 10250,
            service: nets(&["10.96.0.0/12"]),
            pod: nets(&["10.244.0.0/16"]),
            node: nets(&["10.0.0.0/16", "fd00::/64"]),
        };
        let grants = options.grants.map(|text| {
            let path = self.scratch.write("grants.yaml", text).unwrap();
            Grants::load(&path).unwrap()
        });
        let denied = options.denied;
        let around = Around {
            agents: Agents::new(16, Metrics::default()),
            directory: Arc::new(FileDirectory::new(prefixes.clone(), grants)),
            prefixes,
            denied: Box::new(move |name| denied == Some(name.as_str())),
            audit: Audit::off(),
        };
        let config = SigningConfig {
            client: self.client.clone(),
            domains: options.domains,
            control_plane: options.control_plane,
            control_plane_names: vec!["cp.corp.example".parse().unwrap()],
            issuer: options.issuer,
        };
        let mut registry = Registry::default();
        let mut tasks = JoinSet::new();
        let metrics = SigningMetrics::default();
        metrics.register(&mut registry);
        let mut nodes = NodeWatch::new(self.client.clone(), metrics.clone());
        nodes.register(&mut registry);
        Signing::new(config, around, &mut nodes, metrics).start(&mut tasks);
        let readiness = Readiness::new();
        tasks.spawn(nodes.run(readiness.condition("nodes", "not looked at yet")));
        Approver {
            registry,
            _tasks: tasks,
        }
    }

    /// Waits until a request has this decision, or a certificate.
    pub(crate) async fn decided(&self, name: &str, what: &str) {
        let seen = |all: &[Value]| {
            all.iter()
                .filter(|one| one["metadata"]["name"] == name)
                .any(|one| match what {
                    "certificate" => one["status"]["certificate"].is_string(),
                    word => decisions(one).contains(&word.to_owned()),
                })
        };
        expect("a decision", self.kube.until_requests(seen)).await;
    }

    pub(crate) fn decisions(&self, name: &str) -> Vec<String> {
        decisions(&self.kube.request(name).expect("a request"))
    }

    pub(crate) fn reason(&self, name: &str) -> (String, String) {
        let request = self.kube.request(name).expect("a request");
        let last = request["status"]["conditions"][0].clone();
        let text = |key: &str| last[key].as_str().unwrap_or_default().to_owned();
        (text("reason"), text("message"))
    }
}

impl Approver {
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }

    /// Waits until this line is in the metrics.
    pub(crate) async fn counted(&self, line: &str) {
        until(line, || self.text().lines().any(|one| one == line)).await;
    }

    /// Waits until a request was refused for this cause.
    pub(crate) async fn refused(&self, cause: &str) {
        let labels = format!("{{signer=\"kubelet-serving\",cause=\"{cause}\"}}");
        self.counted(&format!("towline_server_csr_refusals_total{labels} 1"))
            .await;
    }
}

pub(crate) fn asked() -> RequestSpec {
    RequestSpec {
        organisation: "system:nodes".into(),
        common_name: "system:node:n1".into(),
        dns: vec!["n1".into()],
        ips: vec!["10.0.0.1".parse().unwrap()],
        ..RequestSpec::default()
    }
}

pub(crate) fn pem(spec: &RequestSpec) -> String {
    let key = PrivateKey::generate(KeyKind::EcdsaP256).unwrap();
    spec.make(&key).unwrap()
}

/// As the API server writes what kubelet `n1` sent.
pub(crate) fn object(name: &str, spec: &RequestSpec) -> Value {
    json!({
        "metadata": {"name": name, "annotations": {"kept": "yes"}},
        "spec": {
            "request": encoded(pem(spec).as_bytes()),
            "signerName": SIGNER,
            "usages": ["digital signature", "server auth"],
            "username": "system:node:n1",
            "groups": ["system:nodes", "system:authenticated"],
        },
        "status": {},
    })
}

pub(crate) fn with_dns(name: &str) -> RequestSpec {
    let mut spec = asked();
    spec.dns.push(name.into());
    spec
}
