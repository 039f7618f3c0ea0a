//! How many legacy servers there should be a stream to.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use towline_link::kube::count::LeaseCount;

use super::servers::LegacyServers;

/// `--server-count-source`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CountSource {
    /// Leases where they are counted, else what servers say.
    #[default]
    Default,
    /// The larger of both.
    Max,
}

/// A word that names no source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--server-count-source must be one of '', 'default', 'max', got {0:?}")]
pub struct UnknownSource(String);

impl FromStr for CountSource {
    type Err = UnknownSource;
    fn from_str(text: &str) -> Result<Self, UnknownSource> {
        match text {
            "" | "default" => Ok(CountSource::Default),
            "max" => Ok(CountSource::Max),
            other => Err(UnknownSource(other.chars().take(32).collect())),
        }
    }
}

impl fmt::Display for CountSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CountSource::Default => "default",
            CountSource::Max => "max",
        })
    }
}

/// Where the number comes from.
pub struct Wanted {
    servers: LegacyServers,
    leases: Option<LeaseCount>,
    source: CountSource,
    /// The last number of valid Leases; the one that counts while they are not known.
    last: AtomicUsize,
}

impl Wanted {
    /// `leases` where they are counted.
    pub fn new(servers: LegacyServers, leases: Option<LeaseCount>, source: CountSource) -> Self {
        Self {
            servers,
            leases,
            source,
            last: AtomicUsize::new(1),
        }
    }

    /// The number at this moment, at least 1.
    pub fn count(&self, now: SystemTime) -> usize {
        let told = self.servers.told();
        let Some(leases) = &self.leases else {
            return told;
        };
        let valid = leases.valid(now).map(|valid| valid.max(1));
        if let Some(valid) = valid {
            self.last.store(valid, Ordering::Relaxed);
        }
        let leases = self.last.load(Ordering::Relaxed);
        match self.source {
            CountSource::Default => leases,
            CountSource::Max => leases.max(told),
        }
    }
}
