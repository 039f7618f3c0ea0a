//! From one cluster file to the next: what changes, why, and what stays.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::plan::Act;
use super::*;
use crate::inspect::Certificate;
use crate::key::{KeyKind, PrivateKey};
use crate::store::tests::Scratch;
use crate::{Authority, AuthoritySpec, Usage, store};

pub(super) const DAY: Duration = Duration::from_secs(86_400);

/// Whole seconds.
pub(super) fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000)
}

pub(super) const SMALL: &str = "\
version: 1
cluster: prod.example
controlPlanes:
  - {name: cp-1, addresses: [10.0.0.1]}
nodes:
  - {name: node-1, addresses: [10.0.1.1]}
authorities:
  leaveOut: [frontProxy, gateway]
";

pub(super) fn wanted(text: &str) -> Wanted {
    let file = ClusterFile::parse(text.as_bytes(), Path::new("")).unwrap();
    Wanted::of(&file)
}

pub(super) fn planned(dir: &Path, wanted: &Wanted, prune: bool, now: SystemTime) -> Plan {
    let present = Present::read(dir, wanted, now).unwrap();
    plan(wanted, &present, prune, now).unwrap()
}

/// Applies with one writer, so that a thread's failing disk is the whole disk.
pub(super) fn apply(
    dir: &Path,
    wanted: &Wanted,
    prune: bool,
    now: SystemTime,
) -> Result<Plan, WriteError> {
    let present = Present::read(dir, wanted, now).unwrap();
    let plan = plan(wanted, &present, prune, now).unwrap();
    write(dir, wanted, present, &plan, 1, now)?;
    Ok(plan)
}

/// Every file with its content.
pub(super) fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let list = store::files_below(dir).unwrap();
    let read = |path: PathBuf| {
        let bytes = std::fs::read(&path).unwrap();
        (path.strip_prefix(dir).unwrap().to_owned(), bytes)
    };
    list.into_iter().map(read).collect()
}

fn made(text: &str) -> (Scratch, PathBuf, Wanted) {
    let scratch = Scratch::new();
    let dir = scratch.path("prod");
    let wanted = wanted(text);
    apply(&dir, &wanted, false, now()).unwrap();
    (scratch, dir, wanted)
}

/// Paths and reasons of what would change.
fn differences(dir: &Path, text: &str, now: SystemTime) -> Vec<String> {
    let plan = planned(dir, &wanted(text), false, now);
    let one = |change: &Change| {
        let why: Vec<_> = change.reasons.iter().map(Reason::to_string).collect();
        format!("{}: {}", change.path, why.join(", "))
    };
    plan.changes.iter().map(one).collect()
}

fn certificate(dir: &Path, name: &str) -> Certificate {
    let der = store::read_certificates(&dir.join(name)).unwrap();
    Certificate::parse(der.first().unwrap().as_ref()).unwrap()
}

#[test]
fn a_second_run_changes_nothing() {
    let (_scratch, dir, wanted) = made(SMALL);
    let before = files(&dir);
    let plan = apply(&dir, &wanted, true, now()).unwrap();
    assert_eq!(plan.changes, []);
    assert_eq!(plan.notes, []);
    assert_eq!(files(&dir), before);
}

#[test]
fn side_by_side_or_one_after_the_other_is_the_same() {
    let text = SMALL.replace(
        "authorities:",
        "  - {name: node-2, addresses: [10.0.1.2]}\n  - {name: node-3, addresses: [10.0.1.3]}\nauthorities:",
    );
    let (_scratch, one, wanted) = made(&text);
    let scratch = Scratch::new();
    let many = scratch.path("many");
    let present = Present::read(&many, &wanted, now()).unwrap();
    let plan = plan(&wanted, &present, false, now()).unwrap();
    let done = write(&many, &wanted, present, &plan, 8, now()).unwrap();
    let names = |dir: &Path| files(dir).into_iter().map(|(name, _)| name);
    assert!(names(&one).eq(names(&many)));
    assert_eq!(done.signed.len(), wanted.leaves.len());
    assert_eq!(planned(&many, &wanted, false, now()).changes, []);
}

