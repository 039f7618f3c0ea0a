//! `revoke` and `crl` as they are run: what is on which list, and that openssl agrees.

mod cluster;
mod tool;

use std::fs;
use std::process::Command;
use std::time::{Duration, SystemTime};

use cluster::{have_openssl, openssl};
use tool::Tool;
use towline_pki::crl::{List, ListSpec, RevocationReason, Revoked};
use towline_pki::{Authority, Serial, pem};

const DAY: Duration = Duration::from_secs(86_400);

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

fn serial(tool: &Tool, cert: &str) -> String {
    let read = json(&tool.ok(&format!("inspect {cert} -o json")));
    let serial = &read["result"]["certificates"][0]["serial"];
    serial.as_str().unwrap().to_owned()
}

/// Number and serials of a list.
fn list(tool: &Tool, path: &str) -> (u64, Vec<String>) {
    let lists = List::load(&tool.dir.path(path)).unwrap();
    assert_eq!(lists.len(), 1);
    let mut serials: Vec<_> = lists[0]
        .entries()
        .iter()
        .map(|entry| entry.serial.to_string())
        .collect();
    serials.sort();
    (lists[0].number().small().unwrap(), serials)
}

fn sorted(mut all: Vec<String>) -> Vec<String> {
    all.sort();
    all
}

fn denied(tool: &Tool) -> String {
    fs::read_to_string(tool.dir.path("prod/trust/denied")).unwrap_or_default()
}

