//! Keeping certificates alive: what is there, what is wrong with it, what is due, and a new one in
//! the old one's place; for what Towline made and for what others made.

mod cluster;
mod tool;

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cluster::{DAY, new_key};
use serde_json::Value;
use tool::Tool;
use towline_pki::store::{self, Replace};
use towline_pki::{Authority, AuthoritySpec, Credentials, KeyKind, LeafSpec, PrivateKey, Usage};
use towline_proto::id::Role;

/// An authority of now, for certificates that no rule of ours allows.
struct Strange(Authority);

impl Strange {
    fn new() -> Self {
        let now = SystemTime::now();
        let spec = AuthoritySpec {
            purpose: "somebody's".into(),
            organisation: String::new(),
            not_before: now - DAY,
            not_after: now + 4000 * DAY,
            path_length: None,
            usages: Vec::new(),
        };
        Self(Authority::create(&spec, new_key()).unwrap())
    }

    fn spec(name: &str, days: u32) -> LeafSpec {
        let now = SystemTime::now();
        LeafSpec {
            common_name: name.into(),
            uris: Vec::new(),
            dns: Vec::new(),
            ips: Vec::new(),
            usages: vec![Usage::ServerAuth],
            not_before: now - DAY,
            not_after: now + days * DAY + DAY / 24,
        }
    }

    fn pem(&self, spec: &LeafSpec, key: &PrivateKey) -> String {
        let der = self.0.issue_raw(spec, &key.public()).unwrap();
        towline_pki::pem::write_certificates(&[der])
    }

    fn put(&self, tool: &Tool, file: &str, spec: &LeafSpec) {
        fs::write(tool.dir.path(file), self.pem(spec, &new_key())).unwrap();
    }
}

/// The result of an answer with `-o json`.
fn json(text: &str) -> Value {
    let mut document: Value = serde_json::from_str(text).unwrap();
    document["result"].take()
}

#[test]
fn status_shows_everything_in_a_folder_and_ends_by_threshold() {
    let tool = Tool::with_cluster();
    tool.ok("issue --dir prod agent node-7 --out prod");
    let out = tool.ok("status prod");
    for part in [
        "agent node-7 of prod.example",
        "authority",
        "prod/trust/agents.pem",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    // Whole days are what is left: one less as soon as a second has passed.
    assert!(
        out.contains("in 90 days") || out.contains("in 89 days"),
        "{out}"
    );
    // The soonest first.
    assert!(
        out.lines().nth(1).unwrap().contains("agent node-7"),
        "{out}"
    );
    let answer = tool.run("status prod --days 120");
    assert_eq!(answer.code, 1, "{}", answer.err);
    assert!(answer.out.contains("ends-soon") && answer.err.contains("120 days"));
    let all = json(&tool.ok("status prod -o json"));
    assert_eq!(all["certificates"].as_array().unwrap().len(), 6);
    assert_eq!(all["certificates"][0]["state"], "valid");
    tool.refused("status nowhere", 3, &["nowhere", "cannot be read"]);
    tool.refused("status prod/cluster", 3, &["holds no certificate"]);
    tool.refused("status", 2, &["PLACE"]);
}

#[test]
fn status_reads_kubeconfigs_secrets_and_config_maps() {
    let tool = Tool::new();
    let strange = Strange::new();
    let (long, short) = (Strange::spec("long", 400), Strange::spec("short", 3));
    let encoded = |spec| STANDARD.encode(strange.pem(spec, &new_key()));
    let authority = STANDARD.encode(strange.0.to_pem());
    fs::write(
        tool.dir.path("admin.conf"),
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: prod\n  cluster:\n    server: https://x\n    \
             certificate-authority-data: {authority}\nusers:\n- name: admin\n  user:\n    \
             client-certificate-data: {}\n- name: file\n  user:\n    client-certificate: one.crt\n",
            encoded(&short)
        ),
    )
    .unwrap();
    strange.put(&tool, "one.crt", &long);
    let answer = tool.run("status admin.conf");
    assert_eq!(answer.code, 1, "{}", answer.err);
    for part in [
        "cluster prod",
        "user admin",
        "user file",
        "in 3 days",
        "authority",
    ] {
        assert!(answer.out.contains(part), "{part}: {}", answer.out);
    }
    fs::write(
        tool.dir.path("secret.yaml"),
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: tls}}\ndata:\n  tls.crt: {}\n  \
             tls.key: aGVsbG8=\n---\napiVersion: v1\nkind: List\nitems:\n- kind: ConfigMap\n  \
             metadata: {{name: roots}}\n  data:\n    ca.crt: |\n{}",
            encoded(&long),
            indented(&strange.0.to_pem()),
        ),
    )
    .unwrap();
    let out = tool.ok("status secret.yaml");
    for part in ["Secret tls tls.crt", "ConfigMap roots ca.crt"] {
        assert!(out.contains(part), "{part}: {out}");
    }
    // What is damaged is told, and hides nothing.
    fs::write(
        tool.dir.path("broken.yaml"),
        "apiVersion: v1\nkind: Secret\nmetadata: {name: tls}\ndata: {tls.crt: '%%%'}\n",
    )
    .unwrap();
    let answer = tool.run("status secret.yaml broken.yaml");
    assert_eq!(answer.code, 3, "{}", answer.err);
    assert!(
        answer
            .err
            .contains("broken.yaml Secret tls tls.crt: not base64")
    );
    assert!(answer.out.contains("ConfigMap roots"));
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("      {line}\n")).collect()
}

