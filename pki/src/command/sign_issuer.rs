//! `sign-issuer`: the root's half of making an issuer whose key never comes near the root.

use std::path::PathBuf;
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use serde_json::json;
use towline_pki::role::ISSUER_LIFE;
use towline_pki::store::{self, Replace};
use towline_pki::{Certificate, Layout, Ledger, Request, Seat, date, pem};
use towline_proto::id::ClusterName;

use super::answer::{self, Answer};
use super::root::RootFlags;
use super::unlock::Unlock;
use super::{EXIT_CODES, Failure, paper};

const EXAMPLES: &str = "\
Example, at the offline root, after `towline-pki init /secure/prod --external-root` elsewhere:
  towline-pki sign-issuer agents.csr --issuer agents --cluster prod.example --root /offline/root
Then, where the request came from:
  towline-pki accept issuer-agents.crt --dir /secure/prod";

/// Sign the request of an issuer with a root of ours: issuer-agents.crt or issuer-servers.crt.
///
/// Of the request only the key counts; path length, usage and life are what the seat needs.
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(crate) struct Args {
    /// File with the request (PEM)
    request: PathBuf,
    /// agents or servers
    #[arg(long, value_name = "ISSUER", value_parser = issuer)]
    issuer: Seat,
    /// Name of the cluster that the issuer is for
    #[arg(long, value_name = "NAME")]
    cluster: ClusterName,
    #[command(flatten)]
    root: RootFlags,
    #[command(flatten)]
    unlock: Unlock,
    /// Life of the issuer in days
    #[arg(long, value_name = "DAYS", default_value_t = ISSUER_LIFE.as_secs() / 86_400, value_parser = clap::value_parser!(u64).range(1..=36_500))]
    issuer_days: u64,
    /// Directory for the certificate
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
}

/// A seat that signs leaves.
pub(crate) fn issuer(text: &str) -> Result<Seat, String> {
    match text.parse() {
        Ok(Seat::Root) | Err(_) => Err("use agents or servers".into()),
        Ok(seat) => Ok(seat),
    }
}

pub(crate) fn run(args: &Args, now: SystemTime) -> Result<Answer, Failure> {
    if args.root.external_root {
        return Err(Failure::usage(
            "--external-root: signing needs the root; name it with --root",
        ));
    }
    let cert = args.out.join(format!("issuer-{}.crt", args.issuer));
    paper::refuse_existing(&[&cert], "move it away, or choose another place with --out")?;
    let request = Request::load(&args.request)?;
    let kind = request.public_key().describe();
    if matches!(kind.as_str(), "RSA 2048") {
        return Err(Failure::usage(format!(
            "{}: a key of kind {kind} is too weak for an authority, which lives for years",
            args.request.display()
        )));
    }
    let mut passphrases = args.unlock.passphrases();
    let root = args
        .root
        .open(&Layout::new(".".as_ref()), &mut passphrases, now)?;
    let spec = args
        .issuer
        .spec(args.cluster.as_str(), now, args.issuer_days);
    let der: CertificateDer<'static> = root.certify_below(&spec, request.public_key())?;
    let made = Certificate::parse(der.as_ref())?;
    let folder = args.root.root.as_deref().unwrap_or(".".as_ref());
    if args.root.is_in_directory() {
        Ledger::in_dir(folder).record([der.as_ref()], "sign-issuer", now)?;
    }
    let text = pem::write_certificates(&[der]);
    store::write_public(&cert, &text, Replace::Never)?;
    let text = format!(
        "took     the {kind} key of {request}; its sender holds it\n\
         made     certificate of the issuer of {seat}, cluster {cluster}\n\
         \x20 subject  {subject}\n\
         \x20 valid    until {until} ({left})\n\
         \x20 serial   {serial}\n\
         \x20 file     {cert}  certificate, public\n\
         \n\
         next     where the request came from: towline-pki accept {cert} --dir DIR\n",
        request = args.request.display(),
        seat = args.issuer,
        cluster = args.cluster,
        subject = made.subject,
        until = date::text(made.not_after),
        left = date::distance(now, made.not_after),
        serial = made.serial,
        cert = cert.display(),
    );
    Ok(Answer::new(
        text,
        json!({
            "cluster": args.cluster.as_str(),
            "certificates": [answer::certificate(&made, now)],
            "files": [answer::file(&cert, "certificate")],
        }),
    ))
}
