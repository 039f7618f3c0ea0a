//! Join tokens: one-time secrets by which a new node gets its first certificate.
//!
//! The token is what the node is given:
//!
//! ```text
//! towline-join:<id>:<secret>:<cluster>:<hash of the servers' authority>[,<hash>]
//! ```
//!
//! It carries the hash of the authority, so the very first connection is verified already. The
//! file is what the servers are given: no secret is in it, only hashes of secrets. A secret is 256
//! random bits, which nobody guesses, so its hash needs neither salt nor slowness.
//!
//! ```text
//! <id> sha256:<hex> <node or pattern> <until, 2026-11-22T10:00:00Z> [ip=10.0.1.7,fd00::7]
//! ```
//!
//! A line that does not read makes the whole file an error, so that a slip of the hand never
//! turns a narrow token into a wide one.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use towline_proto::id::{ClusterName, Name};
use towline_proto::limits;
use towline_proto::pattern::Pattern;

use crate::date;
use crate::first_contact::KeyHash;
use crate::inspect::escape;
use crate::key::sha256;
use crate::role::{NameRefusal, Profile};
use crate::seal::hex;
use crate::secret::Secret;
use crate::store::{self, Replace, StoreError};
use crate::tls;

const PREFIX: &str = "towline-join";
const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;

/// Name of a token, no secret: 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JoinId([u8; ID_BYTES]);

impl fmt::Display for JoinId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for JoinId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for JoinId {
    type Err = JoinError;
    fn from_str(text: &str) -> Result<Self, JoinError> {
        unhex(text).map(Self).ok_or(JoinError::Id)
    }
}

/// Which token a text is, of whatever kind, without keeping it.
pub fn token_hash(text: &str) -> [u8; 32] {
    sha256(text.as_bytes())
}

/// What is wrong with a join token, or a file of them. Never says what a token is.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{path}: {source}", path = path.display())]
    In {
        path: PathBuf,
        source: Box<JoinError>,
    },
    #[error(
        "not a join token: it is one line that begins with \"{PREFIX}:\", as `towline-pki token create` prints it"
    )]
    Token,
    #[error("not the id of a join token: 16 hexadecimal digits")]
    Id,
    #[error("not text (UTF-8)")]
    NotText,
    #[error("line {line}: {what}")]
    Line { line: usize, what: String },
    #[error("line {line}: more than {max} join tokens")]
    Many { line: usize, max: usize },
    #[error("{path}: is no mark of a used join token, as servers write it", path = path.display())]
    Mark { path: PathBuf },
    #[error("the random source failed")]
    Random,
    #[error(transparent)]
    Names(#[from] NameRefusal),
}

/// What a node is given.
pub struct JoinToken {
    pub id: JoinId,
    secret: Secret,
    pub cluster: ClusterName,
    /// Hashes of the public keys of the authorities that sign servers.
    pub authorities: Vec<KeyHash>,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({})", self.id)
    }
}

impl JoinToken {
    /// A new one.
    pub fn make(cluster: ClusterName, authorities: Vec<KeyHash>) -> Result<Self, JoinError> {
        let (mut id, mut secret) = ([0; ID_BYTES], vec![0; SECRET_BYTES]);
        tls::fill_random(&mut id).map_err(|_| JoinError::Random)?;
        tls::fill_random(&mut secret).map_err(|_| JoinError::Random)?;
        Ok(Self {
            id: JoinId(id),
            secret: Secret::new(secret),
            cluster,
            authorities,
        })
    }

