//! Every bound of the wire and of both daemons, each with its unit, its reason and what happens
//! at it. Relations between them are asserted at compile time at the end of the file.

mod certificates;
mod enrol;
mod kube;
mod paper;
mod peers;
mod readiness;
mod relations;
mod signing;

use std::time::Duration;

pub use certificates::*;
pub use enrol::*;
pub use kube::*;
pub use paper::*;
pub use peers::*;
pub use readiness::*;
pub use signing::*;

// ---- session -------------------------------------------------------------------------------

/// How often each end says that it lives. Also below the idle limit of common load balancers.
pub const HEARTBEAT: Duration = Duration::from_secs(3);
/// How often an agent looks what its heartbeats should say of it.
pub const HEALTH_LOOK: Duration = Duration::from_secs(1);
/// Silence after which a link is dead: three heartbeats. The link is closed, dials are reset.
pub const PEER_SILENT: Duration = Duration::from_secs(9);
/// From a verified connection to Hello, and from Hello to Welcome. Overflow: link closed.
pub const GREETING: Duration = Duration::from_secs(5);
/// One message of the control stream, payload bytes. Overflow: protocol error.
pub const CONTROL_MESSAGE_BYTES: usize = 16 * 1024;
/// Control messages that wait to be written. Overflow: the peer does not read, link closed.
pub const CONTROL_QUEUE: usize = 64;
/// Software text in Hello and Welcome, bytes. Overflow: protocol error.
pub const SOFTWARE_BYTES: usize = 64;
/// Addresses, prefixes or servers in one message. Overflow: protocol error.
pub const LIST_ITEMS: usize = 64;

// ---- dial ----------------------------------------------------------------------------------

/// Longest host name in bytes (RFC 1035).
pub const HOST_BYTES: usize = 253;
/// First bytes of a dial stream, payload. Overflow: protocol error, stream reset.
pub const DIAL_REQUEST_BYTES: usize = 512;
/// A refusal, payload bytes. Overflow: protocol error, stream reset.
pub const DIAL_REPLY_BYTES: usize = 64;
/// From the door's request to the agent's answer.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest `--dial-timeout`; kube-apiserver gives up at 30 s.
pub const DIAL_TIMEOUT_MAX: Duration = Duration::from_secs(30);
/// The agent's own connect limit, shorter than the dial's so that the true cause is told.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A dial stream whose request does not come in this time is reset.
pub const DIAL_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Live dials on one link unless a flag says otherwise. Overflow: the dial is refused (busy).
pub const DIALS_PER_LINK: u32 = 4096;
/// Stream limit before the peer is verified and greeted: preallocated memory in quinn.
pub const STREAMS_AT_START: u32 = 128;

// ---- data ----------------------------------------------------------------------------------

/// One read from a local socket, bytes: four full frames of the multiplexer, so that a bulk
/// transfer leaves no rest. Larger reads gained nothing when measured.
pub const READ_CHUNK: usize = 4 * MUX_FRAME_BYTES;
/// Bytes of one dial that may wait unread at the far end, each way. 4 MiB moves 200 MB/s at 20 ms.
pub const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
/// Payload of one multiplexer DATA frame: with its header one TLS record, so that small streams
/// interleave.
pub const MUX_FRAME_BYTES: usize = 16 * 1024 - 8;
/// Bytes that one dial may have queued in the multiplexer before its task waits.
pub const MUX_SEND_QUEUE: usize = 256 * 1024;
/// Bytes of one dial after whose reading the multiplexer gives credit back, at the latest.
pub const MUX_RETURN: u32 = 64 * 1024;
/// Bytes that are sent on one dial before the reader returns credit, on the shortest path and while
/// other dials of the link move bytes: they wait behind what the two TCP sockets hold of it. A whole
/// [`STREAM_WINDOW`] made a round trip beside a bulk dial wait 3.6 ms on loopback, this 0.7 ms, at
/// four fifths of the throughput.
pub const MUX_FLIGHT: u32 = 256 * 1024;
/// The same for a dial that is alone on its link.
pub const MUX_FLIGHT_ALONE: u32 = 2 * 1024 * 1024;
/// What is added to [`MUX_FLIGHT`] for each millisecond of the path's round trip: 512 MB/s.
pub const MUX_FLIGHT_PER_MS: u32 = 512 * 1024;
/// What both ends need of the first round trip for themselves; it is not the path's.
pub const MUX_GREETING: Duration = Duration::from_millis(1);
/// A dial whose far edge took no byte for this long counts as stalled.
pub const STALLED_AFTER: Duration = Duration::from_secs(1);
/// Bytes that a far edge which is behind has to take in each [`STALLED_AFTER`] to count as moving.
/// Below it, it counts as stalled: a reader of one byte a second holds a whole window too.
pub const MOVING_BYTES: u64 = 256 * 1024;
/// How often a splice that waits for the link looks whether its local end is still there.
pub const LOCAL_LOOK: Duration = Duration::from_secs(1);
/// A front end that closed while the far side takes none of its last bytes: so long they are
/// kept for it. Overflow: the dial ends.
pub const LOCAL_GONE: Duration = Duration::from_secs(30);

