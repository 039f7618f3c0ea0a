//! Who holds a name already, and what of that keeps the next one who asks from it.

use std::time::SystemTime;

use towline_pki::Serial;
use towline_pki::first_contact::key_hash;
use towline_pki::inspect::Certificate;
use towline_pki::role::BACKDATE;
use towline_proto::enrol::Refusal;
use towline_proto::id::Name;
use towline_proto::limits;

use super::{Desk, No};
use crate::trust::Snapshot;

impl Desk {
    /// What the name holds already leaves room for one more, of this key.
    pub(super) fn check_held(
        &self,
        name: &Name,
        key: &[u8; 32],
        trust: &Snapshot,
        now: SystemTime,
    ) -> Result<(), No> {
        if !self.names.has_room(name, now) {
            let text = "the server holds as many names as it may";
            return Err(No::new(Refusal::Busy, text));
        }
        self.names.check_pace(name)?;
        self.check_key(name, key, trust, now)
    }

    /// Whose certificate was revoked gets none for the same key, by whatever proof.
    fn check_key(
        &self,
        name: &Name,
        key: &[u8; 32],
        trust: &Snapshot,
        now: SystemTime,
    ) -> Result<(), No> {
        let held = self.names.holdings(name, now);
        let mut of_key = held.iter().filter(|one| one.key.as_ref() == Some(key));
        match of_key.find(|one| trust.agents.has_revoked(&one.serial)) {
            None => Ok(()),
            Some(one) => {
                let text = format!(
                    "the certificate of this very key (serial {}) is revoked: the node needs a new key",
                    one.serial
                );
                Err(No::new(Refusal::Denied, text))
            }
        }
    }

    /// A join token makes no second holder of a name. The one who holds it already may be the one
    /// who asks, when its answer was lost; and one that was revoked holds nothing. Who was linked
    /// here holds the name too, whoever issued the certificate.
    pub(super) fn check_untaken(
        &self,
        name: &Name,
        key: &[u8; 32],
        trust: &Snapshot,
        now: SystemTime,
    ) -> Result<(), No> {
        let held = self.names.holdings(name, now);
        let others = held.iter().filter(|one| one.key.as_ref() != Some(key));
        let issued = others
            .map(|one| &one.serial)
            .find(|serial| !trust.agents.has_revoked(serial));
        let shown = self.nodes.agents.shown_by(name);
        let shown = shown.filter(|peer| trust.agents.verify(peer.chain(), now).is_ok());
        let shown = shown.as_ref().map(|peer| &peer.leaf().serial);
        let Some(serial) = issued.or(shown) else {
            return Ok(());
        };
        let text = format!(
            "{name} holds a valid certificate (serial {serial}): revoke that one first, or wait for its end"
        );
        Err(No::new(Refusal::NameTaken, text))
    }

    /// A token of a node's pod makes no second holder of the name beside its living agent, nor does
    /// a token that was used for another key already (`used`). An agent that lives has a key, and
    /// asks with a new one only when its certificate is more than half over; one that lost its key
    /// has no link.
    pub(super) fn check_beside(
        &self,
        name: &Name,
        key: &[u8; 32],
        trust: &Snapshot,
        used: bool,
        now: SystemTime,
    ) -> Result<(), No> {
        if !used && !self.nodes.agents.is_alive(name, limits::ENROL_ALIVE) {
            return Ok(());
        }
        let Some(serial) = self.held_by_another(name, key, trust, now) else {
            return Ok(());
        };
        let text = match used {
            true => format!(
                "this token was used for another key, whose certificate (serial {serial}) is not \
                 half over: wait for the kubelet to renew the token, or keep --state-dir over restarts"
            ),
            false => format!(
                "the agent of {name} is linked, with another key and a certificate (serial \
                 {serial}) that is not half over: if that agent is to be replaced, stop it first"
            ),
        };
        let refusal = match used {
            true => Refusal::Replayed,
            false => Refusal::NameTaken,
        };
        Err(No::new(refusal, text))
    }

    /// A certificate of this name and another key that counts, and is in the first half of its life.
    fn held_by_another(
        &self,
        name: &Name,
        key: &[u8; 32],
        trust: &Snapshot,
        now: SystemTime,
    ) -> Option<Serial> {
        let issued = self.names.holdings(name, now).into_iter().find(|one| {
            let other = one.key.as_ref() != Some(key);
            other
                && is_fresh(one.not_before, one.not_after, now)
                && !trust.agents.has_revoked(&one.serial)
        });
        let shown = || {
            let peer = self.nodes.agents.shown_by(name)?;
            let (leaf, chain) = (peer.leaf(), peer.chain());
            let shown = Certificate::parse(chain.first()?.as_ref()).ok()?;
            let counts = key_hash(&shown) != *key
                && is_fresh(leaf.not_before, leaf.not_after, now)
                && trust.agents.verify(chain, now).is_ok();
            counts.then(|| leaf.serial.clone())
        };
        issued.map(|one| one.serial).or_else(shown)
    }
}

/// Whether less than half of a life is over, from the issuing on: agents renew at two thirds. Of lives
/// so short that they are mostly the time before the issuing no part is.
fn is_fresh(not_before: SystemTime, not_after: SystemTime, now: SystemTime) -> bool {
    let Ok(whole) = not_after.duration_since(not_before) else {
        return false;
    };
    let before = BACKDATE.min(whole / 2);
    let half = not_before.checked_add(before + (whole - before) / 2);
    half.is_some_and(|half| now < half)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_first_half_of_a_life_ends_before_agents_renew() {
        let issued = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let after = |seconds| issued + Duration::from_secs(seconds);
        let fresh = |life: u64, at| is_fresh(issued - BACKDATE, after(life), at);
        for life in [600, 86_400] {
            assert!(fresh(life, issued) && fresh(life, after(life / 2 - 1)));
            assert!(!fresh(life, after(life / 2)));
        }
        // An agent with such a life renews at once.
        assert!(!fresh(60, issued));
        assert!(!is_fresh(issued, issued, issued));
        assert!(!is_fresh(after(100), issued, issued));
    }
}
