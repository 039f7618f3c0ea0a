//! Where revocations of a cluster are written down, and the signing of its lists.
//!
//! ```text
//! DIR/revoked.jsonl      every revocation and every list's number: first of all, and kept
//! DIR/trust/agents.crl   for --agent-crl: what the issuer of agents revoked
//! DIR/trust/servers.crl  for --server-crl and --client-crl
//! DIR/trust/denied       for --deny-list
//! ```
//!
//! How a list is made from the record is in [`lists`].

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use towline_pki::crl::RevocationReason;
use towline_pki::store::{self, Journal};
use towline_pki::{Layout, Passphrases, Seat, Serial, date};
use towline_proto::id::Role;

use super::Failure;
use super::lists::{self, Lists, Ready};
use super::source::Source;

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
    /// Of all its authorities: a descriptor can be read only once.
    passphrases: RefCell<Passphrases>,
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

impl<'a> Book<'a> {
    pub(crate) fn of(source: &'a Source) -> Self {
        Self {
            source,
            passphrases: RefCell::new(source.unlock.passphrases()),
        }
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
        lists::lines(&self.record())
    }

    /// Opens a group's authorities to sign their lists. While an authority changes there are two of
    /// them, and what is added goes on both lists: serial numbers are of one certificate only, whoever
    /// signed it. With `all`, one that is trusted and whose key is elsewhere is an error.
    pub(crate) fn ready(&self, group: Group, all: bool, now: SystemTime) -> Result<Ready, Failure> {
        let lists = Lists {
            list: self.list(group),
            trust: self.trust(group),
            record: self.record(),
        };
        let role = match group {
            Group::Servers => Role::Server,
            Group::Agents | Group::Given => Role::Agent,
        };
        let authorities = match group {
            Group::Given => vec![self.source.open(role, now)?.authority],
            Group::Agents | Group::Servers => lists::authorities(
                &Layout::new(&self.source.dir),
                Seat::issuer_of(role),
                &mut self.passphrases.borrow_mut(),
                all,
                now,
            )?,
        };
        lists.ready(authorities)
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