// ---- links ---------------------------------------------------------------------------------

/// Handshakes at once. Overflow: QUIC retry, then refusal; TCP waits in the listen queue.
pub const HANDSHAKES: usize = 256;
/// One handshake, both carriers.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How soon an agent makes its links anew, at the earliest, whose new certificate is of another
/// issuer than the link's, and over how long a fleet that was renewed at once spreads that.
pub const RELINK_AFTER: Duration = Duration::from_secs(1);
/// See [`RELINK_AFTER`].
pub const RELINK_SPREAD: Duration = Duration::from_secs(5);
/// How long a link stays whose server's issuer is trusted no more, while another one is made.
/// With the look at the files and its spread this is less than the five seconds within which a
/// revocation ends links; what is on a deny list is closed at once.
pub const RELINK_GRACE: Duration = Duration::from_millis(1500);
/// Links of one server. Overflow: new links are refused with `overloaded`.
pub const LINKS: usize = 10_000;
/// Head start of QUIC before TLS is started beside it (`--carrier auto`).
pub const CARRIER_HEAD_START: Duration = Duration::from_millis(300);
/// How often QUIC is tried while a link runs on TLS, before jitter.
pub const CARRIER_PROBE: Duration = Duration::from_secs(60);
/// First pause before reconnecting.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// Longest pause in the first [`BACKOFF_QUICK_FOR`] after a link was lost.
pub const BACKOFF_QUICK_CAP: Duration = Duration::from_secs(1);
/// See [`BACKOFF_QUICK_CAP`].
pub const BACKOFF_QUICK_FOR: Duration = Duration::from_secs(30);
/// Longest pause at all.
pub const BACKOFF_CAP: Duration = Duration::from_secs(15);
/// More instance changes of one agent than this in a minute raise an alarm.
pub const REPLACEMENTS_PER_MINUTE: usize = 3;

// ---- quic ----------------------------------------------------------------------------------

/// Idle limit of a QUIC connection: the session's [`PEER_SILENT`] speaks first and says why.
pub const QUIC_IDLE: Duration = Duration::from_secs(12);
/// How often an agent sends on an otherwise silent QUIC link, so that a restarted server's
/// stateless reset reaches it within about this time.
pub const QUIC_KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Largest UDP payload that is tried unless `jumbo` is asked for: Ethernet and IPv6.
pub const QUIC_PAYLOAD: u16 = 1452;
/// Largest UDP payload at all. Ten segments of it still fit one offloaded send of 64 KiB; more
/// makes the kernel refuse the batch and the connection hang.
pub const QUIC_PAYLOAD_JUMBO: u16 = 6500;
/// Segments that quinn puts into one offloaded send.
pub const QUIC_SEGMENTS: u32 = 10;
/// Bytes of one link that are sent and not yet acknowledged. Overflow: senders wait.
pub const QUIC_SEND_WINDOW: u64 = 16 * 1024 * 1024;
/// A dial that moved no byte for this long is no company for others of its link.
pub const COMPANY: Duration = Duration::from_secs(2);
/// Bytes in flight on a link beyond twice what its path carries: they keep both ends busy, and every
/// other dial waits behind them (0.3 ms on loopback; with a whole stream window it was 8). Half of
/// it cost a quarter of the throughput, four times of it doubled the wait. Overflow: senders wait.
pub const QUIC_QUEUE: u64 = 128 * 1024;
/// The same while one dial is alone on its link: nobody waits behind it.
pub const QUIC_QUEUE_ALONE: u64 = 1024 * 1024;
/// Streams whose windows the connection window covers beyond those that are open now.
pub const QUIC_SPARE_STREAMS: u32 = 32;
/// First packets that wait for the accept loop. Overflow: ignored without an answer.
pub const QUIC_INCOMING: usize = 512;
/// Bytes that one waiting first packet may bring along, and all of them together.
pub const QUIC_INCOMING_BYTES: u64 = 16 * 1024;
/// See [`QUIC_INCOMING_BYTES`].
pub const QUIC_INCOMING_BYTES_TOTAL: u64 = 2 * 1024 * 1024;
/// Part of [`HANDSHAKES`] in flight from which a peer has to prove its address (Retry).
pub const QUIC_RETRY_FROM_PART: usize = 4;
/// Streams of one link that may be reset while somebody waited for the reader's stop: quinn
/// keeps about 100 bytes for each until the link ends. Overflow: a stop is then noticed at the
/// next write instead of at once.
pub const QUIC_STOP_WATCHES: u32 = 64 * 1024;
/// Servers whose working carrier is remembered. Overflow: the memory is emptied.
pub const REMEMBERED_SERVERS: usize = 256;

