//! `towline-server doctor`: the steps from the compatibility profile to full verification, as far
//! as a running server knows them.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Deserialize;
use towline_link::process::ask;
use towline_link::process::exit::Exit;

const STEPS_LEFT: u8 = 4;

const EXIT_CODES: &str = "\
Exit codes:
  0  nothing is left to do
  1  the server could not be asked
  2  wrong command line
  4  steps are left";

/// List the steps that are left on the way from Konnectivity to full verification
#[derive(Clone, Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct DoctorArgs {
    /// The server's --admin-socket
    #[arg(long, env = "TOWLINE_ADMIN_SOCKET", value_name = "PATH")]
    admin_socket: PathBuf,
}

/// What is read of the server's status.
#[derive(Debug, Default, Deserialize)]
struct Seen {
    #[serde(default)]
    identity: String,
    #[serde(default)]
    agents: Vec<Agent>,
    #[serde(default)]
    kubelet_verification: String,
    compatibility: Option<Compatibility>,
}

#[derive(Debug, Default, Deserialize)]
struct Agent {
    name: String,
    #[serde(default)]
    links: Vec<serde_json::Value>,
}

#[derive(Debug, Default, Deserialize)]
struct Compatibility {
    #[serde(default)]
    legacy_door: bool,
    #[serde(default)]
    signed_door: bool,
    #[serde(default)]
    open_socket: bool,
    #[serde(default)]
    downgrade: bool,
    #[serde(default)]
    legacy_agents: Vec<Legacy>,
}

#[derive(Debug, Default, Deserialize)]
struct Legacy {
    id: String,
    #[serde(default)]
    address: String,
}

/// One step.
struct Step {
    done: bool,
    title: String,
    how: &'static str,
}

/// Names that are printed of a list.
const NAMES: usize = 8;

fn some<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let count = names.len();
    let shown: Vec<&str> = names.take(NAMES).collect();
    match count > NAMES {
        true => format!("{} and {} more", shown.join(", "), count - NAMES),
        false => shown.join(", "),
    }
}

fn steps(seen: &Seen) -> Vec<Step> {
    let none = Compatibility::default();
    let on = seen.compatibility.is_some();
    let compat = seen.compatibility.as_ref().unwrap_or(&none);
    let linked = seen.agents.iter().filter(|agent| !agent.links.is_empty());
    let linked: Vec<&str> = linked.map(|agent| agent.name.as_str()).collect();
    let legacy: Vec<String> = compat
        .legacy_agents
        .iter()
        .map(|agent| format!("{} ({})", agent.id, agent.address))
        .collect();
    let own = !seen.identity.is_empty();
    vec![
        Step {
            done: own,
            title: match own {
                true => format!("the server has an identity: {}", seen.identity),
                false => "the server has no identity of its own".to_owned(),
            },
            how: "mint one (towline-pki apply) and add --cert, --key and --agent-ca beside the flags that are there",
        },
        Step {
            done: !linked.is_empty() && legacy.is_empty(),
            title: match (linked.len(), legacy.len()) {
                (0, 0) => "no agent is linked".to_owned(),
                (count, 0) => format!("every agent is verified ({count} linked)"),
                (count, left) => format!(
                    "{count} agents are verified, {left} are not: {}",
                    some(legacy.iter().map(String::as_str))
                ),
            },
            how: "roll towline-agent out with a certificate for each node; one node at a time is fine",
        },
        Step {
            done: !compat.legacy_door,
            title: match compat.legacy_door {
                true => "the door for legacy agents is open".to_owned(),
                false => "the door for legacy agents is closed".to_owned(),
            },
            how: "when no legacy agent is left, take --cluster-cert, --cluster-key and what authenticates agents away",
        },
        Step {
            done: !compat.downgrade,
            title: match compat.downgrade {
                true => "legacy agents may get what verified ones owned".to_owned(),
                false => "what a verified agent owns stays its own".to_owned(),
            },
            how: "take --allow-downgrade away",
        },
        Step {
            done: !compat.signed_door && !compat.open_socket,
            title: match (compat.open_socket, compat.signed_door) {
                (true, _) => "whoever may open the Unix socket is a front end".to_owned(),
                (_, true) => "any certificate of --server-ca-cert is a front end".to_owned(),
                _ => "front ends are known by user or by name".to_owned(),
            },
            how: "use --door-unix (callers by user id), or --door-tcp with --client-ca and --door-allow, in the place of --uds-name or --server-*",
        },
        kubelets(&seen.kubelet_verification),
        Step {
            done: !on,
            title: match on {
                true => "the compatibility profile is on: any target may be asked for".to_owned(),
                false => "the compatibility profile is off".to_owned(),
            },
            how: "give --service-cidr, --pod-cidr and --node-cidr, then take --compatibility=konnectivity away",
        },
    ]
}

