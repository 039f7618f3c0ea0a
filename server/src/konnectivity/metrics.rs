//! The metric families of Konnectivity's `proxy-server`, by name, label and text its own.
//!
//! Nothing is written for a reason that has not happened. Where our doors have no such thing as
//! what a family counts (a queue shared by streams, say), the family stays silent.

use std::sync::Arc;
use std::time::Duration;

use towline_link::grpc::Code;
use towline_link::process::classic::{Counter, Description, Families, Family, Gauge, Histogram};
use towline_proto::konnectivity::PacketKind;
use towline_proto::reason::Reason;

/// Which way a packet goes, as the label `segment` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// A front end sent it.
    FromClient,
    /// A front end is sent it.
    ToClient,
    /// A legacy agent sent it.
    FromAgent,
    /// A legacy agent is sent it.
    ToAgent,
}

impl Segment {
    const ALL: [Segment; 4] = [
        Segment::FromClient,
        Segment::ToClient,
        Segment::FromAgent,
        Segment::ToAgent,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Segment::FromClient => "from_client",
            Segment::ToClient => "to_client",
            Segment::FromAgent => "from_agent",
            Segment::ToAgent => "to_agent",
        }
    }
}

/// Which streams, as the label `service_method` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Front ends.
    Proxy,
    /// Legacy agents.
    Connect,
}

impl Method {
    const fn as_str(self) -> &'static str {
        match self {
            Method::Proxy => "Proxy",
            Method::Connect => "Connect",
        }
    }
}

/// Why a dial failed, as the label `reason` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialFailure {
    /// Nobody can serve the target.
    NoAgent,
    /// The agent said no.
    ErrorResponse,
    /// A legacy agent answered a dial that is not there.
    UnrecognizedResponse,
    /// The front end could not be told that the dial worked.
    SendResponse,
    /// The agent, or the link to it, went away.
    BackendClose,
    /// The agent did not answer in time.
    BackendDialTimeout,
    /// The front end gave up.
    FrontendClose,
}

impl DialFailure {
    /// What Konnectivity would call it.
    pub const fn of(reason: Reason) -> Self {
        match reason {
            Reason::NoAgent | Reason::NoRoute => DialFailure::NoAgent,
            Reason::DialTimeout => DialFailure::BackendDialTimeout,
            Reason::LinkLost
            | Reason::PeerSilent
            | Reason::Draining
            | Reason::Shutdown
            | Reason::Superseded
            | Reason::Moved => DialFailure::BackendClose,
            Reason::FrontEndGone => DialFailure::FrontendClose,
            _ => DialFailure::ErrorResponse,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            DialFailure::NoAgent => "no_agent",
            DialFailure::ErrorResponse => "error_response",
            DialFailure::UnrecognizedResponse => "unrecognized_response",
            DialFailure::SendResponse => "send_rsp",
            DialFailure::BackendClose => "backend_close",
            DialFailure::BackendDialTimeout => "backend_dial_timeout",
            DialFailure::FrontendClose => "frontend_close",
        }
    }
}

const DIAL_SECONDS: &[f64] = &[1e-6, 1e-5, 1e-4, 0.005, 0.025, 0.1, 0.5, 2.5, 12.5];
const CONNECTION_SECONDS: &[f64] = &[
    1.0, 5.0, 15.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 14_400.0, 43_200.0, 86_400.0,
];
/// What Go's library takes when none are named.
const LEASE_SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

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

/// What is counted. One for a server.
pub struct Counted {
    families: Families,
    dial_seconds: Arc<Histogram>,
    write_seconds: Arc<Histogram>,
    connection_seconds: Arc<Histogram>,
    streams: Arc<Family<Gauge>>,
    connects: Arc<Gauge>,
    backends: Arc<Gauge>,
    ready_backends: Arc<Family<Gauge>>,
    pending: Arc<Gauge>,
    established: Arc<Gauge>,
    full: Arc<Family<Gauge>>,
    failures: Arc<Family<Counter>>,
    /// Looked up once: every packet counts.
    packets: [[Arc<Counter>; KINDS.len()]; Segment::ALL.len()],
    errors: Arc<Family<Counter>>,
    culled: Arc<Family<Counter>>,
    lease_deletes: Arc<Family<Counter>>,
    lease_delete_seconds: Arc<Family<Histogram>>,
    lease_lists: Arc<Family<Counter>>,
    lease_list_seconds: Arc<Family<Histogram>>,
}

macro_rules! description {
    ($name:literal, $help:literal, [$($label:literal),*], $buckets:expr) => {
        Description {
            name: concat!("konnectivity_network_proxy_server_", $name),
            help: $help,
            labels: &[$($label),*],
            buckets: $buckets,
        }
    };
    ($name:literal, $help:literal, [$($label:literal),*]) => {
        description!($name, $help, [$($label),*], &[])
    };
}

impl Default for Counted {
    fn default() -> Self {
        Self::new()
    }
}