#[test]
fn status_asks_a_server_and_one_that_speaks_no_tls_is_named() {
    let tool = Tool::with_cluster();
    tool.ok("issue --dir prod server cp-1 --dns cp.example");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let now = SystemTime::now();
    let cert = tool.dir.path("server-cp-1.crt");
    let own = Credentials::load(&cert, &cert.with_extension("key"), Role::Server, now).unwrap();
    let trust = towline_pki::Anchors::load(&tool.dir.path("prod/trust/agents.pem")).unwrap();
    let peers = towline_pki::PeerVerifier::new(
        own.identity().cluster.clone(),
        Role::Agent,
        trust,
        towline_pki::DenyList::default(),
    );
    let config = towline_pki::tls::link_server(&own, peers).unwrap();
    let served = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut connection = rustls::ServerConnection::new(config).unwrap();
        // It never comes to be: the tool hangs up when it has seen enough.
        connection.complete_io(&mut stream).unwrap_err();
        let (mut stream, _) = listener.accept().unwrap();
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .unwrap();
    });
    let out = tool.ok(&format!("status {address}"));
    assert!(out.contains("server cp-1 of prod.example"), "{out}");
    tool.refused(&format!("status {address}"), 1, &["speaks no TLS"]);
    served.join().unwrap();
    tool.refused(&format!("status {address}"), 1, &["cannot be reached"]);
}