#[test]
fn an_identity_loses_every_certificate_and_its_name_until_it_is_lifted() {
    let tool = Tool::with_cluster();
    tool.ok("issue --dir prod agent n1");
    let first = serial(&tool, "agent-n1.crt");
    tool.ok("renew agent-n1.crt --dir prod");
    let second = serial(&tool, "agent-n1.crt");
    tool.ok("issue --dir prod agent n2");
    tool.ok("issue --dir prod server cp");
    let out = tool.ok("revoke --dir prod --identity agent/n1 --reason key-compromise");
    for part in [
        &first,
        &second,
        "keyCompromise",
        "trust/agents.crl number 1",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let both = sorted(vec![first.clone(), second.clone()]);
    assert_eq!(list(&tool, "prod/trust/agents.crl"), (1, both.clone()));
    assert!(!tool.dir.path("prod/trust/servers.crl").exists());
    assert!(denied(&tool).starts_with("spiffe://prod.example/towline/agent/n1 # "));
    // Nothing is signed for it, and nobody else is kept from anything.
    for args in [
        "issue --dir prod agent n1 --replace",
        "renew agent-n1.crt --dir prod",
    ] {
        tool.refused(args, 1, &["deny list", "--lift agent/n1"]);
    }
    tool.ok("issue --dir prod agent n3");
    tool.refused(
        "revoke --dir prod --lift agent/n2",
        1,
        &["is not on the deny list"],
    );
    tool.ok("revoke --dir prod --lift agent/n1");
    assert_eq!(denied(&tool), "");
    tool.ok("issue --dir prod agent n1 --replace");
    let third = serial(&tool, "agent-n1.crt");
    // Lifting gives nothing back: the list of the next revocation has the old ones still.
    tool.ok("revoke --dir prod --cert agent-n2.crt");
    let (number, serials) = list(&tool, "prod/trust/agents.crl");
    let n2 = serial(&tool, "agent-n2.crt");
    assert_eq!((number, serials), (2, sorted(vec![first, second, n2])));
    if have_openssl() {
        let check = |cert: &str| {
            let args = format!(
                "verify -partial_chain -crl_check -trusted prod/trust/agents.pem -CRLfile \
                 prod/trust/agents.crl {cert}"
            );
            let output = Command::new("openssl")
                .args(args.split_whitespace())
                .current_dir(tool.dir.root())
                .output()
                .unwrap();
            let (said, failed) = (output.stdout, output.stderr);
            String::from_utf8([said, failed].concat()).unwrap()
        };
        assert!(check("agent-n2.crt").contains("certificate revoked"));
        assert!(check("agent-n1.crt").contains("OK"), "{third}");
        assert!(check("agent-n3.crt").contains("OK"));
        let text = openssl(
            tool.dir.root(),
            "crl -in prod/trust/agents.crl -noout -text",
        );
        for part in [
            "Version 2",
            "Key Compromise",
            "X509v3 Authority Key Identifier",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}

#[test]
fn a_serial_goes_on_the_list_of_who_signed_it() {
    let tool = Tool::with_cluster();
    tool.ok("issue --dir prod server cp");
    tool.ok("issue --dir prod agent n1");
    let (server, agent) = (
        serial(&tool, "server-cp.crt"),
        serial(&tool, "agent-n1.crt"),
    );
    let out = tool.ok(&format!(
        "revoke --dir prod --serial {} --serial {agent} -o json",
        server.to_uppercase()
    ));
    assert_eq!(json(&out)["result"]["lists"].as_array().unwrap().len(), 2);
    assert_eq!(
        list(&tool, "prod/trust/servers.crl"),
        (1, vec![server.clone()])
    );
    assert_eq!(list(&tool, "prod/trust/agents.crl"), (1, vec![agent]));
    assert_eq!(denied(&tool), "", "the name may have another certificate");
    // Once more changes nothing but the number.
    tool.ok(&format!("revoke --dir prod --serial {server}"));
    assert_eq!(list(&tool, "prod/trust/servers.crl"), (2, vec![server]));
    tool.refused(
        "revoke --dir prod --serial 4b01",
        2,
        &["not in the ledger", "--role"],
    );
    tool.ok("revoke --dir prod --serial 4b01 --role agent");
    assert!(
        list(&tool, "prod/trust/agents.crl")
            .1
            .contains(&"4b01".to_owned())
    );
    let shown = tool.ok("crl show --dir prod");
    assert!(
        shown.contains("spiffe://prod.example/towline/server/cp"),
        "{shown}"
    );
}

#[test]
fn a_list_that_is_lost_or_damaged_loses_no_revocation() {
    let tool = Tool::with_cluster();
    tool.ok("issue --dir prod agent n1");
    let one = serial(&tool, "agent-n1.crt");
    tool.ok("revoke --dir prod --cert agent-n1.crt");
    tool.ok("crl renew --dir prod");
    let path = tool.dir.path("prod/trust/agents.crl");
    assert_eq!(list(&tool, "prod/trust/agents.crl"), (2, vec![one.clone()]));
    let good = fs::read_to_string(&path).unwrap();
    for bad in [
        good[..good.len() / 2].to_owned(),
        "nonsense".into(),
        String::new(),
    ] {
        fs::write(&path, bad).unwrap();
        tool.refused(
            "revoke --dir prod --serial 4b01 --role agent",
            3,
            &["agents.crl", "not lost"],
        );
        tool.refused("crl verify --dir prod", 3, &["agents.crl"]);
    }
    fs::remove_file(&path).unwrap();
    tool.ok("crl renew --dir prod");
    assert_eq!(list(&tool, "prod/trust/agents.crl"), (3, vec![one]));
    // A record that cannot be read might hold just what is asked for.
    let record = tool.dir.path("prod/revoked.jsonl");
    let mut text = fs::read_to_string(&record).unwrap();
    text.insert_str(0, "{\"serial\":1}\n");
    fs::write(&record, text).unwrap();
    tool.refused("crl renew --dir prod", 3, &["revoked.jsonl: line 1"]);
}

#[test]
fn without_the_issuer_s_key_the_deny_list_does_it() {
    let tool = Tool::with_cluster();
    tool.ok("issue --dir prod agent n1");
    let one = serial(&tool, "agent-n1.crt");
    fs::remove_file(tool.dir.path("prod/issuers/agents.key")).unwrap();
    assert_eq!(tool.run("revoke --dir prod --cert agent-n1.crt").code, 3);
    let out = tool.ok("revoke --dir prod --identity agent/n1 --deny-only");
    assert!(out.contains(&format!("serial:{one}")), "{out}");
    let denied = denied(&tool);
    assert!(denied.contains(&format!("serial:{one} # ")), "{denied}");
    assert!(denied.contains("towline/agent/n1 # "), "{denied}");
    assert!(!tool.dir.path("prod/trust/agents.crl").exists());
    let verify = "verify agent-n1.crt --role agent --trust prod/trust/agents.pem --cluster \
                  prod.example --deny-list prod/trust/denied";
    assert_eq!(tool.run(verify).code, 1);
}

#[test]
fn an_authority_that_is_there_already_has_its_own_files() {
    let tool = Tool::with_cluster();
    let ca = "--ca-cert prod/issuers/agents.crt --ca-key prod/issuers/agents.key --cluster c";
    tool.ok(&format!("issue agent n1 {ca}"));
    assert!(tool.dir.path("prod/issuers/agents.issued.jsonl").exists());
    tool.ok(&format!("revoke --identity agent/n1 {ca}"));
    let one = serial(&tool, "agent-n1.crt");
    assert_eq!(list(&tool, "prod/issuers/agents.crl"), (1, vec![one]));
    let denied = fs::read_to_string(tool.dir.path("prod/issuers/agents.denied")).unwrap();
    assert!(denied.contains("spiffe://c/towline/agent/n1"), "{denied}");
}

#[test]
fn what_makes_no_sense_changes_no_file() {
    let tool = Tool::with_cluster();
    let other = Tool::with_cluster();
    other.ok("issue --dir prod agent n1");
    fs::copy(other.dir.path("agent-n1.crt"), tool.dir.path("foreign.crt")).unwrap();
    for (args, code, words) in [
        ("", 2, &["nothing to revoke"][..]),
        ("--identity agent/N1", 2, &["no identity", "agent/node-7"]),
        ("--identity agent/../../x", 2, &["no identity"]),
        ("--identity agent/n\u{1b}[2J", 2, &["no identity"]),
        ("--identity agent/*", 2, &["no identity"]),
        (
            "--identity spiffe://other/towline/agent/n1",
            2,
            &["another cluster"],
        ),
        ("--serial 0x12", 2, &["hexadecimal"]),
        (
            "--serial 12 --reason certificateHold",
            2,
            &["keyCompromise"],
        ),
        ("--cert absent.crt", 3, &["absent.crt"]),
        ("--cert prod/cluster", 3, &["CERTIFICATE"]),
        (
            "--cert foreign.crt",
            1,
            &["foreign.crt", "no authority here"],
        ),
        ("--lift agent/n1", 1, &["is not on the deny list"]),
        ("--lift agent/n1 --serial 12", 2, &["--lift"]),
        ("--serial 12 --role agent --days 0", 2, &["--days"]),
    ] {
        // The lock is made before what it guards is looked at.
        let _ = tool.run("revoke --dir prod --lift agent/n0");
        tool.refused(&format!("revoke --dir prod {args}"), code, words);
    }
    tool.refused("revoke --dir nowhere --identity agent/n1", 3, &["nowhere"]);
    fs::write(tool.dir.path("prod/trust/denied"), "n1\n").unwrap();
    tool.refused(
        "revoke --dir prod --identity agent/n1",
        3,
        &["denied", "line 1"],
    );
}

#[test]
fn verify_fails_from_half_of_a_list_s_life_on() {
    let tool = Tool::with_cluster();
    let now = SystemTime::now();
    let issuer = |name: &str| {
        let file = |end: &str| tool.dir.path(format!("prod/issuers/{name}.{end}"));
        Authority::load(&file("crt"), &file("key"), now).unwrap()
    };
    let agents = issuer("agents");
    let put = |authority: &Authority, made: SystemTime, next_update: SystemTime| {
        let list = authority.sign_list(&ListSpec {
            number: 7,
            this_update: made,
            next_update,
            revoked: vec![Revoked {
                serial: Serial::from_bytes(&[0x80, 1]),
                at: made,
                reason: RevocationReason::Superseded,
            }],
        });
        let text = pem::write_revocation_list(&list.unwrap());
        fs::write(tool.dir.path("a.crl"), text).unwrap();
    };
    let verify = "verify a.crl --trust prod/trust/agents.pem";
    for (age, left, words) in [
        (1, 9, None),
        (6, 4, Some("past half of its life")),
        (10, 0, Some("past half of its life")),
    ] {
        put(
            &agents,
            now - DAY * age,
            now + DAY * left + Duration::from_secs(60),
        );
        match words {
            None => assert!(tool.ok(&format!("crl {verify}")).contains("current")),
            Some(words) => tool.refused(&format!("crl {verify}"), 1, &[words, "crl renew"]),
        }
    }
    put(&agents, now - DAY * 2, now - DAY);
    tool.refused(&format!("crl {verify}"), 1, &["stale", " ago"]);
    put(&issuer("servers"), now - DAY, now + DAY * 9);
    tool.refused(&format!("crl {verify}"), 1, &["signed by no authority"]);
    put(&agents, now - DAY, now + DAY * 9);
    let shown = json(&tool.ok("crl show a.crl -o json"));
    let one = &shown["result"]["lists"][0];
    assert_eq!(
        (&one["number"], &one["entries"][0]["serial"]),
        (&"7".into(), &"8001".into())
    );
    assert_eq!(one["entries"][0]["reason"], "superseded");
}

#[test]
fn renew_waits_until_it_is_due() {
    let tool = Tool::with_cluster();
    tool.ok("crl renew --dir prod --days 10");
    assert!(tool.ok("crl renew --dir prod --if-due").contains("not due"));
    assert_eq!(list(&tool, "prod/trust/agents.crl").0, 1);
    tool.ok("crl renew --dir prod");
    assert_eq!(list(&tool, "prod/trust/servers.crl").0, 2);
    tool.ok("crl verify --dir prod");
}

/// `verify` judges by the files of a daemon, so it says what the daemon says.
#[test]
fn verify_knows_the_lists_of_every_role() {
    let tool = Tool::with_cluster();
    for (role, name, list) in [
        ("agent", "n1", "agents"),
        ("server", "s1", "servers"),
        ("client", "c1", "servers"),
        ("operator", "o1", "servers"),
    ] {
        tool.ok(&format!("issue --dir prod {role} {name}"));
        tool.ok("crl renew --dir prod");
        let verify = format!(
            "verify {role}-{name}.crt --role {role} --trust prod/trust/{list}.pem \
             --cluster prod.example --crl prod/trust/{list}.crl"
        );
        tool.ok(&verify);
        // The list of somebody else covers nobody here, and is none that a daemon would take.
        let other = if list == "agents" {
            "servers"
        } else {
            "agents"
        };
        let foreign = verify.replace(&format!("{list}.crl"), &format!("{other}.crl"));
        tool.refused(&foreign, 3, &["none of the authorities"]);
        tool.ok(&format!("revoke --dir prod --cert {role}-{name}.crt"));
        tool.refused(&verify, 1, &["revoked"]);
        let answer = tool.run(&format!("{verify} -o json"));
        assert!(answer.out.contains("\"revoked\""), "{}", answer.out);
    }
    let web = "verify agent-n1.crt --role kube-apiserver --trust prod/trust/agents.pem";
    tool.refused(
        &format!("{web} --crl prod/trust/agents.crl"),
        2,
        &["kube-apiserver"],
    );
    // A list that is past its next update counts or does not, as the daemons' policy says.
    tool.ok("issue --dir prod agent n2");
    let clock = SystemTime::now() - 40 * DAY;
    let lists = stale_list(&tool, clock);
    let verify = format!(
        "verify agent-n2.crt --role agent --trust prod/trust/agents.pem --cluster prod.example --crl {lists}"
    );
    tool.ok(&verify);
    tool.refused(&format!("{verify} --crl-policy fail-closed"), 1, &["list"]);
    tool.refused(&format!("{verify} --crl-policy maybe"), 2, &["keep-last"]);
}

/// A list of the issuer of agents that was made then, for 30 days.
fn stale_list(tool: &Tool, made: SystemTime) -> &'static str {
    let at = |end: &str| tool.dir.path(format!("prod/issuers/agents.{end}"));
    let authority = Authority::load(&at("crt"), &at("key"), SystemTime::now()).unwrap();
    let list = authority.sign_list(&ListSpec {
        number: 9,
        this_update: made,
        next_update: made + 30 * DAY,
        revoked: Vec::new(),
    });
    let text = pem::write_revocation_list(&list.unwrap());
    fs::write(tool.dir.path("stale.crl"), text).unwrap();
    "stale.crl"
}

#[test]
fn a_cluster_without_lists_is_told_how_to_get_them() {
    let tool = Tool::with_cluster();
    for verb in ["show", "verify"] {
        tool.refused(
            &format!("crl {verb} --dir prod"),
            3,
            &["agents.crl", "crl renew"],
        );
    }
    tool.refused(
        "crl show nowhere.crl",
        3,
        &["nowhere.crl", "cannot be read"],
    );
    tool.ok("crl renew --dir prod");
    assert_eq!(denied(&tool), "");
    // What is there stays.
    tool.ok("revoke --dir prod --identity agent/n1");
    let before = denied(&tool);
    tool.ok("crl renew --dir prod");
    assert_eq!(denied(&tool), before);
}
