//! `accept`: takes in a certificate that somebody else signed, after checking it.
//!
//! Without `--role` it is one of an authority, for a directory of `init --external-root` or for
//! `rotate prepare --external-root`: which seat it belongs to is told by its key. With `--role` it
//! is the answer to `towline-pki request`.

use std::path::PathBuf;
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use serde_json::json;
use towline_pki::hierarchy::accept::{Expected, is_signed_by};
use towline_pki::hierarchy::succession;
use towline_pki::store::{self, Replace};
use towline_pki::{
    Anchors, Certificate, Credentials, DenyList, Generation, Layout, Ledger, Passphrases,
    PeerVerifier, PrivateKey, Request, Seat, date, pem,
};
use towline_proto::id::{ClusterName, Name, Role};

use super::answer::{self, Answer};
use super::lists::Lists;
use super::unlock::Unlock;
use super::{EXIT_CODES, Failure, paper, source};

const EXAMPLES: &str = "\
Examples:
  towline-pki accept issuer-agents.crt --dir /secure/prod
  towline-pki accept from-corporate-ca.crt --dir /secure/prod --any-usage
The answer to `towline-pki request agent node-7 --out /etc/towline`, on the node:
  towline-pki accept node-7.crt --role agent --name node-7 --cluster prod.example --out /etc/towline";

/// Take in a certificate that somebody else signed: of an issuer (--dir), or of a server, agent,
/// client or operator (--role, --name).
///
/// Nothing in it is believed: key, authority bit, path length, usage, names, dates and, where the
/// root is at hand, signature are checked, and nothing is written before all of it fits.
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(crate) struct Args {
    /// File with the certificate (PEM); what follows the first one in it is its chain
    certificate: PathBuf,
    /// Directory that `towline-pki init` made, for the certificate of an issuer
    #[arg(long, value_name = "DIR", default_value = ".", env = "TOWLINE_PKI_DIR")]
    dir: PathBuf,
    /// Take an issuer of agents that is not limited to clientAuth
    #[arg(long, conflicts_with = "role")]
    any_usage: bool,
    /// server, agent, client or operator: the certificate answers `towline-pki request`
    #[arg(long, requires = "name", requires = "cluster")]
    role: Option<Role>,
    /// Name that was requested
    #[arg(long, requires = "role")]
    name: Option<Name>,
    /// Cluster that the certificate must be of
    #[arg(long, value_name = "NAME", requires = "role")]
    cluster: Option<ClusterName>,
    /// Trust file that its peers have; the certificate must verify with it
    #[arg(long, value_name = "FILE", requires = "role")]
    trust: Option<PathBuf>,
    /// Directory where `towline-pki request` wrote the key
    #[arg(long, value_name = "DIR", default_value = ".", requires = "role")]
    out: PathBuf,
    /// Replace the certificate when it is there (renewal of the same key)
    #[arg(long, requires = "role")]
    replace: bool,
    #[command(flatten)]
    unlock: Unlock,
}

pub(crate) fn run(args: &Args, now: SystemTime) -> Result<Answer, Failure> {
    match (args.role, &args.name, &args.cluster) {
        (Some(role), Some(name), Some(cluster)) => leaf(args, role, name, cluster, now),
        _ => authority(args, now),
    }
}

/// The key of a seat that waits for its certificate.
struct Waiting {
    seat: Seat,
    generation: Generation,
    key: PrivateKey,
}

