//! The flags of the issuing authority, what must fit together among them, and the start.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::builder::FalseyValueParser;
use ipnet::IpNet;
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use towline_link::kube::csr::{SignerName, SigningRequests};
use towline_link::kube::{Access, Client, KubeError};
use towline_link::process::ready::Condition;
use towline_link::process::reload::{ReloadMetrics, Reloader};
use towline_link::process::values::TimeSpan;
use towline_link::process::watch::{Seen, Watch};
use towline_pki::join::JoinError;
use towline_pki::{Ledger, LedgerError};
use towline_proto::limits;

use super::account::{AccountRule, Accounts};
use super::issuer::{Issuer, IssuerError, IssuerFiles, Issuing};
use super::join::Joins;
use super::names::Names;
use super::nodes::Nodes;
use super::told::Told;
use super::{Desk, EnrolDoor};
use crate::agents::Agents;
use crate::audit::trail::Audit;
use crate::classify::Prefixes;
use crate::csr::Desk as SigningDesk;
use crate::csr::agents::AgentOffice;
use crate::csr::office::Office;
use crate::csr::told::{SigningMetrics, Told as SigningTold};
use crate::directory::FileDirectory;
use crate::nodes::NodeWatch;
use crate::trust::{Snapshot, Trust};

/// `--enrol-issuer-certificate` and what belongs to it.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct EnrolArgs {
    /// Issues agents their certificates, with this authority of agents (PEM, those above it behind
    /// it); --agent-ca has to take what it signs
    #[arg(long, env = "TOWLINE_ENROL_ISSUER_CERTIFICATE", value_name = "FILE")]
    pub enrol_issuer_certificate: Option<PathBuf>,

    /// The key of that authority (PEM, readable by its owner and at most its group)
    #[arg(long, env = "TOWLINE_ENROL_ISSUER_KEY", value_name = "FILE")]
    pub enrol_issuer_key: Option<PathBuf>,

    /// Life of the certificates that are issued; agents renew at two thirds of it [default: 24h]
    #[arg(long, env = "TOWLINE_ENROL_CERTIFICATE_LIFE", value_name = "TIME", value_parser = TimeSpan::between(limits::ENROL_LIFE_RANGE.0..=limits::ENROL_LIFE_RANGE.1))]
    pub enrol_certificate_life: Option<TimeSpan>,

    /// Takes projected tokens of this service account as proof; the Kubernetes API of --kubeconfig,
    /// or of the pod that we run in, says which node they are bound to
    #[arg(
        long,
        env = "TOWLINE_ENROL_SERVICE_ACCOUNT",
        value_name = "NAMESPACE/NAME"
    )]
    pub enrol_service_account: Option<String>,

    /// Audience that such a token must be for [default: towline-enrol]
    #[arg(long, env = "TOWLINE_ENROL_AUDIENCE", value_name = "TEXT")]
    pub enrol_audience: Option<String>,

    /// Issues by signing requests of the Kubernetes API (certificates.k8s.io), too: approves and signs
    /// those that agents of --enrol-service-account make for their own node
    #[arg(long, env = "TOWLINE_ENROL_SIGNING_REQUESTS", value_parser = FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub enrol_signing_requests: bool,

    /// The signer name of such requests; no other's are looked at [default: towline.dev/agent]
    #[arg(long, env = "TOWLINE_ENROL_SIGNER", value_name = "NAME")]
    pub enrol_signer: Option<SignerName>,

    /// Takes the join tokens of this file, as `towline-pki token create` writes it
    #[arg(long, env = "TOWLINE_ENROL_JOIN_TOKENS", value_name = "FILE")]
    pub enrol_join_tokens: Option<PathBuf>,

    /// Where used join tokens are marked; servers that share it share the single use [default:
    /// join-spent in --state-dir]
    #[arg(long, env = "TOWLINE_ENROL_JOIN_SPENT", value_name = "DIRECTORY")]
    pub enrol_join_spent: Option<PathBuf>,

    /// The authority of servers, shown to nodes that know no more than the hash in their join token
    #[arg(long, env = "TOWLINE_ENROL_SERVER_CA", value_name = "FILE")]
    pub enrol_server_ca: Option<PathBuf>,
}

