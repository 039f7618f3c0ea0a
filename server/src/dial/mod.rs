//! The dialer: every door's request ends here and becomes a byte pipe or a reason.
//!
//! In this order: classify, policy, pick, for a kubelet its attestation, a place on the link, the
//! stream, the agent's answer; all under one deadline. A dial is tried a second time, on another
//! link, only when it never reached the first agent. What no verified agent may be asked for goes
//! to a legacy one, where the compatibility profile has any. An open dial is judged again whenever
//! policy or grants change. Nothing here waits for a lock or looks at bytes.

mod ask;
mod elsewhere;
mod foresee;
mod outcome;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use towline_link::carrier::Stream;
use towline_link::dial;
use towline_link::live::{LiveDials, LiveGuard};
use towline_pki::VerifiedPeer;
use towline_proto::dial::{Dial, DialRequest};
use towline_proto::id::{DialId, LinkId};
use towline_proto::policy::RuleTag;
use towline_proto::reason::Reason;
use towline_proto::target::{Class, Target};

use crate::agents::{AgentLink, Agents, Node};
use crate::attest::{Attestation, Attestor, Mode};
use crate::audit::{Audit, Draft};
use crate::classify::{Prefixes, classify};
use crate::dial_ids::DialIds;
use crate::konnectivity::DialFailure;
use crate::legacy::LegacyRoute;
use crate::metrics::Metrics;
use crate::pick::NoAgent;
use crate::policy::in_force::InForce;
use crate::policy::judged::{Judged, JudgedGuard};
use crate::policy::{Denial, Permit, Policy};

pub use ask::{Ask, Door};
pub use outcome::{Detail, DialError, OnLink, OpenDial, Through};

/// What the dialer is told at start.
#[derive(Clone, Debug)]
pub struct DialOptions {
    /// From the request to the agent's answer.
    pub timeout: Duration,
    /// Live dials on one link.
    pub per_link: u32,
    /// Kubelets are reached through the gateway and not otherwise.
    pub gateway: bool,
}

/// What a dial has to pass.
pub struct Gates {
    /// Whether anybody may ask for it.
    pub policy: Arc<InForce>,
    /// Whether its kubelet is the right one.
    pub attestor: Arc<Attestor>,
    /// Whether it can be written down.
    pub audit: Audit,
}

/// See the head of this file.
pub struct Dialer {
    agents: Arc<Agents>,
    prefixes: Prefixes,
    gates: Gates,
    options: DialOptions,
    live: LiveDials,
    metrics: Metrics,
    ids: Arc<DialIds>,
    turn: AtomicUsize,
    legacy: Option<LegacyRoute>,
}

impl Dialer {
    /// A dialer over a table of agents.
    pub fn new(
        agents: Arc<Agents>,
        prefixes: Prefixes,
        gates: Gates,
        options: DialOptions,
        live: LiveDials,
        metrics: Metrics,
        ids: Arc<DialIds>,
    ) -> Self {
        Self {
            agents,
            prefixes,
            gates,
            options,
            live,
            metrics,
            ids,
            turn: AtomicUsize::new(0),
            legacy: None,
        }
    }

    /// What a target is at this moment.
    pub fn classify(&self, target: &Target) -> Class {
        classify(target, &self.prefixes, &*self.agents.routes())
    }

    /// The agents, for whoever wants to know who would be asked.
    pub fn agents(&self) -> &Agents {
        &self.agents
    }

    /// The policy, and what follows from a change of it.
    pub fn policy(&self) -> &Arc<InForce> {
        &self.gates.policy
    }

    /// The audit trail.
    pub fn audit(&self) -> &Audit {
        &self.gates.audit
    }