// ---- doors ---------------------------------------------------------------------------------

/// Head of a CONNECT request. Overflow: 431 and close.
pub const CONNECT_HEAD_BYTES: usize = 16 * 1024;
/// Headers of a CONNECT request. Overflow: 431 and close.
pub const CONNECT_HEADERS: usize = 64;
/// From accept to a whole request head. Overflow: 408 and close (slow-loris).
pub const CONNECT_HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Front ends at once that are told why they may not come in. Overflow: closed without a word.
pub const TURNED_AWAY: usize = 64;
/// From accept to a whole request head of such a front end; then it is told anyway.
pub const TURNED_AWAY_TIMEOUT: Duration = Duration::from_secs(1);
/// Door connections at once. Overflow: the accept loop waits.
pub const DOOR_CONNECTIONS: usize = 16_384;
/// Reason phrase of a status line, bytes: the only text that kube-apiserver shows.
pub const REASON_PHRASE_BYTES: usize = 200;

// ---- process -------------------------------------------------------------------------------

/// Time for live dials to end after the first signal.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest `--drain-timeout`.
pub const DRAIN_TIMEOUT_MAX: Duration = Duration::from_secs(3600);
/// After the forced end, time for tasks to let go before the process leaves without them.
pub const DRAIN_FORCED: Duration = Duration::from_secs(5);
/// Quiet time after a file event before the files are looked at: writers need several steps.
pub const FILE_DEBOUNCE: Duration = Duration::from_millis(200);
/// A set of files that did not load is tried again after this time although nothing changed
/// (a certificate may become valid, a descriptor may be free again).
pub const RELOAD_RETRY: Duration = Duration::from_secs(30);
/// Reload requests that wait for the running reload. Overflow: the request is refused.
pub const RELOAD_REQUESTS: usize = 16;
/// How often it is looked at how long certificates still last, for the log.
pub const EXPIRY_LOOK: Duration = Duration::from_secs(60);
/// Listen queue of doors, carriers and health listeners; the kernel caps it at `somaxconn`.
/// Overflow: the kernel drops the SYN and the peer tries again.
pub const LISTEN_BACKLOG: u32 = 1024;
/// First pause of an accept loop after an error such as EMFILE; doubles up to the cap.
pub const ACCEPT_PAUSE_FIRST: Duration = Duration::from_millis(10);
/// See [`ACCEPT_PAUSE_FIRST`].
pub const ACCEPT_PAUSE_CAP: Duration = Duration::from_secs(1);
/// Health and admin connections at once, per listener. Overflow: they wait in the listen queue.
pub const ADMIN_CONNECTIONS: usize = 64;
/// Of these, over TCP those of one address (of IPv6: one /64), so that nobody keeps probes out and
/// has us restarted. Overflow: closed at once.
pub const ADMIN_PER_ADDRESS: usize = 16;
/// Head of a health or admin request, bytes. Overflow: 431 and close.
pub const ADMIN_HEAD_BYTES: usize = 8 * 1024;
/// Headers of a health or admin request. Overflow: 431 and close.
pub const ADMIN_HEADERS: usize = 64;
/// Answer of a daemon that a command reads: every kubelet of ten thousand nodes, several times over.
/// Overflow: the command fails.
pub const ADMIN_ANSWER_BYTES: u64 = 64 * 1024 * 1024;
/// From accept to a whole health or admin request head. Overflow: close.
pub const ADMIN_HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// One health or admin connection, from accept to the last byte. Overflow: close.
pub const ADMIN_CONNECTION: Duration = Duration::from_secs(20);
/// At the end of the daemon, time for health and admin answers that are being written.
/// Overflow: they are cut.
pub const ADMIN_STOP: Duration = Duration::from_secs(1);
/// How long the data runtime may take to run an empty task before `/livez` says no.
pub const LIVE_PROBE: Duration = Duration::from_secs(3);
/// Series of one metric whose labels come from elsewhere. Overflow: further ones are counted as
/// one, `other`.
pub const METRIC_SERIES: usize = 128;
/// Named conditions of readiness. Overflow: an error in the log, the condition is not listed.
pub const READY_CONDITIONS: usize = 64;
/// Text of one condition, bytes: a sentence, and a cause with a path of ordinary length. Overflow:
/// cut.
pub const READY_TEXT_BYTES: usize = 512;
/// One log line, bytes. Overflow: cut, and marked so.
pub const LOG_LINE_BYTES: usize = 8 * 1024;
/// Log lines that wait for a slow stderr. Overflow: the new line is dropped and counted.
pub const LOG_QUEUE: usize = 1024;
/// Time for waiting log lines to be written when the process ends. Overflow: they are lost.
pub const LOG_FLUSH: Duration = Duration::from_secs(1);
/// Keys of one rate limit for log lines. Overflow: further keys share one allowance.
pub const LOG_KEYS: usize = 1024;
/// Threads for blocking work (files, name resolution). Overflow: the work waits.
pub const BLOCKING_THREADS: usize = 16;
/// Longest `--...-timeout` text and the like, bytes. Overflow: refused.
pub const FLAG_VALUE_BYTES: usize = 64;
/// How often watched files are looked at when no file event comes.
pub const FILE_LOOK: Duration = Duration::from_secs(2);
/// A PEM, deny-list, grants or policy file. Overflow: the file is refused.
pub const FILE_BYTES: u64 = 4 * 1024 * 1024;
/// UDP socket buffer that is asked for.
pub const UDP_BUFFER: usize = 8 * 1024 * 1024;
/// Granted UDP buffer below which QUIC is slower than TLS: one warning, `auto` prefers TLS.
pub const UDP_BUFFER_LOW: usize = 1024 * 1024;