/// What does not fit together, or cannot be used; says what to change.
#[derive(Debug, thiserror::Error)]
pub enum EnrolFlagError {
    /// A flag that would silently do nothing.
    #[error("{flag} has no effect without {without}")]
    Useless {
        /// Given.
        flag: &'static str,
        /// Missing.
        without: &'static str,
    },
    /// Half of an authority.
    #[error("--enrol-issuer-certificate needs --enrol-issuer-key FILE, its key")]
    NoKey,
    /// Nobody could prove anything.
    #[error(
        "--enrol-issuer-certificate needs a proof to take: --enrol-service-account NAMESPACE/NAME, \
         --enrol-join-tokens FILE, or both"
    )]
    NoProof,
    /// Where the ledger is.
    #[error(
        "--enrol-issuer-certificate needs --state-dir DIRECTORY, where is kept what was issued"
    )]
    NoStateDir,
    /// Agents come over TCP.
    #[error("--enrol-issuer-certificate needs links over TCP: --carrier auto or tls, not quic")]
    OnlyQuic,
    /// New nodes could not verify us.
    #[error(
        "--enrol-join-tokens needs --enrol-server-ca FILE, the authority of servers, whose hash stands \
         in join tokens"
    )]
    NoServerAuthority,
    /// Not two names.
    #[error("--enrol-service-account {0:?} is not NAMESPACE/NAME")]
    Account(String),
    /// No audience.
    #[error("--enrol-audience must be 1 to 253 printable characters without blanks")]
    Audience,
    /// The Kubernetes API.
    #[error("--enrol-service-account: {0}")]
    Api(#[from] KubeError),
    /// The authority.
    #[error(transparent)]
    Issuer(#[from] IssuerError),
    /// The join tokens.
    #[error("--enrol-join-tokens: {0}")]
    Join(#[from] JoinError),
    /// What was issued before.
    #[error("--state-dir: {0}")]
    Ledger(#[from] LedgerError),
}

/// Checked values, and what was in the files.
#[derive(Clone, Debug)]
pub struct EnrolConfig {
    issuer: Arc<Issuer>,
    life: Duration,
    account: Option<(AccountRule, Client)>,
    signer: Option<SignerName>,
    joins: Option<Arc<Joins>>,
    ledger: Ledger,
    control_plane: Vec<IpNet>,
    seen: Seen,
    paths: Vec<PathBuf>,
}

/// What of the other flags counts here.
pub struct Beside<'a> {
    /// Our own identity.
    pub trust: Option<&'a Snapshot>,
    /// `--state-dir`.
    pub state_dir: Option<&'a Path>,
    /// Whether links come over TCP.
    pub tcp: bool,
    /// `--kubeconfig`.
    pub kubeconfig: Option<&'a Path>,
    /// Where no node is by its own word.
    pub control_plane: Vec<IpNet>,
}

/// Name of the ledger in the state directory.
const LEDGER: &str = "issued.jsonl";
/// Name of the directory of spent join tokens.
const SPENT: &str = "join-spent";
const AUDIENCE: &str = "towline-enrol";

impl EnrolArgs {
    /// `None` without `--enrol-issuer-certificate`. `env` is asked for what Kubernetes gives a pod.
    pub fn config(
        self,
        beside: &Beside<'_>,
        env: &dyn Fn(&str) -> Option<String>,
        now: SystemTime,
    ) -> Result<Option<EnrolConfig>, EnrolFlagError> {
        let Some(cert) = self.enrol_issuer_certificate.clone() else {
            return self.refuse_useless().map(|()| None);
        };
        let key = self.enrol_issuer_key.ok_or(EnrolFlagError::NoKey)?;
        let state = beside.state_dir.ok_or(EnrolFlagError::NoStateDir)?;
        let trust = beside.trust.ok_or(EnrolFlagError::Useless {
            flag: "--enrol-issuer-certificate",
            without: "--cert, --key and --agent-ca",
        })?;
        if !beside.tcp {
            return Err(EnrolFlagError::OnlyQuic);
        }
        if self.enrol_service_account.is_none() && self.enrol_join_tokens.is_none() {
            return Err(EnrolFlagError::NoProof);
        }
        let useless = |given: bool, flag, without| match given {
            true => Err(EnrolFlagError::Useless { flag, without }),
            false => Ok(()),
        };
        if self.enrol_service_account.is_none() {
            let given = self.enrol_audience.is_some();
            useless(given, "--enrol-audience", "--enrol-service-account")?;
            let given = self.enrol_signing_requests;
            useless(given, "--enrol-signing-requests", "--enrol-service-account")?;
        }
        if !self.enrol_signing_requests {
            let given = self.enrol_signer.is_some();
            useless(given, "--enrol-signer", "--enrol-signing-requests")?;
        }
        let signer = self.enrol_signer.unwrap_or_default();
        if self.enrol_join_tokens.is_none() {
            let given = self.enrol_join_spent.is_some();
            useless(given, "--enrol-join-spent", "--enrol-join-tokens")?;
        } else if self.enrol_server_ca.is_none() {
            return Err(EnrolFlagError::NoServerAuthority);
        }
        let account = match self.enrol_service_account {
            Some(text) => {
                let rule = rule(&text, self.enrol_audience)?;
                let client = Client::new(Access::load(beside.kubeconfig, env)?);
                Some((rule, client))
            }
            None => None,
        };
        let files = IssuerFiles {
            cert,
            key,
            servers: self.enrol_server_ca,
        };
        let mut paths = vec![files.cert.clone(), files.key.clone()];
        paths.extend(files.servers.clone());
        paths.extend(self.enrol_join_tokens.clone());
        let seen = Seen::now(&paths);
        let issuing = Issuing::load(&files, trust, now)?;
        let joins = match &self.enrol_join_tokens {
            Some(path) => {
                let spent = self.enrol_join_spent.unwrap_or_else(|| state.join(SPENT));
                Some(Joins::open(path, &spent, now)?)
            }
            None => None,
        };
        Ok(Some(EnrolConfig {
            issuer: Arc::new(Issuer::new(files, issuing)),
            life: self
                .enrol_certificate_life
                .map_or(limits::ENROL_LIFE, Into::into),
            account,
            signer: self.enrol_signing_requests.then_some(signer),
            joins,
            ledger: Ledger::at(state.join(LEDGER)),
            control_plane: beside.control_plane.clone(),
            seen,
            paths,
        }))
    }

    fn refuse_useless(&self) -> Result<(), EnrolFlagError> {
        let given = [
            ("--enrol-issuer-key", self.enrol_issuer_key.is_some()),
            (
                "--enrol-certificate-life",
                self.enrol_certificate_life.is_some(),
            ),
            (
                "--enrol-service-account",
                self.enrol_service_account.is_some(),
            ),
            ("--enrol-audience", self.enrol_audience.is_some()),
            ("--enrol-signing-requests", self.enrol_signing_requests),
            ("--enrol-signer", self.enrol_signer.is_some()),
            ("--enrol-join-tokens", self.enrol_join_tokens.is_some()),
            ("--enrol-join-spent", self.enrol_join_spent.is_some()),
            ("--enrol-server-ca", self.enrol_server_ca.is_some()),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(EnrolFlagError::Useless {
                flag,
                without: "--enrol-issuer-certificate",
            }),
            None => Ok(()),
        }
    }
}

fn rule(text: &str, audience: Option<String>) -> Result<AccountRule, EnrolFlagError> {
    let wrong = || EnrolFlagError::Account(text.chars().take(limits::FLAG_VALUE_BYTES).collect());
    let (namespace, account) = text.split_once('/').ok_or_else(wrong)?;
    let is_name = |text: &str| text.parse::<towline_proto::id::Name>().is_ok();
    if !is_name(namespace) || !is_name(account) {
        return Err(wrong());
    }
    let audience = audience.unwrap_or_else(|| AUDIENCE.to_owned());
    let printable = |byte: u8| (0x21..0x7f).contains(&byte);
    if audience.is_empty() || audience.len() > 253 || !audience.bytes().all(printable) {
        return Err(EnrolFlagError::Audience);
    }
    Ok(AccountRule {
        namespace: namespace.to_owned(),
        account: account.to_owned(),
        audience,
    })
}

/// What enrolment needs of the rest of the server.
pub struct Around<'a> {
    /// The trail.
    pub audit: Audit,
    /// Who is linked.
    pub agents: Arc<Agents>,
    /// What is granted.
    pub directory: Arc<FileDirectory>,
    /// What Node objects say.
    pub nodes: Option<&'a mut NodeWatch>,
    /// Of the cluster.
    pub prefixes: Prefixes,
    /// What a scrape shows.
    pub registry: &'a mut Registry,
    /// What is counted of signing requests.
    pub signing: SigningMetrics,
}

/// Enrolment that runs.
pub struct Running {
    /// For connections.
    pub door: Arc<EnrolDoor>,
    /// When the authority ends.
    pub issuer: Arc<Issuer>,
    seen: Seen,
    paths: Vec<PathBuf>,
    joins: Option<Arc<Joins>>,
    trust: Trust,
}

/// Begins, where an authority is configured; there is none without an identity of ours.
pub fn start(
    config: Option<EnrolConfig>,
    trust: Option<&Trust>,
    around: Around<'_>,
    tasks: &mut JoinSet<()>,
) -> Result<Option<Running>, EnrolFlagError> {
    let (Some(config), Some(trust)) = (config, trust) else {
        return Ok(None);
    };
    config.start(trust.clone(), around, tasks).map(Some)
}

impl EnrolConfig {
    /// The authority's file.
    pub fn certificate(&self) -> Option<&Path> {
        self.paths.first().map(PathBuf::as_path)
    }

    /// The Kubernetes API, where addresses go into certificates by its word.
    pub fn asks(&self, prefixes: &Prefixes) -> Option<&Client> {
        let (_, client) = self.account.as_ref()?;
        Some(client).filter(|_| !prefixes.node.is_empty())
    }

    /// Reads what was issued before, and begins.
    fn start(
        self,
        trust: Trust,
        around: Around<'_>,
        tasks: &mut JoinSet<()>,
    ) -> Result<Running, EnrolFlagError> {
        let asks = self.asks(&around.prefixes).is_some();
        let (names, writer) = Names::open(self.ledger, SystemTime::now())?;
        writer.register(around.registry);
        tasks.spawn(writer.run());
        let client = self.account.as_ref().map(|(_, client)| client.clone());
        let accounts = self.account;
        let audit = around.audit.clone();
        let requests = client.clone().map(SigningRequests::new);
        let desk = Arc::new(Desk {
            trust: trust.clone(),
            issuer: Arc::clone(&self.issuer),
            accounts: accounts.map(|(rule, client)| Accounts::new(client, rule)),
            joins: self.joins.clone(),
            names,
            nodes: Nodes {
                client,
                control_plane: self.control_plane,
                prefixes: around.prefixes,
                agents: around.agents,
                directory: around.directory,
                book: around
                    .nodes
                    .as_ref()
                    .filter(|_| asks)
                    .map(|nodes| nodes.book()),
            },
            told: Told::new(around.audit, around.registry),
            life: self.life,
            asking: Semaphore::new(limits::ENROL_REVIEWS),
        });
        if let (Some(signer), Some(requests)) = (self.signer, requests) {
            let office = AgentOffice::new(signer.as_str().to_owned(), Arc::clone(&desk));
            let manifest = office.texts().manifest;
            around.signing.watch(office.word());
            let told = SigningTold::new(office.word(), manifest, around.signing, audit);
            let signing = SigningDesk::new(office, requests, told);
            if let Some(nodes) = around.nodes {
                nodes.tells(Arc::clone(&signing) as _);
            }
            tasks.spawn(signing.run());
        }
        Ok(Running {
            door: EnrolDoor::new(desk),
            issuer: self.issuer,
            seen: self.seen,
            paths: self.paths,
            joins: self.joins,
            trust,
        })
    }
}

impl Running {
    /// Follows the files: a set of its own, so that a slip in the join tokens keeps no renewed
    /// certificate out.
    pub fn follow(&self, metrics: ReloadMetrics, noted: Condition) -> Reloader {
        metrics.count("enrolment", true);
        let (issuer, joins) = (Arc::clone(&self.issuer), self.joins.clone());
        let trust = self.trust.clone();
        let watch = Watch::since(self.paths.clone(), self.seen.clone());
        Reloader::start("enrolment", watch, metrics, Some(noted), move || {
            let now = SystemTime::now();
            // Both, whatever becomes of the first.
            let read = joins.as_ref().map_or(Ok(()), |joins| joins.reload(now));
            issuer.reload(&trust.snapshot(), now)?;
            read.map_err(EnrolFlagError::from)
        })
    }
}
