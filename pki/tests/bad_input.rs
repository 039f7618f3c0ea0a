//! Bad input to every verb: damaged files, files of the wrong kind, names that must not be names,
//! numbers out of range, readers that went away. One clear error, the documented code, no file
//! touched.

mod cluster;
mod tool;

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use cluster::{have_openssl, openssl};
use tool::Tool;
use tool::damage::{DAMAGES, Kind, one_clear_error};

/// What a command line reads: the file that is damaged, and what kind it is of.
const READERS: &[(&str, &str, Kind)] = &[
    ("inspect a.crt", "a.crt", Kind::Certificate),
    ("inspect a.csr", "a.csr", Kind::Request),
    (
        "verify a.crt --role agent --trust prod/trust/agents.pem",
        "a.crt",
        Kind::Certificate,
    ),
    (
        "verify a.crt --role agent --trust prod/trust/agents.pem",
        "prod/trust/agents.pem",
        Kind::Certificate,
    ),
    (
        "verify a.crt --role kubelet --node n1 --trust prod/trust/agents.pem",
        "prod/trust/agents.pem",
        Kind::Certificate,
    ),
    (
        "verify a.crt --role kube-apiserver --trust prod/trust/agents.pem",
        "prod/trust/agents.pem",
        Kind::Certificate,
    ),
    (
        "verify 127.0.0.1:9 --role server --trust prod/trust/servers.pem --cert a.crt --key a.key",
        "a.key",
        Kind::Key,
    ),
    ("needs-renewal a.crt", "a.crt", Kind::Certificate),
    ("renew a.crt --dir prod", "a.crt", Kind::Certificate),
    ("renew a.crt --dir prod --keep-key", "a.key", Kind::Key),
    (
        "renew a.crt --dir prod",
        "prod/issuers/agents.key",
        Kind::Key,
    ),
    (
        "renew a.crt --dir prod",
        "prod/issuers/agents.crt",
        Kind::Certificate,
    ),
    (
        "issue --dir prod agent n2",
        "prod/issuers/agents.crt",
        Kind::Certificate,
    ),
    (
        "issue --dir prod agent n2",
        "prod/issuers/agents.key",
        Kind::Key,
    ),
    (
        "issue --ca-cert ca.crt --ca-key ca.key --cluster c agent n2",
        "ca.crt",
        Kind::Certificate,
    ),
    (
        "issue --ca-cert ca.crt --ca-key ca.key --cluster c agent n2",
        "ca.key",
        Kind::Key,
    ),
    (
        "sign a.csr --dir prod --role agent --name n2",
        "a.csr",
        Kind::Request,
    ),
    (
        "sign a.csr --dir prod --role agent --name n2",
        "prod/issuers/agents.key",
        Kind::Key,
    ),
    (
        "kubelet-client --ca-cert ca.crt --ca-key ca.key",
        "ca.crt",
        Kind::Certificate,
    ),
    (
        "kubelet-client --ca-cert ca.crt --ca-key ca.key",
        "ca.key",
        Kind::Key,
    ),
    ("export pem --cert a.crt", "a.crt", Kind::Certificate),
    ("export pem --cert a.crt --key a.key", "a.key", Kind::Key),
    (
        "export pem --cert a.crt --chain ca.crt",
        "ca.crt",
        Kind::Certificate,
    ),
    (
        "export secret s --cert a.crt --key a.key",
        "a.crt",
        Kind::Certificate,
    ),
    (
        "export secret s --cert a.crt --key a.key",
        "a.key",
        Kind::Key,
    ),
    (
        "export secret s --cert a.crt --key a.key --ca ca.crt",
        "ca.crt",
        Kind::Certificate,
    ),
    ("export secret s --from a.key", "a.key", Kind::Key),
    (
        "export config-map c --from ca.crt",
        "ca.crt",
        Kind::Certificate,
    ),
    (
        "export kubeconfig --server https://x --ca ca.crt --cert a.crt --key a.key",
        "a.key",
        Kind::Key,
    ),
    (
        "export kubeconfig --server https://x --ca ca.crt --cert a.crt --key a.key",
        "ca.crt",
        Kind::Certificate,
    ),
    ("status a.crt", "a.crt", Kind::Certificate),
    ("lint a.crt", "a.crt", Kind::Certificate),
];

