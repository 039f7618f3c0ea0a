//! The fuzz body of the multiplexer: a plain function, run over a corpus by `cargo test` and by
//! whatever fuzzer one likes.

use bytes::Bytes;

use super::{Batch, Config, Mux, Side};
use crate::limits::MUX_SEND_QUEUE;
use crate::reason::Reason;

/// Feeds `data` to a machine whose owner uses it meanwhile, twice: in one piece, and cut into
/// pieces whose length its first byte says. Never panics, never keeps more than its bounds, and
/// says the same thing both times.
pub fn fuzz_mux(data: &[u8]) {
    for side in [Side::Connector, Side::Acceptor] {
        let whole = run(side, data, data.len().max(1));
        let cut = run(
            side,
            data,
            usize::from(data.first().copied().unwrap_or(1) % 32) + 1,
        );
        assert_eq!(whole, cut, "the way bytes are cut changed their meaning");
    }
}

const WINDOW: u32 = 4096;
const STREAMS: u32 = 4;

/// How it ended, and how many streams it saw.
fn run(side: Side, data: &[u8], piece: usize) -> (Option<Reason>, bool, usize) {
    let mut mux = Mux::new(Config {
        side,
        streams: STREAMS,
        window: WINDOW,
        send_queue: MUX_SEND_QUEUE,
    });
    let mut violated = false;
    for bytes in data.chunks(piece) {
        violated |= mux.handle(bytes).is_err();
        while mux.poll_event().is_some() {}
    }
    assert!(!violated || mux.closed() == Some(Reason::Protocol));
    let mut seen = 0;
    let mut batch = Batch::default();
    if let Ok(key) = mux.open() {
        let _ = mux.send(key, &mut Bytes::from_static(b"hello"));
        mux.release_send(key);
        mux.release_recv(key);
    }
    while let Some(key) = mux.accept() {
        seen += 1;
        let mut bytes = 0;
        while let Ok(Some(chunk)) = mux.recv(key, 100) {
            bytes += chunk.len();
        }
        assert!(bytes <= WINDOW as usize, "more than a window was kept");
        mux.finish(key);
        mux.release_send(key);
        mux.release_recv(key);
    }
    assert!(seen <= STREAMS as usize, "more streams than allowed");
    mux.transmit(&mut batch, usize::MAX);
    while mux.poll_event().is_some() {}
    (mux.closed(), violated, seen)
}