/// What a kubelet has to prove before it is dialled, by the mode in force.
fn kubelets(mode: &str) -> Step {
    let (title, how) = match mode {
        "enforce" => (
            "a kubelet is dialled only when it proved to be its node's",
            "",
        ),
        "observe" => (
            "kubelets are looked at, and dialled whatever comes of it",
            "when `towline-server kubelets` ends with 0, take --kubelet-verification observe away: enforce is the default",
        ),
        _ => (
            "kubelets are not verified: whoever answers on a node's kubelet port is believed",
            "give --kubelet-certificate-authority FILE with --kubelet-verification observe, and look at `towline-server kubelets`",
        ),
    };
    Step {
        done: mode == "enforce",
        title: title.to_owned(),
        how,
    }
}

fn report(steps: &[Step]) -> String {
    let mut text = String::new();
    let left = steps.iter().filter(|step| !step.done).count();
    for step in steps {
        let mark = if step.done { "done" } else { "left" };
        let _ = writeln!(text, "[{mark}] {}", printable(&step.title));
        if !step.done {
            let _ = writeln!(text, "       {}", step.how);
        }
    }
    let _ = match left {
        0 => writeln!(text, "Everything that connects is verified."),
        1 => writeln!(text, "1 step is left."),
        left => writeln!(text, "{left} steps are left."),
    };
    text
}

/// Peers' text on one line.
fn printable(text: &str) -> String {
    let show = |c: char| if c.is_control() { '?' } else { c };
    text.chars().map(show).collect()
}

/// Runs what was asked for.
pub fn run(args: &DoctorArgs) -> ExitCode {
    let body = match ask::get(&args.admin_socket, "/status") {
        Ok(body) => body,
        Err(error) => return failed(&error),
    };
    let seen: Seen = match serde_json::from_slice(&body) {
        Ok(seen) => seen,
        Err(error) => return failed(&error),
    };
    let steps = steps(&seen);
    if let Err(error) = ask::print(&report(&steps)) {
        return failed(&error);
    }
    match steps.iter().all(|step| step.done) {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(STEPS_LEFT),
    }
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("error: {error}");
    Exit::Runtime.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(json: &str) -> Seen {
        serde_json::from_str(json).unwrap()
    }

    fn left(seen: &Seen) -> Vec<usize> {
        let all = steps(seen);
        (0..all.len()).filter(|step| !all[*step].done).collect()
    }

    #[test]
    fn a_fresh_replacement_has_nearly_everything_to_do() {
        let seen = seen(
            r#"{"identity":"","agents":[],"compatibility":{"legacy_door":true,"open_socket":true,
            "legacy_agents":[{"id":"a\u001b[1m","address":"10.0.0.7:1"}]}}"#,
        );
        assert_eq!(left(&seen), [0, 1, 2, 4, 5, 6]);
        let text = report(&steps(&seen));
        assert!(
            text.contains("0 agents are verified, 1 are not: a?[1m (10.0.0.7:1)"),
            "{text}"
        );
        assert!(text.ends_with("6 steps are left.\n"), "{text}");
    }

    #[test]
    fn a_server_without_the_profile_has_nothing_left() {
        let seen = seen(
            r#"{"identity":"spiffe://c/towline/server/s","agents":[{"name":"n1","links":[{}]}],
            "kubelet_verification":"enforce"}"#,
        );
        assert_eq!(left(&seen), [0usize; 0]);
        assert!(report(&steps(&seen)).ends_with("Everything that connects is verified.\n"));
    }

    #[test]
    fn one_step_at_a_time_counts() {
        let mixed = seen(
            r#"{"identity":"s","agents":[{"name":"n1","links":[{}]}],"compatibility":
            {"legacy_door":true,"downgrade":true,"signed_door":true,"legacy_agents":[]}}"#,
        );
        assert_eq!(left(&mixed), [2, 3, 4, 5, 6]);
    }

    #[test]
    fn kubelets_are_a_step_of_their_own() {
        for (mode, word) in [
            ("off", "--kubelet-verification observe, and look"),
            ("observe", "take --kubelet-verification observe away"),
            ("enforce", "Everything that connects is verified."),
        ] {
            let seen = Seen {
                identity: "s".into(),
                agents: vec![Agent {
                    name: "n1".into(),
                    links: vec![serde_json::Value::Null],
                }],
                kubelet_verification: mode.into(),
                compatibility: None,
            };
            assert_eq!(left(&seen).len(), usize::from(mode != "enforce"), "{mode}");
            let text = report(&steps(&seen));
            assert!(text.contains(word), "{mode}: {text}");
        }
    }
}