fn world() -> Tool {
    let tool = Tool::with_cluster();
    tool.ok("issue --dir prod agent n1");
    tool.ok("request agent n1 --out prod");
    for (from, to) in [
        ("agent-n1.crt", "a.crt"),
        ("agent-n1.key", "a.key"),
        ("prod/agent-n1.csr", "a.csr"),
        ("prod/root/root.crt", "ca.crt"),
        ("prod/root/root.key", "ca.key"),
    ] {
        fs::copy(tool.dir.path(from), tool.dir.path(to)).unwrap();
    }
    tool
}

#[test]
fn damaged_files_are_refused_by_every_verb_that_reads_them() {
    let tool = world();
    for (args, file, kind) in READERS {
        let path = tool.dir.path(file);
        let good = fs::read(&path).unwrap();
        for (damage, change) in DAMAGES {
            let Some(bad) = change(&good, *kind) else {
                continue;
            };
            fs::write(&path, bad).unwrap();
            let before = tool.files();
            let answer = tool.run(args);
            one_clear_error(&answer, &[3], file, &format!("{args}, {file} {damage}"));
            assert_eq!(tool.files(), before, "{args}, {file} {damage}");
        }
        fs::write(&path, &good).unwrap();
    }
}

#[test]
fn files_that_are_not_there_or_no_files_are_refused() {
    let tool = world();
    for (args, file, _) in READERS {
        let (path, aside) = (tool.dir.path(file), tool.dir.path("aside"));
        fs::rename(&path, &aside).unwrap();
        one_clear_error(&tool.run(args), &[3], file, &format!("{args}, no {file}"));
        // A place that may be a folder is looked through.
        if !args.starts_with("status") && !args.starts_with("lint") {
            fs::create_dir(&path).unwrap();
            one_clear_error(
                &tool.run(args),
                &[3],
                file,
                &format!("{args}, a folder {file}"),
            );
            fs::remove_dir(&path).unwrap();
        }
        fs::rename(&aside, &path).unwrap();
    }
}

#[test]
fn keys_that_others_read_or_that_are_of_somebody_else_are_refused() {
    let tool = world();
    let stranger = fs::read(tool.dir.path("prod/agent-n1.key")).unwrap();
    let two = [stranger.clone(), stranger.clone()].concat();
    let keys = READERS.iter().filter(|(.., kind)| *kind == Kind::Key);
    for (args, file, _) in keys {
        let path = tool.dir.path(file);
        let good = fs::read(&path).unwrap();
        let try_it = |what: &str, code: i32| {
            let before = tool.files();
            let answer = tool.run(args);
            one_clear_error(&answer, &[code], "", &format!("{args}, {file} {what}"));
            assert_eq!(tool.files(), before, "{args}, {file} {what}");
            answer.err
        };
        for mode in [0o644, 0o604, 0o620] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert!(try_it("readable", 3).contains("chmod 0600"));
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, &two).unwrap();
        assert!(try_it("two", 3).contains("2 private keys"), "{args}");
        // An Opaque Secret says nothing of what belongs together.
        if !args.contains("--from") {
            fs::write(&path, &stranger).unwrap();
            try_it("somebody else's", 3);
        }
        fs::write(&path, &good).unwrap();
    }
}