// ---- tls carrier ---------------------------------------------------------------------------

/// Frames taken from the multiplexer at a time, bytes: one vectored write, one hold of the lock.
pub const MUX_BATCH: usize = 64 * 1024;
/// Bytes moved each way before a connection's driver lets other tasks run.
pub const TLS_TURN: usize = 128 * 1024;
/// One read from a busy link's socket, bytes: four full TLS records.
pub const TLS_READ: usize = 4 * (16 * 1024 + 22);
/// Encrypted bytes that wait for the socket. Overflow: the driver takes no more frames.
pub const TLS_QUEUE: usize = 128 * 1024;
/// Unsent bytes in the kernel beyond which the socket is not writable, so that frames of higher
/// priority do not stand behind megabytes.
pub const TCP_UNSENT: u32 = 128 * 1024;
/// Bytes sent and not acknowledged for this long end the TCP connection. Behind
/// [`PEER_SILENT`], which ends the link.
pub const TCP_UNACKNOWLEDGED: Duration = Duration::from_secs(15);
/// TCP keep-alive: silence before the first probe, and between probes.
pub const TCP_KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(5));
/// After the close was said, how long its delivery is waited for.
pub const CLOSE_LINGER: Duration = Duration::from_secs(1);
/// Pause between attempts at the addresses of one server name.
pub const ADDRESS_STAGGER: Duration = Duration::from_millis(250);
/// Addresses of one server name that are tried. Overflow: the rest is left out.
pub const SERVER_ADDRESSES: usize = 16;
/// Head of an HTTP proxy's answer, bytes. Overflow: the attempt fails.
pub const PROXY_HEAD_BYTES: usize = 16 * 1024;
/// Headers of an HTTP proxy's answer. Overflow: the attempt fails.
pub const PROXY_HEADERS: usize = 64;
/// A proxy URL, and the list of hosts that go without it, bytes. Overflow: refused.
pub const PROXY_TEXT_BYTES: usize = 16 * 1024;

// ---- agent ---------------------------------------------------------------------------------

/// Addresses of one target name that are judged and tried. Overflow: the rest is never reached.
pub const RESOLVED_ADDRESSES: usize = 16;
/// Look-ups of target names at once; each holds a thread, also when nobody waits for it any more.
/// Overflow: the dial waits.
pub const LOOKUPS: usize = 32;
/// One look-up, its wait included: shorter than a dial, so that the cause is told.
pub const LOOKUP_TIMEOUT: Duration = Duration::from_secs(4);
/// `--server` flags of one agent. Overflow: the configuration is refused.
pub const SERVERS: usize = 16;
/// Old links of one server that still carry dials. Overflow: the oldest is closed.
pub const RETIRED_LINKS: usize = 8;
/// Silence on a quic link after which a second connection is tried beside it. Twice the
/// keep-alive, so that an answer that is only late does not count.
pub const LINK_SUSPECT: Duration = Duration::from_millis(1_900);
/// Between two attempts at one server while the first of them hangs: a server that comes back is
/// met within this time though an attempt from before still waits.
pub const ATTEMPT_SPACING: Duration = Duration::from_millis(750);
/// Attempts at one server at once. Overflow: the next one waits.
pub const ATTEMPTS: usize = 8;
/// A link that lived this long starts its next outage with the shortest pause again.
pub const LINK_STABLE: Duration = Duration::from_secs(10);

