//! When each request is due: planned ahead from rates and a seed, whatever the server does.
//!
//! An open loop: a slow server gets no fewer requests, and a request that has to wait for its turn
//! at the client has waited all the same. A closed loop, in which each client sends its next
//! request when the last one is answered, leaves out just the requests that would have met the
//! worst moments ("coordinated omission").
//!
//! Each kind's requests come by themselves, with exponentially distributed gaps (a Poisson process,
//! as of many clients that know nothing of each other); a paused user has uniform ones. All threads
//! of a run make the same plan and each takes its share, so that the plan does not depend on how
//! many there are.

use std::time::Duration;

use crate::kind::{Kind, PIPELINED};

/// How much of what comes.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Arrivals per second, by kind; of pipelined ones, batches.
    pub rates: Vec<(Kind, f64)>,
    /// Paused users.
    pub users: u32,
    /// What the gaps are drawn from.
    pub seed: u64,
}

impl Plan {
    /// All kinds side by side: quick requests come `rate` times a second together, one in a
    /// hundred as many of each slow kind, and there is a paused user for every twenty.
    pub fn mixed(rate: u32, seed: u64) -> Plan {
        let rate = f64::from(rate);
        let rates = vec![
            (Kind::Get, rate * 0.35),
            (Kind::Post, rate * 0.25),
            (Kind::Fresh, rate * 0.2),
            (Kind::Pipelined, rate * 0.2 / f64::from(PIPELINED)),
            (Kind::SlowReader, rate * 0.01),
            (Kind::SlowUploader, rate * 0.01),
            (Kind::Streaming, rate * 0.01),
        ];
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small count")]
        let users = (rate / 20.0).ceil() as u32;
        Plan { rates, users, seed }
    }

    /// One kind alone, at about this rate.
    pub fn only(kind: Kind, rate: f64, seed: u64) -> Plan {
        if kind == Kind::Paused {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small")]
            let users = (rate * f64::midpoint(PAUSE_MIN, PAUSE_MAX)).ceil() as u32;
            return Plan { rates: Vec::new(), users, seed };
        }
        Plan { rates: vec![(kind, rate)], users: 0, seed }
    }

    /// The arrivals, without end.
    pub fn arrivals(&self) -> Arrivals {
        let mut streams: Vec<Stream> = self
            .rates
            .iter()
            .filter(|(_, rate)| *rate > 0.0)
            .map(|(kind, rate)| Stream {
                kind: *kind,
                user: 0,
                gaps: Gaps::Exponential { mean: 1.0 / rate },
                random: Random::new(self.seed, *kind as u64),
                next: Duration::ZERO,
            })
            .collect();
        streams.extend((0..self.users).map(|user| Stream {
            kind: Kind::Paused,
            user,
            gaps: Gaps::Uniform { min: PAUSE_MIN, max: PAUSE_MAX },
            random: Random::new(self.seed, 1_000 + u64::from(user)),
            next: Duration::ZERO,
        }));
        for stream in &mut streams {
            stream.advance();
        }
        Arrivals { streams, number: 0 }
    }
}

/// Something to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Since the load began.
    pub at: Duration,
    /// Who sends it.
    pub kind: Kind,
    /// Which of the paused users; 0 for the other kinds.
    pub user: u32,
    /// Which arrival this is, over all kinds. Requests are numbered from four times this.
    pub number: u64,
}

impl Arrival {
    /// Which of so many threads sends it: a user stays on one.
    pub fn shard(&self, shards: u32) -> u32 {
        let number = if self.kind == Kind::Paused { u64::from(self.user) } else { self.number };
        u32::try_from(number % u64::from(shards)).unwrap_or(0)
    }

    /// The number of its first request.
    pub fn id(&self) -> u64 {
        self.number * u64::from(PIPELINED)
    }
}

/// See [`Plan::arrivals`].
#[derive(Debug)]
pub struct Arrivals {
    streams: Vec<Stream>,
    number: u64,
}