#[test]
fn keys_under_a_passphrase_are_said_to_be_that() {
    if !have_openssl() {
        return;
    }
    let tool = world();
    fs::write(tool.dir.path("pass"), "correct horse battery\n").unwrap();
    for (form, args) in [
        (
            "PKCS#8",
            "pkcs8 -topk8 -in a.key -out locked.key -passout file:pass",
        ),
        (
            "traditional",
            "ec -in a.key -aes256 -out locked.key -passout file:pass",
        ),
    ] {
        openssl(tool.dir.root(), args);
        let locked = fs::read(tool.dir.path("locked.key")).unwrap();
        fs::remove_file(tool.dir.path("locked.key")).unwrap();
        // Nobody is asked without a terminal; a form that cannot be opened is said to be that.
        let (code, word) = match form {
            "PKCS#8" => (1, "--passphrase-file"),
            _ => (3, "encrypted"),
        };
        for (args, code, word) in [
            ("export pem --cert a.crt --key a.key", code, word),
            ("export secret s --cert a.crt --key a.key", code, word),
            ("export secret s --from a.key", code, word),
            ("renew a.crt --dir prod --keep-key", 3, "encrypted"),
            (
                "verify 127.0.0.1:9 --role server --trust prod/trust/servers.pem --cert a.crt --key a.key",
                3,
                "encrypted",
            ),
        ] {
            let path = tool.dir.path("a.key");
            let good = fs::read(&path).unwrap();
            fs::write(&path, &locked).unwrap();
            let before = tool.files();
            let answer = tool.run(args);
            one_clear_error(&answer, &[code], "a.key", &format!("{args}, {form}"));
            assert!(answer.err.contains(word), "{}", answer.err);
            assert_eq!(tool.files(), before, "{args}");
            fs::write(&path, good).unwrap();
        }
    }
}

/// What no name may be. The last of them is too long for any.
const NAMES: &[&str] = &[
    "",
    "..",
    "../n1",
    "/etc/n1",
    "a/b",
    "a\\b",
    "a b",
    "a\nb",
    "a\u{1b}[31m",
    "a\u{202e}b",
    "*",
    "*.example",
    "a*",
    "N1",
    "a_b",
    "-a",
    "a-",
    "a..b",
    "ä",
    "a%2fb",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
];

#[test]
fn names_that_are_none_are_refused_before_anything_is_made() {
    let tool = world();
    for name in NAMES {
        for (args, code) in [
            (&["init", "new", "--cluster", name][..], 2),
            (&["issue", "--dir", "prod", "agent", "--", name], 2),
            (
                &["issue", "--dir", "prod", "server", "s1", "--dns", name],
                2,
            ),
            (&["issue", "--dir", "prod", "agent", "n2", "--ip", name], 2),
            (&["request", "agent", "--", name], 2),
            (
                &[
                    "sign", "a.csr", "--dir", "prod", "--role", "agent", "--name", name,
                ],
                2,
            ),
            (&["export", "secret", "--from", "a.key", "--", name], 2),
            (
                &["export", "config-map", "c", "-n", name, "--from", "ca.crt"],
                2,
            ),
        ] {
            // What clients put into names of hosts, whatever the standard says.
            if args.contains(&"--dns") && ["N1", "a_b"].contains(name) {
                continue;
            }
            let before = tool.files();
            let answer = tool.run_with(args);
            let what = format!("{args:?}: {}{}", answer.out, answer.err);
            assert_eq!(answer.code, code, "{what}");
            assert!(!answer.err.is_empty() && answer.out.is_empty(), "{what}");
            let plain = |c: char| c == '\n' || !c.is_control();
            assert!(answer.err.chars().all(plain), "{what:?}");
            assert_eq!(tool.files(), before, "{what}");
        }
    }
}

