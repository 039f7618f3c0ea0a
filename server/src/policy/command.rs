//! `towline-server policy`: looks at a policy file, or asks a running server about its own.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;
use serde::Serialize;
use towline_link::process::ask;
use towline_link::process::exit::Exit;
use towline_link::process::policy_file::{PolicyFile, PolicyFileError};
use towline_proto::policy::Action;
use towline_proto::target::{Class, Host, Target};

use super::Policy;
use super::explain::{As, Asked, Explained, explain};
use crate::classify::{Nodes, Prefixes, classify};

/// The answer is no.
const DENIED: u8 = 4;

const EXIT_CODES: &str = "\
Exit codes:
  0  the file is good; the target is allowed
  1  the server could not be asked
  2  wrong command line
  3  the file cannot be used
  4  the target is denied";

/// Check policy files and explain decisions
#[derive(Clone, Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct PolicyArgs {
    #[command(subcommand)]
    verb: PolicyVerb,
}

#[derive(Clone, Debug, Subcommand)]
enum PolicyVerb {
    Check(CheckArgs),
    Explain(ExplainArgs),
}

/// Read a policy file and say what is wrong with it, with line and column
#[derive(Clone, Debug, Args)]
#[command(after_help = EXIT_CODES)]
struct CheckArgs {
    /// The file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// text or json
    #[arg(short, long, value_name = "FORM", default_value = "text")]
    output: Form,
}

/// Say whether a target is allowed, by which rule, and what would allow it
///
/// Without --policy a running server is asked, which also knows every node. With it the class
/// comes from the prefixes given, or from --class.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXIT_CODES)]
struct ExplainArgs {
    /// What a front end would ask for
    #[arg(value_name = "HOST:PORT")]
    target: Target,
    /// The front end: uid:NUMBER, uid:NUMBER,gid:NUMBER or client:NAME [default: any]
    #[arg(long = "as", value_name = "FRONTEND")]
    front_end: Option<As>,
    /// The node through which it would go [default: any]
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// A policy file, instead of the policy of a running server
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// With --policy: what the target is, instead of finding it out by the prefixes
    #[arg(long, value_name = "CLASS", requires = "policy")]
    class: Option<Class>,
    /// With --policy: the kubelets' port
    #[arg(long, env = "TOWLINE_KUBELET_PORT", default_value_t = 10250, value_parser = clap::value_parser!(u16).range(1..))]
    kubelet_port: u16,
    /// With --policy: service prefixes of the cluster
    #[arg(
        long = "service-cidr",
        env = "TOWLINE_SERVICE_CIDR",
        value_name = "PREFIX",
        value_delimiter = ','
    )]
    service_prefixes: Vec<IpNet>,
    /// With --policy: pod prefixes of the cluster
    #[arg(
        long = "pod-cidr",
        env = "TOWLINE_POD_CIDR",
        value_name = "PREFIX",
        value_delimiter = ','
    )]
    pod_prefixes: Vec<IpNet>,
    /// With --policy: node prefixes of the cluster
    #[arg(
        long = "node-cidr",
        env = "TOWLINE_NODE_CIDR",
        value_name = "PREFIX",
        value_delimiter = ','
    )]
    node_prefixes: Vec<IpNet>,
    /// Without --policy: the --admin-socket of the server that is asked
    #[arg(
        long,
        env = "TOWLINE_ADMIN_SOCKET",
        value_name = "PATH",
        required_unless_present = "policy"
    )]
    admin_socket: Option<PathBuf>,
    /// text or json
    #[arg(short, long, value_name = "FORM", default_value = "text")]
    output: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    Text,
    Json,
}

/// Runs what was asked for.
pub fn run(args: &PolicyArgs) -> ExitCode {
    match &args.verb {
        PolicyVerb::Check(args) => check(args),
        PolicyVerb::Explain(args) => match explained(args) {
            Ok(told) => {
                let code = if told.allowed { 0 } else { DENIED };
                say(args.output, &told.text(), &told, code)
            }
            Err(Failure::File(error)) => fail(Exit::Configuration, &error),
            Err(Failure::Ask(text)) => fail(Exit::Runtime, &text),
        },
    }
}

/// What `check` says of a good file.
#[derive(Clone, Debug, Serialize)]
struct Checked {
    file: String,
    good: bool,
    error: Option<String>,
    rules: usize,
    allow: usize,
    deny: usize,
    kubelet_section: bool,
    warnings: Vec<String>,
}

fn check(args: &CheckArgs) -> ExitCode {
    let file = args.file.display().to_string();
    let read = match PolicyFile::load(&args.file) {
        Ok(read) => read,
        Err(error) if args.output == Form::Text => return fail(Exit::Configuration, &error),
        Err(error) => {
            let checked = Checked {
                file,
                good: false,
                error: Some(error.to_string()),
                rules: 0,
                allow: 0,
                deny: 0,
                kubelet_section: false,
                warnings: Vec::new(),
            };
            return say(args.output, "", &checked, Exit::Configuration.code());
        }
    };
    let count = |action| {
        let rules = read.rules.rules().iter();
        rules.filter(|rule| rule.action == action).count()
    };
    let checked = Checked {
        file,
        good: true,
        error: None,
        rules: read.rules.rules().len(),
        allow: count(Action::Allow),
        deny: count(Action::Deny),
        kubelet_section: read.kubelet.is_some(),
        warnings: warnings(&read),
    };
    let mut text = format!(
        "{}: good: {} rules ({} allow, {} deny), {} kubelet section\n",
        checked.file,
        checked.rules,
        checked.allow,
        checked.deny,
        if checked.kubelet_section { "a" } else { "no" },
    );
    for warning in &checked.warnings {
        text += &format!("warning: {warning}\n");
    }
    say(args.output, &text, &checked, 0)
}

