//! When the server is ready: it can take dials now.
//!
//! The condition `links` is unmet while no agent is linked and while the data path of no link passes
//! its probe. It names the worst link: one that fails while others pass is a note, because one
//! broken or hostile node must not take the control plane of all others out of its load balancer.
//! The condition `new-dials` is unmet from the first signal on, so that load balancers turn away
//! while live dials finish.

use std::sync::Arc;
use std::time::Duration;

use towline_link::driver::LinkState;
use towline_link::process::drain::DrainView;
use towline_link::process::ready::Condition;
use towline_proto::id::Name;
use towline_proto::limits;
use towline_proto::notes::Notes;

use crate::agents::{AgentLink, Agents, Probe};
use crate::audit::Audit;
use crate::legacy::LegacyAgents;

/// A look without a change, for what has no event.
const LOOK: Duration = Duration::from_secs(2);
/// Between two looks, so that ten thousand agents that come at once are not judged each time.
const PAUSE: Duration = Duration::from_millis(50);

/// Keeps both conditions until the task is dropped.
pub async fn keep(
    agents: Arc<Agents>,
    legacy: Option<LegacyAgents>,
    drain: DrainView,
    links: Condition,
    new_dials: Condition,
) {
    let mut changes = agents.changes();
    new_dials.met();
    loop {
        let judged = judge(&agents.links());
        // Nothing more is known of a legacy agent than that it is there.
        let legacy = legacy.as_ref().is_some_and(LegacyAgents::is_ready);
        match judged {
            Err(_) if legacy && agents.links().is_empty() => links.met(),
            Err(why) => links.unmet(why),
            Ok(failing) => {
                let notes: Vec<String> = failing.into_iter().chain(reports(&agents)).collect();
                match notes.is_empty() {
                    true => links.met(),
                    false => links.note(notes.join("; ")),
                }
            }
        }
        tokio::select! {
            _ = drain.signalled() => break,
            changed = changes.changed() => if changed.is_err() { break },
            () = tokio::time::sleep(LOOK) => {}
        }
        tokio::time::sleep(PAUSE).await;
        changes.mark_unchanged();
    }
    new_dials.stopping("the server is stopping");
    std::future::pending::<()>().await;
}

/// Keeps the condition that dials can be recorded, where those that cannot are refused.
pub async fn keep_audit(audit: Audit, condition: Condition) {
    loop {
        condition.set(audit.state());
        tokio::time::sleep(limits::AUDIT_RETRY).await;
    }
}

/// What linked agents say of themselves: for operators, not for load balancers.
fn reports(agents: &Agents) -> Option<String> {
    let mut said: Vec<(Name, Notes)> = agents
        .nodes()
        .iter()
        .map(|node| (node.name().clone(), node.notes()))
        .filter(|(_, notes)| notes.words().next().is_some())
        .collect();
    said.sort_by(|(one, _), (other, _)| one.cmp(other));
    let (first, notes) = said.first()?;
    let words: Vec<_> = notes.words().collect();
    Some(format!(
        "{} agents report something about themselves ({first}: {}); see status",
        said.len(),
        words.join(", ")
    ))
}

fn judge(all: &[Arc<AgentLink>]) -> Result<Option<String>, String> {
    let ready = |entry: &&Arc<AgentLink>| matches!(entry.link.state(), LinkState::Ready);
    let links: Vec<(&str, Probe)> = all
        .iter()
        .filter(ready)
        .map(|entry| (entry.peer().identity().name.as_str(), entry.probe()))
        .collect();
    judge_probes(&links)
}

/// Whether a dial can be taken at all; where it can, which link is the worst if one is bad.
fn judge_probes(links: &[(&str, Probe)]) -> Result<Option<String>, String> {
    if links.is_empty() {
        return Err("no agent is linked".to_owned());
    }
    let failed = || links.iter().filter(|(_, probe)| *probe == Probe::Failed);
    let failing = failed().map(|(name, _)| *name).min().map(|first| {
        format!(
            "the data path of {} of {} links fails its probe (agent {first})",
            failed().count(),
            links.len()
        )
    });
    if links.iter().any(|(_, probe)| *probe == Probe::Passed) {
        Ok(failing)
    } else {
        Err(failing.unwrap_or_else(|| "no link has passed its data-path probe yet".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_link_that_passes_is_ready_and_the_worst_is_named() {
        use Probe::{Failed, None, Passed};
        assert!(judge_probes(&[]).unwrap_err().contains("no agent"));
        assert!(judge_probes(&[("a", None)]).unwrap_err().contains("yet"));
        assert_eq!(
            judge_probes(&[("a", None), ("b", Passed)]),
            Ok(Option::None)
        );
        // An agent that heartbeats and answers no probe is its own node's trouble.
        let note = judge_probes(&[("c", Failed), ("a", Passed), ("b", Failed)]);
        let note = note.unwrap().unwrap();
        assert!(
            note.contains("2 of 3 links") && note.contains("agent b"),
            "{note}"
        );
        for others in [None, Failed] {
            let error = judge_probes(&[("a", Failed), ("b", others)]).unwrap_err();
            assert!(error.contains("agent a"), "{error}");
        }
    }
}