#[test]
fn numbers_out_of_range_are_refused() {
    let tool = world();
    let numbers = [
        "0",
        "-1",
        "36501",
        "1.5",
        "1e3",
        "ten",
        "",
        "99999999999999999999999",
    ];
    for number in numbers {
        for args in [
            &["init", "new", "--cluster", "c", "--issuer-days", number][..],
            &["init", "new", "--cluster", "c", "--root-days", number],
            &["issue", "--dir", "prod", "agent", "n2", "--days", number],
            &["renew", "a.crt", "--dir", "prod", "--days", number],
            &["gateway-issuer", "--dir", "prod", "--days", number],
            &[
                "kubelet-client",
                "--ca-cert",
                "ca.crt",
                "--ca-key",
                "ca.key",
                "--days",
                number,
            ],
        ] {
            let before = tool.files();
            let answer = tool.run_with(args);
            assert_eq!(answer.code, 2, "{args:?}: {}", answer.err);
            assert!(answer.err.contains(number), "{args:?}: {}", answer.err);
            assert_eq!(tool.files(), before, "{args:?}");
        }
        // Nought is a threshold.
        if number != "0" {
            for verb in ["status", "needs-renewal"] {
                let answer = tool.run_with(&[verb, "a.crt", "--days", number]);
                assert_eq!(answer.code, 2, "{verb} {number}");
            }
        }
    }
    // What a role may not live.
    for (role, days) in [
        ("agent", 401),
        ("server", 826),
        ("client", 826),
        ("operator", 91),
    ] {
        tool.refused(
            &format!("issue --dir prod {role} x --days {days}"),
            2,
            &[&format!("{days} days"), role],
        );
    }
    // The longest that can be said, beyond 2049: read back by ourselves and by openssl.
    tool.ok("init far --cluster far --root-days 36500 --issuer-days 36499");
    let out = tool.ok("inspect far/root/root.crt");
    assert!(
        out.contains("in 36500 days") || out.contains("in 36499 days"),
        "{out}"
    );
    if have_openssl() {
        let verdict = openssl(
            tool.dir.root(),
            "verify -CAfile far/root/root.crt far/issuers/agents.crt",
        );
        assert!(verdict.contains("OK"), "{verdict}");
    }
}

#[test]
fn a_place_that_cannot_be_written_leaves_nothing_behind() {
    let tool = world();
    fs::write(tool.dir.path("file"), "").unwrap();
    for args in [
        "issue --dir prod agent n2 --out nowhere",
        "issue --dir prod agent n2 --out file",
        "request agent n2 --out nowhere",
        "request agent n2 --out file",
        "sign a.csr --dir prod --role agent --name n2 --out nowhere",
        "audit-key --out nowhere",
        "kubelet-client --ca-cert ca.crt --ca-key ca.key --out nowhere",
        "export pem --cert a.crt --out nowhere/x.pem",
        "export pem --cert a.crt --out file/x.pem",
        "export secret s --cert a.crt --key a.key --out nowhere/s.yaml",
        "init file --cluster c",
    ] {
        let before = tool.files();
        let answer = tool.run(args);
        assert_eq!(answer.code, 1, "{args}: {}", answer.err);
        assert_eq!(answer.err.matches("towline-pki: ").count(), 1, "{args}");
        assert_eq!(tool.files(), before, "{args}");
    }
}

#[test]
fn a_reader_that_went_away_is_no_panic() {
    let tool = world();
    for args in [
        "--help",
        "issue --help",
        "inspect a.crt",
        "inspect a.crt -o json",
        "status prod",
        "status a.crt --days 200",
        "lint prod -o json",
        "export pem --cert a.crt",
        "export secret s --cert a.crt --key a.key",
        "inspect nowhere",
    ] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_towline-pki"))
            .args(args.split_whitespace())
            .current_dir(tool.dir.root())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut err = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut err)
            .unwrap();
        let code = child.wait().unwrap().code();
        assert!(!err.contains("panicked"), "{args}: {err}");
        // The code is that of the verb, whoever reads.
        assert_eq!(code, Some(tool.run(args).code), "{args}: {err}");
        // Nor is one that does not want to hear of errors.
        let mut child = Command::new(env!("CARGO_BIN_EXE_towline-pki"))
            .args(args.split_whitespace())
            .current_dir(tool.dir.root())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stderr.take());
        assert_eq!(child.wait().unwrap().code(), code, "{args}");
    }
}
