//! Deadlines by the hundred thousand, none of them exact.
//!
//! A hashed wheel of a single level: time is cut into ticks of [`TICK`], a key filed at a tick
//! hangs in bucket `tick % BUCKETS`, and [`Wheel::expire`] goes through the buckets the clock has
//! passed. A *revolution* is [`BUCKETS`] ticks, 102.4 s. Within one revolution a bucket stands for
//! one tick; what is filed further away hangs in the same bucket and is passed over until its
//! turn.
//!
//! The wheel is *lazy*. A connection has many deadlines in its life (head, keep-alive, stall) and
//! hits almost none. Its owner keeps the true deadline and only makes sure, by
//! [`Wheel::file_by`], that it will be told at or before it. A deadline that moves away costs
//! nothing: the key is reported too early once, and the owner files it again. A keep-alive
//! connection that is served ten thousand times a minute is filed about once a minute.
//!
//! It is *coarse*: a deadline is rounded up to a tick and the clock down to one, so a key is never
//! reported before its deadline and at most one tick (and one turn) after it.
//!
//! The clock is not read here: every instant is an argument.
//!
//! Invariants:
//! - `swept` is the latest tick given to `expire`, and no key is filed at an earlier one: a tick
//!   already past is filed at `swept`, whose bucket every `expire` looks at;
//! - a key hangs in the bucket of its tick, in one bucket, once;
//! - in a bucket the keys within one revolution of `swept` come before those beyond. The former
//!   all have the same tick, so the head of a bucket alone says whether that tick is taken, and
//!   `next` need not walk;
//! - a bucket's bit in `occupied` is set exactly when it has a head.

use std::time::{Duration, Instant};

use super::pages::Pages;

/// The grain of all deadlines.
pub const TICK: Duration = Duration::from_millis(100);

/// A moment as a number of [`TICK`]s since the wheel's epoch.
///
/// 32 bits last 13 years and 7 months. Moments beyond, and before the epoch, are taken for the
/// last and the first tick; on the last one the wheel takes everything for due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tick(pub u32);

/// Tells when the time of a key may have come. A key is the index of a slot.
///
/// Takes 12 bytes for every key up to the highest one ever filed, and 4 KiB for itself. Nothing
/// is allocated but by a key higher than all before.
#[derive(Debug)]
pub struct Wheel {
    epoch: Instant,
    /// The latest tick given to `expire`. Never goes back.
    swept: Tick,
    entries: Pages<Entry>,
    /// The first key of each bucket, or [`NIL`]. As long as [`BUCKETS`].
    heads: Box<[u32]>,
    /// One bit a bucket: set exactly when its head is not [`NIL`].
    occupied: [u64; WORDS],
    /// The number of keys filed.
    len: usize,
}

impl Wheel {
    /// A wheel whose tick 0 is `epoch`: no later than any instant it will be asked about, so the
    /// start of the process or of the reactor.
    pub fn new(epoch: Instant) -> Self {
        Self {
            epoch,
            swept: Tick(0),
            entries: Pages::new(),
            heads: vec![NIL; BUCKETS as usize].into_boxed_slice(),
            occupied: [0; WORDS],
            len: 0,
        }
    }

    /// The tick at which a deadline of `at` is due, rounded up: never before `at`.
    pub fn tick_of(&self, at: Instant) -> Tick {
        let since = at.saturating_duration_since(self.epoch);
        ticks(since.as_secs(), since.subsec_nanos().div_ceil(TICK_NANOS))
    }

    /// The tick the clock shows at `now`, rounded down: never after `now`.
    pub fn now_tick(&self, now: Instant) -> Tick {
        let since = now.saturating_duration_since(self.epoch);
        ticks(since.as_secs(), since.subsec_nanos() / TICK_NANOS)
    }

    /// The instant at which `tick` begins: to wait until, so that [`now_tick`](Self::now_tick)
    /// shows it.
    pub fn instant_of(&self, tick: Tick) -> Instant {
        self.epoch + TICK * tick.0
    }

