//! Who may be whom: identities, certificates, verifiers and TLS configurations.
//!
//! Reading order: [`identity`] (the noun), [`inspect`] (everything read from a certificate, once),
//! [`verify`] (the only way to a [`VerifiedPeer`]; `handshake` is its face to rustls), [`kubelet`]
//! (whether a kubelet is the one of its node), [`apart`] (no authority for two roles), [`revoke`] (the deny list), [`crl`] (revocation lists), [`credentials`]
//! (our own key and chain), [`tls`] (every TLS configuration of Towline), [`rotate`] (the files of
//! a daemon as one snapshot), [`web`] (servers known by name alone), [`chain`] (clients known by
//! their authority alone), [`first_contact`] (servers seen for the first time). The other half
//! signs: [`role`] (what each role may hold), [`authority`] and [`mint`] (certificates),
//! [`hierarchy`] (a cluster's authorities and their succession), [`ledger`] (what was issued),
//! [`request`] (signing requests), [`agent_request`] (those that name whom they are for), [`join`] (one-time tokens of new nodes), [`key`] (key pairs),
//! [`encrypted`] and [`passphrase`] (keys under a passphrase), [`seal`] (signatures for later
//! proof).
//!
//! A whole cluster from one file: [`cluster`].
//!
//! For people: [`survey`] (every certificate in a place), [`probe`] (a server that is dialled), [`lint`] (what is wrong with one), [`yaml`]
//! (files that operators write).
//!
//! Files are touched in [`store`] only. Nobody here reads the clock: `now` is an argument. No
//! system roots, no "skip verification", no key or passphrase in an argument or a `Debug`.

pub mod agent_request;
pub mod anchors;
pub mod apart;
pub mod authority;
pub mod chain;
pub mod cluster;
pub mod credentials;
pub mod crl;
pub mod date;
mod der;
mod either;
pub mod encrypted;
pub mod first_contact;
#[doc(hidden)]
pub mod fuzz;
pub mod gateway;
mod handshake;
pub mod hierarchy;
pub mod identity;
pub mod inspect;
pub mod join;
pub mod join_mark;
pub mod key;
pub mod kubelet;
pub mod ledger;
pub mod lint;
pub mod manifest;
pub mod mint;
pub mod order;
pub mod passphrase;
pub mod peer_error;
pub mod pem;
mod pem_lines;
pub mod pkcs12;
pub mod pkcs8;
pub mod presented;
pub mod probe;
pub mod request;
pub mod revoke;
pub mod role;
pub mod rotate;
pub mod seal;
pub mod secret;
pub mod serial;
pub mod store;
pub mod survey;
pub mod telling;
pub mod tls;
pub mod verify;
pub mod web;
pub mod yaml;

pub use anchors::{Anchors, AnchorsError};
pub use apart::{NotApart, RootGiven, SharedRoots};
pub use authority::{Authority, AuthorityError, AuthoritySpec, Issue, IssueError, Issued};
pub use chain::ChainVerifier;
pub use credentials::{Credentials, CredentialsError};
pub use crl::{CrlFault, CrlPolicy, CrlState, Revocation, RevocationListError, RevocationLists};
pub use first_contact::FirstContact;
pub use gateway::{GatewayError, GatewayFiles, GatewayMaterial};
pub use hierarchy::{Generation, Layout, Seat};
pub use identity::{Identity, IdentityError};
pub use inspect::{Certificate, CertificateError, Leaf, LeafError, Usage};
pub use join::{JoinFile, JoinToken};
pub use join_mark::JoinMark;
pub use key::{KeyKind, PrivateKey, PublicKey, UnlockError};
pub use ledger::{Ledger, LedgerError};
pub use mint::LeafSpec;
pub use passphrase::{PassphraseError, PassphraseSource, Passphrases};
pub use peer_error::PeerError;
pub use request::{Request, RequestError, RequestSpec};
pub use revoke::{DenyList, DenyListError};
pub use rotate::{Expiry, Files, Material, MaterialError};
pub use seal::{SealError, SealKey, SealPublic};
pub use secret::Secret;
pub use serial::{Fingerprint, Serial};
pub use tls::TlsError;
pub use verify::{PeerVerifier, VerifiedPeer};
pub use web::{WebError, WebPair, WebRoots};