fn authority(args: &Args, now: SystemTime) -> Result<Answer, Failure> {
    let layout = Layout::new(&args.dir);
    let cluster = source::read_cluster(&args.dir)?;
    let der = store::read_certificates(&args.certificate)?.swap_remove(0);
    let named = |error: &dyn std::fmt::Display| {
        Failure::file(format!("{}: {error}", args.certificate.display()))
    };
    let certificate = Certificate::parse(der.as_ref()).map_err(|error| named(&error))?;
    let mut passphrases = args.unlock.passphrases();
    let waiting = waiting(args, &layout, &certificate, &mut passphrases)?;
    let (seat, generation) = (waiting.seat, waiting.generation);
    let roots = roots(&layout)?;
    let root = match roots.iter().find(|root| is_signed_by(&der, root)) {
        Some(root) => Some(root),
        None => roots.first(),
    };
    let expected = Expected {
        seat,
        public_key: &waiting.key.public(),
        taken: &taken(&layout, seat, generation)?,
        root: root.filter(|_| seat != Seat::Root),
        any_usage: args.any_usage,
    };
    let certificate = expected.check(&der, now).map_err(|error| named(&error))?;
    Lists::may_follow(&layout, seat)?;
    Ledger::in_dir(&args.dir).record([der.as_ref()], "accept", now)?;
    if generation == Generation::Next {
        succession::write_next(&layout, seat, &der).map_err(Failure::file)?;
    } else {
        let text = pem::write_certificates(&[der]);
        let path = layout.cert(seat, generation);
        store::write_public(&path, &text, Replace::Never)?;
        store::remove(&layout.request(seat, generation))?;
        succession::trust(&layout, seat)?;
    }
    let followed = Lists::follow(&layout, seat, &mut passphrases, now)?;
    let mut text = report(
        args,
        &cluster,
        &layout,
        &waiting,
        &certificate,
        root.is_some(),
        now,
    );
    text.push_str(&followed.lines("with a list of the new one, which it needs before it signs"));
    let mut files = vec![answer::file(&layout.cert(seat, generation), "certificate")];
    files.extend(layout.trust(seat).map(|path| answer::file(&path, "trust")));
    files.extend(followed.files());
    Ok(Answer::new(
        text,
        json!({
            "cluster": cluster.as_str(),
            "issuer": seat.as_str(),
            "certificates": [answer::certificate(&certificate, now)],
            "files": files,
        }),
    ))
}

/// The seat whose key this certificate is of, and which has no certificate yet.
fn waiting(
    args: &Args,
    layout: &Layout,
    certificate: &Certificate,
    passphrases: &mut Passphrases,
) -> Result<Waiting, Failure> {
    let mut awaited = Vec::new();
    for seat in Seat::ISSUERS {
        for generation in [Generation::Current, Generation::Next] {
            let path = layout.key(seat, generation);
            if !path.exists() || layout.cert(seat, generation).exists() {
                continue;
            }
            // The request has the public half in the open, so that no passphrase is needed.
            let request = layout.request(seat, generation);
            let public = match request.exists() {
                true => Request::load(&request)?.public_key().clone(),
                false => PrivateKey::unlock(&path, passphrases)?.public(),
            };
            if public.der() == certificate.public_key() {
                let key = PrivateKey::unlock(&path, passphrases)?;
                return Ok(Waiting {
                    seat,
                    generation,
                    key,
                });
            }
            awaited.push(request.display().to_string());
        }
    }
    let cert = args.certificate.display();
    Err(Failure::file(match awaited.is_empty() {
        true => format!(
            "{cert}: no authority in {} waits for a certificate; nothing was changed",
            args.dir.display()
        ),
        false => format!(
            "{cert}: it is of another key than those that wait for a certificate ({}); nothing was \
             changed",
            awaited.join(", ")
        ),
    }))
}

fn roots(layout: &Layout) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let mut roots = Vec::new();
    for generation in Generation::ALL {
        roots.extend(layout.read_cert(Seat::Root, generation)?);
    }
    Ok(roots)
}

/// The names of every other authority of the directory.
fn taken(
    layout: &Layout,
    own: Seat,
    own_generation: Generation,
) -> Result<Vec<(Vec<u8>, String)>, Failure> {
    let mut taken = Vec::new();
    for seat in Seat::ALL {
        for generation in Generation::ALL {
            if (seat, generation) == (own, own_generation) {
                continue;
            }
            if let Some(der) = layout.read_cert(seat, generation)? {
                let certificate = Certificate::parse(der.as_ref())?;
                let path = layout.cert(seat, generation);
                taken.push((
                    certificate.subject_der().to_vec(),
                    path.display().to_string(),
                ));
            }
        }
    }
    Ok(taken)
}

