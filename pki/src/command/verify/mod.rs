//! `verify`: what a daemon would say to a certificate in a file, or to a server that is dialled.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use towline_pki::crl::{CrlPolicy, Revocation};
use towline_pki::kubelet::{KubeletFiles, KubeletTrust};
use towline_pki::{Anchors, Certificate, DenyList, Leaf, PeerError, PeerVerifier, WebRoots, store};
use towline_proto::id::{ClusterName, Name, Role};
use towline_proto::target::{Host, Target};

use super::answer::Answer;
use super::{EXIT_CODES, Failure};
use verdict::Judged;

mod dial;
mod verdict;

const EXAMPLES: &str = "\
Examples:
  towline-pki verify agent-node-7.crt --role agent --trust trust/agents.pem
  towline-pki verify agent-node-7.crt --role agent --trust trust/agents.pem --cluster prod \\
      --deny-list trust/denied --crl trust/agents.crl -o json
  towline-pki verify cp.example:8091 --role server --trust trust/servers.pem --cluster prod
  towline-pki verify cp.example:8091 --role server --trust trust/servers.pem \\
      --cert agent-node-7.crt --key agent-node-7.key
  towline-pki verify 10.0.1.7:10250 --role kubelet --node node-7 --trust kubelet-ca.crt
  towline-pki verify api.example:6443 --role kube-apiserver --trust ca.crt";

/// Check a certificate exactly as a daemon checks a peer: chain, dates, usage, one identity,
/// cluster, role, deny list, revocation. Of a server that is dialled, also whether it holds the key, and
/// whether it takes ours.
///
/// Roles server, agent, client and operator are judged by identity, a kubelet by its node and the
/// address that is dialled, kube-apiserver by its name. A dial is one TLS handshake, over TCP;
/// nothing is sent over the connection. Agents, clients and operators listen nowhere.
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(crate) struct Args {
    /// File with the certificate, followed by its intermediates if there are any (PEM); or the server
    /// to dial, HOST:PORT
    place: String,
    /// Role that the certificate must have
    #[arg(long, value_enum)]
    role: Expected,
    /// Trust anchors for that role (PEM)
    #[arg(long, value_name = "FILE")]
    trust: PathBuf,
    /// Cluster that the certificate must be of; without it that of --cert, or any
    #[arg(long, value_name = "NAME")]
    cluster: Option<ClusterName>,
    /// Deny list
    #[arg(long, value_name = "FILE")]
    deny_list: Option<PathBuf>,
    /// Node that a kubelet must be of
    #[arg(long, value_name = "NAME", required_if_eq("role", "kubelet"))]
    node: Option<Name>,
    /// Revocation lists that must cover the whole chain, as daemons have them (may be given several
    /// times)
    #[arg(long, value_name = "FILE")]
    crl: Vec<PathBuf>,
    /// What a list past its next update means: keep-last or fail-closed, as --crl-policy of the daemons
    #[arg(long, value_name = "POLICY", default_value_t, requires = "crl")]
    crl_policy: CrlPolicy,
    /// Name or address that a kubelet's or kube-apiserver's certificate must cover; without it the
    /// one that is dialled
    #[arg(long, value_name = "HOST")]
    host: Option<Host>,
    /// Certificate of ours to show to the server that is dialled
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Its private key
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
}

/// Who it must be.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Expected {
    Server,
    Agent,
    Client,
    Operator,
    Kubelet,
    KubeApiserver,
}

impl Expected {
    /// The role of an identity; `None` for those that have none.
    const fn role(self) -> Option<Role> {
        match self {
            Expected::Server => Some(Role::Server),
            Expected::Agent => Some(Role::Agent),
            Expected::Client => Some(Role::Client),
            Expected::Operator => Some(Role::Operator),
            Expected::Kubelet | Expected::KubeApiserver => None,
        }
    }
}

