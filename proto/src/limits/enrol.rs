//! Bounds of enrolment.

use std::time::Duration;

use super::{CERTIFICATE_BYTES, KUBE_TOKEN_BYTES};

/// An enrolment request, payload bytes: a signing request, a token, a name. Overflow: refused.
pub const ENROL_REQUEST_BYTES: usize = CERTIFICATE_BYTES + KUBE_TOKEN_BYTES + 1024;
/// An enrolment answer, payload bytes. Overflow: the agent takes it for no answer.
pub const ENROL_REPLY_BYTES: usize = 60 * 1024;
/// Text in a refusal, bytes. Overflow: cut by the server, a protocol error at the agent.
pub const ENROL_TEXT_BYTES: usize = 256;
/// Enrolments that the server works on at once: handshake, review, signature. Overflow: the
/// connection waits, without any TLS state.
pub const ENROL_PLACES: usize = 128;
/// Of those, for one address: a quarter is always left for others. Overflow: waits.
pub const ENROL_PLACES_PER_ADDRESS: usize = ENROL_PLACES / 4 * 3;
/// Connections that wait for such a place. Overflow: refused at once, the agent tries again.
pub const ENROL_WAITING: usize = 8192;
/// Of those, for one address, as with the places: a cluster behind one NAT may come at once.
/// Overflow: refused at once.
pub const ENROL_WAITING_PER_ADDRESS: usize = ENROL_WAITING / 4 * 3;
/// The first message of a TLS connection that wants to enrol, bytes: it is kept while it waits, and
/// a usual one has less than two thousand. Overflow: closed.
pub const ENROL_HELLO_BYTES: u64 = 8 * 1024;
/// Certificates that one name is given in [`ENROL_NAME_IN`]: renewals of the shortest life are fewer.
/// Overflow: refused as busy.
pub const ENROL_NAME: u32 = 20;
/// See [`ENROL_NAME`].
pub const ENROL_NAME_IN: Duration = Duration::from_secs(600);
/// How long a connection waits for its place. Overflow: closed, the agent tries again.
pub const ENROL_WAIT: Duration = Duration::from_secs(60);
/// From the place to the whole request: handshake and bytes. Overflow: closed; who is slow holds a
/// place for no longer than this.
pub const ENROL_READ: Duration = Duration::from_secs(5);
/// From the request to the answer, and for writing it. Above `KUBE_REQUEST` twice.
pub const ENROL_ANSWER: Duration = Duration::from_secs(30);
/// The agent's time for one attempt at one server: its waiting, its work, and some.
pub const ENROL_ATTEMPT: Duration = Duration::from_secs(110);
/// Reviews of tokens and reads of Pods and Nodes at once. Overflow: they wait in their places.
pub const ENROL_REVIEWS: usize = 32;
/// How long a request waits for the watch of Nodes to show the addresses that the Node itself already
/// names; a fraction of a second is usual. Overflow: refused as unavailable, the agent tries again.
pub const ENROL_NODE_SEEN: Duration = Duration::from_secs(3);
/// Refused proofs of one address in a minute; more are closed before their handshake until the
/// minute is over.
pub const ENROL_REFUSALS: u32 = 120;
/// See [`ENROL_REFUSALS`].
pub const ENROL_REFUSALS_IN: Duration = Duration::from_secs(60);
/// Addresses whose refusals are counted. Overflow: counting begins anew.
pub const ENROL_ADDRESSES: usize = 16_384;
/// Tokens that are remembered with the key they were used for. Overflow: the oldest is forgotten.
pub const ENROL_TOKENS: usize = 32_768;
/// How long. Longer than a projected token lives unless somebody asked for more.
pub const ENROL_TOKEN_MEMORY: Duration = Duration::from_secs(24 * 3600);
/// An agent whose last link ended shorter ago is taken for alive when somebody asks for a certificate
/// of its name by a token, unless it said goodbye: links break, and come back within seconds.
pub const ENROL_ALIVE: Duration = Duration::from_secs(15);
/// Life of a certificate from enrolment, unless a flag says otherwise.
pub const ENROL_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Shortest and longest life that the flag takes.
pub const ENROL_LIFE_RANGE: (Duration, Duration) =
    (Duration::from_secs(60), Duration::from_secs(30 * 24 * 3600));
/// Certificates of one name that are remembered until they end. Overflow: that which ends first is
/// forgotten.
pub const ENROL_HOLDINGS: usize = 16;
/// Names in the ledger of one server. Overflow: a new name is refused until others end.
pub const ENROL_NAMES: usize = 65_536;
/// Lines that are written to the ledger together, with one wait for the disk.
pub const ENROL_LEDGER_BATCH: usize = 256;
/// How long after its end a certificate stays in the ledger of a server: for clocks that are wrong,
/// and for people who look for it. Then its line goes.
pub const ENROL_LEDGER_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// Lines in the ledger of a server: thirty for each name. Overflow: nothing is issued until some ended.
pub const ENROL_LEDGER_LINES: u64 = 30 * ENROL_NAMES as u64;
/// New lines after which those that nobody needs any more are looked for, at least; and as many as
/// were left the last time.
pub const ENROL_LEDGER_NEW: u64 = 4096;
/// Join tokens in one file. Overflow: the file is refused.
pub const JOIN_TOKENS: usize = 16_384;
/// A join token as text, bytes. Overflow: refused.
pub const JOIN_TOKEN_BYTES: usize = 1024;
/// Authorities that a join token names. Overflow: refused.
pub const JOIN_AUTHORITIES: usize = 4;
/// Longest life of a join token.
pub const JOIN_LIFE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long after its use a join token still gives its own key the same answer again: servers may be
/// out of reach for a while after one of them has spent it. Overflow: refused as used.
pub const JOIN_AGAIN: Duration = Duration::from_secs(3600);
/// A signer name of certificates.k8s.io, bytes: the API server's own bound. Overflow: refused.
pub const SIGNER_NAME_BYTES: usize = 571;
/// How long an agent waits for what becomes of its signing request. Overflow: the attempt failed;
/// the next one goes on waiting for the same request.
pub const CSR_WAIT: Duration = Duration::from_secs(600);
/// First and longest pause before a signing request is looked at again when no watch tells.
pub const CSR_LOOK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Certificates that were signed for a signing request and could not be written into it yet.
/// Overflow: forgotten, and signed anew.
pub const CSR_UNWRITTEN: usize = 1024;
/// Longest pause after a denied signing request: each attempt leaves an object in the API, which
/// removes it after an hour.
pub const CSR_DENIED: Duration = Duration::from_secs(300);
/// First and longest pause between two attempts of an agent to enrol.
pub const ENROL_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
