//! Where revocations of a cluster are written down, and the signing of its lists.
//!
//! ```text
//! DIR/revoked.jsonl      every revocation and every list's number: first of all, and kept
//! DIR/trust/agents.crl   for --agent-crl: what the issuer of agents revoked
//! DIR/trust/servers.crl  for --server-crl and --client-crl
//! DIR/trust/denied       for --deny-list
//! ```
//!
//! A list is made from the record and from the list that is there, so that a list that is lost or
//! damaged loses no revocation, and its number never falls. Each step leaves the whole old file or
//! the whole new one; a revocation that a crash left out of the list is in the next one.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use towline_pki::crl::{List, ListSpec, RevocationReason, Revoked};
use towline_pki::store::{self, Journal, Replace};
use towline_pki::{Serial, date, pem};
use towline_proto::id::Role;

use super::Failure;
use super::source::Source;

/// How long what ended stays on a list, so that clocks may differ.
const AFTER_THE_END: Duration = Duration::from_secs(86_400);

/// Which list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    /// What the issuer of agents signed.
    Agents,
    /// What the issuer of servers, clients and operators signed.
    Servers,
    /// What the authority of `--ca-cert` signed.
    Given,
}

/// The files.
pub(crate) struct Book<'a> {
    source: &'a Source,
}

/// One line of the record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) at: String,
    /// Key identifier of the issuer.
    pub(crate) issuer: String,
    /// Of the list that this line went into.
    pub(crate) number: u64,
    /// Absent: a list was signed that adds nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) revoked: Option<Entry>,
}

/// What was revoked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) serial: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) identity: Option<String>,
    pub(crate) reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) not_after: Option<String>,
}

/// A list that was signed.
pub(crate) struct Signed {
    pub(crate) path: PathBuf,
    pub(crate) issuer: String,
    pub(crate) number: u64,
    pub(crate) revoked: usize,
    pub(crate) next_update: SystemTime,
}

impl<'a> Book<'a> {
    pub(crate) fn of(source: &'a Source) -> Self {
        Self { source }
    }