fn report(
    args: &Args,
    cluster: &ClusterName,
    layout: &Layout,
    waiting: &Waiting,
    certificate: &Certificate,
    root_known: bool,
    now: SystemTime,
) -> String {
    let dir = args.dir.display();
    let next = match waiting.generation {
        Generation::Next => format!(
            "give trust/{seat}.pem to its daemons, then towline-pki rotate activate {seat} --dir {dir}",
            seat = waiting.seat
        ),
        _ => format!("towline-pki issue --dir {dir} ... once both issuers have theirs"),
    };
    let signature = match root_known {
        true => "by the root that is here",
        false => "not checked: no certificate of a root is in root/",
    };
    format!(
        "took     certificate of the issuer of {seat}, cluster {cluster}\n\
         \x20 subject  {subject}\n\
         \x20 issuer   {issuer}\n\
         \x20 signed   {signature}\n\
         \x20 valid    until {until} ({left})\n\
         \x20 file     {cert}\n\
         \x20 file     {trust}\n\
         \n\
         next     {next}\n",
        seat = waiting.seat,
        subject = certificate.subject,
        issuer = certificate.issuer,
        until = date::text(certificate.not_after),
        left = date::distance(now, certificate.not_after),
        cert = layout.cert(waiting.seat, waiting.generation).display(),
        trust = layout.trust(waiting.seat).unwrap_or_default().display(),
    )
}

fn leaf(
    args: &Args,
    role: Role,
    name: &Name,
    cluster: &ClusterName,
    now: SystemTime,
) -> Result<Answer, Failure> {
    let path = |end| paper::file(&args.out, role, name, end);
    let (cert, key) = (path("crt"), path("key"));
    let replace = if args.replace {
        Replace::Atomically
    } else {
        paper::refuse_existing(&[&cert], "to renew it, add --replace")?;
        Replace::Never
    };
    // The very checks that the daemon makes when it starts.
    let own = Credentials::load(&args.certificate, &key, role, now)
        .map_err(|error| Failure::file(error.to_string()))?;
    let named = |text: String| Failure::file(format!("{}: {text}", args.certificate.display()));
    let identity = own.identity();
    if identity.cluster != *cluster || identity.name != *name {
        return Err(named(format!(
            "it is of {identity}, and {role} {name} of cluster {cluster} was asked for"
        )));
    }
    let signed = match &args.trust {
        Some(path) => {
            let verifier = PeerVerifier::new(
                cluster.clone(),
                role,
                Anchors::load(path)?,
                DenyList::default(),
            );
            verifier
                .verify(own.chain(), now)
                .map_err(|error| named(format!("{error} (by {})", path.display())))?;
            format!("verified with {}", path.display())
        }
        None => "not checked: no --trust was given".into(),
    };
    let text = pem::write_certificates(own.chain());
    store::write_public(&cert, &text, replace)?;
    let leaf = own.leaf();
    let text = format!(
        "took     certificate of {role} {name}, cluster {cluster}\n\
         \x20 identity {identity}\n\
         \x20 signed   {signed}\n\
         \x20 valid    until {until} ({left})\n\
         \x20 serial   {serial}\n\
         \x20 file     {cert}  beside its key\n",
        until = date::text(leaf.not_after),
        left = date::distance(now, leaf.not_after),
        serial = leaf.serial,
        cert = cert.display(),
    );
    let chain = own.chain().iter();
    let certificates: Vec<_> = chain
        .filter_map(|der| Certificate::parse(der.as_ref()).ok())
        .map(|read| answer::certificate(&read, now))
        .collect();
    Ok(Answer::new(
        text,
        json!({
            "cluster": cluster.as_str(),
            "certificates": certificates,
            "files": [answer::file(&cert, "certificate")],
        }),
    ))
}
