//! Exports: what is written reads back as what went in, here, with openssl and with kubectl; and
//! what must not leave does not.

mod cluster;
mod tool;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use cluster::{have_openssl, openssl};
use serde_json::Value;
use tool::Tool;
use towline_pki::pem;

fn text(tool: &Tool, file: &str) -> String {
    fs::read_to_string(tool.dir.path(file)).unwrap()
}

/// A cluster with a server's pair and a client's.
fn world() -> Tool {
    let tool = Tool::with_cluster();
    tool.ok("issue --dir prod server cp-1 --dns cp.example");
    tool.ok("issue --dir prod client kube-apiserver");
    tool
}

/// SHA-256 of every certificate that `status` finds, by the place inside the file.
fn found(tool: &Tool, file: &str) -> Vec<(String, String)> {
    let document: Value =
        serde_json::from_str(&tool.ok(&format!("status {file} -o json"))).unwrap();
    let one = |certificate: &Value| {
        let place = certificate["place"].as_str().unwrap();
        let place = place.trim_start_matches(file).trim().to_owned();
        (place, certificate["sha256"].as_str().unwrap().to_owned())
    };
    let all = document["result"]["certificates"].as_array().unwrap();
    let mut all: Vec<_> = all.iter().map(one).collect();
    all.sort();
    all
}

fn sha256(tool: &Tool, file: &str) -> String {
    found(tool, file).remove(0).1
}

fn kubectl(tool: &Tool, args: &str) -> Option<Output> {
    let mut command = Command::new("kubectl");
    command
        .args(args.split_whitespace())
        .current_dir(tool.dir.root());
    command.env_remove("KUBECONFIG").output().ok()
}

#[test]
fn pem_is_put_in_order_and_key_s_form_is_made_one() {
    let tool = world();
    // The wrong order, a mark, text between, glued blocks, a stranger.
    let mixed = format!(
        "\u{feff}issuer\r\n{}{}words\n{}{}",
        text(&tool, "prod/root/root.crt").trim_end(),
        text(&tool, "prod/issuers/servers.crt"),
        text(&tool, "server-cp-1.crt").replace('\n', "\r\n"),
        text(&tool, "prod/issuers/agents.crt"),
    );
    fs::write(tool.dir.path("mixed.pem"), mixed).unwrap();
    let out = tool.ok("export pem --cert mixed.pem --out chain.pem");
    assert!(out.contains("2 certificates, leaf first"), "{out}");
    assert!(
        out.contains("towline agents") && out.contains("left out"),
        "{out}"
    );
    let expected = format!(
        "{}{}",
        text(&tool, "server-cp-1.crt"),
        text(&tool, "prod/issuers/servers.crt")
    );
    assert_eq!(text(&tool, "chain.pem"), expected);
    assert_eq!(tool.mode("chain.pem"), 0o644);
    // Twice the same, and from what was written the same again.
    assert_eq!(tool.ok("export pem --cert chain.pem"), expected);
    let with_root = tool.ok("export pem --cert mixed.pem --root");
    assert_eq!(
        with_root,
        format!("{expected}{}", text(&tool, "prod/root/root.crt"))
    );
    let reversed = format!(
        "{}{}",
        text(&tool, "prod/issuers/servers.crt"),
        text(&tool, "server-cp-1.crt")
    );
    fs::write(tool.dir.path("reversed.pem"), reversed).unwrap();
    let out = tool.ok("export pem --cert reversed.pem --out b.pem");
    assert!(out.contains("were not in order"), "{out}");
    tool.refused(
        "export pem --cert mixed.pem --out chain.pem",
        1,
        &["--replace"],
    );
    tool.ok("export pem --cert mixed.pem --out chain.pem --replace");
    if have_openssl() {
        let verdict = openssl(
            tool.dir.root(),
            "verify -CAfile prod/root/root.crt -untrusted chain.pem chain.pem",
        );
        assert!(verdict.contains("OK"), "{verdict}");
    }
    let key = "--key server-cp-1.key";
    let out = tool.ok(&format!(
        "export pem --cert server-cp-1.crt {key} --out both.pem"
    ));
    assert!(out.contains("mode 0600"), "{out}");
    assert_eq!(tool.mode("both.pem"), 0o600);
    assert!(text(&tool, "both.pem").starts_with("-----BEGIN PRIVATE KEY-----"));
    tool.refused(
        "export pem --cert server-cp-1.crt --key client-kube-apiserver.key",
        3,
        &["server-cp-1.crt", "do not belong together"],
    );
    tool.refused(
        "export pem --cert prod/issuers/servers.crt",
        3,
        &["authorities only"],
    );
}

