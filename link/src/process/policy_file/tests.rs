//! What a policy file may say, and how each mistake is told.

use super::*;
use towline_proto::policy::{Asker, Decision, Question};

fn rules(text: &str) -> Vec<Rule> {
    PolicyFile::parse(text.as_bytes())
        .unwrap()
        .rules
        .rules()
        .to_vec()
}

/// A file with one rule that has this line in it, the fifth.
fn with(line: &str) -> String {
    format!("version: 1\nrules:\n  - name: r\n    action: allow\n    {line}\n")
}

fn fault(text: &str) -> String {
    PolicyFile::parse(text.as_bytes()).unwrap_err().to_string()
}

/// The example at the head of a documentation comment of this source.
fn example(source: &str) -> String {
    let lines = source
        .lines()
        .skip_while(|line| *line != "//! ```yaml")
        .skip(1);
    let lines = lines.take_while(|line| *line != "//! ```");
    lines
        .map(|line| {
            line.trim_start_matches("//!")
                .strip_prefix(' ')
                .unwrap_or_default()
        })
        .flat_map(|line| [line, "\n"])
        .collect()
}

#[test]
fn the_example_in_the_documentation_means_what_it_says() {
    let file = PolicyFile::parse(example(include_str!("mod.rs")).as_bytes()).unwrap();
    let kubelet = Question {
        class: Class::Kubelet,
        port: 10250,
        name: None,
        address: Some([10, 0, 0, 7].into()),
        node: Some("n7"),
        asker: Asker::Client("kube-apiserver"),
    };
    let webhook = Question {
        class: Class::Service,
        port: 8443,
        name: Some("hook.prod.svc"),
        address: None,
        ..kubelet
    };
    let tag = |name: &str, line| RuleTag {
        name: name.into(),
        line: Some(line),
    };
    let allowed = Decision::Allowed(tag("kubelets-for-apiserver", 3));
    assert_eq!(file.rules.decide(&kubelet), allowed);
    let other = Asker::Client("backup");
    let of_other = Question {
        asker: other,
        ..kubelet
    };
    assert_eq!(file.rules.decide(&of_other), Decision::Unnamed);
    assert_eq!(
        file.rules.decide(&webhook),
        Decision::Allowed(tag("webhooks", 7))
    );
    let vault = Question {
        node: Some("vault-1"),
        ..kubelet
    };
    assert_eq!(
        file.rules.decide(&vault),
        Decision::Denied(tag("no-secrets-node", 12))
    );
}

#[test]
fn the_kubelet_section_is_read_beside_the_rules() {
    let section = example(include_str!("kubelet.rs"));
    let file = PolicyFile::parse(format!("version: 1\nrules: []\n{section}").as_bytes()).unwrap();
    assert!(file.kubelet.is_some() && file.rules.rules().is_empty());
    for (bad, line) in [
        ("kubelet:\n  default: maybe\n", 4),
        ("kubelet:\n  rules: []\n", 4),
        (
            "kubelet:\n  default: deny\n  rules:\n    - action: deny\n      verbs: [sing]\n",
            7,
        ),
        (
            "kubelet:\n  default: deny\n  rules:\n    - action: deny\n      verb: [exec]\n",
            7,
        ),
    ] {
        let text = fault(&format!("version: 1\nrules: []\n{bad}"));
        assert!(text.starts_with(&format!("{line}:")), "{bad:?}: {text}");
    }
}

