//! The verbs of `towline-pki`: one file each, one function each, and what a failure is.

use std::fmt;

use towline_pki::store::StoreError;
use towline_pki::{
    AnchorsError, AuthorityError, CertificateError, DenyListError, IssueError, LeafError,
    LedgerError, PassphraseError, RequestError, UnlockError,
};

pub(crate) mod accept;
pub(crate) mod answer;
pub(crate) mod apply;
pub(crate) mod ask;
pub(crate) mod audit_key;
pub(crate) mod book;
pub(crate) mod crl;
pub(crate) mod deny;
pub(crate) mod export;
pub(crate) mod gateway_issuer;
pub(crate) mod init;
pub(crate) mod inspect;
pub(crate) mod issue;
pub(crate) mod kubelet_client;
pub(crate) mod kubelet_serving;
pub(crate) mod lint;
pub(crate) mod lists;
pub(crate) mod needs_renewal;
pub(crate) mod paper;
pub(crate) mod renew;
pub(crate) mod request;
pub(crate) mod revoke;
pub(crate) mod root;
pub(crate) mod rotate;
pub(crate) mod sign;
pub(crate) mod sign_issuer;
pub(crate) mod source;
pub(crate) mod status;
pub(crate) mod token;
pub(crate) mod unlock;
pub(crate) mod verify;

use answer::Answer;

/// Shown at the end of every help.
pub(crate) const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed or not verified, 2 wrong usage, \
3 a file is not what it must be.";

/// What went wrong, and thereby the exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    kind: Kind,
    message: String,
    /// Goes to standard output all the same.
    pub(crate) answer: Option<Answer>,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Failed,
    Usage,
    File,
}

impl Failure {
    /// It did not work, or did not verify.
    pub(crate) fn failed(message: impl fmt::Display) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// The command line asks for something that is not allowed.
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// A file is missing, damaged or of another kind.
    pub(crate) fn file(message: impl fmt::Display) -> Self {
        Self::new(Kind::File, message)
    }

    fn new(kind: Kind, message: impl fmt::Display) -> Self {
        Self {
            kind,
            message: message.to_string(),
            answer: None,
        }
    }

    pub(crate) fn with_answer(mut self, answer: impl Into<Answer>) -> Self {
        self.answer = Some(answer.into());
        self
    }

    pub(crate) fn code(&self) -> u8 {
        match self.kind {
            Kind::Failed => 1,
            Kind::Usage => 2,
            Kind::File => 3,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Write { .. }
            | StoreError::Exists { .. }
            | StoreError::Locked { .. }
            | StoreError::Busy { .. } => Self::failed(error),
            _ => Self::file(error),
        }
    }
}

macro_rules! file_errors {
    ($($error:ty),*) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::file(error)
            }
        })*
    };
}

file_errors!(
    AnchorsError,
    CertificateError,
    DenyListError,
    LeafError,
    RequestError
);

impl From<LedgerError> for Failure {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Store(error) => error.into(),
            _ => Self::failed(error),
        }
    }
}

impl From<AuthorityError> for Failure {
    fn from(error: AuthorityError) -> Self {
        match error {
            AuthorityError::Unlock(error) => error.into(),
            _ => Self::file(error),
        }
    }
}

impl From<UnlockError> for Failure {
    fn from(error: UnlockError) -> Self {
        match error {
            UnlockError::Store(error) => error.into(),
            UnlockError::Passphrase(error) => error.into(),
            UnlockError::WrongPassphrase { .. } => Self::failed(error),
            UnlockError::In { .. } => Self::file(error),
        }
    }
}

impl From<PassphraseError> for Failure {
    fn from(error: PassphraseError) -> Self {
        match error {
            PassphraseError::Store(error) => error.into(),
            PassphraseError::Unfit { .. } => Self::file(error),
            _ => Self::failed(error),
        }
    }
}

impl From<IssueError> for Failure {
    fn from(error: IssueError) -> Self {
        match error {
            IssueError::Names(_) | IssueError::TooLong { .. } | IssueError::NoLife => {
                Self::usage(error)
            }
            _ => Self::failed(error),
        }
    }
}
