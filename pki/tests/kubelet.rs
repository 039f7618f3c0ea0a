//! Kubelets' serving certificates: every rule with what it refuses, revocation, clocks, and the
//! check in real handshakes of TLS 1.3 and 1.2.

mod cluster;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cluster::{DAY, now};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CidrSubnet, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    NameConstraints, RevokedCertParams, SanType, SerialNumber,
};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConnection, ServerConfig, ServerConnection};
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivatePkcs8KeyDer, UnixTime,
};
use towline_pki::kubelet::{Cause, Expected, KubeletCheck, KubeletTrust, RevocationLists, Verdict};
use towline_pki::{Anchors, tls};
use towline_proto::limits::KUBELET_CLOCK_SKEW;
use towline_proto::reason::Reason;

/// An authority of kubelets.
struct Ca {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
}

fn ca_with(name: &str, above: Option<&Ca>, change: impl FnOnce(&mut CertificateParams)) -> Ca {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (now() - 10 * DAY).into();
    params.not_after = (now() + 1000 * DAY).into();
    change(&mut params);
    let cert = match above {
        Some(above) => params.signed_by(&key, &above.issuer),
        None => params.self_signed(&key),
    };
    let der = cert.unwrap().der().clone();
    Ca {
        issuer: Issuer::new(params, key),
        der,
    }
}

fn ca(name: &str) -> Ca {
    ca_with(name, None, |_| ())
}

/// A faultless leaf of n1 at 10.0.0.1 with this serial, to be spoilt.
fn params(serial: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "system:nodes");
    params
        .distinguished_name
        .push(DnType::CommonName, "system:node:n1");
    params.subject_alt_names = vec![
        SanType::DnsName("n1".try_into().unwrap()),
        SanType::IpAddress([10, 0, 0, 1].into()),
    ];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = (now() - DAY).into();
    params.not_after = (now() + 90 * DAY).into();
    params.serial_number = Some(SerialNumber::from_slice(&[0x4b, serial]));
    params
}

fn sign(ca: &Ca, params: &CertificateParams) -> (CertificateDer<'static>, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let cert = params.signed_by(&key, &ca.issuer).unwrap();
    (cert.der().clone(), key)
}

fn leaf(ca: &Ca, change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
    let mut params = params(1);
    change(&mut params);
    sign(ca, &params).0
}

fn trust(cas: &[&Ca], lists: RevocationLists) -> Arc<KubeletTrust> {
    let ders: Vec<_> = cas.iter().map(|ca| ca.der.clone()).collect();
    KubeletTrust::new(Anchors::new(&ders).unwrap(), lists)
}

fn expected(host: &str) -> Expected {
    Expected {
        node: "n1".parse().unwrap(),
        host: host.parse().unwrap(),
    }
}

fn check(ca: &Ca, chain: &[CertificateDer<'_>], host: &str) -> Verdict {
    trust(&[ca], RevocationLists::default()).check(chain, &expected(host), now())
}

#[track_caller]
fn cause(verdict: &Verdict) -> &Cause {
    verdict.cause().expect("a refusal")
}

#[test]
fn the_kubelet_of_the_node_is_believed() {
    let ca = ca("kubelets");
    let der = leaf(&ca, |_| ());
    for host in ["10.0.0.1", "::ffff:10.0.0.1", "n1"] {
        let verdict = check(&ca, std::slice::from_ref(&der), host);
        assert_eq!(
            verdict.result,
            Ok(now() + 90 * DAY + KUBELET_CLOCK_SKEW),
            "{host}"
        );
        let shown = verdict.presented.expect("a certificate");
        assert_eq!(shown.serial.to_string(), "4b01");
        assert!(
            shown.subject.contains("system:node:n1"),
            "{}",
            shown.subject
        );
    }
    // Without a common name of a node the DNS name decides.
    let plain = leaf(&ca, |params| {
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "n1");
    });
    assert!(check(&ca, &[plain], "10.0.0.1").result.is_ok());
}

fn common_names(params: &mut CertificateParams, name: &str) {
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
}