#[test]
fn keys_of_every_form_become_pkcs8_that_openssl_reads() {
    if !have_openssl() {
        return;
    }
    let tool = Tool::new();
    let root = tool.dir.root();
    for (name, make) in [
        ("rsa1", "genrsa -traditional -out rsa1.key 2048"),
        ("rsa8", "genrsa -out rsa8.key 2048"),
        (
            "p256",
            "ecparam -name prime256v1 -genkey -noout -out p256.key",
        ),
        (
            "p384",
            "ecparam -name secp384r1 -genkey -noout -out p384.key",
        ),
        (
            "p521",
            "ecparam -name secp521r1 -genkey -noout -out p521.key",
        ),
        ("ed", "genpkey -algorithm ed25519 -out ed.key"),
    ] {
        openssl(root, make);
        openssl(
            root,
            &format!(
                "req -x509 -new -key {name}.key -days 9 -subj /CN={name} -out {name}.crt -addext basicConstraints=CA:FALSE"
            ),
        );
        let key = tool.dir.path(format!("{name}.key"));
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        let made = tool.ok(&format!("export pem --cert {name}.crt --key {name}.key"));
        assert!(
            made.starts_with("-----BEGIN PRIVATE KEY-----\n"),
            "{name}: {made}"
        );
        fs::write(tool.dir.path("made.pem"), &made).unwrap();
        let public = |file: &str| openssl(root, &format!("pkey -in {file} -pubout"));
        assert_eq!(public("made.pem"), public(&format!("{name}.key")), "{name}");
        let same = openssl(root, "x509 -in made.pem -outform DER -fingerprint -noout");
        let before = openssl(root, &format!("x509 -in {name}.crt -fingerprint -noout"));
        assert_eq!(same, before, "{name}");
    }
}

#[test]
fn secrets_and_config_maps_read_back_here_and_with_kubectl() {
    let tool = world();
    tool.ok(
        "export secret towline-server --namespace kube-system --cert server-cp-1.crt \
         --chain prod/issuers/servers.crt --key server-cp-1.key --ca prod/trust/agents.pem --out s.yaml",
    );
    assert_eq!(tool.mode("s.yaml"), 0o600);
    let issuer = sha256(&tool, "prod/issuers/servers.crt");
    assert_eq!(
        found(&tool, "s.yaml"),
        [
            (
                "Secret towline-server ca.crt".to_owned(),
                sha256(&tool, "prod/trust/agents.pem")
            ),
            (
                "Secret towline-server tls.crt #1".to_owned(),
                sha256(&tool, "server-cp-1.crt")
            ),
            ("Secret towline-server tls.crt #2".to_owned(), issuer),
        ]
    );
    tool.ok(
        "export secret gateway --from ca.crt=prod/issuers/servers.crt --from server-cp-1.key --out o.yaml",
    );
    let out = tool.ok(
        "export config-map towline-trust --namespace kube-system --from prod/trust/agents.pem \
         --from servers.pem=prod/trust/servers.pem",
    );
    fs::write(tool.dir.path("c.yaml"), out).unwrap();
    assert_eq!(
        found(&tool, "c.yaml"),
        [
            (
                "ConfigMap towline-trust agents.pem".to_owned(),
                sha256(&tool, "prod/trust/agents.pem")
            ),
            (
                "ConfigMap towline-trust servers.pem".to_owned(),
                sha256(&tool, "prod/trust/servers.pem")
            ),
        ]
    );
    for (file, kind, entry, original) in [
        ("s.yaml", "kubernetes.io/tls", "tls.key", "server-cp-1.key"),
        ("o.yaml", "Opaque", "server-cp-1.key", "server-cp-1.key"),
        ("c.yaml", "", "agents.pem", "prod/trust/agents.pem"),
    ] {
        let Some(read) = kubectl(&tool, &format!("label --local -f {file} a=b -o json")) else {
            continue;
        };
        assert!(read.status.success(), "{read:?}");
        let object: Value = serde_json::from_slice(&read.stdout).unwrap();
        let value = object["data"][entry].as_str().unwrap();
        if kind.is_empty() {
            assert_eq!(value, text(&tool, original));
        } else {
            assert_eq!(object["type"], kind);
            assert_eq!(decoded(value), text(&tool, original).into_bytes());
        }
    }
}