#[test]
fn an_address_that_comes_or_goes_is_a_new_serving_certificate_with_a_new_key() {
    let (_scratch, dir, _) = made(SMALL);
    let more = SMALL.replace("[10.0.1.1]", "[10.0.1.1, \"fd00::7\"]");
    assert_eq!(
        differences(&dir, &more, now()),
        [
            "hosts/node-1/kubelet/kubelet.crt: address fd00::7 added",
            "hosts/node-1/towline/agent.crt: address fd00::7 added",
        ]
    );
    let key = std::fs::read(dir.join("hosts/node-1/kubelet/kubelet.key")).unwrap();
    let plan = apply(&dir, &wanted(&more), false, now()).unwrap();
    assert!(matches!(plan.changes[0].kind, Kind::Leaf(_, Act::Reissue)));
    let kubelet = certificate(&dir, "hosts/node-1/kubelet/kubelet.crt");
    assert_eq!(kubelet.ip_sans.len(), 2);
    assert_ne!(
        std::fs::read(dir.join("hosts/node-1/kubelet/kubelet.key")).unwrap(),
        key
    );
    assert_eq!(
        differences(&dir, SMALL, now())[0],
        "hosts/node-1/kubelet/kubelet.crt: address fd00::7 removed"
    );
}

#[test]
fn each_difference_has_its_reason() {
    let (_scratch, dir, _) = made(SMALL);
    let find = |text: &str, path: &str| {
        let all = differences(&dir, text, now());
        let found = all
            .iter()
            .find_map(|line| line.strip_prefix(&format!("{path}: ")));
        found
            .unwrap_or_else(|| panic!("{path} in {all:#?}"))
            .to_owned()
    };
    let with = |more: &str| format!("{SMALL}{more}\n");
    let api = "hosts/cp-1/pki/apiserver.crt";
    let moved = with("kubernetes: {endpoint: cp.example}");
    assert_eq!(find(&moved, api), "name cp.example added");
    assert_eq!(
        find(&moved, "hosts/node-1/kubelet.conf"),
        "kube-apiserver is at https://cp.example:6443"
    );
    let domain = with("kubernetes: {clusterDomain: other.local, apiserverNames: [192.0.2.1]}");
    assert_eq!(
        find(&domain, api),
        "name kubernetes.default.svc.other.local added, \
         name kubernetes.default.svc.cluster.local removed, address 192.0.2.1 added"
    );
    let kind = with("keys: {certificates: ecdsa-p384}");
    assert_eq!(
        find(&kind, "hosts/node-1/towline/agent.crt"),
        "key is ECDSA P-256, wanted is ECDSA P-384"
    );
    assert_eq!(
        find(
            &with("lives: {agents: 30}"),
            "hosts/node-1/towline/agent.crt"
        ),
        "it lives 90 days, the file allows 30"
    );
    let node = SMALL.replace(
        "authorities:",
        "  - {name: node-2, addresses: [10.0.1.2]}\nauthorities:",
    );
    assert_eq!(find(&node, "hosts/node-2/kubelet.conf"), "node-2 is new");
    assert_eq!(
        find(&SMALL.replace("frontProxy, ", ""), "pki/front-proxy-ca.crt"),
        "new"
    );
}

#[test]
fn a_certificate_of_another_authority_is_made_anew() {
    let (_scratch, dir, wanted) = made(SMALL);
    for name in ["pki/ca.crt", "pki/ca.key"] {
        std::fs::remove_file(dir.join(name)).unwrap();
    }
    let plan = apply(&dir, &wanted, false, now()).unwrap();
    let changed = plan
        .changes
        .iter()
        .filter(|change| change.reasons == [Reason::IssuerChanged]);
    // apiserver, its kubelet client, two kubelets, and six kubeconfigs.
    assert_eq!(changed.count(), 10);
    assert_eq!(planned(&dir, &wanted, false, now()).changes, []);
    let conf = std::fs::read(dir.join("admin.conf")).unwrap();
    let conf = kubeconfig::read(&conf).unwrap();
    assert_eq!(
        conf.authority,
        std::fs::read(dir.join("pki/ca.crt")).unwrap()
    );
}