#[test]
fn each_fault_has_its_cause() {
    let ours = ca("kubelets");
    let other = ca("somebody");
    let same_name = ca("kubelets");
    let word = |signer: &Ca, host: &str, change: &dyn Fn(&mut CertificateParams)| {
        let verdict = check(&ours, &[leaf(signer, change)], host);
        cause(&verdict).as_str()
    };
    let none: &dyn Fn(&mut CertificateParams) = &|_| ();
    assert_eq!(word(&other, "10.0.0.1", none), "wrong-ca");
    assert_eq!(word(&same_name, "10.0.0.1", none), "wrong-ca");
    assert_eq!(word(&ours, "10.0.0.2", none), "missing-ip-san");
    assert_eq!(word(&ours, "fd00::1", none), "missing-ip-san");
    assert_eq!(word(&ours, "n1.example", none), "missing-dns-san");
    let as_dns = |params: &mut CertificateParams| {
        let names = ["n1", "10.0.0.1"].map(|name| SanType::DnsName(name.try_into().unwrap()));
        params.subject_alt_names = names.into();
    };
    assert_eq!(word(&ours, "10.0.0.1", &as_dns), "ip-in-dns-name");
    let expired = |params: &mut CertificateParams| params.not_after = (now() - DAY / 2).into();
    assert_eq!(word(&ours, "10.0.0.1", &expired), "expired");
    let early = |params: &mut CertificateParams| params.not_before = (now() + DAY / 2).into();
    assert_eq!(word(&ours, "10.0.0.1", &early), "not-yet-valid");
    let n2 = |params: &mut CertificateParams| common_names(params, "system:node:n2");
    assert_eq!(word(&ours, "10.0.0.1", &n2), "other-node");
    // The DNS name n1 does not help against a common name that decides otherwise.
    assert_eq!(word(&ours, "n1", &n2), "other-node");
    let nobody = |params: &mut CertificateParams| {
        common_names(params, "kubelet");
        params.subject_alt_names = vec![SanType::IpAddress([10, 0, 0, 1].into())];
    };
    assert_eq!(word(&ours, "10.0.0.1", &nobody), "no-node-name");
    // A wildcard covers a host, it names no node.
    let wildcard = |params: &mut CertificateParams| {
        common_names(params, "kubelet");
        params.subject_alt_names = vec![
            SanType::DnsName("*.nodes.example".try_into().unwrap()),
            SanType::IpAddress([10, 0, 0, 1].into()),
        ];
    };
    assert_eq!(word(&ours, "10.0.0.1", &wildcard), "no-node-name");
    for usages in [vec![ExtendedKeyUsagePurpose::ClientAuth], vec![]] {
        let usages = |params: &mut CertificateParams| params.extended_key_usages = usages.clone();
        assert_eq!(word(&ours, "10.0.0.1", &usages), "wrong-usage");
    }
    let no_signature =
        |params: &mut CertificateParams| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
    assert_eq!(word(&ours, "10.0.0.1", &no_signature), "wrong-usage");
    let nothing = trust(&[&ours], RevocationLists::default()).check(&[], &expected("n1"), now());
    assert_eq!(cause(&nothing).as_str(), "no-certificate");
    let many = vec![leaf(&ours, none); 9];
    assert_eq!(cause(&check(&ours, &many, "n1")).as_str(), "long-chain");
}

#[test]
fn every_cause_has_a_word_and_a_remedy() {
    let causes = [
        Cause::NoCertificate,
        Cause::AuthorityNotValid,
        Cause::NameConstraint,
        Cause::WrongUsage,
        Cause::Timeout,
        Cause::NotTls,
        Cause::HungUp,
        Cause::AgentRefuses {
            reason: Reason::AgentPolicy,
        },
    ];
    for cause in causes {
        assert!(Cause::WORDS.contains(&cause.as_str()));
        assert!(cause.fix().len() > 30, "{cause}");
    }
    let mut words = Cause::WORDS.to_vec();
    words.sort_unstable();
    words.dedup();
    assert_eq!(words.len(), Cause::WORDS.len());
}

#[test]
fn what_a_kubelet_makes_for_itself_is_called_by_its_name() {
    let ours = ca("kubelets");
    // A kubelet without a signer makes up an authority and signs with it.
    let made_up = ca("n1-ca@1700000000");
    let own = |params: &mut CertificateParams| common_names(params, "n1@1700000000");
    let chain = [leaf(&made_up, own), made_up.der.clone()];
    for chain in [&chain[..], &chain[..1]] {
        let verdict = check(&ours, chain, "10.0.0.1");
        assert_eq!(cause(&verdict).as_str(), "self-signed");
        assert!(cause(&verdict).fix().contains("serverTLSBootstrap"));
    }
    let key = KeyPair::generate().unwrap();
    let own = params(1).self_signed(&key).unwrap();
    let verdict = check(&ours, &[own.der().clone()], "10.0.0.1");
    assert_eq!(cause(&verdict).as_str(), "self-signed");
    let near = ca("n1-ca@soon");
    let verdict = check(&ours, &[leaf(&near, |_| ())], "10.0.0.1");
    assert_eq!(cause(&verdict).as_str(), "wrong-ca");
}

