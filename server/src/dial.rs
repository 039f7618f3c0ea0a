//! The dialer: every door's request ends here and becomes a byte pipe or a reason.
//!
//! In this order: classify, policy, pick, a place on the link, the stream, the agent's answer;
//! all under one deadline. A dial is tried a second time, on another link, only when it never
//! reached the first agent. Nothing here waits for a lock or looks at bytes.

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
use crate::audit::{Audit, Draft, OpenRecord};
use crate::caller::Caller;
use crate::classify::{Prefixes, classify};
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
}

impl Door {
    /// The word used in logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Door::ConnectUnix => "connect-unix",
            Door::ConnectTcp => "connect-tcp",
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
    /// Who asks.
    pub caller: Caller,
    /// The front end's trace context.
    pub trace: Option<TraceContext>,
}

/// A byte pipe to a target, and what is counted for as long as it lives.
pub struct OpenDial {
    /// For logs at both ends.
    pub id: DialId,
    /// What the target is.
    pub class: Class,
    /// Through whom.
    pub agent: Name,
    /// The pipe.
    pub stream: Stream,
    /// Bytes of the target that came with the answer.
    pub early: Bytes,
    /// Its place among the link's dials.
    pub on_link: DialGuard,
    /// Its place in the audit trail.
    pub record: OpenRecord,
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
    pub agent: Option<Name>,
    /// What more is known.
    pub detail: Detail,
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
    /// Whoever asked has given it up, or has lost the right to ask.
    GivenUp,
}

