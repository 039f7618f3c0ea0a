//! Bounds of what `towline-pki` writes for others to read.

/// The entries of one Secret or ConfigMap together, bytes: what Kubernetes stores of a Secret.
/// Overflow: nothing is written.
pub const OBJECT_BYTES: usize = 1024 * 1024;
/// Rounds of SHA-256 behind the check sum of a PKCS#12 file; its key has those of
/// [`KEY_ROUNDS`](super::KEY_ROUNDS). Not from outside, so nothing overflows.
pub const PKCS12_ROUNDS: u32 = 100_000;
/// Records of a server that are read after our goodbye, in `verify HOST:PORT`: session tickets,
/// greetings, the end. Overflow: whether it takes our certificate is not known.
pub const PROBE_READS: usize = 64;
