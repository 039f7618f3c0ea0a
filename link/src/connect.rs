//! Which carrier a link gets: both are tried, one with a head start, and the first verified
//! connection wins. What worked for a server is tried first the next time.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Mutex, PoisonError};

use towline_proto::limits;
use towline_proto::reason::Reason;

use crate::carrier::CarrierKind;
use crate::error::ConnectError;
use crate::quic::UdpBuffers;

/// The carrier that won the race.
#[derive(Debug)]
pub struct Won<C> {
    /// The verified connection.
    pub carrier: C,
    /// Which of the two.
    pub kind: CarrierKind,
    /// Why the other one failed before, if it did.
    pub other: Option<ConnectError>,
}

/// Neither carrier made a link.
#[derive(Debug, thiserror::Error)]
#[error("no carrier works. quic: {quic}; tls: {tls}")]
pub struct BothFailed {
    /// What became of QUIC.
    pub quic: ConnectError,
    /// What became of TLS.
    pub tls: ConnectError,
}

impl BothFailed {
    /// The more telling of the two reasons: that nothing answered is the least.
    pub fn reason(&self) -> Reason {
        match self.tls.reason() {
            Reason::Unreachable => self.quic.reason(),
            telling => telling,
        }
    }
}

/// Runs both attempts; the one that is not `first` starts [`limits::CARRIER_HEAD_START`] later,
/// or as soon as the first has failed. The loser is dropped, which closes what it began.
pub async fn connect_auto<C>(
    first: CarrierKind,
    quic: impl Future<Output = Result<C, ConnectError>>,
    tls: impl Future<Output = Result<C, ConnectError>>,
) -> Result<Won<C>, BothFailed> {
    match first {
        CarrierKind::Quic => match race(quic, tls).await {
            Ok((carrier, true, other)) => Ok(Won {
                carrier,
                kind: CarrierKind::Quic,
                other,
            }),
            Ok((carrier, false, other)) => Ok(Won {
                carrier,
                kind: CarrierKind::Tls,
                other,
            }),
            Err((quic, tls)) => Err(BothFailed { quic, tls }),
        },
        CarrierKind::Tls => match race(tls, quic).await {
            Ok((carrier, true, other)) => Ok(Won {
                carrier,
                kind: CarrierKind::Tls,
                other,
            }),
            Ok((carrier, false, other)) => Ok(Won {
                carrier,
                kind: CarrierKind::Quic,
                other,
            }),
            Err((tls, quic)) => Err(BothFailed { quic, tls }),
        },
    }
}

/// `true` when the leader won, with the loser's error if it had one by then.
async fn race<C, E>(
    leader: impl Future<Output = Result<C, E>>,
    follower: impl Future<Output = Result<C, E>>,
) -> Result<(C, bool, Option<E>), (E, E)> {
    tokio::pin!(leader, follower);
    if let Ok(result) = tokio::time::timeout(limits::CARRIER_HEAD_START, &mut leader).await {
        return match result {
            Ok(carrier) => Ok((carrier, true, None)),
            Err(error) => second(error, follower, false).await,
        };
    }
    tokio::select! {
        biased;
        result = &mut leader => match result {
            Ok(carrier) => Ok((carrier, true, None)),
            Err(error) => second(error, follower, false).await,
        },
        result = &mut follower => match result {
            Ok(carrier) => Ok((carrier, false, None)),
            Err(error) => second(error, leader, true).await.map_err(|(follower, leader)| (leader, follower)),
        },
    }
}

async fn second<C, E>(
    first: E,
    last: impl Future<Output = Result<C, E>>,
    leader: bool,
) -> Result<(C, bool, Option<E>), (E, E)> {
    match last.await {
        Ok(carrier) => Ok((carrier, leader, Some(first))),
        Err(error) => Err((first, error)),
    }
}

/// Which carrier worked last, for each server.
#[derive(Debug, Default)]
pub struct CarrierMemory(Mutex<HashMap<String, CarrierKind>>);

impl CarrierMemory {
    /// Remembers that `server` was reached.
    pub fn worked(&self, server: &str, kind: CarrierKind) {
        let mut servers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if servers.len() >= limits::REMEMBERED_SERVERS && !servers.contains_key(server) {
            servers.clear();
        }
        servers.insert(server.to_owned(), kind);
    }

