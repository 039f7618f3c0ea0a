//! The proof, pure: bytes of files go in, what is proven or the first fault comes out. No file is
//! opened here, nothing is held but one line and a few numbers, and no bytes make it panic.
//!
//! A line is good when its number follows, when it holds the hash of the line before, and when
//! that line's own hash is what the next one holds. Which of two lines was changed is told by the
//! third: if it agrees with the second, the first was changed, and else the second.

use serde::Deserialize;
use towline_pki::SealPublic;
use towline_pki::seal::{self, Sha256};
use towline_proto::limits;

use super::chain::{Hash, Head, Link, unseal};
pub use super::findings::{Fault, Findings, Kind, Place, Wanted};
use super::record::Torn;

/// The part of a record that the proof looks at.
#[derive(Debug, Default, Deserialize)]
struct Body {
    event: String,
    #[serde(default)]
    time: String,
    trail: Option<String>,
    head: Option<String>,
    key: Option<String>,
    torn: Option<TornText>,
    dropped: Option<u64>,
    dials_refused: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct TornText {
    bytes: u64,
    sha256: String,
}

/// Bytes that are no record, until a record accounts for them.
struct Damage {
    at: Place,
    bytes: u64,
    sha256: Sha256,
}

/// Two neighbours that disagree.
struct Suspects {
    first: Place,
    first_seq: u64,
    second: Place,
    second_head: Head,
}

/// Takes bytes of files in the order of the trail.
pub struct Verifier {
    wanted: Wanted,
    findings: Findings,
    file: String,
    line: u64,
    partial: Vec<u8>,
    /// The line under way is longer than any record.
    overlong: bool,
    last_at: Option<Place>,
    since_checkpoint: u64,
    damage: Option<Damage>,
    suspects: Option<Suspects>,
}

impl Verifier {
    /// With nothing read.
    pub fn new(wanted: Wanted) -> Self {
        Self {
            wanted,
            findings: Findings::default(),
            file: String::new(),
            line: 0,
            partial: Vec::new(),
            overlong: false,
            last_at: None,
            since_checkpoint: 0,
            damage: None,
            suspects: None,
        }
    }

    /// What was found so far.
    pub fn findings(&self) -> &Findings {
        &self.findings
    }

    /// A new file begins; what a crash left at the end of the one before is looked at.
    pub fn file(&mut self, name: &str) -> Result<(), Fault> {
        self.end_of_file();
        self.file = name.to_owned();
        self.line = 0;
        Ok(())
    }

    /// The next bytes of the file.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), Fault> {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (part, rest) = bytes.split_at(end + 1);
            bytes = rest;
            self.line += 1;
            if self.overlong {
                self.overlong = false;
                self.damage(part);
                continue;
            }
            if self.partial.is_empty() {
                self.whole(part)?;
                continue;
            }
            let mut line = std::mem::take(&mut self.partial);
            line.extend_from_slice(part);
            let done = self.whole(&line);
            line.clear();
            self.partial = line;
            done?;
        }
        if self.overlong {
            self.damage_next(bytes);
        } else if self.partial.len() + bytes.len() > limits::AUDIT_LINE_BYTES {
            let partial = std::mem::take(&mut self.partial);
            self.damage_next(&partial);
            self.damage_next(bytes);
            self.overlong = true;
        } else {
            self.partial.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// All bytes were read.
    pub fn finish(mut self) -> (Findings, Result<(), Fault>) {
        let result = self.conclude();
        (self.findings, result)
    }

    fn conclude(&mut self) -> Result<(), Fault> {
        self.end_of_file();
        if let Some(suspects) = self.suspects.take() {
            let text = format!(
                "was changed, or the hash in {} was: they do not fit, and no later line tells which",
                suspects.second
            );
            return Err(fault(Kind::Changed, suspects.first, text));
        }
        if let Some(damage) = self.damage.take() {
            // Behind it comes nothing: a crash, or a write that is under way.
            let text = format!(
                "{} bytes that are no whole record end the trail",
                damage.bytes
            );
            self.findings.note(format!("{}: {text}", damage.at));
        }
        if self.findings.records == 0 {
            return Err(nowhere(
                Kind::Changed,
                "there is no record at all".to_owned(),
            ));
        }
        if let Some(head) = self.wanted.head
            && !self.findings.head_met
        {
            let has = self.findings.head.map_or(0, |head| head.seq);
            let first = self.findings.first;
            let text = if head.seq < first {
                format!(
                    "line {} that was expected is before the first one given, {first}",
                    head.seq
                )
            } else {
                format!(
                    "the trail ends at line {has}; line {} was there before: the end was cut off, or a file is missing",
                    head.seq
                )
            };
            return Err(Fault {
                kind: Kind::Head,
                at: self.last_at.clone(),
                text,
            });
        }
        if !self.wanted.keys.is_empty() && self.findings.proven.is_none() {
            let text = "there is no checkpoint: nothing is proven";
            return Err(nowhere(Kind::Unsigned, text.to_owned()));
        }
        Ok(())
    }

    fn here(&self) -> Place {
        Place {
            file: self.file.clone(),
            line: self.line,
        }
    }

    /// Part of the line after the last whole one.
    fn damage_next(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.line += 1;
            self.damage(bytes);
            self.line -= 1;
        }
    }

