//! One stream as both directions' states. Transitions only; frames and lists are the callers'.

use crate::limits::MUX_RETURN;
use crate::queue::Queue;
use crate::reason::Reason;

/// Our sending direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sending {
    /// Bytes may follow.
    Open,
    /// The end was said; it goes out behind the queued bytes.
    Ending,
    /// The end is out.
    Ended,
    /// Given up; RESET is to be sent.
    Resetting(Reason),
    /// Given up; RESET is out.
    Reset,
}

impl Sending {
    /// Whether the peer was told that nothing follows.
    pub(super) const fn is_over(self) -> bool {
        matches!(self, Sending::Ended | Sending::Reset)
    }
}

/// Our receiving direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receiving {
    /// Bytes may follow.
    Open,
    /// The peer said its end; unread bytes may remain.
    Ended,
    /// The peer gave up; nothing remains.
    Reset(Reason),
    /// We take no more; the peer's end or reset is awaited.
    Stopped,
    /// We take no more, and the peer said its end or reset.
    StoppedOver,
}

impl Receiving {
    /// Whether the peer said that nothing follows.
    pub(super) const fn is_over(self) -> bool {
        matches!(
            self,
            Receiving::Ended | Receiving::Reset(_) | Receiving::StoppedOver
        )
    }
}

/// What a stream's owner waits for. A set of bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest(u8);

impl Interest {
    /// Bytes, the end, or an error.
    pub const RECV: Interest = Interest(1);
    /// Room for bytes, or an error.
    pub const SEND: Interest = Interest(2);
    /// The peer stopping our sending.
    pub const STOPPED: Interest = Interest(4);
    pub(super) const NONE: Interest = Interest(0);
    pub(super) const ALL: Interest = Interest(7);

    /// Whether any bit of `other` is in `self`.
    pub const fn has(self, other: Interest) -> bool {
        self.0 & other.0 != 0
    }

    pub(super) const fn and(self, other: Interest) -> Interest {
        Interest(self.0 & other.0)
    }

    pub(super) fn add(&mut self, other: Interest) {
        self.0 |= other.0;
    }

    pub(super) fn remove(&mut self, other: Interest) {
        self.0 &= !other.0;
    }
}

#[derive(Debug)]
pub(super) struct Stream {
    /// The number on the wire; zero until our first frame of a stream that we open.
    pub(super) number: u32,
    pub(super) ours: bool,
    pub(super) priority: i32,
    pub(super) sending: Sending,
    pub(super) receiving: Receiving,
    /// Why the peer stopped our sending.
    pub(super) stopped: Option<Reason>,
    pub(super) send_queue: Queue,
    /// Bytes that the peer takes beyond those already queued.
    pub(super) credit: u32,
    pub(super) recv_queue: Queue,
    /// Bytes that the peer may still send.
    pub(super) granted: u32,
    /// Bytes read and not yet given back as credit.
    pub(super) unreturned: u32,
    /// A STOP to be sent.
    pub(super) stopping: Option<Reason>,
    pub(super) interest: Interest,
    /// Stands in the list of streams that have RESET, STOP or WINDOW to send.
    pub(super) in_control: bool,
    /// Stands in the schedule.
    pub(super) in_schedule: bool,
    pub(super) send_held: bool,
    pub(super) recv_held: bool,
}

impl Stream {
    pub(super) fn new(number: u32, ours: bool, credit: u32, granted: u32) -> Self {
        Self {
            number,
            ours,
            priority: 0,
            sending: Sending::Open,
            receiving: Receiving::Open,
            stopped: None,
            send_queue: Queue::default(),
            credit,
            recv_queue: Queue::default(),
            granted,
            unreturned: 0,
            stopping: None,
            interest: Interest::NONE,
            in_control: false,
            in_schedule: false,
            send_held: true,
            recv_held: true,
        }
    }

    /// Whether there is a DATA frame to send.
    pub(super) fn has_data(&self) -> bool {
        match self.sending {
            Sending::Open => !self.send_queue.is_empty(),
            Sending::Ending => true,
            Sending::Ended | Sending::Resetting(_) | Sending::Reset => false,
        }
    }

    /// Whether enough was read that the credit goes back: half a window, and no more than a peer
    /// that sends less than it may can wait for.
    pub(super) fn returns_credit(&self, window: u32) -> bool {
        self.receiving == Receiving::Open
            && self.unreturned > 0
            && self.unreturned >= MUX_RETURN.min(window / 2)
    }

    /// Whether it was opened and dropped before the peer saw anything of it.
    pub(super) fn is_unseen(&self) -> bool {
        self.number == 0
            && !self.send_held
            && !self.recv_held
            && matches!(self.sending, Sending::Resetting(_))
            && self.receiving == Receiving::Stopped
    }

    /// Whether nothing of it is left to say, to hear or to hold. What still stands in a list is
    /// not over: its key is used again, and would stand there for another stream.
    pub(super) fn is_over(&self) -> bool {
        let told = self.sending.is_over() && self.receiving.is_over();
        let held = self.send_held || self.recv_held;
        let listed = self.in_control || self.in_schedule;
        !held && !listed && (told || self.is_unseen())
    }
}