impl DialError {
    /// Before anything was found out.
    fn early(ask: &Ask, reason: Reason, detail: Detail) -> Box<Self> {
        Box::new(Self {
            reason,
            target: ask.target.clone(),
            class: None,
            agent: None,
            detail,
        })
    }
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
    audit: Audit,
    next: AtomicU64,
    turn: AtomicUsize,
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
        audit: Audit,
    ) -> Self {
        Self {
            agents,
            prefixes,
            policy,
            options,
            live,
            metrics,
            audit,
            next: AtomicU64::new(1),
            turn: AtomicUsize::new(0),
        }
    }

    /// A place among the live dials of the process.
    pub fn live(&self) -> LiveGuard {
        self.live.register()
    }

    /// The audit trail.
    pub fn audit(&self) -> &Audit {
        &self.audit
    }

    /// Makes a byte pipe. Dropping the future gives the dial up at both ends.
    pub async fn dial(&self, ask: Ask) -> Result<OpenDial, Box<DialError>> {
        self.dial_until(ask, std::future::pending()).await
    }

    /// The same, given up with a reason when `gone` resolves.
    pub async fn dial_until(
        &self,
        ask: Ask,
        gone: impl Future<Output = Reason>,
    ) -> Result<OpenDial, Box<DialError>> {
        let begun = Instant::now();
        let door = ask.door;
        let id = self.next_id();
        let result = match self.audit.begin(id, &ask) {
            Ok(draft) => self.recorded(ask, id, begun, draft, gone).await,
            Err(_) => Err(DialError::early(
                &ask,
                Reason::AuditUnavailable,
                Detail::None,
            )),
        };
        match &result {
            Ok(_) => self.metrics.dial_opened(begun.elapsed()),
            Err(error) => self.metrics.dial_ended(door, error.class, error.reason),
        }
        result
    }

    /// Whatever comes of it, the draft becomes a record.
    async fn recorded(
        &self,
        ask: Ask,
        id: DialId,
        begun: Instant,
        mut draft: Draft,
        gone: impl Future<Output = Reason>,
    ) -> Result<OpenDial, Box<DialError>> {
        let attempt = tokio::select! {
            biased;
            attempt = self.attempt(&ask, id, begun, &mut draft) => attempt,
            reason = gone => Err(DialError::early(&ask, reason, Detail::GivenUp)),
        };
        match attempt {
            Ok(through) => Ok(OpenDial {
                id,
                class: through.class,
                agent: through.agent,
                stream: through.stream,
                early: through.early,
                on_link: through.on_link,
                record: draft.opened(),
            }),
            Err(error) => {
                let address = match error.detail {
                    Detail::Address(address) => Some(address),
                    _ => None,
                };
                draft.refused(error.reason, address);
                Err(error)
            }
        }
    }

    async fn attempt(
        &self,
        ask: &Ask,
        id: DialId,
        begun: Instant,
        draft: &mut Draft,
    ) -> Result<Through, Box<DialError>> {
        let permit = self.permit(ask, draft)?;
        let deadline = begun + self.options.timeout;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let first = self.pick(&permit, None, turn, draft)?;
        let asked = Asked { id, ask, deadline };
        let error = match self.open(&permit, asked, first, draft).await {
            Ok(open) => return Ok(open),
            Err(error) => error,
        };
        let Some(avoid) = error.never_reached.filter(|_| Instant::now() < deadline) else {
            return Err(error.error);
        };
        let Ok(second) = self.pick(&permit, Some(avoid), turn.wrapping_add(1), draft) else {
            return Err(error.error);
        };
        self.metrics.retry();
        let again = self.open(&permit, asked, second, draft).await;
        again.map_err(|error| error.error)
    }

    fn permit(&self, ask: &Ask, draft: &mut Draft) -> Result<Permit, Box<DialError>> {
        let class = classify(&ask.target, &self.prefixes, &*self.agents.routes());
        draft.class(class);
        self.policy
            .check(ask.target.clone(), class)
            .map_err(|denial| {
                Box::new(DialError {
                    reason: denial.reason(),
                    target: ask.target.clone(),
                    class: Some(class),
                    agent: None,
                    detail: Detail::Denial(denial),
                })
            })
    }

    fn pick(
        &self,
        permit: &Permit,
        avoid: Option<LinkId>,
        turn: usize,
        draft: &mut Draft,
    ) -> Result<Arc<AgentLink>, Box<DialError>> {
        let routes = self.agents.routes();
        let host = &permit.target().host;
        let (reason, agent, detail) = match routes.pick(host, permit.class(), avoid, turn) {
            Ok(node) => match node.choose(avoid) {
                Some(link) => return Ok(link),
                // It went away in between.
                None => (
                    Reason::NoAgent,
                    Some(node.name().clone()),
                    Detail::of(node.ended()),
                ),
            },
            Err(NoAgent::Owner(node)) => (
                Reason::NoAgent,
                Some(node.name().clone()),
                Detail::of(node.ended()),
            ),
            Err(NoAgent::UnknownNode) => (Reason::NoAgent, None, Detail::UnknownNode),
            Err(NoAgent::NoGateway) => (Reason::NoAgent, None, Detail::NoGateway),
            Err(NoAgent::NoRoute) => (Reason::NoRoute, None, Detail::None),
        };
        if let Some(node) = &agent {
            draft.node(node);
        }
        Err(Box::new(DialError {
            reason,
            target: permit.target().clone(),
            class: Some(permit.class()),
            agent,
            detail,
        }))
    }

    async fn open(
        &self,
        permit: &Permit,
        Asked { id, ask, deadline }: Asked<'_>,
        through: Arc<AgentLink>,
        draft: &mut Draft,
    ) -> Result<Through, Attempt> {
        // The proof that this is an agent of ours: a link cannot be without it.
        let agent = through.peer().identity().name.clone();
        draft.agent(through.peer(), through.link.carrier().kind());
        let fail = |reason, detail, reached: bool| Attempt {
            error: Box::new(DialError {
                reason,
                target: permit.target().clone(),
                class: Some(permit.class()),
                agent: Some(agent.clone()),
                detail,
            }),
            never_reached: (!reached).then(|| through.link.id()),
        };
        let Some(on_link) = through.link.begin_dial(self.options.per_link) else {
            return Err(fail(Reason::AgentBusy, Detail::None, false));
        };
        let request = DialRequest::Dial(Dial {
            id,
            target: permit.target().clone(),
            class: permit.class(),
            timeout: deadline.saturating_duration_since(Instant::now()),
            trace: ask.trace,
        });
        let carrier = through.link.carrier();
        match dial::open(&**carrier, &request, deadline).await {
            Ok(open) => Ok(Through {
                class: permit.class(),
                agent,
                stream: open.stream,
                early: open.early,
                on_link,
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

/// What is asked of an agent.
#[derive(Clone, Copy)]
struct Asked<'a> {
    id: DialId,
    ask: &'a Ask,
    deadline: Instant,
}

/// A pipe through an agent, not recorded yet.
struct Through {
    class: Class,
    agent: Name,
    stream: Stream,
    early: Bytes,
    on_link: DialGuard,
}

struct Attempt {
    error: Box<DialError>,
    /// The link to leave out in a second attempt, when one is allowed.
    never_reached: Option<LinkId>,
}
