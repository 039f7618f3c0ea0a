//! Authorities that somebody else holds: requests out, certificates in.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::crash_tests::{copy, everywhere};
use super::plan::Act;
use super::tests::{DAY, apply, now, planned};
use super::wanted::{Place, WantedLeaf};
use super::*;
use crate::key::{KeyKind, PrivateKey};
use crate::request::Request;
use crate::store::tests::Scratch;
use crate::{Authority, AuthoritySpec, Usage, pem, store};

/// Somebody who signs, and the cluster that asks.
struct World {
    scratch: Scratch,
    corporate: Authority,
    wanted: Wanted,
}

const TEXT: &str = "\
version: 1
cluster: prod.example
controlPlanes:
  - {name: cp-1, addresses: [10.0.0.1]}
nodes:
  - {name: node-1, addresses: [10.0.1.1]}
authorities:
  leaveOut: [etcd, frontProxy, gateway, towline]
  external:
    kubernetes: {certificate: corporate.crt";

fn authority() -> Authority {
    let spec = AuthoritySpec {
        purpose: "corporate".into(),
        organisation: "Example Ltd".into(),
        not_before: now() - DAY,
        not_after: now() + 3000 * DAY,
        path_length: Some(0),
        usages: vec![Usage::ServerAuth, Usage::ClientAuth],
    };
    Authority::create(&spec, PrivateKey::generate(KeyKind::EcdsaP384).unwrap()).unwrap()
}

impl World {
    fn new(more: &str) -> Self {
        let scratch = Scratch::new();
        let corporate = authority();
        fs::write(scratch.path("corporate.crt"), corporate.to_pem()).unwrap();
        let key = scratch.path("corporate.key");
        store::write_secret(&key, &corporate.key_to_pem(), store::Replace::Never).unwrap();
        let text = format!("{TEXT}{more}}}\n");
        let file = ClusterFile::parse(text.as_bytes(), &scratch.path("")).unwrap();
        Self {
            wanted: Wanted::of(&file),
            scratch,
            corporate,
        }
    }

    fn dir(&self) -> PathBuf {
        self.scratch.path("prod")
    }

    /// Signs what a request asks for, and puts it where it belongs.
    fn answer(&self, dir: &Path, leaf: &WantedLeaf, until: SystemTime) {
        let stem = dir.join(leaf.place.stem());
        let request = Request::load(&stem.with_extension("csr")).unwrap();
        let spec = crate::LeafSpec {
            not_before: now() - DAY,
            not_after: until,
            ..asking::spec(&leaf.subject)
        };
        let group = leaf.subject.organisation;
        let der = self
            .corporate
            .issue_raw_of(group, &spec, request.public_key())
            .unwrap();
        fs::write(stem.with_extension("crt"), pem::write_certificates(&[der])).unwrap();
    }

    fn answer_all(&self, dir: &Path) {
        for leaf in &self.wanted.leaves {
            self.answer(dir, leaf, now() + 365 * DAY);
        }
    }

    fn leaf(&self, stem: &str) -> &WantedLeaf {
        let mut leaves = self.wanted.leaves.iter();
        leaves.find(|leaf| leaf.place.stem() == stem).unwrap()
    }
}

fn waiting(plan: &Plan) -> usize {
    let notes = plan.notes.iter();
    notes
        .filter(|note| matches!(note, Note::Waiting { .. }))
        .count()
}

#[test]
fn requests_go_out_certificates_come_in_and_nothing_is_left_over() {
    let world = World::new("");
    let (dir, wanted) = (world.dir(), &world.wanted);
    let first = apply(&dir, wanted, false, now()).unwrap();
    let count = wanted.leaves.len();
    assert_eq!(waiting(&first), count);
    assert!(!dir.join("pki/ca.key").exists());
    assert_eq!(
        fs::read_to_string(dir.join("pki/ca.crt")).unwrap(),
        world.corporate.to_pem()
    );
    let asked = Request::load(&dir.join("hosts/node-1/kubelet/kubelet.csr")).unwrap();
    for word in [
        "O=system:nodes, CN=system:node:node-1",
        "DNS node-1",
        "IP of 4 bytes",
    ] {
        assert!(
            asked.asked().iter().any(|line| line.contains(word)),
            "{:?}",
            asked.asked()
        );
    }
    // The same requests wait; they are not made again.
    let again = apply(&dir, wanted, false, now()).unwrap();
    assert_eq!((again.changes.len(), waiting(&again)), (0, count));
    world.answer_all(&dir);
    let third = apply(&dir, wanted, false, now()).unwrap();
    assert_eq!(third.notes, []);
    let last = planned(&dir, wanted, false, now());
    assert_eq!((last.changes, last.notes), (vec![], vec![]));
    for leaf in &wanted.leaves {
        let there = |end: &str| dir.join(format!("{}.{end}", leaf.place.stem())).exists();
        let is_pair = matches!(leaf.place, Place::Pair { .. });
        assert!(!there("csr") && there("key") == is_pair && there("conf") != is_pair);
    }
    // When it gets old a pair keeps its key, and a kubeconfig stays whole while its next one is asked for.
    let key = fs::read(dir.join("hosts/cp-1/pki/apiserver.key")).unwrap();
    let conf = fs::read(dir.join("admin.conf")).unwrap();
    let late = now() + 300 * DAY;
    let old = apply(&dir, wanted, false, late).unwrap();
    assert_eq!(waiting(&old), count);
    assert!(
        old.changes
            .iter()
            .all(|change| matches!(change.kind, Kind::Leaf(_, Act::Request { .. })))
    );
    assert_eq!(fs::read(dir.join("admin.conf")).unwrap(), conf);
    for leaf in &wanted.leaves {
        world.answer(&dir, leaf, late + 365 * DAY);
    }
    apply(&dir, wanted, false, late).unwrap();
    let last = planned(&dir, wanted, false, late);
    assert_eq!((last.changes, last.notes), (vec![], vec![]));
    assert_eq!(
        fs::read(dir.join("hosts/cp-1/pki/apiserver.key")).unwrap(),
        key
    );
    assert_ne!(fs::read(dir.join("admin.conf")).unwrap(), conf);
}

#[test]
fn what_comes_in_is_checked() {
    let world = World::new("");
    let (dir, wanted) = (world.dir(), &world.wanted);
    apply(&dir, wanted, false, now()).unwrap();
    let stem = "hosts/node-1/kubelet/kubelet";
    let why = || {
        let plan = planned(&dir, wanted, false, now());
        assert_eq!(plan.changes, []);
        let path = format!("{stem}.crt");
        let found = plan.notes.into_iter().find_map(|note| match note {
            Note::Waiting {
                path: found,
                reasons,
                ..
            } if found == path => Some(reasons),
            _ => None,
        });
        found.map(|list| {
            list.iter()
                .map(Reason::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        })
    };
    // Without its address.
    let mut leaf = world.leaf(stem).clone();
    leaf.subject.ips.clear();
    world.answer(&dir, &leaf, now() + 365 * DAY);
    assert_eq!(why().as_deref(), Some("address 10.0.1.1 added"));
    // For more than it should.
    let mut leaf = world.leaf(stem).clone();
    leaf.subject.usages.push(Usage::ClientAuth);
    world.answer(&dir, &leaf, now() + 365 * DAY);
    assert_eq!(
        why().as_deref(),
        Some("usages serverAuth, clientAuth become serverAuth")
    );
    // By somebody else of the same name.
    let leaf = world.leaf(stem).clone();
    let other = World {
        corporate: authority(),
        ..World::new("")
    };
    other.answer(&dir, &leaf, now() + 365 * DAY);
    assert_eq!(why().as_deref(), Some("signed by another authority"));
    // For another key.
    world.answer(&dir, &leaf, now() + 365 * DAY);
    let kubelet = fs::read(dir.join(format!("{stem}.crt"))).unwrap();
    fs::write(dir.join("hosts/cp-1/kubelet/kubelet.crt"), kubelet).unwrap();
    let error = Present::read(&dir, wanted, now()).err().unwrap();
    assert!(matches!(error, PresentError::Mismatch { .. }), "{error}");
    fs::remove_file(dir.join("hosts/cp-1/kubelet/kubelet.crt")).unwrap();
    // A wish that changes is a new request for the same key; that it lives long is theirs to say.
    world.answer(&dir, &leaf, now() + 2000 * DAY);
    let plan = planned(&dir, wanted, false, now());
    assert_eq!(plan.changes.len(), 1);
    assert!(matches!(plan.changes[0].kind, Kind::Leaf(_, Act::Answered)));
    let moved = ClusterFile::parse(
        format!("{}}}\n", TEXT.replace("10.0.1.1", "10.0.1.2")).as_bytes(),
        &world.scratch.path(""),
    );
    let moved = Wanted::of(&moved.unwrap());
    let request = |plan: &Plan| {
        let found = plan.changes.iter();
        let mut found = found.filter(|change| change.path == format!("{stem}.csr"));
        found.next().map(|change| change.kind)
    };
    let plan = apply(&dir, &moved, false, now()).unwrap();
    assert!(matches!(
        request(&plan),
        Some(Kind::Leaf(_, Act::Request { new_key: false }))
    ));
    assert_eq!(request(&planned(&dir, &moved, false, now())), None);
}

#[test]
fn with_its_key_an_external_authority_signs_here_and_the_key_stays_where_it_is() {
    let world = World::new(", key: corporate.key");
    let (dir, wanted) = (world.dir(), &world.wanted);
    let plan = apply(&dir, wanted, false, now()).unwrap();
    assert_eq!(waiting(&plan), 0);
    assert!(!dir.join("pki/ca.key").exists());
    assert_eq!(planned(&dir, wanted, false, now()).changes, []);
    // Another authority in its place is refused: who trusts the first would trust nobody.
    fs::write(world.scratch.path("corporate.crt"), authority().to_pem()).unwrap();
    let error = Present::read(&dir, wanted, now()).err().unwrap();
    assert!(error.to_string().contains("never written over"), "{error}");
}

#[test]
fn taking_certificates_in_can_be_cut_off_anywhere() {
    let world = World::new("");
    let base = world.scratch.path("base");
    apply(&base, &world.wanted, false, now()).unwrap();
    world.answer_all(&base);
    let places = everywhere(&|dir| copy(&base, dir), &world.wanted, false);
    assert!(places > 40, "{places}");
}
