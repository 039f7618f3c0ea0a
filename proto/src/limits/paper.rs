//! Bounds of what `towline-pki` writes for others to read.

/// The entries of one Secret or ConfigMap together, bytes: what Kubernetes stores of a Secret.
/// Overflow: nothing is written.
pub const OBJECT_BYTES: usize = 1024 * 1024;
