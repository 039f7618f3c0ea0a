//! Kubelets' signing requests: what is taken, and one refusal for each rule.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rcgen::{
    Attribute, BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use towline_pki::kubelet::{ServingIssueError, ServingRefusal, ServingRequest, ServingSpec};
use towline_pki::{Authority, AuthoritySpec, Certificate, KeyKind, PrivateKey, RequestSpec, Usage};
use towline_proto::limits;

fn spec() -> RequestSpec {
    RequestSpec {
        organisation: "system:nodes".into(),
        common_name: "system:node:n7".into(),
        dns: vec!["n7".into(), "N7.corp.example".into()],
        ips: vec!["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
        ..RequestSpec::default()
    }
}

fn made(spec: &RequestSpec) -> Result<ServingRequest, ServingRefusal> {
    let key = PrivateKey::generate(KeyKind::EcdsaP256).unwrap();
    ServingRequest::parse(spec.make(&key).unwrap().as_bytes())
}

/// The word and the message of a refusal.
fn refused(spec: &RequestSpec) -> (&'static str, String) {
    let refusal = made(spec).unwrap_err();
    (refusal.word(), refusal.to_string())
}

/// A request of the library's making, for what a [`RequestSpec`] cannot say.
fn params() -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "system:nodes");
    name.push(DnType::CommonName, "system:node:n7");
    params.distinguished_name = name;
    params.subject_alt_names = vec![SanType::DnsName("n7".try_into().unwrap())];
    params
}

fn parsed(
    params: CertificateParams,
    more: Vec<Attribute>,
) -> Result<ServingRequest, ServingRefusal> {
    let key = KeyPair::generate().unwrap();
    let request = params
        .serialize_request_with_attributes(&key, more)
        .unwrap();
    ServingRequest::parse(request.pem().unwrap().as_bytes())
}

#[test]
fn what_a_kubelet_sends_is_taken() {
    let request = made(&spec()).unwrap();
    assert_eq!(request.node().as_str(), "n7");
    let dns: Vec<&str> = request.dns().iter().map(|name| name.as_str()).collect();
    assert_eq!(dns, ["n7", "n7.corp.example"]);
    assert_eq!(request.ips().len(), 2);
    for kind in [KeyKind::EcdsaP384, KeyKind::Ed25519, KeyKind::Rsa2048] {
        let key = PrivateKey::generate(kind).unwrap();
        let text = spec().make(&key).unwrap();
        let request = ServingRequest::parse(text.as_bytes()).unwrap();
        assert_eq!(request.public_key(), &key.public(), "{kind}");
    }
    let mut usages = params();
    usages.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    usages.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    assert!(parsed(usages, vec![]).is_ok());
}

#[test]
fn a_subject_that_is_not_exactly_a_nodes_is_refused() {
    let with = |change: fn(&mut RequestSpec)| {
        let mut spec = spec();
        change(&mut spec);
        refused(&spec)
    };
    assert_eq!(with(|s| s.organisation.clear()).0, "Organization");
    for other in ["system:masters", "system:node", "system:nodes "] {
        let mut spec = spec();
        spec.organisation = other.into();
        let (word, text) = refused(&spec);
        assert!(
            word == "Organization" && text.contains("exactly system:nodes"),
            "{text}"
        );
    }
    assert_eq!(with(|s| s.common_name.clear()).0, "CommonName");
    for other in [
        "n7",
        "system:node:",
        "system:node:N7",
        "system:node:a b",
        "kubernetes-admin",
    ] {
        let mut spec = spec();
        spec.common_name = other.into();
        assert_eq!(refused(&spec).0, "CommonName", "{other}");
    }
    let mut unit = params();
    unit.distinguished_name
        .push(DnType::OrganizationalUnitName, "system:masters");
    assert_eq!(parsed(unit, vec![]).unwrap_err().word(), "Subject");
    let (_, text) = with(|s| s.common_name = "system:node:\u{1b}[2J".into());
    assert!(!text.contains('\u{1b}'), "{text}");
}

