//! What idle dials cost, both daemons together, sockets in the kernel not counted. Alone in its
//! file: it reads the process's memory.

#[path = "pair/both.rs"]
mod both;
mod pair;

use both::{Ends, tcp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use towline_link::live::LiveDials;
use towline_link::splice::{Early, LocalSide, splice};

const DIALS: usize = 256;
/// For the server's end and the agent's end of one dial, and the test's own two sockets.
const BYTES: usize = 24 * 1024;

/// Resident bytes of this process.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size()
}

#[tokio::test]
async fn an_idle_dial_keeps_no_buffer_on_either_carrier() {
    // What the first carrier has used stays used, so that the second one does not live on it.
    let mut all = Vec::new();
    for ends in [Ends::on_quic().await, Ends::on_tls().await] {
        ends.agent.set_stream_limit(2 * DIALS as u32);
        let dials = LiveDials::new(u64::MAX);
        let (mut tasks, mut kept) = (JoinSet::new(), Vec::with_capacity(2 * DIALS));
        let mut before = 0;
        for count in 0..2 * DIALS {
            if count == DIALS {
                before = resident();
            }
            let (here, there) = ends.dial().await;
            let ((door, mut front_end), (connected, mut target)) = tokio::join!(tcp(), tcp());
            let (a, b) = (dials.register(), dials.register());
            tasks.spawn(async move {
                splice(door, here, LocalSide::FrontEnd, Early::default(), &a).await;
            });
            tasks.spawn(async move {
                splice(connected, there, LocalSide::Target, Early::default(), &b).await;
            });
            let bytes = vec![1; 200_000];
            let (mut up, mut down) = (vec![0; 200_000], vec![0; 200_000]);
            let (sent, _) = tokio::join!(front_end.write_all(&bytes), target.read_exact(&mut up));
            sent.unwrap();
            let (sent, _) = tokio::join!(target.write_all(&bytes), front_end.read_exact(&mut down));
            sent.unwrap();
            kept.push((front_end, target));
        }
        let each = resident().saturating_sub(before) / DIALS;
        println!(
            "{}: {each} bytes for both ends of an idle dial",
            ends.kind()
        );
        assert!(each < BYTES, "{}: {each} bytes", ends.kind());
        assert_eq!(dials.len(), 4 * DIALS);
        all.push((ends, tasks, kept));
    }
}
