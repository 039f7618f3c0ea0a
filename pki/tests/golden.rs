//! What every verb prints, letter by letter: `golden/<verb>.txt`. What differs from run to run
//! (times, serial numbers, keys) is replaced by a word.
//!
//! After a change that is meant: `BLESS=1 cargo test -p towline-pki --test golden`, and read the
//! difference before you commit it.

mod cluster;
mod tool;

use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde_json::Value;
use tool::Tool;
use towline_pki::{KeyKind, PrivateKey, RequestSpec};

/// File, what is run before without being looked at, and what is looked at.
const STORIES: &[(&str, &[&str], &[&str])] = &[
    (
        "init",
        &[],
        &[
            "init prod --cluster prod.example",
            "init prod --cluster prod.example",
            "init next --cluster next.example -o json",
        ],
    ),
    (
        "issue",
        &[PROD],
        &[
            "issue --dir prod agent node-7 --ip 10.0.1.7,fd00::7",
            "issue --dir prod agent node-7",
            "issue --dir prod server cp-1 --dns cp.example -o json",
            "issue --dir prod agent n1 --dns n1 -o json",
        ],
    ),
    (
        "request",
        &[],
        &["request agent node-7", "request agent node-8 -o json"],
    ),
    (
        "sign",
        &[PROD, "request agent node-7", "request agent node-8"],
        &[
            "sign agent-node-7.csr --dir prod --role agent --name node-7 --ip 10.0.1.7",
            "sign agent-node-8.csr --dir prod --role agent --name node-8 -o json",
        ],
    ),
    (
        "inspect",
        &[PROD, NODE, "request agent node-8"],
        &[
            "inspect agent-node-7.crt",
            "inspect prod/trust/agents.pem -o json",
            "inspect agent-node-8.csr",
            "inspect agent-node-8.csr -o json",
            "inspect agent-node-7.key",
        ],
    ),
    (
        "verify",
        &[PROD, NODE],
        &[
            "verify agent-node-7.crt --role agent --trust prod/trust/agents.pem",
            "verify agent-node-7.crt --role agent --trust prod/trust/agents.pem --cluster prod.example -o json",
            "verify agent-node-7.crt --role agent --trust prod/trust/servers.pem",
            "verify agent-node-7.crt --role client --trust prod/trust/agents.pem -o json",
        ],
    ),
    (
        "status",
        &[PROD, NODE],
        &[
            "status prod agent-node-7.crt",
            "status agent-node-7.crt --days 120 -o json",
        ],
    ),
    (
        "lint",
        &[PROD, "issue --dir prod agent node-7"],
        &["lint prod agent-node-7.crt", "lint prod -o json"],
    ),
    (
        "needs-renewal",
        &[PROD, NODE],
        &[
            "needs-renewal agent-node-7.crt",
            "needs-renewal agent-node-7.crt --days 91",
            "needs-renewal agent-node-7.crt -o json",
        ],
    ),
    (
        "renew",
        &[PROD, NODE],
        &[
            "renew agent-node-7.crt --dir prod",
            "renew agent-node-7.crt --dir prod --keep-key -o json",
        ],
    ),
    (
        "export",
        &[
            PROD,
            "issue --dir prod server cp-1 --dns cp.example",
            "issue --dir prod client api",
        ],
        &[
            "export pem --cert server-cp-1.crt --chain prod/issuers/servers.crt",
            "export pem --cert server-cp-1.crt --key server-cp-1.key --out both.pem",
            "export pem --cert server-cp-1.crt --out chain.pem -o json",
            "export secret towline-server -n kube-system --cert server-cp-1.crt --key server-cp-1.key",
            "export config-map towline-trust -n kube-system --from prod/trust/agents.pem",
            "export config-map towline-trust --from prod/trust/agents.pem -o json",
            "export config-map towline-trust --from server-cp-1.key",
            "export kubeconfig --server https://api.example:6443 --ca prod/trust/servers.pem --cert client-api.crt --key client-api.key",
            "export egress-selector --unix /run/towline/door.sock",
            "export egress-selector --url https://cp.example:8090 --ca /pki/servers.pem --client-cert /pki/a.crt --client-key /pki/a.key --selections cluster,controlplane",
        ],
    ),
    (
        "audit-key",
        &[],
        &["audit-key", "audit-key --out . -o json"],
    ),
    (
        "revoke",
        &[PROD, NODE],
        &[
            "revoke --dir prod --identity agent/node-7 --reason keyCompromise",
            "revoke --dir prod --serial 4b01 --role server -o json",
            "revoke --dir prod --lift agent/node-7",
            "revoke --dir prod --lift agent/node-7 -o json",
            "revoke --dir prod --serial 4b02",
            "revoke --dir prod --identity agent/node-8 --deny-only",
            "revoke --dir prod --cert agent-node-7.crt --deny-only -o json",
            "issue --dir prod agent node-8",
        ],
    ),
    (
        "crl",
        &[PROD, NODE, "revoke --dir prod --cert agent-node-7.crt"],
        &[
            "crl renew --dir prod",
            "crl renew --dir prod --if-due -o json",
            "crl show --dir prod",
            "crl show --dir prod -o json",
            "crl verify --dir prod",
            "crl verify prod/trust/agents.crl --trust prod/trust/servers.pem -o json",
        ],
    ),
    (
        "token",
        &[PROD],
        &[
            "token create node-7 --dir prod --ip 10.0.1.7",
            "token create worker-* --dir prod --hours 72 --out worker.token -o json",
            "token list",
            "token list -o json",
            "token revoke 0123456789abcdef",
        ],
    ),
    (
        "sign-kubelet-serving",
        &["init ca --root-only --organisation example.org"],
        &[
            "sign kubelet.csr --role kubelet-serving --name node-7 --ip 10.0.1.7 --ca-cert ca/root/root.crt --ca-key ca/root/root.key",
            "sign kubelet.csr --role kubelet-serving --name node-7 --ca-cert ca/root/root.crt --ca-key ca/root/root.key --out . -o json",
            "sign kubelet.csr --role kubelet-serving --name node-8 --ip 10.0.1.7 --ca-cert ca/root/root.crt --ca-key ca/root/root.key",
        ],
    ),
    (
        "gateway-issuer",
        &[PROD, "init next --cluster next.example"],
        &[
            "gateway-issuer --dir prod",
            "gateway-issuer --dir next -o json",
        ],
    ),
    (
        "rotate",
        &[PROD, NODE],
        &[
            "rotate prepare agents --dir prod",
            "rotate activate agents --dir prod",
            "rotate activate agents --dir prod --force -o json",
            "rotate retire agents --dir prod",
            "rotate retire agents --dir prod --force",
            "rotate prepare servers --dir prod -o json",
            "rotate activate servers --dir prod --force",
            "rotate retire servers --dir prod -o json",
        ],
    ),
    (
        "rotate-lists",
        &[PROD, "crl renew --dir prod"],
        &[
            "rotate prepare agents --dir prod",
            "rotate activate agents --dir prod --force -o json",
            "rotate retire agents --dir prod",
        ],
    ),
    (
        "accept",
        &["init prod --cluster prod.example --external-root"],
        &[
            "init root --root-only --organisation example.org",
            "sign-issuer prod/issuers/agents.csr --issuer agents --cluster prod.example --root root",
            "accept issuer-agents.crt --dir prod",
            "accept issuer-agents.crt --dir prod",
            "sign-issuer prod/issuers/servers.csr --issuer servers --cluster prod.example --root root -o json",
            "accept issuer-servers.crt --dir prod -o json",
            "init more --cluster more.example --external-root",
            "init test --cluster test.example --root root",
        ],
    ),
    (
        "apply",
        &[],
        &[
            "apply -f cluster.yaml -d prod --dry-run",
            "apply -f cluster.yaml -d prod",
            "apply -f cluster.yaml -d prod",
            "apply -f more.yaml -d prod --dry-run",
            "apply -f more.yaml -d prod -o json",
            "apply -f other.yaml -d prod",
        ],
    ),
    (
        "kubelet-client",
        &[PROD],
        &[
            "kubelet-client --ca-cert prod/issuers/agents.crt --ca-key prod/issuers/agents.key",
            "kubelet-client --ca-cert prod/issuers/agents.crt --ca-key prod/issuers/agents.key --replace -o json",
        ],
    ),
];