    /// What to try first: what worked last; else QUIC, unless its socket has so little buffer
    /// that TLS is faster.
    pub fn first(&self, server: &str, buffers: Option<UdpBuffers>) -> CarrierKind {
        if buffers.is_some_and(|buffers| buffers.low()) {
            return CarrierKind::Tls;
        }
        let servers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        servers.get(server).copied().unwrap_or(CarrierKind::Quic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;
    use tokio::time::{Instant, sleep};

    /// Counts attempts that were dropped before they ended.
    #[derive(Clone, Default)]
    struct Dropped(Arc<AtomicU32>);

    struct Guard(Dropped, bool);

    impl Drop for Guard {
        fn drop(&mut self) {
            if !self.1 {
                self.0.0.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    impl Dropped {
        fn count(&self) -> u32 {
            self.0.load(Ordering::SeqCst)
        }

        async fn attempt(
            &self,
            after: u64,
            result: Result<&'static str, Reason>,
        ) -> Result<&'static str, ConnectError> {
            let mut guard = Guard(self.clone(), false);
            sleep(Duration::from_millis(after)).await;
            guard.1 = true;
            result.map_err(|reason| ConnectError::Handshake {
                server: "server".into(),
                reason,
                detail: String::new(),
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn quic_wins_alone_when_it_answers() {
        let dropped = Dropped::default();
        let begin = Instant::now();
        let won = connect_auto(CarrierKind::Quic, dropped.attempt(40, Ok("quic")), async {
            panic!("tls was started")
        })
        .await
        .unwrap();
        assert_eq!((won.carrier, won.kind), ("quic", CarrierKind::Quic));
        assert_eq!(begin.elapsed(), Duration::from_millis(40));
    }

    #[tokio::test(start_paused = true)]
    async fn tls_wins_when_udp_is_blocked_and_quic_is_closed() {
        let dropped = Dropped::default();
        let begin = Instant::now();
        let won = connect_auto(
            CarrierKind::Quic,
            dropped.attempt(5_000, Err(Reason::Unreachable)),
            dropped.attempt(20, Ok("tls")),
        )
        .await
        .unwrap();
        assert_eq!((won.carrier, won.kind), ("tls", CarrierKind::Tls));
        assert!(won.other.is_none());
        assert_eq!(
            begin.elapsed(),
            limits::CARRIER_HEAD_START + Duration::from_millis(20)
        );
        assert_eq!(dropped.count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_quic_still_wins_over_a_slower_tls() {
        let dropped = Dropped::default();
        let won = connect_auto(
            CarrierKind::Quic,
            dropped.attempt(400, Ok("quic")),
            dropped.attempt(200, Ok("tls")),
        )
        .await
        .unwrap();
        assert_eq!(won.kind, CarrierKind::Quic);
        assert_eq!(dropped.count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_second_starts_at_once_when_the_first_fails() {
        let dropped = Dropped::default();
        let begin = Instant::now();
        let won = connect_auto(
            CarrierKind::Tls,
            dropped.attempt(30, Ok("quic")),
            dropped.attempt(10, Err(Reason::Overloaded)),
        )
        .await
        .unwrap();
        assert_eq!(won.kind, CarrierKind::Quic);
        assert_eq!(won.other.unwrap().reason(), Reason::Overloaded);
        assert_eq!(begin.elapsed(), Duration::from_millis(40));
    }

    #[tokio::test(start_paused = true)]
    async fn the_leader_is_waited_for_when_the_follower_fails() {
        let dropped = Dropped::default();
        let won = connect_auto(
            CarrierKind::Quic,
            dropped.attempt(4_000, Ok("quic")),
            dropped.attempt(10, Err(Reason::Unreachable)),
        )
        .await
        .unwrap();
        assert_eq!(won.kind, CarrierKind::Quic);
        assert!(won.other.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn both_errors_are_told_and_the_telling_reason_counts() {
        for (quic, tls, expected) in [
            (
                Reason::Unreachable,
                Reason::Unreachable,
                Reason::Unreachable,
            ),
            (
                Reason::BadCertificate,
                Reason::Unreachable,
                Reason::BadCertificate,
            ),
            (Reason::Unreachable, Reason::Denied, Reason::Denied),
        ] {
            for first in [CarrierKind::Quic, CarrierKind::Tls] {
                for (slow, fast) in [(1_000, 10), (10, 1_000)] {
                    let dropped = Dropped::default();
                    let failed = connect_auto(
                        first,
                        dropped.attempt(slow, Err(quic)),
                        dropped.attempt(fast, Err(tls)),
                    )
                    .await
                    .unwrap_err();
                    assert_eq!((failed.quic.reason(), failed.tls.reason()), (quic, tls));
                    assert_eq!(failed.reason(), expected);
                }
            }
        }
    }

    #[test]
    fn what_worked_is_tried_first_unless_udp_is_short_of_buffers() {
        let memory = CarrierMemory::default();
        let fine = UdpBuffers {
            asked: 8 << 20,
            granted_recv: 8 << 20,
            granted_send: 8 << 20,
        };
        let low = UdpBuffers {
            granted_recv: 212_992,
            ..fine
        };
        assert_eq!(memory.first("a", Some(fine)), CarrierKind::Quic);
        assert_eq!(memory.first("a", Some(low)), CarrierKind::Tls);
        memory.worked("a", CarrierKind::Tls);
        assert_eq!(memory.first("a", Some(fine)), CarrierKind::Tls);
        assert_eq!(memory.first("b", None), CarrierKind::Quic);
        memory.worked("a", CarrierKind::Quic);
        assert_eq!(memory.first("a", Some(fine)), CarrierKind::Quic);
    }

    #[test]
    fn the_memory_is_bounded() {
        let memory = CarrierMemory::default();
        for server in 0..3 * limits::REMEMBERED_SERVERS {
            memory.worked(&server.to_string(), CarrierKind::Tls);
        }
        assert!(memory.0.lock().unwrap().len() <= limits::REMEMBERED_SERVERS);
    }
}