pub(crate) fn run(args: &Args, now: SystemTime) -> Result<Answer, Failure> {
    if args.role.role().is_none() && (args.cluster.is_some() || args.deny_list.is_some()) {
        return Err(Failure::usage(
            "--cluster and --deny-list are for identities: kubelets and kube-apiserver have none",
        ));
    }
    if args.role != Expected::Kubelet && args.node.is_some() {
        return Err(Failure::usage("--node is for --role kubelet"));
    }
    if args.role == Expected::KubeApiserver && !args.crl.is_empty() {
        return Err(Failure::usage(
            "--crl: daemons have no revocation lists for kube-apiserver, so none would count",
        ));
    }
    let path = Path::new(&args.place);
    if path.symlink_metadata().is_err()
        && let Ok(target) = args.place.parse::<Target>()
    {
        return dial::run(args, &target, now);
    }
    if args.cert.is_some() {
        return Err(Failure::usage(
            "--cert and --key are shown to a server: name one as HOST:PORT",
        ));
    }
    let chain = store::read_certificates(path)?;
    for (index, der) in chain.iter().enumerate() {
        Certificate::parse(der.as_ref()).map_err(|error| {
            Failure::file(format!(
                "{}: certificate {}: {error}",
                args.place,
                index + 1
            ))
        })?;
    }
    let rules = Rules::load(args)?;
    let named = args.host.is_some();
    let host = args.host.clone().or_else(|| verdict::first_name(&chain));
    let judged = rules.judge(args, &chain, host.as_ref(), now);
    let mut notes = Vec::new();
    if args.role.role().is_none() && !named {
        notes.push(
            "whether it covers the name that is dialled was not checked; name it with --host",
        );
    }
    if args.role.role().is_some() && args.cluster.is_none() {
        notes.push("the cluster was not checked; name it with --cluster");
    }
    judged.answer(&args.place, &chain, &notes, None, now)
}

/// What a certificate is judged by.
enum Rules {
    Identity {
        role: Role,
        anchors: Anchors,
        deny: DenyList,
        lists: Option<Revocation>,
    },
    Kubelet(std::sync::Arc<KubeletTrust>),
    Web(WebRoots),
}

impl Rules {
    fn load(args: &Args) -> Result<Self, Failure> {
        let Some(role) = args.role.role() else {
            return Ok(match args.role {
                Expected::Kubelet => {
                    let files = KubeletFiles {
                        authority: args.trust.clone(),
                        crls: args.crl.clone(),
                        crl_policy: args.crl_policy,
                    };
                    Rules::Kubelet(KubeletTrust::load(&files).map_err(Failure::file)?)
                }
                _ => Rules::Web(WebRoots::load(&args.trust).map_err(Failure::file)?),
            });
        };
        let deny = match &args.deny_list {
            Some(path) => DenyList::load(path)?,
            None => DenyList::default(),
        };
        let anchors = Anchors::load(&args.trust)?;
        let lists = match args.crl.as_slice() {
            [] => None,
            paths => Some(Revocation::load(paths, &anchors, args.crl_policy, None)?),
        };
        Ok(Rules::Identity {
            role,
            anchors,
            deny,
            lists,
        })
    }

    /// The verdict on a chain that was read, not dialled.
    fn judge(
        &self,
        args: &Args,
        chain: &[CertificateDer<'static>],
        host: Option<&Host>,
        now: SystemTime,
    ) -> Judged {
        match self {
            Rules::Identity {
                role,
                anchors,
                deny,
                lists,
            } => {
                let checked = cluster(args, chain).and_then(|cluster| {
                    let (anchors, deny) = (anchors.clone(), deny.clone());
                    PeerVerifier::with_lists(cluster, *role, anchors, deny, lists.clone())
                        .verify(chain, now)
                });
                Judged::of_peer(checked)
            }
            Rules::Kubelet(trust) => match (&args.node, host) {
                (Some(node), Some(host)) => {
                    let expected = towline_pki::kubelet::Expected {
                        node: node.clone(),
                        host: host.clone(),
                    };
                    Judged::of_kubelet(node, &trust.check(chain, &expected, now))
                }
                _ => Judged::nameless(),
            },
            Rules::Web(roots) => match host {
                Some(host) => Judged::of_web(roots, chain, host, now),
                None => Judged::nameless(),
            },
        }
    }
}

/// The cluster asked for, or the one of the certificate: then that rule is left to the reader.
fn cluster(args: &Args, chain: &[CertificateDer<'static>]) -> Result<ClusterName, PeerError> {
    if let Some(cluster) = &args.cluster {
        return Ok(cluster.clone());
    }
    let first = chain.first().ok_or(PeerError::NoCertificate)?;
    Ok(Leaf::parse(first)?.identity.cluster)
}
