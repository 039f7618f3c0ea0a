//! Keys and certificates that are not what they must be: one clear error, the right code, no file
//! touched.

mod cluster;
mod tool;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use tool::Tool;

/// Puts text in the place of a file, with its mode.
fn put(tool: &Tool, name: &str, text: &[u8]) {
    let path = tool.dir.path(name);
    let mode = fs::metadata(&path).map_or(0o600, |found| found.permissions().mode());
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode & 0o7777)).unwrap();
}

fn lines(text: &str, change: impl FnOnce(&mut Vec<String>)) -> Vec<u8> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    change(&mut lines);
    (lines.join("\n") + "\n").into_bytes()
}

/// The body of a PEM block with bytes after its end.
fn with_trailing(text: &str) -> Vec<u8> {
    use base64::Engine as _;
    let engine = base64::engine::general_purpose::STANDARD;
    let all: Vec<&str> = text.lines().collect();
    let mut der = engine.decode(all[1..all.len() - 1].concat()).unwrap();
    der.extend_from_slice(&[0x05, 0x00]);
    format!(
        "{}\n{}\n{}\n",
        all[0],
        engine.encode(der),
        all[all.len() - 1]
    )
    .into_bytes()
}

#[test]
fn an_authority_that_is_not_whole_signs_nothing() {
    let tool = Tool::new();
    put(&tool, "pass", b"correct horse battery\n");
    for dir in ["plain", "other"] {
        tool.ok(&format!("init {dir} --cluster prod.example"));
    }
    tool.ok("init sealed --cluster prod.example --encrypt-keys --passphrase-file pass");
    let read = |name: &str| fs::read_to_string(tool.dir.path(name)).unwrap();
    for dir in ["plain", "sealed"] {
        let (key, cert) = (
            format!("{dir}/issuers/agents.key"),
            format!("{dir}/issuers/agents.crt"),
        );
        let (good_key, good_cert) = (read(&key), read(&cert));
        let other_key = read("other/issuers/agents.key");
        let other_cert = read("other/issuers/agents.crt");
        let middle = |lines: &mut Vec<String>| {
            let line = &mut lines[1];
            let last = line.pop().unwrap();
            line.push(if last == 'A' { 'B' } else { 'A' });
        };
        let cut = |text: &str| text.as_bytes()[..text.len() / 2].to_vec();
        let cases: Vec<(&str, &str, Vec<u8>, &str)> = vec![
            ("empty key", &key, Vec::new(), "empty"),
            ("cut key", &key, cut(&good_key), "cut off"),
            (
                "key that is noise",
                &key,
                good_key.replace("M", "*").into_bytes(),
                "damaged",
            ),
            (
                "key with bytes behind it",
                &key,
                with_trailing(&good_key),
                "2 bytes follow",
            ),
            (
                "two keys",
                &key,
                format!("{good_key}{good_key}").into_bytes(),
                "2 private keys",
            ),
            (
                "certificate as key",
                &key,
                good_cert.clone().into_bytes(),
                "PRIVATE KEY",
            ),
            (
                "another's key",
                &key,
                other_key.into_bytes(),
                "not the one of authority",
            ),
            ("empty certificate", &cert, Vec::new(), "empty"),
            ("cut certificate", &cert, cut(&good_cert), "cut off"),
            (
                "changed certificate",
                &cert,
                lines(&good_cert, middle),
                ".crt: ",
            ),
            (
                "certificate with bytes behind it",
                &cert,
                with_trailing(&good_cert),
                "2 bytes follow",
            ),
            (
                "key as certificate",
                &cert,
                good_key.clone().into_bytes(),
                "CERTIFICATE",
            ),
            (
                "another's certificate",
                &cert,
                other_cert.into_bytes(),
                "not the one of authority",
            ),
            ("binary", &cert, vec![0x30, 0x82, 1, 1, 0], "DER"),
        ];
        for (what, file, text, word) in cases {
            // A changed byte of a certificate may be in its signature, which nobody checks here.
            if what == "changed certificate" && tool.run(&format!("inspect {file}")).code == 0 {
                continue;
            }
            let good = read(file);
            put(&tool, file, &text);
            let args = format!("issue --dir {dir} --passphrase-file pass agent n1");
            let before = tool.files();
            let answer = tool.run(&args);
            assert_eq!(
                answer.code, 3,
                "{dir}, {what}: {}{}",
                answer.out, answer.err
            );
            assert!(answer.err.contains(word), "{dir}, {what}: {}", answer.err);
            assert_eq!(
                answer.err.lines().count(),
                1,
                "{dir}, {what}: {}",
                answer.err
            );
            assert_eq!(tool.files(), before, "{dir}, {what}");
            put(&tool, file, good.as_bytes());
        }
        for mode in [0o644, 0o640 | 0o020, 0o604] {
            fs::set_permissions(tool.dir.path(&key), fs::Permissions::from_mode(mode)).unwrap();
            tool.refused(
                &format!("issue --dir {dir} --passphrase-file pass agent n1"),
                3,
                &["agents.key", "chmod 0600"],
            );
        }
        fs::set_permissions(tool.dir.path(&key), fs::Permissions::from_mode(0o600)).unwrap();
        tool.ok(&format!(
            "issue --dir {dir} --passphrase-file pass agent {dir}"
        ));
    }
}

#[test]
fn rotation_takes_no_step_over_damaged_files() {
    let tool = Tool::with_cluster();
    tool.ok("rotate prepare agents --dir prod");
    let cert = "prod/issuers/agents-next.crt";
    let good = fs::read(tool.dir.path(cert)).unwrap();
    for (text, word) in [
        (&b""[..], "empty"),
        (&good[..good.len() / 2], "cut off"),
        (
            &fs::read(tool.dir.path("prod/issuers/servers.crt")).unwrap(),
            "not the one of authority",
        ),
    ] {
        put(&tool, cert, text);
        tool.refused(
            "rotate activate agents --dir prod --force",
            3,
            &["agents-next", word],
        );
    }
    put(&tool, cert, &good);
    fs::set_permissions(
        tool.dir.path("prod/issuers/agents-next.key"),
        fs::Permissions::from_mode(0o644),
    )
    .unwrap();
    tool.refused(
        "rotate activate agents --dir prod --force",
        3,
        &["chmod 0600"],
    );
    fs::set_permissions(
        tool.dir.path("prod/issuers/agents-next.key"),
        fs::Permissions::from_mode(0o600),
    )
    .unwrap();
    tool.ok("rotate activate agents --dir prod --force");
    fs::write(
        tool.dir.path("bad.crt"),
        "-----BEGIN CERTIFICATE-----\nAAAA\n",
    )
    .unwrap();
    tool.refused(
        "rotate retire agents --dir prod --certificates bad.crt",
        3,
        &["bad.crt"],
    );
    tool.refused(
        "rotate retire agents --dir prod --certificates nowhere",
        3,
        &["nowhere"],
    );
    for seat in ["kubelet", "../agents", ""] {
        tool.refused(&format!("rotate prepare {seat} --dir prod"), 2, &[]);
    }
}
