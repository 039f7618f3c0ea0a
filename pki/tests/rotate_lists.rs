//! Revocation lists while an authority changes: the new one has a list before it signs, what the old
//! one signed can still be revoked, and no list stays that daemons would refuse the file for.

mod cluster;
mod tool;

use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use tool::Tool;
use towline_pki::crl::{CrlPolicy, List, Revocation};
use towline_pki::{Anchors, DenyList, PeerVerifier, store};
use towline_proto::id::Role;

/// What a server would say of a certificate by the files as they are now.
fn verdict(tool: &Tool, cert: &str) -> Result<(), String> {
    let now = SystemTime::now();
    let anchors = Anchors::load(&tool.dir.path("prod/trust/agents.pem")).unwrap();
    let lists = [tool.dir.path("prod/trust/agents.crl")];
    let lists = Revocation::load(&lists, &anchors, CrlPolicy::FailClosed, None)
        .map_err(|error| format!("the file is refused: {error}"))?;
    let cluster = "prod.example".parse().unwrap();
    let verifier = PeerVerifier::with_lists(
        cluster,
        Role::Agent,
        anchors,
        DenyList::default(),
        Some(lists),
    );
    let chain = store::read_certificates(&tool.dir.path(cert)).unwrap();
    let checked = verifier.verify(&chain, now);
    checked.map(drop).map_err(|error| error.as_str().to_owned())
}

fn lists(tool: &Tool) -> Vec<List> {
    List::load(&tool.dir.path("prod/trust/agents.crl")).unwrap()
}

fn world() -> Tool {
    let tool = Tool::with_cluster();
    tool.ok("crl renew --dir prod");
    tool.ok("issue --dir prod agent n1");
    tool.ok("issue --dir prod agent n2");
    tool
}

#[test]
fn no_step_of_a_rotation_leaves_a_list_out() {
    let tool = world();
    let good = |cert: &str| assert_eq!(verdict(&tool, cert), Ok(()), "{cert}");
    let out = tool.ok("rotate prepare agents --dir prod");
    assert!(out.contains("prod/trust/agents.crl"), "{out}");
    good("agent-n1.crt");
    assert_eq!(lists(&tool).len(), 2);
    tool.ok("rotate activate agents --dir prod --force");
    good("agent-n1.crt");
    fs::copy(tool.dir.path("agent-n1.crt"), tool.dir.path("old.crt")).unwrap();
    tool.ok("renew agent-n1.crt --dir prod");
    tool.ok("renew agent-n2.crt --dir prod");
    good("agent-n1.crt");
    good("old.crt");
    // Both lists are renewed as long as both authorities are trusted.
    let numbers = || -> Vec<Option<u64>> {
        let mut all: Vec<_> = lists(&tool)
            .iter()
            .map(|list| list.number().small())
            .collect();
        all.sort();
        all
    };
    assert_eq!(numbers(), [Some(1), Some(1)]);
    tool.ok("crl renew --dir prod");
    assert_eq!(numbers(), [Some(2), Some(2)]);
    let out = tool.ok("rotate retire agents --dir prod");
    assert!(out.contains("prod/trust/agents.crl"), "{out}");
    good("agent-n1.crt");
    assert_eq!(lists(&tool).len(), 1);
    tool.ok("crl verify --dir prod");
}

#[test]
fn what_the_old_authority_signed_is_revoked_on_its_own_list() {
    for way in ["--cert old.crt", "--identity agent/n1", "--serial SERIAL"] {
        let tool = world();
        fs::copy(tool.dir.path("agent-n1.crt"), tool.dir.path("old.crt")).unwrap();
        tool.ok("rotate prepare agents --dir prod");
        tool.ok("rotate activate agents --dir prod --force");
        let serial = cluster_serial(&tool, "old.crt");
        tool.ok(&format!(
            "revoke --dir prod {}",
            way.replace("SERIAL", &serial)
        ));
        assert_eq!(verdict(&tool, "old.crt"), Err("revoked".into()), "{way}");
        assert_eq!(verdict(&tool, "agent-n2.crt"), Ok(()), "{way}");
        // Also when the list is lost and made anew.
        fs::remove_file(tool.dir.path("prod/trust/agents.crl")).unwrap();
        tool.ok("crl renew --dir prod");
        assert_eq!(verdict(&tool, "old.crt"), Err("revoked".into()), "{way}");
    }
}

