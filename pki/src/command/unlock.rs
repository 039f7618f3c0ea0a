//! The flags that say where the passphrase of an encrypted key comes from. Never an argument,
//! never the environment: both can be read by others.

use std::path::PathBuf;

use towline_pki::{PassphraseSource, Passphrases, PrivateKey, Secret};

use super::Failure;

/// Of the authority's key. Without either flag a person is asked at the terminal.
#[derive(clap::Args)]
pub(crate) struct Unlock {
    /// File whose first line is the passphrase of the authority's key, when it is encrypted; without
    /// it and --passphrase-fd you are asked
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_fd")]
    passphrase_file: Option<PathBuf>,
    /// Open descriptor to read that passphrase from, for example 3 with `3< <(pass show towline)`
    #[arg(long, value_name = "NUMBER")]
    passphrase_fd: Option<u32>,
}

impl Unlock {
    /// Where the passphrase comes from.
    pub(crate) fn passphrases(&self) -> Passphrases {
        Passphrases::new(
            source(&self.passphrase_file, self.passphrase_fd).unwrap_or(PassphraseSource::Terminal),
            "",
        )
    }
}

/// What two flags of one passphrase say together.
pub(crate) fn source(file: &Option<PathBuf>, number: Option<u32>) -> Option<PassphraseSource> {
    match (file, number) {
        (Some(path), _) => Some(PassphraseSource::File(path.clone())),
        (None, Some(number)) => Some(PassphraseSource::Descriptor(number)),
        (None, None) => None,
    }
}

/// The text of an authority's key for its file: under a passphrase when there is one to choose.
pub(crate) fn key_pem(
    key: &PrivateKey,
    passphrases: Option<&mut Passphrases>,
    what: &str,
) -> Result<Secret, Failure> {
    match passphrases {
        None => Ok(key.to_pem()),
        Some(passphrases) => {
            let passphrase = passphrases.choose(what)?;
            key.to_encrypted_pem(passphrase).map_err(Failure::failed)
        }
    }
}
