//! Finding a report in what a user names: the report's file, or a log in which it is a line.

use std::collections::BTreeMap;
use std::fmt;

use memchr::memmem;
use serde::Deserialize;
use serde_json::Value;

use super::VERSION;
use crate::logging::visible;

/// A report as it was written.
#[derive(Debug, Deserialize)]
pub struct Written {
    pub(super) reason: String,
    pub(super) started_at: String,
    pub(super) duration_seconds: Seconds,
    pub(super) phases: Vec<WrittenPhase>,
    pub(super) budget_seconds: Seconds,
    pub(super) budget_left_seconds: Seconds,
    pub(super) active_connections_at_shutdown: u64,
    pub(super) refused_in_shutdown: u64,
    pub(super) cut_in_shutdown: u64,
    pub(super) requests: WrittenRequests,
    pub(super) connections: WrittenConnections,
    pub(super) late_bytes: u64,
    pub(super) lost: Vec<WrittenLine>,
    pub(super) lost_unnamed: u64,
    pub(super) slowest: Vec<WrittenLine>,
    /// Not there when the server had none to run.
    #[serde(default)]
    pub(super) hooks: Vec<WrittenHook>,
    /// Guards that a program still held for work that is no request.
    #[serde(default)]
    pub(super) other_work: u64,
    /// Not there when the server could not leave any to the kernel.
    #[serde(default)]
    pub(super) responses_undelivered: u64,
    pub(super) exit_status: u8,
}

#[derive(Debug, Deserialize)]
pub(super) struct WrittenPhase {
    pub(super) name: String,
    pub(super) start_seconds: Seconds,
    pub(super) seconds: Seconds,
}

#[derive(Debug, Deserialize)]
pub(super) struct WrittenRequests {
    pub(super) begun: u64,
    pub(super) in_flight: u64,
    pub(super) finished: BTreeMap<String, u64>,
    pub(super) rejected: BTreeMap<String, u64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct WrittenConnections {
    pub(super) opened: u64,
    pub(super) open: u64,
    pub(super) closed: BTreeMap<String, u64>,
}

/// A request, lost or slow.
#[derive(Debug, Deserialize)]
pub(super) struct WrittenLine {
    pub(super) outcome: String,
    pub(super) method: String,
    pub(super) path: String,
    pub(super) peer: String,
    pub(super) age_seconds: Seconds,
    pub(super) ended_seconds: Seconds,
    pub(super) waited_for: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct WrittenHook {
    pub(super) name: String,
    pub(super) stage: String,
    pub(super) outcome: String,
    /// From the beginning of the shutdown; `None` when only its stage tells.
    pub(super) start_seconds: Option<Seconds>,
    pub(super) seconds: Seconds,
    pub(super) limit_seconds: Option<Seconds>,
    pub(super) error: Option<String>,
}

/// A time that a shutdown can have taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Deserialize)]
#[serde(try_from = "f64")]
pub(super) struct Seconds(pub(super) f64);

impl TryFrom<f64> for Seconds {
    type Error = &'static str;

    fn try_from(seconds: f64) -> Result<Seconds, &'static str> {
        // 30 years, and not NaN.
        if (0.0..=1e9).contains(&seconds) {
            Ok(Seconds(seconds))
        } else {
            Err("no number of seconds that a shutdown can take")
        }
    }
}

/// Why there is no report. Displays as part of one line, in which everything is visible.
#[derive(Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// There is nothing.
    Empty,
    /// Neither JSON nor lines of JSON.
    NotJson,
    /// A log without the line.
    NoLine,
    /// JSON, but something else.
    NotReport(String),
    /// As it was written before reports had a version.
    Older,
    /// Of a format that is not known here.
    Version(String),
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unreadable::Empty => write!(f, "it is empty"),
            Unreadable::NotJson => write!(f, "neither a report nor a log of JSON lines"),
            Unreadable::NoLine => write!(f, "a log without the report of a shutdown"),
            Unreadable::NotReport(why) => write!(f, "no report of a shutdown: {}", visible(why)),
            Unreadable::Older => {
                write!(f, "a report of an older version; this is read: version {VERSION}")
            }
            Unreadable::Version(found) => {
                let found = visible(found);
                write!(f, "a report of version {found}; this is read: version {VERSION}")
            }
        }
    }
}

