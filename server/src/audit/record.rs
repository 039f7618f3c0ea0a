//! The fields of a record, pure: an event and who tells it become text. README lists them all.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use towline_pki::{date, seal};
use towline_proto::id::DialId;
use towline_proto::limits;

use super::chain::Head;
use super::enrolment;
use super::facts::{Event, Facts, Timed};
use super::requests::{self, Commands};
use super::signing;
use super::text::Fields;
use crate::attest::Attestation;
use crate::caller::Caller;

/// Longest of our own names and identities, bytes.
const TEXT: usize = limits::AUDIT_TEXT_BYTES;

/// Who writes: the same in every record of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Teller {
    /// The cluster.
    pub cluster: String,
    /// This server's name.
    pub server: String,
    /// This process: random, so that dial numbers of two processes are never one.
    pub run: u64,
    /// How much of a command is told.
    pub commands: Commands,
}

impl Teller {
    fn begin(&self, at: SystemTime, event: &'static str) -> Fields {
        let mut fields = Fields::new();
        fields
            .shown("time", Rfc3339(at), TEXT)
            .word("event", event)
            .text("cluster", &self.cluster, TEXT)
            .text("server", &self.server, TEXT);
        fields
    }

    /// What happened to a dial.
    pub fn event(&self, timed: &Timed) -> Fields {
        match &timed.event {
            Event::Start { facts, opening } => {
                let mut fields = self.dial(timed.at, "start", facts);
                fields.number("opening_us", micros(*opening));
                fields
            }
            Event::End {
                facts,
                open,
                to_target,
                from_target,
                reason,
            } => {
                let mut fields = self.dial(timed.at, "end", facts);
                fields
                    .number("to_target", *to_target)
                    .number("from_target", *from_target)
                    .number("duration_us", micros(*open))
                    .shown("reason", reason, TEXT);
                fields
            }
            Event::Request(request) => {
                let mut fields = self.begin(timed.at, "request");
                fields.shown("id", self.id(request.dial), TEXT);
                requests::add(&mut fields, request, self.commands);
                fields
            }
            Event::Signing(event) => {
                let mut fields = self.begin(event.at, "signing");
                signing::add(&mut fields, event);
                fields
            }
            Event::Enrolment(event) => {
                let mut fields = self.begin(timed.at, "enrolment");
                enrolment::add(&mut fields, event);
                fields
            }
            Event::BadRequest {
                door,
                caller,
                cause,
            } => {
                let mut fields = self.begin(timed.at, "bad-request");
                fields
                    .object("front_end", &front_end(caller))
                    .word("door", door.as_str())
                    .word("reason", cause);
                fields
            }
            Event::Refused {
                facts,
                after,
                reason,
                address,
            } => {
                let mut fields = self.dial(timed.at, "refused", facts);
                fields
                    .number("duration_us", micros(*after))
                    .shown("reason", reason, TEXT);
                if let Some(address) = address {
                    fields.shown("address", address, TEXT);
                }
                fields
            }
        }
    }

    fn id(&self, dial: DialId) -> String {
        format!("{:016x}-{dial}", self.run)
    }

    fn dial(&self, at: SystemTime, event: &'static str, facts: &Facts) -> Fields {
        let mut fields = self.begin(at, event);
        fields
            .shown("id", self.id(facts.id), TEXT)
            .object("front_end", &front_end(&facts.caller))
            .word("door", facts.door.as_str())
            .shown("target", &facts.target, TEXT);
        if let Some(class) = facts.class {
            fields.word("class", class.as_str());
        }
        if let Some(node) = &facts.node {
            fields.text("node", node.as_str(), TEXT);
        }
        if let Some(agent) = &facts.agent {
            fields.shown("agent", agent.identity(), TEXT).shown(
                "agent_serial",
                &agent.leaf().serial,
                TEXT,
            );
        }
        if let Some(legacy) = &facts.legacy {
            fields.text("legacy_agent", legacy, TEXT);
        }
        if let Some(carrier) = facts.carrier {
            fields.word("carrier", carrier.as_str());
        }
        if let Some(rule) = &facts.rule {
            fields.text("rule", &rule.name, TEXT);
            if let Some(line) = rule.line {
                fields.number("rule_line", line);
            }
        }
        if let Some(kubelet) = &facts.kubelet {
            fields.object("kubelet", &attested(kubelet));
        }
        if let Some(trace) = facts.trace {
            fields.text("trace", &seal::hex(&trace.trace), TEXT);
        }
        fields
    }