// ---- server --------------------------------------------------------------------------------

/// Rules about dials in a policy file. Overflow: the file is refused, the old one stays.
pub const POLICY_RULES: usize = 10_000;
/// Items of one list of a rule. Overflow: the file is refused, the old one stays.
pub const POLICY_ITEMS: usize = 1_024;
/// Name of a rule, bytes: it stands in refusals and audit records. Overflow: refused.
pub const POLICY_NAME_BYTES: usize = 64;
/// Values, lists and mappings of one YAML file. Overflow: the file is refused.
pub const YAML_NODES: usize = 500_000;
/// Lists and mappings inside each other in a YAML file. Overflow: the file is refused.
pub const YAML_DEPTH: usize = 16;
/// Machines of one cluster file. Overflow: the file is refused.
pub const CLUSTER_MACHINES: usize = 5_000;
/// Addresses, and names, of one machine of a cluster file. Overflow: the file is refused.
pub const CLUSTER_NAMES: usize = 32;
/// Machines whose files are written at once: waits for the disk overlap. Overflow: they queue.
pub const CLUSTER_WRITERS: usize = 16;
/// Documents of one file of manifests. Overflow: the file is refused.
pub const YAML_DOCUMENTS: usize = 1024;
/// Files that one look at a directory takes in. Overflow: refused; name fewer.
pub const SURVEY_FILES: usize = 20_000;
/// Folders inside each other that a look at a directory enters. Overflow: refused.
pub const SURVEY_DEPTH: usize = 16;
/// What is told of one fault in a file, characters. Overflow: cut.
pub const FAULT_CHARS: usize = 400;
/// Entries of a grants file. Overflow: the file is refused, the old one stays.
pub const GRANT_ENTRIES: usize = 16_384;
/// Agents without a link whose end is remembered, so that a dial is told since when and why.
/// Overflow: the one that has been gone longest is forgotten.
pub const REMEMBERED_AGENTS: usize = 16_384;
/// How often the data path of a link is probed, before jitter of a fifth either way.
pub const PROBE_EVERY: Duration = Duration::from_secs(10);
/// One probe. Overflow: the link counts as unhealthy until a probe passes.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Silence of an agent's heartbeats after which other links are preferred: one heartbeat late.
pub const LINK_DOUBTED: Duration = Duration::from_millis(4_500);
/// After the answer to CONNECT, how long the front end's first byte is waited for, which nearly
/// every front end sends at once. Overflow: it is looked whether it has read the answer, and bytes
/// of a target that speaks first wait for that.
pub const ANSWER_ALONE: Duration = Duration::from_millis(5);
/// How often certificates of front ends with live connections are checked again.
pub const DOOR_CHECK: Duration = Duration::from_secs(30);
/// Bytes of a refused front end that are read and dropped so that it can read the answer.
pub const REFUSED_BYTES: usize = 64 * 1024;

// ---- konnectivity --------------------------------------------------------------------------

/// One message of a gRPC stream, bytes: what grpc-go takes unless told otherwise. Overflow: the
/// stream ends with `RESOURCE_EXHAUSTED`.
pub const GRPC_MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// DATA towards a front end, packet and its headers together: whole HTTP/2 frames of 16 KiB, so
/// that no short one follows. Larger ones gained nothing.
pub const GRPC_DATA_BYTES: usize = 4 * 16 * 1024;
/// Silence after which a gRPC front end is asked whether it is there, unless a flag says otherwise.
pub const GRPC_KEEP_ALIVE: Duration = Duration::from_secs(3600);
/// The shortest such silence; a shorter one is taken for this.
pub const GRPC_KEEP_ALIVE_LEAST: Duration = Duration::from_secs(1);
/// Streams at once on one connection of a front end. Overflow: refused by HTTP/2.
pub const GRPC_STREAMS: u32 = 1024;
/// Bytes of one stream of a front end that may wait for its target. Overflow: the front end waits.
pub const GRPC_WINDOW: u32 = 512 * 1024;
/// Bytes of one stream that may wait to be written to its front end. Overflow: its dial waits.
pub const GRPC_SEND_BUFFER: usize = 4 * GRPC_DATA_BYTES;
/// Streams that a front end has reset and we have not looked at. Overflow: connection closed.
pub const GRPC_RESETS: usize = 1024;
/// Packets of one stream that mean nothing. Overflow: the stream ends.
pub const GRPC_SENSELESS: u32 = 64;
/// How long a target's first bytes wait for a sign that the front end knows the connection. Longer
/// than a busy machine leaves a thread waiting; at 5 ms one of a thousand clients was not ready.
pub const GRPC_FIRST_HOLD: Duration = Duration::from_millis(25);
/// After what was a refusal of those bytes or a close: silence for so long makes it a close; the
/// second when there was more than one.
pub const GRPC_DOUBT: (Duration, Duration) =
    (Duration::from_millis(20), Duration::from_millis(500));
