//! Whether a verified agent becomes a link: its claims, its place, our Welcome.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use towline_link::error::detail;
use towline_link::process::ratelimit::RateLimited;
use towline_link::process::shares::{Share, Shares};
use towline_pki::VerifiedPeer;
use towline_proto::control::{Hello, Welcome};
use towline_proto::id::Name;
use towline_proto::limits;
use towline_proto::reason::Reason;
use towline_proto::version::{self, Capabilities};

use crate::agents::{Admission, Agents};
use crate::directory::{Directory, check_claims};
use crate::metrics::Metrics;
use crate::trust::Trust;

/// What every greeting needs.
pub struct Greeter {
    /// Who is linked.
    pub agents: Arc<Agents>,
    /// What agents may serve.
    pub directory: Arc<dyn Directory>,
    /// What is counted.
    pub metrics: Metrics,
    /// Whom we trust now.
    trust: Trust,
    /// Our name.
    server: Name,
    /// Told to agents.
    servers: Vec<String>,
    max_dials: u32,
    refusals: RateLimited<Name>,
    greeting: Shares<Name>,
}

/// The program's name and version, for people.
pub const SOFTWARE: &str = concat!("towline-server ", env!("CARGO_PKG_VERSION"));

impl Greeter {
    /// A greeter of this server.
    pub fn new(
        agents: Arc<Agents>,
        directory: Arc<dyn Directory>,
        metrics: Metrics,
        trust: Trust,
        servers: Vec<String>,
        max_dials: u32,
    ) -> Self {
        let server = trust.snapshot().identity().name.clone();
        Self {
            agents,
            directory,
            metrics,
            trust,
            server,
            servers,
            max_dials,
            refusals: RateLimited::new(3, Duration::from_secs(60)),
            greeting: Shares::new(limits::GREETINGS_PER_AGENT),
        }
    }

    /// A place for a connection of this agent that has not greeted yet.
    pub fn place(&self, peer: &VerifiedPeer) -> Option<Share<Name>> {
        self.greeting.take(&peer.identity().name)
    }

    /// Whether an agent is trusted by the files that are in force now. It was verified in its
    /// handshake, but a reload may have come since; a reload itself checks only what is in the
    /// table, so this is asked after the link got its place there.
    pub fn check_again(&self, peer: &VerifiedPeer) -> Result<(), Reason> {
        let checked = self
            .trust
            .snapshot()
            .agents
            .verify(peer.chain(), SystemTime::now());
        checked.map(drop).map_err(|error| {
            tracing::warn!(peer = %peer.identity(), %error, "agent is no longer trusted, its link is closed");
            error.reason()
        })
    }

    /// The answer to Hello, and the reserved place of the link.
    pub fn decide(
        &self,
        peer: &VerifiedPeer,
        hello: &Hello,
    ) -> Result<(Welcome, Admission), Reason> {
        let route = self.directory.route(peer);
        let gateway = self.directory.gateway_prefixes();
        if let Err(excess) = check_claims(hello, &route, &gateway) {
            let claim = format!("it claims {excess}, which nothing grants it");
            return Err(self.refuse(peer, Reason::ExcessClaim, &claim, false));
        }
        let mut routes = route.prefixes.clone();
        if route.gateway {
            routes.extend(&gateway);
        }
        routes.truncate(limits::LIST_ITEMS);
        let admission = self.agents.admit(peer, route).map_err(|error| {
            let alarm = error.reason() == Reason::ExcessClaim;
            self.refuse(peer, error.reason(), &error.to_string(), alarm)
        })?;
        // The session has checked that the ranges meet.
        let ours = (version::VERSION_MIN, version::VERSION_MAX);
        let version = version::negotiate(ours, hello.versions).ok_or(Reason::Version)?;
        let welcome = Welcome {
            version,
            capabilities: Capabilities::OURS.meet(hello.capabilities),
            server: self.server.clone(),
            servers: self.servers.clone(),
            routes,
            max_dials: self.max_dials,
            software: SOFTWARE.to_owned(),
        };
        Ok((welcome, admission))
    }

    fn refuse(&self, peer: &VerifiedPeer, reason: Reason, why: &str, alarm: bool) -> Reason {
        let leaf = peer.leaf();
        if let Some(suppressed) = self.refusals.allow(leaf.identity.name.clone()) {
            let (serial, why) = (&leaf.serial, detail(why));
            if alarm {
                tracing::error!(peer = %leaf.identity, %serial, %reason, suppressed, "agent refused: {why}");
            } else {
                tracing::warn!(peer = %leaf.identity, %serial, %reason, suppressed, "agent refused: {why}");
            }
        }
        reason
    }
}
