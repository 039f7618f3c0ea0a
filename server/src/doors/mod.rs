//! How front ends speak to the server: HTTP CONNECT on a Unix socket and over TCP with mutual
//! TLS. A door turns what it reads into an [`Ask`](crate::dial::Ask) and what it gets back into
//! bytes or a status line; nothing behind it knows which door a dial came through.

pub mod connect;
pub mod front_ends;
pub mod head;
pub mod status;
pub mod tcp;
pub mod unix;
