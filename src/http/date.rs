//! The wall clock, for `Date` headers.

use std::cell::Cell;
use std::io::Write;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use httpdate::HttpDate;

/// The end of a head that has a date: `date: Sun, 06 Nov 1994 08:49:37 GMT`, between the line end
/// before it and the empty line behind it.
pub type DateEnd = [u8; DATE_END_BYTES];

const DATE_END_BYTES: usize = "\r\ndate: ".len() + HTTP_DATE_BYTES + "\r\n\r\n".len();

/// An IMF-fixdate (RFC 9110, 5.6.7).
const HTTP_DATE_BYTES: usize = 29;

/// The date as a head says it, made anew once a second.
#[derive(Debug)]
pub struct DateCache {
    end: Cell<DateEnd>,
    /// When the next second begins.
    until: Cell<Option<Instant>>,
}

impl Default for DateCache {
    fn default() -> DateCache {
        DateCache { end: Cell::new([0; DATE_END_BYTES]), until: Cell::new(None) }
    }
}

impl DateCache {
    /// The end of a head that is written in the turn of `now`.
    pub fn end(&self, now: Instant) -> DateEnd {
        if self.until.get().is_none_or(|until| now >= until) {
            self.renew(now);
        }
        self.end.get()
    }

    #[cold]
    fn renew(&self, now: Instant) {
        let time = wall_clock();
        let nanos = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
        let left = Duration::from_secs(1).saturating_sub(Duration::from_nanos(nanos.into()));
        self.until.set(Some(now + left));
        let mut end = [0; DATE_END_BYTES];
        let written = write!(&mut end[..], "\r\ndate: {}\r\n\r\n", HttpDate::from(time));
        debug_assert!(written.is_ok(), "an HTTP date has {HTTP_DATE_BYTES} bytes");
        self.end.set(end);
    }
}

/// The wall clock: once a second, and once per rejected connection.
pub fn wall_clock() -> SystemTime {
    #[allow(clippy::disallowed_methods, reason = "a date, not a deadline; off the hot path")]
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_ends_with_the_date_of_its_second() {
        let cache = DateCache::default();
        let now = crate::reactor::turn::clock();
        let end = cache.end(now);
        let said = str::from_utf8(&end).unwrap();
        let date = said.strip_prefix("\r\ndate: ").unwrap().strip_suffix("\r\n\r\n").unwrap();
        let time = httpdate::parse_http_date(date).unwrap();
        assert!(wall_clock().duration_since(time).unwrap() < Duration::from_secs(10));
        assert_eq!(cache.end(now), end, "within a second it stays");
        cache.end.set([0; DATE_END_BYTES]);
        assert_ne!(cache.end(now + Duration::from_secs(1)), [0; DATE_END_BYTES], "then it is new");
    }
}