    /// Each list of the cluster.
    pub(crate) fn groups(&self) -> &'static [Group] {
        match self.source.ca_cert {
            Some(_) => &[Group::Given],
            None => &[Group::Agents, Group::Servers],
        }
    }

    /// The group that a role's certificates belong to.
    pub(crate) fn group_of(&self, role: Role) -> Group {
        match (&self.source.ca_cert, role) {
            (Some(_), _) => Group::Given,
            (None, Role::Agent) => Group::Agents,
            (None, Role::Server | Role::Client | Role::Operator) => Group::Servers,
        }
    }

    /// Its list.
    pub(crate) fn list(&self, group: Group) -> PathBuf {
        match group {
            Group::Agents => self.source.dir.join("trust/agents.crl"),
            Group::Servers => self.source.dir.join("trust/servers.crl"),
            Group::Given => self.beside("crl"),
        }
    }

    /// The certificates of its authorities.
    pub(crate) fn trust(&self, group: Group) -> PathBuf {
        match (group, &self.source.ca_cert) {
            (Group::Given, Some(cert)) => cert.clone(),
            (Group::Servers, _) => self.source.dir.join("trust/servers.pem"),
            _ => self.source.dir.join("trust/agents.pem"),
        }
    }

    /// The deny list.
    pub(crate) fn denied(&self) -> PathBuf {
        match self.source.ca_cert {
            Some(_) => self.beside("denied"),
            None => self.source.dir.join("trust/denied"),
        }
    }

    /// Held while any of these files changes.
    pub(crate) fn lock(&self) -> Result<store::Lock, Failure> {
        let path = match self.source.ca_cert {
            Some(_) => self.beside("revoke.lock"),
            None => self.source.dir.join("revoke.lock"),
        };
        Ok(store::Lock::take(&path)?)
    }

    fn record(&self) -> Journal {
        Journal::at(match self.source.ca_cert {
            Some(_) => self.beside("revoked.jsonl"),
            None => self.source.dir.join("revoked.jsonl"),
        })
    }

    fn beside(&self, end: &str) -> PathBuf {
        let cert = self.source.ca_cert.as_deref();
        cert.unwrap_or(Path::new("ca.crt")).with_extension(end)
    }

    /// Everything that was written down, oldest first.
    pub(crate) fn lines(&self) -> Result<Vec<Line>, Failure> {
        let mut lines = Vec::new();
        self.record().each(|text| {
            let line: Line = serde_json::from_slice(text)
                .map_err(|error| format!("is no record of a revocation: {error}"))?;
            if let Some(entry) = &line.revoked {
                let serial = entry.serial.parse::<Serial>();
                serial.map_err(|error| format!("serial {:?}: {error}", entry.serial))?;
            }
            lines.push(line);
            Ok(())
        })?;
        Ok(lines)
    }

    /// Signs a list with what was revoked before and what is added.
    pub(crate) fn sign(
        &self,
        group: Group,
        added: &[Entry],
        days: u64,
        now: SystemTime,
    ) -> Result<Signed, Failure> {
        let role = match group {
            Group::Servers => Role::Server,
            Group::Agents | Group::Given => Role::Agent,
        };
        let authority = self.source.open(role, now)?.authority;
        let certificate = authority.certificate();
        if !certificate.signs_lists {
            return Err(Failure::failed(format!(
                "{} may not sign revocation lists (its key usage lacks cRLSign); nothing was \
                 changed. Use --deny-only, which needs no list",
                certificate.subject
            )));
        }
        let path = self.list(group);
        let there = match path.exists() {
            true => List::load(&path).map_err(|error| unusable(&path, &error))?,
            false => Vec::new(),
        };
        let mine = there.iter().find(|list| list.is_of(certificate));
        if let Some(mine) = mine {
            mine.check_signature(certificate)
                .map_err(|error| unusable(&path, &error))?;
        }
        let issuer = authority.key_id_text();
        let lines = self.lines()?;
        let ours = || lines.iter().filter(|line| line.issuer == issuer);
        let last = ours().map(|line| line.number).max().unwrap_or(0);
        let had = mine.and_then(|list| list.number().small()).unwrap_or(0);
        let number = last.max(had).saturating_add(1);
        self.write_down(&issuer, number, added, now)?;

        let mut revoked: Vec<Revoked> = mine.map_or_else(Vec::new, |list| list.entries().to_vec());
        let recorded = ours().filter_map(|line| Some((line.at.as_str(), line.revoked.as_ref()?)));
        let at = date::text(now);
        let all: Vec<_> = recorded
            .chain(added.iter().map(|entry| (at.as_str(), entry)))
            .collect();
        for (at, entry) in &all {
            let Ok(serial) = entry.serial.parse::<Serial>() else {
                continue;
            };
            if revoked.iter().all(|known| known.serial != serial) {
                revoked.push(Revoked {
                    serial,
                    at: date::from_text(at).unwrap_or(now),
                    reason: entry.reason.parse().unwrap_or_default(),
                });
            }
        }
        let ended = |serial: &Serial| {
            let serial = serial.to_string();
            let mut of = all.iter().filter(|(_, entry)| entry.serial == serial);
            let end = of.find_map(|(_, entry)| date::from_text(entry.not_after.as_deref()?));
            let gone = end.and_then(|end| end.checked_add(AFTER_THE_END));
            gone.is_some_and(|gone| gone < now)
        };
        revoked.retain(|entry| !ended(&entry.serial));

        let wanted = now.checked_add(Duration::from_secs(days.saturating_mul(86_400)));
        let next_update =
            wanted.map_or(certificate.not_after, |end| end.min(certificate.not_after));
        let spec = ListSpec {
            number,
            this_update: now,
            next_update,
            revoked,
        };
        let list = authority.sign_list(&spec).map_err(Failure::failed)?;
        let mut text = pem::write_revocation_list(&list);
        // During a change of authority the old one's list stays beside the new one's.
        for other in there.iter().filter(|list| !list.is_of(certificate)) {
            text.push_str(&other.to_pem());
        }
        store::write_public(&path, &text, Replace::Atomically)?;
        Ok(Signed {
            path,
            issuer: certificate.subject.clone(),
            number,
            revoked: spec.revoked.len(),
            next_update,
        })
    }

    fn write_down(
        &self,
        issuer: &str,
        number: u64,
        added: &[Entry],
        now: SystemTime,
    ) -> Result<(), Failure> {
        let line = |revoked: Option<&Entry>| {
            let line = Line {
                at: date::text(now),
                issuer: issuer.to_owned(),
                number,
                revoked: revoked.cloned(),
            };
            serde_json::to_string(&line).map_err(Failure::failed)
        };
        let lines = match added {
            [] => vec![line(None)?],
            added => added
                .iter()
                .map(|entry| line(Some(entry)))
                .collect::<Result<_, _>>()?,
        };
        Ok(self.record().append(&lines)?)
    }
}

impl Entry {
    pub(crate) fn new(
        serial: &Serial,
        identity: Option<String>,
        reason: RevocationReason,
        not_after: Option<SystemTime>,
    ) -> Self {
        Self {
            serial: serial.to_string(),
            identity,
            reason: reason.to_string(),
            not_after: not_after.map(date::text),
        }
    }
}

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::file(format!(
        "{}: {error}. Nothing was changed. Move the file away and run `towline-pki crl renew`: what \
         was revoked is written down in revoked.jsonl and is not lost",
        path.display()
    ))
}