#[test]
fn clocks_may_differ_by_the_allowance_and_no_more() {
    let ca = ca("kubelets");
    let second = Duration::from_secs(1);
    let at = |before: SystemTime, after: SystemTime| {
        let der = leaf(&ca, |params| {
            params.not_before = before.into();
            params.not_after = after.into();
        });
        check(&ca, &[der], "10.0.0.1").result
    };
    let skew = KUBELET_CLOCK_SKEW;
    assert!(at(now() + skew, now() + DAY).is_ok());
    assert!(at(now() + skew + 2 * second, now() + DAY).is_err());
    assert_eq!(at(now() - DAY, now() - skew), Ok(now()));
    assert!(at(now() - DAY, now() - skew - 2 * second).is_err());
}

#[test]
fn an_authority_has_its_own_limits() {
    let old = ca_with("kubelets", None, |params| {
        params.not_after = (now() - DAY).into();
    });
    let verdict = check(&old, &[leaf(&old, |_| ())], "10.0.0.1");
    assert_eq!(cause(&verdict), &Cause::AuthorityNotValid);

    let subnet = CidrSubnet::V4([10, 0, 0, 0], [255, 255, 255, 0]);
    let narrow = ca_with("kubelets", None, |params| {
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![
                GeneralSubtree::IpAddress(subnet),
                GeneralSubtree::DnsName("n1".into()),
            ],
            excluded_subtrees: vec![],
        });
    });
    let root = ca("root");
    let below = ca_with("below", Some(&root), |params| {
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::IpAddress(subnet)],
            excluded_subtrees: vec![],
        });
    });
    let outside = |params: &mut CertificateParams| {
        params.subject_alt_names = vec![SanType::IpAddress([10, 9, 0, 1].into())];
    };
    let verdict = check(&narrow, &[leaf(&narrow, outside)], "10.9.0.1");
    assert_eq!(cause(&verdict), &Cause::NameConstraint);
    let verdict = check(
        &root,
        &[leaf(&below, outside), below.der.clone()],
        "10.9.0.1",
    );
    assert_eq!(cause(&verdict), &Cause::NameConstraint);
    let verdict = check(
        &root,
        &[leaf(&below, |_| ()), below.der.clone()],
        "10.0.0.1",
    );
    assert!(verdict.result.is_ok(), "{verdict:?}");
}

fn list(
    ca: &Ca,
    revoked: &[&[u8]],
    next_update: SystemTime,
) -> CertificateRevocationListDer<'static> {
    let params = CertificateRevocationListParams {
        this_update: (now() - DAY).into(),
        next_update: next_update.into(),
        crl_number: SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: revoked
            .iter()
            .map(|serial| RevokedCertParams {
                serial_number: SerialNumber::from_slice(serial),
                revocation_time: (now() - DAY).into(),
                reason_code: None,
                invalidity_date: None,
            })
            .collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(&ca.issuer).unwrap().der().clone()
}

