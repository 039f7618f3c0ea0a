//! Bad input to the verbs that change authorities, lists, tokens and whole clusters: one clear error,
//! the documented code, and not a file is touched.

mod cluster;
mod tool;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use cluster::{have_openssl, openssl};
use tool::Tool;
use tool::damage::{DAMAGES, Kind, one_clear_error};

use Kind::{Certificate, Journal, Key, List, Request, Text};

/// What a command line reads: the file that is damaged, and what kind it is of.
const READERS: &[(&str, &[(&str, Kind)])] = &[
    (
        "rotate prepare agents --dir prod",
        &[
            ("prod/issuers/agents.crt", Certificate),
            ("prod/root/root.crt", Certificate),
            ("prod/root/root.key", Key),
            ("prod/trust/agents.crl", List),
            ("prod/revoked.jsonl", Journal),
        ],
    ),
    (
        "rotate activate agents --dir ready --reports status.pem --nodes names",
        &[
            ("ready/issuers/agents-next.crt", Certificate),
            ("ready/issuers/agents-next.key", Key),
        ],
    ),
    (
        "rotate retire agents --dir over",
        &[
            ("over/issuers/agents-old.crt", Certificate),
            ("over/issued.jsonl", Journal),
        ],
    ),
    (
        "accept issuer.crt --dir ext",
        &[
            ("issuer.crt", Certificate),
            ("ext/issuers/agents.csr", Request),
            ("ext/issuers/agents.key", Key),
        ],
    ),
    (
        "accept n9.crt --role agent --name n9 --cluster prod.example --trust prod/trust/agents.pem",
        &[
            ("n9.crt", Certificate),
            ("agent-n9.key", Key),
            ("prod/trust/agents.pem", Certificate),
        ],
    ),
    (
        "sign-issuer ext.csr --issuer agents --cluster ext.example --root root",
        &[
            ("ext.csr", Request),
            ("root/root/root.crt", Certificate),
            ("root/root/root.key", Key),
        ],
    ),
    (
        "sign k.csr --role kubelet-serving --name n1 --ip 10.0.0.7 --ca-cert ca.crt --ca-key ca.key",
        &[("k.csr", Request), ("ca.crt", Certificate), ("ca.key", Key)],
    ),
    (
        "revoke --dir prod --cert a.crt",
        &[
            ("a.crt", Certificate),
            ("prod/issuers/agents.key", Key),
            ("prod/trust/agents.pem", Certificate),
            ("prod/trust/agents.crl", List),
            ("prod/trust/denied", Text),
            ("prod/revoked.jsonl", Journal),
        ],
    ),
    (
        "revoke --dir prod --identity agent/n1",
        &[
            ("prod/issued.jsonl", Journal),
            ("prod/trust/denied", Text),
            ("prod/trust/agents.crl", List),
            ("prod/issuers/agents.key", Key),
        ],
    ),
    (
        "revoke --dir prod --lift agent/gone",
        &[("prod/trust/denied", Text)],
    ),
    ("issue --dir prod agent n2", &[("prod/trust/denied", Text)]),
    (
        "crl renew --dir prod",
        &[
            ("prod/trust/agents.crl", List),
            ("prod/issuers/agents.key", Key),
            ("prod/revoked.jsonl", Journal),
        ],
    ),
    (
        "crl show --dir prod",
        &[
            ("prod/trust/agents.crl", List),
            ("prod/revoked.jsonl", Journal),
        ],
    ),
    (
        "crl verify prod/trust/agents.crl --trust prod/trust/agents.pem",
        &[
            ("prod/trust/agents.crl", List),
            ("prod/trust/agents.pem", Certificate),
        ],
    ),
    (
        "verify a.crt --role agent --trust prod/trust/agents.pem --crl prod/trust/agents.crl --deny-list prod/trust/denied",
        &[("prod/trust/agents.crl", List), ("prod/trust/denied", Text)],
    ),
    (
        "token create n3 --dir prod --tokens tokens",
        &[("tokens", Text), ("prod/trust/servers.pem", Certificate)],
    ),
    ("token list --tokens tokens", &[("tokens", Text)]),
    (
        "token revoke 4f2a9c0d11223344 --tokens tokens",
        &[("tokens", Text)],
    ),
    (
        "apply -f more.yaml -d whole",
        &[
            ("more.yaml", Text),
            ("whole/pki/ca.crt", Certificate),
            ("whole/pki/ca.key", Key),
            ("whole/pki/sa.key", Key),
            ("whole/issuers/agents.key", Key),
            ("whole/hosts/node-1/towline/agent.crt", Certificate),
            ("whole/hosts/node-1/towline/agent.key", Key),
            ("whole/trust/agents.crl", List),
            ("whole/trust/denied", Text),
        ],
    ),
    (
        "export pkcs12 --cert a.crt --key a.key --out a.p12 --passphrase-file pass",
        &[("a.crt", Certificate), ("a.key", Key), ("pass", Text)],
    ),
    (
        "export config-map lists --from prod/trust/agents.crl",
        &[("prod/trust/agents.crl", List)],
    ),
];

const CLUSTER: &str = "\
version: 1
cluster: whole.example
controlPlanes:
  - {name: cp-1, addresses: [10.0.0.1]}
nodes:
  - {name: node-1, addresses: [10.0.1.1]}
";

