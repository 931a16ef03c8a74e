//! Answers that no handler and no hyper connection is needed for, as bytes.

use std::time::SystemTime;

use super::limits::RETRY_AFTER;
use crate::ledger::RejectedCode;

/// The whole response to what never became a request. The connection closes after it.
pub fn rejection(code: RejectedCode, now: SystemTime) -> Vec<u8> {
    let reason = match code {
        RejectedCode::BadRequest => "Bad Request",
        RejectedCode::RequestTimeout => "Request Timeout",
        RejectedCode::UriTooLong => "URI Too Long",
        RejectedCode::FieldsTooLarge => "Request Header Fields Too Large",
    };
    let date = httpdate::fmt_http_date(now);
    format!(
        "HTTP/1.1 {} {reason}\r\nconnection: close\r\ncontent-length: 0\r\ndate: {date}\r\n\r\n",
        code.status()
    )
    .into_bytes()
}

/// The response to a connection over the limit.
pub fn shed(now: SystemTime) -> Vec<u8> {
    let date = httpdate::fmt_http_date(now);
    format!(
        "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: {RETRY_AFTER}\r\n\
         content-length: 0\r\ndate: {date}\r\n\r\n"
    )
    .into_bytes()
}
