//! The kubelet gateway (`--kubelet-gateway`): ends kube-apiserver's TLS here, verifies the kubelet
//! on every connection, reads the heads of requests in between, and relays bytes untouched.
//!
//! Reading order: `connect` (one connection: both handshakes, then the relay), `relay` (the bytes),
//! `judge` (every request: rules, [`event`]), `answer` (what we say ourselves), `certificates`
//! (what front ends are shown), `connections` (what is looked at again when files change). How
//! requests are found in the bytes is [`towline_proto::http1`]; what they ask for, and the rules,
//! [`towline_proto::kubelet`].

mod answer;
mod certificates;
mod connect;
mod connections;
pub mod event;
pub mod flags;
mod judge;
mod metrics;
mod pipe;
mod relay;
mod way;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use prometheus_client::registry::Registry;
use towline_link::process::drain::DrainView;
use towline_link::process::ratelimit::RateLimited;
use towline_pki::Expiry;
use towline_pki::gateway::{GatewayError, GatewayFiles, GatewayMaterial};
use towline_proto::id::DialId;
use towline_proto::kubelet::{Refusal, Rules, Verb};
use towline_proto::target::{Class, Target};

use crate::attest::Attestor;
use crate::dial::Through;
use crate::policy::in_force::InForce;
use certificates::Certificates;
use connections::Connections;
use event::RequestSink;
use judge::About;
use metrics::GatewayMetrics;

pub use connect::Request;

/// Lines about refused requests in a minute, for each cause.
const REFUSAL_LINES: u32 = 20;

/// What the operator says about the gateway, and what was in its files.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// Which files.
    pub files: GatewayFiles,
    /// What was in them.
    pub material: Arc<GatewayMaterial>,
}

impl GatewayConfig {
    /// Reads and checks every file.
    pub fn load(files: GatewayFiles, now: SystemTime) -> Result<Self, GatewayError> {
        let material = Arc::new(GatewayMaterial::load(&files, now)?);
        Ok(Self { files, material })
    }
}

/// Whether an open dial goes on through the gateway, and as what: every dial of class kubelet
/// does, by whatever door it came.
pub fn through<'a>(
    gateway: Option<&'a Arc<Gateway>>,
    id: DialId,
    target: &Target,
    class: Class,
    agent: &Through,
    stage: DrainView,
) -> Option<(&'a Arc<Gateway>, Request)> {
    match (agent, gateway) {
        // The dialer opens no kubelet through a legacy agent where there is a gateway.
        (Through::Agent(node), Some(gateway)) if class == Class::Kubelet => {
            let (target, node) = (target.clone(), node.clone());
            let request = Request {
                id,
                target,
                node,
                stage,
            };
            Some((gateway, request))
        }
        _ => None,
    }
}

/// See the head of this file.
pub struct Gateway {
    files: GatewayFiles,
    certificates: ArcSwap<Certificates>,
    kubelets: Arc<Attestor>,
    policy: Arc<InForce>,
    sink: Arc<dyn RequestSink>,
    connections: Connections,
    metrics: GatewayMetrics,
    lines: RateLimited<&'static str>,
}

impl Gateway {
    /// A gateway with its files, what kubelets are verified by, the rules in force, and whoever
    /// writes requests down.
    pub fn new(
        config: GatewayConfig,
        kubelets: Arc<Attestor>,
        policy: Arc<InForce>,
        sink: Arc<dyn RequestSink>,
        registry: &mut Registry,
    ) -> Arc<Self> {
        let metrics = GatewayMetrics::default();
        metrics.register(registry);
        Arc::new(Self {
            files: config.files,
            certificates: ArcSwap::from_pointee(Certificates::new(config.material)),
            kubelets,
            policy,
            sink,
            connections: Connections::default(),
            metrics,
            lines: RateLimited::new(REFUSAL_LINES, Duration::from_secs(60)),
        })
    }

    /// Which files it reads.
    pub fn files(&self) -> &GatewayFiles {
        &self.files
    }

    /// Puts new files in force: every handshake from now on uses them.
    pub fn replace(&self, material: Arc<GatewayMaterial>) {
        self.certificates
            .store(Arc::new(Certificates::new(material)));
    }

    /// Looks again at everything that is open: certificates of both sides and the rules. To be
    /// called when files changed and from time to time. Gives how many were ended.
    pub fn check_again(&self, now: SystemTime) -> usize {
        let certificates = self.certificates.load();
        let rules = self.rules();
        self.connections.check(
            &certificates.material.front_ends,
            self.kubelets.trust().as_deref(),
            rules.as_deref(),
            now,
        )
    }

    /// Everything loaded that ends.
    pub fn expiries(&self) -> Vec<Expiry> {
        self.certificates.load().material.expiries()
    }

    fn rules(&self) -> Option<Arc<Rules>> {
        self.policy.kubelet()
    }

    fn say_refused(&self, about: &About, verb: Verb, refusal: Refusal) {
        if let Some(suppressed) = self.lines.allow(refusal.as_str()) {
            tracing::info!(
                dial = %about.dial, node = %about.node, front_end = about.front_end.subject, %verb,
                suppressed, "request refused: {refusal}"
            );
        }
    }

    fn say_malformed(&self, about: &About, why: &'static str) {
        if let Some(suppressed) = self.lines.allow(why) {
            tracing::warn!(
                dial = %about.dial, node = %about.node, front_end = about.front_end.subject,
                reason = why, suppressed, "a front end sent what is no request that may pass"
            );
        }
    }
}
