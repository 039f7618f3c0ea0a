//! `rotate`: a new authority takes over while the old one is still trusted.

use std::path::PathBuf;
use std::time::SystemTime;

use serde_json::{Value, json};
use towline_pki::hierarchy::reports::{self, Report};
use towline_pki::hierarchy::succession::{self, Stage};
use towline_pki::role::{ISSUER_LIFE, ROOT_LIFE};
use towline_pki::store::{self, Replace};
use towline_pki::{
    Authority, AuthorityError, Certificate, Generation, KeyKind, Layout, Ledger, PassphraseSource,
    Passphrases, PrivateKey, Seat, Secret, date, survey,
};

use super::answer::{self, Answer};
use super::lists::{Followed, Lists};
use super::root::{self, RootFlags};
use super::unlock::{self, Unlock};
use super::{EXIT_CODES, Failure, init, source};

const EXAMPLES: &str = "\
Examples, for the issuer of agents:
  towline-pki rotate prepare agents --dir /secure/prod
      give trust/agents.pem to the servers, which load it by themselves; collect their status:
      curl -s --unix-socket /run/towline/server.sock http://localhost/status > reports/cp-1.json
  towline-pki rotate activate agents --dir /secure/prod --reports reports --nodes servers.txt
      renew the agents' certificates, then:
  towline-pki rotate retire agents --dir /secure/prod
      give trust/agents.pem, now without the old one, to the servers

Of `servers` the trust file is trust/servers.pem, and agents as well as servers have it.

Each step is done whole by the next run when it was interrupted.";

/// Put a new authority in an old one's place, while both are trusted.
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(crate) struct Args {
    #[command(subcommand)]
    step: Step,
}

#[derive(clap::Subcommand)]
enum Step {
    Prepare(Prepare),
    Activate(Activate),
    Retire(Retire),
}

/// Make the next authority and add it to the trust bundle; it signs nothing yet.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
struct Prepare {
    /// agents, servers or root
    seat: Seat,
    /// Directory that `towline-pki init` made
    #[arg(long, value_name = "DIR", default_value = ".", env = "TOWLINE_PKI_DIR")]
    dir: PathBuf,
    #[command(flatten)]
    root: RootFlags,
    #[command(flatten)]
    unlock: Unlock,
    /// Algorithm of the new key instead of the old one's: ecdsa-p256, ecdsa-p384, ed25519, rsa-3072
    /// or rsa-4096
    #[arg(long = "key-algorithm", value_name = "ALGORITHM")]
    key_kind: Option<KeyKind>,
    /// Life in days [default: 1825 of an issuer, 3650 of a root]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(1..=36_500))]
    days: Option<u64>,
    /// Encrypt the new key; it is also encrypted when the old one is
    #[arg(long)]
    encrypt_keys: bool,
}

/// Sign with the next authority from now on. Refused while a daemon that has to trust it does not.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
struct Activate {
    /// agents, servers or root
    seat: Seat,
    /// Directory that `towline-pki init` made
    #[arg(long, value_name = "DIR", default_value = ".", env = "TOWLINE_PKI_DIR")]
    dir: PathBuf,
    /// What daemons have loaded: JSON of their `status`, or copies of their trust files as NAME.pem;
    /// files, or directories of them (repeat)
    #[arg(long, value_name = "PATH")]
    reports: Vec<PathBuf>,
    /// File with the names of the daemons that must be among the reports, one a line: NAME,
    /// agent/NAME, server/NAME, or what `kubectl get nodes -o name` prints
    #[arg(long, value_name = "FILE")]
    nodes: Option<PathBuf>,
    /// Do not ask who trusts it: links of daemons that do not will fail after their next renewal
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    unlock: Unlock,
}