#[test]
fn revocation_covers_the_whole_chain_and_is_never_guessed() {
    let root = ca("root");
    let below = ca_with("below", Some(&root), |params| {
        params.serial_number = Some(SerialNumber::from_slice(&[0x55]));
    });
    let stranger = ca("root");
    let soon = now() + DAY;
    let chain = [leaf(&below, |_| ()), below.der.clone()];
    let verdict = |lists: &[CertificateRevocationListDer<'static>]| {
        let lists = RevocationLists::new(lists).unwrap();
        let verdict = trust(&[&root], lists).check(&chain, &expected("10.0.0.1"), now());
        verdict.cause().map_or("believed", Cause::as_str)
    };
    let empty = list(&root, &[], soon);
    assert_eq!(verdict(&[]), "believed");
    assert_eq!(
        verdict(&[empty.clone(), list(&below, &[], soon)]),
        "believed"
    );
    assert_eq!(
        verdict(&[empty.clone(), list(&below, &[&[0x4b, 2]], soon)]),
        "believed"
    );
    assert_eq!(
        verdict(&[empty.clone(), list(&below, &[&[0x4b, 1]], soon)]),
        "revoked"
    );
    assert_eq!(
        verdict(&[list(&root, &[&[0x55]], soon), list(&below, &[], soon)]),
        "revoked"
    );
    // Nothing is said about one of the two certificates.
    assert_eq!(verdict(std::slice::from_ref(&empty)), "revocation-unknown");
    assert_eq!(verdict(&[list(&below, &[], soon)]), "revocation-unknown");
    // A list of the right name that somebody else signed says nothing.
    let forged = list(&stranger, &[], soon);
    assert_eq!(
        verdict(&[forged, list(&below, &[], soon)]),
        "revocation-unknown"
    );
    // An old list still counts; its end is something to be warned about.
    let old = [empty, list(&below, &[&[0x4b, 1]], now() - DAY / 2)];
    assert_eq!(verdict(&old), "revoked");
    let lists = RevocationLists::new(&old).unwrap();
    let ends: Vec<_> = trust(&[&root], lists).expiries();
    assert!(
        ends.iter()
            .any(|end| end.what == "kubelet-crl" && end.not_after < now())
    );
    assert!(ends.iter().any(|end| end.what == "kubelet-ca"));
}

#[test]
fn files_that_are_no_revocation_lists_are_refused_by_name() {
    use towline_pki::kubelet::{KubeletFiles, RevocationListError};
    let scratch = cluster::Scratch::new();
    let path = scratch.path("crl.pem");
    let ca = ca("kubelets");
    let files = KubeletFiles {
        authority: scratch.path("ca.pem"),
        crls: vec![path.clone()],
        crl_policy: Default::default(),
    };
    std::fs::write(
        &files.authority,
        towline_pki::pem::write_certificates(std::slice::from_ref(&ca.der)),
    )
    .unwrap();
    for text in [
        "".to_owned(),
        "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n".to_owned(),
        towline_pki::pem::write_certificates(std::slice::from_ref(&ca.der)),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = KubeletTrust::load(&files).unwrap_err().to_string();
        assert!(
            error.contains("--kubelet-crl") && error.contains("crl.pem"),
            "{error}"
        );
    }
    let good = list(&ca, &[], now() + DAY);
    assert!(matches!(
        RevocationLists::new(&vec![good; 65]),
        Err(RevocationListError::Many { count: 65, .. })
    ));
}

#[test]
fn hostile_text_is_escaped_wherever_it_comes_out() {
    let ca = ca("kubelets");
    for name in [
        "system:node:\u{1b}[31mn1",
        "system:node:n1\nFAKE LOG LINE",
        "n1\u{202e}",
    ] {
        let der = leaf(&ca, |params| {
            common_names(params, name);
            params.subject_alt_names = vec![SanType::IpAddress([10, 0, 0, 1].into())];
        });
        let verdict = check(&ca, &[der], "10.0.0.1");
        let said = format!("{} {verdict:?}", cause(&verdict));
        assert!(
            said.chars().all(|c| c.is_ascii() && !c.is_control()),
            "{said:?}"
        );
    }
    // As long as a certificate can be, and the text that comes out is not.
    let der = leaf(&ca, |params| {
        common_names(params, &format!("system:node:{}", "x".repeat(9_000)))
    });
    let verdict = check(&ca, &[der], "10.0.0.1");
    assert!(cause(&verdict).to_string().len() < 1_000);
    let huge = leaf(&ca, |params| common_names(params, &"x".repeat(20_000)));
    assert_eq!(
        cause(&check(&ca, &[huge], "10.0.0.1")).as_str(),
        "too-large"
    );
    let noise = CertificateDer::from(vec![0x30, 0x82, 0xff, 0xff, 0x00]);
    assert_eq!(
        cause(&check(&ca, &[noise], "10.0.0.1")).as_str(),
        "bad-certificate"
    );
    // Thousands of nested sequences: read to the bound of depth, not into the stack's end.
    let mut deep = Vec::new();
    for _ in 0..4_000 {
        deep.extend([0x30, 0x80]);
    }
    let verdict = check(&ca, &[CertificateDer::from(deep)], "10.0.0.1");
    assert_eq!(cause(&verdict).as_str(), "bad-certificate");
}

