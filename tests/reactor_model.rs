//! The reactor's tables against models that are too simple to be wrong: [`Slots`] against a
//! `HashMap`, [`Wheel`] against ordered sets.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use ebbtide::internal::reactor::slots::{Slots, Token};
use ebbtide::internal::reactor::timer::{BUCKETS, TICK, Tick, Wheel};
use proptest::collection::vec;
use proptest::prelude::*;

proptest! {
    #[test]
    fn slots_answer_as_a_map_does_and_stale_tokens_not_at_all(steps in vec(slot_step(), 1..60)) {
        let mut pair = SlotsPair::new();
        for step in steps {
            pair.take(&step);
            pair.check_counts_and_stale_tokens();
        }
        pair.check_every_value();
    }

    #[test]
    fn a_token_survives_packing_whatever_is_in_the_upper_bits(bits: u64) {
        let token = Token::from_bits(bits);
        prop_assert_eq!(token.to_bits(), bits & !(0xFF << 56));
        prop_assert_eq!(u64::from(token.index()), bits & u64::from(u32::MAX));
        prop_assert_eq!(Token::from_bits(token.to_bits()), token);
    }

    #[test]
    fn wheel_reports_each_key_once_and_at_its_tick(steps in vec(wheel_step(), 1..120)) {
        let mut pair = WheelPair::new();
        for step in steps {
            pair.take(&step);
            pair.check_next_and_len();
        }
        pair.check_every_key();
        pair.expire(u32::MAX);
        prop_assert!(pair.wheel.is_empty());
    }

    #[test]
    fn a_reactor_that_sleeps_until_next_is_late_for_nobody(
        start in clock_jump(),
        filings in vec(distance(), 1..60),
    ) {
        let mut wheel = Wheel::new(Instant::now());
        wheel.expire(Tick(start), &mut Vec::new());
        for (key, &distance) in (0..).zip(&filings) {
            wheel.file_by(key, Tick(start.saturating_add(distance)));
        }
        let mut reported = 0;
        let mut slept_in_vain = 0;
        while let Some(wake) = wheel.next() {
            let filed: Vec<_> = (0..).take(filings.len()).map(|key| wheel.filed(key)).collect();
            let mut due = Vec::new();
            wheel.expire(wake, &mut due);
            slept_in_vain += u32::from(due.is_empty());
            reported += due.len();
            for key in due {
                prop_assert_eq!(filed[key as usize], Some(wake));
            }
        }
        prop_assert_eq!(reported, filings.len());
        let farthest = filings.iter().max().expect("there is at least one");
        prop_assert!(slept_in_vain <= farthest / BUCKETS, "at most one idle wake a revolution");
    }

    #[test]
    fn a_deadline_rounds_up_and_the_clock_down_by_less_than_a_tick(nanos in 0..u64::MAX / 64) {
        let epoch = Instant::now();
        let wheel = Wheel::new(epoch);
        let at = epoch + Duration::from_nanos(nanos);
        let due = wheel.instant_of(wheel.tick_of(at));
        let shown = wheel.instant_of(wheel.now_tick(at));
        prop_assert!(at <= due && due < at + TICK);
        prop_assert!(shown <= at && at < shown + TICK);
    }
}

#[derive(Clone, Debug)]
enum SlotStep {
    Insert(usize),
    /// Of the live tokens the one at this share of the way, and as many after it.
    Remove {
        at: f64,
        count: usize,
    },
    /// As `Remove`, of the stale ones: must change nothing.
    RemoveStale {
        at: f64,
    },
    Change {
        at: f64,
    },
}

fn slot_step() -> impl Strategy<Value = SlotStep> {
    prop_oneof![
        6 => (1..4_usize).prop_map(SlotStep::Insert),
        1 => (1..2_500_usize).prop_map(SlotStep::Insert),
        6 => (0.0..1.0, 1..4_usize).prop_map(|(at, count)| SlotStep::Remove { at, count }),
        1 => (0.0..1.0, 1..2_500_usize).prop_map(|(at, count)| SlotStep::Remove { at, count }),
        2 => (0.0..1.0).prop_map(|at| SlotStep::RemoveStale { at }),
        2 => (0.0..1.0).prop_map(|at| SlotStep::Change { at }),
    ]
}

