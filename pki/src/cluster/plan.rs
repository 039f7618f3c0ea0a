//! Plan: what has to change so that what is present becomes what is wanted, and why. Pure.
//!
//! Whenever a certificate of an authority that is here is made anew, its key is made anew with it.
//! Of an external authority the key is kept, because the request for it may be on its way.

use std::time::SystemTime;

use towline_proto::limits;

use super::asking;
use super::compare::{self, Issuer};
use super::layout::{self, Purpose};
use super::present::{Certified, Held, Next, Present, Seen};
use super::reason::Reason;
use super::wanted::{Place, Source, Wanted, WantedCopy, WantedLeaf};
use crate::inspect::Usage;
use crate::pem;

/// What has to change.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// In the order in which it is done.
    pub changes: Vec<Change>,
    /// What a person should know and nothing is done about.
    pub notes: Vec<Note>,
    /// Certificates, authorities and copies that stay as they are.
    pub kept: usize,
}

/// One thing that changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The file, or the first of them, below the directory.
    pub path: String,
    pub kind: Kind,
    /// At least one.
    pub reasons: Vec<Reason>,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The file that names the cluster.
    Cluster,
    /// An authority is made.
    Authority(Purpose),
    /// The certificate of an external authority is put in its place.
    Adopt(Purpose),
    /// The key that signs tokens, or its public half.
    ServiceAccount,
    /// An authority is added to the file that others anchor on.
    Trust(Purpose),
    /// A certificate; which one of those that are wanted.
    Leaf(usize, Act),
    /// A copy; which one.
    Copy(usize),
    /// A machine's directory is taken away.
    RemoveMachine,
    /// A file or directory is taken away.
    Remove,
}

/// What happens to a certificate and its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Made, with a new key or the one that is there.
    Make { new_key: bool },
    /// Made anew, with a new key.
    Reissue,
    /// The kubeconfig is written anew around the same certificate and key.
    Rewrite,
    /// The key that waits is put in its place.
    Finish,
    /// A key that nobody needs is taken away.
    Tidy,
    /// A request is written for an authority that somebody else holds.
    Request { new_key: bool },
    /// A kubeconfig is made of the certificate that came in.
    Assemble,
    /// A request that was answered is taken away.
    Answered,
}

/// What a person should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A machine that is not in the file any more; its files stay.
    MachineGone { name: String },
    /// A file that the cluster file does not ask for any more; it stays.
    FileGone { path: String },
    /// Certificates are cut short because their authority ends.
    AuthorityEnds {
        purpose: Purpose,
        not_after: SystemTime,
    },
    /// Its name is on the deny list, so it gets no certificate.
    Denied { path: String, identity: String },
    /// A request waits to be signed.
    Waiting {
        path: String,
        request: String,
        reasons: Vec<Reason>,
    },
}

/// Why there is no plan. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error(
        "{key} is not here, and {count} certificates need it ({first} is one): put it back for \
         this run, or declare authorities.external.{purpose} to get requests instead"
    )]
    NoKey {
        purpose: Purpose,
        key: String,
        count: usize,
        first: String,
    },
    #[error("{path}: the authority may not sign certificates for {usage}; {leaf} needs it")]
    Usage {
        path: String,
        usage: Usage,
        leaf: String,
    },
}

/// The difference.
pub fn plan(
    wanted: &Wanted,
    present: &Present,
    prune: bool,
    now: SystemTime,
) -> Result<Plan, PlanError> {
    let mut planner = Planner {
        wanted,
        present,
        now,
        plan: Plan::default(),
        unsigned: Vec::new(),
    };
    planner.cluster();
    planner.authorities();
    planner.service_account();
    for (index, leaf) in wanted.leaves.iter().enumerate() {
        if let Some(seen) = present.leaves.get(index) {
            planner.leaf(index, leaf, seen)?;
        }
    }
    planner.keys_that_are_needed()?;
    for (index, copy) in wanted.copies.iter().enumerate() {
        planner.copy(index, copy);
    }
    planner.gone(prune);
    Ok(planner.plan)
}

struct Planner<'a> {
    wanted: &'a Wanted,
    present: &'a Present,
    now: SystemTime,
    plan: Plan,
    /// Certificates whose authority has no key here.
    unsigned: Vec<(Purpose, String)>,
}