fn decoded(text: &str) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .unwrap()
}

#[test]
fn a_kubeconfig_reads_back_here_and_with_kubectl() {
    let tool = world();
    let args = "export kubeconfig --server https://[fd00::1]:6443 --ca prod/trust/servers.pem \
                --cert client-kube-apiserver.crt --key client-kube-apiserver.key";
    let out = tool.ok(&format!("{args} --namespace web --out admin.conf"));
    assert!(out.contains("towline:client:kube-apiserver"), "{out}");
    assert_eq!(tool.mode("admin.conf"), 0o600);
    assert_eq!(
        found(&tool, "admin.conf"),
        [
            (
                "cluster kubernetes".to_owned(),
                sha256(&tool, "prod/trust/servers.pem")
            ),
            (
                "user towline:client:kube-apiserver".to_owned(),
                sha256(&tool, "client-kube-apiserver.crt")
            ),
        ]
    );
    let view = kubectl(
        &tool,
        "config view --kubeconfig admin.conf --minify --raw -o json",
    );
    if let Some(view) = view {
        assert!(view.status.success(), "{view:?}");
        let read: Value = serde_json::from_slice(&view.stdout).unwrap();
        assert_eq!(
            read["clusters"][0]["cluster"]["server"],
            "https://[fd00::1]:6443"
        );
        assert_eq!(read["contexts"][0]["context"]["namespace"], "web");
        let key = read["users"][0]["user"]["client-key-data"]
            .as_str()
            .unwrap();
        assert_eq!(
            decoded(key),
            text(&tool, "client-kube-apiserver.key").into_bytes()
        );
    }
    for (args, code, words) in [
        ("--server http://x", 2, &["https://"][..]),
        ("--server https://x/y", 2, &["https://"]),
        ("--server https://x --user a\u{1b}b", 2, &["no name"]),
        ("--server https://x --namespace A", 2, &["namespace"]),
    ] {
        let rest = "--ca prod/trust/servers.pem --cert client-kube-apiserver.crt --key client-kube-apiserver.key";
        tool.refused(&format!("export kubeconfig {args} {rest}"), code, words);
    }
    let pair = "--cert server-cp-1.crt --key server-cp-1.key";
    tool.refused(
        &format!("export kubeconfig --server https://x --ca prod/trust/servers.pem {pair}"),
        3,
        &["server-cp-1.crt", "clientAuth"],
    );
    tool.refused(
        &args.replace("prod/trust/servers.pem", "server-cp-1.crt"),
        3,
        &["not an authority"],
    );
}