#[test]
fn names_of_other_kinds_and_no_names_are_refused() {
    let mut none = spec();
    (none.dns, none.ips) = (vec![], vec![]);
    assert_eq!(refused(&none).0, "NoNames");
    let mut uri = spec();
    uri.uris = vec!["spiffe://prod/towline/server/cp".into()];
    let (word, text) = refused(&uri);
    assert!(word == "NameKind" && text.contains("URI"), "{text}");
    let mut email = spec();
    email.emails = vec!["a@example.com".into()];
    let (word, text) = refused(&email);
    assert!(word == "NameKind" && text.contains("e-mail"), "{text}");
    let mut many = spec();
    many.dns = (0..=limits::SERVING_NAMES)
        .map(|n| format!("n{n}"))
        .collect();
    assert_eq!(refused(&many).0, "ManyNames");
    let mut most = spec();
    most.ips.clear();
    most.dns.truncate(0);
    most.dns = (0..limits::SERVING_NAMES)
        .map(|n| format!("n{n}"))
        .collect();
    assert!(made(&most).is_ok());
}

#[test]
fn hosts_that_no_node_has_are_refused() {
    for ip in [
        "127.0.0.1",
        "::1",
        "169.254.169.254",
        "169.254.0.9",
        "0.0.0.0",
        "224.0.0.1",
        "fe80::1",
        "100.100.100.200",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "255.255.255.255",
    ] {
        let mut spec = spec();
        spec.ips.push(ip.parse::<IpAddr>().unwrap());
        let (word, text) = refused(&spec);
        assert!(
            word == "ForbiddenAddress" && text.contains("no node"),
            "{ip}: {text}"
        );
    }
    for dns in [
        "*.example",
        "10.0.0.7",
        "fd00::7",
        "2130706433",
        "n7.",
        "a..b",
        "a b",
        "-a",
    ] {
        let mut spec = spec();
        spec.dns.push(dns.into());
        let (word, text) = refused(&spec);
        assert_eq!(word, "BadName", "{dns}: {text}");
    }
}

#[test]
fn usages_and_extensions_beyond_a_servers_are_refused() {
    let mut client = params();
    client.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    assert_eq!(parsed(client, vec![]).unwrap_err().word(), "Usages");
    let mut only_client = params();
    only_client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    assert_eq!(parsed(only_client, vec![]).unwrap_err().word(), "Usages");
    for usages in [
        vec![KeyUsagePurpose::KeyEncipherment],
        vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyCertSign,
        ],
        vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::DataEncipherment,
        ],
    ] {
        let mut params = params();
        params.key_usages = usages;
        assert_eq!(parsed(params, vec![]).unwrap_err().word(), "Usages");
    }
    let mut other = params();
    other.custom_extensions = vec![CustomExtension::from_oid_content(
        &[1, 2, 3, 4],
        vec![0x05, 0x00],
    )];
    let refusal = parsed(other, vec![]).unwrap_err();
    assert!(refusal.word() == "Extension" && refusal.to_string().contains("1.2.3.4"));
    let mut authority = params();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    assert_eq!(
        parsed(authority, vec![]).map_err(|r| r.word()).unwrap_err(),
        "Extension"
    );
}

