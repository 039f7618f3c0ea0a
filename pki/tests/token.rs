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
fn the_marks_of_servers_say_which_were_used() {
    let tool = Tool::with_cluster();
    tool.ok("token create node-7 --dir prod --tokens join-tokens");
    tool.ok("token create worker-* --dir prod --tokens join-tokens --hours 48 --out w.token");
    let used = JoinToken::load(&tool.dir.path("w.token")).unwrap();
    for server in ["one", "two"] {
        fs::create_dir(tool.dir.path(server)).unwrap();
    }
    let list = "token list --tokens join-tokens --used one --used two";
    assert!(!tool.ok(list).contains("used by"));
    let key = "ab".repeat(32);
    let mark = |server: &str, name: &str, at: &str| {
        let text = format!("{key} {name} 2026-11-22T10:00:00Z {at}\n");
        fs::write(tool.dir.path(server).join(used.id.to_string()), text).unwrap();
    };
    mark("two", "worker-3", "2026-11-21T10:00:00Z");
    let listed = tool.ok(list);
    let lines: Vec<&str> = listed.lines().collect();
    assert_eq!(lines.len(), 2, "{listed}");
    assert!(lines[0].contains("node-7  may be used  "), "{listed}");
    assert!(
        lines[1].contains("worker-*  used by worker-3 at 2026-11-21T10:00:00Z  "),
        "{listed}"
    );
    // Servers with directories of their own may each have taken it: the first use is told.
    mark("one", "worker-2", "2026-11-21T09:00:00Z");
    let json = tool.ok(&format!("{list} -o json"));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let tokens = json["result"]["tokens"].as_array().unwrap();
    assert!(tokens[0]["used"].is_null());
    assert_eq!(
        (&tokens[1]["used"]["node"], &tokens[1]["used"]["key"]),
        (&"worker-2".into(), &key.clone().into())
    );
    // Without the flag nothing is said of it.
    assert!(
        !tool
            .ok("token list --tokens join-tokens -o json")
            .contains("\"used\"")
    );
    tool.refused(
        "token list --tokens join-tokens --used nowhere",
        3,
        &["nowhere"],
    );
    mark("one", "worker-2 more", "2026-11-21T09:00:00Z");
    tool.refused(list, 3, &[&used.id.to_string(), "no mark"]);
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
