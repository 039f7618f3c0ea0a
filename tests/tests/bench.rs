//! The bench works: a short run of the peers that need no daemon gives figures and leaves nothing.

use std::process::Command;

#[test]
fn a_quick_run_writes_figures_and_ends_what_it_started() {
    let directory = towline_tests::scratch::Scratch::new().expect("scratch directory");
    let json = directory.join("bench.json");
    let output = Command::new(env!("CARGO_BIN_EXE_towline-bench"))
        .args([
            "--quick",
            "--only",
            "^(ask|bulk.up.1)/(direct|relay)$",
            "--json",
        ])
        .arg(&json)
        .env("TMPDIR", directory.path())
        .output()
        .expect("the bench starts");
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(shown.contains("| bulk.up.1 | MB/s |"), "{shown}");

    let text = std::fs::read_to_string(&json).expect("the JSON file");
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let metrics = report["metrics"].as_array().expect("metrics");
    for wanted in ["ask.p50", "ask.p99", "bulk.up.1", "bulk.up.1.cpu.relays"] {
        let metric = metrics.iter().find(|metric| metric["metric"] == wanted);
        let metric = metric.unwrap_or_else(|| panic!("{wanted} is missing: {text}"));
        let median = metric["peers"]["relay"]["spread"]["median"].as_f64();
        assert!(median.is_some_and(|median| median >= 0.0), "{metric}");
    }
    // Its own directory is gone; only the file that was asked for is left.
    let left: Vec<_> = std::fs::read_dir(directory.path())
        .expect("directory")
        .collect();
    assert_eq!(left.len(), 1, "{left:?}");
}
