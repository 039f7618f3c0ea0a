//! The metric families of Konnectivity's proxy-agent, to the letter.
//!
//! One slip of the original is not repeated: it counts watches as lists, here
//! `lease_watches_total` moves.

use std::sync::Arc;
use std::time::Duration;

use towline_link::grpc::Code;
use towline_link::kube::count::{Called, Verb};
use towline_link::process::classic::{Counter, Description, Families, Family, Gauge, Histogram};
use towline_proto::konnectivity::PacketKind;

const LATENCY: &[f64] = &[0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 30.0];

const fn plain(
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
) -> Description {
    Description {
        name,
        help,
        labels,
        buckets: LATENCY,
    }
}

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// From us to the server.
    FromAgent,
    /// From the server to us.
    ToAgent,
}

impl Segment {
    const fn as_str(self) -> &'static str {
        match self {
            Segment::FromAgent => "from_agent",
            Segment::ToAgent => "to_agent",
        }
    }

    /// Its name in the older metric.
    const fn direction(self) -> &'static str {
        match self {
            Segment::FromAgent => "to_server",
            Segment::ToAgent => "from_server",
        }
    }
}

const KINDS: [PacketKind; 8] = [
    PacketKind::DialRequest,
    PacketKind::DialResponse,
    PacketKind::CloseRequest,
    PacketKind::CloseResponse,
    PacketKind::Data,
    PacketKind::CloseDial,
    PacketKind::Drain,
    PacketKind::Unknown,
];

/// Numbers of the legacy mode. Clones share them.
#[derive(Clone)]
pub struct LegacyMetrics {
    dial_duration: Arc<Histogram>,
    dial_failures: Arc<Family<Counter>>,
    server_failures: Arc<Family<Counter>>,
    server_connections: Arc<Gauge>,
    known_servers: Arc<Gauge>,
    endpoint_connections: Arc<Gauge>,
    sent: Arc<[Arc<Counter>]>,
    received: Arc<[Arc<Counter>]>,
    stream_errors: Arc<Family<Counter>>,
    lease_lists: Arc<Family<Counter>>,
    lease_watches: Arc<Family<Counter>>,
    lease_latency: Arc<Family<Histogram>>,
}

impl LegacyMetrics {
    /// Adds the families to what a scrape shows.
    pub fn register(families: &mut Families) -> Self {
        let dials = families.family::<Histogram>(plain(
            "konnectivity_network_proxy_agent_dial_duration_seconds",
            "Latency of dial to the remote endpoint in seconds",
            &[],
        ));
        let servers = families.family::<Gauge>(plain(
            "konnectivity_network_proxy_agent_open_server_connections",
            "Current number of open server connections.",
            &[],
        ));
        let known = families.family::<Gauge>(plain(
            "konnectivity_network_proxy_agent_known_server_count",
            "Current number of servers agent is trying to connect to.",
            &[],
        ));
        let endpoints = families.family::<Gauge>(plain(
            "konnectivity_network_proxy_agent_open_endpoint_connections",
            "Current number of open endpoint connections.",
            &[],
        ));
        let packets = families.family::<Counter>(plain(
            "konnectivity_network_proxy_agent_stream_packets_total",
            "Count of packets processed, by segment and packet type (example: from_client, DIAL_REQ)",
            &["segment", "packet_type"],
        ));
        let of = |segment: Segment| -> Arc<[Arc<Counter>]> {
            KINDS
                .iter()
                .map(|kind| packets.with(&[segment.as_str(), kind.as_str()]))
                .collect()
        };
        let known_servers = known.with(&[]);
        // Not of the kind that appears with its first use.
        known_servers.set(0);
        Self {
            dial_duration: dials.with(&[]),
            dial_failures: families.family(plain(
                "konnectivity_network_proxy_agent_endpoint_dial_failure_total",
                "Number of failures dialing the remote endpoint, by reason (example: timeout).",
                &["reason"],
            )),
            server_failures: families.family(plain(
                "konnectivity_network_proxy_agent_server_connection_failure_count",
                "Count of failures to send to or receive from the proxy server, labeled by the direction (from_server or to_server). DEPRECATED, please use stream_events_error_total",
                &["direction"],
            )),
            server_connections: servers.with(&[]),
            known_servers,
            endpoint_connections: endpoints.with(&[]),
            sent: of(Segment::FromAgent),
            received: of(Segment::ToAgent),
            stream_errors: families.family(plain(
                "konnectivity_network_proxy_agent_stream_errors_total",
                "Count of gRPC stream errors, by segment, grpc Code, packet type. (example: from_agent, Code.Unavailable, DIAL_RSP)",
                &["segment", "code", "packet_type"],
            )),
            lease_lists: families.family(plain(
                "konnectivity_network_proxy_agent_lease_lists_total",
                "Count of server lease list calls made by the agent to the k8s apiserver, labeled by HTTP response code and reason",
                &["http_response_code", "reason"],
            )),
            lease_watches: families.family(plain(
                "konnectivity_network_proxy_agent_lease_watches_total",
                "Count of server lease watch calls made by the agent to the k8s apiserver, labeled by HTTP response code and reason",
                &["http_response_code", "reason"],
            )),
            lease_latency: families.family(plain(
                "konnectivity_network_proxy_agent_lease_list_latency_seconds",
                "Latency of server lease listing in seconds",
                &["http_response_code"],
            )),
        }
    }

