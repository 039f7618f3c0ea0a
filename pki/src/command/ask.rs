//! Asks a TLS server for its certificate, and hangs up: nothing is verified and nothing is sent
//! over the connection, which never comes to be.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use towline_pki::presented::presented_by;
use towline_proto::target::{Host, Target};

/// For a connection, and for each read and write of the handshake.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("cannot be reached: {0}")]
    Unreachable(io::Error),
    #[error("speaks no TLS, or ended the handshake before its certificate: {0}")]
    NotTls(io::Error),
}

/// The chain that the server presents, leaf first.
pub(crate) fn certificates(target: &Target) -> Result<Vec<CertificateDer<'static>>, AskError> {
    let mut stream = connect(target)?;
    presented_by(&mut stream, &target.host).map_err(AskError::NotTls)
}

/// A connection whose reads and writes do not wait for ever.
pub(crate) fn connect(target: &Target) -> Result<TcpStream, AskError> {
    let host = match &target.host {
        Host::Ip(ip) => ip.to_string(),
        Host::Name(name) => name.to_string(),
    };
    let addresses = (host.as_str(), target.port())
        .to_socket_addrs()
        .map_err(AskError::Unreachable)?;
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in addresses {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => {
                let _ = stream.set_read_timeout(Some(PATIENCE));
                let _ = stream.set_write_timeout(Some(PATIENCE));
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(AskError::Unreachable(last))
}
