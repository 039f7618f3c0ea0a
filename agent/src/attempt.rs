//! One attempt to get a link: reach the server, greet it. Who attempts when is `reconnect`'s.

use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use towline_link::driver::{self, Link};
use towline_proto::control::{Hello, Welcome};
use towline_proto::id::InstanceId;
use towline_proto::limits;
use towline_proto::reason::Reason;
use towline_proto::target::Target;
use towline_proto::version::{Capabilities, VERSION_MAX, VERSION_MIN};

use crate::metrics::Metrics;
use crate::reach::{Reach, ReachError};
use crate::serve::Serve;
use crate::trust::{Snapshot, Trust};

/// What all keepers of a process have in common.
pub struct Keeping {
    /// How servers are reached.
    pub reach: Arc<Reach>,
    /// What we prove ourselves with.
    pub trust: Arc<Trust>,
    /// Who serves the dials.
    pub serve: Arc<Serve>,
    /// What is counted.
    pub metrics: Metrics,
    /// This process.
    pub instance: InstanceId,
    /// How long dials of a replaced link may go on.
    pub drain_timeout: Duration,
    /// How often quic is tried while a link runs on tls, before jitter.
    pub carrier_probe: Duration,
}

/// A number that no other process has, from the randomness that the standard library seeds its
/// hash tables with.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Our number for this process.
pub fn instance() -> InstanceId {
    loop {
        if let Some(instance) = InstanceId::new(random()) {
            return instance;
        }
    }
}

/// Anything from nothing to `most`.
pub(crate) fn jitter(most: Duration) -> Duration {
    most.mul_f64(random() as f64 / u64::MAX as f64)
}

/// Why an attempt is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// There is no link that takes dials.
    Link,
    /// Back from tls to quic.
    Probe,
    /// The link is silent.
    Suspect,
    /// Our identity changed, or the server's issuer is trusted no more.
    Replace,
    /// Our certificate was renewed, and the link's is about to end.
    Succeed,
}

/// Why an attempt gave no link.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttemptError {
    #[error(transparent)]
    Reach(#[from] ReachError),
    #[error("the server ended the greeting: {0}{hint}", hint = hint(*.0))]
    Greet(Reason),
}

/// What to do about a refused greeting.
fn hint(reason: Reason) -> &'static str {
    match reason {
        Reason::ExcessClaim => {
            " (a --kubelet-address is neither in our certificate nor granted by the server: issue a certificate \
             with it, or leave the flag out)"
        }
        Reason::Superseded => " (another process runs with the same certificate)",
        Reason::Overloaded => " (the server has as many links as it may have)",
        _ => "",
    }
}

impl AttemptError {
    /// What it means for the back-off and for metrics.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            AttemptError::Reach(error) => error.reason(),
            AttemptError::Greet(reason) => *reason,
        }
    }
}

type DriverRun = Pin<Box<dyn Future<Output = Reason> + Send>>;
/// A link, what the server said, what drives the link, and the files it was made with.
pub(crate) type Greeted = (Link, Welcome, DriverRun, Arc<Snapshot>);
/// An attempt under way. Dropping it closes what it began.
pub(crate) type Attempt = Pin<Box<dyn Future<Output = Result<Greeted, AttemptError>> + Send>>;

/// Begins one. Nothing happens before it is polled; the greeting waits for its turn.
pub(crate) fn begin(
    keeping: Arc<Keeping>,
    greeting: Arc<Mutex<()>>,
    server: Target,
    purpose: Purpose,
) -> Attempt {
    Box::pin(async move {
        let trust = keeping.trust.current();
        let carrier = match purpose {
            Purpose::Probe => keeping.reach.only_quic(&server, &trust).await?,
            _ => keeping.reach.any(&server, &trust).await?,
        };
        let _turn = greeting.lock().await;
        let hello = hello(&keeping, &trust);
        let (link, welcome, run) = driver::greet_agent(carrier, hello)
            .await
            .map_err(|error| AttemptError::Greet(error.reason))?;
        let run: DriverRun = Box::pin(run);
        Ok((link, welcome, run, trust))
    })
}

fn hello(keeping: &Keeping, trust: &Snapshot) -> Hello {
    let policy = keeping.serve.policy();
    let addresses = policy
        .rules()
        .kubelet_addresses
        .iter()
        .filter(|ip| !ip.is_loopback());
    Hello {
        versions: (VERSION_MIN, VERSION_MAX),
        capabilities: Capabilities::OURS,
        instance: keeping.instance,
        name: trust.identity().name.clone(),
        addresses: addresses.take(limits::LIST_ITEMS).copied().collect(),
        prefixes: Vec::new(),
        software: SOFTWARE.to_owned(),
    }
}

/// What we say that we run.
pub const SOFTWARE: &str = concat!("towline-agent/", env!("CARGO_PKG_VERSION"));