fn cluster_serial(tool: &Tool, cert: &str) -> String {
    let out = tool.ok(&format!("inspect {cert} -o json"));
    let read: serde_json::Value = serde_json::from_str(&out).unwrap();
    let serial = &read["result"]["certificates"][0]["serial"];
    serial.as_str().unwrap().to_owned()
}

/// An old authority whose key was taken away cannot say anything any more: that is an error and no
/// revocation that counts for nothing.
#[test]
fn a_revocation_that_would_count_for_nothing_is_refused() {
    let tool = world();
    tool.ok("rotate prepare agents --dir prod");
    tool.ok("rotate activate agents --dir prod --force");
    fs::remove_file(tool.dir.path("prod/issuers/agents-old.key")).unwrap();
    tool.refused(
        "revoke --dir prod --cert agent-n1.crt",
        1,
        &["agents-old.key", "--deny-only"],
    );
    tool.ok("revoke --dir prod --cert agent-n1.crt --deny-only");
    // The new one's list is renewed, the old one's stays.
    tool.ok("crl renew --dir prod");
    assert_eq!(verdict(&tool, "agent-n1.crt"), Ok(()));
    assert_eq!(lists(&tool).len(), 2);
}

#[test]
fn an_issuer_that_was_signed_elsewhere_gets_its_list_with_its_certificate() {
    let tool = Tool::new();
    tool.ok("init root --root-only --organisation example.org");
    tool.ok("init prod --cluster prod.example --root root");
    tool.ok("crl renew --dir prod");
    tool.ok("rotate prepare agents --dir prod --external-root");
    assert_eq!(lists(&tool).len(), 1);
    tool.ok(
        "sign-issuer prod/issuers/agents-next.csr --issuer agents --cluster prod.example --root root",
    );
    let out = tool.ok("accept issuer-agents.crt --dir prod");
    assert!(out.contains("prod/trust/agents.crl"), "{out}");
    assert_eq!(lists(&tool).len(), 2);
    tool.ok("rotate activate agents --dir prod --force");
    tool.ok("issue --dir prod agent n1");
    assert_eq!(verdict(&tool, "agent-n1.crt"), Ok(()));
}

/// A cluster without lists is not given any.
#[test]
fn without_lists_a_rotation_makes_none() {
    let tool = Tool::with_cluster();
    tool.ok("rotate prepare agents --dir prod");
    tool.ok("rotate activate agents --dir prod --force");
    tool.ok("rotate retire agents --dir prod");
    let crl: PathBuf = tool.dir.path("prod/trust/agents.crl");
    assert!(!crl.exists());
}

/// One passphrase, read once from a pipe, for all the authorities of a cluster.
#[test]
fn encrypted_authorities_sign_their_lists_with_one_passphrase() {
    let tool = Tool::new();
    fs::write(tool.dir.path("pass"), "correct horse battery\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(tool.dir.path("pass"), mode).unwrap();
    tool.ok("init prod --cluster prod.example --encrypt-keys --passphrase-file pass");
    for args in [
        "crl renew",
        "rotate prepare agents",
        "rotate activate agents --force",
        "crl renew",
    ] {
        let line = format!("\"$0\" {args} --dir prod --passphrase-fd 3 3< <(cat pass)");
        let output = std::process::Command::new("bash")
            .args(["-c", &line, env!("CARGO_BIN_EXE_towline-pki")])
            .current_dir(tool.dir.root())
            .output()
            .unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args}: {err}");
    }
    assert_eq!(lists(&tool).len(), 2);
    tool.ok("rotate retire agents --dir prod --force");
    assert_eq!(lists(&tool).len(), 1);
}