#[test]
fn egress_selector_is_what_the_manifests_beside_the_server_are() {
    let tool = Tool::new();
    let shipped = |name: &str| {
        let path = format!("{}/../server/deploy/{name}", env!("CARGO_MANIFEST_DIR"));
        let text = fs::read_to_string(path).unwrap();
        let kept = text.lines().filter(|line| !line.starts_with('#'));
        kept.map(|line| format!("{line}\n")).collect::<String>()
    };
    let unquoted = |text: String| text.replace('"', "");
    assert_eq!(
        unquoted(tool.ok("export egress-selector --unix /run/towline/door.sock")),
        shipped("egress-selector-unix.yaml")
    );
    assert_eq!(
        unquoted(tool.ok(
            "export egress-selector --url https://127.0.0.1:8090 --ca /etc/towline/pki/trust/servers.pem \
             --client-cert /etc/towline/pki/client-kube-apiserver.crt \
             --client-key /etc/towline/pki/client-kube-apiserver.key"
        )),
        shipped("egress-selector-tcp.yaml")
    );
    let all =
        tool.ok("export egress-selector --unix /s --grpc --selections cluster,controlplane,etcd");
    assert_eq!(all.matches("proxyProtocol: GRPC").count(), 3, "{all}");
    for (args, words) in [
        ("", &["--unix"][..]),
        ("--unix s", &["absolute"]),
        ("--url https://x:1", &["--ca"]),
        (
            "--url https://x:1 --ca /a --client-cert /b --client-key /c --grpc",
            &["--grpc"],
        ),
        ("--unix /s --url https://x:1", &["--url"]),
        ("--unix /s --selections node", &["cluster"]),
    ] {
        tool.refused(&format!("export egress-selector {args}"), 2, words);
    }
}

#[test]
fn pkcs12_is_one_that_openssl_reads() {
    if !have_openssl() {
        return;
    }
    let tool = world();
    let root = tool.dir.root();
    fs::write(tool.dir.path("pass"), "correct horse battery\n").unwrap();
    let pass = tool.dir.path("pass");
    fs::set_permissions(&pass, fs::Permissions::from_mode(0o600)).unwrap();
    let make = "export pkcs12 --cert server-cp-1.crt --key server-cp-1.key --chain prod/issuers/servers.crt \
                --passphrase-file pass";
    let out = tool.ok(&format!("{make} --out a.p12"));
    assert!(
        out.contains("2 certificates") && !out.contains("horse"),
        "{out}"
    );
    assert_eq!(tool.mode("a.p12"), 0o600);
    openssl(
        root,
        "pkcs12 -in a.p12 -passin file:pass -nodes -out back.pem",
    );
    let back = text(&tool, "back.pem");
    let certificates = pem::certificates(back.as_bytes()).unwrap();
    let expected = text(&tool, "server-cp-1.crt") + &text(&tool, "prod/issuers/servers.crt");
    assert_eq!(
        certificates,
        pem::certificates(expected.as_bytes()).unwrap()
    );
    assert_eq!(
        pem::private_key(back.as_bytes()).unwrap(),
        pem::private_key(text(&tool, "server-cp-1.key").as_bytes()).unwrap()
    );
    fs::write(tool.dir.path("other"), "wrong horse battery\n").unwrap();
    let wrong = Command::new("openssl")
        .args("pkcs12 -in a.p12 -passin file:other -noout".split(' '))
        .current_dir(root)
        .output()
        .unwrap();
    assert!(!wrong.status.success());
    tool.refused(make, 2, &["--out"]);
    let stranger = make.replace("server-cp-1.key", "client-kube-apiserver.key");
    tool.refused(&format!("{stranger} --out b.p12"), 3, &["belong together"]);
}

