//! Who gets in and who does not: one test for each rule of the verifier.

mod cluster;

use cluster::{Cluster, DAY, new_key, now, spec};
use rustls_pki_types::CertificateDer;
use towline_pki::{Anchors, Authority, DenyList, PeerError, PeerVerifier, Usage};
use towline_proto::id::Role;
use towline_proto::limits;
use towline_proto::reason::Reason;

#[test]
fn every_role_is_verified_by_its_own_verifier() {
    let c = Cluster::new("prod");
    for role in Role::ALL {
        let paper = c.paper(role, "x1");
        let peer = c.verifier(role).verify(&paper.chain, now()).unwrap();
        assert_eq!(peer.identity(), &c.identity(role, "x1"));
        assert_eq!(peer.chain(), paper.chain);
        assert_eq!(peer.valid_until(), now() + 90 * DAY);
        assert_eq!(peer.leaf().not_after, now() + 90 * DAY);
    }
}

#[test]
fn no_certificate_is_refused() {
    let c = Cluster::new("prod");
    let error = c.verifier(Role::Agent).verify(&[], now()).unwrap_err();
    assert_eq!(error, PeerError::NoCertificate);
}

#[test]
fn another_clusters_authority_is_unknown() {
    let (ours, theirs) = (Cluster::new("prod"), Cluster::new("prod"));
    let paper = theirs.paper(Role::Agent, "n1");
    let error = ours.verifier(Role::Agent).verify(&paper.chain, now());
    assert_eq!(error.unwrap_err(), PeerError::UnknownIssuer);
}

#[test]
fn an_authority_of_the_same_name_and_another_key_is_unknown() {
    // kubeadm names every cluster's authority "kubernetes". Names made here hold a part of the
    // key's hash, so the forged issuer is written over the genuine one's bytes.
    let (c, rogue) = (Cluster::new("prod"), Cluster::new("prod"));
    let hash = |cluster: &Cluster| {
        let subject = &cluster.agents.certificate().subject;
        subject.rsplit(' ').next().unwrap().to_string().into_bytes()
    };
    let (theirs, ours) = (hash(&rogue), hash(&c));
    assert_eq!(theirs.len(), 8);
    let mut forged = rogue.paper(Role::Agent, "n1").chain.remove(0).to_vec();
    let at = forged.windows(8).position(|w| w == theirs).unwrap();
    forged[at..at + 8].copy_from_slice(&ours);
    let error = c.verifier(Role::Agent).verify(&[forged.into()], now());
    assert_eq!(error.unwrap_err(), PeerError::UnknownIssuer);
}

#[test]
fn the_issuer_of_agents_cannot_make_a_server() {
    let c = Cluster::new("prod");
    let key = new_key();
    let forged = c
        .agents
        .issue_raw(&c.leaf(Role::Server, "cp-1"), &key.public())
        .unwrap();
    let error = c
        .verifier(Role::Server)
        .verify(std::slice::from_ref(&forged), now());
    assert_eq!(error.unwrap_err(), PeerError::UnknownIssuer);

    // Not even where somebody anchors on the root, against all advice: usages nest.
    let root = Anchors::new(std::slice::from_ref(c.root.der())).unwrap();
    let loose = PeerVerifier::new(
        "prod".parse().unwrap(),
        Role::Server,
        root,
        DenyList::default(),
    );
    let chain = [forged, c.agents.der().clone()];
    let error = loose.verify(&chain, now()).unwrap_err();
    assert!(matches!(error, PeerError::WrongUsage { .. }), "{error}");

    // Nor where its certificate is the anchor itself.
    let wrong_file = PeerVerifier::new(
        "prod".parse().unwrap(),
        Role::Server,
        c.anchors(Role::Agent),
        DenyList::default(),
    );
    let error = wrong_file.verify(&chain[..1], now()).unwrap_err();
    assert!(matches!(error, PeerError::WrongUsage { .. }), "{error}");
}

#[test]
fn expired_and_not_yet_valid_are_told_apart_to_the_second() {
    let c = Cluster::new("prod");
    let verifier = c.verifier(Role::Agent);
    let paper = c.paper(Role::Agent, "n1");
    let (before, after) = (now() - DAY, now() + 90 * DAY);
    let second = std::time::Duration::from_secs(1);
    assert!(verifier.verify(&paper.chain, before).is_ok());
    assert!(verifier.verify(&paper.chain, after).is_ok());
    // One second outside: no allowance for clocks. The issuer begins at the same second, so the
    // early case is made with a leaf that begins later.
    let mut late = c.leaf(Role::Agent, "n1");
    late.not_before = now() + second;
    let late = c.mint(Role::Agent, &late);
    assert_eq!(
        verifier.verify(&late.chain, now()).unwrap_err(),
        PeerError::NotYetValid {
            not_before: now() + second
        }
    );
    let error = verifier.verify(&paper.chain, after + second).unwrap_err();
    assert_eq!(error, PeerError::Expired { not_after: after });
    assert_eq!(error.reason(), Reason::CertificateEnded);
}

