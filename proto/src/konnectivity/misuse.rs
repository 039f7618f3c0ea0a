//! What front ends should not have sent, by name.

/// A packet that fits nothing a front end may say at that moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misuse {
    /// CLOSE_REQ before any DIAL_REQ.
    CloseBeforeDial,
    /// CLOSE_REQ of a connection that is not this stream's.
    CloseOfAnother,
    /// DATA before any DIAL_REQ.
    DataBeforeDial,
    /// DATA of a connection that is not this stream's.
    DataOfAnother,
    /// DATA of connection 0, which is none.
    DataOfNone,
    /// A dial id below 0.
    DialId,
    /// DATA without data.
    EmptyData,
    /// A packet that only agents send.
    OfAnAgent,
    /// A dial by another protocol than TCP.
    Protocol,
    /// A second DIAL_REQ.
    SecondDial,
    /// A type that nobody knows.
    UnknownType,
}

impl Misuse {
    /// The word for metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Misuse::CloseBeforeDial => "close-before-dial",
            Misuse::CloseOfAnother => "close-of-another-connection",
            Misuse::DataBeforeDial => "data-before-dial",
            Misuse::DataOfAnother => "data-of-another-connection",
            Misuse::DataOfNone => "data-without-connection",
            Misuse::DialId => "dial-id",
            Misuse::EmptyData => "empty-data",
            Misuse::OfAnAgent => "packet-of-an-agent",
            Misuse::Protocol => "protocol",
            Misuse::SecondDial => "second-dial",
            Misuse::UnknownType => "unknown-type",
        }
    }
}