#[test]
fn what_is_due_is_renewed_to_the_second() {
    let scratch = Scratch::new();
    let dir = scratch.path("prod");
    // Authorities that are older, so that they are valid before the certificate is.
    apply(&dir, &wanted(SMALL), false, now() - 10 * DAY).unwrap();
    let path = "hosts/node-1/towline/agent.crt";
    for end in ["crt", "key"] {
        std::fs::remove_file(dir.join(path).with_extension(end)).unwrap();
    }
    apply(&dir, &wanted(SMALL), false, now()).unwrap();
    let agent = certificate(&dir, path);
    let life = agent.not_after.duration_since(agent.not_before).unwrap();
    let second = Duration::from_secs(1);
    let due_at = |text: &str, moment: SystemTime| {
        let lines = differences(&dir, text, moment);
        let mut lines = lines.iter().filter(|line| line.starts_with(path));
        lines
            .next()
            .map(|line| line.split(' ').nth(1).unwrap().to_owned())
    };
    let begin = agent.not_before;
    assert_eq!(
        due_at(SMALL, begin - second).as_deref(),
        Some("it"),
        "not yet valid"
    );
    assert_eq!(due_at(SMALL, begin), None);
    let thirds = agent.not_after - life / 3;
    assert_eq!(due_at(SMALL, thirds - second), None);
    for late in [Duration::ZERO, second] {
        assert_eq!(due_at(SMALL, thirds + late).as_deref(), Some("due:"));
    }
    let days = format!("{SMALL}lives: {{renewBefore: 7}}\n");
    let ahead = agent.not_after - 7 * DAY;
    assert_eq!(due_at(&days, ahead - second), None);
    for late in [Duration::ZERO, second] {
        assert_eq!(due_at(&days, ahead + late).as_deref(), Some("due:"));
    }
    assert_eq!(due_at(&days, agent.not_after).as_deref(), Some("due:"));
    assert_eq!(
        due_at(&days, agent.not_after + second).as_deref(),
        Some("it"),
        "ended"
    );
}

#[test]
fn near_the_end_of_its_authority_nothing_is_renewed_in_vain() {
    let text = format!("{SMALL}lives: {{authorities: 400, issuers: 390, renewBefore: 29}}\n");
    let (_scratch, dir, wanted) = made(&text);
    let late = now() + 380 * DAY;
    let plan = apply(&dir, &wanted, false, late).unwrap();
    assert!(!plan.changes.is_empty());
    let note = |purpose: Purpose| Note::AuthorityEnds {
        purpose,
        not_after: certificate(&dir, &purpose.certificate()).not_after,
    };
    assert!(
        plan.notes.contains(&note(Purpose::Agents)),
        "{:?}",
        plan.notes
    );
    // Every certificate ends with its authority, within the time before which it is renewed.
    let again = apply(&dir, &wanted, false, late).unwrap();
    assert_eq!(again.changes, []);
    assert!(
        again.notes.contains(&note(Purpose::Kubernetes)),
        "{:?}",
        again.notes
    );
    // And an authority that has ended is an error, not a loop.
    let error = Present::read(&dir, &wanted, now() + 395 * DAY)
        .err()
        .unwrap();
    assert!(error.to_string().contains("expired"), "{error}");
}

#[test]
fn an_authority_is_never_written_over_and_its_key_may_be_elsewhere() {
    let (_scratch, dir, plain) = made(SMALL);
    let before = std::fs::read(dir.join("pki/ca.crt")).unwrap();
    let other = wanted(&format!(
        "{SMALL}keys: {{authorities: rsa-3072}}\nlives: {{authorities: 5000}}\n"
    ));
    assert_eq!(apply(&dir, &other, false, now()).unwrap().changes, []);
    assert_eq!(std::fs::read(dir.join("pki/ca.crt")).unwrap(), before);
    for key in ["pki/ca.key", "root/root.key"] {
        std::fs::remove_file(dir.join(key)).unwrap();
    }
    assert_eq!(planned(&dir, &plain, false, now()).changes, []);
    let more = wanted(&SMALL.replace("[10.0.1.1]", "[10.0.1.1, 10.0.1.9]"));
    let present = Present::read(&dir, &more, now()).unwrap();
    let error = plan(&more, &present, false, now()).unwrap_err();
    assert!(matches!(
        error,
        PlanError::NoKey {
            purpose: Purpose::Kubernetes,
            count: 1,
            ..
        }
    ));
    // A new issuer needs the root, which is elsewhere.
    for end in ["key", "crt"] {
        std::fs::remove_file(dir.join(format!("issuers/agents.{end}"))).unwrap();
    }
    let present = Present::read(&dir, &plain, now()).unwrap();
    let error = plan(&plain, &present, false, now()).unwrap_err();
    assert!(matches!(
        error,
        PlanError::NoKey {
            purpose: Purpose::Root,
            ..
        }
    ));
}

