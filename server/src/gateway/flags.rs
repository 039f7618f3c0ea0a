//! The flags of the gateway, and what must fit together among them.

use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use towline_pki::gateway::{FrontEndRules, GatewayFiles, ServingFiles};

use crate::attest::Mode;

/// `--kubelet-gateway` and what belongs to it.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct GatewayArgs {
    /// Ends front ends' TLS to kubelets here, verifies the kubelet on every connection, and reads
    /// the heads of requests for audit and kubelet rules
    #[arg(long, env = "TOWLINE_KUBELET_GATEWAY", value_parser = FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub kubelet_gateway: bool,

    /// The authority that signs front ends' client certificates for kubelets, in most clusters
    /// the cluster's own (PEM)
    #[arg(long, env = "TOWLINE_KUBELET_GATEWAY_CLIENT_CA", value_name = "FILE")]
    pub kubelet_gateway_client_ca: Option<PathBuf>,

    /// Common name that such a certificate must have; repeat it [default: any]
    #[arg(
        long = "kubelet-gateway-allow-name",
        env = "TOWLINE_KUBELET_GATEWAY_ALLOW_NAME",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub kubelet_gateway_allow_names: Vec<String>,

    /// Organization that does instead of a name; repeat it
    #[arg(
        long = "kubelet-gateway-allow-organization",
        env = "TOWLINE_KUBELET_GATEWAY_ALLOW_ORGANIZATION",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub kubelet_gateway_allow_organizations: Vec<String>,

    /// The gateway's authority, which mints what front ends are shown for each node (PEM);
    /// kube-apiserver's --kubelet-certificate-authority must name exactly this one
    #[arg(long, env = "TOWLINE_KUBELET_GATEWAY_CA_CERT", value_name = "FILE")]
    pub kubelet_gateway_ca_cert: Option<PathBuf>,

    /// The key of that authority (PEM, readable by its owner and at most its group)
    #[arg(long, env = "TOWLINE_KUBELET_GATEWAY_CA_KEY", value_name = "FILE")]
    pub kubelet_gateway_ca_key: Option<PathBuf>,

    /// Instead of an authority: one serving certificate that names every node (PEM)
    #[arg(long, env = "TOWLINE_KUBELET_GATEWAY_CERT", value_name = "FILE")]
    pub kubelet_gateway_cert: Option<PathBuf>,

    /// The key of that certificate (PEM, readable by its owner and at most its group)
    #[arg(long, env = "TOWLINE_KUBELET_GATEWAY_KEY", value_name = "FILE")]
    pub kubelet_gateway_key: Option<PathBuf>,

    /// The client certificate that the gateway shows kubelets (PEM)
    #[arg(long, env = "TOWLINE_KUBELET_CLIENT_CERTIFICATE", value_name = "FILE")]
    pub kubelet_client_certificate: Option<PathBuf>,

    /// The key of that certificate (PEM, readable by its owner and at most its group)
    #[arg(long, env = "TOWLINE_KUBELET_CLIENT_KEY", value_name = "FILE")]
    pub kubelet_client_key: Option<PathBuf>,
}

/// What does not fit together; says what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GatewayFlagError {
    /// Something is missing.
    #[error("--kubelet-gateway needs {flag} FILE, {what}")]
    Missing {
        /// The flag.
        flag: &'static str,
        /// What it is for.
        what: &'static str,
    },
    /// A flag that would silently do nothing.
    #[error("{flag} has no effect without --kubelet-gateway")]
    Useless {
        /// The flag.
        flag: &'static str,
    },
    /// Two sources of serving certificates.
    #[error(
        "--kubelet-gateway-ca-cert and --kubelet-gateway-cert exclude each other: either an \
         authority mints a certificate for each node, or one certificate names all of them"
    )]
    TwoSources,
    /// The gateway verifies, or it is none.
    #[error(
        "--kubelet-gateway needs --kubelet-verification enforce, not {mode}: it believes no kubelet \
         that does not verify. Run with observe and without the gateway until `towline-server \
         kubelets` shows no node that would be refused"
    )]
    Mode {
        /// As it was given.
        mode: Mode,
    },
}