#[test]
fn every_condition_is_read() {
    let text = with("classes: [pod]");
    let rule = &rules(&format!(
        "{text}    ports: [80, 8000-8999, \"443\"]
    to: [10.0.0.0/8, 10.1.2.3, \"fd00::/8\", web.ns.svc, \"*.svc\"]
    nodes: [n1, \"gpu-*\"]
    from: [local, uid:0, gid:5, \"client:a-*\"]
"
    ))[0];
    assert_eq!(rule.ports.len(), 3);
    assert_eq!(rule.to.len(), 5);
    assert_eq!(rule.nodes.len(), 2);
    assert_eq!(rule.from.len(), 4);
    assert_eq!(rule.tag.line, Some(3));
}

#[test]
fn every_mistake_is_one_line_with_its_place() {
    let mut wrong = Vec::new();
    for (text, start, words) in [
        (String::new(), "1:1:", "the file is empty"),
        ("version: 2\nrules: []\n".into(), "1:10:", "version 2"),
        ("rules: []\n".into(), "", "version"),
        ("version: 1\n".into(), "", "rules"),
        ("version: 1\nrules: {}\n".into(), "2:", ""),
        ("version: 1\nrules: []\nrule: []\n".into(), "3:1:", "rule"),
        (
            "version: 1\nrules: []\nversion: 1\n".into(),
            "3:1:",
            "twice",
        ),
        (
            "version: 1\nrules:\n  - action: allow\n".into(),
            "3:",
            "name",
        ),
        ("version: 1\nrules:\n  - name: r\n".into(), "3:", "action"),
        (
            "version: 1\nrules:\n  - {name: r, action: permit}\n".into(),
            "3:",
            "allow or deny",
        ),
        (
            "version: 1\nrules:\n  - {name: a b, action: deny}\n".into(),
            "3:",
            "no name of a rule",
        ),
        (
            "version: 1\nrules:\n  - {name: r, action: deny}\n  - {name: r, action: deny}\n".into(),
            "4:12:",
            "rule in line 3",
        ),
        (with("clases: [pod]"), "5:5:", "clases"),
        (with("classes: [pods]"), "5:15:", "pods"),
        (with("classes: pod"), "5:", ""),
        (with("classes: []"), "5:", "empty list"),
        (with("classes:"), "5:", ""),
        (with("to:"), "5:", ""),
        (with("ports: [0]"), "5:13:", "port"),
        (with("ports: [0x1bb]"), "5:13:", "port"),
        (with("ports: [9-8]"), "5:13:", "range"),
        (with("ports: [http]"), "5:13:", "port"),
        (with("to: [10.0.0.7/24]"), "5:10:", "write 10.0.0.0/24"),
        (with("to: [10.0.0.0/33]"), "5:10:", "prefix"),
        (with("to: [010.0.0.1]"), "5:10:", "IPv4"),
        (with("to: [2130706433]"), "5:10:", "IPv4"),
        (with("to: [10.0.0.*]"), "5:10:", "write a prefix"),
        (with("to: [\"::ffff:10.0.0.1\"]"), "5:10:", "write the IPv4"),
        (with("to: [169.254.169.254]"), "5:10:", "no rule can allow"),
        (with("to: [169.254.0.0/16]"), "5:10:", "no rule can allow"),
        (with("to: [\"fe80::/10\"]"), "5:10:", "no rule can allow"),
        (with("to: [a_b]"), "5:10:", "name"),
        (with("nodes: [N1]"), "5:13:", "lower-case"),
        (with("from: [root]"), "5:12:", "uid:NUMBER"),
        (with("from: [uid:root]"), "5:12:", "uid:NUMBER"),
        (with("from: [{uid: 0}]"), "5:", ""),
        (with("ports: &p [80]"), "5:", ""),
    ] {
        let told = fault(&text);
        let fits = told.starts_with(start) && told.to_lowercase().contains(&words.to_lowercase());
        if !fits || told.lines().count() != 1 {
            wrong.push(format!("{text:?}: {told}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_deny_rule_may_name_what_is_never_reached() {
    let text = with("to: [169.254.0.0/16]").replace("allow", "deny");
    assert_eq!(rules(&text).len(), 1);
    assert_eq!(
        rules(&with("classes: [kubelet]\n    to: [127.0.0.1]")).len(),
        1
    );
    assert!(fault(&with("classes: [pod]\n    to: [127.0.0.1]")).starts_with("6:"));
}

#[test]
fn more_than_the_bounds_is_refused() {
    let one = "  - {name: r, action: deny}\n";
    let many: String = (0..=limits::POLICY_RULES)
        .map(|n| one.replace(" r,", &format!(" r{n},")))
        .collect();
    let text = fault(&format!("version: 1\nrules:\n{many}"));
    assert!(text.contains("more than the"), "{text}");
    let ports = vec!["80"; limits::POLICY_ITEMS + 1].join(",");
    assert!(fault(&with(&format!("ports: [{ports}]"))).contains("more than the"));
}

#[test]
fn an_error_names_file_line_and_column() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy.yaml");
    std::fs::write(&path, with("ports: [http]")).unwrap();
    let error = PolicyFile::load(&path).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("{}:5:13: ", path.display())),
        "{error}"
    );
    let missing = PolicyFile::load(&folder.path().join("none")).unwrap_err();
    assert!(missing.to_string().contains("none"), "{missing}");
}
