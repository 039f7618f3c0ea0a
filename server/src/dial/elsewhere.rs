//! What no verified agent may be asked for: perhaps a legacy one, behind the same gates.
//!
//! A legacy agent proves no node. So it never carries a kubelet that has to be verified, and no
//! rule about nodes opens anything through it.

use bytes::Bytes;
use towline_proto::reason::Reason;
use towline_proto::target::Class;

use super::{Asked, Detail, DialError, Dialer, OnLink, Opened, Through};
use crate::audit::Draft;
use crate::policy::{Permit, Policy};

impl Dialer {
    /// A legacy agent's pipe, or why there is none; `error` says why no verified agent is asked.
    pub(super) async fn elsewhere(
        &self,
        policy: &Policy,
        permit: Permit,
        asked: Asked<'_>,
        turn: usize,
        error: Box<DialError>,
        draft: &mut Draft,
    ) -> Result<Opened, Box<DialError>> {
        let Some(legacy) = &self.legacy else {
            return Err(error);
        };
        // Whoever proved that a target is its own keeps it, and what policy refuses stays refused.
        let refused = matches!(error.detail, Detail::Denial(_));
        if (error.agent.is_some() && !legacy.downgrade) || refused {
            return Err(error);
        }
        let fail = |reason, agent, detail, said| {
            Box::new(DialError {
                reason,
                target: permit.target().clone(),
                class: Some(permit.class()),
                agent,
                detail,
                said,
            })
        };
        let kubelet = permit.class() == Class::Kubelet
            || permit.target().port() == self.prefixes.kubelet_port;
        if kubelet && self.verified_only() {
            let detail = Detail::KubeletBehindLegacy;
            return Err(fail(Reason::KubeletUnverified, None, detail, None));
        }
        // Which node a legacy agent is on is its own word.
        let asking = policy.check_legacy(permit.target(), permit.class(), &asked.ask.caller);
        let permit = match &asking {
            Ok(permit) => permit,
            Err(denial) => {
                let detail = Detail::Denial(denial.clone());
                return Err(fail(denial.reason(), None, detail, None));
            }
        };
        match legacy.dial(permit.target(), turn, asked.deadline).await {
            None => Err(error),
            Some(Ok(dial)) => {
                let id = dial.through.id();
                draft.legacy(id);
                let live = self.live.register();
                let judged = self.judged(permit, asked.ask, None, &live);
                Ok(Opened {
                    class: permit.class(),
                    agent: Through::Legacy(id.into()),
                    stream: dial.stream,
                    early: Bytes::new(),
                    on_link: OnLink::Legacy(dial.place),
                    live,
                    judged,
                    rule: permit.rule().clone(),
                    kubelet: None,
                })
            }
            Some(Err((through, failure))) => {
                draft.legacy(through.id());
                let agent = Some(Through::Legacy(through.id().into()));
                Err(fail(failure.reason, agent, Detail::None, failure.said))
            }
        }
    }
}