impl GatewayArgs {
    /// Which files make up the gateway; `None` without `--kubelet-gateway`.
    pub fn files(
        self,
        mode: Mode,
        deny_list: Option<PathBuf>,
    ) -> Result<Option<GatewayFiles>, GatewayFlagError> {
        if !self.kubelet_gateway {
            return self.refuse_useless().map(|()| None);
        }
        if mode != Mode::Enforce {
            return Err(GatewayFlagError::Mode { mode });
        }
        let need = |value: Option<PathBuf>, flag, what| {
            value.ok_or(GatewayFlagError::Missing { flag, what })
        };
        let serving = match (self.kubelet_gateway_ca_cert, self.kubelet_gateway_cert) {
            (Some(_), Some(_)) => return Err(GatewayFlagError::TwoSources),
            (None, Some(cert)) => ServingFiles::Given(
                cert,
                need(
                    self.kubelet_gateway_key,
                    "--kubelet-gateway-key",
                    "the key of --kubelet-gateway-cert",
                )?,
            ),
            (cert, None) => ServingFiles::Issuer(
                need(
                    cert,
                    "--kubelet-gateway-ca-cert",
                    "the authority that mints what front ends are shown; `towline-pki \
                     gateway-issuer` makes one",
                )?,
                need(
                    self.kubelet_gateway_ca_key,
                    "--kubelet-gateway-ca-key",
                    "the key of --kubelet-gateway-ca-cert",
                )?,
            ),
        };
        Ok(Some(GatewayFiles {
            client_authority: need(
                self.kubelet_gateway_client_ca,
                "--kubelet-gateway-client-ca",
                "the authority that signed kube-apiserver's --kubelet-client-certificate",
            )?,
            rules: FrontEndRules {
                names: self.kubelet_gateway_allow_names,
                organisations: self.kubelet_gateway_allow_organizations,
            },
            serving,
            kubelet_client: (
                need(
                    self.kubelet_client_certificate,
                    "--kubelet-client-certificate",
                    "what the gateway shows kubelets; kubeadm's apiserver-kubelet-client.crt, or \
                     one of `towline-pki kubelet-client`",
                )?,
                need(
                    self.kubelet_client_key,
                    "--kubelet-client-key",
                    "the key of --kubelet-client-certificate",
                )?,
            ),
            deny_list,
        }))
    }

    fn refuse_useless(&self) -> Result<(), GatewayFlagError> {
        let given = [
            (
                "--kubelet-gateway-client-ca",
                self.kubelet_gateway_client_ca.is_some(),
            ),
            (
                "--kubelet-gateway-allow-name",
                !self.kubelet_gateway_allow_names.is_empty(),
            ),
            (
                "--kubelet-gateway-allow-organization",
                !self.kubelet_gateway_allow_organizations.is_empty(),
            ),
            (
                "--kubelet-gateway-ca-cert",
                self.kubelet_gateway_ca_cert.is_some(),
            ),
            (
                "--kubelet-gateway-ca-key",
                self.kubelet_gateway_ca_key.is_some(),
            ),
            (
                "--kubelet-gateway-cert",
                self.kubelet_gateway_cert.is_some(),
            ),
            ("--kubelet-gateway-key", self.kubelet_gateway_key.is_some()),
            (
                "--kubelet-client-certificate",
                self.kubelet_client_certificate.is_some(),
            ),
            ("--kubelet-client-key", self.kubelet_client_key.is_some()),
        ];
        match given.into_iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(GatewayFlagError::Useless { flag }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> GatewayArgs {
        let file = |name: &str| Some(PathBuf::from(name));
        GatewayArgs {
            kubelet_gateway: true,
            kubelet_gateway_client_ca: file("client-ca"),
            kubelet_gateway_ca_cert: file("ca"),
            kubelet_gateway_ca_key: file("ca-key"),
            kubelet_client_certificate: file("client"),
            kubelet_client_key: file("client-key"),
            ..GatewayArgs::default()
        }
    }

    fn error(change: impl FnOnce(&mut GatewayArgs)) -> String {
        let mut args = whole();
        change(&mut args);
        args.files(Mode::Enforce, None).unwrap_err().to_string()
    }

    #[test]
    fn everything_that_is_missing_is_named() {
        assert!(whole().files(Mode::Enforce, None).unwrap().is_some());
        assert_eq!(GatewayArgs::default().files(Mode::Off, None), Ok(None));
        assert!(
            error(|a| a.kubelet_gateway_client_ca = None).contains("--kubelet-gateway-client-ca")
        );
        assert!(error(|a| a.kubelet_gateway_ca_cert = None).contains("gateway-issuer"));
        assert!(error(|a| a.kubelet_gateway_ca_key = None).contains("--kubelet-gateway-ca-key"));
        assert!(error(|a| a.kubelet_client_certificate = None).contains("kubelet-client"));
        assert!(error(|a| a.kubelet_client_key = None).contains("--kubelet-client-key"));
        assert!(
            error(|a| a.kubelet_gateway_cert = Some("c".into())).contains("exclude each other")
        );
        let given = |a: &mut GatewayArgs| {
            a.kubelet_gateway_ca_cert = None;
            a.kubelet_gateway_cert = Some("c".into());
        };
        assert!(error(given).contains("--kubelet-gateway-key"));
    }

    #[test]
    fn a_gateway_that_does_not_verify_is_none() {
        for mode in [Mode::Observe, Mode::Off] {
            let error = whole().files(mode, None).unwrap_err().to_string();
            assert!(
                error.contains(mode.as_str()) && error.contains("enforce"),
                "{error}"
            );
        }
    }

    #[test]
    fn flags_that_do_nothing_are_refused() {
        let mut args = whole();
        args.kubelet_gateway = false;
        assert_eq!(
            args.files(Mode::Enforce, None),
            Err(GatewayFlagError::Useless {
                flag: "--kubelet-gateway-client-ca"
            })
        );
    }
}
