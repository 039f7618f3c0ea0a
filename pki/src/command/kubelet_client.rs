//! `kubelet-client`: the certificate that the kubelet gateway shows kubelets.
//!
//! It has no identity of Towline's: a kubelet knows nothing of them. It is signed by the authority
//! of the kubelets' `--client-ca-file`, in most clusters the cluster's own.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use towline_pki::gateway::KubeletClientSpec;
use towline_pki::store::{self, Replace};
use towline_pki::{Authority, Certificate, KeyKind, PrivateKey, date, pem};

use super::answer::{self, Answer};
use super::unlock::Unlock;
use super::{EXIT_CODES, Failure, paper};

const EXAMPLE: &str = "\
Example, where the cluster's authority is:
  towline-pki kubelet-client --ca-cert /etc/kubernetes/pki/ca.crt --ca-key /etc/kubernetes/pki/ca.key
Then, once:
  kubectl create clusterrolebinding towline-kubelet-client \\
    --clusterrole=system:kubelet-api-admin --user=towline-kubelet-client

kubeadm's apiserver-kubelet-client.crt and .key do as well.";

/// Make the client certificate that the kubelet gateway shows kubelets: kubelet-client.key and
/// kubelet-client.crt.
///
/// Its name is a user of Kubernetes and has no rights by itself: bind it to the cluster role
/// system:kubelet-api-admin.
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLE}\n\n{EXIT_CODES}"))]
pub(crate) struct Args {
    /// Certificate of the authority in the kubelets' --client-ca-file
    #[arg(long, value_name = "FILE")]
    ca_cert: PathBuf,
    /// Private key of that authority
    #[arg(long, value_name = "FILE")]
    ca_key: PathBuf,
    #[command(flatten)]
    unlock: Unlock,
    /// The user that it is to Kubernetes
    #[arg(long, value_name = "USER", default_value = "towline-kubelet-client")]
    name: String,
    /// The group that it is of, if any
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Life in days, at most 825
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u64).range(1..=825))]
    days: u64,
    /// Directory for the two files
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// Algorithm of the key: ecdsa-p256, ecdsa-p384, ed25519, rsa-2048, rsa-3072 or rsa-4096
    #[arg(
        long = "key-algorithm",
        alias = "key-kind",
        value_name = "ALGORITHM",
        default_value_t
    )]
    key_kind: KeyKind,
    /// Replace both files when they are there (renewal): each in one step, the key first
    #[arg(long)]
    replace: bool,
}

pub(crate) fn run(args: &Args, now: SystemTime) -> Result<Answer, Failure> {
    let (cert, key) = (
        args.out.join("kubelet-client.crt"),
        args.out.join("kubelet-client.key"),
    );
    let replace = if args.replace {
        Replace::Atomically
    } else {
        let advice = "to renew, add --replace: it makes a new key and certificate in its place";
        paper::refuse_existing(&[&key, &cert], advice)?;
        Replace::Never
    };
    let authority = Authority::unlock(
        &args.ca_cert,
        &args.ca_key,
        &mut args.unlock.passphrases(),
        now,
    )?;
    let private = PrivateKey::generate(args.key_kind).map_err(Failure::failed)?;
    let spec = KubeletClientSpec {
        user: args.name.clone(),
        group: args.group.clone(),
        life: Duration::from_secs(args.days * 86_400),
    };
    let issued = spec
        .issue(&authority, &private.public(), now)
        .map_err(Failure::usage)?;
    store::write_secret(&key, &private.to_pem(), replace)?;
    let text = pem::write_certificates(std::slice::from_ref(&issued.der));
    store::write_public(&cert, &text, replace)?;
    let text = format!(
        "made     kubelet client certificate of user {user}\n\
         \x20 issuer   {issuer}\n\
         \x20 valid    until {until} ({left})\n\
         \x20 file     {key}  private key, mode 0600\n\
         \x20 file     {cert}  certificate, public\n\
         \n\
         next     kubectl create clusterrolebinding towline-kubelet-client \\\n\
         \x20          --clusterrole=system:kubelet-api-admin --user={user}\n\
         \x20        towline-server ... --kubelet-client-certificate {cert} --kubelet-client-key {key}\n",
        user = args.name,
        issuer = authority.certificate().subject,
        until = date::text(issued.not_after),
        left = date::distance(now, issued.not_after),
        key = key.display(),
        cert = cert.display(),
    );
    let made = Certificate::parse(issued.der.as_ref()).ok();
    let made: Vec<Value> = made.iter().map(|c| answer::certificate(c, now)).collect();
    let result = json!({
        "certificates": made,
        "files": [answer::file(&key, "private-key"), answer::file(&cert, "certificate")],
    });
    Ok(Answer::new(text, result))
}