impl Counted {
    /// All families, nothing counted.
    pub fn new() -> Self {
        let mut families = Families::default();
        let dial_seconds = families.family(description!(
            "dial_duration_seconds",
            "Latency of dial to the remote endpoint in seconds",
            [],
            DIAL_SECONDS
        ));
        let write_seconds = families.family(description!(
            "frontend_write_duration_seconds",
            "Latency of write to the frontend in seconds",
            [],
            DIAL_SECONDS
        ));
        let connection_seconds = families.family(description!(
            "connection_duration_seconds",
            "Duration of established end-to-end connections in seconds",
            [],
            CONNECTION_SECONDS
        ));
        let streams = families.family(description!(
            "grpc_connections",
            "Number of current grpc connections, partitioned by service method.",
            ["service_method"]
        ));
        let connects: Arc<Family<Gauge>> = families.family(description!(
            "http_connections",
            "Number of current HTTP CONNECT connections",
            []
        ));
        let backends: Arc<Family<Gauge>> = families.family(description!(
            "ready_backend_connections",
            "Number of konnectivity agent connected to the proxy server. DEPRECATED, please use ready_backends",
            []
        ));
        let ready_backends = families.family(description!(
            "ready_backends",
            "Number of konnectivity agent connected to the proxy server",
            ["proxy_strategy"]
        ));
        let pending: Arc<Family<Gauge>> = families.family(description!(
            "pending_backend_dials",
            "Current number of pending backend dial requests",
            []
        ));
        let established: Arc<Family<Gauge>> = families.family(description!(
            "established_connections",
            "Current number of established end-to-end connections (post-dial).",
            []
        ));
        let full = families.family(description!(
            "full_receive_channels",
            "Number of current connections blocked by a full receive channel, partitioned by service method.",
            ["service_method"]
        ));
        let failures = families.family(description!(
            "dial_failure_count",
            "Number of dial failures observed. Multiple failures can occur for a single dial request.",
            ["reason"]
        ));
        let packets: Arc<Family<Counter>> = families.family(description!(
            "stream_packets_total",
            "Count of packets processed, by segment and packet type (example: from_client, DIAL_REQ)",
            ["segment", "packet_type"]
        ));
        let errors = families.family(description!(
            "stream_errors_total",
            "Count of gRPC stream errors, by segment, grpc Code, packet type. (example: from_agent, Code.Unavailable, DIAL_RSP)",
            ["segment", "code", "packet_type"]
        ));
        let culled: Arc<Family<Counter>> = families.family(description!(
            "culled_leases_count",
            "Count of expired leases that the lease garbage collection controller has culled.",
            []
        ));
        let lease_delete_seconds = families.family(description!(
            "lease_delete_latency_seconds",
            "Latency of lease deletion calls by the garbage collection controller in seconds.",
            ["http_status_code"],
            LEASE_SECONDS
        ));
        let lease_deletes = families.family(description!(
            "lease_delete_total",
            "Count of lease delection calls by the garbage collection controller. Labeled by HTTP status code and reason.",
            ["http_status_code", "reason"]
        ));
        let lease_list_seconds = families.family(description!(
            "lease_list_latency_seconds",
            "Latency of lease list calls by the garbage collection controller in seconds.",
            ["http_status_code"],
            LEASE_SECONDS
        ));
        let lease_lists = families.family(description!(
            "lease_list_total",
            "Count of lease deletion calls by the garbage collection controller. Labeled by HTTP status code and reason.",
            ["http_status_code", "reason"]
        ));
        let one = |family: &Arc<Family<Histogram>>| family.with(&[]);
        let connects = connects.with(&[]);
        connects.set(0);
        culled.with(&[]).show();
        Self {
            dial_seconds: one(&dial_seconds),
            write_seconds: one(&write_seconds),
            connection_seconds: one(&connection_seconds),
            streams,
            connects,
            backends: backends.with(&[]),
            ready_backends,
            pending: pending.with(&[]),
            established: established.with(&[]),
            full,
            failures,
            packets: Segment::ALL
                .map(|segment| KINDS.map(|kind| packets.with(&[segment.as_str(), kind.as_str()]))),
            errors,
            culled,
            lease_deletes,
            lease_delete_seconds,
            lease_lists,
            lease_list_seconds,
            families,
        }
    }

    /// For the pages that show them.
    pub fn families(&self) -> Families {
        self.families.clone()
    }

    /// A dial begins; it is pending until the guard is dropped.
    pub fn dialling(&self) -> Pending {
        self.pending.add(1);
        Pending(Arc::clone(&self.pending))
    }

    /// A dial worked.
    pub fn dialled(&self, after: Duration) {
        self.dial_seconds.observe(after);
    }

    /// A dial did not.
    pub fn dial_failed(&self, reason: DialFailure) {
        self.failures.with(&[reason.as_str()]).inc();
    }

    /// A connection is established until the guard is dropped.
    pub fn established(&self) -> Established {
        self.established.add(1);
        Established {
            gauge: Arc::clone(&self.established),
            seconds: Arc::clone(&self.connection_seconds),
            since: tokio::time::Instant::now(),
        }
    }

