//! `export kubeconfig`: a kubeconfig of one context, with everything inside.

use std::path::PathBuf;
use std::time::SystemTime;

use towline_pki::manifest::{self, EntryName, Kubeconfig, Namespace, Url};
use towline_pki::{Certificate, Usage, pem};

use super::{
    Content, EXIT_CODES, Failure, Open, Place, Shown, read_authorities, read_chain, read_key,
};
use crate::command::answer::Answer;

const EXAMPLES: &str = "\
Examples:
  towline-pki export kubeconfig --server https://api.example:6443 --ca ca.crt \\
      --cert admin.crt --key admin.key --out admin.conf
  towline-pki export kubeconfig --server https://10.0.0.1:6443 --ca ca.crt --cert admin.crt \\
      --key admin.key --cluster prod --user alice --namespace default --out alice.conf";

/// A kubeconfig with the certificate, its key and the authorities embedded.
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(super) struct Args {
    /// Address of kube-apiserver
    #[arg(long, value_name = "URL")]
    server: Url,
    /// Authorities that kube-apiserver's certificate must chain to
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
    /// Client certificate, perhaps with others in any order
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// Its private key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// What the file calls the cluster
    #[arg(long, value_name = "NAME", default_value = "kubernetes")]
    cluster: EntryName,
    /// What the file calls the user; without it the certificate's common name
    #[arg(long, value_name = "NAME")]
    user: Option<EntryName>,
    /// Namespace of the context
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<Namespace>,
    #[command(flatten)]
    open: Open,
    #[command(flatten)]
    place: Place,
}

pub(super) fn run(args: &Args, now: SystemTime) -> Result<Answer, Failure> {
    args.place.check()?;
    let mut shown = Shown::default();
    let key = read_key(&args.key, &mut args.open.passphrases(), &mut shown)?;
    let chain = read_chain(&args.cert, &[], Some(&key), &mut shown, now)?;
    let named =
        |error: &dyn std::fmt::Display| Failure::file(format!("{}: {error}", args.cert.display()));
    let leaf = chain
        .certificates
        .first()
        .ok_or_else(|| named(&"holds no certificate"))?;
    let leaf = Certificate::parse(leaf.as_ref()).map_err(|error| named(&error))?;
    if !leaf.allows(&Usage::ClientAuth) {
        return Err(named(
            &"is not for TLS clients (clientAuth), so nobody can log in with it",
        ));
    }
    let user = match (&args.user, leaf.common_names.as_deref()) {
        (Some(user), _) => user.clone(),
        (None, Some([name])) => name
            .parse()
            .map_err(|error| Failure::usage(format!("--user: {error}")))?,
        _ => {
            return Err(Failure::usage(
                "the certificate has no common name; give --user",
            ));
        }
    };
    let authorities = read_authorities(&args.ca, &mut shown, now)?;
    let made = manifest::kubeconfig(&Kubeconfig {
        server: &args.server,
        cluster: &args.cluster,
        user: &user,
        namespace: args.namespace.as_ref(),
        authorities: &authorities,
        chain: &pem::write_certificates(&chain.certificates),
        key: &key.pem,
    });
    let what = format!("kubeconfig of {user} for {}", args.server);
    let content = Content::Private(made);
    args.place.deliver(&content, &what, "kubeconfig", &shown)
}