/// First bytes of a target that are sent and kept until the front end has them.
pub const GRPC_FIRST_BYTES: usize = 16 * 1024;
/// How often they are sent to a front end that refuses them. With the pauses between, nearly two
/// seconds; the bytes need not wait for its window, so this bounds them, too. Overflow: it has
/// closed.
pub const GRPC_FIRST_ROUNDS: u32 = 24;
/// A front end that says nothing about them for so long has taken them.
pub const GRPC_FIRST_ANSWER: Duration = Duration::from_secs(2);
/// Pause before what a front end dropped is sent again, first and longest.
pub const GRPC_REPEAT: (Duration, Duration) =
    (Duration::from_millis(1), Duration::from_millis(100));
/// How long the end of a silent target is repeated for a front end that does not leave.
pub const GRPC_END: Duration = Duration::from_secs(10);
/// A text in a packet (an address, an error), bytes. Overflow: cut.
pub const KONNECTIVITY_TEXT_BYTES: usize = 1024;
/// An agent's identifiers, bytes and how many. Overflow: the agent is refused.
pub const KONNECTIVITY_IDENTIFIERS_BYTES: usize = 8 * 1024;
/// See [`KONNECTIVITY_IDENTIFIERS_BYTES`].
pub const KONNECTIVITY_IDENTIFIERS: usize = 256;
/// An agent's or a server's id, bytes. Overflow: the agent is refused.
pub const KONNECTIVITY_ID_BYTES: usize = 253;
/// gRPC headers of one call, bytes. Overflow: the call is refused.
pub const GRPC_HEADER_BYTES: u32 = 32 * 1024;
/// Calls at once on one connection of a legacy agent, which needs one. Overflow: refused.
pub const LEGACY_CALLS: u32 = 8;
/// Bytes of one legacy agent that may wait for us in HTTP/2.
pub const LEGACY_WINDOW: u32 = 2 * 1024 * 1024;
/// What small frames of one legacy peer that wait for us may cost, as HTTP/2's library counts it:
/// 256 bytes each, less their own. A whole window of the smallest packets: who is held back for
/// one dial goes on with the others, and that must not end them all. Overflow: its connection ends.
pub const LEGACY_FRAMES: usize = LEGACY_WINDOW as usize / 14 * 256;
/// From an agent's call to our answer: its token is reviewed in this time. Overflow: refused.
pub const LEGACY_ADMIT: Duration = Duration::from_secs(15);
/// Bytes of one dial through a legacy agent that wait for a slow front end before the agent is
/// held back for it. The protocol has no flow control for one connection.
pub const LEGACY_QUEUE: u64 = 4 * 1024 * 1024;
/// Bytes of one legacy connection that wait to be sent before its reader waits: two reads.
pub const LEGACY_SEND_QUEUE: usize = 2 * READ_CHUNK;
/// How long a target that speaks first is not heard after DIAL_RSP, unless the front end speaks:
/// the reference client loses what comes before it has filed the connection.
pub const LEGACY_FIRST_WORD: Duration = Duration::from_millis(10);
/// From our call to a legacy server's answer, which may have to review a token. Overflow: the
/// attempt fails.
pub const LEGACY_ANSWER: Duration = Duration::from_secs(20);
/// How long a link to a server that spoke `towline/1` is missing before it is looked whether the
/// server speaks the legacy protocol again, where that is allowed.
pub const LEGACY_LOOK: Duration = Duration::from_secs(10);
/// How long a legacy agent is held back at a time for a dial that moves. A dial that does not
/// move holds nobody back: it spills into the memory budget.
pub const LEGACY_PAUSE: Duration = Duration::from_millis(200);
/// Bytes taken from a legacy agent between two such pauses.
pub const LEGACY_TURN: u64 = 1024 * 1024;
/// Packets other than DATA that wait for a legacy agent. Overflow: its stream ends.
pub const LEGACY_CONTROL: usize = 16 * 1024;
/// Connections of one legacy agent whose close it has not confirmed. Overflow: its stream ends.
pub const LEGACY_CLOSING: usize = 4096;
/// A front end has ended its direction, which this protocol cannot pass on: after so much silence
/// of the target the connection is closed.
pub const LEGACY_LINGER: Duration = Duration::from_secs(5);
/// How long a legacy agent may take to confirm a close. Overflow: the dial ends without it.
pub const LEGACY_CLOSE: Duration = Duration::from_secs(10);
/// Shortest time between two HTTP/2 pings of ours, whatever `--keepalive-time` says: it is the
/// shortest that Konnectivity's server takes; for the third ping that comes sooner it closes the
/// connection (`too_many_pings`).
pub const GRPC_PING_LEAST: Duration = Duration::from_secs(30);
/// How long the Lease of a server counts without being renewed, seconds.
pub const LEASE_SECONDS: i32 = 30;
/// How often it is renewed, and those of servers that are gone are looked for.
pub const LEASE_RENEW: Duration = Duration::from_secs(15);
/// At the end, for deleting it. Overflow: it ends by itself.
pub const LEASE_RELEASE: Duration = Duration::from_secs(3);
/// How long an unanswered HTTP/2 ping lasts. Overflow: the connection is closed.
pub const GRPC_PING_TIMEOUT: Duration = Duration::from_secs(20);

