//! The protocol's name on the wire, its version, and how two sets of capabilities meet.

/// ALPN of a link, on both carriers.
pub const ALPN_LINK: &[u8] = b"towline/1";
/// ALPN of enrolment, on TLS over TCP only.
pub const ALPN_ENROL: &[u8] = b"towline-enrol/1";

/// Versions of the control stream that this build speaks, lowest and highest.
pub const VERSION_MIN: u16 = 1;
/// See [`VERSION_MIN`].
pub const VERSION_MAX: u16 = 1;

/// The highest version that both ranges hold, or `None`.
pub fn negotiate(ours: (u16, u16), theirs: (u16, u16)) -> Option<u16> {
    let low = ours.0.max(theirs.0);
    let high = ours.1.min(theirs.1);
    (low <= high).then_some(high)
}

/// A set of optional abilities. Unknown bits of a peer are kept but never acted on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(u64);

impl Capabilities {
    /// Nothing optional.
    pub const NONE: Capabilities = Capabilities(0);
    /// The end answers data-path probes (dial streams of kind probe).
    pub const PROBE: Capabilities = Capabilities(1);

    /// What this build can do.
    pub const OURS: Capabilities = Capabilities::PROBE;

    /// From the wire.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// For the wire.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// What both ends can do.
    pub const fn meet(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether every bit of `wanted` is set.
    pub const fn has(self, wanted: Self) -> bool {
        self.0 & wanted.0 == wanted.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_meet_at_the_highest_both_speak() {
        assert_eq!(negotiate((1, 3), (2, 5)), Some(3));
        assert_eq!(negotiate((1, 1), (1, 1)), Some(1));
        assert_eq!(negotiate((1, 1), (2, 5)), None);
    }

    #[test]
    fn capabilities_meet_in_what_both_have() {
        let theirs = Capabilities::from_bits(0b110 | Capabilities::PROBE.bits());
        assert_eq!(Capabilities::OURS.meet(theirs), Capabilities::PROBE);
    }
}
