//! The end of the links to one server when the agent stops.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use towline_link::process::drain::{DrainView, Stage};
use towline_proto::reason::Reason;

use crate::links::Slot;

/// How long a server may take to close a drained link that has no dials.
const PATIENCE: Duration = Duration::from_secs(1);

/// Drains every link and waits for all. The server closes a link that has no dials left; where
/// it does not, we do.
pub(crate) async fn farewell(slot: &Slot, stage: &DrainView, links: &mut JoinSet<Reason>) {
    let deadline = match stage.stage() {
        Stage::Draining { deadline } => deadline.saturating_duration_since(Instant::now()),
        _ => Duration::ZERO,
    };
    for link in slot.all() {
        link.drain(Reason::Shutdown, deadline);
    }
    let mut patience = tokio::time::interval_at(Instant::now() + PATIENCE, PATIENCE);
    loop {
        tokio::select! {
            biased;
            () = stage.forced() => break,
            ended = links.join_next() => if ended.is_none() { return },
            _ = patience.tick() => {
                for link in slot.all().iter().filter(|link| link.dials() == 0) {
                    link.close(Reason::Shutdown);
                }
            }
        }
    }
    for link in slot.all() {
        link.close(Reason::Shutdown);
    }
    while links.join_next().await.is_some() {}
}
