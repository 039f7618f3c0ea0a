//! A request from the watch to its end: read, judged, approved or denied, signed.
//!
//! Several servers may do this at once. Each write names the version that was read, so the second
//! to write is refused with a conflict, reads again, and finds the work done.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::JoinSet;
use tokio::time::Instant;
use towline_link::kube::KubeError;
use towline_link::kube::csr::{Decision, SigningRequest, SigningRequests, encoded};
use towline_link::kube::follow::Told as Followed;
use towline_proto::limits;

use super::office::{Office, Refusal, Verdict};
use super::queue::{Queue, Turn};
use super::told::{Outcome, Told};
use crate::nodes::Hears;

/// After this time an approved request that nobody signed is an alarm.
const UNSIGNED: Duration = Duration::from_secs(120);

/// What is to be done with a request after a look at it.
enum Next {
    /// Nothing.
    Done,
    /// Another look after some time, or when a node changes.
    Later(Option<String>),
    /// Another look at once: somebody was faster.
    Again,
}

/// See the head of this file.
pub struct Desk<O> {
    office: O,
    requests: SigningRequests,
    queue: Queue,
    told: Told,
}

impl<O: Office> Hears for Desk<O> {
    fn node_changed(&self, node: &str) {
        self.queue.node_changed(node);
    }

    fn all_changed(&self) {
        self.queue.all_changed();
    }
}

impl<O: Office> Desk<O> {
    /// Nothing is asked yet.
    pub fn new(office: O, requests: SigningRequests, told: Told) -> Arc<Self> {
        Arc::new(Self {
            office,
            requests,
            queue: Queue::default(),
            told,
        })
    }