    fn damage(&mut self, bytes: &[u8]) {
        let at = self.here();
        let damage = self.damage.get_or_insert_with(|| Damage {
            at,
            bytes: 0,
            sha256: Sha256::default(),
        });
        damage.bytes += bytes.len() as u64;
        damage.sha256.update(bytes);
    }

    fn end_of_file(&mut self) {
        let partial = std::mem::take(&mut self.partial);
        self.damage_next(&partial);
        self.overlong = false;
    }

    fn whole(&mut self, line: &[u8]) -> Result<(), Fault> {
        let parsed = (line.len() <= limits::AUDIT_LINE_BYTES)
            .then(|| Link::read(line))
            .flatten()
            .and_then(|link| Some((link, serde_json::from_slice::<Body>(line).ok()?)));
        let Some((link, body)) = parsed else {
            self.damage(line);
            return Ok(());
        };
        let hash = seal::sha256(line);
        if let Some(suspects) = self.suspects.take() {
            return Err(decide(suspects, link));
        }
        self.account_for_damage(&body)?;
        self.follow(link, hash)?;
        if self.suspects.is_none() {
            self.look(link, &body, line)?;
        }
        let head = Head {
            seq: link.seq,
            hash,
        };
        if self
            .wanted
            .head
            .is_some_and(|wanted| wanted.seq == head.seq)
        {
            if self.wanted.head != Some(head) {
                let text = format!(
                    "line {} is not the one that was expected: its hash is {}",
                    head.seq,
                    seal::hex(&hash)
                );
                return Err(self.fault(Kind::Head, text));
            }
            self.findings.head_met = true;
        }
        self.findings.head = Some(head);
        self.findings.records += 1;
        self.last_at = Some(self.here());
        Ok(())
    }

    /// Bytes that are no record are allowed only where a crash left them and the next process
    /// said so.
    fn account_for_damage(&mut self, body: &Body) -> Result<(), Fault> {
        let told = body.torn.as_ref().filter(|_| body.event == "trail");
        match (self.damage.take(), told) {
            (None, None) => Ok(()),
            (None, Some(_)) => Err(self.fault(
                Kind::Changed,
                "tells of a torn line that is not there: it was taken out".to_owned(),
            )),
            (Some(damage), None) => {
                let text = "is no record: it was changed, or does not belong here".to_owned();
                Err(fault(Kind::Changed, damage.at, text))
            }
            (Some(damage), Some(told)) => {
                let found = Torn {
                    bytes: damage.bytes,
                    sha256: damage.sha256.finish(),
                };
                if told.bytes != found.bytes || told.sha256 != seal::hex(&found.sha256) {
                    let text = "is not the torn line that the next record tells of".to_owned();
                    return Err(fault(Kind::Changed, damage.at, text));
                }
                let text = format!("{} bytes of a line that a crash tore, kept", found.bytes);
                self.findings.note(format!("{}: {text}", damage.at));
                Ok(())
            }
        }
    }

    fn follow(&mut self, link: Link, hash: Hash) -> Result<(), Fault> {
        let Some(before) = self.findings.head else {
            self.findings.first = link.seq;
            if link.seq == 0 || (link.seq == 1) != (link.prev == Head::NONE.hash) {
                let text = format!(
                    "line {} cannot hold this hash of a line before it",
                    link.seq
                );
                return Err(self.fault(Kind::Changed, text));
            }
            return Ok(());
        };
        let expected = before.seq.saturating_add(1);
        if link.seq > expected {
            let last = link.seq - 1;
            let missing = match last == expected {
                true => format!("{expected} is missing"),
                false => format!("{expected} to {last} are missing"),
            };
            let text = format!(
                "is line {}, and the one before it is {}: {missing}",
                link.seq, before.seq
            );
            return Err(self.fault(Kind::Order, text));
        }
        if link.seq < expected {
            let text = format!(
                "is line {} behind line {}: put in, repeated, moved, or of another trail",
                link.seq, before.seq
            );
            return Err(self.fault(Kind::Order, text));
        }
        if link.prev != before.hash {
            self.suspects = Some(Suspects {
                first: self.last_at.clone().unwrap_or_else(|| self.here()),
                first_seq: before.seq,
                second: self.here(),
                second_head: Head {
                    seq: link.seq,
                    hash,
                },
            });
        }
        Ok(())
    }