/// The report in `bytes`: the only value there, or that of the last line of a log that has one.
///
/// # Errors
/// See [`Unreadable`].
pub fn read(bytes: &[u8]) -> Result<Written, Unreadable> {
    let value = find(bytes)?;
    let Value::Object(fields) = &value else {
        return Err(Unreadable::NotReport("it is no JSON object".to_owned()));
    };
    match fields.get("version") {
        Some(version) if *version == VERSION => {}
        Some(version) => return Err(Unreadable::Version(version.to_string())),
        None if fields.contains_key("phases_seconds") => return Err(Unreadable::Older),
        None => return Err(Unreadable::NotReport("it has no version".to_owned())),
    }
    serde_json::from_value(value).map_err(|error| Unreadable::NotReport(error.to_string()))
}

fn find(bytes: &[u8]) -> Result<Value, Unreadable> {
    if bytes.trim_ascii().is_empty() {
        return Err(Unreadable::Empty);
    }
    if let Ok(only) = serde_json::from_slice::<Value>(bytes) {
        return if only.get("event_type").is_some() {
            report_of(only).ok_or(Unreadable::NoLine)
        } else {
            Ok(only)
        };
    }
    let lines = bytes.split(|byte| *byte == b'\n');
    let name = memmem::Finder::new(EVENT);
    let candidates = lines.clone().rev().filter(|line| name.find(line).is_some());
    let mut parsed = candidates.filter_map(|line| serde_json::from_slice(line).ok());
    if let Some(report) = parsed.find_map(report_of) {
        return Ok(report);
    }
    let is_log = lines.take(LINES_TRIED).any(|line| serde_json::from_slice::<Value>(line).is_ok());
    Err(if is_log { Unreadable::NoLine } else { Unreadable::NotJson })
}

/// What a line of a log has under `report`, if it is the line of a report.
fn report_of(mut line: Value) -> Option<Value> {
    (line.get("event_type")? == EVENT).then(|| line.get_mut("report").map(Value::take))?
}

/// The `event_type` of the line.
const EVENT: &str = "shutdown_report";

/// Lines that may be something else at the beginning of a log.
const LINES_TRIED: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    fn why(text: &str) -> String {
        read(text.as_bytes()).expect_err("no report").to_string()
    }

    #[test]
    fn what_is_no_report_is_told_from_what_cannot_be_read() {
        assert_eq!(why(" \n"), "it is empty");
        assert_eq!(why("hello\nworld"), "neither a report nor a log of JSON lines");
        assert_eq!(why("{\"a\":1}\n{\"b\":2}\n"), "a log without the report of a shutdown");
        assert_eq!(why("{\"event_type\":\"x\"}"), "a log without the report of a shutdown");
        assert_eq!(why("[1]"), "no report of a shutdown: it is no JSON object");
        assert_eq!(why("{}"), "no report of a shutdown: it has no version");
        assert_eq!(why("{\"version\":1}"), "no report of a shutdown: missing field `reason`");
        assert_eq!(
            why("{\"version\":1,\"reason\":1}"),
            "no report of a shutdown: invalid type: integer `1`, expected a string"
        );
        assert_eq!(
            why("{\"phases_seconds\":{}}"),
            "a report of an older version; this is read: version 1"
        );
        assert_eq!(
            why("{\"version\":\"2\u{9b}\"}"),
            "a report of version \"2\\u009b\"; this is read: version 1"
        );
    }

    #[test]
    fn times_that_cannot_be_are_refused() {
        for text in ["-1", "1e300", "1e10"] {
            assert!(serde_json::from_str::<Seconds>(text).is_err(), "{text}");
        }
        assert_eq!(serde_json::from_str::<Seconds>("2.5").ok(), Some(Seconds(2.5)));
    }
}
