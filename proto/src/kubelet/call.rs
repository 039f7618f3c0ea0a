//! What a request to a kubelet asks for, from its path and query.
//!
//! The paths are those that the kubelet's server installs. Matching is exact and on the bytes as
//! they were sent: an escape, a dot segment or an empty segment in a path that is about a pod makes
//! it ambiguous, because the kubelet's router may clean or decode it into another one.

use std::fmt;

use crate::limits;

/// What is asked of a kubelet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// `/containerLogs`: `kubectl logs`.
    Logs,
    /// `/exec`: `kubectl exec`, `kubectl cp`.
    Exec,
    /// `/attach`: `kubectl attach`.
    Attach,
    /// `/portForward`: `kubectl port-forward`.
    PortForward,
    /// `/run`: one command, its output in the answer.
    Run,
    /// `/checkpoint`: a container's memory written to the node's disk.
    Checkpoint,
    /// `/logs`: files under the node's log directory, and its journal.
    NodeLogs,
    /// `/pods`.
    Pods,
    /// `/runningpods`.
    RunningPods,
    /// `/metrics` and below.
    Metrics,
    /// `/stats` and below.
    Stats,
    /// `/healthz` and below.
    Health,
    /// `/configz`, `/flagz`, `/statusz`.
    Config,
    /// `/debug`: profiles and the log level.
    Debug,
    /// A path that no kubelet is known to serve.
    Unknown,
}

impl Verb {
    /// Every one of them.
    pub const ALL: [Verb; 15] = [
        Verb::Logs,
        Verb::Exec,
        Verb::Attach,
        Verb::PortForward,
        Verb::Run,
        Verb::Checkpoint,
        Verb::NodeLogs,
        Verb::Pods,
        Verb::RunningPods,
        Verb::Metrics,
        Verb::Stats,
        Verb::Health,
        Verb::Config,
        Verb::Debug,
        Verb::Unknown,
    ];

    /// The word used in rules, metrics and audit records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Verb::Logs => "logs",
            Verb::Exec => "exec",
            Verb::Attach => "attach",
            Verb::PortForward => "port-forward",
            Verb::Run => "run",
            Verb::Checkpoint => "checkpoint",
            Verb::NodeLogs => "node-logs",
            Verb::Pods => "pods",
            Verb::RunningPods => "running-pods",
            Verb::Metrics => "metrics",
            Verb::Stats => "stats",
            Verb::Health => "health",
            Verb::Config => "config",
            Verb::Debug => "debug",
            Verb::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why two readers may take a path differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Ambiguity {
    /// `.`, `..`, or either of them escaped.
    #[error("a dot segment")]
    Dots,
    /// A slash or backslash that is escaped, or a backslash.
    #[error("an encoded slash or a backslash")]
    Slash,
    /// Two slashes in a row, or one at the end of a path about a pod.
    #[error("an empty segment")]
    Empty,
    /// An escape, or a character that no name of Kubernetes has, where such a name is expected.
    #[error("a name with characters that no Kubernetes name has")]
    Name,
    /// An escape that is none.
    #[error("a percent sign that begins no escape")]
    Escape,
    /// Fewer or more segments than the kubelet serves below this path.
    #[error("a number of segments that the kubelet does not serve there")]
    Segments,
}

/// What one request asks for. Text in it is of the front end: bounded here, escaped by whoever
/// prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// What.
    pub verb: Verb,
    /// Of which namespace, when the verb has one.
    pub namespace: Option<String>,
    /// Of which pod.
    pub pod: Option<String>,
    /// Of which container.
    pub container: Option<String>,
    /// The words of a command, decoded, at most [`limits::GATEWAY_COMMAND_BYTES`] in all.
    pub command: Vec<String>,
    /// Whether the command had more than that.
    pub command_cut: bool,
    /// Why the path could be read differently, when it could.
    pub ambiguity: Option<Ambiguity>,
}

