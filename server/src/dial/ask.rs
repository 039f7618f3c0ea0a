//! What doors ask the dialer for, and where they took it.

use towline_proto::dial::TraceContext;
use towline_proto::target::Target;

use crate::caller::Caller;

/// Where a dial came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Door {
    /// HTTP CONNECT on the Unix socket.
    ConnectUnix,
    /// HTTP CONNECT over TCP with TLS.
    ConnectTcp,
    /// gRPC on the Unix socket.
    GrpcUnix,
    /// gRPC over TCP with TLS.
    GrpcTcp,
}

impl Door {
    /// The word used in logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Door::ConnectUnix => "connect-unix",
            Door::ConnectTcp => "connect-tcp",
            Door::GrpcUnix => "grpc-unix",
            Door::GrpcTcp => "grpc-tcp",
        }
    }

    /// The same place, for a front end that has turned out to speak gRPC.
    #[must_use]
    pub const fn grpc(self) -> Self {
        match self {
            Door::ConnectUnix | Door::GrpcUnix => Door::GrpcUnix,
            Door::ConnectTcp | Door::GrpcTcp => Door::GrpcTcp,
        }
    }
}

/// What a door asks for.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Where to.
    pub target: Target,
    /// Where it came in.
    pub door: Door,
    /// Who asks.
    pub caller: Caller,
    /// The front end's trace context.
    pub trace: Option<TraceContext>,
}
