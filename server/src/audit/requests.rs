//! Requests that pass the gateway, one record each: what was asked of which pod, by which
//! certificate, and the key of the kubelet that answered on this very connection.
//!
//! A command may hold secrets, so its arguments are left out unless `--audit-commands full` asks
//! for them. kube-apiserver's own audit log holds them too, and the user, which is not seen here.

use std::fmt;
use std::str::FromStr;

use towline_proto::kubelet::Call;
use towline_proto::limits;

use super::facts::Event;
use super::text::Fields;
use super::trail::Audit;
use crate::gateway::event::{Outcome, RequestEvent, RequestSink};

const TEXT: usize = limits::AUDIT_TEXT_BYTES;

/// `--audit-commands`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Commands {
    /// No word of them.
    None,
    /// The first word: the program.
    #[default]
    Program,
    /// Every word, within [`limits::AUDIT_COMMAND_BYTES`].
    Full,
}

/// A word that names none of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "use none, program (the first word of a command) or full (its arguments too, which may hold secrets)"
)]
pub struct UnknownCommands;

impl Commands {
    /// The word of the flag.
    pub const fn as_str(self) -> &'static str {
        match self {
            Commands::None => "none",
            Commands::Program => "program",
            Commands::Full => "full",
        }
    }
}

impl FromStr for Commands {
    type Err = UnknownCommands;
    fn from_str(text: &str) -> Result<Self, UnknownCommands> {
        [Commands::None, Commands::Program, Commands::Full]
            .into_iter()
            .find(|mode| mode.as_str() == text)
            .ok_or(UnknownCommands)
    }
}

impl fmt::Display for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl RequestSink for Audit {
    fn takes(&self) -> bool {
        !self.blocks() || self.state().is_ok()
    }

    fn request(&self, event: RequestEvent) {
        let passed = match event.outcome {
            Outcome::Answered | Outcome::Failed(_) => true,
            // Of one that had passed: its body.
            Outcome::Malformed(_) => event.method.is_some(),
            Outcome::Refused { .. } | Outcome::Unrecorded => false,
        };
        let event = Event::Request(Box::new(event));
        match self.shared() {
            // It passed because there was room for it, which others may have taken since. There is
            // one on a connection.
            Some(shared) if passed && self.blocks() => shared.send(event),
            _ => self.tell(event),
        }
    }
}

/// What a request adds to the beginning of a record.
pub fn add(fields: &mut Fields, event: &RequestEvent, commands: Commands) {
    fields
        .number("request", event.number)
        .shown("target", &event.target, TEXT)
        .text("node", event.node.as_str(), TEXT);
    let mut front_end = Fields::new();
    front_end
        .text("subject", &event.front_end.subject, TEXT)
        .text("serial", &event.front_end.serial, TEXT);
    fields.object("gateway_front_end", &front_end);
    if let Some(method) = event.method {
        fields.word("method", method);
    }
    if let Some(call) = &event.call {
        add_call(fields, call, commands);
    }
    if let Some(path) = &event.path {
        fields.text("path", path, TEXT);
    }
    if let Some(key) = &event.kubelet_key {
        fields.shown("kubelet_key", key, TEXT);
    }
    if let Some(status) = event.status {
        fields.number("status", status);
    }
    fields.word("outcome", event.outcome.as_str());
    if event.outcome.detail() != "none" {
        fields.word("detail", event.outcome.detail());
    }
    if let Outcome::Refused {
        line: Some(line), ..
    } = event.outcome
    {
        fields.number("rule_line", line);
    }
}

fn add_call(fields: &mut Fields, call: &Call, commands: Commands) {
    fields.word("verb", call.verb.as_str());
    for (key, value) in [
        ("namespace", &call.namespace),
        ("pod", &call.pod),
        ("container", &call.container),
    ] {
        if let Some(value) = value {
            fields.text(key, value, TEXT);
        }
    }
    if call.command.is_empty() {
        return;
    }
    let shown = match commands {
        Commands::None => 0,
        Commands::Program => 1,
        Commands::Full => call.command.len(),
    };
    if shown > 0 {
        let words = call.command.iter().take(shown).map(String::as_str);
        fields.list("command", words, limits::AUDIT_COMMAND_BYTES);
    }
    let words = u32::try_from(call.command.len()).unwrap_or(u32::MAX);
    fields.number("command_words", words);
    if call.command_cut {
        fields.flag("command_cut", true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;
    use towline_proto::id::DialId;

    use crate::gateway::event::FrontEndCertificate;

    fn exec() -> RequestEvent {
        let target =
            "/exec/ns/web-1/app?command=psql&command=-c&command=password%3Dhunter2&output=1";
        RequestEvent {
            at: SystemTime::UNIX_EPOCH,
            dial: DialId::new(1).unwrap(),
            number: 1,
            target: "10.0.0.7:10250".parse().unwrap(),
            node: "n1".parse().unwrap(),
            method: Some("POST"),
            call: Some(Call::of(target)),
            path: None,
            status: Some(101),
            outcome: Outcome::Answered,
            front_end: FrontEndCertificate {
                subject: "CN=kube-apiserver\u{1b}[2J".into(),
                serial: "0a".into(),
            },
            kubelet_key: None,
        }
    }

    fn shown(commands: Commands) -> String {
        let mut fields = Fields::new();
        add(&mut fields, &exec(), commands);
        fields.as_str().to_owned()
    }

    #[test]
    fn arguments_are_left_out_unless_asked_for() {
        for commands in [Commands::None, Commands::Program] {
            let text = shown(commands);
            assert!(
                !text.contains("hunter2") && text.contains("\"command_words\":3"),
                "{text}"
            );
            assert_eq!(
                text.contains("psql"),
                commands == Commands::Program,
                "{text}"
            );
        }
        assert!(
            shown(Commands::Full).contains("\"command\":[\"psql\",\"-c\",\"password=hunter2\"]")
        );
    }

    #[test]
    fn text_of_a_front_end_is_escaped() {
        let text = shown(Commands::None);
        assert!(text.contains("CN=kube-apiserver\\u001b[2J"), "{text}");
        assert!(
            text.contains(
                "\"verb\":\"exec\",\"namespace\":\"ns\",\"pod\":\"web-1\",\"container\":\"app\""
            ),
            "{text}"
        );
    }
}