#[test]
fn lint_finds_what_hurts_later() {
    let tool = Tool::new();
    let strange = Strange::new();
    let kubelet = |dns: &[&str], ips: &[&str]| LeafSpec {
        dns: dns.iter().map(|name| name.to_string()).collect(),
        ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        ..Strange::spec("system:node:n1", 300)
    };
    strange.put(&tool, "ip-as-name.crt", &kubelet(&["10.0.0.1"], &[]));
    strange.put(&tool, "no-address.crt", &kubelet(&["n1"], &[]));
    strange.put(
        &tool,
        "foreign.crt",
        &kubelet(&["n1", "n2.example"], &["10.0.0.1"]),
    );
    strange.put(&tool, "nameless.crt", &Strange::spec("web.example", 300));
    strange.put(
        &tool,
        "long.crt",
        &LeafSpec {
            dns: vec!["a".into()],
            ..Strange::spec("a", 2000)
        },
    );
    let no_usage = LeafSpec {
        usages: Vec::new(),
        dns: vec!["a".into()],
        ..Strange::spec("a", 9)
    };
    strange.put(&tool, "no-usage.crt", &no_usage);
    let two = LeafSpec {
        uris: vec![
            "spiffe://a/towline/agent/x".into(),
            "spiffe://a/towline/agent/y".into(),
        ],
        usages: vec![Usage::ClientAuth],
        ..Strange::spec("x", 9)
    };
    strange.put(&tool, "two.crt", &two);
    let lasting = LeafSpec {
        not_after: SystemTime::now() + 400 * DAY,
        ..kubelet(&["n1"], &["10.0.0.1", "127.0.0.1"])
    };
    strange.put(&tool, "lasting.crt", &lasting);
    let odd = LeafSpec {
        dns: vec!["a b".into()],
        ..Strange::spec("a", 9)
    };
    strange.put(&tool, "odd.crt", &odd);
    let login = LeafSpec {
        usages: vec![Usage::ClientAuth],
        ..kubelet(&["n1"], &[])
    };
    strange.put(&tool, "login.crt", &login);
    let shared = new_key();
    for name in ["one", "other"] {
        let spec = LeafSpec {
            dns: vec![name.into()],
            ..Strange::spec(name, 9)
        };
        fs::write(
            tool.dir.path(format!("shared-{name}.crt")),
            strange.pem(&spec, &shared),
        )
        .unwrap();
    }
    let answer = tool.run("lint . -o json");
    assert_eq!(answer.code, 1, "{}", answer.err);
    let findings = json(&answer.out);
    let rules_of = |file: &str| -> Vec<String> {
        let all = findings["findings"].as_array().unwrap().iter();
        let mut rules: Vec<String> = all
            .filter(|finding| finding["place"].as_str().unwrap().ends_with(file))
            .map(|finding| finding["rule"].as_str().unwrap().to_owned())
            .collect();
        rules.sort();
        rules
    };
    assert_eq!(
        rules_of("ip-as-name.crt"),
        [
            "foreign-name",
            "ip-as-dns-name",
            "kubelet-group",
            "missing-ip-name"
        ]
    );
    assert_eq!(
        rules_of("no-address.crt"),
        ["kubelet-group", "missing-ip-name"]
    );
    assert_eq!(rules_of("foreign.crt"), ["foreign-name", "kubelet-group"]);
    assert_eq!(
        rules_of("lasting.crt"),
        ["kubelet-group", "long-life", "unreachable-address"]
    );
    assert_eq!(rules_of("odd.crt"), ["malformed-name"]);
    assert_eq!(rules_of("login.crt"), ["kubelet-group", "names-in-client"]);
    assert_eq!(rules_of("nameless.crt"), ["no-names"]);
    assert_eq!(rules_of("long.crt"), ["long-life"]);
    assert_eq!(rules_of("no-usage.crt"), ["no-usage"]);
    assert_eq!(rules_of("two.crt"), ["bad-identity"]);
    assert_eq!(rules_of("shared-other.crt"), ["shared-key"]);
    assert_eq!(rules_of("shared-one.crt"), [""; 0]);
    // Only a warning: an error with --strict.
    assert!(tool.ok("lint long.crt").contains("long-life"));
    tool.refused("lint long.crt --strict", 1, &["must be mended"]);
}

#[test]
fn what_towline_makes_is_without_a_finding() {
    let tool = Tool::with_cluster();
    for args in [
        "agent n1 --ip 10.0.0.1",
        "server cp --dns cp.example",
        "client api",
        "operator al",
    ] {
        tool.ok(&format!("issue --dir prod --out prod {args}"));
    }
    let out = tool.ok("lint prod --strict");
    assert!(out.contains("9 certificates, 0 findings"), "{out}");
}

#[test]
fn needs_renewal_answers_by_exit_code() {
    let tool = Tool::with_cluster();
    tool.ok("issue --dir prod agent n1");
    tool.refused("needs-renewal agent-n1.crt", 1, &["not before"]);
    assert!(
        tool.ok("needs-renewal agent-n1.crt --days 91")
            .contains("renew it now")
    );
    tool.refused("needs-renewal agent-n1.key", 3, &["CERTIFICATE"]);
    // Two thirds of its life are over: 200 of 290 days.
    let strange = Strange::new();
    let now = SystemTime::now();
    for (begun, left, due) in [(200, 90, true), (180, 110, false), (20, 0, true)] {
        let spec = LeafSpec {
            not_before: now - begun * DAY,
            not_after: now + left * DAY,
            ..Strange::spec("a", 1)
        };
        strange.put(&tool, "a.crt", &spec);
        let code = tool.run("needs-renewal a.crt").code;
        assert_eq!(code, i32::from(!due), "{begun} {left}");
    }
}

