//! The door on a Unix socket: who may use it is decided by the socket's mode and, on every
//! connection, by the caller's user id as the kernel tells it.

use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::net::UnixStream;
use towline_link::process::accept::{AcceptMetrics, AcceptOptions, accept_loop};
use towline_link::process::drain::DrainWatch;
use towline_link::process::ratelimit::RateLimited;
use towline_link::process::unix::{AllowedUids, UnixSocket};

use super::alone;
use super::connect::{Desk, FrontEnd, Visit, serve};
use crate::caller::Caller;
use crate::dial::Door;

impl FrontEnd for UnixStream {
    fn is_gone(&self) -> bool {
        let mut fds = [PollFd::new(self, PollFlags::empty())];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // Hung up means that both directions are shut; a half-close shows as an end of file only.
        poll(&mut fds, Some(&now)).is_ok()
            && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    async fn readable(&self) {
        let _ = UnixStream::readable(self).await;
    }

    fn established(&self) -> &'static [u8] {
        &alone::ANSWER
    }

    async fn answer_read(&self) {
        alone::until_read(self).await;
    }
}

/// Serves the door until stopping begins and its connections have ended.
pub async fn run(
    socket: UnixSocket,
    allowed: AllowedUids,
    connections: usize,
    metrics: AcceptMetrics,
    desk: Arc<Desk>,
    drain: DrainWatch,
) {
    let options = AcceptOptions {
        name: "door-unix",
        connections,
        metrics,
    };
    let refused = Arc::new(RateLimited::new(1, Duration::from_secs(60)));
    let watch = drain.clone();
    accept_loop(socket, options, drain, move |stream, caller, slot| {
        let desk = Arc::clone(&desk);
        let verdict = allowed.check(caller);
        let refused = Arc::clone(&refused);
        let drain = watch.clone();
        async move {
            if let Err(error) = verdict {
                slot.refused("uid");
                desk.metrics().front_end_refused(Door::ConnectUnix, "uid");
                if let Some(suppressed) = refused.allow(caller.uid) {
                    tracing::warn!(%caller, %error, suppressed, "front end refused");
                }
                desk.turned_away().tell(stream, &error.to_string()).await;
                return;
            }
            let visit = Visit {
                door: Door::ConnectUnix,
                caller: Caller::Local(caller),
                drain,
                certified: None,
            };
            serve(stream, desk, visit).await;
            drop(slot);
        }
    })
    .await;
}