/// The slots and what they should hold.
struct SlotsPair {
    slots: Slots<u64>,
    model: HashMap<Token, u64>,
    /// The keys of `model`, in order of their insertion.
    live: Vec<Token>,
    stale: Vec<Token>,
    /// Indices freed and not let again, the last freed last.
    free: Vec<u32>,
    next_value: u64,
}

impl SlotsPair {
    fn new() -> Self {
        Self {
            slots: Slots::new(),
            model: HashMap::new(),
            live: Vec::new(),
            stale: Vec::new(),
            free: Vec::new(),
            next_value: 0,
        }
    }

    fn take(&mut self, step: &SlotStep) {
        match *step {
            SlotStep::Insert(count) => (0..count).for_each(|_| self.insert()),
            SlotStep::Remove { at, count } => {
                for _ in 0..count {
                    let Some(which) = pick(at, self.live.len()) else { return };
                    let token = self.live.swap_remove(which);
                    assert_eq!(self.slots.remove(token), self.model.remove(&token));
                    self.free.push(token.index());
                    self.stale.push(token);
                }
            }
            SlotStep::RemoveStale { at } => {
                let Some(which) = pick(at, self.stale.len()) else { return };
                assert_eq!(self.slots.remove(self.stale[which]), None);
            }
            SlotStep::Change { at } => {
                let Some(which) = pick(at, self.live.len()) else { return };
                let token = self.live[which];
                *self.slots.get_mut(token).expect("it is live") = self.next_value;
                self.model.insert(token, self.next_value);
                self.next_value += 1;
            }
        }
    }

    fn insert(&mut self) {
        let high_water = u32::try_from(self.live.len()).expect("the test is small");
        let index = self.free.pop().unwrap_or(high_water);
        let token = self.slots.insert(self.next_value);
        assert_eq!(token.index(), index, "last freed, first let; else a new one");
        assert_eq!(self.model.insert(token, self.next_value), None, "the token is unlike all live");
        self.live.push(token);
        self.next_value += 1;
    }

    fn check_counts_and_stale_tokens(&mut self) {
        assert_eq!(self.slots.len(), self.model.len());
        assert_eq!(self.slots.is_empty(), self.model.is_empty());
        for &token in &self.stale {
            assert_eq!(self.slots.get(token), None);
            assert_eq!(self.slots.get_mut(token), None);
            assert_ne!(self.slots.token_at(token.index()), Some(token));
        }
    }

    fn check_every_value(&mut self) {
        let mut expected: Vec<_> =
            self.model.iter().map(|(&token, &value)| (token, value)).collect();
        expected.sort_unstable_by_key(|(token, _)| token.index());
        let seen: Vec<_> = self.slots.iter().map(|(token, &value)| (token, value)).collect();
        assert_eq!(seen, expected);
        let seen: Vec<_> = self.slots.iter_mut().map(|(token, value)| (token, *value)).collect();
        assert_eq!(seen, expected);
        assert!(self.slots.tokens().eq(expected.iter().map(|&(token, _)| token)));
        for (token, value) in expected {
            assert_eq!(self.slots.get(token), Some(&value));
            assert_eq!(self.slots.token_at(token.index()), Some(token));
        }
    }
}

/// The index at this share of the way through `len` things.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a rough place is good enough, and it lies within the length"
)]
fn pick(at: f64, len: usize) -> Option<usize> {
    len.checked_sub(1).map(|last| last.min((at * len as f64) as usize))
}

#[derive(Clone, Debug)]
enum WheelStep {
    /// At a tick this far after the clock, or before it.
    File {
        key: u32,
        ahead: u32,
    },
    FilePast {
        key: u32,
        behind: u32,
    },
    Cancel {
        key: u32,
    },
    /// The clock goes on by so many ticks.
    Expire {
        jump: u32,
    },
}

fn wheel_step() -> impl Strategy<Value = WheelStep> {
    prop_oneof![
        6 => (key(), distance()).prop_map(|(key, ahead)| WheelStep::File { key, ahead }),
        1 => (key(), 1..3_000_u32).prop_map(|(key, behind)| WheelStep::FilePast { key, behind }),
        1 => key().prop_map(|key| WheelStep::Cancel { key }),
        4 => clock_jump().prop_map(|jump| WheelStep::Expire { jump }),
    ]
}

