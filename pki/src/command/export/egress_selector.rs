//! `export egress-selector`: what kube-apiserver's --egress-selector-config-file names.

use towline_pki::manifest::{self, Door, PlacePath, Selection, Url};

use super::{Content, EXIT_CODES, Failure, Place, Shown};
use crate::command::answer::Answer;

const EXAMPLES: &str = "\
Examples:
  towline-pki export egress-selector --unix /run/towline/door.sock --out egress-selector.yaml
  towline-pki export egress-selector --unix /run/towline/door.sock --grpc
  towline-pki export egress-selector --url https://cp.example:8090 \\
      --ca /etc/towline/pki/trust/servers.pem \\
      --client-cert /etc/towline/pki/client-kube-apiserver.crt \\
      --client-key /etc/towline/pki/client-kube-apiserver.key
Then:
  kube-apiserver ... --egress-selector-config-file=/etc/kubernetes/egress-selector.yaml";

/// An EgressSelectorConfiguration, through the door's Unix socket or over TCP with mutual TLS.
///
/// Paths are those on kube-apiserver's machine (in its container); no file is read.
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
#[command(group = clap::ArgGroup::new("transport").required(true).args(["unix", "url"]))]
pub(super) struct Args {
    /// The door's Unix socket
    #[arg(long, value_name = "PATH")]
    unix: Option<PlacePath>,
    /// Speak gRPC over it instead of HTTP CONNECT
    #[arg(long, conflicts_with = "url")]
    grpc: bool,
    /// The door over TCP; its host must be a name or an address of the server's certificate
    #[arg(
        long,
        value_name = "URL",
        requires = "ca",
        requires = "client_cert",
        requires = "client_key"
    )]
    url: Option<Url>,
    /// Authorities of the server: trust/servers.pem
    #[arg(long, value_name = "PATH", requires = "url")]
    ca: Option<PlacePath>,
    /// Certificate of role client
    #[arg(long, value_name = "PATH", requires = "url")]
    client_cert: Option<PlacePath>,
    /// Its private key
    #[arg(long, value_name = "PATH", requires = "url")]
    client_key: Option<PlacePath>,
    /// What goes through the door: cluster (nodes, pods, services), controlplane, etcd; the rest is
    /// connected to directly
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        default_value = "cluster"
    )]
    selections: Vec<Which>,
    #[command(flatten)]
    place: Place,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Which {
    Cluster,
    #[value(name = "controlplane")]
    ControlPlane,
    Etcd,
}

impl From<Which> for Selection {
    fn from(which: Which) -> Self {
        match which {
            Which::Cluster => Selection::Cluster,
            Which::ControlPlane => Selection::ControlPlane,
            Which::Etcd => Selection::Etcd,
        }
    }
}

pub(super) fn run(args: &Args) -> Result<Answer, Failure> {
    args.place.check()?;
    let door = match (&args.unix, &args.url) {
        (Some(socket), None) => Door::Unix {
            socket: socket.clone(),
            grpc: args.grpc,
        },
        (None, Some(url)) => {
            let (Some(ca), Some(cert), Some(key)) = (&args.ca, &args.client_cert, &args.client_key)
            else {
                return Err(Failure::usage(
                    "--url needs --ca, --client-cert and --client-key",
                ));
            };
            Door::Tcp {
                url: url.clone(),
                authorities: ca.clone(),
                cert: cert.clone(),
                key: key.clone(),
            }
        }
        _ => return Err(Failure::usage("give --unix or --url")),
    };
    let selections: Vec<Selection> = args.selections.iter().copied().map(Into::into).collect();
    let content = Content::Public(manifest::egress_selector(&door, &selections));
    let what = "EgressSelectorConfiguration";
    args.place
        .deliver(&content, what, "egress-selector", &Shown::default())
}