#[test]
fn a_common_name_that_is_no_text_is_not_passed_over() {
    let ca = ca("kubelets");
    // The DNS name says n1; the common name, in UTF-16, could say anything.
    let der = leaf(&ca, |params| {
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(
            DnType::CommonName,
            rcgen::DnValue::BmpString("system:node:n2".try_into().unwrap()),
        );
    });
    assert_eq!(
        cause(&check(&ca, &[der], "10.0.0.1")).as_str(),
        "bad-certificate"
    );
}

#[derive(Debug)]
struct Fixed;

impl TimeProvider for Fixed {
    fn current_time(&self) -> Option<UnixTime> {
        let since = now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(UnixTime::since_unix_epoch(since))
    }
}

/// A handshake with a kubelet of these protocol versions; whether it came to its end.
fn shake(
    check: &Arc<KubeletCheck>,
    (der, key): (CertificateDer<'static>, &KeyPair),
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Result<Option<rustls::ProtocolVersion>, rustls::Error> {
    let mut config = (*tls::kubelet_client(Arc::clone(check), None).unwrap()).clone();
    config.time_provider = Arc::new(Fixed);
    let name = tls::kubelet_name(&check.expected().host);
    let mut client = ClientConnection::new(config.into(), name).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let secret = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let signer = provider.key_provider.load_private_key(secret).unwrap();
    // Whether they belong together is not looked at.
    let presented = SingleCertAndKey::from(CertifiedKey::new(vec![der], signer));
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(presented));
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut server = ServerConnection::new(server.into()).unwrap();
    for _ in 0..6 {
        let mut flight = Vec::new();
        while client.write_tls(&mut flight).unwrap() > 0 {}
        let mut flight = &flight[..];
        while !flight.is_empty() {
            server.read_tls(&mut flight).unwrap();
            let _ = server.process_new_packets();
        }
        let mut flight = Vec::new();
        while server.write_tls(&mut flight).unwrap() > 0 {}
        let mut flight = &flight[..];
        while !flight.is_empty() {
            client.read_tls(&mut flight).unwrap();
            client.process_new_packets()?;
        }
    }
    assert!(!client.is_handshaking());
    assert_eq!(client.alpn_protocol(), Some(&b"http/1.1"[..]));
    Ok(client.protocol_version())
}

#[test]
fn the_check_decides_in_handshakes_of_both_versions() {
    let ca = ca("kubelets");
    let trust = trust(&[&ca], RevocationLists::default());
    let good = sign(&ca, &params(1));
    let mut other = params(2);
    common_names(&mut other, "system:node:n2");
    let other = sign(&ca, &other);
    for (version, name) in [
        (&rustls::version::TLS13, rustls::ProtocolVersion::TLSv1_3),
        (&rustls::version::TLS12, rustls::ProtocolVersion::TLSv1_2),
    ] {
        let check = KubeletCheck::new(Arc::clone(&trust), expected("10.0.0.1"));
        let spoken = shake(&check, (good.0.clone(), &good.1), &[version]).unwrap();
        assert_eq!(spoken, Some(name));
        assert!(check.verdict().unwrap().result.is_ok());

        let check = KubeletCheck::new(Arc::clone(&trust), expected("10.0.0.1"));
        shake(&check, (other.0.clone(), &other.1), &[version]).unwrap_err();
        assert_eq!(
            check.verdict().unwrap().cause().unwrap().as_str(),
            "other-node"
        );

        // Observing goes on, and knows.
        let check = KubeletCheck::observing(Arc::clone(&trust), expected("10.0.0.1"));
        shake(&check, (other.0.clone(), &other.1), &[version]).unwrap();
        assert_eq!(
            check.verdict().unwrap().cause().unwrap().as_str(),
            "other-node"
        );

        // A stolen certificate without its key is worth nothing.
        for check in [KubeletCheck::new, KubeletCheck::observing] {
            let check = check(Arc::clone(&trust), expected("10.0.0.1"));
            let thief = KeyPair::generate().unwrap();
            let Err(error) = shake(&check, (good.0.clone(), &thief), &[version]) else {
                panic!("{name:?}: the thief was believed");
            };
            assert_eq!(Cause::of_tls(&error).as_str(), "bad-certificate");
        }
    }
    // Where both speak 1.3 it is 1.3.
    let check = KubeletCheck::new(trust, expected("10.0.0.1"));
    let both = shake(&check, (good.0.clone(), &good.1), rustls::ALL_VERSIONS).unwrap();
    assert_eq!(both, Some(rustls::ProtocolVersion::TLSv1_3));
}
