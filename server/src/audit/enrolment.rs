//! Certificates that agents were given or refused, a record each.

use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

use towline_link::error::detail;
use towline_pki::date;
use towline_proto::enrol::Refusal;
use towline_proto::limits;

use super::facts::Event;
use super::text::Fields;
use super::trail::Audit;

const TEXT: usize = limits::AUDIT_TEXT_BYTES;

/// What was issued.
#[derive(Clone, Debug)]
pub struct IssuedFacts {
    /// Serial number.
    pub serial: String,
    /// When it ends.
    pub until: SystemTime,
    /// Addresses in it.
    pub ips: Vec<IpAddr>,
}

/// One answer.
#[derive(Clone, Debug)]
pub struct EnrolmentEvent {
    /// From where, when it came to our door.
    pub address: Option<SocketAddr>,
    /// Name of the signing request, when it came by the Kubernetes API.
    pub request: Option<String>,
    /// What was shown, in a word.
    pub proof: &'static str,
    /// The node, by the proof; what was asked for where there is none; empty where neither is.
    pub node: String,
    /// Id of the join token.
    pub join: Option<String>,
    /// SHA-256 of the key that the certificate is for, hexadecimal.
    pub key: Option<String>,
    /// What became of it.
    pub outcome: Result<IssuedFacts, (Refusal, String)>,
}

impl Audit {
    /// An enrolment was answered.
    pub fn enrolment(&self, event: EnrolmentEvent) {
        self.tell(Event::Enrolment(Box::new(event)));
    }
}

/// What an answer adds to the beginning of a record.
pub fn add(fields: &mut Fields, event: &EnrolmentEvent) {
    if let Some(address) = event.address {
        fields.shown("address", address, TEXT);
    }
    if let Some(request) = &event.request {
        fields.text("request", request, TEXT);
    }
    fields.word("proof", event.proof);
    if !event.node.is_empty() {
        fields.text("node", &event.node, TEXT);
    }
    if let Some(join) = &event.join {
        fields.text("join_token", join, TEXT);
    }
    if let Some(key) = &event.key {
        fields.text("key", key, TEXT);
    }
    match &event.outcome {
        Ok(issued) => {
            let ips: Vec<String> = issued.ips.iter().map(ToString::to_string).collect();
            fields
                .word("outcome", "issued")
                .shown("agent_serial", &issued.serial, TEXT)
                .text("until", &date::text(issued.until), TEXT)
                .list("ips", ips.iter().map(String::as_str), TEXT);
        }
        Err((refusal, text)) => {
            fields
                .word("outcome", "refused")
                .word("reason", refusal.as_str())
                .text("detail", &detail(text), TEXT);
        }
    }
}