impl Call {
    /// Reads a request target: a path, and a query behind a question mark.
    pub fn of(target: &str) -> Self {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        let (first, below) = segments.split_first().unwrap_or((&"", &[]));
        let verb = verb(first, below);
        let mut call = Self {
            verb,
            namespace: None,
            pod: None,
            container: None,
            command: Vec::new(),
            command_cut: false,
            ambiguity: ambiguity(path, &segments),
        };
        call.read_names(below);
        match verb {
            Verb::Exec => call.read_command(query, "command"),
            Verb::Run => call.read_command(query, "cmd"),
            _ => {}
        }
        call
    }

    /// `{namespace}/{pod}[/{uid}]/{container}`, the container not for port-forward, the uid not
    /// for logs and checkpoints.
    fn read_names(&mut self, below: &[&str]) {
        let (pod, container) = match (self.verb, below) {
            (Verb::Logs | Verb::Checkpoint, [_, pod, container]) => (pod, Some(container)),
            (Verb::Exec | Verb::Attach | Verb::Run, [_, pod, container]) => (pod, Some(container)),
            (Verb::Exec | Verb::Attach | Verb::Run, [_, pod, _, container]) => {
                (pod, Some(container))
            }
            (Verb::PortForward, [_, pod] | [_, pod, _]) => (pod, None),
            (verb, _) if verb.is_about_a_pod() => {
                self.ambiguity = self.ambiguity.or(Some(Ambiguity::Segments));
                // For the record only: with an ambiguity no rule allows it.
                self.namespace = below.first().map(|name| bounded(name));
                self.pod = below.get(1).map(|name| bounded(name));
                return;
            }
            _ => return,
        };
        if !below.iter().all(|name| is_name(name)) {
            self.ambiguity = self.ambiguity.or(Some(Ambiguity::Name));
        }
        self.namespace = below.first().map(|name| bounded(name));
        self.pod = Some(bounded(pod));
        self.container = container.map(|name| bounded(name));
    }

    fn read_command(&mut self, query: &str, parameter: &str) {
        let mut left = limits::GATEWAY_COMMAND_BYTES;
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if decode(name) != parameter {
                continue;
            }
            let mut word = decode(value);
            if left == 0 {
                self.command_cut = true;
                return;
            }
            if word.len() > left {
                let cut = (0..=left).rev().find(|at| word.is_char_boundary(*at));
                word.truncate(cut.unwrap_or(0));
                self.command_cut = true;
            }
            // An empty word counts, so that there cannot be endlessly many of them.
            left = left.saturating_sub(word.len().max(1));
            self.command.push(word);
        }
    }
}

impl Verb {
    const fn is_about_a_pod(self) -> bool {
        matches!(
            self,
            Verb::Logs
                | Verb::Exec
                | Verb::Attach
                | Verb::PortForward
                | Verb::Run
                | Verb::Checkpoint
        )
    }
}

fn verb(first: &str, below: &[&str]) -> Verb {
    let alone = below.is_empty();
    match first {
        "containerLogs" => Verb::Logs,
        "exec" => Verb::Exec,
        "attach" => Verb::Attach,
        "portForward" => Verb::PortForward,
        "run" => Verb::Run,
        "checkpoint" => Verb::Checkpoint,
        "logs" => Verb::NodeLogs,
        "pods" if alone => Verb::Pods,
        "runningpods" if alone || below == [""] => Verb::RunningPods,
        "metrics" => match below {
            [] | ["cadvisor" | "resource" | "probes" | "slis"] => Verb::Metrics,
            _ => Verb::Unknown,
        },
        "stats" => match below {
            [] | ["" | "summary" | "container"] => Verb::Stats,
            _ => Verb::Unknown,
        },
        "healthz" => match below {
            [] | [_] => Verb::Health,
            _ => Verb::Unknown,
        },
        "configz" | "flagz" | "statusz" if alone => Verb::Config,
        "debug" => match below {
            ["pprof", ..] | ["flags", "v"] => Verb::Debug,
            _ => Verb::Unknown,
        },
        _ => Verb::Unknown,
    }
}

