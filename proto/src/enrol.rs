//! Enrolment: one request for a certificate, and its answer, on a connection of its own
//! (ALPN `towline-enrol/1`, TLS over TCP).
//!
//! ```text
//! request:  length u16 | record
//! issued:   0 u8 | length u16 | record
//! refused:  1 u8 | length u16 | record
//! ```
//!
//! A token is never shown by `Debug`.

use std::fmt;

use crate::codec::{CodecError, Reader, Writer, once};
use crate::id::Name;
use crate::limits;

/// A secret text of the peer: a token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Box<str>);

impl Token {
    /// Printable characters without blanks, not empty, within the bound.
    pub fn new(text: &str) -> Option<Self> {
        let usable = |byte: u8| (0x21..0x7f).contains(&byte);
        let good =
            !text.is_empty() && text.len() <= limits::KUBE_TOKEN_BYTES && text.bytes().all(usable);
        good.then(|| Self(text.into()))
    }

    /// The text.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// What the agent proves its name with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The certificate of this very connection.
    Certificate,
    /// A projected service-account token, bound to a pod and thereby to a node.
    ServiceAccount(Token),
    /// A one-time join token.
    Join(Token),
}

impl Proof {
    /// The word for logs, metrics and audit.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Proof::Certificate => "certificate",
            Proof::ServiceAccount(_) => "service-account",
            Proof::Join(_) => "join-token",
        }
    }
}

/// A request for a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrolRequest {
    /// PKCS#10, DER. Only its key counts.
    pub csr: Vec<u8>,
    /// Why the agent is who it says.
    pub proof: Proof,
    /// The node name that the agent wants; it never widens what the proof says.
    pub name: Option<Name>,
    /// For people.
    pub software: String,
}

/// Why no certificate is issued. A number on the wire; unknown ones are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The request cannot be read, or has a field that it must not have.
    Malformed,
    /// The signing request: damaged, of a kind of key that is not taken, not signed by its key.
    SigningRequest,
    /// This kind of proof is not taken here.
    ProofOff,
    /// No certificate was shown where one is the proof.
    NoCertificate,
    /// The Kubernetes API does not know the token, or its time is over.
    BadToken,
    /// The token is not for us.
    Audience,
    /// The token is another service account's.
    ServiceAccount,
    /// The token is bound to no pod or no node.
    Unbound,
    /// The node is not there.
    NoNode,
    /// The proof is another node's than the one asked for.
    OtherName,
    /// The identity is denied until `towline-pki` lifts that.
    Denied,
    /// The token was used before, with another key.
    Replayed,
    /// The join token is unknown or was taken back.
    JoinUnknown,
    /// The join token's time is over.
    JoinExpired,
    /// The join token was used.
    JoinUsed,
    /// Somebody holds a valid certificate of this name.
    NameTaken,
    /// An address of the node is somebody else's.
    AddressTaken,
    /// Too much at once.
    Busy,
    /// The server cannot do it at the moment.
    Unavailable,
    /// Something newer.
    Other(u16),
}

/// Number, variant, word.
const TABLE: [(u16, Refusal, &str); 19] = [
    (1, Refusal::Malformed, "malformed"),
    (2, Refusal::SigningRequest, "signing-request"),
    (3, Refusal::ProofOff, "proof-off"),
    (4, Refusal::NoCertificate, "no-certificate"),
    (5, Refusal::BadToken, "bad-token"),
    (6, Refusal::Audience, "audience"),
    (7, Refusal::ServiceAccount, "service-account"),
    (8, Refusal::Unbound, "unbound"),
    (9, Refusal::NoNode, "no-node"),
    (10, Refusal::OtherName, "other-name"),
    (11, Refusal::Denied, "denied"),
    (12, Refusal::Replayed, "replayed"),
    (13, Refusal::JoinUnknown, "join-unknown"),
    (14, Refusal::JoinExpired, "join-expired"),
    (15, Refusal::JoinUsed, "join-used"),
    (16, Refusal::NameTaken, "name-taken"),
    (17, Refusal::AddressTaken, "address-taken"),
    (18, Refusal::Busy, "busy"),
    (19, Refusal::Unavailable, "unavailable"),
];