#[test]
fn a_private_key_leaves_only_where_it_is_asked_for() {
    let tool = world();
    fs::write(
        tool.dir.path("both.pem"),
        text(&tool, "server-cp-1.crt") + &text(&tool, "server-cp-1.key"),
    )
    .unwrap();
    // What is in the file beside the certificate stays there.
    let out = tool.ok("export pem --cert both.pem");
    assert!(!pem::holds_private_key(out.as_bytes()), "{out}");
    tool.refused(
        "export config-map c --from a=both.pem",
        3,
        &["both.pem", "private key", "export secret"],
    );
    tool.refused(
        "export config-map c --from a=server-cp-1.key",
        3,
        &["private key"],
    );
    tool.refused("export secret s --cert server-cp-1.crt", 2, &["--key"]);
    tool.refused("export secret s", 2, &["--cert", "--from"]);
    for args in [
        "export secret s --from server-cp-1.key --out s.yaml",
        "export secret s --cert server-cp-1.crt --key server-cp-1.key",
        "export pem --cert server-cp-1.crt --key server-cp-1.key",
    ] {
        let key = tool.dir.path("server-cp-1.key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        tool.refused(args, 3, &["chmod 0600", "server-cp-1.key"]);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    }
    for (args, words) in [
        ("secret A --from server-cp-1.key", &["lower-case"][..]),
        ("secret a/b --from server-cp-1.key", &["lower-case"]),
        ("secret s --from a/b=server-cp-1.key", &["key of a Secret"]),
        ("config-map c --from a=x --from a=y", &["twice"]),
    ] {
        tool.refused(&format!("export {args}"), 2, words);
    }
    tool.refused(
        "export config-map c --from prod/cluster",
        3,
        &["CERTIFICATE"],
    );
}

/// A key under a passphrase is opened; what is written is said to be open, and is never written when
/// the passphrase is wrong.
#[test]
fn encrypted_keys_are_opened_for_what_takes_no_passphrase() {
    if !have_openssl() {
        return;
    }
    let tool = Tool::with_cluster();
    tool.ok("issue --dir prod client al");
    for (name, text) in [
        ("pass", "correct horse"),
        ("wrong", "battery staple"),
        ("own", "another one"),
    ] {
        fs::write(tool.dir.path(name), format!("{text}\n")).unwrap();
        let mode = PermissionsExt::from_mode(0o600);
        fs::set_permissions(tool.dir.path(name), mode).unwrap();
    }
    let plain = fs::read(tool.dir.path("client-al.key")).unwrap();
    openssl(
        tool.dir.root(),
        "pkcs8 -topk8 -in client-al.key -out locked.key -passout file:pass",
    );
    for (number, form) in [
        "pem --cert client-al.crt --key locked.key",
        "secret al --cert client-al.crt --key locked.key",
        "secret al --from tls.key=locked.key",
        "kubeconfig --server https://x:6443 --ca prod/trust/servers.pem --cert client-al.crt --key locked.key",
    ]
    .into_iter()
    .enumerate()
    {
        let form = format!("export {form} --out {number}.out");
        tool.refused(&form, 1, &["locked.key", "--passphrase-file"]);
        tool.refused(&format!("{form} --passphrase-file wrong"), 1, &["locked.key"]);
        let out = tool.ok(&format!("{form} --passphrase-file pass"));
        assert!(out.contains("was encrypted; what is written is not"), "{out}");
        let made = fs::read(tool.dir.path(format!("{number}.out"))).unwrap();
        assert_eq!(tool.mode(&format!("{number}.out")), 0o600);
        if number == 0 {
            assert!(made.starts_with(&plain));
        }
    }
    // PKCS#12 has two: of the key that is read, and of what is made.
    let form = "export pkcs12 --cert client-al.crt --key locked.key --out al.p12";
    tool.refused(
        &format!("{form} --passphrase-file own"),
        1,
        &["--key-passphrase-file"],
    );
    tool.refused(
        &format!("{form} --passphrase-file own --key-passphrase-file own"),
        1,
        &["locked.key"],
    );
    tool.ok(&format!(
        "{form} --passphrase-file own --key-passphrase-file pass"
    ));
    let shown = openssl(tool.dir.root(), "pkcs12 -in al.p12 -nodes -passin file:own");
    assert!(shown.contains("PRIVATE KEY"), "{shown}");
}
