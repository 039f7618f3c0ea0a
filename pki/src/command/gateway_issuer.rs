//! `gateway-issuer`: the authority that signs what the kubelet gateway shows kube-apiserver.
//!
//! ```text
//! DIR/issuers/gateway.{crt,key}  mints a serving certificate for each node; for the server only
//! DIR/trust/gateway.pem          what kube-apiserver anchors "kubelets" on
//! ```
//!
//! It stands alone, not below the cluster's root: whoever trusts the root for links must not trust
//! what mints names of nodes, and the other way round.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde_json::json;
use towline_pki::role::{BACKDATE, ISSUER_LIFE};
use towline_pki::store::{self, Replace};
use towline_pki::{Authority, AuthoritySpec, KeyKind, PrivateKey, Usage, date};

use super::answer::{self, Answer};
use super::{EXIT_CODES, Failure, paper, source};

const EXAMPLE: &str = "\
Example:
  towline-pki gateway-issuer --dir /secure/prod
Then:
  towline-server ... --kubelet-gateway --kubelet-gateway-ca-cert gateway.crt --kubelet-gateway-ca-key gateway.key
  kube-apiserver ... --kubelet-certificate-authority=trust/gateway.pem";

/// Make the authority of the kubelet gateway: issuers/gateway.* and trust/gateway.pem.
///
/// It mints, inside towline-server, a short-lived serving certificate for each node that
/// kube-apiserver dials. kube-apiserver's --kubelet-certificate-authority must name exactly this
/// authority and no other: with the kubelets' own authority beside it, kube-apiserver would also
/// accept a kubelet that the gateway never saw.
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLE}\n\n{EXIT_CODES}"))]
pub(crate) struct Args {
    /// Directory that `towline-pki init` made
    #[arg(long, value_name = "DIR", default_value = ".", env = "TOWLINE_PKI_DIR")]
    dir: PathBuf,
    /// Algorithm of the key: ecdsa-p256, ecdsa-p384, ed25519, rsa-3072 or rsa-4096
    #[arg(
        long = "key-algorithm",
        alias = "key-kind",
        value_name = "ALGORITHM",
        default_value_t
    )]
    key_kind: KeyKind,
    /// Life of the authority in days
    #[arg(long, value_name = "DAYS", default_value_t = ISSUER_LIFE.as_secs() / DAY, value_parser = clap::value_parser!(u64).range(2..=36_500))]
    days: u64,
}

const DAY: u64 = 86_400;

pub(crate) fn run(args: &Args, now: SystemTime) -> Result<Answer, Failure> {
    super::init::fits_authority(args.key_kind)?;
    let cluster = source::read_cluster(&args.dir)?;
    let file = |name: &str| args.dir.join(name);
    let (key, cert) = (file("issuers/gateway.key"), file("issuers/gateway.crt"));
    let trust = file("trust/gateway.pem");
    let advice = "to replace it, make one in another directory, have kube-apiserver trust both \
                  (in one file) until the server uses the new one, then remove the old";
    paper::refuse_existing(&[&key, &cert, &trust], advice)?;
    let spec = AuthoritySpec {
        purpose: "towline gateway".into(),
        organisation: cluster.to_string(),
        not_before: now.checked_sub(BACKDATE).unwrap_or(now),
        not_after: now
            .checked_add(Duration::from_secs(args.days.saturating_mul(DAY)))
            .unwrap_or(now),
        path_length: Some(0),
        usages: vec![Usage::ServerAuth],
    };
    let private = PrivateKey::generate(args.key_kind).map_err(Failure::failed)?;
    let authority = Authority::create(&spec, private)?;
    for folder in ["issuers", "trust"] {
        store::make_private_directory(&file(folder))?;
    }
    store::write_secret(&key, &authority.key_to_pem(), Replace::Never)?;
    store::write_public(&cert, &authority.to_pem(), Replace::Never)?;
    store::write_public(&trust, &authority.to_pem(), Replace::Never)?;
    let end = authority.certificate().not_after;
    let text = format!(
        "made     gateway authority of cluster {cluster}\n\
         \x20 subject  {subject}\n\
         \x20 valid    until {until} ({left})\n\
         \x20 file     {key}  private key, mode 0600, for the server's --kubelet-gateway-ca-key\n\
         \x20 file     {cert}  certificate, for --kubelet-gateway-ca-cert\n\
         \x20 file     {trust}  the same, for kube-apiserver\n\
         \n\
         next     kube-apiserver --kubelet-certificate-authority={trust}\n\
         \x20        exactly this file: with the kubelets' own authority in it, kube-apiserver would\n\
         \x20        believe kubelets that the gateway never saw\n",
        subject = authority.certificate().subject,
        until = date::text(end),
        left = date::distance(now, end),
        key = key.display(),
        cert = cert.display(),
        trust = trust.display(),
    );
    let result = json!({
        "cluster": cluster.as_str(),
        "certificates": [answer::certificate(authority.certificate(), now)],
        "files": [
            answer::file(&key, "private-key"),
            answer::file(&cert, "certificate"),
            answer::file(&trust, "trust"),
        ],
    });
    Ok(Answer::new(text, result))
}