const CLUSTER: &str = "\
version: 1
cluster: prod.example
controlPlanes:
  - {name: cp-1, addresses: [10.0.0.1]}
nodes:
  - {name: node-1, addresses: [10.0.1.1]}
";
const PROD: &str = "init prod --cluster prod.example";
const NODE: &str = "issue --dir prod agent node-7 --ip 10.0.1.7,fd00::7";

#[test]
fn every_answer_is_what_it_was() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let bless = std::env::var_os("BLESS").is_some();
    let mut wrong = Vec::new();
    for (name, before, looked_at) in STORIES {
        let found = story(before, looked_at);
        let path = folder.join(format!("{name}.txt"));
        if bless {
            fs::write(&path, &found).unwrap();
        } else if fs::read_to_string(&path).unwrap_or_default() != found {
            wrong.push(format!("--- {name}.txt is now:\n{found}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn story(before: &[&str], looked_at: &[&str]) -> String {
    let tool = Tool::new();
    for (name, text) in [
        ("cluster.yaml", CLUSTER.to_owned()),
        (
            "more.yaml",
            CLUSTER.replace("[10.0.1.1]", "[10.0.1.1, 10.0.1.9]"),
        ),
        ("other.yaml", CLUSTER.replace("nodes:", "nodse:")),
    ] {
        fs::write(tool.dir.path(name), text).unwrap();
    }
    let spec = RequestSpec {
        organisation: "system:nodes".into(),
        common_name: "system:node:node-7".into(),
        dns: vec!["node-7".into()],
        ips: vec![[10, 0, 1, 7].into()],
        ..RequestSpec::default()
    };
    let key = PrivateKey::generate(KeyKind::EcdsaP256).unwrap();
    fs::write(tool.dir.path("kubelet.csr"), spec.make(&key).unwrap()).unwrap();
    for args in before {
        tool.ok(args);
    }
    let mut out = String::new();
    for args in looked_at {
        let answer = tool.run(args);
        if args.ends_with("-o json") {
            one_shape(args, &answer);
        }
        let _ = writeln!(out, "$ towline-pki {args}");
        out.push_str(&timeless(&answer.out));
        for line in timeless(&answer.err).lines() {
            let _ = writeln!(out, "! {line}");
        }
        let _ = writeln!(out, "= {}\n", answer.code);
    }
    out
}

/// verb, exit, error, result; and nothing that a verb only says to people.
fn one_shape(args: &str, answer: &tool::Answer) {
    let document: Value = serde_json::from_str(&answer.out).unwrap();
    let fields: Vec<&String> = document.as_object().unwrap().keys().collect();
    assert_eq!(fields, ["error", "exit", "result", "verb"], "{args}");
    assert_eq!(document["exit"], answer.code, "{args}");
    assert!(
        args.starts_with(document["verb"].as_str().unwrap()),
        "{args}"
    );
    assert_eq!(document["error"].is_null(), answer.code == 0, "{args}");
    assert!(document["result"]["text"].is_null(), "{args}");
    if let Some(message) = document["error"].as_str() {
        assert!(answer.err.contains(message), "{args}");
    }
}

/// Without what differs from run to run.
fn timeless(text: &str) -> String {
    let mut out = String::new();
    let text = without_blocks(text);
    for line in text.lines() {
        let line = line.split_inclusive(|c: char| !word(c));
        for part in line {
            let end = part.trim_end_matches(|c| !word(c));
            out.push_str(&replaced(end));
            out.push_str(&part[end.len()..]);
        }
        out.push('\n');
    }
    let seconds = |line: &str| match line.split_once("\"secondsLeft\": ") {
        Some((before, _)) => format!("{before}\"secondsLeft\": SECONDS,\n"),
        None => format!("{}\n", without_days(line)),
    };
    out.lines().map(seconds).collect()
}

/// What stands inside PEM blocks differs, also in length.
fn without_blocks(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("-----BEGIN ") {
        let (label, inside) = after.split_once("-----").unwrap_or((after, ""));
        let (_, after) = inside.split_once("-----END ").unwrap_or(("", ""));
        let _ = write!(out, "{before}-----BEGIN {label}-----BASE64-----END ");
        rest = after;
    }
    out + rest
}

fn word(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-:+/=".contains(c)
}

fn replaced(text: &str) -> String {
    let digits = |range: std::ops::Range<usize>| {
        text.get(range)
            .is_some_and(|part| part.bytes().all(|b| b.is_ascii_digit()))
    };
    let base64 = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
    if text.len() > 100 && text.chars().all(base64) && text.chars().any(|c| c.is_ascii_uppercase())
    {
        return "BASE64".into();
    }
    if text.len() == 20 && digits(0..4) && digits(5..7) && text.ends_with('Z') {
        return "TIME----------------".into();
    }
    let hex = |c: char| c.is_ascii_hexdigit() && !c.is_ascii_uppercase();
    let serial = text.strip_prefix("serial:").unwrap_or(text);
    if serial.len() >= 16 && serial.chars().all(hex) {
        return text.replace(serial, "HEX");
    }
    // What authorities of one purpose are told apart by.
    if text.len() == 8 && text.chars().all(hex) {
        return "HEX-----".into();
    }
    text.to_owned()
}

/// The test may run over the end of a second.
fn without_days(line: &str) -> String {
    let Some((before, after)) = line.split_once("in ") else {
        return line.to_owned();
    };
    let number = after.split(' ').next().unwrap_or_default();
    let unit = &after[number.len()..];
    let days = unit.starts_with(" day") || unit.starts_with(" hour");
    if days && number.bytes().all(|b| b.is_ascii_digit()) {
        let rest = without_days(&after[number.len()..]);
        return format!("{before}in {}{rest}", "N".repeat(number.len()));
    }
    format!("{before}in {}", without_days(after))
}
