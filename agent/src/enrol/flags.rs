//! The flags of enrolment, and what must fit together among them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use towline_link::kube::csr::SignerName;
use towline_pki::{CrlPolicy, Files, SharedRoots};
use towline_proto::id::{ClusterName, Name, Role};

/// `--enrol`: who signs this node's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A Towline server.
    Server,
    /// The Kubernetes API, where a server signs what we ask for.
    Kubernetes,
}

/// A word that names no source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown source {0:?}: use server or kubernetes")]
pub struct UnknownSource(String);

impl FromStr for Source {
    type Err = UnknownSource;
    fn from_str(text: &str) -> Result<Self, UnknownSource> {
        match text {
            "server" => Ok(Source::Server),
            "kubernetes" => Ok(Source::Kubernetes),
            other => Err(UnknownSource(other.chars().take(32).collect())),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Server => f.write_str("server"),
            Source::Kubernetes => f.write_str("kubernetes"),
        }
    }
}

/// How this node gets its certificate, when nobody puts one there.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct EnrolArgs {
    /// Makes the key on this node, has the certificate signed and renews it: by a server, or by a
    /// signing request of the Kubernetes API (kubernetes). Both are kept in --state-dir, in place
    /// of --cert and --key
    #[arg(long, env = "TOWLINE_ENROL", value_name = "SOURCE")]
    pub enrol: Option<Source>,

    /// Proof of which node this is: a projected service-account token, read again at each attempt
    #[arg(long, env = "TOWLINE_ENROL_TOKEN_FILE", value_name = "FILE")]
    pub enrol_token_file: Option<PathBuf>,

    /// Proof without Kubernetes: a one-time token of `towline-pki token create`; it also tells by
    /// which authority servers are verified, so --server-ca may be left out
    #[arg(long, env = "TOWLINE_JOIN_TOKEN_FILE", value_name = "FILE")]
    pub join_token_file: Option<PathBuf>,

    /// The signer name of our signing requests, with --enrol kubernetes [default: towline.dev/agent]
    #[arg(long, env = "TOWLINE_ENROL_SIGNER", value_name = "NAME")]
    pub enrol_signer: Option<SignerName>,

    /// Name to ask for; needed with a join token that names a pattern, and with --enrol kubernetes
    #[arg(long, env = "TOWLINE_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<Name>,

    /// The cluster whose servers may enrol this node [default: the join token's, or the server's own]
    #[arg(long, env = "TOWLINE_CLUSTER", value_name = "NAME")]
    pub cluster: Option<ClusterName>,
}

/// What does not fit together; says what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnrolFlagError {
    /// Two sources of one certificate.
    #[error(
        "{0} and --enrol exclude each other: with --enrol the agent keeps its own pair in --state-dir"
    )]
    Given(&'static str),
    /// Where the key is kept.
    #[error("--enrol needs --state-dir DIRECTORY, where this node's key and certificate are kept")]
    NoStateDir,
    /// Whom to ask.
    #[error("--enrol needs --server HOST:PORT")]
    NoServer,
    /// What proves the name.
    #[error(
        "--enrol server needs --enrol-token-file FILE (a projected service-account token) or \
         --join-token-file FILE (of `towline-pki token create`)"
    )]
    NoProof,
    /// Whom to believe.
    #[error("--enrol needs --server-ca FILE, unless a join token names the authority of servers")]
    NoAnchors,
    /// Who we are.
    #[error(
        "--enrol kubernetes needs --node-name NAME: in a pod, TOWLINE_NODE_NAME from spec.nodeName"
    )]
    NoNodeName,
    /// The proof of another source.
    #[error("{0} has no effect with --enrol {1}")]
    OtherSource(&'static str, Source),
    /// Would silently do nothing.
    #[error("{0} has no effect without --enrol")]
    Useless(&'static str),
}

/// Checked values.
#[derive(Clone, Debug)]
pub struct EnrolConfig {
    /// Who signs.
    pub source: Source,
    /// Certificate, key and roots, as the agent reads them.
    pub files: Files,
    /// `--server-ca` was given; otherwise the roots come from the first contact.
    pub pinned_by_file: bool,
    /// See [`EnrolArgs`].
    pub token_file: Option<PathBuf>,
    /// See [`EnrolArgs`].
    pub join_token_file: Option<PathBuf>,
    /// See [`EnrolArgs`].
    pub signer: SignerName,
    /// See [`EnrolArgs`].
    pub node_name: Option<Name>,
    /// See [`EnrolArgs`].
    pub cluster: Option<ClusterName>,
}

/// Names of the files in the state directory.
pub const CERTIFICATE: &str = "agent.crt";
/// See [`CERTIFICATE`].
pub const KEY: &str = "agent.key";
/// See [`CERTIFICATE`].
pub const SERVER_CA: &str = "server-ca.crt";

/// What of the other flags counts here.
pub struct Beside<'a> {
    /// `--cert`.
    pub cert: &'a Option<PathBuf>,
    /// `--key`.
    pub key: &'a Option<PathBuf>,
    /// `--server-ca`.
    pub server_ca: &'a Option<PathBuf>,
    /// `--deny-list`.
    pub deny_list: &'a Option<PathBuf>,
    /// `--server-crl`.
    pub server_crls: &'a [PathBuf],
    /// `--crl-policy`.
    pub crl_policy: CrlPolicy,
    /// `--state-dir`.
    pub state_dir: &'a Option<PathBuf>,
    /// Whether there is a `--server`.
    pub servers: bool,
}

