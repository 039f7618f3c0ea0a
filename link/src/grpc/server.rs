//! The server's side of a gRPC call: headers and trailers.

use bytes::{Buf, Bytes};
use h2::server::SendResponse;
use http::{HeaderValue, Response, StatusCode};
use towline_proto::konnectivity::CONTENT_TYPE;

use super::packets::PacketSink;
use super::status::Status;

/// The head of an answer that is gRPC.
pub fn head() -> Response<()> {
    let mut head = Response::new(());
    *head.status_mut() = StatusCode::OK;
    let kind = HeaderValue::from_static(CONTENT_TYPE);
    head.headers_mut().insert("content-type", kind);
    head
}

/// Answers with a status and nothing else.
pub fn refuse<B: Buf>(respond: &mut SendResponse<B>, status: &Status) {
    let mut head = head();
    status.put(head.headers_mut());
    // Fails only on a stream that is gone.
    let _ = respond.send_response(head, true);
}

/// Takes the call: our headers go out, messages follow.
pub fn accept(
    respond: &mut SendResponse<Bytes>,
    metadata: &[(&'static str, HeaderValue)],
) -> Result<PacketSink, h2::Error> {
    let mut head = head();
    for (name, value) in metadata {
        head.headers_mut().insert(*name, value.clone());
    }
    let stream = respond.send_response(head, false)?;
    Ok(PacketSink::new(stream))
}