    /// Works until the task is dropped.
    pub async fn run(self: Arc<Self>) {
        let mut workers = JoinSet::new();
        for _ in 0..limits::CSR_WORKERS {
            workers.spawn(Arc::clone(&self).work());
        }
        loop {
            tokio::select! {
                () = self.follow() => {}
                // What did not fit is in the next list.
                () = self.queue.room.notified() => {}
                Some(ended) = workers.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a worker on signing requests failed; another takes its place");
                    }
                    workers.spawn(Arc::clone(&self).work());
                }
            }
        }
    }

    async fn follow(&self) {
        let collection = self.requests.of(self.office.signer());
        collection
            .follow::<SigningRequest>(|told| match told {
                Followed::Begins => self.queue.begins(),
                Followed::Listed => self.queue.listed(),
                Followed::Page(items) => items.iter().for_each(|item| self.seen(item)),
                Followed::Is(item) => self.seen(&item),
                Followed::Was(item) => self.queue.forget(&item.metadata.name),
                Followed::Failed(error, _) => self.told.api("follow", error),
            })
            .await;
    }

    fn seen(&self, request: &SigningRequest) {
        // A selector that an API server does not know of would select everything.
        if request.spec.signer_name != self.office.signer() || self.is_done(request) {
            self.queue.forget(&request.metadata.name);
        } else {
            let (name, who) = (&request.metadata.name, self.office.owner(request));
            if !self.queue.look(name, who) {
                self.told.full(who);
            }
        }
        self.count();
    }

    fn count(&self) {
        let metrics = self.told.metrics();
        metrics.pending(self.office.word(), self.queue.len());
    }

    fn is_done(&self, request: &SigningRequest) -> bool {
        request.is(Decision::Denied)
            || request.is(Decision::Failed)
            || (!self.office.signs() && request.certificate().is_some())
    }

    async fn work(self: Arc<Self>) {
        loop {
            let turn = self.queue.take().await;
            match self.look(&turn).await {
                Ok(Next::Done) => self.queue.done(&turn),
                Ok(Next::Later(node)) => {
                    self.queue.later(&turn, limits::CSR_AGAIN, false, node);
                }
                Ok(Next::Again) => self.queue.later(&turn, Duration::ZERO, false, None),
                Err((_, error)) if error.is_not_found() => self.queue.done(&turn),
                // Somebody was faster. If that goes on, it is not at once any more.
                Err((_, error)) if error.is_conflict() => {
                    let pause = if turn.failures == 0 {
                        Duration::ZERO
                    } else {
                        pause(turn.failures)
                    };
                    self.queue.later(&turn, pause, true, None);
                }
                Err((call, error)) => {
                    self.told.api(call, &error);
                    self.queue.later(&turn, pause(turn.failures), true, None);
                }
            }
            self.count();
        }
    }

    async fn look(&self, turn: &Turn) -> Result<Next, (&'static str, KubeError)> {
        // Since it was first seen.
        let begun = Instant::now();
        let took = || turn.known + begun.elapsed();
        let read = self.requests.get(&turn.name).await;
        let request = read.map_err(|error| ("get", error))?;
        if request.spec.signer_name != self.office.signer() || self.is_done(&request) {
            return Ok(Next::Done);
        }
        if let Some(pem) = request.certificate() {
            if self.office.signs() && !self.office.is_ours(&pem) {
                let text = self.office.texts().foreign;
                self.told.alarm(&request, Outcome::Foreign, text);
            }
            return Ok(Next::Done);
        }
        if !self.told.may_act() {
            return Ok(Next::Later(None));
        }
        match (request.is(Decision::Approved), self.office.signs()) {
            (false, _) => self.decide(request, took).await,
            (true, true) => self.sign(request, took).await,
            (true, false) => {
                if turn.known >= UNSIGNED {
                    let text = self.office.texts().unsigned;
                    self.told.alarm(&request, Outcome::Unsigned, text);
                }
                Ok(Next::Later(None))
            }
        }
    }

    async fn decide(
        &self,
        mut request: SigningRequest,
        took: impl Fn() -> Duration,
    ) -> Result<Next, (&'static str, KubeError)> {
        match self.office.judge(&request).await {
            Verdict::Sound(sound) => {
                let subject = self.office.subject(&sound);
                let message = format!("{} {}", self.office.texts().approved, subject.node);
                request.decide(Decision::Approved, "TowlineApproved", &message);
                let written = self.requests.approval(&request).await;
                let written = written.map_err(|error| ("approve", error))?;
                self.told.approved(&written, &subject);
                Ok(Next::Again)
            }
            Verdict::Never(refusal) => {
                request.decide(Decision::Denied, refusal.word, &message(&refusal));
                let written = self.requests.approval(&request).await;
                let written = written.map_err(|error| ("deny", error))?;
                self.refused(&written, Outcome::Denied, &refusal, Some(took()));
                Ok(Next::Done)
            }
            Verdict::NotYet(refusal) => {
                self.refused(&request, Outcome::Waiting, &refusal, None);
                Ok(Next::Later(self.node_of(&request)))
            }
            Verdict::NotOurs(refusal) => {
                self.refused(&request, Outcome::NotOurs, &refusal, None);
                Ok(Next::Later(None))
            }
        }
    }

    /// It is approved, by us or by somebody else: what is signed has to be right all the same.
    async fn sign(
        &self,
        mut request: SigningRequest,
        took: impl Fn() -> Duration,
    ) -> Result<Next, (&'static str, KubeError)> {
        let failed = match self.office.judge(&request).await {
            Verdict::Sound(sound) => {
                match self.office.sign(&request, &sound, SystemTime::now()).await {
                    Ok(signed) => {
                        request.status.certificate = Some(encoded(signed.pem.as_bytes()));
                        let written = self.requests.status(&request).await;
                        let written = written.map_err(|error| ("sign", error))?;
                        let subject = self.office.subject(&sound);
                        self.told.signed(&written, &subject, &signed);
                        self.office.signed(&written, &sound, &signed, took());
                        return Ok(Next::Done);
                    }
                    // Our own authority is at fault: that can be mended.
                    Err(refusal) => {
                        self.refused(&request, Outcome::Waiting, &refusal, None);
                        return Ok(Next::Later(None));
                    }
                }
            }
            Verdict::NotYet(refusal) => {
                self.refused(&request, Outcome::Waiting, &refusal, None);
                return Ok(Next::Later(self.node_of(&request)));
            }
            Verdict::Never(refusal) | Verdict::NotOurs(refusal) => refusal,
        };
        request.decide(Decision::Failed, failed.word, &message(&failed));
        let written = self.requests.status(&request).await;
        let written = written.map_err(|error| ("fail", error))?;
        self.refused(&written, Outcome::Failed, &failed, Some(took()));
        Ok(Next::Done)
    }

    /// The node whose changes a request waits for.
    fn node_of(&self, request: &SigningRequest) -> Option<String> {
        let node = self.office.node(request)?;
        Some(node.chars().take(limits::HOST_BYTES).collect())
    }

    fn refused(
        &self,
        request: &SigningRequest,
        outcome: Outcome,
        refusal: &Refusal,
        took: Option<Duration>,
    ) {
        if self.told.refused(request, outcome, refusal) {
            self.office.refused(request, refusal, took);
        }
    }
}

fn message(refusal: &Refusal) -> String {
    format!("{}; {}", refusal.cause, refusal.fix)
}

fn pause(failures: u32) -> Duration {
    let (first, longest) = limits::CSR_RETRY;
    first.saturating_mul(1 << failures.min(10)).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_bound() {
        assert_eq!(pause(0), limits::CSR_RETRY.0);
        assert!(pause(3) > pause(2));
        assert_eq!(pause(u32::MAX), limits::CSR_RETRY.1);
    }
}