    /// A process begins to write: at the beginning of a trail, or after what is there.
    pub fn trail(&self, at: SystemTime, opening: &Opening<'_>) -> Fields {
        let mut fields = self.begin(at, "trail");
        fields
            .text("trail", opening.trail, TEXT)
            .shown("run", format_args!("{:016x}", self.run), TEXT)
            .text("software", opening.software, TEXT)
            .text("key", opening.key, TEXT)
            .word("on_failure", opening.on_failure);
        if let Some(torn) = opening.torn {
            fields.object("torn", &torn_fields(torn));
        }
        fields
    }

    /// The trail goes on in a new file.
    pub fn rotate(&self, at: SystemTime, rotation: &Rotation<'_>) -> Fields {
        let mut fields = self.begin(at, "rotate");
        fields
            .text("trail", rotation.trail, TEXT)
            .word("cause", rotation.cause);
        if let Some(kept) = rotation.kept_as {
            fields.text("kept_as", kept, TEXT);
        }
        if !rotation.removed.is_empty() {
            let removed = rotation.removed.iter().map(String::as_str);
            fields.list("removed", removed, TEXT);
        }
        fields
    }

    /// Everything up to `head` is signed.
    pub fn checkpoint(&self, at: SystemTime, checkpoint: &Checkpoint<'_>) -> Fields {
        let mut fields = self.begin(at, "checkpoint");
        fields
            .text("trail", checkpoint.trail, TEXT)
            .shown("head", checkpoint.head, TEXT)
            .text("key", checkpoint.key, TEXT);
        fields
    }

    /// Records are missing, because they could not be written.
    pub fn gap(&self, at: SystemTime, gap: &Gap) -> Fields {
        let mut fields = self.begin(at, "gap");
        fields
            .number("dropped", gap.dropped)
            .number("dials_refused", gap.dials_refused)
            .shown("since", Rfc3339(gap.since), TEXT)
            .text("cause", &gap.cause, TEXT);
        fields
    }

    /// The file is shorter than what was written to it.
    pub fn shrunk(&self, at: SystemTime, was: u64, is: u64) -> Fields {
        let mut fields = self.begin(at, "shrunk");
        fields.number("was_bytes", was).number("is_bytes", is);
        fields
    }

    /// The process ends in order.
    pub fn close(&self, at: SystemTime) -> Fields {
        self.begin(at, "close")
    }
}

fn attested(kubelet: &Attestation) -> Fields {
    let mut fields = Fields::new();
    fields.word("verdict", kubelet.word());
    if let Some(key) = kubelet.key() {
        fields.shown("key", key, TEXT);
    }
    fields.shown("checked", Rfc3339(kubelet.at), TEXT);
    fields
}

fn front_end(caller: &Caller) -> Fields {
    let mut fields = Fields::new();
    match caller {
        Caller::Local(process) => {
            fields.number("uid", process.uid).number("gid", process.gid);
            if let Some(pid) = process.pid.and_then(|pid| u32::try_from(pid).ok()) {
                fields.number("pid", pid);
            }
        }
        Caller::Certified { peer, address } => {
            fields
                .shown("identity", peer.identity(), TEXT)
                .shown("serial", &peer.leaf().serial, TEXT)
                .shown("address", address, TEXT);
        }
        Caller::Signed { subject, address } => {
            fields
                .text("signed_subject", subject, TEXT)
                .shown("address", address, TEXT);
        }
    }
    fields
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// How a process begins to write.
#[derive(Clone, Copy, Debug)]
pub struct Opening<'a> {
    /// Name of the trail.
    pub trail: &'a str,
    /// What writes.
    pub software: &'a str,
    /// Which key signs.
    pub key: &'a str,
    /// `--audit-failure`.
    pub on_failure: &'static str,
    /// What a crash left behind the last whole line.
    pub torn: Option<Torn>,
}