    /// Sees to it that `key` is reported at `at` or before.
    ///
    /// A key that is not filed, or filed later, is filed at `at`. One filed earlier stays: it will
    /// be reported too early, and its owner files it again by the deadline it has then. A tick
    /// that is already past is filed at the latest one `expire` was given, and reported by the
    /// next `expire`.
    ///
    /// # Panics
    ///
    /// On the key `u32::MAX`, which no slot has.
    pub fn file_by(&mut self, key: u32, at: Tick) {
        assert!(key != NIL, "u32::MAX is no key");
        let at = at.max(self.swept);
        match self.filed(key) {
            Some(earlier) if earlier <= at => return,
            Some(_) => self.unlink(key),
            None => {
                while self.entries.len() <= key {
                    self.entries.push(Entry::UNFILED);
                }
            }
        }
        self.link(key, at);
    }

    /// Forgets `key`: it is not reported until it is filed again. A key not filed is left alone.
    pub fn cancel(&mut self, key: u32) {
        if self.filed(key).is_some() {
            self.unlink(key);
        }
    }

    /// The tick `key` is filed at: the one asked for, or the latest `expire` knew of if that was
    /// later.
    pub fn filed(&self, key: u32) -> Option<Tick> {
        let entry = self.entries.get(key)?;
        (entry.next != NIL).then_some(entry.at)
    }

    /// Takes every key filed at `now` or before off the wheel and appends it to `due`, in no
    /// promised order. A `now` before that of an earlier call is taken for that one.
    ///
    /// Costs the keys reported, the buckets passed (at most all, however far the clock jumped),
    /// and the keys passed over because they are a revolution or more away.
    pub fn expire(&mut self, now: Tick, due: &mut Vec<u32>) {
        let from = self.swept;
        self.swept = now.max(from);
        let passed = (self.swept.0 - from.0).min(BUCKETS);
        let mut distance = 0;
        while let Some(ahead) = self.occupied_ahead(from, distance)
            && ahead < passed
        {
            self.pass(bucket_ahead(from, ahead), due);
            distance = ahead + 1;
        }
        // The clock stands in this bucket and may for many turns: its due keys are in front, and
        // the rest need not be seen.
        let bucket = bucket_ahead(self.swept, 0);
        while self.heads[bucket] != NIL && self.entries[self.heads[bucket]].at <= self.swept {
            let key = self.heads[bucket];
            self.unlink(key);
            due.push(key);
        }
    }

    /// A tick before which nothing is filed; `None` when nothing is filed at all.
    ///
    /// It is the earliest tick filed, exactly, when that lies less than a revolution after the
    /// last `expire`. Otherwise it is the end of that revolution, and so it may be early; an
    /// `expire` then reports nothing, and `next` knows more.
    pub fn next(&self) -> Option<Tick> {
        if self.len == 0 {
            return None;
        }
        let mut distance = 0;
        while let Some(ahead) = self.occupied_ahead(self.swept, distance) {
            let head = &self.entries[self.heads[bucket_ahead(self.swept, ahead)]];
            if self.is_near(head.at) {
                debug_assert_eq!(head.at.0 - self.swept.0, ahead, "near, so in its own bucket");
                return Some(head.at);
            }
            distance = ahead + 1;
        }
        Some(Tick(self.swept.0.saturating_add(BUCKETS)))
    }

    /// The number of keys filed.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no key is filed.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Goes through a bucket the clock has left behind, `swept` being where it is now: the due
    /// keys come off, and those that have come within a revolution go to the front.
    fn pass(&mut self, bucket: usize, due: &mut Vec<u32>) {
        let first = self.heads[bucket];
        let last = self.entries[first].prev;
        let mut key = first;
        loop {
            let Entry { next, at, .. } = self.entries[key];
            if at <= self.swept {
                self.unlink(key);
                due.push(key);
            } else if self.is_near(at) {
                self.unlink(key);
                self.link(key, at);
            }
            if key == last {
                return;
            }
            key = next;
        }
    }