impl Refusal {
    /// Every one with a number of its own.
    pub fn all() -> impl Iterator<Item = Refusal> {
        TABLE.iter().map(|(_, refusal, _)| *refusal)
    }

    /// The number on the wire.
    pub fn code(self) -> u16 {
        match self {
            Refusal::Other(code) => code,
            known => TABLE
                .iter()
                .find(|(_, refusal, _)| *refusal == known)
                .map_or(0, |(code, ..)| *code),
        }
    }

    /// From the wire.
    pub fn from_code(code: u16) -> Self {
        TABLE
            .iter()
            .find(|(known, ..)| *known == code)
            .map_or(Refusal::Other(code), |(_, refusal, _)| *refusal)
    }

    /// The word for logs, metrics and audit.
    pub fn as_str(self) -> &'static str {
        TABLE
            .iter()
            .find(|(_, refusal, _)| *refusal == self)
            .map_or("other", |(.., word)| *word)
    }

    /// Whether the same proof may do later: the server was at fault, not the proof.
    pub const fn is_temporary(self) -> bool {
        matches!(self, Refusal::Busy | Refusal::Unavailable)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Other(code) => write!(f, "other ({code})"),
            known => f.write_str(known.as_str()),
        }
    }
}

/// The server's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnrolReply {
    /// The certificates to present, DER, leaf first.
    Issued(Vec<Vec<u8>>),
    /// None, and why.
    Refused {
        /// For machines.
        refusal: Refusal,
        /// For people; never a secret.
        text: String,
    },
}

mod tag {
    pub(super) const CSR: u8 = 1;
    pub(super) const SERVICE_ACCOUNT: u8 = 2;
    pub(super) const JOIN: u8 = 3;
    pub(super) const NAME: u8 = 4;
    pub(super) const SOFTWARE: u8 = 5;
    pub(super) const CERTIFICATE: u8 = 1;
    pub(super) const REFUSAL: u8 = 1;
    pub(super) const TEXT: u8 = 2;
}

/// First byte of an answer with certificates.
pub const ISSUED: u8 = 0;
/// First byte of a refusal.
pub const REFUSED: u8 = 1;

fn prefixed(head: &[u8], body: Vec<u8>) -> Vec<u8> {
    let len = u16::try_from(body.len()).unwrap_or(u16::MAX);
    let mut out = head.to_vec();
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(&body);
    out
}

impl EnrolRequest {
    /// The request with its length in front.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Writer::new();
        body.field(tag::CSR, &self.csr);
        match &self.proof {
            Proof::Certificate => {}
            Proof::ServiceAccount(token) => {
                body.field(tag::SERVICE_ACCOUNT, token.expose().as_bytes());
            }
            Proof::Join(token) => {
                body.field(tag::JOIN, token.expose().as_bytes());
            }
        }
        if let Some(name) = &self.name {
            body.field(tag::NAME, name.as_str().as_bytes());
        }
        body.field(tag::SOFTWARE, self.software.as_bytes());
        prefixed(&[], body.into_bytes())
    }

    /// Reads a record, without its length.
    pub fn decode(body: &[u8]) -> Result<Self, CodecError> {
        let mut record = Reader::new(body);
        let (mut csr, mut proof, mut name, mut software) = (None, None, None, None);
        while let Some((tag, mut value)) = record.field()? {
            match tag {
                tag::CSR => {
                    let der = rest(&mut value, limits::CERTIFICATE_BYTES, "signing request")?;
                    once(&mut csr, der, "signing request")?;
                }
                tag::SERVICE_ACCOUNT => {
                    let token = token(value, limits::KUBE_TOKEN_BYTES)?;
                    once(&mut proof, Proof::ServiceAccount(token), "proof")?;
                }
                tag::JOIN => {
                    let token = token(value, limits::JOIN_TOKEN_BYTES)?;
                    once(&mut proof, Proof::Join(token), "proof")?;
                }
                tag::NAME => {
                    let text = value.text(Name::MAX_BYTES, "name")?;
                    let read = text.parse().map_err(|_| CodecError::Value("name"))?;
                    once(&mut name, read, "name")?;
                }
                tag::SOFTWARE => {
                    let text = value.text(limits::SOFTWARE_BYTES, "software")?;
                    once(&mut software, text.to_owned(), "software")?;
                }
                _ => {}
            }
        }
        Ok(Self {
            csr: csr.ok_or(CodecError::Missing("signing request"))?,
            proof: proof.unwrap_or(Proof::Certificate),
            name,
            software: software.unwrap_or_default(),
        })
    }
}