/// What is allowed in a file and hardly meant.
fn warnings(file: &PolicyFile) -> Vec<String> {
    let mut warnings = Vec::new();
    let rules = file.rules.rules();
    if rules.iter().all(|rule| rule.action == Action::Deny) {
        warnings.push("no rule allows anything: every dial will be refused".to_owned());
    }
    for rule in rules {
        let everything = rule.ports.is_empty()
            && rule.to.is_empty()
            && rule.nodes.is_empty()
            && rule.from.is_empty()
            && Class::ALL.iter().all(|class| rule.classes.has(*class));
        let what = match rule.action {
            Action::Allow => "allows everything but the built-in refusals",
            Action::Deny => "denies everything, whatever other rules say",
        };
        if everything {
            warnings.push(format!("{} has no condition and {what}", rule.tag));
        }
    }
    warnings
}

enum Failure {
    File(PolicyFileError),
    Ask(String),
}

fn explained(args: &ExplainArgs) -> Result<Explained, Failure> {
    let asked = Asked {
        target: args.target.clone(),
        front_end: args.front_end.clone(),
        node: args.node.clone(),
    };
    if let Some(path) = &args.policy {
        let file = PolicyFile::load(path).map_err(Failure::File)?;
        let prefixes = Prefixes {
            kubelet_port: args.kubelet_port,
            service: args.service_prefixes.clone(),
            pod: args.pod_prefixes.clone(),
            node: args.node_prefixes.clone(),
        };
        let found = || classify(&args.target, &prefixes, &NoNodes);
        let class = args.class.unwrap_or_else(found);
        let source = path.display().to_string();
        let mut told = explain(&Policy::new(file.rules), &source, class, &asked);
        if args.class.is_none() {
            told.hint = unknown_prefixes(&args.target, class, &prefixes);
        }
        return Ok(told);
    }
    let socket = args.admin_socket.as_deref();
    let socket =
        socket.ok_or_else(|| Failure::Ask("give --admin-socket or --policy".to_owned()))?;
    let page = format!("/policy/explain?{}", asked.query());
    let body = ask::get(socket, &page).map_err(|error| Failure::Ask(error.to_string()))?;
    serde_json::from_slice(&body).map_err(|error| Failure::Ask(error.to_string()))
}

/// Only a server knows its prefixes: without them an address is `other`, which hardly any rule names.
fn unknown_prefixes(target: &Target, class: Class, prefixes: &Prefixes) -> Option<String> {
    let given = [
        ("--service-cidr", &prefixes.service),
        ("--pod-cidr", &prefixes.pod),
        ("--node-cidr", &prefixes.node),
    ];
    let missing: Vec<_> = given
        .iter()
        .filter(|(_, prefixes)| prefixes.is_empty())
        .map(|(flag, _)| *flag)
        .collect();
    let is_address = matches!(target.host, Host::Ip(_));
    (is_address && class == Class::Other && !missing.is_empty()).then(|| {
        format!(
            "class other because no prefix of the cluster that was given holds this address; give \
             {} as the server has them, or --class, or ask the server itself (--admin-socket without \
             --policy)",
            missing.join(", ")
        )
    })
}

/// No server is there that would know any.
struct NoNodes;

impl Nodes for NoNodes {
    fn has_address(&self, _: IpAddr) -> bool {
        false
    }

    fn has_name(&self, _: &str) -> bool {
        false
    }

    fn has_prefix_around(&self, _: IpAddr) -> bool {
        false
    }
}

fn say(form: Form, text: &str, document: &impl Serialize, code: u8) -> ExitCode {
    let printed = match form {
        Form::Text => Ok(text.to_owned()),
        Form::Json => serde_json::to_string_pretty(document).map(|json| json + "\n"),
    };
    match printed.map_err(|error| error.to_string()) {
        Ok(text) => match ask::print(&text) {
            Ok(()) => ExitCode::from(code),
            Err(error) => fail(Exit::Runtime, &error),
        },
        Err(error) => fail(Exit::Runtime, &error),
    }
}

fn fail(exit: Exit, error: &dyn fmt::Display) -> ExitCode {
    eprintln!("error: {error}");
    exit.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_gives_no_prefixes_is_told_which_are_missing() {
        let hint = |target: &str, class, prefixes: &Prefixes| {
            unknown_prefixes(&target.parse().expect("a target"), class, prefixes)
        };
        let none = Prefixes::default();
        let said = hint("10.0.0.1:80", Class::Other, &none).expect("a hint");
        assert!(
            said.contains("--service-cidr, --pod-cidr, --node-cidr as"),
            "{said}"
        );
        let pods = Prefixes {
            pod: vec!["10.244.0.0/16".parse().expect("a prefix")],
            ..Prefixes::default()
        };
        let said = hint("10.0.0.1:80", Class::Other, &pods).expect("a hint");
        assert!(said.contains("--service-cidr, --node-cidr as"), "{said}");
        assert!(!said.contains("--pod-cidr"), "{said}");
        // Names, and what a prefix that was given holds, need none.
        assert_eq!(hint("a.example:80", Class::Other, &none), None);
        assert_eq!(hint("10.244.0.1:80", Class::Pod, &pods), None);
        let all = Prefixes {
            service: pods.pod.clone(),
            node: pods.pod.clone(),
            ..pods
        };
        assert_eq!(hint("10.0.0.1:80", Class::Other, &all), None);
    }
}