/// Few keys, so that they meet again, and some on another page.
fn key() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 0..12_u32, 1 => 1_020..1_030_u32]
}

/// How far ahead a deadline lies: soon, at the turn of a revolution, revolutions away.
fn distance() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0..8_u32, 3 => 0..BUCKETS, 3 => around_a_revolution(), 1 => 0..100_000_u32]
}

/// How far the clock goes: not at all, a little, about a revolution or several, a suspended
/// laptop, and the end of time.
fn clock_jump() -> impl Strategy<Value = u32> {
    prop_oneof![
        50 => 0..3_u32,
        25 => 0..200_u32,
        25 => around_a_revolution(),
        5 => 0..1_000_000_u32,
        1 => u32::MAX - 3_000..=u32::MAX,
    ]
}

fn around_a_revolution() -> impl Strategy<Value = u32> {
    (1..4_u32, 0..5_u32).prop_map(|(revolutions, off)| revolutions * BUCKETS + off - 2)
}

/// The wheel and what should be filed on it.
struct WheelPair {
    wheel: Wheel,
    clock: u32,
    by_key: BTreeMap<u32, u32>,
    /// The same as tick and key.
    by_tick: BTreeSet<(u32, u32)>,
}

impl WheelPair {
    fn new() -> Self {
        let wheel = Wheel::new(Instant::now());
        Self { wheel, clock: 0, by_key: BTreeMap::new(), by_tick: BTreeSet::new() }
    }

    fn take(&mut self, step: &WheelStep) {
        match *step {
            WheelStep::File { key, ahead } => self.file(key, self.clock.saturating_add(ahead)),
            WheelStep::FilePast { key, behind } => {
                self.file(key, self.clock.saturating_sub(behind));
            }
            WheelStep::Cancel { key } => {
                self.wheel.cancel(key);
                self.forget(key);
            }
            WheelStep::Expire { jump } => self.expire(self.clock.saturating_add(jump)),
        }
    }

    fn file(&mut self, key: u32, at: u32) {
        self.wheel.file_by(key, Tick(at));
        let at = at.max(self.clock);
        if self.by_key.get(&key).is_none_or(|&filed| filed > at) {
            self.forget(key);
            self.by_key.insert(key, at);
            self.by_tick.insert((at, key));
        }
        assert_eq!(self.wheel.filed(key), self.by_key.get(&key).copied().map(Tick));
    }

    fn forget(&mut self, key: u32) {
        if let Some(at) = self.by_key.remove(&key) {
            self.by_tick.remove(&(at, key));
        }
    }

    fn expire(&mut self, now: u32) {
        let mut due = vec![u32::MAX];
        self.wheel.expire(Tick(now), &mut due);
        assert_eq!(due.remove(0), u32::MAX, "what was in the list stays there");
        due.sort_unstable();
        let mut expected: Vec<u32> =
            self.by_tick.range(..=(now, u32::MAX)).map(|&(_, key)| key).collect();
        expected.sort_unstable();
        assert_eq!(due, expected, "at {now}, from {}", self.clock);
        for key in due {
            self.forget(key);
        }
        self.clock = now;
    }

    fn check_next_and_len(&self) {
        assert_eq!(self.wheel.len(), self.by_key.len());
        let earliest = self.by_tick.first().map(|&(at, _)| at);
        let exact_before = u64::from(self.clock) + u64::from(BUCKETS);
        match (self.wheel.next(), earliest) {
            (Some(Tick(next)), Some(earliest)) if u64::from(earliest) < exact_before => {
                assert_eq!(next, earliest, "within a revolution it is exact");
            }
            (Some(Tick(next)), Some(earliest)) => {
                assert!(self.clock < next && next <= earliest, "{next} for {earliest}");
            }
            (next, earliest) => assert_eq!((next, earliest), (None, None)),
        }
    }

    fn check_every_key(&self) {
        for key in 0..2_000 {
            assert_eq!(self.wheel.filed(key), self.by_key.get(&key).copied().map(Tick));
        }
    }
}
