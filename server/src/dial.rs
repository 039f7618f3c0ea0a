//! The dialer: every door's request ends here and becomes a byte pipe or a reason.
//!
//! In this order: classify, policy, pick, a place on the link, the stream, the agent's answer;
//! all under one deadline. A dial is tried a second time, on another link, only when it never
//! reached the first agent. Nothing here waits for a lock or looks at bytes.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use towline_link::carrier::Stream;
use towline_link::dial;
use towline_link::driver::DialGuard;
use towline_link::live::{LiveDials, LiveGuard};
use towline_proto::dial::{Dial, DialRequest, TraceContext};
use towline_proto::id::{DialId, LinkId, Name};
use towline_proto::reason::Reason;
use towline_proto::target::{Class, Target};

use crate::agents::{AgentLink, Agents, Ended};
use crate::classify::{Prefixes, classify};
use crate::legacy::{self, LegacyRoute};
use crate::konnectivity::DialFailure;
use crate::metrics::Metrics;
use crate::pick::NoAgent;
use crate::policy::{Denial, Permit, Policy};

/// Where a dial came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Door {
    /// HTTP CONNECT on the Unix socket.
    ConnectUnix,
    /// HTTP CONNECT over TCP with TLS.
    ConnectTcp,
    /// gRPC on the Unix socket.
    GrpcUnix,
    /// gRPC over TCP with TLS.
    GrpcTcp,
}

impl Door {
    /// The word used in logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Door::ConnectUnix => "connect-unix",
            Door::ConnectTcp => "connect-tcp",
            Door::GrpcUnix => "grpc-unix",
            Door::GrpcTcp => "grpc-tcp",
        }
    }

    /// The same place, for a front end that has turned out to speak gRPC.
    #[must_use]
    pub const fn grpc(self) -> Self {
        match self {
            Door::ConnectUnix | Door::GrpcUnix => Door::GrpcUnix,
            Door::ConnectTcp | Door::GrpcTcp => Door::GrpcTcp,
        }
    }
}

/// What a door asks for.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Where to.
    pub target: Target,
    /// Where it came in.
    pub door: Door,
    /// The front end's trace context.
    pub trace: Option<TraceContext>,
}

/// Who carries a dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Through {
    /// An agent that proved this name.
    Agent(Name),
    /// A legacy agent that calls itself so; nobody has checked it.
    Legacy(Box<str>),
}

impl Through {
    /// The name.
    pub fn as_str(&self) -> &str {
        match self {
            Through::Agent(name) => name.as_str(),
            Through::Legacy(id) => id,
        }
    }
}

impl fmt::Display for Through {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Through::Agent(name) => name.fmt(f),
            Through::Legacy(id) => write!(f, "{id} (legacy)"),
        }
    }
}

/// A dial's place among those of who carries it, until it is dropped.
pub enum OnLink {
    /// A link of a verified agent.
    Link(DialGuard),
    /// A stream of a legacy agent.
    Legacy(legacy::Place),
}

/// A byte pipe to a target, and what is counted for as long as it lives.
pub struct OpenDial {
    /// For logs at both ends.
    pub id: DialId,
    /// What the target is.
    pub class: Class,
    /// Through whom.
    pub agent: Through,
    /// The pipe.
    pub stream: Stream,
    /// Bytes of the target that came with the answer.
    pub early: Bytes,
    /// Its place among the link's dials.
    pub on_link: OnLink,
}

/// Why there is no byte pipe.
#[derive(Clone, Debug)]
pub struct DialError {
    /// Why.
    pub reason: Reason,
    /// What was asked for.
    pub target: Target,
    /// What it is, when that was found out.
    pub class: Option<Class>,
    /// Who was, or should have been, asked.
    pub agent: Option<Through>,
    /// What more is known.
    pub detail: Detail,
    /// The words of a legacy agent, escaped: front ends know them.
    pub said: Option<Box<str>>,
}

/// What more is known about a refusal.
#[derive(Clone, Copy, Debug)]
pub enum Detail {
    /// Nothing.
    None,
    /// Our policy's words.
    Denial(Denial),
    /// The address that the agent found at fault.
    Address(IpAddr),
    /// How the agent's last link ended.
    Ended {
        /// How long ago.
        ago: Duration,
        /// Why.
        reason: Reason,
    },
    /// No agent with this address or name has ever linked.
    UnknownNode,
    /// Gateways are known, and none has a link.
    NoGateway,
}