impl EnrolReply {
    /// The answer's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Writer::new();
        match self {
            EnrolReply::Issued(chain) => {
                for der in chain {
                    body.field(tag::CERTIFICATE, der);
                }
                prefixed(&[ISSUED], body.into_bytes())
            }
            EnrolReply::Refused { refusal, text } => {
                let mut end = text.len().min(limits::ENROL_TEXT_BYTES);
                while !text.is_char_boundary(end) {
                    end -= 1;
                }
                body.field(tag::REFUSAL, &refusal.code().to_be_bytes())
                    .field(tag::TEXT, &text.as_bytes()[..end]);
                prefixed(&[REFUSED], body.into_bytes())
            }
        }
    }

    /// Reads an answer: its first byte, and the record behind the length.
    pub fn decode(kind: u8, body: &[u8]) -> Result<Self, CodecError> {
        let mut record = Reader::new(body);
        match kind {
            ISSUED => {
                let mut chain = Vec::new();
                while let Some((tag, mut value)) = record.field()? {
                    if tag == tag::CERTIFICATE {
                        if chain.len() == limits::CHAIN_CERTIFICATES {
                            return Err(CodecError::TooLong("chain"));
                        }
                        let der = rest(&mut value, limits::CERTIFICATE_BYTES, "certificate")?;
                        chain.push(der);
                    }
                }
                match chain.is_empty() {
                    true => Err(CodecError::Missing("certificate")),
                    false => Ok(EnrolReply::Issued(chain)),
                }
            }
            REFUSED => {
                let (mut refusal, mut text) = (None, None);
                while let Some((tag, mut value)) = record.field()? {
                    match tag {
                        tag::REFUSAL => {
                            let code = value.u16("refusal")?;
                            value.end("refusal")?;
                            once(&mut refusal, Refusal::from_code(code), "refusal")?;
                        }
                        tag::TEXT => {
                            let read = value.text(limits::ENROL_TEXT_BYTES, "text")?;
                            once(&mut text, read.to_owned(), "text")?;
                        }
                        _ => {}
                    }
                }
                Ok(EnrolReply::Refused {
                    refusal: refusal.ok_or(CodecError::Missing("refusal"))?,
                    text: text.unwrap_or_default(),
                })
            }
            _ => Err(CodecError::Value("answer")),
        }
    }
}

/// All that is left of a field, which must not be empty.
fn rest(value: &mut Reader<'_>, max: usize, what: &'static str) -> Result<Vec<u8>, CodecError> {
    let len = value.len();
    match len {
        0 => Err(CodecError::Missing(what)),
        _ if len > max => Err(CodecError::TooLong(what)),
        _ => Ok(value.take(len, what)?.to_vec()),
    }
}

fn token(value: Reader<'_>, max: usize) -> Result<Token, CodecError> {
    Token::new(value.text(max, "token")?).ok_or(CodecError::Value("token"))
}