#[test]
fn a_usage_of_another_role_or_none_is_refused() {
    let c = Cluster::new("prod");
    for (role, usages) in [
        (Role::Server, vec![Usage::ClientAuth]),
        (Role::Agent, vec![Usage::ServerAuth]),
        (Role::Agent, vec![]),
        (Role::Operator, vec![]),
    ] {
        let mut leaf = c.leaf(role, "x");
        leaf.usages = usages;
        let paper = c.mint(role, &leaf);
        let error = c.verifier(role).verify(&paper.chain, now()).unwrap_err();
        assert!(
            matches!(error, PeerError::WrongUsage { .. }),
            "{role}: {error}"
        );
    }
}

#[test]
fn zero_two_or_a_foreign_identity_are_different_errors() {
    let c = Cluster::new("prod");
    let verify = |uris: &[&str]| {
        let mut leaf = c.leaf(Role::Agent, "n1");
        leaf.uris = uris.iter().map(|s| s.to_string()).collect();
        let paper = c.mint(Role::Agent, &leaf);
        c.verifier(Role::Agent)
            .verify(&paper.chain, now())
            .unwrap_err()
    };
    let good = "spiffe://prod/towline/agent/n1";
    assert_eq!(verify(&[]), PeerError::NoIdentity);
    let two = PeerError::ManyIdentities { count: 2 };
    assert_eq!(verify(&[good, "spiffe://prod/towline/agent/n2"]), two);
    assert_eq!(verify(&[good, good]), two);
    assert_eq!(verify(&[good, "https://example.org"]), two);
    for foreign in [
        "spiffe://prod/ns/default/sa/web",
        "https://example.org/",
        "spiffe://prod/towline/agent/N1",
        "spiffe://prod/towline/agent/n1\u{7f}",
    ] {
        let error = verify(&[foreign]);
        assert!(matches!(error, PeerError::BadIdentity { .. }), "{error}");
        assert!(
            !error.to_string().chars().any(char::is_control),
            "{error:?}"
        );
    }
}

#[test]
fn another_cluster_or_role_is_refused_by_name() {
    let c = Cluster::new("prod");
    let verify = |uri: &str| {
        let mut leaf = c.leaf(Role::Client, "x");
        leaf.uris = vec![uri.into()];
        let paper = c.mint(Role::Client, &leaf);
        c.verifier(Role::Client)
            .verify(&paper.chain, now())
            .unwrap_err()
    };
    let error = verify("spiffe://staging/towline/client/x");
    assert!(matches!(error, PeerError::WrongCluster { .. }), "{error}");
    assert!(error.to_string().contains("spiffe://staging/"), "{error}");
    // Same issuer, same usage: only the role in the identity differs.
    let error = verify("spiffe://prod/towline/operator/x");
    assert!(matches!(error, PeerError::WrongRole { .. }), "{error}");
    let error = verify("spiffe://prod.evil/towline/client/x");
    assert!(matches!(error, PeerError::WrongCluster { .. }), "{error}");
}

#[test]
fn the_deny_list_works_by_identity_by_serial_and_by_issuer() {
    let c = Cluster::new("prod");
    let paper = c.paper(Role::Agent, "n1");
    let peer = c.verifier(Role::Agent).verify(&paper.chain, now()).unwrap();
    let serial = &peer.leaf().serial;
    let issuer = &c.agents.certificate().serial;
    for (list, by) in [
        ("spiffe://prod/towline/agent/n1".to_string(), "its identity"),
        (format!("serial:{serial}"), "its serial"),
        (format!("serial:{issuer}"), "the serial of its issuer"),
    ] {
        let verifier = c.verifier_denying(Role::Agent, &list);
        let error = verifier.verify(peer.chain(), now()).unwrap_err();
        assert!(
            matches!(&error, PeerError::Denied { by: b, .. } if *b == by),
            "{error}"
        );
        assert_eq!(error.reason(), Reason::Denied);
    }
    let other = c.verifier_denying(Role::Agent, "spiffe://prod/towline/agent/n2\nserial:01");
    assert!(other.verify(&paper.chain, now()).is_ok());
}

#[test]
fn a_chain_of_two_is_verified_against_the_root() {
    let c = Cluster::new("prod");
    let paper = c.paper(Role::Server, "cp-1");
    let root = Anchors::new(std::slice::from_ref(c.root.der())).unwrap();
    let verifier = PeerVerifier::new(
        "prod".parse().unwrap(),
        Role::Server,
        root,
        DenyList::default(),
    );
    let chain = [paper.chain[0].clone(), c.servers.der().clone()];
    assert!(verifier.verify(&chain, now()).is_ok());
    let error = verifier.verify(&chain[..1], now()).unwrap_err();
    assert_eq!(error, PeerError::UnknownIssuer);
}