impl Planner<'_> {
    fn change(&mut self, path: String, kind: Kind, reasons: Vec<Reason>) {
        self.plan.changes.push(Change {
            path,
            kind,
            reasons,
        });
    }

    fn cluster(&mut self) {
        if !self.present.cluster {
            self.change(layout::CLUSTER.into(), Kind::Cluster, vec![Reason::New]);
        }
    }

    fn held(&self, purpose: Purpose) -> Option<&Held> {
        self.present.authorities.get(&purpose)
    }

    /// Whether it will be made in this run.
    fn is_new(&self, purpose: Purpose) -> bool {
        self.held(purpose)
            .is_none_or(|held| held.certificate.is_none())
    }

    fn authorities(&mut self) {
        let issuers_are_new = |planner: &Self| {
            [Purpose::Agents, Purpose::Servers]
                .into_iter()
                .any(|purpose| {
                    let wanted = planner.wanted.authority(purpose);
                    wanted.is_some_and(|wanted| wanted.external.is_none())
                        && planner.is_new(purpose)
                })
        };
        for authority in &self.wanted.authorities {
            let purpose = authority.purpose;
            let Some(held) = self.present.authorities.get(&purpose) else {
                continue;
            };
            let path = purpose.certificate();
            if held.certificate.is_none() {
                // The root is needed to make issuers, and for nothing else.
                if purpose != Purpose::Root || issuers_are_new(self) {
                    let reason = match held.key {
                        Some(_) => Reason::CertificateMissing,
                        None => Reason::New,
                    };
                    self.change(path, Kind::Authority(purpose), vec![reason]);
                }
            } else if !held.in_place {
                self.change(path, Kind::Adopt(purpose), vec![Reason::New]);
            } else {
                self.plan.kept += 1;
                if purpose == Purpose::Root && held.authority.is_none() && issuers_are_new(self) {
                    self.unsigned.push((purpose, Purpose::Agents.certificate()));
                }
            }
            if let Some(trust) = purpose.trust()
                && (held.certificate.is_none() || !held.trusted)
            {
                let reason = match held.anchors.is_empty() {
                    true => Reason::New,
                    false => Reason::AnchorsChanged,
                };
                self.change(trust.into(), Kind::Trust(purpose), vec![reason]);
            }
        }
    }

    fn service_account(&mut self) {
        if self.wanted.service_account.is_none() {
            return;
        }
        let path = match (
            &self.present.service_account,
            &self.present.service_account_public,
        ) {
            (None, _) => layout::SERVICE_ACCOUNT_KEY,
            (Some(_), None) => layout::SERVICE_ACCOUNT_PUBLIC,
            _ => {
                self.plan.kept += 1;
                return;
            }
        };
        self.change(path.into(), Kind::ServiceAccount, vec![Reason::New]);
    }

    /// Why something is new: alone, or with its machine.
    fn newness(&self, stem: &str) -> Reason {
        let mut parts = stem.split('/');
        match (parts.next(), parts.next()) {
            (Some(layout::HOSTS), Some(name)) if !self.present.machines.contains(name) => {
                Reason::NewMachine(name.to_owned())
            }
            _ => Reason::New,
        }
    }

    fn leaf(&mut self, index: usize, leaf: &WantedLeaf, seen: &Seen) -> Result<(), PlanError> {
        let purpose = leaf.issuer;
        let present = self.present;
        let held = present.authorities.get(&purpose);
        let issuer = match held.and_then(|held| held.certificate.as_ref()) {
            Some((certificate, _)) => Issuer::There(certificate),
            None => Issuer::New,
        };
        if let Issuer::There(certificate) = issuer {
            let usages = leaf.subject.usages.iter();
            if let Some(usage) = usages.into_iter().find(|usage| !certificate.allows(usage)) {
                return Err(PlanError::Usage {
                    path: purpose.certificate(),
                    usage: usage.clone(),
                    leaf: leaf.place.path(),
                });
            }
        }
        let asks = self
            .wanted
            .authority(purpose)
            .and_then(|authority| authority.external.as_ref())
            .is_some_and(|external| external.key.is_none());
        let before = self.plan.changes.len();
        let denied = present.revoked.denies(&leaf.subject.uris);
        match asks {
            true => self.asked(index, leaf, seen, issuer),
            false => self.signed_here(index, leaf, seen, issuer),
        }
        if let Some(identity) = denied
            && self.plan.changes.len() > before
        {
            let path = leaf.place.path();
            self.plan.changes.truncate(before);
            self.unsigned.retain(|(_, unsigned)| *unsigned != path);
            self.plan
                .notes
                .retain(|note| !matches!(note, Note::Waiting { path: of, .. } if *of == path));
            self.plan.notes.push(Note::Denied {
                path,
                identity: identity.to_string(),
            });
        }
        Ok(())
    }

    fn reasons(&self, leaf: &WantedLeaf, found: &Certified, issuer: Issuer<'_>) -> Vec<Reason> {
        compare::reasons(self.wanted, leaf, found, issuer, self.now)
    }

    /// How long a certificate lives is for those to say who sign it.
    fn reasons_to_ask(
        &self,
        leaf: &WantedLeaf,
        found: &Certified,
        issuer: Issuer<'_>,
    ) -> Vec<Reason> {
        let mut reasons = self.reasons(leaf, found, issuer);
        reasons.retain(|reason| !matches!(reason, Reason::LongLife { .. }));
        reasons
    }

    fn signed_here(&mut self, index: usize, leaf: &WantedLeaf, seen: &Seen, issuer: Issuer<'_>) {
        let Some(found) = &seen.certificate else {
            let kind = self.wanted.leaf_kind;
            let keeps = seen.key.as_ref().filter(|key| key.public().is_of(kind));
            let reason = match &seen.key {
                Some(_) => Reason::CertificateMissing,
                None => self.newness(leaf.place.stem()),
            };
            let act = match (keeps, &seen.key) {
                (None, Some(_)) => Act::Reissue,
                (keeps, _) => Act::Make {
                    new_key: keeps.is_none(),
                },
            };
            self.sign(leaf, index, act, vec![reason]);
            return;
        };
        let mut reasons = self.reasons(leaf, found, issuer);
        let key = compare::key_reason(self.wanted.leaf_kind, &found.0);
        reasons.extend(key);
        reasons.extend(
            self.present
                .revoked
                .has(&found.0)
                .then_some(Reason::Revoked),
        );
        if reasons.is_empty() {
            return self.same_certificate(index, leaf, seen);
        }
        if compare::only_age(&reasons) && !compare::gains(leaf, &found.0, issuer, self.now) {
            self.authority_ends(leaf.issuer);
            return self.same_certificate(index, leaf, seen);
        }
        if let Issuer::There(certificate) = issuer
            && compare::is_cut_short(leaf, certificate, self.now)
        {
            self.authority_ends(leaf.issuer);
        }
        self.sign(leaf, index, Act::Reissue, reasons);
    }

    /// A certificate that an authority of ours has to sign.
    fn sign(&mut self, leaf: &WantedLeaf, index: usize, act: Act, reasons: Vec<Reason>) {
        let held = self.held(leaf.issuer);
        let can = held.is_none_or(|held| held.authority.is_some() || held.certificate.is_none());
        if !can {
            self.unsigned.push((leaf.issuer, leaf.place.path()));
        }
        self.change(leaf.place.path(), Kind::Leaf(index, act), reasons);
    }

    fn authority_ends(&mut self, purpose: Purpose) {
        let Some((certificate, _)) = self
            .held(purpose)
            .and_then(|held| held.certificate.as_ref())
        else {
            return;
        };
        let note = Note::AuthorityEnds {
            purpose,
            not_after: certificate.not_after,
        };
        if !self.plan.notes.contains(&note) {
            self.plan.notes.push(note);
        }
    }

    /// The certificate stays; what is around it may not.
    fn same_certificate(&mut self, index: usize, leaf: &WantedLeaf, seen: &Seen) {
        let path = leaf.place.path();
        if let (Place::Conf { server, .. }, Some(conf)) = (&leaf.place, &seen.conf) {
            let mut reasons = Vec::new();
            if conf.server != *server {
                reasons.push(Reason::ServerMoved { to: server.clone() });
            }
            let anchors = self.anchors(leaf.issuer);
            if anchors.is_none_or(|anchors| anchors.as_bytes() != conf.authority) {
                reasons.push(Reason::AnchorsChanged);
            }
            if !reasons.is_empty() {
                return self.change(path, Kind::Leaf(index, Act::Rewrite), reasons);
            }
        }
        match seen.next {
            Next::Fits => self.change(path, Kind::Leaf(index, Act::Finish), vec![Reason::CutOff]),
            Next::LeftOver => {
                self.change(path, Kind::Leaf(index, Act::Tidy), vec![Reason::CutOff]);
            }
            Next::None => self.plan.kept += 1,
        }
    }

    /// What holders are known by; `None` while its authority is not there.
    fn anchors(&self, purpose: Purpose) -> Option<String> {
        let held = self.held(purpose)?;
        held.certificate.as_ref()?;
        Some(pem::write_certificates(&held.anchors))
    }

    /// A certificate of an authority that somebody else holds.
    fn asked(&mut self, index: usize, leaf: &WantedLeaf, seen: &Seen, issuer: Issuer<'_>) {
        let path = leaf.place.path();
        let is_conf = matches!(leaf.place, Place::Conf { .. });
        let mut reasons = match &seen.certificate {
            Some(found) => self.reasons_to_ask(leaf, found, issuer),
            None => vec![self.newness(leaf.place.stem())],
        };
        if reasons.is_empty() {
            let aside = seen.aside.is_some() || seen.aside_certificate.is_some();
            if seen.request.is_some() || aside {
                let request = format!("{}.csr", leaf.place.stem());
                let act = Kind::Leaf(index, Act::Answered);
                return self.change(request, act, vec![Reason::Answered]);
            }
            return self.same_certificate(index, leaf, seen);
        }
        if let (true, Some(found)) = (is_conf, &seen.aside_certificate) {
            let still = self.reasons_to_ask(leaf, found, issuer);
            if still.is_empty() {
                return self.change(path, Kind::Leaf(index, Act::Assemble), reasons);
            }
            reasons = still;
        }
        let key = match is_conf {
            true => seen.aside.as_ref(),
            false => seen.key.as_ref(),
        };
        let request = format!("{}.csr", leaf.place.stem());
        let current = key.is_some_and(|key| {
            let text = seen.request.as_deref();
            text.is_some_and(|text| asking::is_current(text, &leaf.subject, &key.public()))
        });
        if !current {
            let act = Act::Request {
                new_key: key.is_none(),
            };
            self.change(request.clone(), Kind::Leaf(index, act), reasons.clone());
        }
        self.plan.notes.push(Note::Waiting {
            path,
            request,
            reasons,
        });
    }

    fn keys_that_are_needed(&self) -> Result<(), PlanError> {
        let Some((purpose, first)) = self.unsigned.first() else {
            return Ok(());
        };
        let count = self.unsigned.iter().filter(|(one, _)| one == purpose);
        Err(PlanError::NoKey {
            purpose: *purpose,
            key: purpose.key(),
            count: count.count(),
            first: first.clone(),
        })
    }

    fn copy(&mut self, index: usize, copy: &WantedCopy) {
        let there = self.present.copies.get(index).and_then(Option::as_ref);
        let Some(there) = there else {
            let reason = self.newness(&copy.path);
            return self.change(copy.path.clone(), Kind::Copy(index), vec![reason]);
        };
        let same = match copy.of {
            Source::Anchors(purpose) => self
                .anchors(purpose)
                .is_some_and(|text| text.as_bytes() == there.expose()),
            Source::Certificate(purpose) => self
                .held(purpose)
                .and_then(|held| held.certificate.as_ref())
                .is_some_and(|(_, der)| {
                    let text = pem::write_certificates(std::slice::from_ref(der));
                    text.as_bytes() == there.expose()
                }),
            Source::Key(purpose) => self
                .held(purpose)
                .and_then(|held| held.key_text.as_ref())
                .is_some_and(|text| text.expose() == there.expose()),
            Source::ServiceAccountKey => {
                let key = self.present.service_account.as_ref();
                key.is_some_and(|(_, text)| text.expose() == there.expose())
            }
            Source::ServiceAccountPublic => {
                let text = self.present.service_account_public.as_ref();
                text.is_some_and(|text| text.expose() == there.expose())
            }
        };
        if same {
            self.plan.kept += 1;
        } else {
            let reason = vec![Reason::SourceChanged];
            self.change(copy.path.clone(), Kind::Copy(index), reason);
        }
    }

    fn gone(&mut self, prune: bool) {
        for path in &self.present.leftovers {
            self.change(path.clone(), Kind::Remove, vec![Reason::CutOff]);
        }
        for name in &self.present.machines_gone {
            if prune {
                let path = layout::host(name);
                self.change(path, Kind::RemoveMachine, vec![Reason::Gone]);
            } else {
                let name = name.chars().take(limits::HOST_BYTES).collect();
                self.plan.notes.push(Note::MachineGone { name });
            }
        }
        for path in &self.present.strays {
            if prune {
                self.change(path.clone(), Kind::Remove, vec![Reason::Gone]);
            } else {
                self.plan.notes.push(Note::FileGone { path: path.clone() });
            }
        }
    }
}