    /// Reads one, from a file or from a peer.
    pub fn parse(text: &str) -> Result<Self, JoinError> {
        let text = text.trim_ascii();
        if text.len() > limits::JOIN_TOKEN_BYTES {
            return Err(JoinError::Token);
        }
        let parts: Vec<&str> = text.split(':').collect();
        let [PREFIX, id, secret, cluster, hashes] = parts[..] else {
            return Err(JoinError::Token);
        };
        let secret: [u8; SECRET_BYTES] = unhex(secret).ok_or(JoinError::Token)?;
        let authorities = hashes.split(',').map(unhex::<32>);
        let authorities: Option<Vec<_>> = authorities.collect();
        let authorities = authorities.ok_or(JoinError::Token)?;
        if authorities.len() > limits::JOIN_AUTHORITIES {
            return Err(JoinError::Token);
        }
        Ok(Self {
            id: id.parse().map_err(|_| JoinError::Token)?,
            secret: Secret::new(secret.to_vec()),
            cluster: cluster.parse().map_err(|_| JoinError::Token)?,
            authorities,
        })
    }

    /// Reads the file that a node was given; nobody else may be able to read it.
    pub fn load(path: &Path) -> Result<Self, JoinError> {
        let secret = store::read_secret(path)?;
        let inside = |source| JoinError::In {
            path: path.into(),
            source: Box::new(source),
        };
        let text = std::str::from_utf8(secret.expose()).map_err(|_| inside(JoinError::NotText))?;
        Self::parse(text).map_err(inside)
    }

    /// One line, for the node. A secret.
    pub fn to_text(&self) -> Secret {
        let hashes: Vec<String> = self.authorities.iter().map(|hash| hex(hash)).collect();
        let text = format!(
            "{PREFIX}:{}:{}:{}:{}",
            self.id,
            hex(self.secret.expose()),
            self.cluster,
            hashes.join(",")
        );
        Secret::new(text.into_bytes())
    }

    fn hash(&self) -> [u8; 32] {
        sha256(self.secret.expose())
    }
}

/// One token as servers know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinEntry {
    pub id: JoinId,
    hash: [u8; 32],
    /// Which node may use it.
    pub node: Pattern,
    /// Until when, the second itself included.
    pub until: SystemTime,
    /// Addresses of the node, by the operator's word; only for one name.
    pub ips: Vec<IpAddr>,
}

impl JoinEntry {
    /// For a new token.
    pub fn new(
        token: &JoinToken,
        node: Pattern,
        until: SystemTime,
        ips: Vec<IpAddr>,
    ) -> Result<Self, JoinError> {
        Profile::of(towline_proto::id::Role::Agent).check_names(&[], &ips)?;
        Ok(Self {
            id: token.id,
            hash: token.hash(),
            node,
            until: date::from_seconds(date::seconds(until)),
            ips,
        })
    }

    /// Whether its time is over.
    pub fn is_over(&self, now: SystemTime) -> bool {
        date::seconds(now) > date::seconds(self.until)
    }

    /// The node that the token is for, when it is for one.
    pub fn name(&self) -> Option<Name> {
        self.node.exact().and_then(|name| name.parse().ok())
    }
}

impl fmt::Display for JoinEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} sha256:{} {} {}",
            self.id,
            hex(&self.hash),
            self.node,
            date::text(self.until)
        )?;
        for (index, ip) in self.ips.iter().enumerate() {
            write!(f, "{}{ip}", if index == 0 { " ip=" } else { "," })?;
        }
        Ok(())
    }
}

/// Every token that servers know. Cheap to clone, never changed.
#[derive(Clone, Debug, Default)]
pub struct JoinFile {
    entries: Arc<[JoinEntry]>,
}

const HEAD: &str = "# Join tokens of Towline: hashes only. Written by `towline-pki token`.\n";

impl JoinFile {
    /// Reads a file. One that is missing is an error: who asks for it means it.
    pub fn load(path: &Path) -> Result<Self, JoinError> {
        Self::parse(&store::read(path)?).map_err(|source| JoinError::In {
            path: path.into(),
            source: Box::new(source),
        })
    }