// ---- kubelets ------------------------------------------------------------------------------

/// How far the clock of whoever signed a kubelet's certificate may be from ours, each way. Less
/// than the five minutes by which Kubernetes dates its certificates back.
pub const KUBELET_CLOCK_SKEW: Duration = Duration::from_secs(60);
/// Certificate revocation lists of `--kubelet-crl` together. Overflow: refused, the old ones stay.
pub const KUBELET_CRLS: usize = 64;
/// How long an attestation counts; after it a dial waits for the next.
pub const ATTESTATION_LIFE: Duration = Duration::from_secs(60);
/// Age from which an attestation that is in use is renewed beside the dials.
pub const ATTESTATION_RENEW: Duration = Duration::from_secs(40);
/// A kubelet that was not dialled for this long is not in use: its attestation is not renewed
/// before its end, and then only every [`ATTESTATION_IDLE`].
pub const ATTESTATION_IN_USE: Duration = Duration::from_secs(60);
/// How often a kubelet that nobody dials is looked at, for lists and metrics.
pub const ATTESTATION_IDLE: Duration = Duration::from_secs(600);
/// How often a kubelet that failed is looked at beside the dials, so that a repair shows.
pub const ATTESTATION_FAILED: Duration = Duration::from_secs(30);
/// How long a failed attestation counts: a repaired kubelet is reached after this time, and one
/// that fails costs one handshake in it.
pub const ATTESTATION_RETRY: Duration = Duration::from_secs(5);
/// The same when nothing was found wrong with a certificate: the kubelet did not answer.
pub const ATTESTATION_RETRY_UNANSWERED: Duration = Duration::from_secs(1);
/// Kubelets that a connection of the gateway found to be others and that wait to be looked at
/// again. Overflow: the next such connection says it again.
pub const ATTESTATION_DOUBTS: usize = 64;
/// A kubelet that was looked at this short a time ago is not looked at again for such a doubt, so
/// that one who makes connections fail costs one handshake in it.
pub const ATTESTATION_DOUBT_PAUSE: Duration = Duration::from_secs(1);
/// Handshakes with kubelets at once. Overflow: the attestation waits.
pub const ATTESTATIONS_AT_ONCE: usize = 64;
/// Of these, those that no dial waits for. The rest is left to dials, so that kubelets that do not
/// answer hold up the list and not the work. Overflow: they wait.
pub const ATTESTATIONS_BESIDE: usize = 48;
/// One attestation, its wait for a place not included: shorter than a dial, so that the cause is
/// told, and longer than the agent's own limit for connecting, so that it is the true one.
pub const ATTESTATION_TIMEOUT: Duration = Duration::from_secs(6);
/// Over this time the first attestations of agents that link are spread.
pub const ATTESTATION_SPREAD: Duration = Duration::from_secs(2);
/// Bytes that a kubelet may send in the handshake of an attestation: a chain as large as is looked
/// at, twice. Overflow: the attestation fails.
pub const ATTESTATION_BYTES: usize = 2 * CHAIN_CERTIFICATES * CERTIFICATE_BYTES;
/// Hosts of one node that are attested. Overflow: the one not asked for longest goes.
pub const ATTESTATIONS_PER_NODE: usize = 8;

// ---- audit ---------------------------------------------------------------------------------

