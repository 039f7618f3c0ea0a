//! Bounds of certificates, of what says that they count no more, and of an authority's files.

use std::time::Duration;

/// Certificates in one chain, leaf included. Overflow: refused before any is parsed.
pub const CHAIN_CERTIFICATES: usize = 8;
/// One certificate, DER bytes. Overflow: refused before it is parsed.
pub const CERTIFICATE_BYTES: usize = 16 * 1024;
/// Rounds of PBKDF2 with which a private key is encrypted: a third of a second for whoever knows
/// the passphrase, for each guess of whoever does not.
pub const KEY_ROUNDS: u32 = 600_000;
/// Most rounds that a key file may ask for. Overflow: the file is refused before any work.
pub const KEY_ROUNDS_MAX: u32 = 10_000_000;
/// A passphrase, bytes. Overflow: refused.
pub const PASSPHRASE_BYTES: usize = 1024;
/// Shortest passphrase for a key that is to be encrypted, characters. Below: refused.
pub const PASSPHRASE_CHARS: usize = 8;
/// Certificates in one bundle of trust anchors. Overflow: the file is refused.
pub const ANCHORS: usize = 64;
/// Entries of one deny list. Overflow: the file is refused, the old list stays.
pub const DENY_ENTRIES: usize = 65_536;
/// How often it is looked whether a front end's certificate or a revocation list has come to its
/// end; with what follows it stays below the five seconds of a revocation.
pub const REVOCATION_LOOK: Duration = Duration::from_secs(1);
/// One line of an authority's ledger, bytes. Overflow: the certificate is not issued.
pub const LEDGER_LINE_BYTES: usize = 4096;
/// Addresses of one certificate in its line of a ledger. Overflow: the rest is not in the line.
pub const LEDGER_ADDRESSES: usize = 48;
/// A file of an authority's ledger; a full one is put aside under a number and kept.
pub const LEDGER_BYTES: u64 = 64 * 1024 * 1024;
/// Files of one ledger. Overflow: nothing is issued until old ones are moved away.
pub const LEDGER_FILES: u32 = 10_000;
/// How long a writer of an authority's files waits for another one. Overflow: an error.
pub const AUTHORITY_LOCK: Duration = Duration::from_secs(10);