impl Iterator for Arrivals {
    type Item = Arrival;

    fn next(&mut self) -> Option<Arrival> {
        let stream = self.streams.iter_mut().min_by_key(|stream| stream.next)?;
        let (at, kind, user, number) = (stream.next, stream.kind, stream.user, self.number);
        self.number += 1;
        stream.advance();
        Some(Arrival { at, kind, user, number })
    }
}

#[derive(Debug)]
struct Stream {
    kind: Kind,
    user: u32,
    gaps: Gaps,
    random: Random,
    next: Duration,
}

#[derive(Clone, Copy, Debug)]
enum Gaps {
    /// Mean in seconds.
    Exponential {
        mean: f64,
    },
    Uniform {
        min: f64,
        max: f64,
    },
}

impl Stream {
    fn advance(&mut self) {
        let unit = self.random.unit();
        let gap = match self.gaps {
            Gaps::Exponential { mean } => -mean * (1.0 - unit).ln(),
            Gaps::Uniform { min, max } => min + (max - min) * unit,
        };
        self.next += Duration::from_secs_f64(gap);
    }
}

/// Numbers from a seed: `SplitMix64`, whose every seed is a good one.
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn new(seed: u64, stream: u64) -> Random {
        let mut random = Random(seed ^ stream.wrapping_mul(0xd1b5_4a32_d192_ed03));
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 up to, not including, 1.
    fn unit(&mut self) -> f64 {
        #[allow(clippy::cast_precision_loss, reason = "53 bits fit")]
        let bits = (self.next() >> 11) as f64;
        bits / 9_007_199_254_740_992.0
    }
}

/// Seconds between two requests of a paused user.
const PAUSE_MIN: f64 = 0.1;
const PAUSE_MAX: f64 = 1.5;

#[cfg(test)]
mod tests {
    use super::*;

    fn first(plan: &Plan, count: usize) -> Vec<Arrival> {
        plan.arrivals().take(count).collect()
    }

    #[test]
    fn the_same_seed_makes_the_same_plan_and_another_another() {
        let plan = Plan::mixed(400, 7);
        assert_eq!(first(&plan, 2_000), first(&plan, 2_000));
        assert_ne!(first(&plan, 20), first(&Plan::mixed(400, 8), 20));
    }

    #[test]
    fn arrivals_come_in_order_and_at_their_rates() {
        let plan = Plan::mixed(400, 1);
        let arrivals: Vec<_> =
            plan.arrivals().take_while(|arrival| arrival.at < Duration::from_secs(100)).collect();
        assert!(arrivals.windows(2).all(|two| two[0].at <= two[1].at));
        let count = |kind| arrivals.iter().filter(|arrival| arrival.kind == kind).count();
        let is_near = |count: usize, expected: usize| count.abs_diff(expected) < expected / 8;
        assert!(is_near(count(Kind::Get), 14_000), "{}", count(Kind::Get));
        assert!(is_near(count(Kind::Pipelined), 2_000), "{}", count(Kind::Pipelined));
        assert!(is_near(count(Kind::SlowReader), 400), "{}", count(Kind::SlowReader));
        // Twenty users, 0.8 s between two of their requests.
        assert!(is_near(count(Kind::Paused), 2_500), "{}", count(Kind::Paused));
    }

    #[test]
    fn users_pause_for_a_tenth_to_one_and_a_half_seconds_and_stay_on_one_thread() {
        let plan = Plan::only(Kind::Paused, 5.0, 3);
        for user in 0..4 {
            let of_user: Vec<_> =
                plan.arrivals().filter(|arrival| arrival.user == user).take(500).collect();
            for two in of_user.windows(2) {
                let pause = two[1].at.saturating_sub(two[0].at).as_secs_f64();
                assert!((0.099..1.501).contains(&pause), "{pause}");
                assert_eq!(two[0].shard(3), two[1].shard(3));
            }
        }
    }
}