    /// Reads text.
    pub fn parse(text: &[u8]) -> Result<Self, JoinError> {
        let text = std::str::from_utf8(text).map_err(|_| JoinError::NotText)?;
        let mut entries: Vec<JoinEntry> = Vec::new();
        for (index, whole) in text.lines().enumerate() {
            let line = index + 1;
            let entry = whole.split('#').next().unwrap_or_default().trim();
            if entry.is_empty() {
                continue;
            }
            if entries.len() == limits::JOIN_TOKENS {
                let max = limits::JOIN_TOKENS;
                return Err(JoinError::Many { line, max });
            }
            let read = entry_of(entry).map_err(|what| JoinError::Line { line, what })?;
            entries.push(read);
        }
        entries.sort_by_key(|entry| entry.id);
        if let Some(pair) = entries.windows(2).find(|pair| pair[0].id == pair[1].id) {
            let what = format!("join token {} is there twice", pair[0].id);
            return Err(JoinError::Line { line: 0, what });
        }
        Ok(Self {
            entries: entries.into(),
        })
    }

    /// The entry of a token, if the secret is the right one too.
    pub fn find(&self, token: &JoinToken) -> Option<&JoinEntry> {
        let at = self
            .entries
            .binary_search_by_key(&token.id, |entry| entry.id)
            .ok()?;
        let entry = self.entries.get(at)?;
        verify_slices_are_equal(&entry.hash, &token.hash()).ok()?;
        Some(entry)
    }

    /// Every token, by id.
    pub fn entries(&self) -> &[JoinEntry] {
        &self.entries
    }

    /// With these entries instead.
    pub fn with(entries: Vec<JoinEntry>) -> Self {
        let mut entries = entries;
        entries.sort_by_key(|entry| entry.id);
        Self {
            entries: entries.into(),
        }
    }

    /// Replaces a file in one step. Readable by everybody: there is no secret in it.
    pub fn write(&self, path: &Path) -> Result<(), JoinError> {
        let mut text = HEAD.to_owned();
        for entry in self.entries.iter() {
            text.push_str(&format!("{entry}\n"));
        }
        store::write_public(path, &text, Replace::Atomically)?;
        Ok(())
    }
}

fn entry_of(text: &str) -> Result<JoinEntry, String> {
    let shown = |text: &str| escape(&text.chars().take(80).collect::<String>());
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let (id, hash, node, until, ips) = match words[..] {
        [id, hash, node, until] => (id, hash, node, until, None),
        [id, hash, node, until, ips] => (id, hash, node, until, Some(ips)),
        _ => return Err("wants: id, sha256:HASH, node or pattern, time, perhaps ip=LIST".into()),
    };
    let id = id.parse::<JoinId>().map_err(|error| error.to_string())?;
    let hash = hash.strip_prefix("sha256:").and_then(unhex);
    let hash =
        hash.ok_or_else(|| "the hash is not sha256: and 64 hexadecimal digits".to_owned())?;
    let node = node
        .parse::<Pattern>()
        .map_err(|error| escape(&error.to_string()))?;
    let until = date::from_text(until)
        .filter(|at| date::text(*at) == until)
        .ok_or_else(|| {
            format!(
                "{:?} is not a time such as 2026-11-22T10:00:00Z",
                shown(until)
            )
        })?;
    let ips = match ips {
        None => Vec::new(),
        Some(list) => {
            let list = list.strip_prefix("ip=");
            let list = list.ok_or_else(|| "the fifth word is not ip=LIST".to_owned())?;
            let read = list.split(',').map(|ip| {
                let wrong = || format!("{:?} is not an address", shown(ip));
                ip.parse::<IpAddr>().map_err(|_| wrong())
            });
            read.collect::<Result<Vec<_>, _>>()?
        }
    };
    if ips.len() > limits::LIST_ITEMS {
        return Err("too many addresses".into());
    }
    if !ips.is_empty() && node.exact().is_none() {
        return Err("addresses are of one node, not of a pattern".into());
    }
    Profile::of(towline_proto::id::Role::Agent)
        .check_names(&[], &ips)
        .map_err(|error| error.to_string())?;
    if let Some(name) = node.exact() {
        name.parse::<Name>().map_err(|error| error.to_string())?;
    }
    Ok(JoinEntry {
        id,
        hash,
        node,
        until,
        ips,
    })
}