impl Detail {
    fn of(ended: Option<Ended>) -> Self {
        ended.map_or(Detail::None, |ended| Detail::Ended {
            ago: ended.at.elapsed(),
            reason: ended.reason,
        })
    }
}

/// What the dialer is told at start.
#[derive(Clone, Debug)]
pub struct DialOptions {
    /// From the request to the agent's answer.
    pub timeout: Duration,
    /// Live dials on one link.
    pub per_link: u32,
}

/// See the head of this file.
pub struct Dialer {
    agents: Arc<Agents>,
    prefixes: Prefixes,
    policy: Policy,
    options: DialOptions,
    live: LiveDials,
    metrics: Metrics,
    next: AtomicU64,
    turn: AtomicUsize,
    legacy: Option<LegacyRoute>,
}

impl Dialer {
    /// A dialer over a table of agents.
    pub fn new(
        agents: Arc<Agents>,
        prefixes: Prefixes,
        policy: Policy,
        options: DialOptions,
        live: LiveDials,
        metrics: Metrics,
    ) -> Self {
        Self {
            agents,
            prefixes,
            policy,
            options,
            live,
            metrics,
            next: AtomicU64::new(1),
            turn: AtomicUsize::new(0),
            legacy: None,
        }
    }

    /// The same, which also asks legacy agents.
    pub fn with_legacy(mut self, legacy: LegacyRoute) -> Self {
        self.legacy = Some(legacy);
        self
    }

    /// A place among the live dials of the process.
    pub fn live(&self) -> LiveGuard {
        self.live.register()
    }

    /// Makes a byte pipe. Dropping the future gives the dial up at both ends.
    pub async fn dial(&self, ask: Ask) -> Result<OpenDial, Box<DialError>> {
        let begun = Instant::now();
        let door = ask.door;
        let counted = self.metrics.counted();
        let pending = counted.dialling();
        let result = self.attempt(ask, begun).await;
        drop(pending);
        match &result {
            Ok(_) => {
                self.metrics.dial_opened(begun.elapsed());
                counted.dialled(begun.elapsed());
            }
            Err(error) => {
                self.metrics.dial_ended(door, error.class, error.reason);
                counted.dial_failed(DialFailure::of(error.reason));
            }
        }
        result
    }

    async fn attempt(&self, ask: Ask, begun: Instant) -> Result<OpenDial, Box<DialError>> {
        let permit = self.permit(&ask)?;
        let deadline = begun + self.options.timeout;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let first = match self.pick(&permit, None, turn) {
            Ok(first) => first,
            Err(error) => return self.elsewhere(&permit, turn, deadline, error).await,
        };
        let error = match self.open(&permit, &ask, first, deadline).await {
            Ok(open) => return Ok(open),
            Err(error) => error,
        };
        let Some(avoid) = error.never_reached.filter(|_| Instant::now() < deadline) else {
            return Err(error.error);
        };
        let Ok(second) = self.pick(&permit, Some(avoid), turn.wrapping_add(1)) else {
            return Err(error.error);
        };
        self.metrics.retry();
        let again = self.open(&permit, &ask, second, deadline).await;
        again.map_err(|error| error.error)
    }

    /// No verified agent may be asked: perhaps a legacy one.
    async fn elsewhere(
        &self,
        permit: &Permit,
        turn: usize,
        deadline: Instant,
        error: Box<DialError>,
    ) -> Result<OpenDial, Box<DialError>> {
        let Some(legacy) = &self.legacy else {
            return Err(error);
        };
        // Whoever proved that a target is its own keeps it.
        if error.agent.is_some() && !legacy.downgrade {
            return Err(error);
        }
        let dialling = legacy.dial(permit.target(), turn, deadline);
        match dialling.await {
            None => Err(error),
            Some(Ok(dial)) => Ok(OpenDial {
                id: self.next_id(),
                class: permit.class(),
                agent: Through::Legacy(dial.through.id().into()),
                stream: dial.stream,
                early: Bytes::new(),
                on_link: OnLink::Legacy(dial.place),
            }),
            Some(Err((through, failure))) => Err(Box::new(DialError {
                reason: failure.reason,
                target: permit.target().clone(),
                class: Some(permit.class()),
                agent: Some(Through::Legacy(through.id().into())),
                detail: Detail::None,
                said: failure.said,
            })),
        }
    }

