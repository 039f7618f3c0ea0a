//! What the gateway shows, whom it takes, and the two commands that make its certificates.

use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, SystemTime};

use towline_pki::gateway::{
    FrontEndError, FrontEndRules, FrontEndVerifier, KubeletClientRefusal, KubeletClientSpec,
    ServingNames, ServingSource, SourceError,
};
use towline_pki::{
    Anchors, Authority, AuthoritySpec, Certificate, DenyList, KeyKind, LeafSpec, PeerError,
    PrivateKey, Usage,
};

const DAY: Duration = Duration::from_secs(86_400);

fn authority(usages: &[Usage], life: Duration) -> Authority {
    let now = SystemTime::now();
    let spec = AuthoritySpec {
        purpose: "test".into(),
        organisation: "kit.example".into(),
        not_before: now - DAY,
        not_after: now + life,
        path_length: Some(0),
        usages: usages.to_vec(),
    };
    Authority::create(&spec, PrivateKey::generate(KeyKind::EcdsaP256).unwrap()).unwrap()
}

fn names(host: &str) -> ServingNames {
    ServingNames {
        host: format!("{host}:10250")
            .parse::<towline_proto::target::Target>()
            .unwrap()
            .host,
        node: "node-7".parse().unwrap(),
    }
}

fn source(life: Duration) -> ServingSource {
    ServingSource::issuer(authority(&[Usage::ServerAuth], life), "gateway.crt".into()).unwrap()
}

#[test]
fn an_authority_for_clients_is_no_issuer_of_the_gateway() {
    let clients = authority(&[Usage::ClientAuth], DAY);
    let refused = ServingSource::issuer(clients, "x".into());
    assert!(matches!(refused, Err(SourceError::IssuerUsage { .. })));
}

#[test]
fn certificates_live_a_day_and_never_longer_than_their_issuer() {
    let now = SystemTime::now();
    let long = source(100 * DAY).serving(&names("10.0.0.7"), now).unwrap();
    assert!(long.not_after <= now + DAY);
    let short = source(DAY / 2).serving(&names("10.0.0.7"), now).unwrap();
    assert!(short.not_after <= now + DAY / 2);
    let ended = source(DAY).serving(&names("10.0.0.7"), now + 2 * DAY);
    assert!(ended.unwrap_err().to_string().contains("renew it"));
}

fn leaf(
    issuer: &Authority,
    name: &str,
    usage: Usage,
    ends: Duration,
) -> Vec<rustls_pki_types::CertificateDer<'static>> {
    let now = SystemTime::now();
    let spec = LeafSpec {
        common_name: name.into(),
        uris: Vec::new(),
        dns: Vec::new(),
        ips: Vec::<IpAddr>::new(),
        usages: vec![usage],
        not_before: now - DAY,
        not_after: now + ends,
    };
    let key = PrivateKey::generate(KeyKind::EcdsaP256).unwrap();
    vec![issuer.issue_raw(&spec, &key.public()).unwrap()]
}

fn verifier(
    issuer: &Authority,
    names: &[&str],
    organisations: &[&str],
    deny: &str,
) -> std::sync::Arc<FrontEndVerifier> {
    let owned = |list: &[&str]| list.iter().map(|one| (*one).to_owned()).collect();
    let rules = FrontEndRules {
        names: owned(names),
        organisations: owned(organisations),
    };
    let deny = DenyList::parse(deny.as_bytes()).unwrap();
    FrontEndVerifier::new(Anchors::new(&[issuer.der().clone()]).unwrap(), rules, deny)
}

#[test]
fn front_ends_are_taken_by_authority_usage_time_and_name() {
    let own = authority(&[], 10 * DAY);
    let other = authority(&[], 10 * DAY);
    let now = SystemTime::now();
    let good = leaf(&own, "apiserver", Usage::ClientAuth, DAY);
    let taken = verifier(&own, &[], &[], "").verify(&good, now).unwrap();
    assert_eq!(taken.certificate().subject, "CN=apiserver");
    assert!(
        verifier(&own, &["apiserver"], &[], "")
            .verify(&good, now)
            .is_ok()
    );

    let refuse =
        |verifier: &FrontEndVerifier, chain: &[_], at| verifier.verify(chain, at).unwrap_err();
    let any = verifier(&own, &[], &[], "");
    assert_eq!(
        refuse(&any, &[], now),
        FrontEndError::Chain(PeerError::NoCertificate)
    );
    let stranger = leaf(&other, "apiserver", Usage::ClientAuth, DAY);
    assert_eq!(
        refuse(&any, &stranger, now),
        FrontEndError::Chain(PeerError::UnknownIssuer)
    );
    assert_eq!(refuse(&any, &good, now + 2 * DAY).as_str(), "expired");
    assert_eq!(refuse(&any, &good, now - 2 * DAY).as_str(), "not-yet-valid");
    let server = leaf(&own, "apiserver", Usage::ServerAuth, DAY);
    assert_eq!(refuse(&any, &server, now).as_str(), "wrong-usage");
    let garbage = vec![rustls_pki_types::CertificateDer::from(vec![
        0x30, 0x80, 0xff,
    ])];
    assert_eq!(refuse(&any, &garbage, now).as_str(), "bad-certificate");
    let named = verifier(&own, &["other"], &["system:masters"], "");
    assert_eq!(refuse(&named, &good, now).as_str(), "name");
    // A name that only looks alike is another one.
    let alike = leaf(&own, "apiserver ", Usage::ClientAuth, DAY);
    let only = verifier(&own, &["apiserver"], &[], "");
    assert_eq!(refuse(&only, &alike, now).as_str(), "name");
    let serial = taken.certificate().serial.to_string();
    let denying = verifier(&own, &[], &[], &format!("serial:{serial}"));
    assert_eq!(refuse(&denying, &good, now).as_str(), "denied");
}