pub(crate) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let nibble = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut out = [0; N];
    for (to, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = *pair else { return None };
        *to = nibble(high)? << 4 | nibble(low)?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::Scratch;
    use std::time::Duration;

    fn token() -> JoinToken {
        JoinToken::make("prod.example".parse().unwrap(), vec![[7; 32]]).unwrap()
    }

    fn entry(token: &JoinToken, node: &str, until: SystemTime) -> JoinEntry {
        JoinEntry::new(token, node.parse().unwrap(), until, Vec::new()).unwrap()
    }

    #[test]
    fn a_token_reads_back_and_shows_nothing() {
        let made = token();
        let text = made.to_text();
        let read = JoinToken::parse(std::str::from_utf8(text.expose()).unwrap()).unwrap();
        assert_eq!(read.id, made.id);
        assert_eq!(read.hash(), made.hash());
        assert_eq!(read.authorities, made.authorities);
        assert_eq!(format!("{made:?}"), format!("JoinToken({})", made.id));
        for bad in [
            "",
            "towline-join",
            "towline-join:1:2:3:4",
            "x:y:z:a:b",
            "\u{1b}[2J",
        ] {
            let error = JoinToken::parse(bad).unwrap_err().to_string();
            assert!(error.contains("token create"), "{error}");
        }
    }

    #[test]
    fn a_file_knows_its_tokens_and_no_others() {
        let dir = Scratch::new();
        let path = dir.path("tokens");
        let now = date::from_seconds(1_800_000_000);
        let (one, two) = (token(), token());
        let with_ip = JoinEntry::new(
            &two,
            "n2".parse().unwrap(),
            now,
            vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
        );
        let entries = vec![entry(&one, "worker-*", now), with_ip.unwrap()];
        JoinFile::with(entries.clone()).write(&path).unwrap();
        let file = JoinFile::load(&path).unwrap();
        assert_eq!(file.entries().len(), 2);
        let found = file.find(&one).unwrap();
        assert_eq!((found.name(), found.node.fits("worker-7")), (None, true));
        assert_eq!(file.find(&two).unwrap().ips.len(), 2);
        assert!(file.find(&token()).is_none());
        // The right id with another secret is nobody's token.
        let forged = JoinToken {
            id: one.id,
            ..token()
        };
        assert!(file.find(&forged).is_none());
        let text = String::from_utf8(std::fs::read(&path).unwrap()).unwrap();
        assert!(!text.contains(&hex(one.secret.expose())));
    }

    #[test]
    fn its_last_second_counts_and_the_next_does_not() {
        let until = date::from_seconds(1_800_000_000);
        let entry = entry(&token(), "n1", until);
        assert!(!entry.is_over(until - Duration::from_secs(1)));
        assert!(!entry.is_over(until));
        assert!(entry.is_over(until + Duration::from_secs(1)));
    }

    #[test]
    fn one_bad_line_refuses_the_file_and_says_which() {
        let now = date::from_seconds(1_800_000_000);
        let good = entry(&token(), "n1", now).to_string();
        for bad in [
            "x".to_owned(),
            good.replace(" n1 ", " N1 "),
            good.replace(" n1 ", " a/b "),
            good.replace("sha256:", "md5:"),
            good.replace("2027", "20x7"),
            format!("{good} ip=10.0.0.300"),
            format!("{good} ip=127.0.0.1"),
            format!("{} ip=10.0.0.1", good.replace(" n1 ", " n* ")),
            format!("{good} more words"),
            good.clone(),
        ] {
            let text = format!("{good}\n{bad}\n");
            let error = JoinFile::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(
                error.contains("line 2") || error.contains("twice"),
                "{error}"
            );
        }
        assert!(matches!(JoinFile::parse(b"\xff"), Err(JoinError::NotText)));
        assert!(
            JoinFile::parse(b"# nothing\n\n")
                .unwrap()
                .entries()
                .is_empty()
        );
    }
}
