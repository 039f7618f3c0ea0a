//! One decision of the policy with 1,000 rules, in this process, through the whole of the server's
//! check: built-in refusals, look-up, rules, permit.

use std::fmt::Write;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use towline_link::process::policy_file::PolicyFile;
use towline_proto::policy::Asker;
use towline_proto::target::{Class, Target};
use towline_server::policy::Policy;

use super::super::failure::{During, Result};
use super::super::stats::Latency;
use super::{Turn, Value};

/// Rules of each file.
const RULES: usize = 1_000;
/// Decisions of one sample.
const DECISIONS: usize = 200_000;

pub fn run(turn: &Turn<'_>) -> Result<Vec<Value>> {
    let mut values = Vec::new();
    for (word, rules) in [
        ("mixed", mixed()),
        ("classes", classes()),
        ("patterns", patterns()),
    ] {
        let began = Instant::now();
        let file = PolicyFile::parse(rules.as_bytes()).during(word)?;
        let read = began.elapsed();
        let latency = decide(&Policy::new(Arc::clone(&file.rules)))?;
        values.push(turn.value(&format!("{word}.p50"), "us", latency.p50));
        values.push(turn.value(&format!("{word}.p99"), "us", latency.p99));
        values.push(turn.value(&format!("{word}.read"), "ms", read.as_secs_f64() * 1e3));
    }
    Ok(values)
}

fn decide(policy: &Policy) -> Result<Latency> {
    let mut asked = Vec::new();
    for number in 0..256 {
        for (text, class) in [
            (format!("10.0.{number}.7:10250"), Class::Kubelet),
            (format!("10.244.{number}.9:8080"), Class::Pod),
            (format!("[fd00::{number:x}]:443"), Class::Service),
            (format!("hook-{number}.team.svc:8443"), Class::Service),
        ] {
            asked.push((text.parse::<Target>().during("target")?, class));
        }
    }
    let front_ends = [
        Asker::Local { uid: 0, gid: 0 },
        Asker::Client("kube-apiserver"),
        Asker::Client("metrics-reader"),
    ];
    let began = Instant::now();
    let mut nanos = Vec::with_capacity(DECISIONS);
    for number in 0..DECISIONS {
        let (target, class) = &asked[number % asked.len()];
        let asker = front_ends[number % front_ends.len()];
        let start = Instant::now();
        let decided = policy.check_asker(black_box(target), *class, asker, Some("n7"));
        nanos.push(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
        drop(black_box(decided));
    }
    Ok(Latency::of(nanos, began.elapsed().as_secs_f64()))
}

/// As an operator writes them: prefixes, names, ports, front ends, some deny.
fn mixed() -> String {
    let mut text = head();
    for number in 0..RULES {
        let rule = match number % 5 {
            0 => format!(
                "action: allow, classes: [kubelet], to: [10.0.{}.0/24], from: [uid:0]",
                number % 256
            ),
            1 => format!(
                "action: allow, classes: [pod], ports: [{}], to: [10.244.{}.0/24]",
                8000 + number,
                number % 256
            ),
            2 => format!(
                "action: allow, to: [hook-{number}.team.svc], ports: [8443], from: [client:kube-apiserver]"
            ),
            3 => format!(
                "action: deny, to: [10.244.{}.{}]",
                number % 256,
                number / 4 % 256
            ),
            _ => format!("action: allow, to: [\"fd00:{number:x}::/64\"], nodes: [\"n{number}-*\"]"),
        };
        line(&mut text, number, &rule);
    }
    text
}

/// Nothing to look up by, and none that applies: every rule is asked.
fn classes() -> String {
    let mut text = head();
    for number in 0..RULES {
        let rule = "action: allow, classes: [kubelet, pod, service], ports: [1-79, 81-442], from: [client:nobody]";
        line(&mut text, number, rule);
    }
    text
}

/// The same with patterns of names, nodes and front ends.
fn patterns() -> String {
    let mut text = head();
    for number in 0..RULES {
        let rule = format!(
            "action: deny, to: [\"*-{number}.*.example\", 10.0.0.0/8, \"fd00::/8\"], nodes: [\"*-{number}\"], from: [\"client:*-{number}\", uid:{number}]"
        );
        line(&mut text, number, &rule);
    }
    text
}

fn head() -> String {
    "version: 1\nrules:\n".to_owned()
}

fn line(text: &mut String, number: usize, rule: &str) {
    // A string takes everything.
    let _ = writeln!(text, "  - {{name: r{number}, {rule}}}");
}