#[test]
fn renew_keeps_who_it_is_and_puts_a_new_pair_in_its_place() {
    let tool = Tool::with_cluster();
    tool.ok("issue --dir prod agent n1 --ip 10.0.0.1,fd00::1");
    let read = |file: &str| fs::read(tool.dir.path(file)).unwrap();
    let before = json(&tool.ok("inspect agent-n1.crt -o json"));
    let (cert, key) = (read("agent-n1.crt"), read("agent-n1.key"));
    let out = tool.ok("renew agent-n1.crt --dir prod --days 30");
    let serial = before["certificates"][0]["serial"].as_str().unwrap();
    assert!(
        out.contains("(in 30 days)") && out.contains(serial),
        "{out}"
    );
    assert!(read("agent-n1.crt") != cert && read("agent-n1.key") != key);
    assert_eq!(tool.mode("agent-n1.key"), 0o600);
    let after = json(&tool.ok("inspect agent-n1.crt -o json"));
    for same in ["identity", "ips", "dns", "usages"] {
        let of = |answer: &Value| answer["certificates"][0][same].clone();
        assert_eq!(of(&before), of(&after), "{same}");
    }
    tool.ok("verify agent-n1.crt --role agent --trust prod/trust/agents.pem");
    assert!(!store::next_key(&tool.dir.path("agent-n1.key")).exists());
    let key = read("agent-n1.key");
    tool.ok("renew agent-n1.crt --dir prod --keep-key");
    assert_eq!(read("agent-n1.key"), key);

    tool.ok("init other --cluster other.example");
    tool.refused(
        "renew agent-n1.crt --dir other",
        2,
        &["is of cluster prod.example"],
    );
    tool.refused("renew agent-n1.key --dir prod", 3, &["CERTIFICATE"]);
    fs::remove_file(tool.dir.path("agent-n1.key")).unwrap();
    tool.refused(
        "renew agent-n1.crt --dir prod --keep-key",
        3,
        &["agent-n1.key"],
    );
}

#[test]
fn a_renewal_that_was_cut_off_leaves_a_pair_that_works() {
    let tool = Tool::with_cluster();
    tool.ok("issue --dir prod agent n1");
    let (cert, key) = (tool.dir.path("agent-n1.crt"), tool.dir.path("agent-n1.key"));
    let next = store::next_key(&key);
    let works = |when: &str| {
        let now = SystemTime::now();
        let loaded = Credentials::load(&cert, &key, Role::Agent, now);
        assert!(loaded.is_ok(), "{when}: {loaded:?}");
    };
    let old = (fs::read(&cert).unwrap(), fs::read(&key).unwrap());
    tool.ok("renew agent-n1.crt --dir prod");
    let new = (fs::read(&cert).unwrap(), fs::read(&key).unwrap());
    let secret = |bytes: &[u8], path| {
        let secret = towline_pki::secret::Secret::new(bytes.to_vec());
        store::write_secret(path, &secret, Replace::Atomically).unwrap();
    };
    // The three steps, and a crash after each.
    fs::write(&cert, &old.0).unwrap();
    secret(&old.1, &key);
    secret(&new.1, &next);
    works("new key written");
    fs::write(&cert, &new.0).unwrap();
    works("certificate replaced");
    fs::rename(&next, &key).unwrap();
    works("key in place");
    // A key that is of neither is still refused.
    fs::write(&cert, &old.0).unwrap();
    let stranger = PrivateKey::generate(KeyKind::EcdsaP256).unwrap().to_pem();
    store::write_secret(&next, &stranger, Replace::Atomically).unwrap();
    let error = Credentials::load(&cert, &key, Role::Agent, SystemTime::now()).unwrap_err();
    assert!(
        error.to_string().contains("not the one of the certificate"),
        "{error}"
    );
}
