//! The guide from Konnectivity to Towline says what is so: its flags are the programs', its manifests start
//! them, its metric names exist.
//!
//! The tables of flags are made from the programs: when a test fails it prints the block that belongs there.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, Command, Parser};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
        .to_path_buf()
}

fn file(name: &str) -> String {
    let path = root().join("server/deploy/konnectivity").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn flag_table(command: &Command) -> String {
    let mut table = String::from("| flag | meaning here |\n|---|---|\n");
    for arg in command.get_arguments() {
        let Some(long) = arg.get_long().filter(|long| *long != "help") else {
            continue;
        };
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        let help = help.replace('|', "\\|");
        writeln!(table, "| `--{long}` | {help} |").expect("a string");
    }
    table
}

fn of<A: Args>() -> Command {
    A::augment_args(Command::new("flags"))
}

#[test]
fn the_guide_lists_every_flag_of_both_programs() {
    let guide = file("README.md");
    for command in [
        of::<towline_server::compat::KonnectivityArgs>(),
        of::<towline_agent::konnectivity::args::KonnectivityArgs>(),
    ] {
        let table = flag_table(&command);
        assert!(guide.contains(&table), "the guide does not hold\n\n{table}");
    }
}

/// The command line of the first container of a manifest.
fn command_line(name: &str) -> Vec<String> {
    let text = file(name);
    let mut lines = text.lines().skip_while(|line| line.trim() != "command:");
    lines.next();
    let words = lines.map_while(|line| line.trim().strip_prefix("- "));
    let words: Vec<String> = words.map(str::to_owned).collect();
    assert!(words.len() > 5, "{name}: {words:?}");
    words
}

#[test]
fn every_step_is_a_command_line_that_the_programs_take() {
    for name in ["1-server.yaml", "3-server.yaml"] {
        let parsed = towline_server::args::Args::try_parse_from(command_line(name));
        if let Err(error) = parsed {
            panic!("{name}: {error}");
        }
    }
    for name in ["2-agent.yaml", "4-agent.yaml"] {
        let parsed = towline_agent::args::Args::try_parse_from(command_line(name));
        if let Err(error) = parsed {
            panic!("{name}: {error}");
        }
    }
}

#[test]
fn the_first_steps_change_the_program_and_add_one_flag() {
    for (before, after) in [
        ("0-server.yaml", "1-server.yaml"),
        ("0-agent.yaml", "2-agent.yaml"),
    ] {
        let (before, after) = (command_line(before), command_line(after));
        assert_eq!(after[1], "--compatibility=konnectivity");
        assert_eq!(before[1..], after[2..]);
    }
    for (before, after) in [
        ("1-server.yaml", "3-server.yaml"),
        ("2-agent.yaml", "4-agent.yaml"),
    ] {
        let (before, after) = (command_line(before), command_line(after));
        assert_eq!(before, after[..before.len()], "a step only adds");
    }
}

/// Words in backticks that begin with `prefix`.
fn named(text: &str, prefix: &str) -> BTreeSet<String> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| word.starts_with(prefix))
        .map(|word| word.split('{').next().unwrap_or(word).to_owned())
        .collect()
}

#[test]
fn every_metric_of_the_map_exists() {
    let guide = file("README.md");
    let guide = &guide[guide.find("## Metrics").expect("a chapter")..];
    let readme = fs::read_to_string(root().join("README.md")).expect("a README");
    let known = named(&readme, "towline_");
    let ours = named(guide, "towline_");
    assert!(ours.len() >= 8, "{ours:?}");
    let unknown: Vec<_> = ours.difference(&known).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    let sources = [
        "server/src/konnectivity/metrics.rs",
        "agent/src/konnectivity/metrics.rs",
    ]
    .map(|path| fs::read_to_string(root().join(path)).expect("a source"));
    for name in named(guide, "konnectivity_network_proxy_") {
        let short = name.trim_start_matches("konnectivity_network_proxy_server_");
        let found = sources
            .iter()
            .any(|source| source.contains(&format!("{short}\"")));
        assert!(found, "{name}");
    }
}
