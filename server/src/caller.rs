//! Who asks: the front end of a dial, as its door proved it. Policy decides by it, audit writes
//! it down; nothing a front end says of itself is in it.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use towline_link::process::unix::PeerCredentials;
use towline_pki::VerifiedPeer;
use towline_proto::policy::Asker;

/// A front end that a door has let in. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Caller {
    /// A process of this machine: the kernel's word at the Unix socket.
    Local(PeerCredentials),
    /// A client certificate that verified at the TCP door.
    Certified {
        /// The proof.
        peer: VerifiedPeer,
        /// Where its connection comes from.
        address: SocketAddr,
    },
    /// Somebody with any certificate of the compatibility profile's authority. Its subject is for
    /// logs; no rule about clients by name counts for it.
    Signed {
        /// What the certificate says, escaped.
        subject: Arc<str>,
        /// Where its connection comes from.
        address: SocketAddr,
    },
}

impl Caller {
    /// As the rules of the policy see it.
    pub fn asker(&self) -> Asker<'_> {
        match self {
            Caller::Local(process) => Asker::Local {
                uid: process.uid,
                gid: process.gid,
            },
            Caller::Certified { peer, .. } => Asker::Client(peer.identity().name.as_str()),
            // No client has this name.
            Caller::Signed { .. } => Asker::Client(""),
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Caller::Local(process) => process.fmt(f),
            Caller::Certified { peer, address } => write!(f, "{} at {address}", peer.identity()),
            Caller::Signed { subject, address } => write!(f, "{subject:?} at {address}"),
        }
    }
}
