//! One connection between a client and a server, seen from the middle: which bytes may pass, and
//! which are a new request that somebody has to judge first.
//!
//! Requests are judged one at a time. A request that comes before the answer to the one before is
//! over waits in the caller's buffer; so a refusal can be answered in order, and an answer always
//! belongs to the request that was recorded. After an upgrade that the server agreed to (101),
//! bytes pass unread both ways.

use crate::http1::body::{Body, BodyError};
use crate::http1::head::{self, HeadError, Method, RequestHead, ResponseHead};

/// What is wrong with the bytes of one side; the connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A head.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// A body.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// The server speaks although nothing was asked.
    #[error("an answer to no request")]
    Unasked,
    /// 101 although nobody asked for it.
    #[error("a switch of protocols that nobody asked for")]
    UnaskedSwitch,
}

impl Violation {
    /// The word for metrics and audit records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Violation::Head(error) => error.as_str(),
            Violation::Body(_) => "chunks",
            Violation::Unasked => "unasked",
            Violation::UnaskedSwitch => "unasked-switch",
        }
    }
}

/// What to do with the bytes that the client sent and that have not passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpStep {
    /// So many of them may pass.
    Pass(usize),
    /// A request whose head is so many bytes long. It has to be judged: [`Exchange::admit`], after
    /// which the head may pass, or [`Exchange::refuse`], after which it is dropped.
    Request(RequestHead, usize),
    /// Nothing may pass now: more bytes are needed, or the answer to an earlier request is.
    Wait,
}

/// What to do with the bytes that the server sent and that have not passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DownStep {
    /// So many of them may pass.
    Pass(usize),
    /// An answer begins; its head of so many bytes may pass.
    Answer(ResponseHead, usize),
    /// Nothing may pass before there is more.
    Wait,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Up {
    /// A request may come.
    Idle,
    /// A head was found and waits for [`Exchange::admit`] or [`Exchange::refuse`].
    Judged,
    /// A request's body.
    Body(Body),
    Raw,
    /// Nothing more is taken.
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Down {
    /// Nothing was asked.
    Idle,
    /// An answer is to come.
    Head {
        method: Method,
        upgrade: bool,
    },
    Body(Body),
    Raw,
}

/// See the head of this file.
#[derive(Clone, Debug)]
pub struct Exchange {
    up: Up,
    down: Down,
    /// How far the bytes of a head that is not whole were looked at.
    up_seen: usize,
    down_seen: usize,
    requests: u64,
}

impl Default for Exchange {
    fn default() -> Self {
        Self {
            up: Up::Idle,
            down: Down::Idle,
            up_seen: 0,
            down_seen: 0,
            requests: 0,
        }
    }
}

impl Exchange {
    /// Looks at all bytes of the client that have not passed. To be called again with the rest
    /// until it says [`UpStep::Wait`].
    pub fn up(&mut self, bytes: &[u8]) -> Result<UpStep, Violation> {
        if let Up::Body(body) = &mut self.up {
            let taken = body.take(bytes)?;
            if body.is_done() {
                self.up = Up::Idle;
            }
            if taken > 0 {
                return Ok(UpStep::Pass(taken));
            }
        }
        match self.up {
            Up::Raw if !bytes.is_empty() => Ok(UpStep::Pass(bytes.len())),
            Up::Idle if self.down == Down::Idle => self.head(bytes),
            _ => Ok(UpStep::Wait),
        }
    }

    fn head(&mut self, bytes: &[u8]) -> Result<UpStep, Violation> {
        head::check_start(bytes)?;
        match head::find_end(bytes, self.up_seen)? {
            Some(end) => {
                self.up_seen = 0;
                let request = head::request(&bytes[..end])?;
                self.up = Up::Judged;
                Ok(UpStep::Request(request, end))
            }
            None => {
                self.up_seen = bytes.len();
                Ok(UpStep::Wait)
            }
        }
    }

    /// The request that was found passes.
    pub fn admit(&mut self, request: &RequestHead) {
        debug_assert_eq!(self.up, Up::Judged);
        self.requests += 1;
        self.down = Down::Head {
            method: request.method,
            // With a body before it, what follows the head would not be the new protocol.
            upgrade: request.upgrade && Body::new(request.framing).is_done(),
        };
        let body = Body::new(request.framing);
        self.up = if body.is_done() {
            Up::Idle
        } else {
            Up::Body(body)
        };
    }

    /// The request that was found is answered by us. Says whether another may follow: not behind
    /// a body that nobody wants, nor where something else than a request may follow.
    pub fn refuse(&mut self, request: &RequestHead) -> bool {
        debug_assert_eq!(self.up, Up::Judged);
        let goes_on = Body::new(request.framing).is_done()
            && !request.upgrade
            && !request.expects
            && !request.closes;
        self.up = if goes_on { Up::Idle } else { Up::Over };
        goes_on
    }

    /// Looks at all bytes of the server that have not passed.
    pub fn down(&mut self, bytes: &[u8]) -> Result<DownStep, Violation> {
        match &mut self.down {
            _ if bytes.is_empty() => Ok(DownStep::Wait),
            Down::Raw => Ok(DownStep::Pass(bytes.len())),
            Down::Idle => Err(Violation::Unasked),
            Down::Body(body) => {
                let taken = body.take(bytes)?;
                if body.is_done() {
                    self.down = Down::Idle;
                }
                Ok(DownStep::Pass(taken))
            }
            &mut Down::Head { method, upgrade } => {
                head::check_answer_start(bytes)?;
                let Some(end) = head::find_end(bytes, self.down_seen)? else {
                    self.down_seen = bytes.len();
                    return Ok(DownStep::Wait);
                };
                self.down_seen = 0;
                let answer = head::response(&bytes[..end], method)?;
                match answer.status {
                    101 if upgrade => (self.up, self.down) = (Up::Raw, Down::Raw),
                    101 => return Err(Violation::UnaskedSwitch),
                    100..200 => {}
                    _ => {
                        let body = Body::new(answer.framing);
                        self.down = if body.is_done() {
                            Down::Idle
                        } else {
                            Down::Body(body)
                        };
                    }
                }
                Ok(DownStep::Answer(answer, end))
            }
        }
    }

    /// Requests that passed.
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// Whether bytes pass unread.
    pub fn is_raw(&self) -> bool {
        self.up == Up::Raw
    }

    /// Whether a request passed whose answer has not begun.
    pub fn awaits_answer(&self) -> bool {
        matches!(self.down, Down::Head { .. })
    }

    /// Whether an answer of ours can be told from one of the server's: none of those has begun.
    pub fn may_answer(&self) -> bool {
        match self.down {
            Down::Head { .. } => true,
            Down::Idle => !matches!(self.up, Up::Body(_)),
            Down::Body(_) | Down::Raw => false,
        }
    }

    /// Whether a request or its answer is under way.
    pub fn is_busy(&self) -> bool {
        self.down != Down::Idle || matches!(self.up, Up::Body(_) | Up::Judged)
    }

    /// Whether the client may end its direction here, `held` bytes of it not having passed, and
    /// nothing that it sent looks more whole than it was.
    pub fn client_may_end(&self, held: usize) -> bool {
        match self.up {
            Up::Raw | Up::Over => true,
            Up::Idle => held == 0 || self.down != Down::Idle,
            Up::Body(_) | Up::Judged => false,
        }
    }

    /// The same for the server.
    pub fn server_may_end(&self, held: usize) -> bool {
        match self.down {
            Down::Raw | Down::Idle => held == 0,
            Down::Body(body) => body.may_end() && held == 0,
            Down::Head { .. } => false,
        }
    }
}