    /// Hangs a key that is not filed into the bucket of `at`: in front if near, else at the end.
    fn link(&mut self, key: u32, at: Tick) {
        debug_assert!(self.filed(key).is_none() && at >= self.swept);
        let bucket = bucket_ahead(at, 0);
        let head = self.heads[bucket];
        if head == NIL {
            self.heads[bucket] = key;
            self.occupied[bucket / 64] |= 1 << (bucket % 64);
            self.entries[key] = Entry { prev: key, next: key, at };
        } else {
            // The list is a ring: before its head is both its front and its end.
            let tail = self.entries[head].prev;
            self.entries[key] = Entry { prev: tail, next: head, at };
            self.entries[tail].next = key;
            self.entries[head].prev = key;
            if self.is_near(at) {
                self.heads[bucket] = key;
            }
        }
        self.len += 1;
    }

    /// Takes a filed key out of its bucket.
    fn unlink(&mut self, key: u32) {
        let Entry { prev, next, at } = self.entries[key];
        debug_assert!(next != NIL, "the key is filed");
        let bucket = bucket_ahead(at, 0);
        if next == key {
            self.heads[bucket] = NIL;
            self.occupied[bucket / 64] &= !(1 << (bucket % 64));
        } else {
            self.entries[prev].next = next;
            self.entries[next].prev = prev;
            if self.heads[bucket] == key {
                self.heads[bucket] = next;
            }
        }
        self.entries[key] = Entry::UNFILED;
        self.len -= 1;
    }

    /// Whether `at`, which is not before `swept`, lies less than a revolution after it.
    fn is_near(&self, at: Tick) -> bool {
        at.0 - self.swept.0 < BUCKETS
    }

    /// The distance of the first occupied bucket at `distance` or more after that of `origin`,
    /// going round once.
    fn occupied_ahead(&self, origin: Tick, mut distance: u32) -> Option<u32> {
        while distance < BUCKETS {
            let bucket = bucket_ahead(origin, distance);
            let word = self.occupied[bucket / 64] >> (bucket % 64);
            if word != 0 {
                // In the last word these may be the buckets the round began with.
                return Some(distance + word.trailing_zeros()).filter(|&found| found < BUCKETS);
            }
            distance += u64::BITS - origin.0.wrapping_add(distance) % u64::BITS;
        }
        None
    }
}

/// A key's place in the ring of its bucket.
#[derive(Clone, Copy, Debug)]
struct Entry {
    prev: u32,
    /// [`NIL`] exactly when the key is not filed; then the other two mean nothing.
    next: u32,
    /// Not before `swept`.
    at: Tick,
}

impl Entry {
    const UNFILED: Self = Self { prev: NIL, next: NIL, at: Tick(0) };
}

const _: () = assert!(size_of::<Entry>() == 12, "every connection pays for one");

/// The bucket `distance` ticks after that of `tick`.
fn bucket_ahead(tick: Tick, distance: u32) -> usize {
    (tick.0.wrapping_add(distance) % BUCKETS) as usize
}

/// Whole seconds and the ticks beyond them as one tick, the last one if it does not fit.
fn ticks(seconds: u64, beyond: u32) -> Tick {
    let ticks = seconds.saturating_mul(TICKS_PER_SECOND).saturating_add(u64::from(beyond));
    Tick(u32::try_from(ticks).unwrap_or(u32::MAX))
}

/// Ticks in a revolution. The limits of a connection that come often (first byte, head, keep-alive
/// idle, stalls) are below the 102 s that makes, so that few keys are passed over.
pub const BUCKETS: u32 = 1024;
const _: () = assert!(BUCKETS.is_power_of_two(), "buckets must follow on when ticks wrap");

