//! What a verb answers: a text for people, and the same for machines.
//!
//! With `-o json` every verb prints one document of one shape, also when it fails:
//!
//! ```json
//! { "verb": "issue", "exit": 0, "error": null, "result": { "certificates": [], "files": [] } }
//! ```
//!
//! `result` is the verb's own, but certificates and files look the same in all of them
//! ([`certificate`], [`file`]). Fields are added over time and never change their meaning.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use serde_json::{Value, json};
use towline_pki::{Certificate, Issued, date};

use super::Failure;

/// How an answer is written.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Form {
    /// Text for people
    Human,
    /// One JSON document: verb, exit, error, result
    Json,
}

/// The same answer twice.
#[derive(Debug)]
pub(crate) struct Answer {
    text: String,
    result: Value,
}

impl Answer {
    /// `result` is an object with everything that the text says.
    pub(crate) fn new(text: String, result: Value) -> Self {
        Self { text, result }
    }

    pub(crate) fn prepend(&mut self, text: &str) {
        self.text.insert_str(0, text);
    }

    pub(crate) fn append(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// One more field of the result.
    pub(crate) fn add(&mut self, name: &str, value: Value) {
        if let Value::Object(fields) = &mut self.result {
            fields.insert(name.to_owned(), value);
        }
    }
}

impl From<String> for Answer {
    fn from(text: String) -> Self {
        let result = json!({ "text": text });
        Self { text, result }
    }
}

/// A verb's result with its answer in the one form.
pub(crate) fn of(result: Result<impl Into<Answer>, Failure>) -> Result<Answer, Failure> {
    result.map(Into::into)
}

/// Prints what a verb came to, and says how the process ends.
pub(crate) fn print(verb: &str, form: Form, result: Result<Answer, Failure>) -> ExitCode {
    let (answer, failure) = match result {
        Ok(answer) => (Some(answer), None),
        Err(mut failure) => (failure.answer.take(), Some(failure)),
    };
    let code = failure.as_ref().map_or(0, Failure::code);
    let message = failure.map(|failure| failure.to_string());
    let out = match form {
        Form::Human => answer.map_or_else(String::new, |answer| answer.text),
        Form::Json => {
            let result = answer.map(|answer| answer.result);
            let document =
                json!({ "verb": verb, "exit": code, "error": message, "result": result });
            format!("{document:#}\n")
        }
    };
    let written = write(&out);
    if let Some(message) = message {
        say(&message);
    }
    if !written && code == 0 {
        return ExitCode::from(1);
    }
    ExitCode::from(code)
}

/// A reader that went away (`| head`) is not a failure of ours.
fn write(out: &str) -> bool {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(out.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            say(&format!("cannot write the answer: {error}"));
            false
        }
        _ => true,
    }
}

/// To standard error, which may be closed.
fn say(message: &str) {
    let _ = writeln!(io::stderr(), "towline-pki: {message}");
}

/// A certificate, in every answer.
pub(crate) fn certificate(certificate: &Certificate, now: SystemTime) -> Value {
    let texts = |items: Vec<String>| Value::from(items);
    json!({
        "identity": certificate.identity().ok().map(|identity| json!({
            "uri": identity.to_string(),
            "cluster": identity.cluster.as_str(),
            "role": identity.role.as_str(),
            "name": identity.name.as_str(),
        })),
        "subject": certificate.subject,
        "issuer": certificate.issuer,
        "serial": certificate.serial.to_string(),
        "sha256": certificate.fingerprint.to_string(),
        "notBefore": date::text(certificate.not_before),
        "notAfter": date::text(certificate.not_after),
        "secondsLeft": date::seconds(certificate.not_after).saturating_sub(date::seconds(now)),
        "state": state(certificate, now),
        "authority": certificate.is_authority,
        "pathLength": certificate.path_length,
        "usages": texts(certificate.usages.iter().map(ToString::to_string).collect()),
        "uris": certificate.uris,
        "dns": certificate.dns_sans,
        "ips": texts(certificate.ip_sans.iter().map(ToString::to_string).collect()),
        "key": certificate.key,
    })
}

/// What was just issued; it was read back when it was made.
pub(crate) fn issued(issued: &Issued, now: SystemTime) -> Value {
    let chain = issued.chain.iter();
    chain
        .filter_map(|der| Certificate::parse(der.as_ref()).ok())
        .map(|read| certificate(&read, now))
        .collect()
}

/// How a certificate stands by itself.
pub(crate) fn state(certificate: &Certificate, now: SystemTime) -> &'static str {
    if certificate.is_current(now) {
        "valid"
    } else if now < certificate.not_before {
        "not-yet-valid"
    } else {
        "expired"
    }
}

/// A file that was written. `holds`: "certificate", "private-key", "request", "trust", ...
pub(crate) fn file(path: &Path, holds: &str) -> Value {
    json!({ "path": path.display().to_string(), "holds": holds })
}