/// Trust the old authority no more. Refused while a certificate that it signed is in use.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
struct Retire {
    /// agents, servers or root
    seat: Seat,
    /// Directory that `towline-pki init` made
    #[arg(long, value_name = "DIR", default_value = ".", env = "TOWLINE_PKI_DIR")]
    dir: PathBuf,
    /// Where else to look for certificates of the old authority: files or directories (repeat); what
    /// DIR's ledger knows is always looked at
    #[arg(long, value_name = "PATH")]
    certificates: Vec<PathBuf>,
    /// A copy of the ledger of a server that enrols agents: issued.jsonl of its --state-dir (repeat)
    #[arg(long = "ledger", value_name = "FILE")]
    ledgers: Vec<PathBuf>,
    /// Do not look: whoever still has a certificate of the old authority is cut off
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(args: &Args, now: SystemTime) -> Result<Answer, Failure> {
    match &args.step {
        Step::Prepare(args) => prepare(args, now),
        Step::Activate(args) => activate(args, now),
        Step::Retire(args) => retire(args, now),
    }
}

fn prepare(args: &Prepare, now: SystemTime) -> Result<Answer, Failure> {
    let (seat, layout) = (args.seat, Layout::new(&args.dir));
    let organisation = organisation(&layout, seat)?;
    let stage = succession::may_prepare(&layout, seat)?;
    Lists::may_follow(&layout, seat)?;
    let current = current(&layout, seat)?;
    let kind = args.key_kind.unwrap_or_else(|| KeyKind::like(&current.key));
    init::fits_authority(kind)?;
    let mut passphrases = args.unlock.passphrases();
    let next = layout.cert(seat, Generation::Next);
    if !stage.next_cert() {
        // Whatever may fail comes before the first file.
        let root = match seat {
            Seat::Root => None,
            _ if args.root.external_root => None,
            _ => Some(args.root.open(&layout, &mut passphrases, now)?),
        };
        let default = if seat == Seat::Root {
            ROOT_LIFE
        } else {
            ISSUER_LIFE
        };
        let days = args.days.unwrap_or(default.as_secs() / 86_400);
        let spec = seat.spec(&organisation, now, days);
        if let Some(root) = &root {
            root.may_sign_below(&spec)?;
        }
        let encrypt = args.encrypt_keys || is_encrypted(&layout, seat)?;
        let key = next_key(&layout, seat, kind, encrypt, &mut passphrases)?;
        if args.root.external_root && seat != Seat::Root {
            let request = seat.request(&source::read_cluster(&args.dir)?, &key)?;
            let path = layout.request(seat, Generation::Next);
            store::write_public(&path, &request, Replace::Atomically)?;
            return Ok(awaited(args, &layout));
        }
        let der = match &root {
            Some(root) => root.certify_below(&spec, &key.public())?,
            None => Authority::create(&spec, key)?.der().clone(),
        };
        let mut ledgers = vec![Ledger::in_dir(&args.dir)];
        ledgers.extend(args.root.root.as_deref().map(Ledger::in_dir));
        for ledger in ledgers {
            ledger.record([der.as_ref()], "rotate", now)?;
        }
        if let Some(root) = &root {
            root::keep_certificate(&layout, root)?;
        }
        succession::write_next(&layout, seat, &der)?;
    } else {
        succession::trust(&layout, seat)?;
    }
    let followed = Lists::follow(&layout, seat, &mut passphrases, now)?;
    let made = read(&next)?;
    Ok(prepared(args, &layout, &made, &followed, now))
}

/// The name in the new authority: the cluster's, or of a root without one what the old one says.
fn organisation(layout: &Layout, seat: Seat) -> Result<String, Failure> {
    if seat == Seat::Root && !layout.cluster().exists() {
        let old = current(layout, seat)?;
        let first = old.organisations.unwrap_or_default().into_iter().next();
        return Ok(first.unwrap_or_default());
    }
    Ok(source::read_cluster(layout.dir())?.to_string())
}

fn current(layout: &Layout, seat: Seat) -> Result<Certificate, Failure> {
    read(&layout.cert(seat, Generation::Current))
}

fn read(path: &std::path::Path) -> Result<Certificate, Failure> {
    let der = store::read_certificates(path)?.swap_remove(0);
    Certificate::parse(der.as_ref())
        .map_err(|error| Failure::file(format!("{}: {error}", path.display())))
}

fn is_encrypted(layout: &Layout, seat: Seat) -> Result<bool, Failure> {
    let path = layout.key(seat, Generation::Current);
    if path.symlink_metadata().is_err() {
        return Ok(false);
    }
    Ok(matches!(
        store::read_key_file(&path)?,
        store::KeyFile::Encrypted(_)
    ))
}

fn next_key(
    layout: &Layout,
    seat: Seat,
    kind: KeyKind,
    encrypt: bool,
    passphrases: &mut Passphrases,
) -> Result<PrivateKey, Failure> {
    let path = layout.key(seat, Generation::Next);
    if path.symlink_metadata().is_ok() {
        // Of a run that was interrupted.
        return Ok(PrivateKey::unlock(&path, passphrases)?);
    }
    let key = PrivateKey::generate(kind).map_err(Failure::failed)?;
    let what = format!("the next key of {seat}");
    let text: Secret = unlock::key_pem(&key, encrypt.then_some(passphrases), &what)?;
    store::write_secret(&path, &text, Replace::Never)?;
    Ok(key)
}

fn awaited(args: &Prepare, layout: &Layout) -> Answer {
    let request = layout.request(args.seat, Generation::Next);
    let text = format!(
        "made     key and signing request of the next issuer of {seat}\n\
         \x20 file     {request}  have it signed as an authority with path length 0\n\
         \n\
         next     towline-pki accept CERTIFICATE --dir {dir}\n",
        seat = args.seat,
        request = request.display(),
        dir = args.dir.display(),
    );
    let files = [answer::file(&request, "request")];
    Answer::new(
        text,
        json!({ "issuer": args.seat.as_str(), "files": files }),
    )
}

fn prepared(
    args: &Prepare,
    layout: &Layout,
    made: &Certificate,
    followed: &Followed,
    now: SystemTime,
) -> Answer {
    let (seat, dir) = (args.seat, args.dir.display());
    let cert = layout.cert(seat, Generation::Next);
    let mut files = vec![answer::file(&cert, "certificate")];
    files.extend(layout.trust(seat).map(|path| answer::file(&path, "trust")));
    files.extend(followed.files());
    let next = match seat {
        Seat::Root => format!(
            "nobody anchors on a root, so nobody has to be told: towline-pki rotate activate root \
             --dir {dir}"
        ),
        Seat::Agents => format!(
            "give {dir}/trust/agents.pem to every server (--agent-ca); they load it by\n         \
             themselves. When all have: towline-pki rotate activate agents --dir {dir}\n         \
             --reports PATH --nodes FILE"
        ),
        Seat::Servers => format!(
            "give {dir}/trust/servers.pem to every agent (--server-ca) and server (--client-ca),\n         \
             and to kube-apiserver (caBundle). When all have it: towline-pki rotate activate\n         \
             servers --dir {dir} --reports PATH --nodes FILE"
        ),
    };
    let text = format!(
        "ready    next authority of {seat}; it signs nothing yet\n\
         \x20 subject  {subject}\n\
         \x20 sha256   {sha256}\n\
         \x20 valid    until {until} ({left})\n\
         \x20 file     {cert}\n\
         {trust}\
         {lists}\
         \n\
         next     {next}\n",
        lists = followed.lines("with a list of the new one, which it needs before it signs"),
        subject = made.subject,
        sha256 = made.fingerprint,
        until = date::text(made.not_after),
        left = date::distance(now, made.not_after),
        cert = cert.display(),
        trust = layout.trust(seat).map_or_else(String::new, |path| format!(
            "  file     {}  the old and the new one\n",
            path.display()
        )),
    );
    Answer::new(
        text,
        json!({
            "issuer": seat.as_str(),
            "certificates": [answer::certificate(made, now)],
            "files": files,
        }),
    )
}

fn activate(args: &Activate, now: SystemTime) -> Result<Answer, Failure> {
    let (seat, layout) = (args.seat, Layout::new(&args.dir));
    let stage = Stage::of(&layout, seat);
    Lists::may_follow(&layout, seat)?;
    let mut passphrases = args.unlock.passphrases();
    if stage.has_old() && !stage.has_next() {
        succession::trust(&layout, seat)?;
        let followed = Lists::follow(&layout, seat, &mut passphrases, now)?;
        return activated(args, &layout, "was active already", &followed, now);
    }
    succession::successor(&layout, seat)?;
    let successor = read(&layout.cert(seat, Generation::Next))?;
    // What was begun after these questions is not asked about again.
    if !args.force && !stage.has_old() && seat != Seat::Root {
        refuse_unready(args, &successor)?;
    }
    succession::activate(&layout, seat, &mut passphrases, now)?;
    let followed = Lists::follow(&layout, seat, &mut passphrases, now)?;
    activated(args, &layout, "signs from now on", &followed, now)
}

fn refuse_unready(args: &Activate, successor: &Certificate) -> Result<(), Failure> {
    let cluster = source::read_cluster(&args.dir)?;
    if args.reports.is_empty() {
        return Err(Failure::usage(format!(
            "nothing was changed: say with --reports what the daemons have loaded (the JSON of their \
             `status`, or copies of their trust files), so that nobody is cut off who does not trust \
             {} yet; --force goes on without asking",
            successor.subject
        )));
    }
    let mut found = Vec::new();
    for path in &args.reports {
        found.extend(Report::read(path, &cluster).map_err(Failure::file)?);
    }
    let listed = match &args.nodes {
        Some(path) => reports::names(&String::from_utf8_lossy(&store::read(path)?)),
        None => Vec::new(),
    };
    if found.is_empty() {
        return Err(Failure::file(
            "nothing was changed: there is no report in what --reports names",
        ));
    }
    let unready = reports::unready(&found, &listed, args.seat, successor);
    if unready.is_empty() {
        return Ok(());
    }
    let result = json!({ "issuer": args.seat.as_str(), "unready": unready });
    Err(Failure::failed(format!(
        "nothing was changed: {count} of those who must trust {subject} do not:\n  {list}",
        count = unready.len(),
        subject = successor.subject,
        list = shown(&unready),
    ))
    .with_answer(Answer::new(String::new(), result)))
}

/// The first lines of a list that can be as long as a cluster is large.
fn shown(list: &[String]) -> String {
    const LINES: usize = 20;
    let mut lines: Vec<String> = list.iter().take(LINES).cloned().collect();
    if list.len() > LINES {
        lines.push(format!("and {} more", list.len() - LINES));
    }
    lines.join("\n  ")
}

fn activated(
    args: &Activate,
    layout: &Layout,
    what: &str,
    followed: &Followed,
    now: SystemTime,
) -> Result<Answer, Failure> {
    let (seat, dir) = (args.seat, args.dir.display());
    let made = current(layout, seat)?;
    let next = match seat {
        Seat::Root => "rotate the issuers (prepare, activate, retire), then retire the old root",
        Seat::Agents => "renew the agents' certificates, then retire the old issuer",
        Seat::Servers => {
            "renew the certificates of servers, clients and operators, then retire the old issuer"
        }
    };
    let text = format!(
        "active   authority of {seat}: {subject} {what}\n\
         \x20 old      is trusted still, and signs no certificates any more\n\
         {lists}\
         \n\
         next     {next}:\n\
         \x20        towline-pki rotate retire {seat} --dir {dir}\n",
        lists =
            followed.lines("with a list of the new one: to the daemons before its certificates"),
        subject = made.subject,
    );
    let certificates: Vec<Value> = vec![answer::certificate(&made, now)];
    Ok(Answer::new(
        text,
        json!({
            "issuer": seat.as_str(),
            "certificates": certificates,
            "files": followed.files().into_iter().collect::<Vec<_>>(),
        }),
    ))
}

fn retire(args: &Retire, now: SystemTime) -> Result<Answer, Failure> {
    let (seat, layout) = (args.seat, Layout::new(&args.dir));
    succession::may_retire(&layout, seat)?;
    Lists::may_follow(&layout, seat)?;
    let mut replaced = 0;
    if let (false, Some(old)) = (args.force, layout.read_cert(seat, Generation::Old)?) {
        let certificate = read(&layout.cert(seat, Generation::Old))?;
        // Below an authority that ended nothing verifies.
        if date::seconds(now) <= date::seconds(certificate.not_after) {
            let mut ledgers = vec![Ledger::in_dir(&args.dir)];
            for path in &args.ledgers {
                // To a reader one that is not there is an empty one.
                if !store::is_there(path) {
                    let path = path.display();
                    return Err(Failure::file(format!(
                        "{path}: there is no such ledger; nothing was changed"
                    )));
                }
                ledgers.push(Ledger::at(path));
            }
            let known = succession::known_to(&ledgers, &certificate, now)?;
            replaced = known.replaced;
            let mut alive = known.alive;
            let mut places: Vec<PathBuf> = args.certificates.clone();
            if seat == Seat::Root {
                places.push(args.dir.clone());
            }
            for place in &places {
                let survey = survey::survey(place).map_err(Failure::file)?;
                if let Some(damage) = survey.damaged.first() {
                    return Err(Failure::file(format!("nothing was changed: {damage}")));
                }
                for found in &survey.found {
                    if succession::is_alive_below(&old, &found.certificate, &found.der, now) {
                        alive.push(format!(
                            "{} ({}) until {}",
                            found.certificate.subject,
                            found.place,
                            date::text(found.certificate.not_after)
                        ));
                    }
                }
            }
            if !alive.is_empty() {
                return Err(in_use(seat, &certificate, &alive));
            }
        }
    }
    succession::retire(&layout, seat)?;
    // No list is missing, so no key is asked for: only the old one's list goes.
    let mut nobody = Passphrases::new(PassphraseSource::Terminal, "");
    let followed = Lists::follow(&layout, seat, &mut nobody, now)?;
    let (dir, trust) = (args.dir.display(), layout.trust(seat));
    let made = current(&layout, seat)?;
    let mut text = format!(
        "retired  the old authority of {seat}; {subject} is the only one left\n",
        subject = made.subject
    );
    if replaced > 0 {
        text.push_str(&format!(
            "  note     {replaced} certificates of the old one have not ended, and each has a newer one \
             in the ledger;\n           daemons that were not given theirs are cut off with the next step\n"
        ));
    }
    text.push_str(&followed.lines("without the old one's list; goes with the trust file"));
    if let Some(trust) = &trust {
        text.push_str(&format!(
            "\nnext     give {} to the daemons again: until then they trust the old one still\n",
            trust.display()
        ));
    } else {
        text.push_str(&format!(
            "\nnext     nothing: no daemon anchors on a root ({dir})\n"
        ));
    }
    let mut files: Vec<Value> = trust
        .iter()
        .map(|path| answer::file(path, "trust"))
        .collect();
    files.extend(followed.files());
    Ok(Answer::new(
        text,
        json!({
            "issuer": seat.as_str(),
            "certificates": [answer::certificate(&made, now)],
            "replaced": replaced,
            "files": files,
        }),
    ))
}

fn in_use(seat: Seat, old: &Certificate, alive: &[String]) -> Failure {
    let what = match seat {
        Seat::Root => "rotate these issuers first",
        _ => "renew these first",
    };
    let result = json!({ "issuer": seat.as_str(), "alive": alive });
    Failure::failed(format!(
        "nothing was changed: {count} certificates that {subject} signed are in use; {what}, or wait \
         for their end, or cut them off with --force:\n  {list}",
        count = alive.len(),
        subject = old.subject,
        list = shown(alive),
    ))
    .with_answer(Answer::new(String::new(), result))
}

impl From<towline_pki::hierarchy::succession::SuccessionError> for Failure {
    fn from(error: towline_pki::hierarchy::succession::SuccessionError) -> Self {
        use towline_pki::hierarchy::succession::SuccessionError as E;
        match error {
            E::Store(error) => error.into(),
            E::Authority(error) => AuthorityError::into(error),
            E::Unlock(error) => error.into(),
            E::Certificate { .. } => Self::file(error),
            E::Ledger(error) => error.into(),
            _ => Self::failed(error),
        }
    }
}
