//! Every QUIC setting of Towline, in one place.
//!
//! quinn's own defaults move 2 MB/s where these move 70 (20 ms, 0.5 % loss): windows, congestion
//! control and socket buffers decide whether QUIC is worth having.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::{BbrConfig, ControllerFactory, CubicConfig};
use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use quinn::{
    EndpointConfig, IdleTimeout, MtuDiscoveryConfig, NoneTokenLog, NoneTokenStore, TransportConfig,
    VarInt,
};
use quinn_proto::HashedConnectionIdGenerator;
use towline_proto::limits;

use super::keys::EndpointKeys;
use super::short::Short;

/// The round-trip time that is assumed before the first one is measured. The specification's
/// 333 ms make the first repetition of a lost handshake packet wait for a second.
const FIRST_RTT: Duration = Duration::from_millis(100);
/// First packets of this size pass every path that QUIC supports at all; larger ones that a path
/// swallows would hang the handshake. Discovery raises it within a few round trips.
const FIRST_PAYLOAD: u16 = 1200;
/// At most this many stateless resets: one in this time. After a restart every link needs one.
const RESET_INTERVAL: Duration = Duration::from_millis(1);

/// How the sending rate follows the path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Congestion {
    /// Follows the measured rate; random loss does not stop it.
    #[default]
    Bbr,
    /// Halves at loss; fair beside classic TCP, slow on a lossy path.
    Cubic,
}

impl Congestion {
    /// The word used in flags.
    pub const fn as_str(self) -> &'static str {
        match self {
            Congestion::Bbr => "bbr",
            Congestion::Cubic => "cubic",
        }
    }

    fn factory(self) -> Arc<dyn ControllerFactory + Send + Sync> {
        match self {
            Congestion::Bbr => Arc::new(BbrConfig::default()),
            Congestion::Cubic => Arc::new(CubicConfig::default()),
        }
    }
}

impl fmt::Display for Congestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Congestion {
    type Err = OptionsError;

    fn from_str(text: &str) -> Result<Self, OptionsError> {
        match text {
            "bbr" => Ok(Congestion::Bbr),
            "cubic" => Ok(Congestion::Cubic),
            other => Err(OptionsError::Congestion {
                given: other.chars().take(32).collect(),
            }),
        }
    }
}

/// What an operator may choose about QUIC.
#[derive(Clone, Debug)]
pub struct Options {
    /// Congestion control of what this end sends.
    pub congestion: Congestion,
    /// Largest UDP payload that discovery tries; see [`Options::check`].
    pub payload: u16,
    /// Hand batches to the kernel in one call (GSO). Off only for network cards that break it.
    pub segmentation_offload: bool,
    /// UDP socket buffer that is asked for, bytes each way.
    pub udp_buffer: usize,
    /// Handshakes of a listener at once; from a quarter of it on, peers prove their address.
    pub handshakes: usize,
    /// Of these, those of one address.
    pub handshakes_per_address: usize,
    /// Makes everything that quinn draws by lot repeatable. For simulations only.
    pub seed: Option<[u8; 32]>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            congestion: Congestion::default(),
            payload: limits::QUIC_PAYLOAD,
            segmentation_offload: true,
            udp_buffer: limits::UDP_BUFFER,
            handshakes: limits::HANDSHAKES,
            handshakes_per_address: limits::HANDSHAKES_PER_ADDRESS,
            seed: None,
        }
    }
}

impl Options {
    /// The defaults with large datagrams, for loopback and networks with jumbo frames.
    pub fn jumbo() -> Self {
        Self {
            payload: limits::QUIC_PAYLOAD_JUMBO,
            ..Self::default()
        }
    }

    /// Refuses values with which a connection would hang.
    pub fn check(&self) -> Result<(), OptionsError> {
        if (FIRST_PAYLOAD..=limits::QUIC_PAYLOAD_JUMBO).contains(&self.payload) {
            Ok(())
        } else {
            Err(OptionsError::Payload {
                given: self.payload,
            })
        }
    }
}

/// A value that QUIC cannot run with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// Outside what one offloaded send can carry.
    #[error(
        "UDP payload of {given} bytes: take 1200 to {} (more than that and batches exceed 64 KiB)",
        limits::QUIC_PAYLOAD_JUMBO
    )]
    Payload {
        /// What was asked for.
        given: u16,
    },
    /// Not a name of a congestion control.
    #[error("congestion control {given:?}: take bbr or cubic")]
    Congestion {
        /// What was asked for.
        given: String,
    },
    /// The TLS configuration lacks the cipher that QUIC starts with.
    #[error("the TLS configuration has no TLS13_AES_128_GCM_SHA256, which QUIC starts with")]
    NoInitialCipher,
}

