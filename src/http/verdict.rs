//! The server's own answers to a request.

use http::StatusCode;

use super::message::{IntoResponse, Response};

/// A decision of the server over the handler's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No response head within the request time limit: 503.
    TooSlow,
    /// The body stalled or came too slowly: 408.
    BodyStalled,
    /// The body is larger than allowed: 413.
    BodyTooLarge,
    /// The shutdown's deadline is near: 503, counted as refused.
    ShuttingDown,
    /// Too many requests in flight: 503, counted as refused.
    Overloaded,
}

impl Verdict {
    /// The response in the place of the handler's.
    pub fn response(self) -> Response {
        match self {
            Verdict::TooSlow | Verdict::ShuttingDown | Verdict::Overloaded => Response::busy(),
            Verdict::BodyStalled => StatusCode::REQUEST_TIMEOUT.into_response(),
            Verdict::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE.into_response(),
        }
    }

    pub fn is_refusal(self) -> bool {
        matches!(self, Verdict::ShuttingDown | Verdict::Overloaded)
    }
}
