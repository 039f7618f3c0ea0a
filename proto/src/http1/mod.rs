//! HTTP/1.1 as somebody in the middle has to know it: where a message ends, and what may follow.
//!
//! [`head`] reads one request or response head, strictly: whatever two readers could take
//! differently is an error. [`body`] follows a body to its end. [`exchange`] is one connection:
//! which bytes may pass in which direction, which are a new request, when bytes pass unread.
//!
//! Nothing is rewritten. The caller keeps the bytes and is told how many of them may go on.

pub mod body;
pub mod exchange;
#[doc(hidden)]
pub mod fuzz;
pub mod head;

pub use body::{Body, BodyError, Framing};
pub use exchange::{DownStep, Exchange, UpStep, Violation};
pub use head::{HeadError, RequestHead, ResponseHead};
