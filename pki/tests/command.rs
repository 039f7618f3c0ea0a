//! The tool as it is run: what it prints, what it writes, and how it ends.

mod cluster;
mod tool;

use std::fs;
use std::process::Command;

use cluster::{have_openssl, openssl};
use tool::Tool;

#[test]
fn init_makes_a_root_two_issuers_and_their_trust_files() {
    let tool = Tool::new();
    let out = tool.ok("init prod --cluster prod.example");
    for part in [
        "root/root",
        "issuers/agents",
        "trust/servers.pem",
        "in 3650 days",
        "in 1825 days",
        "next ",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    for key in [
        "prod/root/root.key",
        "prod/issuers/agents.key",
        "prod/issuers/servers.key",
    ] {
        assert_eq!(tool.mode(key), 0o600, "{key}");
    }
    assert_eq!(tool.mode("prod"), 0o700);
    // With the ledger of what was issued and the lock of its writers.
    assert_eq!(tool.files().len(), 11);
    let trust = fs::read(tool.dir.path("prod/trust/agents.pem")).unwrap();
    assert_eq!(
        trust,
        fs::read(tool.dir.path("prod/issuers/agents.crt")).unwrap()
    );
    if have_openssl() {
        let verdict = openssl(
            tool.dir.root(),
            "verify -x509_strict -CAfile prod/root/root.crt prod/issuers/agents.crt prod/issuers/servers.crt",
        );
        assert_eq!(verdict.matches("OK").count(), 2, "{verdict}");
    }
}

#[test]
fn init_never_overwrites_and_says_what_to_do() {
    let tool = Tool::with_cluster();
    tool.refused(
        "init prod --cluster prod.example",
        1,
        &["nothing was changed", "issue --dir prod"],
    );
    fs::remove_file(tool.dir.path("prod/cluster")).unwrap();
    tool.refused(
        "init prod --cluster prod.example",
        1,
        &["did not finish", "remove prod"],
    );
    tool.refused("init x --cluster PROD", 2, &["lower-case"]);
    tool.refused("init x", 2, &["--cluster"]);
    tool.refused(
        "init x --cluster c --issuer-days 10 --root-days 10",
        2,
        &["must be less"],
    );
    tool.refused("init x --cluster c --key-algorithm dsa", 2, &["ecdsa-p256"]);
}

#[test]
fn issue_makes_key_and_certificate_and_says_what_for_and_until_when() {
    let tool = Tool::with_cluster();
    let out = tool.ok("issue --dir prod agent node-7 --ip 10.0.1.7,fd00::7");
    for part in [
        "certificate of agent node-7, cluster prod.example",
        "spiffe://prod.example/towline/agent/node-7",
        "IP 10.0.1.7, IP fd00::7",
        "(in 90 days)",
        "agent-node-7.crt",
        "agent-node-7.key",
        "towline-agent --server",
        "--server-ca prod/trust/servers.pem",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    assert_eq!(tool.mode("agent-node-7.key"), 0o600);
    assert_eq!(tool.mode("agent-node-7.crt"), 0o644);
    let out = tool.ok("issue --dir prod server cp-1 --dns cp.example --ip 10.0.0.1");
    assert!(
        out.contains("DNS cp.example, IP 10.0.0.1") && out.contains("towline-server"),
        "{out}"
    );
    assert!(
        tool.ok("issue --dir prod client kube-apiserver")
            .contains("EgressSelector")
    );
    assert!(
        tool.ok("issue --dir prod operator alice --days 7")
            .contains("(in 7 days)")
    );
    for (file, role, trust) in [
        ("agent-node-7.crt", "agent", "agents"),
        ("server-cp-1.crt", "server", "servers"),
        ("client-kube-apiserver.crt", "client", "servers"),
        ("operator-alice.crt", "operator", "servers"),
    ] {
        let args = format!(
            "verify {file} --role {role} --trust prod/trust/{trust}.pem --cluster prod.example"
        );
        let out = tool.ok(&args);
        assert!(out.starts_with(&format!("verified {role} ")), "{out}");
        assert!(out.contains("spiffe://prod.example/"), "{out}");
    }
}

#[test]
fn issue_refuses_what_no_certificate_may_say() {
    let tool = Tool::with_cluster();
    for (args, words) in [
        ("server cp --dns 10.0.0.1", &["10.0.0.1", "--ip"][..]),
        ("server cp --dns *.example", &["DNS name"]),
        ("agent n1 --dns n1", &["agent", "--dns"]),
        ("agent n1 --ip 127.0.0.1", &["127.0.0.1", "loopback"]),
        ("agent n1 --ip 169.254.169.254", &["169.254.169.254"]),
        ("client c --ip 10.0.0.1", &["client", "--ip"]),
        ("agent n1 --days 401", &["400"]),
        ("agent n1 --days 0", &["--days"]),
        ("agent N1", &["lower-case"]),
        ("agent ../n1", &["lower-case"]),
        ("node n1", &["agent, client, operator or server"]),
        ("agent n1 --ip n1", &["--ip"]),
    ] {
        tool.refused(&format!("issue --dir prod {args}"), 2, words);
    }
    tool.refused(
        "issue --dir nowhere agent n1",
        3,
        &["nowhere", "towline-pki init"],
    );
    tool.refused("issue --dir prod --out nowhere agent n1", 1, &["nowhere"]);
    tool.refused("issue --ca-cert x agent n1", 2, &["--ca-key"]);
    let key = tool.dir.path("prod/issuers/agents.key");
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    tool.refused(
        "issue --dir prod agent n1",
        3,
        &["chmod 0600", "agents.key"],
    );
}

#[test]
fn issue_never_overwrites_unless_told_to_renew() {
    let tool = Tool::with_cluster();
    tool.ok("issue --dir prod agent n1");
    let old = tool.files();
    tool.refused(
        "issue --dir prod agent n1",
        1,
        &["agent-n1.key", "--replace"],
    );
    tool.ok("issue --dir prod agent n1 --replace");
    assert_ne!(tool.files(), old);
    assert_eq!(tool.files().len(), old.len(), "nothing is left over");
    tool.ok("verify agent-n1.crt --role agent --trust prod/trust/agents.pem");
}

#[test]
fn a_key_made_on_the_node_is_signed_without_leaving_it() {
    let tool = Tool::with_cluster();
    let out = tool.ok("request agent n1");
    assert!(
        out.contains("towline-pki sign agent-n1.csr --dir DIR --role agent --name n1"),
        "{out}"
    );
    assert_eq!(tool.mode("agent-n1.key"), 0o600);
    tool.refused("request agent n1", 1, &["agent-n1.key"]);
    let out = tool.ok("sign agent-n1.csr --dir prod --role agent --name n1 --ip 10.0.0.1");
    assert!(
        out.contains("its sender holds it") && out.contains("IP 10.0.0.1"),
        "{out}"
    );
    tool.ok("verify agent-n1.crt --role agent --trust prod/trust/agents.pem");
    tool.refused(
        "sign agent-n1.csr --dir prod --role agent --name n1",
        1,
        &["--replace"],
    );
    tool.ok("sign agent-n1.csr --dir prod --role agent --name n1 --replace");
    tool.refused(
        "sign agent-n1.crt --dir prod --role agent --name n2",
        3,
        &["agent-n1.crt", "CERTIFICATE REQUEST"],
    );
    assert!(
        tool.ok("inspect agent-n1.csr")
            .contains("CN=towline:agent:n1")
    );
}

#[test]
fn an_authority_that_is_there_already_signs() {
    if !have_openssl() {
        return;
    }
    let tool = Tool::new();
    openssl(tool.dir.root(), "genrsa -traditional -out ca.key 2048");
    openssl(
        tool.dir.root(),
        "req -x509 -new -key ca.key -days 60 -subj /CN=kubernetes -out ca.crt",
    );
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(tool.dir.path("ca.key"), fs::Permissions::from_mode(0o600)).unwrap();
    let own = "--ca-cert ca.crt --ca-key ca.key --cluster prod";
    let out = tool.ok(&format!("issue {own} server cp-1 --dns cp.example"));
    assert!(
        out.contains("CN=kubernetes") && out.contains("cut short"),
        "{out}"
    );
    tool.ok("verify server-cp-1.crt --role server --trust ca.crt --cluster prod");
    assert!(openssl(tool.dir.root(), "verify -CAfile ca.crt server-cp-1.crt").contains("OK"));
    tool.refused(&format!("issue {own} agent n1 --days 61"), 1, &["outlive"]);
    tool.refused(
        "issue --ca-cert ca.crt --ca-key ca.key agent n1",
        2,
        &["--cluster"],
    );
}

#[test]
fn verify_says_exactly_why_not() {
    let tool = Tool::with_cluster();
    tool.ok("init other --cluster prod.example");
    tool.ok("issue --dir prod agent n1");
    fs::write(
        tool.dir.path("denied"),
        "spiffe://prod.example/towline/agent/n1\n",
    )
    .unwrap();
    fs::write(tool.dir.path("bad"), "n1\n").unwrap();
    let verify = |rest: &str| format!("verify agent-n1.crt {rest}");
    let agents = "--trust prod/trust/agents.pem";
    tool.refused(
        &verify("--role agent --trust other/trust/agents.pem"),
        1,
        &["none of the authorities"],
    );
    tool.refused(
        &verify(&format!("--role server {agents}")),
        1,
        &["serverAuth"],
    );
    tool.refused(
        &verify(&format!("--role client {agents}")),
        1,
        &["not of role client"],
    );
    tool.refused(
        &verify(&format!("--role agent {agents} --cluster c")),
        1,
        &["not of our cluster"],
    );
    tool.refused(
        &verify(&format!("--role agent {agents} --deny-list denied")),
        1,
        &["deny list"],
    );
    tool.refused(
        &verify(&format!("--role agent {agents} --deny-list bad")),
        3,
        &["bad", "line 1"],
    );
    tool.refused(
        &verify("--role agent --trust agent-n1.crt"),
        3,
        &["not an authority"],
    );
    tool.refused(
        "verify missing --role agent --trust prod/trust/agents.pem",
        3,
        &["missing"],
    );
    let answer = tool.run(&verify(&format!("--role client {agents} -o json")));
    let json: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!(
        (
            answer.code,
            &json["result"]["verified"],
            &json["result"]["cause"]
        ),
        (1, &false.into(), &"wrong-role".into())
    );
    let json: serde_json::Value =
        serde_json::from_str(&tool.ok(&verify(&format!("--role agent {agents} -o json")))).unwrap();
    assert_eq!(
        json["result"]["identity"],
        "spiffe://prod.example/towline/agent/n1"
    );
}

#[test]
fn inspect_shows_people_and_machines_the_same() {
    let tool = Tool::with_cluster();
    tool.ok("issue --dir prod agent n1 --ip 10.0.0.1");
    let text = tool.ok("inspect agent-n1.crt");
    for part in [
        "identity    spiffe://prod.example/towline/agent/n1",
        "clientAuth",
        "10.0.0.1",
        "ECDSA P-256",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // Whole days are what is left: one less as soon as a second has passed.
    assert!(
        text.contains("in 90 days") || text.contains("in 89 days"),
        "{text}"
    );
    let json: serde_json::Value =
        serde_json::from_str(&tool.ok("inspect agent-n1.crt -o json")).unwrap();
    let read = &json["result"]["certificates"][0];
    assert_eq!(read["identity"]["name"], "n1");
    assert_eq!(read["state"], "valid");
    assert_eq!(read["ips"][0], "10.0.0.1");
    let authority: serde_json::Value =
        serde_json::from_str(&tool.ok("inspect prod/trust/agents.pem -o json")).unwrap();
    let read = &authority["result"]["certificates"][0];
    assert_eq!(read["authority"], true);
    assert_eq!(read["pathLength"], 0);
    assert!(
        tool.ok("inspect prod/trust/agents.pem")
            .contains("signs leaves only")
    );
    tool.refused(
        "inspect agent-n1.key",
        3,
        &["agent-n1.key", "no CERTIFICATE"],
    );
    fs::write(tool.dir.path("junk"), [0x30, 0x82, 0, 1]).unwrap();
    tool.refused("inspect junk", 3, &["junk", "DER"]);
}

#[test]
fn hostile_text_cannot_drive_the_terminal() {
    if !have_openssl() {
        return;
    }
    let tool = Tool::new();
    let evil = "/CN=a\u{1b}[31mb\u{202e}";
    let status = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
        ])
        .args([
            "-nodes", "-keyout", "k", "-out", "evil.crt", "-utf8", "-subj", evil,
        ])
        .current_dir(tool.dir.root())
        .output()
        .unwrap();
    assert!(status.status.success());
    let text = tool.ok("inspect evil.crt");
    assert!(
        !text.contains('\u{1b}') && !text.contains('\u{202e}'),
        "{text:?}"
    );
    assert!(text.contains("\\u{1b}"), "{text}");
}

#[test]
fn every_verb_s_help_has_examples_and_exit_codes() {
    let tool = Tool::new();
    for verb in [
        "init",
        "issue",
        "request",
        "sign",
        "inspect",
        "verify",
        "status",
        "lint",
        "needs-renewal",
        "renew",
        "audit-key",
        "gateway-issuer",
        "kubelet-client",
    ] {
        let help = tool.ok(&format!("{verb} --help"));
        assert!(
            help.contains("Example") && help.contains("Exit codes:"),
            "{help}"
        );
        assert!(help.contains(&format!("towline-pki {verb}")), "{help}");
    }
    assert!(tool.ok("--help").contains("Exit codes:"));
    assert!(tool.ok("--version").starts_with("towline-pki "));
    tool.refused("", 2, &["Usage"]);
    tool.refused("mint", 2, &["mint"]);
}
