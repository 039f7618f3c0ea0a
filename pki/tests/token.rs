//! `towline-pki token`: tokens are made, listed and taken back, and no slip of the hand makes a
//! narrow one wide.

mod cluster;
mod tool;

use std::fs;
use std::time::SystemTime;

use tool::Tool;
use towline_pki::{JoinFile, JoinToken};

#[test]
fn a_token_goes_to_the_node_and_its_hash_to_the_servers() {
    let tool = Tool::with_cluster();
    let said = tool.ok("token create node-7 --dir prod --tokens join-tokens --ip 10.0.1.7,fd00::7");
    for word in [
        "join-node-7.token",
        "join-tokens",
        "used once",
        "--join-token-file",
    ] {
        assert!(said.contains(word), "{said}");
    }
    assert_eq!(tool.mode("join-node-7.token"), 0o600);
    let token = JoinToken::load(&tool.dir.path("join-node-7.token")).unwrap();
    let secret = fs::read_to_string(tool.dir.path("join-node-7.token")).unwrap();
    let secret = secret.split(':').nth(2).unwrap().to_owned();
    let known = fs::read_to_string(tool.dir.path("join-tokens")).unwrap();
    assert!(!known.contains(&secret) && !said.contains(&secret));
    let file = JoinFile::load(&tool.dir.path("join-tokens")).unwrap();
    let entry = file.find(&token).unwrap();
    assert_eq!((entry.node.as_str(), entry.ips.len()), ("node-7", 2));
    assert!(!entry.is_over(SystemTime::now()));
    // A second one, for a pattern; then both are listed, and one is taken back.
    tool.ok("token create worker-* --dir prod --tokens join-tokens --hours 48 --out w.token");
    let listed = tool.ok("token list --tokens join-tokens");
    for word in ["node-7", "worker-*", "may be used", "10.0.1.7"] {
        assert!(listed.contains(word), "{listed}");
    }
    tool.ok(&format!("token revoke {} --tokens join-tokens", token.id));
    let left = JoinFile::load(&tool.dir.path("join-tokens")).unwrap();
    assert_eq!(left.entries().len(), 1);
    assert!(left.find(&token).is_none());
    assert!(
        tool.ok("token list --tokens join-tokens -o json")
            .contains("worker-*")
    );
}

#[test]
fn bad_input_touches_nothing() {
    let tool = Tool::with_cluster();
    tool.ok("token create n1 --dir prod --tokens join-tokens");
    for (args, code, words) in [
        (
            "token create N1 --dir prod --tokens join-tokens",
            2,
            &["not a name"][..],
        ),
        (
            "token create a/b --dir prod --tokens join-tokens",
            2,
            &["not a name"],
        ),
        (
            "token create n.* --dir prod --tokens join-tokens --ip 10.0.0.1",
            2,
            &["--ip"],
        ),
        (
            "token create n2 --dir prod --tokens join-tokens --ip 127.0.0.1",
            2,
            &["127.0.0.1"],
        ),
        (
            "token create n2 --dir prod --tokens join-tokens --hours 0",
            2,
            &["--hours"],
        ),
        (
            "token create n2 --dir prod --tokens join-tokens --hours 9999",
            2,
            &["--hours"],
        ),
        (
            "token create n2 --dir none --tokens join-tokens",
            3,
            &["none"],
        ),
        (
            "token create n1 --dir prod --tokens join-tokens",
            1,
            &["join-n1.token"],
        ),
        (
            "token revoke 0011223344556677 --tokens join-tokens",
            1,
            &["nothing was changed"],
        ),
        (
            "token revoke xyz --tokens join-tokens",
            2,
            &["16 hexadecimal"],
        ),
        ("token list --tokens missing", 3, &["missing"]),
    ] {
        tool.refused(args, code, words);
    }
    let before = fs::read(tool.dir.path("join-tokens")).unwrap();
    fs::write(tool.dir.path("damaged"), "n1 forever\n").unwrap();
    tool.refused(
        "token create n3 --dir prod --tokens damaged",
        3,
        &["line 1"],
    );
    assert_eq!(fs::read(tool.dir.path("join-tokens")).unwrap(), before);
}
