//! What revocation lists decide about peers: every certificate of a path, every second of a list's
//! life, and which list may follow which.

mod cluster;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cluster::{Cluster, DAY, Scratch, new_key, now, spec};
use rustls_pki_types::CertificateDer;
use towline_pki::crl::{ListSpec, RevocationListError, RevocationReason, Revoked};
use towline_pki::{
    Anchors, Authority, Certificate, CrlPolicy, DenyList, PeerError, PeerVerifier, Revocation,
    Usage, pem,
};
use towline_proto::id::Role;
use towline_proto::reason::Reason;

fn list(authority: &Authority, number: u64, revoked: &[&CertificateDer<'_>]) -> String {
    list_until(authority, number, revoked, now() + 30 * DAY)
}

fn list_until(
    authority: &Authority,
    number: u64,
    revoked: &[&CertificateDer<'_>],
    next_update: SystemTime,
) -> String {
    let entry = |der: &&CertificateDer<'_>| Revoked {
        serial: Certificate::parse(der).unwrap().serial,
        at: now(),
        reason: RevocationReason::KeyCompromise,
    };
    let spec = ListSpec {
        number,
        this_update: now() - DAY,
        next_update,
        revoked: revoked.iter().map(entry).collect(),
    };
    pem::write_revocation_list(&authority.sign_list(&spec).unwrap())
}

struct File {
    scratch: Scratch,
}

impl File {
    fn of(text: &str) -> Self {
        let file = Self {
            scratch: Scratch::new(),
        };
        file.put(text);
        file
    }

    fn put(&self, text: &str) {
        std::fs::write(self.path(), text).unwrap();
    }

    fn path(&self) -> PathBuf {
        self.scratch.path("a.crl")
    }

    fn load(
        &self,
        anchors: &Anchors,
        in_force: Option<&Revocation>,
    ) -> Result<Revocation, RevocationListError> {
        Revocation::load(&[self.path()], anchors, CrlPolicy::KeepLast, in_force)
    }
}

fn verifier(c: &Cluster, anchors: &Anchors, lists: Revocation) -> Arc<PeerVerifier> {
    PeerVerifier::with_lists(
        c.name.parse().unwrap(),
        Role::Agent,
        anchors.clone(),
        DenyList::default(),
        Some(lists),
    )
}

#[test]
fn a_serial_on_its_issuer_s_list_is_refused_and_no_other() {
    let c = Cluster::new("prod");
    let (stolen, good) = (c.paper(Role::Agent, "n1"), c.paper(Role::Agent, "n1"));
    let file = File::of(&list(&c.agents, 1, &[&stolen.chain[0]]));
    let anchors = c.anchors(Role::Agent);
    let verifier = verifier(&c, &anchors, file.load(&anchors, None).unwrap());
    let error = verifier.verify(&stolen.chain, now()).unwrap_err();
    assert_eq!(
        (error.reason(), error.as_str()),
        (Reason::Revoked, "revoked")
    );
    let serial = Certificate::parse(&stolen.chain[0]).unwrap().serial;
    let text = error.to_string();
    assert!(
        text.contains("agent/n1") && text.contains(&serial.to_string()),
        "{text}"
    );
    verifier.verify(&good.chain, now()).unwrap();
}

#[test]
fn every_certificate_of_the_path_must_be_on_the_list_of_its_issuer() {
    let c = Cluster::new("prod");
    let between = c
        .root
        .create_below(&spec("between", Some(0), &[Usage::ClientAuth]), new_key())
        .unwrap();
    let key = new_key();
    let leaf = between
        .issue_raw(&c.leaf(Role::Agent, "n1"), &key.public())
        .unwrap();
    let chain = [leaf.clone(), between.der().clone()];
    let anchors = Anchors::new(std::slice::from_ref(c.root.der())).unwrap();
    let above = list(&c.root, 1, &[]);
    let below = |revoked: &[&CertificateDer<'_>]| {
        // Its signature can be checked because its certificate lies beside it.
        format!("{}{}", list(&between, 1, revoked), between.to_pem())
    };
    let judge = |text: String| {
        let file = File::of(&text);
        let lists = file.load(&anchors, None).unwrap();
        verifier(&c, &anchors, lists).verify(&chain, now())
    };
    judge(format!("{above}{}", below(&[]))).unwrap();
    let missing = judge(above.clone()).unwrap_err();
    assert_eq!(missing, PeerError::RevocationUnknown);
    assert_eq!(missing.reason(), Reason::RevocationUnknown);
    for text in [
        format!("{above}{}", below(&[&leaf])),
        format!("{}{}", list(&c.root, 1, &[between.der()]), below(&[])),
    ] {
        let error = judge(text).unwrap_err();
        assert_eq!(error.reason(), Reason::Revoked, "{error}");
    }
    let alone = File::of(&format!("{above}{}", list(&between, 1, &[])));
    let error = alone.load(&anchors, None).unwrap_err().to_string();
    assert!(
        error.contains("none of the authorities") && error.contains("list 2"),
        "{error}"
    );
}

#[test]
fn a_list_counts_to_the_second_of_its_next_update_and_then_its_policy_does() {
    let c = Cluster::new("prod");
    let peer = c.paper(Role::Agent, "n1");
    let stolen = c.paper(Role::Agent, "n2");
    let end = now() + DAY;
    let file = File::of(&list_until(&c.agents, 1, &[&stolen.chain[0]], end));
    let anchors = c.anchors(Role::Agent);
    let second = Duration::from_secs(1);
    for policy in [CrlPolicy::KeepLast, CrlPolicy::FailClosed] {
        let lists = Revocation::load(&[file.path()], &anchors, policy, None).unwrap();
        let closed = policy == CrlPolicy::FailClosed;
        assert_eq!(lists.went_stale(end, end + second), closed);
        assert!(!lists.went_stale(end - second, end));
        assert!(!lists.went_stale(end + second, end + 2 * second));
        let verifier = verifier(&c, &anchors, lists);
        for (at, stale) in [
            (end - second, false),
            (end + second, true),
            (end + DAY, true),
        ] {
            let verdict = verifier.verify(&peer.chain, at);
            match verdict {
                Ok(_) => assert!(!(stale && closed), "{policy} {at:?}"),
                Err(error) => {
                    assert!(stale && closed, "{policy} {at:?}: {error}");
                    assert_eq!(error, PeerError::ListStale { next_update: end });
                    assert_eq!(error.reason(), Reason::RevocationUnknown);
                }
            }
            // Who is revoked stays out in any case.
            assert!(verifier.verify(&stolen.chain, at).is_err());
        }
    }
}

#[test]
fn a_list_may_only_follow_an_older_one() {
    let c = Cluster::new("prod");
    let stranger = Cluster::new("prod");
    let anchors = c.anchors(Role::Agent);
    let file = File::of(&list(&c.agents, 7, &[]));
    let in_force = file.load(&anchors, None).unwrap();
    let follows = |text: &str| {
        file.put(text);
        file.load(&anchors, Some(&in_force)).map(drop)
    };
    for number in [7, 8, u64::MAX] {
        follows(&list(&c.agents, number, &[])).unwrap();
    }
    let both = [list(&c.agents, 6, &[]), list(&c.agents, 8, &[])];
    follows(&both.concat()).unwrap();
    follows(&[both[1].clone(), both[0].clone()].concat()).unwrap();
    for number in [0, 6] {
        let error = follows(&list(&c.agents, number, &[])).unwrap_err();
        assert!(
            error.to_string().contains("number 7 was in force"),
            "{error}"
        );
    }
    for text in [
        list(&stranger.agents, 9, &[]),
        list(&c.servers, 9, &[]),
        list(&c.root, 9, &[]),
        format!(
            "{}{}",
            list(&c.agents, 9, &[]),
            list(&stranger.root, 9, &[])
        ),
    ] {
        let error = follows(&text).unwrap_err().to_string();
        assert!(error.contains("none of the authorities"), "{error}");
    }
    // The list of an authority that is still trusted must not go; of one that is gone it may.
    let two = Anchors::new(&[c.agents.der().clone(), stranger.agents.der().clone()]).unwrap();
    let own = list(&c.agents, 9, &[]);
    let theirs = list(&stranger.agents, 3, &[]);
    file.put(&format!("{own}{theirs}"));
    let in_force = file.load(&two, None).unwrap();
    file.put(&own);
    let error = file.load(&two, Some(&in_force)).unwrap_err();
    assert!(
        matches!(error, RevocationListError::Dropped { .. }),
        "{error}"
    );
    file.load(&anchors, Some(&in_force)).unwrap();
}

#[test]
fn a_forged_list_is_refused_although_its_name_is_right() {
    let c = Cluster::new("prod");
    let anchors = c.anchors(Role::Agent);
    let good = list(&c.agents, 1, &[]);
    let ders = pem::revocation_lists(good.as_bytes()).unwrap();
    let mut forged = ders[0].as_ref().to_vec();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let file = File::of(&pem::write_revocation_list(&forged.into()));
    let error = file.load(&anchors, None).unwrap_err().to_string();
    assert!(
        error.contains("is not signed by") && error.contains("a.crl"),
        "{error}"
    );
}