/// Names of namespaces, pods and containers are lower-case DNS labels or subdomains; a uid may be
/// anything that needs no escape.
fn is_name(segment: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    !segment.is_empty() && segment.len() <= limits::GATEWAY_NAME_BYTES && segment.bytes().all(fits)
}

fn ambiguity(path: &str, segments: &[&str]) -> Option<Ambiguity> {
    let mut escapes = path.split('%').skip(1);
    let hex = |text: &str| text.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2;
    if !escapes.all(hex) {
        return Some(Ambiguity::Escape);
    }
    let lower = path.to_ascii_lowercase();
    if path.contains('\\') || ["%2f", "%5c"].iter().any(|slash| lower.contains(slash)) {
        return Some(Ambiguity::Slash);
    }
    // An escape of an escape is one that the kubelet could decode twice.
    let dots = |segment: &&str| matches!(decode_path(segment).as_str(), "." | "..");
    if segments.iter().any(dots) {
        return Some(Ambiguity::Dots);
    }
    let (last, before) = segments.split_last()?;
    let directory = before.first().is_some_and(|first| {
        matches!(*first, "logs" | "stats" | "runningpods" | "debug")
            && before.len() < segments.len()
    });
    if before.iter().any(|segment| segment.is_empty()) || (last.is_empty() && !directory) {
        return Some(Ambiguity::Empty);
    }
    None
}

fn bounded(name: &str) -> String {
    name.chars().take(limits::GATEWAY_NAME_BYTES).collect()
}

/// Percent escapes and plus signs of a query; what is no UTF-8 is replaced.
fn decode(text: &str) -> String {
    decode_path(&text.replace('+', " "))
}

