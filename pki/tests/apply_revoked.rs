//! `apply` beside `revoke`: what was revoked is made anew with a new key, and who is denied gets
//! nothing until the name is lifted.

mod cluster;
mod tool;

use std::fs;

use serde_json::Value;
use tool::Tool;

const CLUSTER: &str = "\
version: 1
cluster: prod.example
controlPlanes:
  - {name: cp-1, addresses: [10.0.0.1]}
nodes:
  - {name: node-1, addresses: [10.0.1.1]}
";
const APPLY: &str = "apply -f cluster.yaml -d prod";
const CERT: &str = "prod/hosts/node-1/towline/agent.crt";
const KEY: &str = "prod/hosts/node-1/towline/agent.key";

fn applied() -> Tool {
    let tool = Tool::new();
    fs::write(tool.dir.path("cluster.yaml"), CLUSTER).unwrap();
    tool.ok(APPLY);
    tool
}

fn pair(tool: &Tool) -> [Vec<u8>; 2] {
    [CERT, KEY].map(|name| fs::read(tool.dir.path(name)).unwrap())
}

#[test]
fn a_revoked_certificate_is_made_anew_with_a_new_key() {
    for way in ["", " --deny-only"] {
        let tool = applied();
        tool.ok(&format!("revoke --dir prod --cert {CERT}{way}"));
        let [cert, key] = pair(&tool);
        let out = tool.ok(APPLY);
        assert!(out.contains("it was revoked; new key"), "{out}");
        assert!(out.contains("\n1 changed"), "{out}");
        let [new_cert, new_key] = pair(&tool);
        assert!(cert != new_cert && key != new_key);
        assert!(tool.ok(APPLY).contains("\n0 changed"));
    }
}

#[test]
fn who_is_denied_gets_nothing_until_the_name_is_lifted() {
    let tool = applied();
    tool.ok("revoke --dir prod --identity agent/node-1 --reason keyCompromise");
    let before = pair(&tool);
    // Neither because it was revoked nor because the node has another address.
    let moved = CLUSTER.replace("10.0.1.1", "10.0.1.9");
    fs::write(tool.dir.path("cluster.yaml"), moved).unwrap();
    let out = tool.ok(APPLY);
    assert!(
        out.contains("left as it is") && out.contains("--lift agent/node-1"),
        "{out}"
    );
    assert!(
        out.contains("kubelet/kubelet.crt"),
        "its kubelet is nobody's agent: {out}"
    );
    assert_eq!(pair(&tool), before);
    let answer = tool.ok(&format!("{APPLY} -o json"));
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let note = &answer["result"]["notes"][0];
    assert_eq!(note["code"], "denied");
    assert_eq!(
        note["identity"],
        "spiffe://prod.example/towline/agent/node-1"
    );
    tool.ok("revoke --dir prod --lift agent/node-1");
    let out = tool.ok(APPLY);
    assert!(out.contains("it was revoked"), "{out}");
    assert_ne!(pair(&tool), before);
    assert!(tool.ok(APPLY).contains("\n0 changed"));
}

#[test]
fn a_damaged_list_stops_it_before_anything_is_touched() {
    let tool = applied();
    tool.ok("crl renew --dir prod");
    fs::write(
        tool.dir.path("cluster.yaml"),
        CLUSTER.replace("10.0.1.1", "10.0.1.9"),
    )
    .unwrap();
    for (name, text) in [("denied", "node-1\n"), ("agents.crl", "no list\n")] {
        let path = tool.dir.path(format!("prod/trust/{name}"));
        let good = fs::read(&path).unwrap();
        fs::write(&path, text).unwrap();
        tool.refused(APPLY, 3, &[name, "nothing was changed"]);
        fs::write(&path, good).unwrap();
    }
    tool.ok(APPLY);
}
