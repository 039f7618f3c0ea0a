//! The flags of the approver, and what must fit together among them.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use clap::builder::FalseyValueParser;
use ipnet::IpNet;
use towline_link::kube::{Access, Client, KubeError};
use towline_pki::AuthorityError;
use towline_proto::target::{Host, HostName, Target};

use super::issuer::{Issuer, IssuerFiles};

/// `--kubelet-serving-approver` and what belongs to it.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct SigningArgs {
    /// Approves kubelets' requests for serving certificates (signer kubernetes.io/kubelet-serving)
    /// by strict rules; the controller manager signs them
    #[arg(long, env = "TOWLINE_KUBELET_SERVING_APPROVER", value_parser = FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub kubelet_serving_approver: bool,

    /// Domain of nodes: DNS names below it count when a Node object has them; repeat it [default:
    /// a node's own name only]
    #[arg(
        long = "kubelet-serving-domain",
        env = "TOWLINE_KUBELET_SERVING_DOMAIN",
        value_name = "DOMAIN",
        value_delimiter = ','
    )]
    pub kubelet_serving_domains: Vec<HostName>,

    /// Where the control plane is: addresses that no node has by its own word; repeat it
    #[arg(
        long = "control-plane-cidr",
        env = "TOWLINE_CONTROL_PLANE_CIDR",
        value_name = "CIDR",
        value_delimiter = ','
    )]
    pub control_plane_prefixes: Vec<IpNet>,

    /// Signs what is approved with this authority (PEM); the controller manager's signer of
    /// kubernetes.io/kubelet-serving must be off
    #[arg(
        long,
        env = "TOWLINE_KUBELET_SERVING_SIGNER_CERTIFICATE",
        value_name = "FILE"
    )]
    pub kubelet_serving_signer_certificate: Option<PathBuf>,

    /// The key of that authority (PEM, readable by its owner and at most its group)
    #[arg(long, env = "TOWLINE_KUBELET_SERVING_SIGNER_KEY", value_name = "FILE")]
    pub kubelet_serving_signer_key: Option<PathBuf>,
}

/// What does not fit together; says what to change.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// A flag that would silently do nothing.
    #[error("{0} has no effect without --kubelet-serving-approver")]
    Useless(&'static str),
    /// One of a pair.
    #[error("{given} needs {missing} FILE too")]
    Half {
        /// What is there.
        given: &'static str,
        /// What is not.
        missing: &'static str,
    },
    /// The authority.
    #[error("--kubelet-serving-signer-certificate: {0}")]
    Authority(#[from] AuthorityError),
    /// The Kubernetes API.
    #[error("--kubelet-serving-approver: {0}")]
    Api(#[from] KubeError),
}

/// Checked values.
#[derive(Clone, Debug)]
pub struct SigningConfig {
    /// The API.
    pub client: Client,
    /// Domains of nodes.
    pub domains: Vec<HostName>,
    /// Where the control plane is.
    pub control_plane: Vec<IpNet>,
    /// Its names.
    pub control_plane_names: Vec<HostName>,
    /// Our own signature.
    pub issuer: Option<Arc<Issuer>>,
}

impl SigningArgs {
    /// The authority's files, when we are to sign.
    pub fn issuer_files(&self) -> Result<Option<IssuerFiles>, SigningError> {
        let (cert, key) = (
            &self.kubelet_serving_signer_certificate,
            &self.kubelet_serving_signer_key,
        );
        let (one, other) = (
            "--kubelet-serving-signer-certificate",
            "--kubelet-serving-signer-key",
        );
        if !self.kubelet_serving_approver {
            let given = [
                (
                    "--kubelet-serving-domain",
                    !self.kubelet_serving_domains.is_empty(),
                ),
                (
                    "--control-plane-cidr",
                    !self.control_plane_prefixes.is_empty(),
                ),
                (one, cert.is_some()),
                (other, key.is_some()),
            ];
            if let Some((flag, _)) = given.into_iter().find(|(_, given)| *given) {
                return Err(SigningError::Useless(flag));
            }
        }
        match (cert, key) {
            (Some(cert), Some(key)) => Ok(Some(IssuerFiles {
                cert: cert.clone(),
                key: key.clone(),
            })),
            (Some(_), None) => Err(SigningError::Half {
                given: one,
                missing: other,
            }),
            (None, Some(_)) => Err(SigningError::Half {
                given: other,
                missing: one,
            }),
            (None, None) => Ok(None),
        }
    }

    /// `None` without `--kubelet-serving-approver`. What agents are told to connect to is the
    /// control plane, too.
    pub fn config(
        self,
        kubeconfig: Option<&Path>,
        env: &dyn Fn(&str) -> Option<String>,
        advertised: &[Target],
        now: SystemTime,
    ) -> Result<Option<SigningConfig>, SigningError> {
        let files = self.issuer_files()?;
        if !self.kubelet_serving_approver {
            return Ok(None);
        }
        let client = Client::new(Access::load(kubeconfig, env)?);
        let mut control_plane = self.control_plane_prefixes;
        let mut control_plane_names = Vec::new();
        for target in advertised {
            match &target.host {
                Host::Ip(ip) => control_plane.push(IpNet::from(canonical(*ip))),
                Host::Name(name) => control_plane_names.push(name.clone()),
            }
        }
        let issuer = match files {
            Some(files) => Some(Issuer::load(files, now)?),
            None => None,
        };
        Ok(Some(SigningConfig {
            client,
            domains: self.kubelet_serving_domains,
            control_plane,
            control_plane_names,
            issuer,
        }))
    }
}

fn canonical(ip: IpAddr) -> IpAddr {
    towline_proto::address::canonical(ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_useless_is_named() {
        let whole = SigningArgs {
            kubelet_serving_approver: true,
            kubelet_serving_signer_certificate: Some("cert".into()),
            kubelet_serving_signer_key: Some("key".into()),
            ..SigningArgs::default()
        };
        assert!(whole.issuer_files().unwrap().is_some());
        let error = |change: fn(&mut SigningArgs)| {
            let mut args = whole.clone();
            change(&mut args);
            args.issuer_files().unwrap_err().to_string()
        };
        assert!(
            error(|a| a.kubelet_serving_signer_key = None)
                .contains("needs --kubelet-serving-signer-key")
        );
        assert!(
            error(|a| a.kubelet_serving_signer_certificate = None)
                .contains("needs --kubelet-serving-signer-certificate")
        );
        assert!(error(|a| a.kubelet_serving_approver = false).contains("no effect"));
        let alone = SigningArgs {
            control_plane_prefixes: vec!["10.0.0.0/24".parse().unwrap()],
            ..SigningArgs::default()
        };
        assert!(
            alone
                .issuer_files()
                .unwrap_err()
                .to_string()
                .contains("--control-plane-cidr")
        );
        assert!(
            SigningArgs::default()
                .config(None, &|_| None, &[], SystemTime::now())
                .unwrap()
                .is_none()
        );
    }
}
