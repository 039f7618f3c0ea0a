//! `inspect`: what certificates and requests say, for people and for machines.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::SystemTime;

use serde_json::{Value, json};
use towline_pki::{Certificate, Request, date, pem, store};

use super::answer::{self, Answer};
use super::{EXIT_CODES, Failure};

const EXAMPLES: &str = "\
Examples:
  towline-pki inspect agent-node-7.crt
  towline-pki inspect trust/agents.pem -o json";

/// Show every certificate of a file, or a signing request. Nothing is verified.
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(crate) struct Args {
    /// File with certificates or a signing request (PEM)
    file: PathBuf,
}

pub(crate) fn run(args: &Args, now: SystemTime) -> Result<Answer, Failure> {
    let text = store::read(&args.file)?;
    let named =
        |error: &dyn std::fmt::Display| Failure::file(format!("{}: {error}", args.file.display()));
    if pem::request(&text).is_ok() {
        let request = Request::parse(&text).map_err(|error| named(&error))?;
        return Ok(show_request(&request));
    }
    let chain = pem::certificates(&text).map_err(|error| named(&error))?;
    let mut read = Vec::with_capacity(chain.len());
    for (index, der) in chain.iter().enumerate() {
        let certificate = Certificate::parse(der.as_ref())
            .map_err(|error| named(&format!("certificate {}: {error}", index + 1)))?;
        read.push(certificate);
    }
    let count = read.len();
    let mut out = String::new();
    for (index, certificate) in read.iter().enumerate() {
        let _ = writeln!(out, "certificate {} of {count}", index + 1);
        out.push_str(&as_text(certificate, now));
    }
    let all: Vec<Value> = read.iter().map(|c| answer::certificate(c, now)).collect();
    Ok(Answer::new(out, json!({ "certificates": all })))
}

fn show_request(request: &Request) -> Answer {
    let key = request.public_key().describe();
    let text = format!(
        "signing request, signed by the key inside it\n\
         \x20 key       {key}\n\
         \x20 asks for  {}\n\
         \x20           (`towline-pki sign` takes the key only)\n",
        request.asked().join(", ")
    );
    let result = json!({ "request": { "key": key, "asks": request.asked() } });
    Answer::new(text, result)
}

fn as_text(certificate: &Certificate, now: SystemTime) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "  {name:<12}{value}");
    };
    match certificate.identity() {
        Ok(identity) => line("identity", identity.to_string()),
        Err(error) if !certificate.is_authority => line("identity", format!("none: {error}")),
        Err(_) => {}
    }
    line("subject", certificate.subject.clone());
    line("issuer", certificate.issuer.clone());
    if certificate.is_authority {
        let below = match certificate.path_length {
            Some(0) => "signs leaves only".into(),
            Some(n) => format!("up to {n} authorities below it"),
            None => "any number of authorities below it".into(),
        };
        line("authority", format!("yes, {below}"));
    }
    line("usages", list(&certificate.usages));
    line("DNS names", list(&certificate.dns_sans));
    line("addresses", list(&certificate.ip_sans));
    if certificate.identity().is_err() && !certificate.uris.is_empty() {
        line("URIs", list(&certificate.uris));
    }
    line("key", certificate.key.clone());
    line("serial", certificate.serial.to_string());
    line("SHA-256", certificate.fingerprint.to_string());
    line("not before", date::text(certificate.not_before));
    let end = certificate.not_after;
    let mark = match answer::state(certificate, now) {
        "valid" => String::new(),
        "expired" => " EXPIRED".into(),
        _ => " NOT YET VALID".into(),
    };
    let distance = date::distance(now, end);
    line(
        "not after",
        format!("{} ({distance}){mark}", date::text(end)),
    );
    out
}

fn list<T: ToString>(items: &[T]) -> String {
    if items.is_empty() {
        return "none".into();
    }
    let texts: Vec<String> = items.iter().map(T::to_string).collect();
    texts.join(", ")
}