#[test]
fn a_trust_file_keeps_what_was_added_to_it() {
    let (_scratch, dir, wanted) = made(SMALL);
    let spec = AuthoritySpec {
        purpose: "next".into(),
        organisation: String::new(),
        not_before: now() - DAY,
        not_after: now() + 100 * DAY,
        path_length: Some(0),
        usages: vec![Usage::ClientAuth],
    };
    let next = Authority::create(&spec, PrivateKey::generate(KeyKind::EcdsaP256).unwrap()).unwrap();
    let trust = dir.join("trust/agents.pem");
    let both = std::fs::read_to_string(&trust).unwrap() + &next.to_pem();
    std::fs::write(&trust, &both).unwrap();
    let plan = apply(&dir, &wanted, false, now()).unwrap();
    assert_eq!(plan.changes.len(), 1, "{:?}", plan.changes);
    let copy = dir.join("hosts/cp-1/towline/agents.pem");
    assert_eq!(std::fs::read_to_string(copy).unwrap(), both);
    assert_eq!(std::fs::read_to_string(&trust).unwrap(), both);
}

#[test]
fn a_rotation_that_was_cut_off_is_not_taken_for_an_authority_that_never_was() {
    let (_scratch, dir, wanted) = made(SMALL);
    let (now_there, old) = (
        dir.join("issuers/agents.crt"),
        dir.join("issuers/agents-old.crt"),
    );
    std::fs::rename(&now_there, old).unwrap();
    let error = Present::read(&dir, &wanted, now()).err().unwrap();
    assert!(error.to_string().contains("rotate activate"), "{error}");
}

#[test]
fn a_machine_that_is_gone_stays_until_it_is_pruned() {
    let (_scratch, dir, _) = made(SMALL);
    let without = wanted(&SMALL.replace("nodes:\n  - {name: node-1, addresses: [10.0.1.1]}\n", ""));
    let plan = apply(&dir, &without, false, now()).unwrap();
    assert_eq!(plan.changes, []);
    assert_eq!(
        plan.notes,
        [Note::MachineGone {
            name: "node-1".into()
        }]
    );
    assert!(dir.join("hosts/node-1/kubelet.conf").exists());
    std::fs::write(dir.join("hosts/cp-1/notes.txt"), "mine").unwrap();
    std::fs::create_dir(dir.join("hosts/old")).unwrap();
    std::fs::write(dir.join("hosts/old/notes.txt"), "mine").unwrap();
    let plan = apply(&dir, &without, true, now()).unwrap();
    assert_eq!(plan.changes.len(), 1);
    assert!(!dir.join("hosts/node-1").exists());
    assert!(dir.join("hosts/old/notes.txt").exists());
    // A part that a machine does not play any more; what is not ours is left alone.
    let no_agents = wanted(&format!("{SMALL}towline: {{agents: false}}\n"));
    let plan = planned(&dir, &no_agents, false, now());
    let gone = Note::FileGone {
        path: "hosts/cp-1/towline/agent.key".into(),
    };
    assert!(plan.notes.contains(&gone), "{:?}", plan.notes);
    apply(&dir, &no_agents, true, now()).unwrap();
    assert!(!dir.join("hosts/cp-1/towline/agent.key").exists());
    assert!(dir.join("hosts/cp-1/notes.txt").exists());
}
