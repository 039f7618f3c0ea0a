//! quinn's ways to end, as reasons.

use quinn::TransportErrorCode;
use quinn::{ConnectionError, VarInt};
use towline_proto::reason::Reason;

// TLS alerts (RFC 8446, section 6) as QUIC carries them: 0x100 and the alert's number.
const ALERT_CERTIFICATE_REVOKED: u64 = 0x100 + 44;
const ALERT_CERTIFICATE_EXPIRED: u64 = 0x100 + 45;
const ALERT_ACCESS_DENIED: u64 = 0x100 + 49;
const ALERT_BAD_CERTIFICATE_STATUS: u64 = 0x100 + 113;
const ALERT_PROTOCOL_VERSION: u64 = 0x100 + 70;
const ALERT_NO_APPLICATION_PROTOCOL: u64 = 0x100 + 120;
/// handshake_failure, bad_certificate .. unknown_ca, decrypt_error, certificate_required.
const ALERTS_OF_CERTIFICATES: [u64; 8] = [
    0x100 + 40,
    0x100 + 42,
    0x100 + 43,
    0x100 + 46,
    0x100 + 47,
    0x100 + 48,
    0x100 + 51,
    0x100 + 116,
];

/// The number of a reason on a stream or a close.
pub(super) fn to_code(reason: Reason) -> VarInt {
    VarInt::from(reason.code())
}

/// The reason of a peer's number. Ours have 16 bits; anything larger is not Towline.
pub(super) fn from_code(code: VarInt) -> Reason {
    u16::try_from(code.into_inner()).map_or(Reason::Protocol, Reason::from_code)
}

/// Why a connection ended, where `ours` is the reason that this end closed it with, if it did.
pub(super) fn of_connection(error: &ConnectionError, ours: Option<Reason>) -> Reason {
    match error {
        ConnectionError::ApplicationClosed(close) => from_code(close.error_code),
        ConnectionError::LocallyClosed => ours.unwrap_or(Reason::Shutdown),
        ConnectionError::TimedOut => Reason::PeerSilent,
        ConnectionError::Reset => Reason::LinkLost,
        ConnectionError::ConnectionClosed(close) => of_transport(close.error_code),
        ConnectionError::TransportError(error) => of_transport(error.code),
        ConnectionError::VersionMismatch => Reason::Version,
        ConnectionError::CidsExhausted => Reason::LocalResources,
    }
}

fn of_transport(code: TransportErrorCode) -> Reason {
    match u64::from(code) {
        code if code == u64::from(TransportErrorCode::NO_ERROR) => Reason::LinkLost,
        code if code == u64::from(TransportErrorCode::CONNECTION_REFUSED) => Reason::Overloaded,
        // The peer's close before its handshake was done: its own words are withheld by QUIC.
        code if code == u64::from(TransportErrorCode::APPLICATION_ERROR) => Reason::LinkLost,
        code if code == u64::from(TransportErrorCode::NO_VIABLE_PATH) => Reason::LinkLost,
        ALERT_CERTIFICATE_REVOKED => Reason::Revoked,
        ALERT_ACCESS_DENIED => Reason::Denied,
        ALERT_BAD_CERTIFICATE_STATUS => Reason::RevocationUnknown,
        ALERT_CERTIFICATE_EXPIRED => Reason::CertificateEnded,
        ALERT_PROTOCOL_VERSION | ALERT_NO_APPLICATION_PROTOCOL => Reason::Version,
        code if ALERTS_OF_CERTIFICATES.contains(&code) => Reason::BadCertificate,
        _ => Reason::Protocol,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_survives_as_a_code() {
        for reason in Reason::ALL {
            assert_eq!(from_code(to_code(*reason)), *reason);
        }
        assert_eq!(from_code(VarInt::from_u32(70_000)), Reason::Protocol);
    }

    #[test]
    fn endings_without_a_code_have_reasons_too() {
        assert_eq!(
            of_connection(&ConnectionError::TimedOut, None),
            Reason::PeerSilent
        );
        assert_eq!(
            of_connection(&ConnectionError::Reset, None),
            Reason::LinkLost
        );
        assert_eq!(
            of_connection(&ConnectionError::LocallyClosed, Some(Reason::Superseded)),
            Reason::Superseded
        );
        assert_eq!(
            of_transport(TransportErrorCode::CONNECTION_REFUSED),
            Reason::Overloaded
        );
        assert_eq!(
            of_transport(TransportErrorCode::crypto(120)),
            Reason::Version
        );
        assert_eq!(
            of_transport(TransportErrorCode::crypto(44)),
            Reason::Revoked
        );
        assert_eq!(of_transport(TransportErrorCode::crypto(49)), Reason::Denied);
        assert_eq!(
            of_transport(TransportErrorCode::crypto(48)),
            Reason::BadCertificate
        );
    }
}
