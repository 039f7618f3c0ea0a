//! How bounds relate to each other, checked when they are compiled.

use super::*;

const _: () = {
    assert!(ENROL_REQUEST_BYTES <= u16::MAX as usize);
    assert!(ENROL_REPLY_BYTES <= u16::MAX as usize);
    assert!(ENROL_ANSWER.as_secs() > 2 * KUBE_REQUEST.as_secs());
    assert!(
        ENROL_ATTEMPT.as_secs()
            > ENROL_WAIT.as_secs() + ENROL_READ.as_secs() + ENROL_ANSWER.as_secs()
    );
    assert!(ENROL_PLACES_PER_ADDRESS < ENROL_PLACES);
    assert!(ENROL_WAITING_PER_ADDRESS < ENROL_WAITING);
    // The shortest life is renewed at two thirds.
    assert!(ENROL_NAME as u64 * ENROL_LIFE_RANGE.0.as_secs() / 3 * 2 > ENROL_NAME_IN.as_secs());
    assert!(ENROL_REVIEWS <= KUBE_IDLE);
    assert!(ENROL_RETRY.1.as_secs() <= CSR_DENIED.as_secs());
    assert!(CSR_LOOK.1.as_secs() < CSR_WAIT.as_secs());
    assert!(AUDIT_TEXT_BYTES * 16 + AUDIT_COMMAND_BYTES < AUDIT_LINE_BYTES);
    assert!(AUDIT_BATCH < AUDIT_QUEUE);
    assert!(4 * HANDSHAKES_PER_ADDRESS <= HANDSHAKES);
    assert!(2 * HANDSHAKES <= UNPROVEN_PER_ADDRESS && 4 * UNPROVEN_PER_ADDRESS <= LINKS);
    assert!(4 * LEGACY_REVIEWS_PER_ADDRESS <= LEGACY_REVIEWS);
    assert!(AUDIT_GATHER.as_millis() < AUDIT_SYNC.as_millis());
    assert!(AUDIT_SYNC.as_secs() < AUDIT_CHECKPOINT.as_secs());
    assert!(ATTESTATION_RENEW.as_secs() < ATTESTATION_LIFE.as_secs());
    assert!(ATTESTATION_TIMEOUT.as_secs() < DIAL_TIMEOUT.as_secs());
    assert!(ATTESTATION_TIMEOUT.as_secs() > CONNECT_TIMEOUT.as_secs());
    assert!(ATTESTATIONS_BESIDE < ATTESTATIONS_AT_ONCE);
    assert!(
        ATTESTATION_TIMEOUT.as_secs() + ATTESTATION_RENEW.as_secs() < ATTESTATION_LIFE.as_secs()
    );
    assert!(ATTESTATION_IN_USE.as_secs() >= ATTESTATION_LIFE.as_secs());
    assert!(GRPC_WINDOW as u64 * (GRPC_STREAMS as u64 + 1) < 1 << 31); // HTTP/2's largest window
    assert!(GRPC_DATA_BYTES < GRPC_MESSAGE_BYTES);
    assert!(GRPC_PING_LEAST.as_secs() >= 30); // what Konnectivity's server takes
    assert!(KUBE_REQUEST.as_secs() < KUBE_WATCH.as_secs());
    assert!(KUBE_HEAD_BYTES >= 8192); // hyper's smallest buffer
    assert!(PEER_SILENT.as_secs() >= 3 * HEARTBEAT.as_secs());
    assert!(CONNECT_TIMEOUT.as_secs() < DIAL_TIMEOUT.as_secs());
    assert!(DIAL_TIMEOUT.as_secs() <= DIAL_TIMEOUT_MAX.as_secs());
    assert!(DIAL_TIMEOUT.as_secs() < DRAIN_TIMEOUT.as_secs());
    assert!(DIAL_REQUEST_BYTES > HOST_BYTES + 128);
    assert!(STREAMS_AT_START <= DIALS_PER_LINK);
    assert!(MUX_FRAME_BYTES <= u16::MAX as usize);
    assert!(MUX_BATCH <= MUX_SEND_QUEUE && MUX_BATCH <= TLS_TURN);
    assert!(TCP_UNACKNOWLEDGED.as_secs() > PEER_SILENT.as_secs());
    assert!(MUX_SEND_QUEUE as u64 <= STREAM_WINDOW as u64);
    assert!(2 * MUX_RETURN <= MUX_FLIGHT && MUX_FLIGHT <= STREAM_WINDOW);
    assert!(BACKOFF_QUICK_CAP.as_secs() <= BACKOFF_CAP.as_secs());
    assert!(FILE_DEBOUNCE.as_millis() < FILE_LOOK.as_millis());
    assert!(DRAIN_TIMEOUT.as_secs() <= DRAIN_TIMEOUT_MAX.as_secs());
    assert!(ADMIN_HEAD_TIMEOUT.as_secs() < ADMIN_CONNECTION.as_secs());
    assert!(LIVE_PROBE.as_secs() < ADMIN_CONNECTION.as_secs());
    assert!(ADMIN_HEAD_BYTES >= 8192); // hyper's smallest buffer
    assert!(QUIC_IDLE.as_secs() > PEER_SILENT.as_secs());
    assert!(QUIC_KEEP_ALIVE.as_secs() < PEER_SILENT.as_secs());
    assert!(QUIC_PAYLOAD <= QUIC_PAYLOAD_JUMBO);
    assert!(QUIC_PAYLOAD_JUMBO as u32 * QUIC_SEGMENTS <= 65_507);
    assert!(PROBE_TIMEOUT.as_millis() < PROBE_EVERY.as_millis());
    assert!(
        PROBES_MISSED.as_millis() > 2 * PROBE_EVERY.as_millis() * 6 / 5 + PROBE_TIMEOUT.as_millis()
    );
    assert!(LINK_DOUBTED.as_millis() > HEARTBEAT.as_millis());
    assert!(QUIC_SEND_WINDOW >= STREAM_WINDOW as u64);
    assert!(LOCAL_LOOK.as_secs() < LOCAL_GONE.as_secs());
};
