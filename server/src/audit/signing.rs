//! What was decided about signing requests of the Kubernetes API, a record each.

use std::time::SystemTime;

use towline_link::error::detail;
use towline_pki::date;
use towline_proto::limits;

use super::facts::Event;
use super::text::Fields;
use super::trail::Audit;

const TEXT: usize = limits::AUDIT_TEXT_BYTES;

/// One decision. Foreign text is escaped and cut when it is written.
#[derive(Clone, Debug)]
pub struct SigningEvent {
    /// When.
    pub at: SystemTime,
    /// The request's name.
    pub request: String,
    /// Which request of this name.
    pub uid: String,
    /// For which signer, as metrics call it.
    pub signer: &'static str,
    /// Who asked, as the API server says.
    pub requester: String,
    /// What was decided.
    pub outcome: &'static str,
    /// The node that it is for, where that was believed.
    pub node: String,
    /// Names and addresses, where they were believed.
    pub names: Vec<String>,
    /// Why it was not approved: word and text.
    pub cause: Option<(&'static str, String)>,
    /// Serial number and end of what was signed.
    pub signed: Option<(String, SystemTime)>,
}

impl Audit {
    /// Something was decided about a signing request.
    pub fn signing(&self, event: SigningEvent) {
        self.tell(Event::Signing(Box::new(event)));
    }
}

/// Foreign text for a line of the log.
pub fn short(text: &str) -> String {
    detail(text)
}

/// What a decision adds to the beginning of a record.
pub fn add(fields: &mut Fields, event: &SigningEvent) {
    fields
        .text("request", &event.request, TEXT)
        .text("uid", &event.uid, TEXT)
        .word("signer", event.signer)
        .text("requester", &event.requester, TEXT)
        .word("outcome", event.outcome);
    if !event.node.is_empty() {
        fields.text("node", &event.node, TEXT);
        let names = event.names.iter().map(String::as_str);
        fields.list("names", names, limits::AUDIT_COMMAND_BYTES);
    }
    if let Some((word, text)) = &event.cause {
        fields.word("reason", word).text("cause", text, TEXT);
    }
    if let Some((serial, until)) = &event.signed {
        fields
            .text("serial", serial, TEXT)
            .text("not_after", &date::text(*until), TEXT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_is_escaped() {
        let mut fields = Fields::new();
        let event = SigningEvent {
            at: SystemTime::UNIX_EPOCH,
            request: "csr-1\u{1b}[2J".into(),
            uid: "u".into(),
            signer: "kubelet-serving",
            requester: "system:node:\"x".into(),
            outcome: "denied",
            node: String::new(),
            names: vec![],
            cause: Some(("NameKind", "it asks for a \u{7} URI".into())),
            signed: None,
        };
        add(&mut fields, &event);
        let text = fields.as_str();
        assert!(text.contains("\"reason\":\"NameKind\""), "{text}");
        assert!(
            !text.contains('\u{1b}') && !text.contains('\u{7}'),
            "{text}"
        );
    }
}