    fn permit(&self, ask: &Ask) -> Result<Permit, Box<DialError>> {
        let class = classify(&ask.target, &self.prefixes, &*self.agents.routes());
        self.policy
            .check(ask.target.clone(), class)
            .map_err(|denial| {
                Box::new(DialError {
                    reason: denial.reason(),
                    target: ask.target.clone(),
                    class: Some(class),
                    agent: None,
                    detail: Detail::Denial(denial),
                    said: None,
                })
            })
    }

    fn pick(
        &self,
        permit: &Permit,
        avoid: Option<LinkId>,
        turn: usize,
    ) -> Result<Arc<AgentLink>, Box<DialError>> {
        let routes = self.agents.routes();
        let host = &permit.target().host;
        let class = match (permit.class(), &self.legacy) {
            // Only the compatibility profile permits these: a gateway decides, when no legacy
            // agent is left.
            (Class::Other, Some(legacy)) if legacy.agents.is_empty() => Class::Service,
            (class, _) => class,
        };
        let (reason, agent, detail) = match routes.pick(host, class, avoid, turn) {
            Ok(node) => match node.choose(avoid) {
                Some(link) => return Ok(link),
                // It went away in between.
                None => (
                    Reason::NoAgent,
                    Some(Through::Agent(node.name().clone())),
                    Detail::of(node.ended()),
                ),
            },
            Err(NoAgent::Owner(node)) => (
                Reason::NoAgent,
                Some(Through::Agent(node.name().clone())),
                Detail::of(node.ended()),
            ),
            Err(NoAgent::UnknownNode) => (Reason::NoAgent, None, Detail::UnknownNode),
            Err(NoAgent::NoGateway) => (Reason::NoAgent, None, Detail::NoGateway),
            Err(NoAgent::NoRoute) => (Reason::NoRoute, None, Detail::None),
        };
        Err(Box::new(DialError {
            reason,
            target: permit.target().clone(),
            class: Some(permit.class()),
            agent,
            detail,
            said: None,
        }))
    }

    async fn open(
        &self,
        permit: &Permit,
        ask: &Ask,
        through: Arc<AgentLink>,
        deadline: Instant,
    ) -> Result<OpenDial, Attempt> {
        // The proof that this is an agent of ours: a link cannot be without it.
        let agent = Through::Agent(through.peer().identity().name.clone());
        let fail = |reason, detail, reached: bool| Attempt {
            error: Box::new(DialError {
                reason,
                target: permit.target().clone(),
                class: Some(permit.class()),
                agent: Some(agent.clone()),
                detail,
                said: None,
            }),
            never_reached: (!reached).then(|| through.link.id()),
        };
        let Some(on_link) = through.link.begin_dial(self.options.per_link) else {
            return Err(fail(Reason::AgentBusy, Detail::None, false));
        };
        let id = self.next_id();
        let request = DialRequest::Dial(Dial {
            id,
            target: permit.target().clone(),
            class: permit.class(),
            timeout: deadline.saturating_duration_since(Instant::now()),
            trace: ask.trace,
        });
        let carrier = through.link.carrier();
        match dial::open(&**carrier, &request, deadline).await {
            Ok(open) => Ok(OpenDial {
                id,
                class: permit.class(),
                agent,
                stream: open.stream,
                early: open.early,
                on_link: OnLink::Link(on_link),
            }),
            Err(error) => {
                let detail = error.address.map_or(Detail::None, Detail::Address);
                Err(fail(error.reason, detail, error.reached))
            }
        }
    }

    fn next_id(&self) -> DialId {
        loop {
            if let Some(id) = DialId::new(self.next.fetch_add(1, Ordering::Relaxed)) {
                return id;
            }
        }
    }
}

struct Attempt {
    error: Box<DialError>,
    /// The link to leave out in a second attempt, when one is allowed.
    never_reached: Option<LinkId>,
}