/// Fuzz body: whatever bytes come, reading neither panics nor reads back differently.
pub fn fuzz_enrol(data: &[u8]) {
    if let Ok(request) = EnrolRequest::decode(data) {
        let bytes = request.encode();
        assert!(bytes.len() <= 2 + limits::ENROL_REQUEST_BYTES);
        assert_eq!(EnrolRequest::decode(&bytes[2..]), Ok(request));
    }
    for kind in [ISSUED, REFUSED, 2] {
        if let Ok(reply) = EnrolReply::decode(kind, data) {
            assert_eq!(EnrolReply::decode(kind, &reply.encode()[3..]), Ok(reply));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(proof: Proof) -> EnrolRequest {
        EnrolRequest {
            csr: vec![0x30, 1, 2],
            proof,
            name: Some("n1".parse().unwrap()),
            software: "towline-agent/0".to_owned(),
        }
    }

    #[test]
    fn requests_and_answers_read_back() {
        let token = || Token::new("a.b.c").unwrap();
        for proof in [
            Proof::Certificate,
            Proof::ServiceAccount(token()),
            Proof::Join(token()),
        ] {
            let asked = request(proof);
            assert_eq!(EnrolRequest::decode(&asked.encode()[2..]), Ok(asked));
        }
        let issued = EnrolReply::Issued(vec![vec![1], vec![2, 3]]);
        let bytes = issued.encode();
        assert_eq!(EnrolReply::decode(bytes[0], &bytes[3..]), Ok(issued));
        for refusal in Refusal::all() {
            assert_eq!(Refusal::from_code(refusal.code()), refusal);
            let told = EnrolReply::Refused {
                refusal,
                text: refusal.to_string(),
            };
            let bytes = told.encode();
            assert_eq!(EnrolReply::decode(bytes[0], &bytes[3..]), Ok(told));
        }
        assert_eq!(Refusal::from_code(999).to_string(), "other (999)");
    }

    #[test]
    fn two_proofs_are_one_too_many_and_no_token_is_shown() {
        let one = request(Proof::ServiceAccount(Token::new("secret").unwrap()));
        assert!(!format!("{one:?}").contains("secret"));
        let mut bytes = one.encode()[2..].to_vec();
        let mut more = Writer::new();
        more.field(tag::JOIN, b"x");
        bytes.extend(more.into_bytes());
        assert_eq!(
            EnrolRequest::decode(&bytes),
            Err(CodecError::Twice("proof"))
        );
    }

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        let with = |tag, value: &[u8]| {
            let mut body = Writer::new();
            body.field(tag::CSR, b"x").field(tag, value);
            EnrolRequest::decode(&body.into_bytes()).map(drop)
        };
        let long = vec![b'x'; limits::JOIN_TOKEN_BYTES + 1];
        for (tag, value) in [
            (tag::JOIN, &long[..]),
            (tag::JOIN, b""),
            (tag::SERVICE_ACCOUNT, b"a b"),
            (tag::SERVICE_ACCOUNT, b"\xff"),
            (tag::NAME, b"N1"),
            (tag::NAME, b"a/b"),
            (tag::CSR, b"twice"),
        ] {
            assert!(with(tag, value).is_err(), "{tag}");
        }
        assert_eq!(with(200, b"unknown"), Ok(()));
        assert_eq!(
            EnrolRequest::decode(&[]).map(drop),
            Err(CodecError::Missing("signing request"))
        );
        assert!(EnrolReply::decode(ISSUED, &[]).is_err());
        let many = EnrolReply::Issued(vec![vec![1]; limits::CHAIN_CERTIFICATES + 1]);
        assert!(EnrolReply::decode(ISSUED, &many.encode()[3..]).is_err());
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let told = EnrolReply::Refused {
            refusal: Refusal::Busy,
            text: "\u{e4}".repeat(limits::ENROL_TEXT_BYTES),
        };
        let bytes = told.encode();
        let EnrolReply::Refused { text, .. } = EnrolReply::decode(bytes[0], &bytes[3..]).unwrap()
        else {
            panic!("a refusal");
        };
        assert_eq!(text.len(), limits::ENROL_TEXT_BYTES);
    }
}
