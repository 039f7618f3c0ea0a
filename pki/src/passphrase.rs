//! Passphrases: read from a file, from an open descriptor, or from a person at the terminal, and
//! never from an argument or the environment, where every process of the machine can look.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustix::termios::{self, LocalModes, OptionalActions, SpecialCodeIndex, Termios};
use towline_proto::limits;
use zeroize::Zeroizing;

use crate::secret::Secret;
use crate::store::{self, StoreError};

/// Where passphrases come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PassphraseSource {
    /// The first line of a file that others cannot read.
    File(PathBuf),
    /// The first line of an open descriptor of this process.
    Descriptor(u32),
    /// A person, without echo.
    Terminal,
}

/// Why there is no passphrase.
#[derive(Debug, thiserror::Error)]
pub enum PassphraseError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{place}: {fault}")]
    Unfit { place: String, fault: Fault },
    #[error(
        "{what} needs a passphrase, and there is no terminal to ask at ({source}); give it with \
         --{flag}passphrase-file or --{flag}passphrase-fd"
    )]
    NoTerminal {
        what: String,
        /// "root-" where the flags of the root are meant.
        flag: &'static str,
        source: io::Error,
    },
    #[error("the two passphrases differ; nothing was changed")]
    Differ,
    #[error("no passphrase was given; nothing was changed")]
    Cancelled,
}

/// What is wrong with a passphrase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("the first line is empty; it must hold the passphrase")]
    Empty,
    #[error("the first line has more than {} bytes", limits::PASSPHRASE_BYTES)]
    Long,
    #[error("the passphrase has a zero byte or another control character in it")]
    Control,
    #[error(
        "the passphrase has fewer than {} characters, too few to encrypt a key with",
        limits::PASSPHRASE_CHARS
    )]
    Short,
}

/// The passphrase of one or several keys, asked for when it is first needed and then kept.
#[derive(Debug)]
pub struct Passphrases {
    source: PassphraseSource,
    flag: &'static str,
    kept: Option<Secret>,
}

impl Passphrases {
    /// `flag` is in front of the names of the flags: empty, or "root-".
    pub fn new(source: PassphraseSource, flag: &'static str) -> Self {
        Self {
            source,
            flag,
            kept: None,
        }
    }

    /// Where it comes from.
    pub fn source(&self) -> &PassphraseSource {
        &self.source
    }

    /// The passphrase that opens `what`. A terminal is asked for each key anew, because each may
    /// have another one.
    pub fn open(&mut self, what: &Path) -> Result<&Secret, PassphraseError> {
        if self.source == PassphraseSource::Terminal || self.kept.is_none() {
            let read = self.read(&format!("passphrase of {}: ", what.display()), what)?;
            self.kept = Some(read);
        }
        self.kept.as_ref().ok_or(PassphraseError::Cancelled)
    }

    /// The passphrase to encrypt new keys with: long enough, and asked for twice at a terminal.
    pub fn choose(&mut self, what: &str) -> Result<&Secret, PassphraseError> {
        let named = Path::new(what);
        if self.kept.is_none() {
            let first = self.read(&format!("new passphrase of {what}: "), named)?;
            let unfit = |fault| PassphraseError::Unfit {
                place: self.place(),
                fault,
            };
            let chars = String::from_utf8_lossy(first.expose()).chars().count();
            if chars < limits::PASSPHRASE_CHARS {
                return Err(unfit(Fault::Short));
            }
            if self.source == PassphraseSource::Terminal {
                let second = self.read("the same again: ", named)?;
                if first.expose() != second.expose() {
                    return Err(PassphraseError::Differ);
                }
            }
            self.kept = Some(first);
        }
        self.kept.as_ref().ok_or(PassphraseError::Cancelled)
    }

    fn place(&self) -> String {
        match &self.source {
            PassphraseSource::File(path) => path.display().to_string(),
            PassphraseSource::Descriptor(number) => format!("descriptor {number}"),
            PassphraseSource::Terminal => "terminal".to_owned(),
        }
    }