    /// What the record itself says.
    fn look(&mut self, link: Link, body: &Body, line: &[u8]) -> Result<(), Fault> {
        self.since_checkpoint += 1;
        if let Some(trail) = &body.trail {
            match &self.findings.trail {
                Some(known) if known != trail => {
                    let text = "is of another trail".to_owned();
                    return Err(self.fault(Kind::Order, text));
                }
                _ => self.findings.trail = Some(trail.clone()),
            }
        }
        match body.event.as_str() {
            "trail" => {
                // What the process before it left unsigned, this one signs next.
                self.findings.runs += 1;
                self.since_checkpoint = 1;
            }
            "gap" => {
                let dropped = body.dropped.unwrap_or(0);
                let refused = body.dials_refused.unwrap_or(0);
                self.findings.dropped = self.findings.dropped.saturating_add(dropped);
                self.findings.dials_refused = self.findings.dials_refused.saturating_add(refused);
                let text = format!(
                    "{dropped} records could not be written, {refused} dials were refused for it"
                );
                let at = self.here();
                self.findings.note(format!("{at}: {text}"));
            }
            "shrunk" => {
                let at = self.here();
                self.findings.note(format!(
                    "{at}: the file had been cut short under the server"
                ));
            }
            "checkpoint" => self.checkpoint(link, body, line)?,
            _ => {}
        }
        if self.since_checkpoint > limits::AUDIT_CHECKPOINT_LINES {
            let text = format!(
                "no checkpoint in {} lines: those that were there were taken out",
                limits::AUDIT_CHECKPOINT_LINES
            );
            return Err(self.fault(Kind::Signature, text));
        }
        Ok(())
    }

    fn checkpoint(&mut self, link: Link, body: &Body, line: &[u8]) -> Result<(), Fault> {
        let covered = Head {
            seq: link.seq.saturating_sub(1),
            hash: link.prev,
        };
        let (Some(_), Some(key), Some((sealed, seal))) = (&body.trail, &body.key, unseal(line))
        else {
            let text = "is a checkpoint without a signature".to_owned();
            return Err(self.fault(Kind::Signature, text));
        };
        if body.head.as_deref() != Some(&covered.to_string()) {
            let text = "is a checkpoint of other lines than those before it".to_owned();
            return Err(self.fault(Kind::Signature, text));
        }
        if !self.wanted.keys.is_empty() {
            let known = self.wanted.keys.iter().find(|known| known.id() == key);
            let Some(known) = known else {
                let short: String = key
                    .chars()
                    .filter(char::is_ascii_alphanumeric)
                    .take(16)
                    .collect();
                let text = format!("is signed by key {short}, which was not given");
                return Err(self.fault(Kind::Signature, text));
            };
            if !known.verifies(&sealed, &seal) {
                let since = self
                    .findings
                    .proven
                    .as_ref()
                    .map_or(self.findings.first, |(seq, ..)| seq + 1);
                let text = format!(
                    "the signature does not fit: it, or lines {since} to {}, are not as they were written",
                    covered.seq
                );
                return Err(self.fault(Kind::Signature, text));
            }
        }
        self.since_checkpoint = 0;
        self.findings.checkpoints += 1;
        let time: String = body
            .time
            .chars()
            .filter(char::is_ascii_graphic)
            .take(32)
            .collect();
        self.findings.proven = Some((covered.seq, time, self.here()));
        Ok(())
    }

    fn fault(&self, kind: Kind, text: String) -> Fault {
        fault(kind, self.here(), text)
    }
}

fn fault(kind: Kind, at: Place, text: String) -> Fault {
    Fault {
        kind,
        at: Some(at),
        text,
    }
}

fn nowhere(kind: Kind, text: String) -> Fault {
    Fault {
        kind,
        at: None,
        text,
    }
}

fn decide(suspects: Suspects, third: Link) -> Fault {
    let second_is_whole = third.prev == suspects.second_head.hash
        && Some(third.seq) == suspects.second_head.seq.checked_add(1);
    if second_is_whole {
        let text = format!(
            "line {} was changed: its hash is not what line {} holds",
            suspects.first_seq, suspects.second_head.seq
        );
        fault(Kind::Changed, suspects.first, text)
    } else {
        let text = format!(
            "line {} was changed: neither of its neighbours fits",
            suspects.second_head.seq
        );
        fault(Kind::Changed, suspects.second, text)
    }
}

/// The body of a fuzzer: no bytes make the proof panic, and cutting them up changes nothing.
#[doc(hidden)]
pub fn fuzz_verify(keys: &[SealPublic], data: &[u8]) {
    let prove = |step: usize| {
        let mut verifier = Verifier::new(Wanted {
            keys: keys.to_vec(),
            head: None,
        });
        let pushed = verifier
            .file("a")
            .and_then(|()| data.chunks(step).try_for_each(|piece| verifier.push(piece)));
        let (findings, end) = verifier.finish();
        (findings, pushed.and(end))
    };
    let whole = prove(data.len().max(1));
    let pieces = prove(data.first().map_or(1, |byte| usize::from(*byte) + 1));
    assert_eq!(whole, pieces);
}
