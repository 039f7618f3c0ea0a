//! Every algorithm of keys, through every verb that makes one, held against openssl; and authorities
//! whose keys are under a passphrase.

mod cluster;
mod tool;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use cluster::{have_openssl, openssl};
use tool::Tool;
use towline_pki::KeyKind;

/// What openssl calls the public key.
fn openssl_name(kind: KeyKind) -> &'static str {
    match kind {
        KeyKind::EcdsaP256 => "ASN1 OID: prime256v1",
        KeyKind::EcdsaP384 => "ASN1 OID: secp384r1",
        KeyKind::Ed25519 => "ED25519",
        KeyKind::Rsa2048 => "Public-Key: (2048 bit)",
        KeyKind::Rsa3072 => "Public-Key: (3072 bit)",
        KeyKind::Rsa4096 => "Public-Key: (4096 bit)",
    }
}

fn passphrase(tool: &Tool, name: &str, text: &str) {
    let path = tool.dir.path(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn every_algorithm_makes_authorities_leaves_and_requests() {
    for kind in KeyKind::ALL {
        let tool = Tool::new();
        // Making large RSA keys takes seconds; one size of them is enough for authorities.
        let authority = match kind {
            KeyKind::Rsa2048 | KeyKind::Rsa4096 => KeyKind::EcdsaP256,
            other => other,
        };
        tool.ok(&format!(
            "init prod --cluster prod.example --key-algorithm {authority}"
        ));
        tool.ok(&format!(
            "issue --dir prod server cp-1 --dns cp.example --key-algorithm {kind}"
        ));
        tool.ok(&format!(
            "issue --dir prod agent n1 --ip 10.0.0.1 --key-algorithm {kind}"
        ));
        let short = if kind == KeyKind::Rsa4096 {
            KeyKind::EcdsaP256
        } else {
            kind
        };
        tool.ok(&format!("request agent n2 --key-algorithm {short}"));
        tool.ok("sign agent-n2.csr --dir prod --role agent --name n2");
        for (cert, role, trust) in [
            ("server-cp-1.crt", "server", "servers"),
            ("agent-n1.crt", "agent", "agents"),
            ("agent-n2.crt", "agent", "agents"),
        ] {
            let kind = if cert == "agent-n2.crt" { short } else { kind };
            tool.ok(&format!(
                "verify {cert} --role {role} --trust prod/trust/{trust}.pem --cluster prod.example"
            ));
            if have_openssl() {
                let root = tool.dir.root();
                let verdict = openssl(
                    root,
                    &format!(
                        "verify -x509_strict -CAfile prod/root/root.crt -untrusted prod/issuers/{trust}.crt {cert}"
                    ),
                );
                assert!(verdict.contains("OK"), "{kind}: {verdict}");
                let text = openssl(root, &format!("x509 -in {cert} -noout -text"));

                assert!(text.contains(openssl_name(kind)), "{kind}: {text}");
            }
        }
        if kind == KeyKind::Rsa4096 {
            continue;
        }
        // A renewal keeps the algorithm unless it is told otherwise.
        tool.ok("renew agent-n1.crt --dir prod");
        assert!(tool.ok("inspect agent-n1.crt").contains(match kind {
            KeyKind::EcdsaP256 => "ECDSA P-256",
            KeyKind::EcdsaP384 => "ECDSA P-384",
            KeyKind::Ed25519 => "Ed25519",
            KeyKind::Rsa2048 => "RSA 2048",
            KeyKind::Rsa3072 => "RSA 3072",
            KeyKind::Rsa4096 => "RSA 4096",
        }));
    }
}

#[test]
fn an_authority_is_not_made_with_a_key_that_is_weak_for_ten_years() {
    let tool = Tool::new();
    tool.refused(
        "init x --cluster c --key-algorithm rsa-2048",
        2,
        &["too weak for an authority", "rsa-3072"],
    );
    tool.refused(
        "init x --cluster c --key-algorithm rsa-1024",
        2,
        &["ecdsa-p256"],
    );
    tool.ok("init prod --cluster prod.example");
    tool.refused(
        "gateway-issuer --dir prod --key-algorithm rsa-2048",
        2,
        &["too weak"],
    );
}

#[test]
fn encrypted_authorities_sign_with_their_passphrase_only() {
    let tool = Tool::new();
    passphrase(&tool, "pass", "correct horse battery\n");
    passphrase(&tool, "rootpass", "another passphrase\n");
    passphrase(&tool, "wrong", "correct horse batterz\n");
    let out = tool.ok(
        "init prod --cluster prod.example --encrypt-keys --passphrase-file pass --root-passphrase-file rootpass",
    );
    assert!(out.contains("encrypted"), "{out}");
    for key in ["root/root", "issuers/agents", "issuers/servers"] {
        let text = fs::read_to_string(tool.dir.path(format!("prod/{key}.key"))).unwrap();
        assert!(text.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----\n"));
        assert_eq!(tool.mode(&format!("prod/{key}.key")), 0o600);
    }
    tool.ok("issue --dir prod --passphrase-file pass agent n1");
    tool.refused(
        "issue --dir prod --passphrase-file wrong agent n2",
        1,
        &["prod/issuers/agents.key: the passphrase is wrong"],
    );
    tool.refused(
        "issue --dir prod --passphrase-file nowhere agent n2",
        3,
        &["nowhere"],
    );
    tool.refused(
        "issue --dir prod --passphrase-file pass --passphrase-fd 0 agent n2",
        2,
        &["--passphrase-fd"],
    );
    passphrase(&tool, "short", "short\n");
    tool.refused(
        "init other --cluster c --encrypt-keys --passphrase-file short",
        3,
        &["short: ", "fewer than 8"],
    );
    if have_openssl() {
        let root = tool.dir.root();
        for (key, pass) in [("root/root", "rootpass"), ("issuers/agents", "pass")] {
            openssl(
                root,
                &format!("pkey -in prod/{key}.key -passin file:{pass} -out plain.key"),
            );
            openssl(
                root,
                &format!("x509 -in prod/{key}.crt -noout -pubkey -out of-cert.pub"),
            );
            openssl(root, "pkey -in plain.key -pubout -out of-key.pub");
            assert_eq!(
                fs::read(tool.dir.path("of-cert.pub")).unwrap(),
                fs::read(tool.dir.path("of-key.pub")).unwrap()
            );
        }
    }
}

#[test]
fn a_passphrase_comes_by_descriptor_and_never_by_argument_or_environment() {
    let tool = Tool::new();
    passphrase(&tool, "pass", "correct horse battery\n");
    tool.ok("init prod --cluster prod.example --encrypt-keys --passphrase-file pass");
    let mut child = Command::new(env!("CARGO_BIN_EXE_towline-pki"))
        .args("issue --dir prod --passphrase-fd 0 agent n1".split(' '))
        .current_dir(tool.dir.root())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut pipe, b"correct horse battery\n").unwrap();
    assert!(child.wait_with_output().unwrap().status.success());
    assert!(tool.dir.path("agent-n1.crt").exists());
    for verb in ["init", "issue", "sign", "renew", "kubelet-client", "accept"] {
        let help = tool.ok(&format!("{verb} --help"));
        assert!(help.contains("--passphrase-file"), "{verb}");
        assert!(!help.contains("--passphrase "), "{verb}");
        assert!(!help.contains("PASSPHRASE="), "{verb}: {help}");
    }
}

#[test]
fn without_a_terminal_the_flags_are_named() {
    let tool = Tool::new();
    passphrase(&tool, "pass", "correct horse battery\n");
    tool.ok("init prod --cluster prod.example --encrypt-keys --passphrase-file pass");
    // A session of its own has no terminal to ask at, also where a person runs the tests.
    let answer = Command::new("setsid")
        .args(["--wait", env!("CARGO_BIN_EXE_towline-pki")])
        .args("issue --dir prod agent n1".split(' '))
        .current_dir(tool.dir.root())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&answer.stderr);
    assert_eq!(answer.status.code(), Some(1), "{error}");
    assert!(error.contains("--passphrase-file"), "{error}");
    assert!(!tool.dir.path("agent-n1.key").exists());
}

#[test]
fn what_openssl_encrypts_is_opened_or_refused_by_name() {
    if !have_openssl() {
        return;
    }
    let tool = Tool::new();
    let root = tool.dir.root();
    passphrase(&tool, "pass", "correct horse battery\n");
    openssl(
        root,
        "req -x509 -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout plain.key \
         -days 30 -subj /CN=ours -out ca.crt -addext keyUsage=critical,keyCertSign",
    );
    for (options, opens) in [
        ("-v2 aes-256-cbc", true),
        ("-v2 aes-192-cbc -v2prf hmacWithSHA512", true),
        ("-v2 aes-128-cbc -v2prf hmacWithSHA1 -iter 10000", true),
        ("-v2 aes-256-cbc -v2prf hmacWithSHA384", true),
        ("-v2 des3", false),
        ("-scrypt", false),
        ("-v2 aes-256-cbc -iter 20000000", false),
    ] {
        openssl(
            root,
            &format!("pkcs8 -topk8 -in plain.key -out sealed.key {options} -passout file:pass"),
        );
        fs::set_permissions(
            tool.dir.path("sealed.key"),
            fs::Permissions::from_mode(0o600),
        )
        .unwrap();
        let args = "issue --ca-cert ca.crt --ca-key sealed.key --cluster prod --passphrase-file pass agent n1 --replace";
        if opens {
            tool.ok(args);
        } else {
            tool.refused(args, 3, &["sealed.key: the "]);
        }
    }
    // The traditional format, whose key is stretched once with MD5.
    openssl(
        root,
        "ec -in plain.key -aes256 -passout file:pass -out sealed.key",
    );
    tool.refused(
        "issue --ca-cert ca.crt --ca-key sealed.key --cluster prod --passphrase-file pass agent n1 --replace",
        3,
        &["traditional format", "openssl pkcs8 -topk8"],
    );
}
