//! The form of a scenario: an async body that runs once on each carrier, with a limit on its
//! time so that a hang is a failure with a name.

use std::future::Future;
use std::time::Duration;

/// How long one scenario may take unless it says otherwise. Far above what any needs, because a
/// loaded machine is slow.
pub const SCENARIO_LIMIT: Duration = Duration::from_secs(120);
/// How long one awaited event may take.
pub const EVENT_LIMIT: Duration = Duration::from_secs(20);

/// Runs one scenario under [`SCENARIO_LIMIT`].
pub async fn run(name: &str, body: impl Future<Output = ()>) {
    if tokio::time::timeout(SCENARIO_LIMIT, body).await.is_err() {
        panic!("scenario {name} did not end within {SCENARIO_LIMIT:?}");
    }
}

/// The output of `event`, or a failure that says what did not happen.
#[track_caller]
pub fn expect<'a, T>(
    what: &'a str,
    event: impl Future<Output = T> + 'a,
) -> impl Future<Output = T> + 'a {
    let at = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(EVENT_LIMIT, event).await {
            Ok(output) => output,
            Err(_) => panic!("{at}: {what} did not happen within {EVENT_LIMIT:?}"),
        }
    }
}

/// How many times longer than promised a noisy machine may take before a test says no. What is
/// promised is measured by the bench.
pub const NOISE: u32 = 4;

/// Looks until `look` gives something. For states that have no event, such as a metric; the
/// pause between two looks is no synchronisation, only politeness.
#[track_caller]
pub fn eventually<'a, T, F>(
    what: &'a str,
    mut look: impl FnMut() -> F + 'a,
) -> impl Future<Output = T> + 'a
where
    F: Future<Output = Option<T>>,
    T: 'a,
{
    expect(what, async move {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
}

/// Declares scenarios; each runs as `quic::<name>` and as `tls::<name>`.
///
/// ```text
/// scenarios! {
///     async fn bytes_arrive_once_and_in_order(carrier) { ... }
/// }
/// ```
#[macro_export]
macro_rules! scenarios {
    ($( $(#[$meta:meta])* async fn $name:ident($carrier:ident) $body:block )*) => {
        mod body {
            #[allow(unused_imports)]
            use super::*;
            $( pub(super) async fn $name($carrier: ::towline_link::carrier::CarrierKind) $body )*
        }
        mod quic {
            $( $(#[$meta])*
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let body = Box::pin(super::body::$name(::towline_link::carrier::CarrierKind::Quic));
                $crate::scenario::run(stringify!($name), body).await;
            } )*
        }
        mod tls {
            $( $(#[$meta])*
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let body = Box::pin(super::body::$name(::towline_link::carrier::CarrierKind::Tls));
                $crate::scenario::run(stringify!($name), body).await;
            } )*
        }
    };
}
