//! How a front end speaks gRPC to the server: Konnectivity's `/ProxyService/Proxy`.
//!
//! [`connection`] is one HTTP/2 connection with its streams, [`stream`] one stream from its first
//! packet to its last, [`tunnel`] a stream as the splice sees it, [`piece`] what is written
//! without being copied, `wire` a stream as the gateway wants it, [`authority`] a repair of names,
//! [`text`] a refusal in the words that callers match on. What packets mean
//! is decided by `proto`'s machine; its types end here.

pub mod authority;
pub mod connection;
pub mod piece;
pub mod stream;
pub mod text;
pub mod tunnel;
mod wire;
