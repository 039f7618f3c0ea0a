//! From flags to an [`Enrolling`], and what lies in the state directory already.

use std::sync::Arc;
use std::time::SystemTime;

use towline_link::kube::{Access, Client};
use towline_link::tls::HttpProxy;
use towline_pki::{Anchors, DenyList, MaterialError};
use towline_proto::id::Role;

use super::flags::{Beside, EnrolFlagError, Source};
use super::kubernetes::KubernetesIssuer;
use super::server::ServerIssuer;
use super::{Enrolling, Issuer};
use crate::args::Args;
use crate::config::{ConfigError, OwnIdentity};
use crate::trust::TrustError;

/// Who sees to the certificate.
pub fn enrolling(
    args: &Args,
    proxy: Option<&HttpProxy>,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<Arc<Enrolling>>, ConfigError> {
    let config = args.enrol.config(&Beside {
        cert: &args.cert,
        key: &args.key,
        server_ca: &args.server_ca,
        deny_list: &args.deny_list,
        server_crls: &args.server_crls,
        crl_policy: args.crl_policy,
        state_dir: &args.state_dir,
        servers: !args.servers.is_empty(),
    })?;
    let Some(config) = config else {
        return Ok(None);
    };
    let issuer: Arc<dyn Issuer> = match config.source {
        Source::Server => Arc::new(ServerIssuer {
            config: config.clone(),
            servers: args.servers.clone(),
            proxy: proxy.cloned(),
        }),
        Source::Kubernetes => {
            let node = config.node_name.clone();
            let node = node.ok_or(EnrolFlagError::NoNodeName)?;
            let file = args.konnectivity.kubeconfig.as_deref();
            let file = file.filter(|path| !path.as_os_str().is_empty());
            let access = Access::load(file, env).map_err(ConfigError::EnrolApi)?;
            Arc::new(KubernetesIssuer::new(&config, node, Client::new(access)))
        }
    };
    Ok(Some(Enrolling::new(config, issuer)))
}

/// The certificate that was got before, while it can be used. What else is wrong with the files
/// is an error now: no enrolment mends a trust file.
pub fn enrolled(
    enrolling: &Enrolling,
    now: SystemTime,
) -> Result<Option<OwnIdentity>, ConfigError> {
    let config = enrolling.config();
    if config.pinned_by_file
        && let Some(path) = config.server_ca()
    {
        Anchors::load(path).map_err(|source| {
            let role = Role::Server;
            TrustError::Material(MaterialError::Anchors { role, source })
        })?;
    }
    if let Some(path) = &config.files.deny_list {
        DenyList::load(path).map_err(|error| TrustError::Material(error.into()))?;
    }
    match enrolling.load(now) {
        Ok(identity) => Ok(Some(identity)),
        Err(error) => {
            if config.files.cert.exists() {
                tracing::warn!(%error, "the certificate in --state-dir is of no use, a new one is asked for");
            }
            Ok(None)
        }
    }
}