/// Where every command line above would do what it says.
fn world() -> Tool {
    let tool = Tool::new();
    let put = |name: &str, text: &str| {
        fs::write(tool.dir.path(name), text).unwrap();
        fs::set_permissions(tool.dir.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    };
    put("cluster.yaml", CLUSTER);
    put("more.yaml", &CLUSTER.replace("10.0.1.1", "10.0.1.9"));
    put("names", "status\n");
    put("pass", "correct horse battery\n");
    for dir in ["prod", "ready", "over"] {
        tool.ok(&format!("init {dir} --cluster prod.example"));
        tool.ok(&format!("crl renew --dir {dir}"));
    }
    for dir in ["ready", "over"] {
        tool.ok(&format!("rotate prepare agents --dir {dir}"));
    }
    tool.ok("rotate activate agents --dir over --force");
    tool.ok("init root --root-only --organisation example.org");
    tool.ok("init ext --cluster ext.example --external-root");
    tool.ok("sign-issuer ext/issuers/agents.csr --issuer agents --cluster ext.example --root root");
    tool.ok("issue --dir prod agent n1");
    tool.ok("revoke --dir prod --identity agent/gone");
    tool.ok("request agent n9");
    tool.ok("sign agent-n9.csr --dir prod --role agent --name n9");
    tool.ok("token create n1 --dir prod --tokens tokens");
    tool.ok("apply -f cluster.yaml -d whole");
    tool.ok("crl renew --dir whole");
    for (from, to) in [
        ("agent-n1.crt", "a.crt"),
        ("agent-n1.key", "a.key"),
        ("root/root/root.crt", "ca.crt"),
        ("root/root/root.key", "ca.key"),
        ("ext/issuers/agents.csr", "ext.csr"),
        ("ready/issuers/agents-next.crt", "status.pem"),
    ] {
        fs::copy(tool.dir.path(from), tool.dir.path(to)).unwrap();
    }
    // The verbs would write these names anew.
    for (from, to) in [
        ("issuer-agents.crt", "issuer.crt"),
        ("agent-n9.crt", "n9.crt"),
    ] {
        fs::rename(tool.dir.path(from), tool.dir.path(to)).unwrap();
    }
    openssl(
        tool.dir.root(),
        "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -keyout k.key -out k.csr \
         -subj /O=system:nodes/CN=system:node:n1 -addext subjectAltName=DNS:n1,IP:10.0.0.7 \
         -addext keyUsage=critical,digitalSignature -addext extendedKeyUsage=serverAuth",
    );
    tool
}

#[test]
fn damaged_files_are_refused_and_nothing_is_begun() {
    if !have_openssl() {
        return;
    }
    let tool = world();
    let mut wrong = 0;
    for (args, files) in READERS {
        for (file, kind) in *files {
            let path = tool.dir.path(file);
            let good = fs::read(&path).unwrap();
            for (damage, change) in DAMAGES {
                let Some(bad) = change(&good, *kind) else {
                    continue;
                };
                fs::write(&path, bad).unwrap();
                let before = tool.files();
                let answer = tool.run(args);
                let what = format!("{args}, {file} {damage}");
                let codes: &[i32] = match kind {
                    Journal => &[1, 3],
                    _ => &[3],
                };
                let judged = std::panic::catch_unwind(|| {
                    one_clear_error(&answer, codes, file, &what);
                    assert_eq!(names(&tool.files(), &before), Vec::<&str>::new(), "{what}");
                });
                wrong += usize::from(judged.is_err());
            }
            fs::write(&path, &good).unwrap();
        }
    }
    assert_eq!(wrong, 0, "see above");
}

/// Keys that others may read are refused by every verb that signs.
#[test]
fn keys_that_others_read_are_refused_and_nothing_is_begun() {
    if !have_openssl() {
        return;
    }
    let tool = world();
    for (args, files) in READERS {
        for (file, _) in files.iter().filter(|(_, kind)| *kind == Key) {
            let path = tool.dir.path(file);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
            let before = tool.files();
            let answer = tool.run(args);
            let what = format!("{args}, {file}");
            one_clear_error(&answer, &[3], file, &what);
            assert!(answer.err.contains("chmod 0600"), "{what}: {}", answer.err);
            assert_eq!(names(&tool.files(), &before), Vec::<&str>::new(), "{what}");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
    }
}

/// The command lines above do what they say when nothing is wrong: otherwise they prove nothing.
#[test]
fn whole_files_are_taken() {
    if !have_openssl() {
        return;
    }
    let world = world();
    for (args, _) in READERS {
        // No token has that number.
        let code = i32::from(args.starts_with("token revoke"));
        let tool = Tool::new();
        let from = format!("{}/.", world.dir.root().display());
        let copied = std::process::Command::new("cp")
            .args(["-a", &from])
            .arg(tool.dir.root())
            .status();
        assert!(copied.unwrap().success());
        let answer = tool.run(args);
        assert_eq!(answer.code, code, "{args}: {}", answer.err);
    }
}

/// What differs.
fn names<'a>(one: &'a [(String, Vec<u8>)], other: &'a [(String, Vec<u8>)]) -> Vec<&'a str> {
    let missing = |left: &'a [(String, Vec<u8>)], right: &'a [(String, Vec<u8>)]| {
        let gone = left.iter().filter(move |file| !right.contains(file));
        gone.map(|(name, _)| name.as_str())
    };
    missing(one, other).chain(missing(other, one)).collect()
}
