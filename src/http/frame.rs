//! What of a connection's bytes hyper may be given next, and what lies behind.

/// What hyper's next read gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A complete head, or nothing.
    Head,
    /// The rest of a head of which this many bytes are still ours.
    HeadRest(usize),
    /// The whole head was handed over and hyper has not called the service yet.
    HeadDone,
    /// What [stands in](super::short::stand_in) for a head that came the short way.
    StandIn,
    /// This many bytes of a body.
    Body(u64),
    /// The rest of a chunked body, as far as its framing says.
    Chunked,
    /// Whatever comes: hyper and we disagree on where something ends. The connection closes after
    /// the request at hand.
    Anything,
}

/// Who has the body of the request at hand, or of the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyOwner {
    /// The handler, or the response that it returned.
    Application,
    /// It was read to its end, or there was none.
    Nobody,
    /// It was dropped before its end: what the client still sends of it must not be read as a head.
    Dropped,
}

/// What is there behind the bytes that hyper was given.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ahead {
    /// Bytes that we hold.
    pub held: u64,
    /// Whether the kernel may hold some.
    pub readable: bool,
}

/// What hyper reads at least at once (its `INIT_BUFFER_SIZE`).
pub(super) const HYPER_READ_BYTES: u64 = 8192;
