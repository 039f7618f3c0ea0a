//! `sign --role kubelet-serving`: signs what the command line names, and says what it does not.

mod cluster;
mod tool;

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use tool::Tool;
use towline_pki::store::{self, Replace};
use towline_pki::{
    Authority, AuthoritySpec, Certificate, KeyKind, PrivateKey, RequestSpec, Usage, pem,
};

/// `kubelet.csr`, `ca.crt` and `ca.key` are in its directory.
fn world(change: impl FnOnce(&mut RequestSpec)) -> Tool {
    let tool = Tool::new();
    let mut spec = RequestSpec {
        organisation: "system:nodes".into(),
        common_name: "system:node:node-7".into(),
        dns: vec!["node-7".into()],
        ips: vec![IpAddr::from([10, 0, 1, 7])],
        ..RequestSpec::default()
    };
    change(&mut spec);
    let key = PrivateKey::generate(KeyKind::EcdsaP256).unwrap();
    let request = tool.dir.root().join("kubelet.csr");
    store::write_public(&request, &spec.make(&key).unwrap(), Replace::Never).unwrap();
    let now = SystemTime::now();
    let spec = AuthoritySpec {
        purpose: "kubernetes".into(),
        organisation: String::new(),
        not_before: now - Duration::from_secs(600),
        not_after: now + Duration::from_secs(3_650 * 86_400),
        path_length: None,
        usages: vec![],
    };
    let made = Authority::create(&spec, PrivateKey::generate(KeyKind::Rsa2048).unwrap()).unwrap();
    let ca = (
        tool.dir.root().join("ca.crt"),
        tool.dir.root().join("ca.key"),
    );
    store::write_public(&ca.0, &made.to_pem(), Replace::Never).unwrap();
    store::write_secret(&ca.1, &made.key_to_pem(), Replace::Never).unwrap();
    tool
}

const SIGN: &str =
    "sign kubelet.csr --role kubelet-serving --name node-7 --ca-cert ca.crt --ca-key ca.key";

#[test]
fn what_the_command_line_names_is_signed() {
    let tool = world(|_| ());
    let said = tool.ok(&format!("{SIGN} --ip 10.0.1.7 --ip 10.0.1.8"));
    for word in ["node-7", "DNS node-7, IP 10.0.1.7\n", "tlsCertFile"] {
        assert!(said.contains(word), "{said}");
    }
    let text = store::read(&tool.dir.root().join("kubelet-serving-node-7.crt")).unwrap();
    let der = pem::certificates(&text).unwrap();
    let read = Certificate::parse(&der[0]).unwrap();
    assert_eq!(read.common_names, Some(vec!["system:node:node-7".into()]));
    assert_eq!(read.organisations, Some(vec!["system:nodes".into()]));
    assert_eq!(read.ip_sans, [IpAddr::from([10, 0, 1, 7])]);
    assert_eq!(read.usages, [Usage::ServerAuth]);
    // It is written down like everything that is issued.
    let ledger = store::read(&tool.dir.root().join("ca.issued.jsonl")).unwrap();
    assert!(
        String::from_utf8(ledger)
            .unwrap()
            .contains("system:node:node-7")
    );
    tool.refused(&format!("{SIGN} --ip 10.0.1.7"), 1, &["--replace"]);
    tool.ok(&format!("{SIGN} --ip 10.0.1.7 --replace"));
    let json = tool.ok(&format!("{SIGN} --ip 10.0.1.7 --replace -o json"));
    assert!(
        json.contains("\"verb\":") && json.contains("kubelet-serving-node-7.crt"),
        "{json}"
    );
}

#[test]
fn what_it_does_not_name_is_refused_with_the_flag_that_would() {
    world(|_| ()).refused(SIGN, 1, &["10.0.1.7", "add --ip 10.0.1.7"]);
    let other = world(|spec| spec.dns.push("node-7.corp.example".into()));
    other.refused(
        &format!("{SIGN} --ip 10.0.1.7"),
        1,
        &["add --dns node-7.corp.example"],
    );
    other.ok(&format!("{SIGN} --ip 10.0.1.7 --dns NODE-7.corp.example"));
    let another = world(|spec| spec.common_name = "system:node:node-8".into());
    another.refused(
        &format!("{SIGN} --ip 10.0.1.7"),
        1,
        &["node-8", "--name is node-7"],
    );
}

#[test]
fn requests_that_no_kubelet_makes_are_refused() {
    let refused = |change: fn(&mut RequestSpec), word: &str| {
        world(change).refused(
            &format!("{SIGN} --ip 10.0.1.7"),
            1,
            &["nothing was signed", word],
        );
    };
    refused(|s| s.organisation = "system:masters".into(), "system:nodes");
    refused(
        |s| s.common_name = "kubernetes-admin".into(),
        "system:node:",
    );
    refused(|s| s.uris = vec!["spiffe://x/y".into()], "URI");
    refused(|s| s.ips.push(IpAddr::from([127, 0, 0, 1])), "loopback");
    refused(|s| s.dns.push("*.corp.example".into()), "host name");
}

#[test]
fn files_and_flags_that_do_not_fit_are_named() {
    let tool = world(|_| ());
    tool.refused(
        "sign kubelet.csr --role kubelet-serving --name node-7",
        2,
        &["--ca-cert", "--ca-key"],
    );
    tool.refused(
        "sign kubelet.csr --role kubelet --name node-7",
        2,
        &["kubelet-serving"],
    );
    tool.refused(
        "sign kubelet.csr --role agent --name node-7 --ca-cert ca.crt --ca-key ca.key",
        2,
        &["--cluster"],
    );
    tool.refused(
        &format!("{SIGN} --ip 10.0.1.7 --days 367"),
        2,
        &["366 days"],
    );
    tool.refused(&format!("{SIGN} --ip 10.0.1.7 --out none"), 1, &["none"]);
    let junk = SIGN.replace("kubelet.csr", "ca.crt");
    tool.refused(&format!("{junk} --ip 10.0.1.7"), 3, &["ca.crt"]);
}
