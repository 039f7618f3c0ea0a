//! The demo is a promise of README: it ends with 0 within ten seconds, and what `--keep` prints
//! can be copied.

use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use towline_tests::scenario::expect;

const DEMO: &str = env!("CARGO_BIN_EXE_towline-demo");

#[tokio::test]
async fn the_demo_ends_well_within_ten_seconds() {
    let begun = Instant::now();
    let output = expect("the end of the demo", Command::new(DEMO).output())
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
    for promised in [
        "(quic)",
        "(tls)",
        "never a target",
        "says wrong-ca",
        "exec",
        "denied",
        "drains",
        "everything above happened",
    ] {
        assert!(said.contains(promised), "{promised} is missing in:\n{said}");
    }
}

#[tokio::test]
#[ignore = "needs curl with HTTPS proxies"]
async fn the_curl_lines_of_a_kept_demo_work() {
    let curl = Command::new("curl").arg("--version").output().await;
    let curl = String::from_utf8(curl.expect("curl").stdout).expect("text");
    assert!(
        curl.contains("HTTPS-proxy"),
        "this curl speaks to no HTTPS proxy: {curl}"
    );
    let mut demo = Command::new(DEMO)
        .arg("--keep")
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    let mut commands = Vec::new();
    let mut command = String::new();
    while let Some(line) = expect("the next line", lines.next_line()).await.unwrap() {
        if line.starts_with("Ctrl-C") {
            break;
        }
        if command.is_empty() && !line.starts_with("curl ") {
            continue;
        }
        command.push_str(line.trim_end_matches('\\'));
        if !line.ends_with('\\') {
            commands.push(std::mem::take(&mut command));
        }
    }
    let mut answers = Vec::new();
    for command in &commands {
        let limited = format!("{command} --silent --show-error --max-time 3");
        let output = expect("curl", Command::new("sh").args(["-c", &limited]).output())
            .await
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        answers.push(String::from_utf8_lossy(&said).into_owned());
    }
    let [health, log, refused] = answers.as_slice() else {
        panic!("three lines were promised: {commands:?}");
    };
    assert_eq!(health, "ok", "{}", commands[0]);
    assert!(log.contains("n2: "), "{}: {log}", commands[1]);
    assert!(
        refused.contains("never a target"),
        "{}: {refused}",
        commands[2]
    );
    let pid = demo
        .id()
        .and_then(|id| Pid::from_raw(id.cast_signed()))
        .unwrap();
    kill_process(pid, Signal::INT).unwrap();
    assert!(
        expect("the end of the demo", demo.wait())
            .await
            .unwrap()
            .success()
    );
}