    fn read(&self, prompt: &str, what: &Path) -> Result<Secret, PassphraseError> {
        let unfit = |fault| PassphraseError::Unfit {
            place: self.place(),
            fault,
        };
        match &self.source {
            PassphraseSource::File(path) => first_line(store::open_secret(path)?)
                .map_err(|source| StoreError::Read {
                    path: path.clone(),
                    source,
                })?
                .map_err(unfit),
            PassphraseSource::Descriptor(number) => store::open_descriptor(*number)
                .and_then(first_line)
                .map_err(|source| StoreError::Read {
                    path: format!("descriptor {number}").into(),
                    source,
                })?
                .map_err(unfit),
            PassphraseSource::Terminal => {
                let no_terminal = |source| PassphraseError::NoTerminal {
                    what: what.display().to_string(),
                    flag: self.flag,
                    source,
                };
                let mut terminal = store::open_terminal().map_err(no_terminal)?;
                match ask(&mut terminal, prompt).map_err(no_terminal)? {
                    Some(line) => fit(line).map_err(unfit),
                    None => Err(PassphraseError::Cancelled),
                }
            }
        }
    }
}

/// Bytes up to the end of the first line, without it.
fn first_line(mut from: impl Read) -> io::Result<Result<Secret, Fault>> {
    // One size from the start: a growing buffer would leave pieces behind.
    let mut line = Zeroizing::new(Vec::with_capacity(limits::PASSPHRASE_BYTES + 2));
    let mut byte = Zeroizing::new([0]);
    loop {
        match from.read(byte.as_mut_slice()) {
            Ok(0) => break,
            Ok(_) if byte[0] == b'\n' => break,
            Ok(_) if line.len() > limits::PASSPHRASE_BYTES => return Ok(Err(Fault::Long)),
            Ok(_) => line.push(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(fit(line))
}

fn fit(line: Zeroizing<Vec<u8>>) -> Result<Secret, Fault> {
    if line.is_empty() {
        return Err(Fault::Empty);
    }
    if line.len() > limits::PASSPHRASE_BYTES {
        return Err(Fault::Long);
    }
    if line.iter().any(u8::is_ascii_control) {
        return Err(Fault::Control);
    }
    Ok(Secret::new(line.to_vec()))
}

/// Asks at a terminal. Nothing typed is shown; the terminal is put back as it was, also after
/// Ctrl-C, which is read here and not a signal. `None`: given up.
fn ask(terminal: &mut File, prompt: &str) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let quiet = Quiet::begin(terminal.try_clone()?)?;
    terminal.write_all(prompt.as_bytes())?;
    terminal.flush()?;
    let line = read_keys(terminal);
    terminal.write_all(b"\n")?;
    drop(quiet);
    line
}

fn read_keys(terminal: &mut impl Read) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    const ERASE: [u8; 2] = [0x08, 0x7f];
    const KILL: u8 = 0x15;
    const CANCEL: [u8; 2] = [0x03, 0x1c];
    const END: u8 = 0x04;
    let mut line = Zeroizing::new(Vec::with_capacity(limits::PASSPHRASE_BYTES + 1));
    let mut byte = Zeroizing::new([0]);
    loop {
        match terminal.read(byte.as_mut_slice()) {
            Ok(0) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        match byte[0] {
            b'\n' | b'\r' => return Ok(Some(line)),
            key if CANCEL.contains(&key) => return Ok(None),
            END if line.is_empty() => return Ok(None),
            END => return Ok(Some(line)),
            KILL => line.clear(),
            key if ERASE.contains(&key) => {
                // The last character, which may be of several bytes.
                while line.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
            }
            key if line.len() <= limits::PASSPHRASE_BYTES => line.push(key),
            _ => {}
        }
    }
}

/// A terminal that shows nothing and makes no signals, until this is dropped.
struct Quiet {
    terminal: File,
    before: Termios,
}

impl Quiet {
    fn begin(terminal: File) -> io::Result<Self> {
        let before = termios::tcgetattr(&terminal)?;
        let mut quiet = before.clone();
        quiet.local_modes &= !(LocalModes::ECHO
            | LocalModes::ECHONL
            | LocalModes::ICANON
            | LocalModes::ISIG
            | LocalModes::IEXTEN);
        quiet.special_codes[SpecialCodeIndex::VMIN] = 1;
        quiet.special_codes[SpecialCodeIndex::VTIME] = 0;
        termios::tcsetattr(&terminal, OptionalActions::Flush, &quiet)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(&self.terminal, OptionalActions::Flush, &self.before);
    }
}

#[cfg(test)]
#[path = "passphrase_tests.rs"]
mod tests;
