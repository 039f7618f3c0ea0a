//! Whether kubelets are who they must be: the server does a TLS handshake with each of them,
//! through the agent of its node, and remembers what it saw.
//!
//! Reading order: [`Mode`] (what a verdict is good for), [`Attestation`] and `memory` (what is
//! remembered of one node), `ask` (one handshake), [`Attestor`] (asked before every dial of class
//! kubelet), `keeper` (what goes on beside the dials), [`report`] (what operators are told).
//! The rules themselves are in `towline_pki::kubelet`.

mod ask;
mod attestor;
pub mod command;
mod keeper;
mod memory;
mod metrics;
mod ready;
pub mod report;
pub mod table;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use towline_pki::kubelet::{KubeletFiles, KubeletTrust};

pub use attestor::{Attestor, Refusal};
pub use memory::{Attestation, Attestations};
pub use metrics::AttestMetrics;

/// `--kubelet-verification`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// A kubelet that is not verified is not dialled.
    #[default]
    Enforce,
    /// The same checks; nothing is refused, everything is counted.
    Observe,
    /// No checks.
    Off,
}

impl Mode {
    /// The word of the flag, of metrics and of status.
    pub const fn as_str(self) -> &'static str {
        match self {
            Mode::Enforce => "enforce",
            Mode::Observe => "observe",
            Mode::Off => "off",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that names no mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown mode {0:?}: use enforce, observe or off")]
pub struct UnknownMode(String);

impl FromStr for Mode {
    type Err = UnknownMode;
    fn from_str(text: &str) -> Result<Self, UnknownMode> {
        match text {
            "enforce" => Ok(Mode::Enforce),
            "observe" => Ok(Mode::Observe),
            "off" => Ok(Mode::Off),
            other => Err(UnknownMode(other.chars().take(32).collect())),
        }
    }
}

/// What the operator says about kubelets.
#[derive(Clone, Debug, Default)]
pub struct KubeletConfig {
    /// What a verdict is good for.
    pub mode: Mode,
    /// Whom kubelets' certificates must chain to: which files, and what was in them. There in
    /// every mode but `off`.
    pub trust: Option<(KubeletFiles, Arc<KubeletTrust>)>,
}