#[test]
fn an_anchor_s_own_path_length_holds() {
    let c = Cluster::new("prod");
    let verify = |anchor: &Authority, chain: &[CertificateDer<'_>]| {
        let anchors = Anchors::new(std::slice::from_ref(anchor.der())).unwrap();
        let cluster = "prod".parse().unwrap();
        PeerVerifier::new(cluster, Role::Agent, anchors, DenyList::default()).verify(chain, now())
    };
    for (allowed, good) in [(None, true), (Some(2), true), (Some(1), false)] {
        let root = Authority::create(&spec("root", allowed, &[]), new_key()).unwrap();
        let below = |a: &Authority| {
            a.create_below(&spec("below", None, &[]), new_key())
                .unwrap()
        };
        let middle = below(&root);
        let low = below(&middle);
        let leaf = low.issue_raw(&c.leaf(Role::Agent, "n1"), &new_key().public());
        let chain = [leaf.unwrap(), low.der().clone(), middle.der().clone()];
        assert_eq!(verify(&root, &chain).is_ok(), good, "{allowed:?}");
        assert!(verify(&low, &chain[..1]).is_ok());
    }
    let strict = Authority::create(&spec("strict", Some(0), &[]), new_key()).unwrap();
    assert!(
        strict
            .create_below(&spec("x", None, &[]), new_key())
            .is_err()
    );
}

#[test]
fn an_anchor_counts_only_while_it_is_valid() {
    let mut short = spec("short", Some(0), &[]);
    short.not_after = now() + DAY;
    let authority = Authority::create(&short, new_key()).unwrap();
    let c = Cluster::new("prod");
    let key = new_key();
    // The leaf outlives its authority; webpki alone would take it.
    let leaf = authority
        .issue_raw(&c.leaf(Role::Agent, "n1"), &key.public())
        .unwrap();
    let anchors = Anchors::new(&[authority.der().clone(), c.agents.der().clone()]).unwrap();
    let cluster = "prod".parse().unwrap();
    let verifier = PeerVerifier::new(cluster, Role::Agent, anchors, DenyList::default());
    let peer = verifier.verify(std::slice::from_ref(&leaf), now()).unwrap();
    assert_eq!(peer.valid_until(), now() + DAY);
    let error = verifier.verify(&[leaf], now() + 2 * DAY).unwrap_err();
    assert_eq!(error, PeerError::AnchorNotValid);
    // Its neighbour in the same file still counts.
    let paper = c.paper(Role::Agent, "n2");
    assert!(verifier.verify(&paper.chain, now() + 2 * DAY).is_ok());
}

#[test]
fn an_authority_is_not_a_peer_and_a_leaf_is_not_an_authority() {
    let c = Cluster::new("prod");
    let chain = [c.agents.der().clone()];
    let root = Anchors::new(std::slice::from_ref(c.root.der())).unwrap();
    let cluster = "prod".parse().unwrap();
    let verifier = PeerVerifier::new(cluster, Role::Agent, root, DenyList::default());
    let error = verifier.verify(&chain, now()).unwrap_err();
    assert!(matches!(error, PeerError::BadCertificate { .. }), "{error}");

    let leaf = c.paper(Role::Agent, "n1").chain;
    let error = Anchors::new(&leaf).unwrap_err().to_string();
    assert!(error.contains("not an authority"), "{error}");

    // A leaf that signs another leaf.
    let paper = c.paper(Role::Agent, "n1");
    assert!(Authority::new(paper.chain[0].clone(), &paper.key_der(), now()).is_err());
}

#[test]
fn too_many_or_too_large_certificates_are_refused_before_they_are_parsed() {
    let c = Cluster::new("prod");
    let verifier = c.verifier(Role::Agent);
    let junk = CertificateDer::from(vec![0; 10]);
    let many = vec![junk; limits::CHAIN_CERTIFICATES + 1];
    let error = verifier.verify(&many, now()).unwrap_err();
    assert!(matches!(error, PeerError::LongChain { .. }), "{error}");
    let large = CertificateDer::from(vec![0; limits::CERTIFICATE_BYTES + 1]);
    let error = verifier.verify(&[large], now()).unwrap_err();
    assert!(matches!(error, PeerError::TooLarge { .. }), "{error}");
}

#[test]
fn a_damaged_certificate_never_verifies() {
    let c = Cluster::new("prod");
    let verifier = c.verifier(Role::Agent);
    let good = c.paper(Role::Agent, "n1").chain.remove(0);
    for index in 0..good.len() {
        let mut bytes = good.to_vec();
        bytes[index] ^= 1;
        let damaged = [CertificateDer::from(bytes)];
        assert!(verifier.verify(&damaged, now()).is_err(), "byte {index}");
    }
    let mut longer = good.to_vec();
    longer.push(0);
    assert!(verifier.verify(&[longer.into()], now()).is_err());
}