#[test]
fn an_organisation_does_instead_of_a_name() {
    let own = authority(&[], 1000 * DAY);
    let spec = KubeletClientSpec {
        user: "apiserver".into(),
        group: Some("kubelet-clients".into()),
        life: DAY,
    };
    let key = PrivateKey::generate(KeyKind::EcdsaP256).unwrap();
    let now = SystemTime::now();
    let issued = spec.issue(&own, &key.public(), now).unwrap();
    let chain = [issued.der];
    let read = Certificate::parse(chain[0].as_ref()).unwrap();
    assert_eq!(
        read.organisations.as_deref(),
        Some(&["kubelet-clients".to_owned()][..])
    );
    assert_eq!(read.usages, [Usage::ClientAuth]);
    assert!(read.uris.is_empty());
    assert!(
        verifier(&own, &["x"], &["kubelet-clients"], "")
            .verify(&chain, now)
            .is_ok()
    );
    assert!(
        verifier(&own, &["x"], &["other"], "")
            .verify(&chain, now)
            .is_err()
    );
}

#[test]
fn a_kubelet_client_is_a_user_with_no_more_than_it_needs() {
    let own = authority(&[], 2 * DAY);
    let key = PrivateKey::generate(KeyKind::EcdsaP256).unwrap().public();
    let issue = |user: &str, group: Option<&str>, life| {
        let spec = KubeletClientSpec {
            user: user.into(),
            group: group.map(str::to_owned),
            life,
        };
        spec.issue(&own, &key, SystemTime::now()).map(drop)
    };
    assert_eq!(issue("towline", None, DAY), Ok(()));
    assert_eq!(
        issue("towline", Some("system:masters"), DAY),
        Err(KubeletClientRefusal::Masters)
    );
    for (user, group) in [("system:node:n1", None), ("x", Some("system:nodes"))] {
        assert!(matches!(
            issue(user, group, DAY),
            Err(KubeletClientRefusal::Node { .. })
        ));
    }
    for user in ["", "a b", "a\n", &"x".repeat(65)] {
        assert!(matches!(
            issue(user, None, DAY),
            Err(KubeletClientRefusal::Name { .. })
        ));
    }
    assert!(matches!(
        issue("x", None, 3 * DAY),
        Err(KubeletClientRefusal::OutlivesAuthority { .. })
    ));
    let servers = authority(&[Usage::ServerAuth], 2 * DAY);
    let spec = KubeletClientSpec {
        user: "x".into(),
        group: None,
        life: DAY,
    };
    assert!(matches!(
        spec.issue(&servers, &key, SystemTime::now()),
        Err(KubeletClientRefusal::Usage { .. })
    ));
}

fn run(args: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_towline-pki"))
        .args(args)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code().unwrap(),
        String::from_utf8(text).unwrap(),
    )
}

#[test]
fn the_commands_make_what_a_gateway_loads() {
    use towline_pki::gateway::{GatewayFiles, GatewayMaterial, ServingFiles};
    let folder = std::env::temp_dir().join(format!("towline-gateway-{}", std::process::id()));
    let dir = folder.display().to_string();
    let file = |name: &str| folder.join(name);
    assert_eq!(
        run(&["gateway-issuer", "--dir", &dir]).0,
        3,
        "no directory of init"
    );
    assert_eq!(run(&["init", &dir, "--cluster", "kit.example"]).0, 0);
    let (code, text) = run(&["gateway-issuer", "--dir", &dir]);
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("--kubelet-certificate-authority=") && text.contains("exactly this file"),
        "{text}"
    );
    assert_eq!(
        run(&["gateway-issuer", "--dir", &dir]).0,
        1,
        "it overwrites nothing"
    );
    // Nobody else's issuer, and not below the root.
    let issuer = Certificate::parse(
        &towline_pki::store::read_certificates(&file("trust/gateway.pem")).unwrap()[0],
    )
    .unwrap();
    assert_eq!(issuer.subject, issuer.issuer);
    assert_eq!(issuer.usages, [Usage::ServerAuth]);
    let mode = std::os::unix::fs::MetadataExt::mode(
        &std::fs::metadata(file("issuers/gateway.key")).unwrap(),
    );
    assert_eq!(mode & 0o777, 0o600);

    let (root, key) = (
        file("root/root.crt").display().to_string(),
        file("root/root.key").display().to_string(),
    );
    let client = [
        "kubelet-client",
        "--ca-cert",
        &root,
        "--ca-key",
        &key,
        "--out",
        &dir,
    ];
    let (code, text) = run(&client);
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("system:kubelet-api-admin --user=towline-kubelet-client"),
        "{text}"
    );
    assert_eq!(run(&client).0, 1);
    assert_eq!(run(&[&client[..], &["--replace"]].concat()).0, 0);
    assert_eq!(
        run(&[&client[..], &["--replace", "--group", "system:masters"]].concat()).0,
        2
    );
    let material = GatewayMaterial::load(
        &GatewayFiles {
            client_authority: file("root/root.crt"),
            rules: FrontEndRules::default(),
            serving: ServingFiles::Issuer(file("issuers/gateway.crt"), file("issuers/gateway.key")),
            kubelet_client: (file("kubelet-client.crt"), file("kubelet-client.key")),
            deny_list: None,
        },
        SystemTime::now(),
    )
    .unwrap();
    let mut ends: Vec<_> = material
        .expiries()
        .into_iter()
        .map(|expiry| expiry.what)
        .collect();
    ends.sort();
    assert_eq!(
        ends,
        ["gateway-client-ca", "gateway-issuer", "kubelet-client"]
    );
    std::fs::remove_dir_all(folder).unwrap();
}
