//! What is minted, cross-checked with openssl; authorities that others made; requests.

mod cluster;

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use cluster::{Cluster, DAY, Scratch, have_openssl, new_key, now, openssl, spec};
use towline_pki::role::{BACKDATE, Profile};
use towline_pki::{
    Authority, AuthorityError, Certificate, Issue, IssueError, KeyKind, PrivateKey, Request,
    RequestError, store,
};
use towline_proto::id::Role;

fn issue(c: &Cluster, role: Role, key: &PrivateKey) -> Issue {
    Issue {
        identity: c.identity(role, "x1"),
        dns: vec![],
        ips: vec![],
        life: None,
        public_key: key.public(),
    }
}

fn write(dir: &Scratch, name: &str, text: &[u8]) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.path(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// Issues one leaf under an authority that openssl made, and lets openssl check it.
fn adopt(dir: &Scratch, cert: &str, key: &str, role: Role) -> Certificate {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(dir.path(key), fs::Permissions::from_mode(0o600)).unwrap();
    let real_now = SystemTime::now();
    let authority = Authority::load(&dir.path(cert), &dir.path(key), real_now).unwrap();
    let c = Cluster::new("prod");
    let issued = authority
        .issue(&issue(&c, role, &new_key()), real_now)
        .unwrap();
    write(dir, "leaf.crt", issued.to_pem().as_bytes());
    let purpose = match role {
        Role::Server => "sslserver",
        _ => "sslclient",
    };
    let verdict = openssl(
        dir.root(),
        &format!("verify -purpose {purpose} -CAfile {cert} leaf.crt"),
    );
    assert!(verdict.contains("leaf.crt: OK"), "{verdict}");
    let leaf = Certificate::parse(issued.chain[0].as_ref()).unwrap();
    let issuer = Certificate::parse(authority.der().as_ref()).unwrap();
    assert_eq!(leaf.issuer, issuer.subject);
    let anchors = towline_pki::Anchors::new(std::slice::from_ref(authority.der())).unwrap();
    let verifier = towline_pki::PeerVerifier::new(
        "prod".parse().unwrap(),
        role,
        anchors,
        towline_pki::DenyList::default(),
    );
    verifier.verify(&issued.chain, real_now).unwrap();
    leaf
}

#[test]
fn what_init_makes_passes_openssl_s_strict_check() {
    if !have_openssl() {
        return;
    }
    for kind in [
        KeyKind::EcdsaP256,
        KeyKind::EcdsaP384,
        KeyKind::Ed25519,
        KeyKind::Rsa2048,
    ] {
        let dir = Scratch::new();
        let key = || PrivateKey::generate(kind).unwrap();
        let root = Authority::create(&spec("root", Some(1), &[]), key()).unwrap();
        let usages = [towline_pki::Usage::ClientAuth];
        let agents = root
            .create_below(&spec("agents", Some(0), &usages), key())
            .unwrap();
        let c = Cluster::new("prod");
        let mut wanted = issue(&c, Role::Agent, &key());
        wanted.ips = vec!["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()];
        let issued = agents.issue(&wanted, now()).unwrap();
        write(&dir, "root.crt", root.to_pem().as_bytes());
        write(&dir, "agents.crt", agents.to_pem().as_bytes());
        write(&dir, "leaf.crt", issued.to_pem().as_bytes());
        let at = now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let verdict = openssl(
            dir.root(),
            &format!(
                "verify -x509_strict -attime {at} -purpose sslclient -CAfile root.crt \
                 -untrusted agents.crt leaf.crt"
            ),
        );
        assert!(verdict.contains("leaf.crt: OK"), "{kind}: {verdict}");
        // As a daemon anchors: on the issuer alone.
        let partial = format!("verify -partial_chain -attime {at} -CAfile agents.crt leaf.crt");
        assert!(openssl(dir.root(), &partial).contains("OK"), "{kind}");
        let text = openssl(dir.root(), "x509 -in leaf.crt -noout -text");
        for part in [
            "URI:spiffe://prod/towline/agent/x1",
            "IP Address:10.0.0.7",
            "IP Address:FD00:0:0:0:0:0:0:7",
            "TLS Web Client Authentication",
            "CA:FALSE",
            "Digital Signature",
            "Authority Key Identifier",
        ] {
            assert!(text.contains(part), "{kind}: {part} is missing in {text}");
        }
        assert!(!text.contains("TLS Web Server"), "{text}");
    }
}

#[test]
fn kubeadm_s_authority_signs_ours() {
    if !have_openssl() {
        return;
    }
    let dir = Scratch::new();
    // What kubeadm writes: RSA-2048, PKCS#1, CN=kubernetes, no AKI, a DNS SAN.
    openssl(dir.root(), "genrsa -traditional -out ca.key 2048");
    assert!(
        fs::read_to_string(dir.path("ca.key"))
            .unwrap()
            .contains("BEGIN RSA PRIVATE KEY")
    );
    openssl(
        dir.root(),
        "req -x509 -new -key ca.key -days 3650 -subj /CN=kubernetes -out ca.crt \
         -addext keyUsage=critical,digitalSignature,keyEncipherment,keyCertSign \
         -addext subjectAltName=DNS:kubernetes",
    );
    let leaf = adopt(&dir, "ca.crt", "ca.key", Role::Agent);
    assert_eq!(leaf.issuer, "CN=kubernetes");
}

#[test]
fn authorities_in_every_usual_key_form_sign_ours() {
    if !have_openssl() {
        return;
    }
    for (make, convert) in [
        ("ecparam -name prime256v1 -genkey -out ca.key", None),
        ("ecparam -name secp384r1 -genkey -noout -out ca.key", None),
        ("ecparam -name secp521r1 -genkey -noout -out ca.key", None),
        ("genpkey -algorithm ed25519 -out ca.key", None),
        (
            "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:3072 -out ca.key",
            None,
        ),
        (
            "ecparam -name prime256v1 -genkey -noout -out sec1.key",
            Some("pkcs8 -topk8 -nocrypt -in sec1.key -out ca.key"),
        ),
    ] {
        let dir = Scratch::new();
        openssl(dir.root(), make);
        if let Some(convert) = convert {
            openssl(dir.root(), convert);
        }
        openssl(
            dir.root(),
            "req -x509 -new -key ca.key -days 30 -subj /CN=other/O=x -out ca.crt",
        );
        adopt(&dir, "ca.crt", "ca.key", Role::Server);
    }
}

#[test]
fn odd_subjects_are_taken_over_byte_for_byte() {
    if !have_openssl() {
        return;
    }
    for subject in [
        "/C=US/O=Foo/OU=a/OU=b/CN=x",
        "/CN=abc+OU=def",
        "/O=Gr\u{fc}n/CN=a\\/b",
        "/DC=org/DC=example/CN=ca/emailAddress=a@b.c",
    ] {
        let dir = Scratch::new();
        openssl(
            dir.root(),
            "ecparam -name prime256v1 -genkey -noout -out ca.key",
        );
        openssl(
            dir.root(),
            &format!(
                "req -x509 -new -utf8 -multivalue-rdn -key ca.key -days 30 -subj {subject} -out ca.crt"
            ),
        );
        adopt(&dir, "ca.crt", "ca.key", Role::Client);
    }
}

#[test]
fn serials_are_random_positive_and_long() {
    let c = Cluster::new("prod");
    let mut seen = std::collections::HashSet::new();
    for _ in 0..50 {
        let paper = c.paper(Role::Agent, "n1");
        let serial = Certificate::parse(paper.chain[0].as_ref()).unwrap().serial;
        assert_eq!(serial.to_string().len(), 32, "{serial}");
        assert!(seen.insert(serial));
    }
}

#[test]
fn a_life_is_the_role_s_and_never_longer_than_the_authority_s() {
    let c = Cluster::new("prod");
    let key = new_key();
    for role in Role::ALL {
        let profile = Profile::of(role);
        let issued = c.issuer(role).issue(&issue(&c, role, &key), now()).unwrap();
        assert_eq!(issued.leaf.not_after, now() + profile.default_life);
        assert_eq!(issued.leaf.not_before, now() - BACKDATE);
        assert_eq!(issued.leaf.usages, [profile.usage]);
        let mut long = issue(&c, role, &key);
        long.life = Some(profile.longest_life + DAY);
        let error = c.issuer(role).issue(&long, now()).unwrap_err();
        assert!(matches!(error, IssueError::TooLong { .. }), "{error}");
    }
    let late = now() + 970 * DAY;
    let mut asked = issue(&c, Role::Agent, &key);
    let cut = c.agents.issue(&asked, late).unwrap();
    assert!(cut.cut_short);
    assert_eq!(cut.leaf.not_after, c.agents.certificate().not_after);
    asked.life = Some(90 * DAY);
    let error = c.agents.issue(&asked, late).unwrap_err();
    assert!(
        matches!(error, IssueError::OutlivesAuthority { .. }),
        "{error}"
    );
    asked.life = Some(Duration::ZERO);
    let error = c.agents.issue(&asked, now()).unwrap_err();
    assert!(matches!(error, IssueError::NoLife), "{error}");
}

#[test]
fn the_issuer_of_agents_refuses_to_sign_for_a_server() {
    let c = Cluster::new("prod");
    let error = c
        .agents
        .issue(&issue(&c, Role::Server, &new_key()), now())
        .unwrap_err();
    assert!(matches!(error, IssueError::Usage { .. }), "{error}");
}

#[test]
fn the_longest_names_fit() {
    let label = "a".repeat(63);
    let long = format!("{label}.{label}.{label}.{}", "b".repeat(61));
    assert_eq!(long.len(), 253);
    let c = Cluster::new("prod");
    let mut asked = issue(&c, Role::Agent, &new_key());
    asked.identity.name = long.parse().unwrap();
    asked.identity.cluster = long.parse().unwrap();
    let issued = c.agents.issue(&asked, now()).unwrap();
    assert_eq!(issued.leaf.identity, asked.identity);
    assert_eq!(issued.leaf.subject, "CN=towline:agent");
}

#[test]
fn an_authority_that_does_not_fit_is_refused_by_name() {
    let c = Cluster::new("prod");
    let der = || c.agents.der().clone();
    let key = store_key(&c.agents);
    let error = Authority::new(der(), &new_key().to_der(), now()).unwrap_err();
    assert!(matches!(error, AuthorityError::Mismatch { .. }), "{error}");
    let error = Authority::new(der(), &key, now() + 2000 * DAY).unwrap_err();
    assert!(matches!(error, AuthorityError::Expired { .. }), "{error}");
    let error = Authority::new(der(), &key, now() - 2 * DAY).unwrap_err();
    assert!(
        matches!(error, AuthorityError::NotYetValid { .. }),
        "{error}"
    );
    let leaf = c.paper(Role::Agent, "n1");
    let error = Authority::new(leaf.chain[0].clone(), &leaf.key_der(), now()).unwrap_err();
    assert!(
        matches!(error, AuthorityError::NotAuthority { .. }),
        "{error}"
    );
    assert!(Authority::new(der(), &key, now()).is_ok());
}

fn store_key(authority: &Authority) -> rustls_pki_types::PrivateKeyDer<'static> {
    towline_pki::pem::private_key(authority.key_to_pem().expose()).unwrap()
}

#[test]
fn a_request_gives_its_key_and_nothing_else() {
    for kind in [
        KeyKind::EcdsaP256,
        KeyKind::EcdsaP384,
        KeyKind::Ed25519,
        KeyKind::Rsa2048,
    ] {
        let key = PrivateKey::generate(kind).unwrap();
        let text = Request::make(&key, "towline:agent:n1").unwrap();
        let request = Request::parse(text.as_bytes()).unwrap();
        assert_eq!(request.public_key(), &key.public());
        assert_eq!(request.asked(), ["subject CN=towline:agent:n1"]);
    }
}

#[test]
fn a_request_to_be_an_authority_gets_a_plain_leaf() {
    if !have_openssl() {
        return;
    }
    let dir = Scratch::new();
    openssl(
        dir.root(),
        "ecparam -name prime256v1 -genkey -noout -out a.key",
    );
    openssl(
        dir.root(),
        "req -new -key a.key -subj /O=system:masters/O=extra/CN=admin -out a.csr \
         -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign \
         -addext subjectAltName=URI:spiffe://prod/towline/server/cp,DNS:evil",
    );
    let request = Request::load(&dir.path("a.csr")).unwrap();
    assert!(
        request
            .asked()
            .iter()
            .any(|line| line == "to be an authority")
    );
    assert!(request.asked().iter().any(|line| line == "DNS evil"));
    let c = Cluster::new("prod");
    let mut asked = issue(&c, Role::Agent, &new_key());
    asked.public_key = request.public_key().clone();
    let issued = c.agents.issue(&asked, now()).unwrap();
    let leaf = Certificate::parse(issued.chain[0].as_ref()).unwrap();
    assert!(!leaf.is_authority && leaf.dns_sans.is_empty());
    assert_eq!(leaf.subject, "CN=towline:agent:x1");
    assert_eq!(leaf.uris, ["spiffe://prod/towline/agent/x1"]);
}

#[test]
fn a_request_that_proves_nothing_is_refused() {
    let key = new_key();
    let text = Request::make(&key, "a").unwrap();
    let der = towline_pki::pem::request(text.as_bytes()).unwrap();
    let mut swapped = 0;
    for index in 0..der.len() {
        let mut bytes = der.to_vec();
        bytes[index] ^= 1;
        let text = towline_pki::pem::write_request(&bytes);
        match Request::parse(text.as_bytes()) {
            Err(RequestError::Possession) => swapped += 1,
            Err(_) => {}
            // Outside what is signed a bit may not matter; the key is the same then.
            Ok(request) => assert_eq!(request.public_key(), &key.public(), "byte {index}"),
        }
    }
    assert!(
        swapped > 60,
        "a changed key or signature is no proof: {swapped}"
    );
    if have_openssl() {
        let dir = Scratch::new();
        openssl(dir.root(), "genrsa -out weak.key 1024");
        openssl(
            dir.root(),
            "req -new -key weak.key -subj /CN=x -out weak.csr",
        );
        let error = Request::load(&dir.path("weak.csr"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("RSA 1024") && error.contains("weak.csr"),
            "{error}"
        );
        openssl(dir.root(), "genrsa -out old.key 2048");
        openssl(
            dir.root(),
            "req -new -sha1 -key old.key -subj /CN=x -out old.csr",
        );
        let error = Request::load(&dir.path("old.csr")).unwrap_err();
        assert!(error.to_string().contains("not accepted"), "{error}");
    }
}

#[test]
fn a_file_that_is_not_what_it_must_be_is_named() {
    let dir = Scratch::new();
    let c = Cluster::new("prod");
    let cert = write(&dir, "ca.crt", c.agents.to_pem().as_bytes());
    let key = write(&dir, "ca.key", c.agents.key_to_pem().expose());
    assert!(Authority::load(&cert, &key, now()).is_ok());
    let junk = write(&dir, "junk", b"hello");
    let missing = dir.path("missing");
    for (cert, key, named) in [
        (&junk, &key, "junk"),
        (&cert, &junk, "junk"),
        (&missing, &key, "missing"),
        (&key, &key, "ca.key"),
    ] {
        let error = Authority::load(cert, key, now()).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
    assert!(store::read(Path::new("/")).is_err());
}