    pub(super) fn packet(&self, segment: Segment, kind: PacketKind) {
        let counters = match segment {
            Segment::FromAgent => &self.sent,
            Segment::ToAgent => &self.received,
        };
        let place = KINDS.iter().position(|one| *one == kind);
        if let Some(counter) = place.and_then(|place| counters.get(place)) {
            counter.inc();
        }
    }

    pub(super) fn stream_error(&self, segment: Segment, code: Code, kind: PacketKind) {
        let labels = [segment.as_str(), code.as_str(), kind.as_str()];
        self.stream_errors.with(&labels).inc();
        self.server_failures.with(&[segment.direction()]).inc();
    }

    pub(super) fn dialled(&self, after: Duration) {
        self.dial_duration.observe(after);
    }

    pub(super) fn dial_failed(&self, timeout: bool) {
        let reason = if timeout { "timeout" } else { "unknown" };
        self.dial_failures.with(&[reason]).inc();
    }

    pub(super) fn servers(&self, count: usize) {
        self.server_connections.set(count as i64);
    }

    pub(super) fn wanted(&self, count: usize) {
        self.known_servers.set(count as i64);
    }

    /// A connection to a target; counted as long as the value lives.
    pub(super) fn endpoint(&self) -> Endpoint {
        self.endpoint_connections.add(1);
        Endpoint(Arc::clone(&self.endpoint_connections))
    }

    pub(super) fn leases(&self, called: &Called<'_>) {
        let code = called.error.map_or(Some(200), |error| error.status());
        let family = match called.verb {
            Verb::List => &self.lease_lists,
            Verb::Watch => &self.lease_watches,
        };
        if let Some(code) = code {
            let reason = called.error.and_then(|error| error.reason());
            let reason: String = reason.unwrap_or_default().chars().take(64).collect();
            family.with(&[&code.to_string(), &reason]).inc();
        }
        if called.verb == Verb::List {
            let code = code.unwrap_or(200).to_string();
            self.lease_latency.with(&[&code]).observe(called.took);
        }
    }
}

/// See [`LegacyMetrics::endpoint`].
pub(super) struct Endpoint(Arc<Gauge>);

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.0.add(-1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_appear_with_their_first_use() {
        let mut families = Families::default();
        let metrics = LegacyMetrics::register(&mut families);
        let page = || {
            let mut out = String::new();
            families.write(&mut out);
            out
        };
        assert_eq!(
            page(),
            "# HELP konnectivity_network_proxy_agent_known_server_count Current number of servers \
             agent is trying to connect to.\n# TYPE \
             konnectivity_network_proxy_agent_known_server_count \
             gauge\nkonnectivity_network_proxy_agent_known_server_count 0\n"
        );
        metrics.dial_failed(true);
        drop(metrics.endpoint());
        metrics.packet(Segment::ToAgent, PacketKind::DialRequest);
        let page = page();
        for line in [
            "# HELP konnectivity_network_proxy_agent_endpoint_dial_failure_total Number of failures dialing the remote endpoint, by reason (example: timeout).",
            "# TYPE konnectivity_network_proxy_agent_endpoint_dial_failure_total counter",
            "konnectivity_network_proxy_agent_endpoint_dial_failure_total{reason=\"timeout\"} 1",
            "konnectivity_network_proxy_agent_open_endpoint_connections 0",
            "konnectivity_network_proxy_agent_stream_packets_total{packet_type=\"DIAL_REQ\",segment=\"to_agent\"} 1",
        ] {
            assert!(page.lines().any(|one| one == line), "{line}\n{page}");
        }
        assert!(!page.contains("unknown"), "{page}");
    }
}
