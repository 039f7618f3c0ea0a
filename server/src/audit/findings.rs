//! The words of a proof: where, what kind of fault, what it is made with, what was found.

use std::fmt;

use towline_pki::SealPublic;
use towline_proto::limits;

use super::chain::Head;

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file's name.
    pub file: String,
    /// From 1.
    pub line: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// What kind of fault ends the proof; each has an exit code of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A line was changed, or is no record.
    Changed,
    /// Lines are missing, repeated, moved or of another trail.
    Order,
    /// A signature does not fit, or is by an unknown key.
    Signature,
    /// The head that was expected is not there.
    Head,
    /// Nothing is signed.
    Unsigned,
}

impl Kind {
    /// Of `towline-server audit verify`.
    pub const fn exit_code(self) -> u8 {
        match self {
            Kind::Changed => 4,
            Kind::Order => 5,
            Kind::Signature => 6,
            Kind::Head => 7,
            Kind::Unsigned => 8,
        }
    }

    /// The word in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Changed => "changed",
            Kind::Order => "order",
            Kind::Signature => "signature",
            Kind::Head => "head",
            Kind::Unsigned => "unsigned",
        }
    }
}

/// The first thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{text}", .at.as_ref().map(|at| format!("{at}: ")).unwrap_or_default())]
pub struct Fault {
    /// What kind.
    pub kind: Kind,
    /// Where.
    pub at: Option<Place>,
    /// What.
    pub text: String,
}

/// What the proof is made with.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Keys whose signatures count. Without one, signatures are not looked at.
    pub keys: Vec<SealPublic>,
    /// A head that was seen before, in the log or at an earlier proof.
    pub head: Option<Head>,
}

/// What was found, as far as it went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Name of the trail.
    pub trail: Option<String>,
    /// Whole lines that are records.
    pub records: u64,
    /// Number of the first one.
    pub first: u64,
    /// The last one.
    pub head: Option<Head>,
    /// Checkpoints.
    pub checkpoints: u64,
    /// The last line that a checkpoint covers, and the checkpoint's time and place.
    pub proven: Option<(u64, String, Place)>,
    /// Processes that wrote.
    pub runs: u64,
    /// Records that could not be written, as the trail itself says.
    pub dropped: u64,
    /// Dials that were refused because they could not be recorded.
    pub dials_refused: u64,
    /// Things to know: torn lines, gaps, files cut short.
    pub notes: Vec<String>,
    /// Notes beyond the bound.
    pub more_notes: u64,
    /// Whether the expected head was met.
    pub head_met: bool,
}

impl Findings {
    pub(super) fn note(&mut self, text: String) {
        if self.notes.len() < limits::AUDIT_NOTES {
            self.notes.push(text);
        } else {
            self.more_notes += 1;
        }
    }
}
