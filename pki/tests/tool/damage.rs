//! What can happen to a file, and what the answer to it must be.

use super::Answer;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Certificate,
    Key,
    Request,
    /// A revocation list.
    List,
    /// Text that people write.
    Text,
    /// Lines that are only ever added to.
    Journal,
}

impl Kind {
    fn is_pem(self) -> bool {
        !matches!(self, Kind::Text | Kind::Journal)
    }
}

/// What happens to a file. `None`: this damage is none for this kind.
pub type Damage = fn(&[u8], Kind) -> Option<Vec<u8>>;

pub const DAMAGES: &[(&str, Damage)] = &[
    ("empty", |_, kind| (kind.is_pem()).then(Vec::new)),
    ("cut in the middle", |text, kind| {
        kind.is_pem().then(|| text[..text.len() * 2 / 5].to_vec())
    }),
    ("cut before its last line", |text, kind| {
        kind.is_pem().then(|| text[..text.len() - 25].to_vec())
    }),
    ("a letter that is no base64", |text, kind| {
        if !kind.is_pem() {
            return None;
        }
        let mut text = text.to_vec();
        let middle = text.len() / 2;
        text[middle] = b'*';
        Some(text)
    }),
    ("another letter", |text, kind| {
        if !kind.is_pem() {
            return None;
        }
        // In a name of a certificate it is only another name; so the length in front.
        let text = String::from_utf8_lossy(text);
        let at = text.find("-----\n")? + 6;
        let mut bytes = text.clone().into_owned().into_bytes();
        bytes[at] = b'A';
        (kind != Kind::Key || !text.contains("PARAMETERS")).then_some(bytes)
    }),
    ("garbage inside, behind the end", |text, kind| {
        if !kind.is_pem() {
            return None;
        }
        let text = String::from_utf8_lossy(text);
        let end = text.find("-----END")?;
        let padded = text[..end].trim_end().ends_with('=');
        let mut out = text[..end].trim_end().trim_end_matches('=').to_owned();
        // The length must be a whole number of groups for the decoder to come so far.
        out.push_str(if padded { "AAAAAAAAA=" } else { "\nAAAAAAAA" });
        Some(format!("{out}\n{}", &text[end..]).into_bytes())
    }),
    ("a zero in front of the end", |text, kind| {
        if !kind.is_pem() {
            return None;
        }
        let mut text = text.to_vec();
        let at = text.len() - 40;
        text[at] = 0;
        Some(text)
    }),
    ("another kind", |_, kind| {
        let label = match kind {
            Kind::Certificate => "PUBLIC KEY",
            Kind::Key | Kind::Request | Kind::List => "CERTIFICATE",
            Kind::Text | Kind::Journal => return None,
        };
        Some(format!("-----BEGIN {label}-----\nMAA=\n-----END {label}-----\n").into_bytes())
    }),
    ("binary", |_, _| {
        Some((0..=255).cycle().take(4000).collect())
    }),
    ("UTF-16", |text, _| {
        let wide = text.iter().flat_map(|byte| [*byte, 0]);
        Some([0xff, 0xfe].into_iter().chain(wide).collect())
    }),
    ("larger than any", |_, kind| {
        (kind != Kind::Journal).then(|| vec![b'\n'; 5 * 1024 * 1024])
    }),
];

/// One error, of the documented code, that names the file and is no panic.
#[track_caller]
pub fn one_clear_error(answer: &Answer, codes: &[i32], file: &str, what: &str) {
    let shown = format!("{what}: {} {}{}", answer.code, answer.out, answer.err);
    assert!(codes.contains(&answer.code), "{shown}");
    assert!(!answer.err.contains("panicked"), "{shown}");
    assert_eq!(answer.err.matches("towline-pki: ").count(), 1, "{shown}");
    let name = file.rsplit('/').next().unwrap();
    assert!(answer.err.contains(name), "no {name}: {shown}");
    assert!(answer.err.len() < 1500, "{shown}");
    let plain = |c: char| c == '\n' || !c.is_control();
    assert!(answer.err.chars().all(plain), "{shown}");
}