/// Records that wait for the writer of the audit trail. Overflow: as `--audit-failure` says, new
/// dials are refused or their records are dropped and counted. The end of a dial whose start was
/// taken is always taken: there are no more of them than live dials.
pub const AUDIT_QUEUE: usize = 8192;
/// Of these, records of what was refused, or was no request at all: who is refused again and again
/// must not keep the dials of others out. Overflow: dropped and counted.
pub const AUDIT_REFUSALS: usize = AUDIT_QUEUE / 2;
/// After a write, how long records are gathered for the next: at a thousand dials a second one wake
/// and one write in place of ten. What a killed process can lose.
pub const AUDIT_GATHER: Duration = Duration::from_millis(5);
/// Records in one write, so that a burst is one system call and a failure repeats little.
pub const AUDIT_BATCH: usize = 256;
/// One line of the trail, bytes. Every text in it is cut to a bound of its own, so that no record
/// reaches this; what is longer is no record.
pub const AUDIT_LINE_BYTES: usize = 16 * 1024;
/// One text of a record that comes from outside, bytes as written. Overflow: cut and marked.
pub const AUDIT_TEXT_BYTES: usize = 600;
/// The command of an exec in a record, bytes as written. Overflow: cut and marked.
pub const AUDIT_COMMAND_BYTES: usize = 1024;
/// Lines from one signed checkpoint to the next, the checkpoint included.
pub const AUDIT_CHECKPOINT_LINES: u64 = 1000;
/// Time from one signed checkpoint to the next, also when nothing happens: a trail that is silent
/// for longer is a trail that is not written.
pub const AUDIT_CHECKPOINT: Duration = Duration::from_secs(60);
/// Lines that were given to the kernel are on the disk within this time: what a loss of power can
/// take. A crash of the process takes none of them.
pub const AUDIT_SYNC: Duration = Duration::from_secs(1);
/// Between two attempts to write what could not be written.
pub const AUDIT_RETRY: Duration = Duration::from_millis(500);
/// A write that has not returned after this time counts as a failure while it goes on.
pub const AUDIT_STUCK: Duration = Duration::from_secs(5);
/// How often it is looked whether the file was moved away or cut short.
pub const AUDIT_LOOK: Duration = Duration::from_secs(1);
/// Time for waiting records to be written when the server stops. Overflow: they are lost, and the
/// log says how many.
pub const AUDIT_FLUSH: Duration = Duration::from_secs(5);
/// Size of the file at which it is put aside, unless `--audit-max-size` says otherwise, bytes.
pub const AUDIT_MAX_SIZE: u64 = 100 * 1024 * 1024;
/// Age of the file at which it is put aside, unless `--audit-max-age` says otherwise.
pub const AUDIT_MAX_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Files put aside that are kept unless `--audit-keep` says otherwise. Overflow: the oldest is
/// removed, and a record says so.
pub const AUDIT_KEEP: u32 = 50;
/// End of the file in which the last whole record is looked for at start, bytes. Overflow: the
/// file is no trail, the server does not start.
pub const AUDIT_TAIL_BYTES: u64 = 4 * 1024 * 1024;
/// Notes of one verification that are printed. Overflow: the rest is counted.
pub const AUDIT_NOTES: usize = 100;

// ---- kubelet gateway -----------------------------------------------------------------------

/// Head of a request to a kubelet or of its answer: a long command stands in the request line.
/// Overflow: 431 and close.
pub const GATEWAY_HEAD_BYTES: usize = 64 * 1024;
/// Headers of such a head. Overflow: 431 and close.
pub const GATEWAY_HEADERS: usize = 128;
/// From the first byte of a head to its last (slow-loris). Overflow: 408 and close.
pub const GATEWAY_HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Lines behind the last chunk of a body, bytes. Overflow: refused and close.
pub const GATEWAY_TRAILER_BYTES: usize = 4 * 1024;
/// Bytes of requests that wait until the answer to an earlier one is over. Overflow: no more is
/// read.
pub const GATEWAY_HELD_BYTES: usize = GATEWAY_HEAD_BYTES + READ_CHUNK;
/// A namespace, pod, container or uid in a path: Kubernetes allows 253. Overflow: the path is
/// ambiguous, the record is cut.
pub const GATEWAY_NAME_BYTES: usize = 253;
/// Path of a request that is kept for the record, bytes. Overflow: cut.
pub const GATEWAY_PATH_BYTES: usize = 512;
/// Words of a command that are kept for the record, bytes. Overflow: cut and marked.
pub const GATEWAY_COMMAND_BYTES: usize = 1024;
/// Kubelet rules of a policy file. Overflow: the file is refused.
pub const GATEWAY_RULES: usize = 1000;
/// Life of a serving certificate that the gateway mints.
pub const GATEWAY_CERTIFICATE_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Certificates of the gateway that are kept. Overflow: all are forgotten and minted again.
pub const GATEWAY_CERTIFICATES: usize = 16_384;
/// Both handshakes of a gateway connection together, beside the dial.
pub const GATEWAY_HANDSHAKES: Duration = Duration::from_secs(8);
/// Plain bytes that wait for one side of the gateway, each way. Overflow: the other side is not
/// read.
pub const GATEWAY_WAITING_BYTES: usize = 64 * 1024;
/// Requests of one gateway connection that are refused. Overflow: the connection ends with that
/// answer; kube-apiserver makes another one, and who asks without end has to shake hands again.
pub const GATEWAY_REFUSALS: u32 = 64;
