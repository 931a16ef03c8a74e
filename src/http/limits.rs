//! What a client may ask for. Every limit has a default that is on.

use std::time::Duration;

use super::head::HeadLimits;

/// Limits on requests and connections of one listener. See the README's table for the reasons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request head; beyond: 431.
    pub head_bytes_max: usize,
    /// Header fields of a request; beyond: 431.
    pub header_fields_max: usize,
    /// Bytes of a request line; beyond: 414.
    pub request_line_bytes_max: usize,
    /// Bytes of a request body, unless its route says otherwise; beyond: 413.
    pub body_bytes_max: u64,
    /// From accept to the first byte; then 408.
    pub first_byte_timeout: Duration,
    /// From a head's first byte to its last; then 408.
    pub head_timeout: Duration,
    /// From a response to the next request's first byte; then the connection is closed.
    pub keep_alive_timeout: Duration,
    /// Without a byte of a body that a handler waits for; then 408.
    pub body_stall_timeout: Duration,
    /// Bytes per second of such a body, on average, once 10 s have passed; else 408.
    /// 0: no minimum.
    pub body_rate_min: u64,
    /// Without the client taking a byte of a response; then the connection is reset.
    pub write_stall_timeout: Duration,
    /// From a complete head (or body, if the handler waits for it) to the response's head; then
    /// 503.
    pub request_timeout: Duration,
    /// Requests in flight on one worker; beyond: 503.
    pub in_flight_max: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            head_bytes_max: 32 * 1024,
            header_fields_max: 100,
            request_line_bytes_max: 8 * 1024,
            body_bytes_max: 1024 * 1024,
            first_byte_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(10),
            keep_alive_timeout: Duration::from_secs(75),
            body_stall_timeout: Duration::from_secs(20),
            body_rate_min: 500,
            write_stall_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(30),
            in_flight_max: 10_000,
        }
    }
}

impl Limits {
    /// The same, with times that can be added to any instant: a year is as good as for ever.
    pub(crate) fn bounded(self) -> Limits {
        Limits {
            first_byte_timeout: self.first_byte_timeout.min(LONGEST),
            head_timeout: self.head_timeout.min(LONGEST),
            keep_alive_timeout: self.keep_alive_timeout.min(LONGEST),
            body_stall_timeout: self.body_stall_timeout.min(LONGEST),
            write_stall_timeout: self.write_stall_timeout.min(LONGEST),
            request_timeout: self.request_timeout.min(LONGEST),
            ..self
        }
    }

    pub(super) fn head(&self) -> HeadLimits {
        HeadLimits {
            bytes_max: self.head_bytes_max,
            line_bytes_max: self.request_line_bytes_max,
            fields_max: self.header_fields_max,
        }
    }
}

const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// How long a body may take before its average rate matters.
pub const BODY_RATE_AFTER: Duration = Duration::from_secs(10);

/// How long a hot connection stays idle before its hyper state is dropped. A burst of requests
/// never pays for the rebuilding (two small allocations, and hyper's where it is needed); a browser
/// between two clicks costs only its slot.
pub const HIBERNATE_AFTER: Duration = Duration::from_secs(1);

/// Connections that hyper may work on at once on one worker, as far as it depends on us: who has
/// nothing at hand while there are more hibernates at once. Each takes 1 KiB, and 10 KiB or more
/// with hyper, so that a crowd of thousands that comes within [`HIBERNATE_AFTER`] would fill a
/// small container, while the price is a rebuild, for those above the number only.
pub const HOT_MAX: usize = 512;

/// Bytes that one connection may read and write in one turn, so that no ready connection waits
/// longer than others' turns of this size.
pub const TURN_BYTES_MAX: usize = 256 * 1024;

/// Bytes of responses collected before they are written within a poll instead of after it.
pub const OUT_BYTES_MAX: usize = 64 * 1024;

/// hyper's own buffers. Its default of 417,792 bytes is what an upload would grow to.
pub const HYPER_BUFFER_BYTES_MAX: usize = 64 * 1024;

/// A response piece of this size is handed to the kernel as it is instead of being copied.
pub const DIRECT_BYTES_MIN: usize = 16 * 1024;

/// After the send queue is empty, how long a closing connection waits for the peer's FIN, or for
/// more of a request that the peer is in the middle of.
pub const LINGER_SILENCE_MAX: Duration = Duration::from_secs(2);

/// How long a closing connection may go on discarding a request that nobody wants.
pub const LINGER_MAX: Duration = Duration::from_secs(30);

/// The pause before a client should come back, in every 503.
pub const RETRY_AFTER: &str = "1";
