//! A word for front ends that proved who they are and may not come in: a name or a user id that is
//! not on the list. Without it kube-apiserver would show its user an end of file.

use tokio::sync::Semaphore;
use towline_proto::limits;

use super::connect::{FrontEnd, tell};
use super::head::{self, First};
use super::status;

/// Room for those that are told; more are let go without a word.
pub(super) struct TurnedAway(Semaphore);

impl Default for TurnedAway {
    fn default() -> Self {
        Self(Semaphore::new(limits::TURNED_AWAY))
    }
}

impl TurnedAway {
    /// Reads the request, whatever it is, and answers why it is not served. HTTP/2 gets no words:
    /// there is no stream yet that could carry them.
    pub(super) async fn tell<S: FrontEnd>(&self, mut stream: S, why: &str) {
        let Ok(_place) = self.0.try_acquire() else {
            return;
        };
        let asked =
            tokio::time::timeout(limits::TURNED_AWAY_TIMEOUT, head::read(&mut stream)).await;
        if !matches!(asked, Ok(Ok(First::Http2(_)))) {
            tell(&mut stream, &status::not_on_the_list(why)).await;
        }
    }
}