fn decode_path(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let digit = |at: usize| {
            let byte = behind.get(at).copied()?;
            char::from(byte).to_digit(16)
        };
        match (*first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high << 4 | low) as u8);
                rest = &behind[2..];
            }
            (byte, ..) => {
                bytes.push(byte);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(call: &Call) -> [Option<&str>; 3] {
        [&call.namespace, &call.pod, &call.container].map(|name| name.as_deref())
    }

    #[test]
    fn every_path_of_a_kubelet_is_known() {
        let all = [Some("ns"), Some("web-0"), Some("app")];
        let pod = [Some("ns"), Some("web-0"), None];
        let none = [None; 3];
        for (path, verb, expected) in [
            ("/containerLogs/ns/web-0/app?follow=true", Verb::Logs, all),
            ("/exec/ns/web-0/app", Verb::Exec, all),
            ("/exec/ns/web-0/5f0c-uid/app", Verb::Exec, all),
            ("/attach/ns/web-0/app", Verb::Attach, all),
            ("/attach/ns/web-0/uid/app", Verb::Attach, all),
            ("/run/ns/web-0/app?cmd=ls", Verb::Run, all),
            ("/run/ns/web-0/uid/app", Verb::Run, all),
            ("/portForward/ns/web-0", Verb::PortForward, pod),
            ("/portForward/ns/web-0/uid?port=80", Verb::PortForward, pod),
            ("/checkpoint/ns/web-0/app", Verb::Checkpoint, all),
            ("/logs/", Verb::NodeLogs, none),
            ("/logs/pods/a/b%20c.log", Verb::NodeLogs, none),
            ("/logs/?query=kubelet", Verb::NodeLogs, none),
            ("/pods", Verb::Pods, none),
            ("/runningpods/", Verb::RunningPods, none),
            ("/metrics", Verb::Metrics, none),
            ("/metrics/cadvisor", Verb::Metrics, none),
            ("/metrics/resource", Verb::Metrics, none),
            ("/metrics/probes", Verb::Metrics, none),
            ("/metrics/slis", Verb::Metrics, none),
            ("/stats/summary?only_cpu_and_memory=true", Verb::Stats, none),
            ("/stats/", Verb::Stats, none),
            ("/healthz", Verb::Health, none),
            ("/healthz/syncloop", Verb::Health, none),
            ("/configz", Verb::Config, none),
            ("/flagz", Verb::Config, none),
            ("/statusz", Verb::Config, none),
            ("/debug/pprof/heap", Verb::Debug, none),
            ("/debug/pprof/", Verb::Debug, none),
            ("/debug/flags/v", Verb::Debug, none),
        ] {
            let call = Call::of(path);
            assert_eq!((call.verb, call.ambiguity), (verb, None), "{path}");
            assert_eq!(names(&call), expected, "{path}");
        }
    }

    #[test]
    fn what_could_be_read_as_another_path_is_marked() {
        for (path, ambiguity) in [
            ("/exec/ns/../../run/a/b/c", Ambiguity::Dots),
            ("/healthz/%2e%2e/exec/ns/p/c", Ambiguity::Dots),
            ("/healthz/.%2E/exec/ns/p/c", Ambiguity::Dots),
            ("/./exec/ns/p/c", Ambiguity::Dots),
            ("/exec%2fns/p/c", Ambiguity::Slash),
            ("/exec/ns%2Fother/p/c", Ambiguity::Slash),
            ("/logs/..%5c..%5cetc", Ambiguity::Slash),
            ("/exec\\ns/p/c", Ambiguity::Slash),
            ("//exec/ns/p/c", Ambiguity::Empty),
            ("/exec//ns/p/c", Ambiguity::Empty),
            ("/exec/ns/p/c/", Ambiguity::Empty),
            ("/exec/ns/p%20/c", Ambiguity::Name),
            ("/exec/kube%2dsystem/p/c", Ambiguity::Name),
            ("/exec/ns/p;x/c", Ambiguity::Name),
            ("/exec/ns/p/c%", Ambiguity::Escape),
            ("/exec/ns/p/%zz", Ambiguity::Escape),
            ("/exec/ns/p", Ambiguity::Segments),
            ("/exec/ns/p/u/c/more", Ambiguity::Segments),
            ("/containerLogs/ns/p/u/c", Ambiguity::Segments),
            ("/portForward/ns", Ambiguity::Segments),
            ("/run", Ambiguity::Segments),
            ("/", Ambiguity::Empty),
        ] {
            assert_eq!(Call::of(path).ambiguity, Some(ambiguity), "{path}");
        }
    }

    #[test]
    fn other_spellings_are_no_kubelet_path() {
        for path in [
            "/Exec/ns/p/c",
            "/%65xec/ns/p/c",
            "/execx/ns/p/c",
            "/metrics/other",
            "/pods/x",
            "/stats/ns/p/uid/c",
            "/debug",
            "/debug/flags/w",
            "/cri/exec/token",
            "/spec",
            "/",
        ] {
            assert_eq!(Call::of(path).verb, Verb::Unknown, "{path}");
        }
    }

    #[test]
    fn a_command_is_read_within_its_bound() {
        let call = Call::of("/exec/n/p/c?command=sh&command=-c&command=echo+%22a%26b%22&tty=1");
        assert_eq!(call.command, ["sh", "-c", "echo \"a&b\""]);
        assert!(!call.command_cut);
        assert_eq!(Call::of("/run/n/p/c?cmd=ls").command, ["ls"]);
        assert_eq!(Call::of("/exec/n/p/c?%63ommand=id").command, ["id"]);
        assert!(Call::of("/exec/n/p/c?cmd=ls").command.is_empty());
        let long = format!(
            "/exec/n/p/c?command={}%C3%A4&command=x",
            "a".repeat(limits::GATEWAY_COMMAND_BYTES - 1)
        );
        let call = Call::of(&long);
        assert!(call.command_cut);
        let bytes: usize = call.command.iter().map(String::len).sum();
        assert!(bytes <= limits::GATEWAY_COMMAND_BYTES, "{bytes}");
        let empty = format!("/exec/n/p/c?{}", "command=&".repeat(10_000));
        assert!(Call::of(&empty).command.len() <= limits::GATEWAY_COMMAND_BYTES);
    }
}