impl EnrolArgs {
    /// `None` without `--enrol`.
    pub fn config(&self, beside: &Beside<'_>) -> Result<Option<EnrolConfig>, EnrolFlagError> {
        let useless = [
            ("--enrol-token-file", self.enrol_token_file.is_some()),
            ("--join-token-file", self.join_token_file.is_some()),
            ("--enrol-signer", self.enrol_signer.is_some()),
            ("--node-name", self.node_name.is_some()),
            ("--cluster", self.cluster.is_some()),
        ];
        let Some(source) = self.enrol else {
            return match useless.iter().find(|(_, given)| *given) {
                Some((flag, _)) => Err(EnrolFlagError::Useless(flag)),
                None => Ok(None),
            };
        };
        if beside.cert.is_some() {
            return Err(EnrolFlagError::Given("--cert"));
        }
        if beside.key.is_some() {
            return Err(EnrolFlagError::Given("--key"));
        }
        if !beside.servers {
            return Err(EnrolFlagError::NoServer);
        }
        let state = beside
            .state_dir
            .as_ref()
            .ok_or(EnrolFlagError::NoStateDir)?;
        match source {
            Source::Server if self.enrol_token_file.is_none() && self.join_token_file.is_none() => {
                return Err(EnrolFlagError::NoProof);
            }
            Source::Server if self.enrol_signer.is_some() => {
                return Err(EnrolFlagError::OtherSource("--enrol-signer", source));
            }
            Source::Server => {}
            Source::Kubernetes => {
                let proofs = &useless[..2];
                if let Some((flag, _)) = proofs.iter().find(|(_, given)| *given) {
                    return Err(EnrolFlagError::OtherSource(flag, source));
                }
                if self.node_name.is_none() {
                    return Err(EnrolFlagError::NoNodeName);
                }
            }
        }
        let server_ca = match beside.server_ca {
            Some(path) => path.clone(),
            None if self.join_token_file.is_some() => state.join(SERVER_CA),
            None => return Err(EnrolFlagError::NoAnchors),
        };
        Ok(Some(EnrolConfig {
            source,
            files: Files {
                cert: state.join(CERTIFICATE),
                key: state.join(KEY),
                anchors: vec![(Role::Server, server_ca)],
                deny_list: beside.deny_list.clone(),
                crls: vec![(Role::Server, beside.server_crls.to_vec())],
                crl_policy: beside.crl_policy,
                // A certificate that is refused for it would be asked for again and again.
                shared_roots: SharedRoots::Taken,
            },
            pinned_by_file: beside.server_ca.is_some(),
            token_file: self.enrol_token_file.clone(),
            join_token_file: self.join_token_file.clone(),
            signer: self.enrol_signer.clone().unwrap_or_default(),
            node_name: self.node_name.clone(),
            cluster: self.cluster.clone(),
        }))
    }
}

impl EnrolConfig {
    /// Where the roots of servers are.
    pub fn server_ca(&self) -> Option<&PathBuf> {
        self.files.anchors.first().map(|(_, path)| path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(args: &EnrolArgs, change: impl Fn(&mut [Option<PathBuf>; 4])) -> String {
        let mut given = [None, None, Some("/ca".into()), Some("/state".into())];
        change(&mut given);
        let [cert, key, server_ca, state_dir] = &given;
        let beside = Beside {
            cert,
            key,
            server_ca,
            deny_list: &None,
            server_crls: &[],
            crl_policy: CrlPolicy::default(),
            state_dir,
            servers: true,
        };
        match args.config(&beside) {
            Ok(None) => "none".to_owned(),
            Ok(Some(config)) => format!("{:?}", config.server_ca().unwrap()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_does_not_fit_together_is_refused_with_the_flag() {
        let token = EnrolArgs {
            enrol: Some(Source::Server),
            enrol_token_file: Some("/t".into()),
            ..EnrolArgs::default()
        };
        let join = EnrolArgs {
            enrol_token_file: None,
            join_token_file: Some("/j".into()),
            ..token.clone()
        };
        let by_api = |name: Option<&str>| EnrolArgs {
            enrol: Some(Source::Kubernetes),
            node_name: name.map(|name| name.parse().unwrap()),
            ..EnrolArgs::default()
        };
        assert_eq!(check(&by_api(Some("n1")), |_| ()), "\"/ca\"");
        assert_eq!(check(&EnrolArgs::default(), |_| ()), "none");
        assert_eq!(check(&token, |_| ()), "\"/ca\"");
        assert_eq!(
            check(&join, |given| given[2] = None),
            "\"/state/server-ca.crt\""
        );
        let file = || Some(PathBuf::from("/f"));
        for (text, word) in [
            (check(&token, |given| given[0] = file()), "--cert"),
            (check(&token, |given| given[1] = file()), "--key"),
            (check(&token, |given| given[2] = None), "--server-ca"),
            (check(&token, |given| given[3] = None), "--state-dir"),
            (
                check(
                    &EnrolArgs {
                        enrol_token_file: None,
                        ..token.clone()
                    },
                    |_| (),
                ),
                "--enrol-token-file",
            ),
            (
                check(
                    &EnrolArgs {
                        enrol: None,
                        ..token.clone()
                    },
                    |_| (),
                ),
                "--enrol-token-file has no effect",
            ),
            (
                check(
                    &EnrolArgs {
                        enrol: Some(Source::Kubernetes),
                        ..token.clone()
                    },
                    |_| (),
                ),
                "--enrol-token-file has no effect with --enrol kubernetes",
            ),
            (check(&by_api(None), |_| ()), "--node-name"),
            (
                check(&by_api(Some("n1")), |given| given[2] = None),
                "--server-ca",
            ),
            (
                check(
                    &EnrolArgs {
                        enrol_signer: Some(SignerName::default()),
                        ..token.clone()
                    },
                    |_| (),
                ),
                "--enrol-signer has no effect with --enrol server",
            ),
        ] {
            assert!(text.contains(word), "{text}");
        }
        assert!("off".parse::<Source>().is_err());
    }
}