    /// The same, which also asks legacy agents.
    pub fn with_legacy(mut self, legacy: LegacyRoute) -> Self {
        self.legacy = Some(legacy);
        self
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
        let id = self.ids.next();
        let counted = self.metrics.counted();
        let pending = counted.dialling();
        let result = match self.gates.audit.begin(id, &ask) {
            Ok(draft) => self.recorded(ask, id, begun, draft, gone).await,
            Err(_) => Err(DialError::early(
                &ask,
                Reason::AuditUnavailable,
                Detail::None,
            )),
        };
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
        let said = match &result {
            Ok(_) => Some("allow"),
            Err(error) => match &error.detail {
                Detail::Denial(denial) => Some(denial.as_str()),
                // What has no class was not asked about.
                _ => error.class.map(|_| "allow"),
            },
        };
        if let Some(said) = said {
            self.metrics.decided(said);
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
        match &attempt {
            Ok(through) => {
                draft.rule(Some(&through.rule));
                draft.kubelet(through.kubelet.as_ref());
            }
            Err(error) => {
                draft.rule(error.rule());
                draft.kubelet(error.kubelet());
            }
        }
        match attempt {
            Ok(through) => Ok(OpenDial {
                id,
                class: through.class,
                agent: through.agent,
                stream: through.stream,
                early: through.early,
                on_link: through.on_link,
                live: through.live,
                judged: through.judged,
                rule: through.rule,
                kubelet: through.kubelet,
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
    ) -> Result<Opened, Box<DialError>> {
        let round = self.gates.policy.dials().round();
        let policy = self.gates.policy.policy();
        let permit = self.permit(&policy, ask, draft)?;
        let deadline = begun + self.options.timeout;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let (permit, first) = match self.pick(&policy, permit, ask, None, turn, draft) {
            Ok(picked) => picked,
            Err((permit, error)) => {
                let asked = Asked { id, ask, deadline };
                let open = self.elsewhere(&policy, permit, asked, turn, error, draft);
                let open = open.await?;
                return self.still_allowed(open, round);
            }
        };
        let asked = Asked { id, ask, deadline };
        let error = match self.open(&permit, asked, first, draft).await {
            Ok(open) => return self.still_allowed(open, round),
            Err(error) => error,
        };
        let Some(avoid) = error.never_reached.filter(|_| Instant::now() < deadline) else {
            return Err(error.error);
        };
        let turn = turn.wrapping_add(1);
        let Ok((permit, second)) = self.pick(&policy, permit, ask, Some(avoid), turn, draft) else {
            return Err(error.error);
        };
        self.metrics.retry();
        match self.open(&permit, asked, second, draft).await {
            Ok(open) => self.still_allowed(open, round),
            Err(error) => Err(error.error),
        }
    }

    /// Policy or grants may have changed while the dial was opened.
    fn still_allowed(&self, open: Opened, round: u64) -> Result<Opened, Box<DialError>> {
        if self.gates.policy.dials().round() != round
            && let Some(reason) = self.gates.policy.judge_again(&open.judged)
        {
            return Err(Box::new(DialError {
                reason,
                target: open.judged.judged().target.clone(),
                class: Some(open.class),
                agent: Some(open.agent),
                detail: Detail::None,
                said: None,
            }));
        }
        Ok(open)
    }

    /// No kubelet is reached that was not verified.
    fn verified_only(&self) -> bool {
        self.options.gateway || self.gates.attestor.mode() == Mode::Enforce
    }

    /// Puts an open dial among those that are judged again.
    fn judged(
        &self,
        permit: &Permit,
        ask: &Ask,
        agent: Option<VerifiedPeer>,
        live: &LiveGuard,
    ) -> JudgedGuard {
        self.gates.policy.dials().add(Judged {
            target: permit.target().clone(),
            class: permit.class(),
            caller: ask.caller.clone(),
            agent,
            dial: Arc::clone(live.dial()),
        })
    }

    fn permit(
        &self,
        policy: &Policy,
        ask: &Ask,
        draft: &mut Draft,
    ) -> Result<Permit, Box<DialError>> {
        let class = self.classify(&ask.target);
        draft.class(class);
        let checked = policy.check(&ask.target, class, &ask.caller, None);
        checked.map_err(|denial| {
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

    /// An agent, and the leave to go through that very one.
    fn pick(
        &self,
        policy: &Policy,
        permit: Permit,
        ask: &Ask,
        avoid: Option<LinkId>,
        turn: usize,
        draft: &mut Draft,
    ) -> Result<(Permit, Arc<AgentLink>), (Permit, Box<DialError>)> {
        let routes = self.agents.routes();
        let host = &permit.target().host;
        let class = match (permit.class(), &self.legacy) {
            // Only the compatibility profile permits these: a gateway decides, when no legacy
            // agent is left.
            (Class::Other, Some(legacy)) if legacy.agents.is_empty() => Class::Service,
            (class, _) => class,
        };
        let through = |node: &Node| {
            let name = node.name().as_str();
            policy.check(&ask.target, permit.class(), &ask.caller, Some(name))
        };
        let asks_node = policy.rules().asks_node();
        let picked = routes.pick(host, class, avoid, turn, |node| {
            !asks_node || through(node).is_ok()
        });
        let (reason, agent, detail) = match picked {
            Ok(node) => match node.choose(avoid) {
                Some(link) if !asks_node => return Ok((permit, link)),
                Some(link) => match through(node) {
                    Ok(permit) => return Ok((permit, link)),
                    Err(denial) => denied(node, denial),
                },
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
            Err(NoAgent::Forbidden(node)) => match through(&node) {
                Err(denial) => denied(&node, denial),
                // Cannot be: it was forbidden by the same policy.
                Ok(_) => {
                    let agent = Through::Agent(node.name().clone());
                    (Reason::NoAgent, Some(agent), Detail::None)
                }
            },
            Err(NoAgent::UnknownNode) => (Reason::NoAgent, None, Detail::UnknownNode),
            Err(NoAgent::NoGateway) => (Reason::NoAgent, None, Detail::NoGateway),
            Err(NoAgent::NoRoute) => (Reason::NoRoute, None, Detail::None),
        };
        if let Some(Through::Agent(node)) = &agent {
            draft.node(node);
        }
        let error = Box::new(DialError {
            reason,
            target: permit.target().clone(),
            class: Some(permit.class()),
            agent,
            detail,
            said: None,
        });
        Err((permit, error))
    }

    async fn open(
        &self,
        permit: &Permit,
        Asked { id, ask, deadline }: Asked<'_>,
        through: Arc<AgentLink>,
        draft: &mut Draft,
    ) -> Result<Opened, Attempt> {
        // The proof that this is an agent of ours: a link cannot be without it.
        let agent = Through::Agent(through.peer().identity().name.clone());
        draft.agent(through.peer(), through.link.carrier().kind());
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
        let kubelet = match self.gate(permit, &through, deadline).await {
            Ok(kubelet) => kubelet,
            // An attestation has tried the other links itself.
            Err((reason, detail)) => return Err(fail(reason, detail, true)),
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
            Ok(open) => {
                let live = self.live.register();
                let proof = Some(through.peer().clone());
                let judged = self.judged(permit, ask, proof, &live);
                Ok(Opened {
                    class: permit.class(),
                    agent,
                    stream: open.stream,
                    early: open.early,
                    on_link: OnLink::Link(on_link),
                    live,
                    judged,
                    rule: permit.rule().clone(),
                    kubelet,
                })
            }
            Err(error) => {
                let detail = error.address.map_or(Detail::None, Detail::Address);
                Err(fail(error.reason, detail, error.reached))
            }
        }
    }

    /// Whether the kubelet is the right one, if the target is a kubelet.
    async fn gate(
        &self,
        permit: &Permit,
        through: &Arc<AgentLink>,
        deadline: Instant,
    ) -> Result<Option<Arc<Attestation>>, (Reason, Detail)> {
        if permit.class() != Class::Kubelet {
            // Only the compatibility profile lets this class through: somebody's kubelet, maybe.
            let kubelet = permit.target().port() == self.prefixes.kubelet_port;
            if kubelet && permit.class() == Class::Other && self.verified_only() {
                return Err((Reason::KubeletUnverified, Detail::KubeletOfNobody));
            }
            return Ok(None);
        }
        let Some(node) = through.node() else {
            // Its link has just gone, and the agent is forgotten.
            return Err((Reason::NoAgent, Detail::None));
        };
        let host = &permit.target().host;
        let gated = self.gates.attestor.gate(&node, through, host, deadline);
        gated
            .await
            .map_err(|refusal| (refusal.reason, Detail::Kubelet(refusal.attestation)))
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
struct Opened {
    class: Class,
    agent: Through,
    stream: Stream,
    early: Bytes,
    on_link: OnLink,
    live: LiveGuard,
    judged: JudgedGuard,
    rule: RuleTag,
    kubelet: Option<Arc<Attestation>>,
}

fn denied(node: &Node, denial: Denial) -> (Reason, Option<Through>, Detail) {
    let agent = Through::Agent(node.name().clone());
    (denial.reason(), Some(agent), Detail::Denial(denial))
}

struct Attempt {
    error: Box<DialError>,
    /// The link to leave out in a second attempt, when one is allowed.
    never_reached: Option<LinkId>,
}
