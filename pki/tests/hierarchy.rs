//! The hierarchy as it is run: clusters below one root, a root in other hands, and rotations.

mod cluster;
mod tool;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use cluster::{have_openssl, openssl};
use serde_json::{Value, json};
use tool::Tool;

fn json_of(tool: &Tool, args: &str) -> Value {
    serde_json::from_str(&tool.ok(&format!("-o json {args}"))).unwrap()
}

fn sha256_of(tool: &Tool, cert: &str) -> String {
    let answer = json_of(tool, &format!("inspect {cert}"));
    let found = answer["result"]["certificates"][0]["sha256"].as_str();
    found.unwrap().to_owned()
}

fn write(tool: &Tool, name: &str, text: &str) {
    let path = tool.dir.path(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// What a daemon's `GET /status` says of its trust.
fn report(tool: &Tool, role: &str, name: &str, trust: &[(&str, &str)]) {
    let trust: Vec<Value> = trust
        .iter()
        .map(|(role, sha256)| json!({ "role": role, "path": "x.pem", "sha256": sha256 }))
        .collect();
    let identity = format!("spiffe://prod.example/towline/{role}/{name}");
    let status = json!({ "identity": identity, "trust": trust, "more": 1 });
    write(tool, &format!("reports/{name}.json"), &status.to_string());
}

#[test]
fn clusters_below_one_root_do_not_know_each_other() {
    let tool = Tool::new();
    let out = tool.ok("init root --root-only --organisation example.org");
    assert!(out.contains("--root root"), "{out}");
    tool.ok("init prod --cluster prod.example --root root");
    tool.ok("init test --cluster test.example --root root");
    assert!(!tool.dir.path("prod/root/root.key").exists());
    assert_eq!(
        fs::read(tool.dir.path("prod/root/root.crt")).unwrap(),
        fs::read(tool.dir.path("test/root/root.crt")).unwrap()
    );
    tool.ok("issue --dir prod agent n1");
    tool.ok("issue --dir test agent n1 --out test");
    tool.ok(
        "verify agent-n1.crt --role agent --trust prod/trust/agents.pem --cluster prod.example",
    );
    // With its issuer and the root behind it, and under our cluster's name: still nobody.
    let chain = [
        "test/agent-n1.crt",
        "test/issuers/agents.crt",
        "root/root/root.crt",
    ]
    .map(|file| fs::read_to_string(tool.dir.path(file)).unwrap())
    .concat();
    write(&tool, "chain.pem", &chain);
    for cluster in ["prod.example", "test.example"] {
        tool.refused(
            &format!(
                "verify chain.pem --role agent --trust prod/trust/agents.pem --cluster {cluster}"
            ),
            1,
            &["signed by none of the authorities"],
        );
    }
    if have_openssl() {
        let verdict = openssl(
            tool.dir.root(),
            "verify -x509_strict -CAfile root/root/root.crt prod/issuers/agents.crt \
             prod/issuers/servers.crt test/issuers/agents.crt test/issuers/servers.crt",
        );
        assert_eq!(verdict.matches("OK").count(), 4, "{verdict}");
    }
    tool.refused(
        "init root --root-only --organisation other",
        1,
        &["nothing was changed"],
    );
    tool.refused(
        "init more --cluster c --root nowhere",
        3,
        &["nowhere/root/root.key"],
    );
    tool.refused(
        "init more --cluster c --root prod",
        3,
        &["prod/root/root.key", "--root"],
    );
    tool.refused(
        "init more --root-only --cluster c --organisation x",
        2,
        &["--cluster"],
    );
    tool.refused("init more --root-only", 2, &["--organisation"]);
}

#[test]
fn a_root_in_other_hands_signs_the_issuers() {
    let tool = Tool::new();
    tool.ok("init root --root-only --organisation example.org");
    let out = tool.ok("init prod --cluster prod.example --external-root");
    assert!(out.contains("towline-pki accept"), "{out}");
    tool.refused("issue --dir prod agent n1", 3, &["prod/issuers/agents.crt"]);
    if have_openssl() {
        let text = openssl(
            tool.dir.root(),
            "req -in prod/issuers/agents.csr -noout -verify -text",
        );
        for part in [
            "CA:TRUE, pathlen:0",
            "TLS Web Client Authentication",
            "towline agents",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("Server Authentication"), "{text}");
    }
    for seat in ["agents", "servers"] {
        tool.ok(&format!(
            "sign-issuer prod/issuers/{seat}.csr --issuer {seat} --cluster prod.example --root root"
        ));
    }
    tool.refused(
        "accept root/root/root.crt --dir prod",
        3,
        &["root/root/root.crt", "another key"],
    );
    let out = tool.ok("accept issuer-servers.crt --dir prod");
    assert!(
        out.contains("issuer of servers") && out.contains("not checked"),
        "{out}"
    );
    tool.ok("accept issuer-agents.crt --dir prod");
    tool.refused(
        "accept issuer-agents.crt --dir prod",
        3,
        &["no authority", "waits"],
    );
    assert!(!tool.dir.path("prod/issuers/agents.csr").exists());
    tool.ok("issue --dir prod agent n1");
    tool.ok(
        "verify agent-n1.crt --role agent --trust prod/trust/agents.pem --cluster prod.example",
    );
    tool.ok("issue --dir prod server cp-1");
}

#[test]
fn what_another_authority_signed_wrongly_is_not_taken() {
    if !have_openssl() {
        return;
    }
    let tool = Tool::new();
    tool.ok("init prod --cluster prod.example --external-root");
    let root = tool.dir.root();
    openssl(
        root,
        "req -x509 -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -days 30 \
         -subj /CN=corporate -out ca.crt -addext keyUsage=critical,keyCertSign",
    );
    let sign = |request: &str, options: &str, extensions: &str| {
        write(&tool, "ext", extensions);
        openssl(
            root,
            &format!(
                "x509 -req -in {request} -CA ca.crt -CAkey ca.key -extfile ext -out got.crt {options}"
            ),
        );
    };
    const GOOD: &str = "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\nextendedKeyUsage=clientAuth\n";
    let agents = "prod/issuers/agents.csr";
    for (extensions, words) in [
        (
            GOOD.replace("CA:TRUE,pathlen:0", "CA:FALSE"),
            &["CA:TRUE"][..],
        ),
        (GOOD.replace("keyCertSign,", ""), &["keyCertSign"]),
        (
            GOOD.replace(",pathlen:0", ""),
            &["path length is not limited", "pathlen:0"],
        ),
        (
            GOOD.replace("pathlen:0", "pathlen:1"),
            &["path length is 1"],
        ),
        (
            GOOD.replace("clientAuth", "serverAuth"),
            &["serverAuth", "clientAuth"],
        ),
        (
            GOOD.replace("clientAuth", "clientAuth,serverAuth"),
            &["limited to"],
        ),
        (
            GOOD.replace("extendedKeyUsage=clientAuth\n", ""),
            &["--any-usage"],
        ),
        (
            format!("{GOOD}subjectAltName=URI:spiffe://prod.example/towline/server/x\n"),
            &["identity"],
        ),
    ] {
        sign(agents, "-days 10", &extensions);
        let words: Vec<&str> = ["got.crt: "].iter().chain(words).copied().collect();
        tool.refused("accept got.crt --dir prod", 3, &words);
    }
    sign(agents, "-days 10 -subj /CN=corporate", GOOD);
    fs::create_dir_all(tool.dir.path("prod/root")).unwrap();
    fs::copy(tool.dir.path("ca.crt"), tool.dir.path("prod/root/root.crt")).unwrap();
    tool.refused(
        "accept got.crt --dir prod",
        3,
        &["CN=corporate", "root.crt too"],
    );
    // Signed by somebody else than the root that is here.
    tool.ok("init stranger --cluster prod.example --external-root");
    openssl(
        root,
        "req -x509 -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout other.key -days 30 \
         -subj /CN=corporate -out other.crt -addext keyUsage=critical,keyCertSign",
    );
    write(&tool, "ext", GOOD);
    openssl(
        root,
        &format!(
            "x509 -req -in {agents} -CA other.crt -CAkey other.key -extfile ext -out got.crt -days 10"
        ),
    );
    tool.refused(
        "accept got.crt --dir prod",
        3,
        &["not signed by the root that is there"],
    );
    sign("stranger/issuers/agents.csr", "-days 10", GOOD);
    tool.refused("accept got.crt --dir prod", 3, &["another key"]);
    write(&tool, "got.crt", "-----BEGIN CERTIFICATE-----\nAAAA\n");
    tool.refused("accept got.crt --dir prod", 3, &["got.crt", "cut off"]);
    sign(agents, "-days 10", GOOD);
    let out = tool.ok("accept got.crt --dir prod");
    assert!(out.contains("by the root that is here"), "{out}");
    // Without a limit of usages it is taken when told so.
    sign(
        "stranger/issuers/agents.csr",
        "-days 10",
        &GOOD.replace("extendedKeyUsage=clientAuth\n", ""),
    );
    tool.ok("accept got.crt --dir stranger --any-usage");
    let servers = GOOD.replace("clientAuth", "clientAuth,serverAuth");
    sign("prod/issuers/servers.csr", "-days 10", &servers);
    tool.ok("accept got.crt --dir prod");
    tool.ok("issue --dir prod server cp-1 --days 5");
}

#[test]
fn a_leaf_from_elsewhere_is_checked_against_what_was_requested() {
    let tool = Tool::with_cluster();
    let answer = tool.run("request agent n1 --out node");
    assert_eq!(answer.code, 1, "the folder must be there: {}", answer.err);
    fs::create_dir_all(tool.dir.path("node")).unwrap();
    tool.ok("request agent n1 --out node");
    tool.ok("sign node/agent-n1.csr --dir prod --role agent --name n1");
    fs::rename(tool.dir.path("agent-n1.crt"), tool.dir.path("got.crt")).unwrap();
    let accept = "accept got.crt --role agent --out node --trust prod/trust/agents.pem";
    for (args, words) in [
        ("--name n2 --cluster prod.example", &["agent-n2.key"][..]),
        (
            "--name n1 --cluster other.example",
            &["got.crt", "prod.example", "other.example"],
        ),
        ("--name n1", &["--cluster"]),
    ] {
        let code = if args.contains("--cluster") { 3 } else { 2 };
        tool.refused(&format!("{accept} {args}"), code, words);
    }
    tool.refused(
        "accept got.crt --role agent --name n1 --cluster prod.example --out node --trust prod/trust/servers.pem",
        3,
        &["got.crt", "servers.pem"],
    );
    tool.ok("issue --dir prod agent n1");
    tool.refused(
        "accept agent-n1.crt --role agent --name n1 --cluster prod.example --out node",
        3,
        &["not the one of the certificate"],
    );
    tool.ok(&format!("{accept} --name n1 --cluster prod.example"));
    assert!(tool.dir.path("node/agent-n1.crt").exists());
    tool.refused(
        &format!("{accept} --name n1 --cluster prod.example"),
        1,
        &["--replace"],
    );
}

#[test]
fn an_issuer_is_rotated_step_by_step() {
    let tool = Tool::with_cluster();
    tool.ok("issue --dir prod agent n1");
    let old = sha256_of(&tool, "prod/issuers/agents.crt");
    tool.refused(
        "rotate activate agents --dir prod --force",
        1,
        &["rotate prepare agents"],
    );
    tool.refused("rotate retire agents --dir prod", 1, &["nothing to retire"]);
    let out = tool.ok("rotate prepare agents --dir prod");
    assert!(
        out.contains("signs nothing yet") && out.contains("trust/agents.pem"),
        "{out}"
    );
    let new = sha256_of(&tool, "prod/issuers/agents-next.crt");
    let bundle = fs::read_to_string(tool.dir.path("prod/trust/agents.pem")).unwrap();
    assert_eq!(bundle.matches("BEGIN").count(), 2);
    assert_eq!(tool.mode("prod/issuers/agents-next.key"), 0o600);
    // Again: nothing changes.
    let before = tool.files();
    tool.ok("rotate prepare agents --dir prod");
    assert_eq!(tool.files(), before);
    // What is issued is still of the old one.
    tool.ok("issue --dir prod agent n2");
    let issuer = |cert: &str| {
        json_of(&tool, &format!("inspect {cert}"))["result"]["certificates"][0]["issuer"].clone()
    };
    assert_eq!(issuer("agent-n2.crt"), issuer("agent-n1.crt"));

    let activate = "rotate activate agents --dir prod";
    tool.refused(activate, 2, &["--reports", "--force"]);
    report(
        &tool,
        "server",
        "cp-1",
        &[("agent", &old), ("agent", &new), ("client", &old)],
    );
    report(&tool, "server", "cp-2", &[("agent", &old)]);
    report(&tool, "agent", "n1", &[("server", &old)]);
    write(&tool, "servers.txt", "# control plane\nserver/cp-1\ncp-2\n");
    let activate = "rotate activate agents --dir prod --reports reports --nodes servers.txt";
    tool.refused(
        activate,
        1,
        &[
            "server cp-2 does not trust it for peers of role agent yet",
            "1 of those",
        ],
    );
    report(&tool, "server", "cp-2", &[("agent", &old), ("agent", &new)]);
    write(&tool, "servers.txt", "server/cp-1\ncp-2\nserver/cp-3\n");
    tool.refused(
        activate,
        1,
        &["server cp-3 is listed, and nothing reports of it"],
    );
    // A copy of a trust file stands for a daemon that cannot be asked.
    fs::copy(
        tool.dir.path("prod/issuers/agents.crt"),
        tool.dir.path("reports/cp-3.pem"),
    )
    .unwrap();
    tool.refused(activate, 1, &["cp-3 does not trust it yet"]);
    fs::copy(
        tool.dir.path("prod/trust/agents.pem"),
        tool.dir.path("reports/cp-3.pem"),
    )
    .unwrap();
    tool.ok(activate);
    assert!(tool.ok(activate).contains("was active already"));
    assert_eq!(sha256_of(&tool, "prod/issuers/agents.crt"), new);
    assert_eq!(sha256_of(&tool, "prod/issuers/agents-old.crt"), old);

    tool.refused(
        "rotate retire agents --dir prod",
        1,
        &[
            "2 certificates",
            "agent/n1",
            "agent/n2",
            "renew these first",
        ],
    );
    tool.refused(
        "rotate prepare agents --dir prod",
        1,
        &["rotate retire agents"],
    );
    tool.ok("renew agent-n1.crt --dir prod");
    fs::copy(tool.dir.path("agent-n2.crt"), tool.dir.path("kept.crt")).unwrap();
    tool.ok("renew agent-n2.crt --dir prod");
    for cert in ["agent-n1.crt", "kept.crt"] {
        tool.ok(&format!(
            "verify {cert} --role agent --trust prod/trust/agents.pem --cluster prod.example"
        ));
    }
    tool.refused(
        "rotate retire agents --dir prod --certificates kept.crt",
        1,
        &["1 certificates", "kept.crt"],
    );
    // What a server enrolled stands in its ledger, not in ours.
    let theirs = fs::read_to_string(tool.dir.path("prod/issued.jsonl")).unwrap();
    let line = theirs
        .lines()
        .find(|line| line.contains("/agent/n2\""))
        .unwrap();
    let enrolled = line.replace("/agent/n2\"", "/agent/n9\"");
    fs::write(tool.dir.path("server.jsonl"), format!("{enrolled}\n")).unwrap();
    tool.refused(
        "rotate retire agents --dir prod --ledger server.jsonl",
        1,
        &["1 certificates", "agent/n9"],
    );
    tool.refused(
        "rotate retire agents --dir prod --ledger absent.jsonl",
        3,
        &["absent.jsonl"],
    );
    let out = tool.ok("rotate retire agents --dir prod");
    assert!(out.contains("2 certificates of the old one"), "{out}");
    assert!(!tool.dir.path("prod/issuers/agents-old.key").exists());
    tool.ok(
        "verify agent-n1.crt --role agent --trust prod/trust/agents.pem --cluster prod.example",
    );
    tool.refused(
        "verify kept.crt --role agent --trust prod/trust/agents.pem --cluster prod.example",
        1,
        &["signed by none of the authorities"],
    );
    if have_openssl() {
        openssl(
            tool.dir.root(),
            "verify -x509_strict -CAfile prod/root/root.crt -untrusted prod/issuers/agents.crt agent-n1.crt",
        );
    }
    // And once more: the seat is free for the next.
    tool.ok("rotate prepare agents --dir prod --key-algorithm ed25519");
    tool.ok("rotate activate agents --dir prod --force");
    tool.ok("rotate retire agents --dir prod --force");
    assert!(
        tool.ok("inspect prod/issuers/agents.crt")
            .contains("Ed25519")
    );
}

#[test]
fn a_preparation_that_was_cut_off_is_finished() {
    let tool = Tool::with_cluster();
    tool.ok("rotate prepare servers --dir prod");
    let key = fs::read(tool.dir.path("prod/issuers/servers-next.key")).unwrap();
    // Before the trust file.
    fs::copy(
        tool.dir.path("prod/issuers/servers.crt"),
        tool.dir.path("prod/trust/servers.pem"),
    )
    .unwrap();
    tool.ok("rotate prepare servers --dir prod");
    let bundle = fs::read_to_string(tool.dir.path("prod/trust/servers.pem")).unwrap();
    assert_eq!(bundle.matches("BEGIN").count(), 2);
    // Before the certificate.
    fs::remove_file(tool.dir.path("prod/issuers/servers-next.crt")).unwrap();
    tool.refused(
        "rotate activate servers --dir prod --force",
        1,
        &["not signed yet"],
    );
    tool.ok("rotate prepare servers --dir prod");
    assert_eq!(
        fs::read(tool.dir.path("prod/issuers/servers-next.key")).unwrap(),
        key
    );
    tool.ok("rotate activate servers --dir prod --force");
}

#[test]
fn a_root_and_an_external_root_are_rotated() {
    let tool = Tool::new();
    tool.ok("init root --root-only --organisation example.org");
    tool.ok("init prod --cluster prod.example --root root");
    tool.ok("rotate prepare root --dir root");
    tool.ok("rotate activate root --dir root");
    // The root's ledger knows the issuers below the old one.
    tool.refused(
        "rotate retire root --dir root",
        1,
        &["2 certificates", "rotate these issuers"],
    );
    tool.ok("rotate prepare agents --dir prod --root root");
    assert_eq!(
        sha256_of(&tool, "prod/root/root.crt"),
        sha256_of(&tool, "root/root/root.crt")
    );
    tool.ok("rotate activate agents --dir prod --force");
    tool.ok("rotate retire agents --dir prod");
    // With its root elsewhere: a request goes out, a certificate comes in.
    tool.ok("rotate prepare servers --dir prod --external-root");
    tool.refused(
        "rotate activate servers --dir prod --force",
        1,
        &["towline-pki accept"],
    );
    tool.ok("sign-issuer prod/issuers/servers-next.csr --issuer servers --cluster prod.example --root root");
    tool.ok("accept issuer-servers.crt --dir prod");
    let bundle = fs::read_to_string(tool.dir.path("prod/trust/servers.pem")).unwrap();
    assert_eq!(bundle.matches("BEGIN").count(), 2);
    tool.ok("rotate activate servers --dir prod --force");
    tool.ok("rotate retire servers --dir prod");
    tool.ok("rotate retire root --dir root --force");
    if have_openssl() {
        let verdict = openssl(
            tool.dir.root(),
            "verify -x509_strict -CAfile root/root/root.crt prod/issuers/agents.crt prod/issuers/servers.crt",
        );
        assert_eq!(verdict.matches("OK").count(), 2, "{verdict}");
    }
}

#[test]
fn encrypted_seats_stay_encrypted() {
    let tool = Tool::new();
    write(&tool, "pass", "correct horse battery\n");
    fs::set_permissions(tool.dir.path("pass"), fs::Permissions::from_mode(0o600)).unwrap();
    tool.ok("init prod --cluster prod.example --encrypt-keys --passphrase-file pass");
    tool.ok("rotate prepare agents --dir prod --passphrase-file pass");
    let key = fs::read_to_string(tool.dir.path("prod/issuers/agents-next.key")).unwrap();
    assert!(key.contains("ENCRYPTED PRIVATE KEY"), "{key}");
    tool.ok("rotate activate agents --dir prod --force --passphrase-file pass");
    tool.ok("issue --dir prod --passphrase-file pass agent n1");
}

#[test]
fn reports_that_say_nothing_are_refused() {
    let tool = Tool::with_cluster();
    tool.ok("rotate prepare agents --dir prod");
    let activate = "rotate activate agents --dir prod --reports reports";
    for (text, words) in [
        ("{}", &["x.json", "identity"][..]),
        ("{", &["x.json"]),
        ("[]", &["x.json"]),
        (
            r#"{"identity":"spiffe://other.example/towline/server/x","trust":[]}"#,
            &["other.example"],
        ),
        (r#"{"identity":"nobody","trust":[]}"#, &["x.json"]),
    ] {
        write(&tool, "reports/x.json", text);
        tool.refused(activate, 3, words);
    }
    write(
        &tool,
        "reports/x.json",
        r#"{"identity":"spiffe://prod.example/towline/server/x","trust":[]}"#,
    );
    tool.refused(activate, 1, &["has loaded no trust file"]);
    fs::remove_file(tool.dir.path("reports/x.json")).unwrap();
    tool.refused(activate, 3, &["no report"]);
}