/// Bytes that are no record, between two records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Torn {
    /// How many.
    pub bytes: u64,
    /// Their SHA-256.
    pub sha256: [u8; 32],
}

fn torn_fields(torn: Torn) -> Fields {
    let mut fields = Fields::new();
    fields
        .number("bytes", torn.bytes)
        .text("sha256", &seal::hex(&torn.sha256), TEXT);
    fields
}

/// How a file came to be put aside.
#[derive(Clone, Copy, Debug)]
pub struct Rotation<'a> {
    /// Name of the trail.
    pub trail: &'a str,
    /// `size`, `age`, `moved` or `order`.
    pub cause: &'static str,
    /// Name of the file that was put aside, when we did it.
    pub kept_as: Option<&'a str>,
    /// Names of files that were removed.
    pub removed: &'a [String],
}

/// A signature over the chain.
#[derive(Clone, Copy, Debug)]
pub struct Checkpoint<'a> {
    /// Name of the trail.
    pub trail: &'a str,
    /// The last line that is covered.
    pub head: Head,
    /// Which key signs it.
    pub key: &'a str,
}

/// Records that were never written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Records.
    pub dropped: u64,
    /// Dials that were refused because they could not be recorded.
    pub dials_refused: u64,
    /// Since when.
    pub since: SystemTime,
    /// Why.
    pub cause: String,
}

/// `2026-11-21T04:00:00.123456Z`.
pub struct Rfc3339(pub SystemTime);

impl std::fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let whole = date::text(self.0);
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        write!(
            f,
            "{}.{:06}Z",
            whole.trim_end_matches('Z'),
            since.subsec_micros()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dial::Door;
    use std::sync::Arc;
    use towline_link::process::unix::PeerCredentials;
    use towline_proto::reason::Reason;
    use towline_proto::target::Class;

    fn teller() -> Teller {
        Teller {
            cluster: "prod.example".into(),
            server: "s1".into(),
            run: 7,
            commands: Commands::default(),
        }
    }

    fn facts() -> Arc<Facts> {
        Arc::new(Facts {
            id: DialId::new(31).unwrap(),
            door: Door::ConnectUnix,
            caller: Caller::Local(PeerCredentials {
                uid: 0,
                gid: 0,
                pid: Some(12),
            }),
            target: "10.0.0.7:10250".parse().unwrap(),
            trace: None,
            class: Some(Class::Kubelet),
            node: Some("n1".parse().unwrap()),
            agent: None,
            legacy: None,
            carrier: None,
            rule: None,
            kubelet: None,
        })
    }

    #[test]
    fn an_end_says_everything() {
        let at = UNIX_EPOCH + Duration::from_micros(1_000_000_001);
        let event = Event::End {
            facts: facts(),
            open: Duration::from_millis(2),
            to_target: 3,
            from_target: 4,
            reason: Reason::Done,
        };
        assert_eq!(
            teller().event(&Timed { at, event }).as_str(),
            "\"time\":\"1970-01-01T00:16:40.000001Z\",\"event\":\"end\",\"cluster\":\"prod.example\",\
             \"server\":\"s1\",\"id\":\"0000000000000007-d1f\",\"front_end\":{\"uid\":0,\"gid\":0,\"pid\":12},\
             \"door\":\"connect-unix\",\"target\":\"10.0.0.7:10250\",\"class\":\"kubelet\",\"node\":\"n1\",\
             \"to_target\":3,\"from_target\":4,\"duration_us\":2000,\"reason\":\"done\""
        );
    }

    #[test]
    fn times_have_six_digits_behind_the_second() {
        for (micros, text) in [
            (0, ".000000Z"),
            (999_999, ".999999Z"),
            (1_000_000, "01.000000Z"),
        ] {
            let shown = Rfc3339(UNIX_EPOCH + Duration::from_micros(micros)).to_string();
            assert!(shown.ends_with(text) && shown.len() == 27, "{shown}");
        }
    }
}