impl From<NoInitialCipherSuite> for OptionsError {
    fn from(_: NoInitialCipherSuite) -> Self {
        OptionsError::NoInitialCipher
    }
}

/// What belongs to the socket rather than to a connection.
pub(super) fn endpoint(options: &Options, keys: &EndpointKeys) -> EndpointConfig {
    let mut config = EndpointConfig::new(keys.reset_key());
    let cid = keys.connection_id_key();
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(cid)));
    // Always the large size: it is what we are able to receive, and the peer's own limit decides
    // what it sends. The buffers are touched only as far as packets fill them.
    if config
        .max_udp_payload_size(limits::QUIC_PAYLOAD_JUMBO)
        .is_err()
    {
        debug_assert!(false, "QUIC_PAYLOAD_JUMBO is outside quinn's range");
    }
    config.min_reset_interval(RESET_INTERVAL);
    config.rng_seed(options.seed);
    config
}

/// The server's side: one stream from each agent, the control stream.
pub(super) fn server(
    options: &Options,
    tls: Arc<rustls::ServerConfig>,
) -> Result<quinn::ServerConfig, OptionsError> {
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(Arc::new(transport(options, 1, None)));
    config.migration(true);
    // Address validation is by Retry alone: tokens for later visits would be state for each peer,
    // and a restarted server cannot read them.
    let mut tokens = quinn::ValidationTokenConfig::default();
    tokens.sent(0).log(Arc::new(NoneTokenLog));
    config.validation_token_config(tokens);
    config.max_incoming(limits::QUIC_INCOMING);
    config.incoming_buffer_size(limits::QUIC_INCOMING_BYTES);
    config.incoming_buffer_size_total(limits::QUIC_INCOMING_BYTES_TOTAL);
    Ok(config)
}

/// The agent's side: dials come as streams of the server.
pub(super) fn client(
    options: &Options,
    tls: Arc<rustls::ClientConfig>,
) -> Result<quinn::ClientConfig, OptionsError> {
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(Arc::new(transport(
        options,
        limits::STREAMS_AT_START,
        Some(limits::QUIC_KEEP_ALIVE),
    )));
    config.token_store(Arc::new(NoneTokenStore));
    Ok(config)
}

fn transport(options: &Options, streams: u32, keep_alive: Option<Duration>) -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(options.payload.min(limits::QUIC_PAYLOAD_JUMBO));
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(streams.into())
        .max_concurrent_uni_streams(0u32.into())
        .stream_receive_window(limits::STREAM_WINDOW.into())
        .receive_window(receive_window(limits::QUIC_SPARE_STREAMS))
        .send_window(limits::QUIC_SEND_WINDOW)
        .send_fairness(true)
        .max_idle_timeout(IdleTimeout::try_from(limits::QUIC_IDLE).ok())
        .keep_alive_interval(keep_alive)
        .initial_rtt(FIRST_RTT)
        .initial_mtu(FIRST_PAYLOAD)
        .min_mtu(FIRST_PAYLOAD)
        .mtu_discovery_config(Some(discovery))
        .ack_frequency_config(None)
        .datagram_receive_buffer_size(None)
        .congestion_controller_factory(Arc::new(Short(options.congestion.factory())))
        .enable_segmentation_offload(options.segmentation_offload);
    config
}

/// Window of a whole connection that `streams` stalled streams cannot use up.
pub(super) fn receive_window(streams: u32) -> VarInt {
    let bytes = u64::from(streams).saturating_mul(u64::from(limits::STREAM_WINDOW));
    VarInt::from_u64(bytes).unwrap_or(VarInt::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_that_hang_are_refused() {
        for payload in [0, 1199, 6501, 8952, u16::MAX] {
            let options = Options {
                payload,
                ..Options::default()
            };
            assert_eq!(
                options.check(),
                Err(OptionsError::Payload { given: payload })
            );
        }
        assert_eq!(Options::default().check(), Ok(()));
        assert_eq!(Options::jumbo().check(), Ok(()));
    }

    #[test]
    fn congestion_is_chosen_by_name() {
        for congestion in [Congestion::Bbr, Congestion::Cubic] {
            assert_eq!(congestion.as_str().parse(), Ok(congestion));
        }
        assert!("reno".parse::<Congestion>().is_err());
    }

    #[test]
    fn the_connection_window_covers_every_stream() {
        assert_eq!(
            u64::from(receive_window(1000)),
            1000 * u64::from(limits::STREAM_WINDOW)
        );
    }
}
