//! Fuzz body: whatever both sides say, in whatever pieces, the machine neither panics nor lets a
//! byte pass twice, and no piece-wise reading finds another number of requests than one at once.

use super::exchange::{DownStep, Exchange, UpStep, Violation};

/// What a run came to: requests, bytes that passed each way, and how it ended.
type Outcome = (u64, usize, usize, Option<Violation>);

fn run(client: &[u8], server: &[u8], piece: usize) -> Outcome {
    let mut exchange = Exchange::default();
    let (mut up, mut down) = (0, 0);
    let (mut client_has, mut server_has) = (0, 0);
    loop {
        let before = (up, down, client_has, server_has);
        client_has = client.len().min(client_has + piece);
        loop {
            match exchange.up(&client[up..client_has]) {
                Ok(UpStep::Pass(bytes)) => up += bytes,
                Ok(UpStep::Request(head, bytes)) => {
                    exchange.admit(&head);
                    up += bytes;
                }
                Ok(UpStep::Wait) => break,
                Err(error) => return (exchange.requests(), up, down, Some(error)),
            }
            assert!(up <= client_has);
        }
        // The server speaks when the client has nothing more to say, so that pieces change nothing.
        if client_has == client.len() || exchange.awaits_answer() {
            server_has = server.len().min(server_has + piece);
        }
        while exchange.is_busy() || exchange.is_raw() {
            match exchange.down(&server[down..server_has]) {
                Ok(DownStep::Pass(bytes) | DownStep::Answer(_, bytes)) => down += bytes,
                Ok(DownStep::Wait) => break,
                Err(error) => return (exchange.requests(), up, down, Some(error)),
            }
            assert!(down <= server_has);
        }
        if before == (up, down, client_has, server_has) {
            return (exchange.requests(), up, down, None);
        }
    }
}

/// The first byte says where the client's part ends.
pub fn exchange(data: &[u8]) {
    let Some((first, data)) = data.split_first() else {
        return;
    };
    let (client, server) = data.split_at(data.len() * usize::from(*first) / 255);
    let whole = run(client, server, usize::MAX / 4);
    let pieces = run(client, server, 1);
    if whole.3.is_none() && pieces.3.is_none() {
        assert_eq!(whole.0, pieces.0, "another number of requests");
    }
}