/// A second set of extensions that another reader would take.
#[test]
fn nothing_hides_behind_what_is_looked_at() {
    const EXTENSION_REQUEST: &[u64] = &[1, 2, 840, 113549, 1, 9, 14];
    // SEQUENCE { SEQUENCE { subjectAltName, OCTET STRING { SEQUENCE { DNS "evil" } } } }
    let names = [
        0x30, 0x0f, 0x30, 0x0d, 0x06, 0x03, 0x55, 0x1d, 0x11, 0x04, 0x06, 0x30, 0x04, 0x82, 0x02,
        b'e', b'v',
    ];
    let attribute = |content: &[u8]| Attribute {
        oid: EXTENSION_REQUEST,
        values: [&[0x31, u8::try_from(content.len()).unwrap()], content].concat(),
    };
    let twice = parsed(params(), vec![attribute(&names)]);
    assert_eq!(twice.unwrap_err().word(), "Extension");
    // Alone it is read; two values in one set are not.
    let mut bare = params();
    bare.subject_alt_names.clear();
    let alone = parsed(bare.clone(), vec![attribute(&names)]).unwrap();
    assert_eq!(alone.dns()[0].as_str(), "ev");
    let both = parsed(bare, vec![attribute(&[names, names].concat())]);
    assert_eq!(both.unwrap_err().word(), "Extension");
    const CHALLENGE: &[u64] = &[1, 2, 840, 113549, 1, 9, 7];
    let challenge = Attribute {
        oid: CHALLENGE,
        values: vec![0x31, 0x03, 0x0c, 0x01, b'x'],
    };
    assert_eq!(
        parsed(params(), vec![challenge]).unwrap_err().word(),
        "Extension"
    );
}

#[test]
fn what_is_no_sound_request_is_refused() {
    let key = PrivateKey::generate(KeyKind::EcdsaP256).unwrap();
    let good = spec().make(&key).unwrap();
    let word = |text: &[u8]| ServingRequest::parse(text).unwrap_err().word();
    assert_eq!(word(b""), "Unreadable");
    assert_eq!(word(b"-----BEGIN CERTIFICATE REQUEST-----\n"), "Unreadable");
    assert_eq!(word(format!("{good}{good}").as_bytes()), "Unreadable");
    let other = PrivateKey::generate(KeyKind::EcdsaP256).unwrap();
    let authority = authority(&[], Duration::from_secs(3_600));
    assert_eq!(
        word(format!("{good}{}", authority.to_pem()).as_bytes()),
        "Unreadable"
    );
    // Signed by another key: the public key is exchanged after the fact.
    let der = |text: &str| towline_pki::pem::request(text.as_bytes()).unwrap().to_vec();
    let (bytes, ours, theirs) = (der(&good), key.public(), other.public());
    let at = bytes
        .windows(ours.der().len())
        .position(|w| w == ours.der())
        .unwrap();
    let mut swapped = bytes;
    swapped[at..at + ours.der().len()].copy_from_slice(theirs.der());
    let text = towline_pki::pem::write_request(&swapped);
    assert_eq!(word(text.as_bytes()), "NoPossession");
    let curve = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    let mut weak = der(&good);
    let at = weak.windows(10).position(|w| w == curve).unwrap();
    weak[at + 9] = 0x06;
    let text = towline_pki::pem::write_request(&weak);
    assert_eq!(word(text.as_bytes()), "WeakKey");
    let unknown = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
    let request = params().serialize_request(&unknown).unwrap();
    assert_eq!(
        word(request.pem().unwrap().as_bytes()),
        "SignatureAlgorithm"
    );
}

fn authority(usages: &[Usage], life: Duration) -> Authority {
    let now = SystemTime::now();
    let spec = AuthoritySpec {
        purpose: "kubernetes".into(),
        organisation: String::new(),
        not_before: now - Duration::from_secs(600),
        not_after: now + life,
        path_length: Some(0),
        usages: usages.to_vec(),
    };
    Authority::create(&spec, PrivateKey::generate(KeyKind::EcdsaP256).unwrap()).unwrap()
}

fn serving(life: Option<Duration>) -> ServingSpec {
    ServingSpec {
        node: "n7".parse().unwrap(),
        dns: vec!["n7".parse().unwrap()],
        ips: vec!["10.0.0.7".parse().unwrap()],
        life,
    }
}

