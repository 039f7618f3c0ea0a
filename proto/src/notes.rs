//! What an end knows of itself and its peer should know: a set of bits in each heartbeat.
//!
//! Bits that this build does not know are kept out of sight: a newer peer may have more to say.

/// The set. Empty: nothing to say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Notes(u32);

impl Notes {
    /// Nothing to say.
    pub const NONE: Notes = Notes(0);
    /// As many dials as it may have: new ones are refused.
    pub const BUSY: Notes = Notes(1);
    /// Something that it has loaded ends soon, or has ended: a tenth of its life is left.
    pub const CERTIFICATE_ENDS: Notes = Notes(1 << 1);
    /// Certificate files changed and cannot be used; older ones are in force.
    pub const FILES_STALE: Notes = Notes(1 << 2);
    /// The policy file changed and cannot be used; an older one is in force.
    pub const POLICY_STALE: Notes = Notes(1 << 3);
    /// It is stopping.
    pub const STOPPING: Notes = Notes(1 << 4);

    /// Every note that is known, with its word for status and metrics.
    pub const WORDS: [(Notes, &'static str); 5] = [
        (Notes::BUSY, "busy"),
        (Notes::CERTIFICATE_ENDS, "certificate-ends"),
        (Notes::FILES_STALE, "files-stale"),
        (Notes::POLICY_STALE, "policy-stale"),
        (Notes::STOPPING, "stopping"),
    ];

    /// As it travels.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// As it came.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// Whether all of `other` are in it.
    pub const fn has(self, other: Notes) -> bool {
        self.0 & other.0 == other.0
    }

    /// With these too, if `when`.
    #[must_use]
    pub const fn with(self, other: Notes, when: bool) -> Self {
        match when {
            true => Self(self.0 | other.0),
            false => self,
        }
    }

    /// The words of those that are known.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        let known = Self::WORDS.into_iter();
        known.filter_map(move |(note, word)| self.has(note).then_some(word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_note_has_a_bit_and_a_word_and_unknown_ones_are_not_told() {
        let all = Notes::WORDS.into_iter();
        let all = all.fold(Notes::NONE, |set, (note, _)| {
            assert!(!set.has(note));
            set.with(note, true)
        });
        assert_eq!(all.words().count(), Notes::WORDS.len());
        assert_eq!(Notes::from_bits(1 << 31).words().count(), 0);
        assert_eq!(Notes::NONE.with(Notes::BUSY, false), Notes::NONE);
    }
}