/// Words of the bitmap.
const WORDS: usize = BUCKETS as usize / 64;
const _: () = assert!(WORDS * 64 == BUCKETS as usize, "the bitmap has a bit for every bucket");

const TICK_NANOS: u32 = TICK.subsec_nanos();
const TICKS_PER_SECOND: u64 = 1_000_000_000 / TICK_NANOS as u64;
const _: () = assert!(
    TICK.as_secs() == 0 && TICKS_PER_SECOND * TICK_NANOS as u64 == 1_000_000_000,
    "ticks of whole seconds are counted without a remainder"
);

/// No key: the head of an empty bucket, the links of a key not filed.
const NIL: u32 = u32::MAX;

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "any instant will do as the origin")]
mod tests {
    use super::*;

    fn expired(wheel: &mut Wheel, now: u32) -> Vec<u32> {
        let mut due = Vec::new();
        wheel.expire(Tick(now), &mut due);
        due.sort_unstable();
        due
    }

    #[test]
    fn a_deadline_is_rounded_up_and_the_clock_down() {
        let epoch = Instant::now();
        let wheel = Wheel::new(epoch);
        let nano = Duration::from_nanos(1);
        let ticks = |since| (wheel.tick_of(epoch + since), wheel.now_tick(epoch + since));
        assert_eq!(wheel.instant_of(Tick(3)), epoch + 3 * TICK);
        assert_eq!(ticks(3 * TICK), (Tick(3), Tick(3)));
        assert_eq!(ticks(3 * TICK + nano), (Tick(4), Tick(3)));
        assert_eq!(ticks(Duration::from_nanos(399_999_999)), (Tick(4), Tick(3)));
        assert_eq!(wheel.tick_of(epoch + Duration::from_secs(1 << 40)), Tick(u32::MAX));
    }

    #[test]
    fn a_key_filed_early_stays_and_one_filed_late_moves() {
        let mut wheel = Wheel::new(Instant::now());
        wheel.file_by(7, Tick(50));
        wheel.file_by(7, Tick(60));
        assert_eq!(wheel.filed(7), Some(Tick(50)));
        wheel.file_by(7, Tick(40));
        assert_eq!(
            (wheel.filed(7), wheel.next(), wheel.len()),
            (Some(Tick(40)), Some(Tick(40)), 1)
        );
        assert!(expired(&mut wheel, 39).is_empty());
        assert_eq!(expired(&mut wheel, 40), [7]);
        assert!(expired(&mut wheel, 60).is_empty());
    }

    #[test]
    fn a_tick_already_past_fires_though_the_clock_stands_still() {
        let mut wheel = Wheel::new(Instant::now());
        assert!(expired(&mut wheel, 100).is_empty());
        wheel.file_by(1, Tick(10));
        wheel.file_by(2, Tick(100));
        assert_eq!((wheel.filed(1), wheel.next()), (Some(Tick(100)), Some(Tick(100))));
        assert_eq!(expired(&mut wheel, 100), [1, 2]);
        assert!(wheel.is_empty());
    }

    #[test]
    fn keys_of_one_bucket_fire_each_in_its_own_revolution() {
        let mut wheel = Wheel::new(Instant::now());
        for revolution in [2, 0, 1] {
            wheel.file_by(revolution, Tick(5 + revolution * BUCKETS));
        }
        wheel.file_by(9, Tick(10));
        assert_eq!(expired(&mut wheel, 5), [0]);
        assert_eq!(wheel.next(), Some(Tick(10)), "the far keys of bucket 5 are not in the way");
        assert_eq!(expired(&mut wheel, 10), [9]);
        assert_eq!(wheel.next(), Some(Tick(5 + BUCKETS)));
        assert_eq!(expired(&mut wheel, 4 + 2 * BUCKETS), [1]);
        assert_eq!(expired(&mut wheel, u32::MAX), [2]);
    }
}