#[test]
fn a_certificate_says_what_kubelets_certificates_say() {
    let now = SystemTime::now();
    let authority = authority(&[], limits::SERVING_LIFE_MOST * 2);
    for (kind, enciphers) in [(KeyKind::EcdsaP256, false), (KeyKind::Rsa2048, true)] {
        let key = PrivateKey::generate(kind).unwrap();
        let issued = serving(None).issue(&authority, &key.public(), now).unwrap();
        let read = Certificate::parse(&issued.der).unwrap();
        assert_eq!(read.common_names, Some(vec!["system:node:n7".into()]));
        assert_eq!(read.organisations, Some(vec!["system:nodes".into()]));
        assert_eq!(read.usages, [Usage::ServerAuth]);
        assert_eq!(read.dns_sans, ["n7"]);
        assert_eq!(read.ip_sans.len(), 1);
        assert!(read.signs_handshakes && !read.is_authority && read.uris.is_empty());
        // Key usage: 3 bytes, unused bits and the bits.
        let enciphering = [0x03, 0x02, 0x05, 0xa0];
        assert_eq!(issued.der.windows(4).any(|w| w == enciphering), enciphers);
        assert!(!issued.cut_short);
    }
}

/// A node's user that was cut would be another node's.
#[test]
fn a_long_name_is_not_cut() {
    let node = format!("{}.example", "n".repeat(60));
    let mut spec = serving(None);
    spec.node = node.parse().unwrap();
    let key = PrivateKey::generate(KeyKind::EcdsaP256).unwrap();
    let authority = authority(&[], limits::SERVING_LIFE_MOST);
    let issued = spec
        .issue(&authority, &key.public(), SystemTime::now())
        .unwrap();
    let read = Certificate::parse(&issued.der).unwrap();
    assert_eq!(read.common_names, Some(vec![format!("system:node:{node}")]));
}

#[test]
fn life_stays_within_its_bounds_and_the_authoritys() {
    let now = SystemTime::now();
    let key = PrivateKey::generate(KeyKind::EcdsaP256).unwrap().public();
    let long = authority(&[], limits::SERVING_LIFE_MOST * 2);
    let second = Duration::from_secs(1);
    for (life, good) in [
        (limits::SERVING_LIFE_LEAST - second, false),
        (limits::SERVING_LIFE_LEAST, true),
        (limits::SERVING_LIFE_MOST, true),
        (limits::SERVING_LIFE_MOST + second, false),
    ] {
        let issued = serving(Some(life)).issue(&long, &key, now);
        assert_eq!(issued.is_ok(), good, "{life:?}: {issued:?}");
    }
    let hour = Duration::from_secs(3_600);
    let short = authority(&[], hour);
    let cut = serving(None).issue(&short, &key, now).unwrap();
    assert!(cut.cut_short && cut.not_after <= now + hour);
    assert!(matches!(
        serving(Some(hour * 2)).issue(&short, &key, now),
        Err(ServingIssueError::OutlivesAuthority { .. })
    ));
    for then in [now - hour, now + hour + second] {
        assert!(matches!(
            serving(None).issue(&short, &key, then),
            Err(ServingIssueError::Ended { .. })
        ));
    }
}

#[test]
fn what_must_not_be_signed_is_not() {
    let now = SystemTime::now();
    let key = PrivateKey::generate(KeyKind::EcdsaP256).unwrap().public();
    let clients = authority(&[Usage::ClientAuth], limits::SERVING_LIFE_MOST);
    assert!(matches!(
        serving(None).issue(&clients, &key, now),
        Err(ServingIssueError::Usage { .. })
    ));
    let good = authority(&[], limits::SERVING_LIFE_MOST);
    let mut none = serving(None);
    (none.dns, none.ips) = (vec![], vec![]);
    assert_eq!(
        none.issue(&good, &key, now).unwrap_err(),
        ServingIssueError::NoNames
    );
    let mut own = serving(None);
    own.ips.push("127.0.0.1".parse().unwrap());
    assert!(matches!(
        own.issue(&good, &key, now),
        Err(ServingIssueError::ForbiddenIp { .. })
    ));
}