    /// A stream is open until the guard is dropped.
    pub fn stream(&self, method: Method) -> Pending {
        let gauge = self.streams.with(&[method.as_str()]);
        gauge.add(1);
        Pending(gauge)
    }

    /// A CONNECT request is open until the guard is dropped.
    pub fn connect(&self) -> Pending {
        self.connects.add(1);
        Pending(Arc::clone(&self.connects))
    }

    /// A packet went by.
    pub fn packet(&self, segment: Segment, kind: PacketKind) {
        self.packets[segment as usize][kind as usize].inc();
    }

    /// A stream failed: while it was read (no packet is known then), or under this packet.
    pub fn stream_error(&self, segment: Segment, code: Code, kind: PacketKind) {
        let values = [segment.as_str(), code.as_str(), kind.as_str()];
        self.errors.with(&values).inc();
    }

    /// The front end had to be waited for.
    pub fn front_end_took(&self, time: Duration) {
        self.write_seconds.observe(time);
    }

    /// How many agents a strategy knows; `last` is the number for the deprecated gauge.
    pub fn ready(&self, strategy: &str, agents: usize) {
        let agents = i64::try_from(agents).unwrap_or(i64::MAX);
        self.ready_backends.with(&[strategy]).set(agents);
        self.backends.set(agents);
    }

    /// A stream is not read because a queue is full, until the guard is dropped.
    pub fn full(&self, method: Method) -> Pending {
        let gauge = self.full.with(&[method.as_str()]);
        gauge.add(1);
        Pending(gauge)
    }

    /// An expired lease was deleted.
    pub fn culled(&self) {
        self.culled.with(&[]).inc();
    }

    /// A lease was asked to be deleted.
    pub fn lease_deleted(&self, status: &str, reason: &str, took: Duration) {
        self.lease_deletes.with(&[status, reason]).inc();
        self.lease_delete_seconds.with(&[status]).observe(took);
    }

    /// Leases were listed.
    pub fn leases_listed(&self, status: &str, reason: &str, took: Duration) {
        self.lease_lists.with(&[status, reason]).inc();
        self.lease_list_seconds.with(&[status]).observe(took);
    }
}

/// Counted in a gauge while it lives.
pub struct Pending(Arc<Gauge>);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.add(-1);
    }
}

/// See [`Counted::established`].
pub struct Established {
    gauge: Arc<Gauge>,
    seconds: Arc<Histogram>,
    since: tokio::time::Instant,
}

impl Drop for Established {
    fn drop(&mut self) {
        self.gauge.add(-1);
        self.seconds.observe(self.since.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(counted: &Counted) -> String {
        let mut text = String::new();
        counted.families().write(&mut text);
        text
    }

    #[test]
    fn only_what_happened_is_written() {
        let counted = Counted::new();
        let start = "# HELP konnectivity_network_proxy_server_http_connections Number of current HTTP CONNECT connections\n\
                     # TYPE konnectivity_network_proxy_server_http_connections gauge\n\
                     konnectivity_network_proxy_server_http_connections 0\n";
        let culled = "# HELP konnectivity_network_proxy_server_culled_leases_count Count of expired leases that the lease garbage collection controller has culled.\n\
                      # TYPE konnectivity_network_proxy_server_culled_leases_count counter\n\
                      konnectivity_network_proxy_server_culled_leases_count 0\n";
        assert_eq!(text(&counted), format!("{culled}{start}"));
        counted.dial_failed(DialFailure::NoAgent);
        let failed = "# HELP konnectivity_network_proxy_server_dial_failure_count Number of dial failures observed. Multiple failures can occur for a single dial request.\n\
                      # TYPE konnectivity_network_proxy_server_dial_failure_count counter\n\
                      konnectivity_network_proxy_server_dial_failure_count{reason=\"no_agent\"} 1\n";
        assert_eq!(text(&counted), format!("{culled}{failed}{start}"));
    }

    #[test]
    fn every_kind_and_segment_has_its_own_series() {
        let counted = Counted::new();
        for segment in Segment::ALL {
            for kind in KINDS {
                counted.packet(segment, kind);
                let line = format!(
                    "_stream_packets_total{{packet_type=\"{}\",segment=\"{}\"}} 1\n",
                    kind.as_str(),
                    segment.as_str()
                );
                assert!(text(&counted).contains(&line), "{line}");
            }
        }
    }

    #[test]
    fn gauges_come_down_with_their_guards() {
        let counted = Counted::new();
        drop((
            counted.dialling(),
            counted.established(),
            counted.stream(Method::Proxy),
        ));
        for line in [
            "_pending_backend_dials 0\n",
            "_established_connections 0\n",
            "_grpc_connections{service_method=\"Proxy\"} 0\n",
            "_connection_duration_seconds_count 1\n",
        ] {
            assert!(text(&counted).contains(line), "{line}");
        }
    }
}
