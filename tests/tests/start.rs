//! What a program says of its command line before it starts: authorities that could sign too much,
//! and what is missing.

use tokio::process::Command;
use towline_tests::program::program;
use towline_tests::scratch::Scratch;

/// Whoever signs servers must not sign agents: said where it can be seen, refused where it may be.
#[tokio::test]
async fn an_authority_for_two_roles_is_named_at_the_start() {
    let scratch = Scratch::new().unwrap();
    let run = |name: &'static str, line: String| {
        let mut command = Command::new(program(name));
        let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
        command.args(words).current_dir(scratch.path()).output()
    };
    for line in ["init pki --cluster c", "issue server s1 --dir pki"] {
        let made = run("towline-pki", line.to_owned()).await.unwrap();
        assert!(made.status.success());
    }
    let base = "--check-config --cert server-s1.crt --key server-s1.key --kubelet-verification off --door-unix d";
    let root = "pki/root/root.crt: O=c, CN=towline root";
    for (flags, code, words) in [
        ("--agent-ca pki/trust/agents.pem", 0, ""),
        (
            "--agent-ca pki/trust/agents.pem --client-ca pki/trust/servers.pem",
            0,
            "",
        ),
        (
            "--agent-ca pki/trust/servers.pem",
            3,
            "error: pki/trust/servers.pem: ",
        ),
        (
            "--agent-ca pki/root/root.crt --client-ca pki/trust/servers.pem",
            3,
            "signed O=c, CN=towline servers",
        ),
        // A root by its own word, of which nothing else is seen.
        ("--agent-ca pki/root/root.crt", 0, root),
        // One authority for everything is what some clusters have that come from Konnectivity.
        (
            "--agent-ca pki/trust/servers.pem --compatibility=konnectivity",
            0,
            "warning: pki/trust/servers.pem: ",
        ),
    ] {
        let output = run("towline-server", format!("{base} {flags}"))
            .await
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{flags}: {said}");
        assert!(said.contains(words), "{flags}: {said}");
        assert_eq!(said.is_empty(), words.is_empty(), "{flags}: {said}");
        assert_eq!(
            words.is_empty(),
            !said.contains("trust/agents.pem of `towline-pki init`"),
            "{said}"
        );
    }
}

#[tokio::test]
async fn what_is_missing_is_named_with_every_way_to_give_it() {
    let profile = "--compatibility=konnectivity";
    for (name, words, expected) in [
        (
            "towline-agent",
            &[][..],
            "--enrol server or --enrol kubernetes",
        ),
        (
            "towline-server",
            &[profile],
            "--uds-name PATH with --server-port 0",
        ),
        (
            "towline-server",
            &[profile, "--uds-name", "/x", "--server-port", "0"],
            "give --cluster-cert and --cluster-key",
        ),
        (
            "towline-server",
            &[profile, "--tls-min-version", "1.3"],
            "use VersionTLS10, VersionTLS11, VersionTLS12 or VersionTLS13",
        ),
    ] {
        let output = Command::new(program(name))
            .args(words)
            .output()
            .await
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains(expected),
            "{said}"
        );
    }
}
