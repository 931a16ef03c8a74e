//! What a seed says of a world before it begins: how the server is set, and what befalls it.

use std::time::Duration;

use super::kernel::{MILLISECOND, Micros, SECOND};
use super::rng::Rng;
use crate::drain::{AtDeadline, InFlight, Input, Policy, Signal};
use crate::http::Limits;
use crate::http::site::HalfClose;

#[derive(Debug)]
pub struct Settings {
    pub policy: Policy,
    pub limits: Limits,
    pub workers: usize,
    pub clients: usize,
    /// Signals, and what the handle can do, in the order in which they come.
    pub inputs: Vec<(Micros, Input)>,
    pub half_close: HalfClose,
    /// Whether the process may have SYNs dropped.
    pub may_drop: bool,
    /// How long mail between the threads takes at most.
    pub mail_delay: Micros,
    /// How long the clean-up takes.
    pub clean_up: Micros,
}

impl Settings {
    pub fn new(seed: u64) -> Settings {
        let mut rng = Rng::new(seed, 1);
        let timeout = millis(rng.between(800, 6000));
        let delay = if rng.chance(25) { rng.between(50, 2000) } else { 0 };
        let policy = Policy {
            timeout,
            delay: millis(delay).min(timeout / 3),
            first_byte_grace: millis(rng.pick(&[50, 300, 1000])),
            idle_window: millis(rng.pick(&[0, 200, 800, 2000, 5000])),
            in_flight: if rng.chance(10) { InFlight::Cancel } else { InFlight::Wait },
            at_deadline: if rng.chance(15) { AtDeadline::WaitOn } else { AtDeadline::Cut },
        };
        let limits = if rng.chance(30) { short_limits(&mut rng) } else { Limits::default() };
        Settings {
            inputs: inputs(&mut rng, &policy),
            half_close: if rng.chance(50) { HalfClose::Cancel } else { HalfClose::Serve },
            limits,
            workers: rng.size(1, 3),
            // A crowd at times: its idle connections are closed over some time.
            clients: if rng.chance(1) { 90 } else { rng.size(1, 12) },
            may_drop: rng.chance(70),
            mail_delay: rng.pick(&[0, 50, 3 * MILLISECOND]),
            clean_up: rng.pick(&[0, 0, 10, 100, 1000]) * MILLISECOND,
            policy,
        }
    }

    /// When the shutdown begins.
    pub fn begin(&self) -> Micros {
        self.inputs[0].0
    }
}

/// So short that clients and handlers run into them.
fn short_limits(rng: &mut Rng) -> Limits {
    Limits {
        first_byte_timeout: millis(rng.between(300, 2000)),
        head_timeout: millis(rng.between(300, 2000)),
        keep_alive_timeout: millis(rng.between(200, 3000)),
        body_stall_timeout: millis(rng.between(300, 2000)),
        write_stall_timeout: millis(rng.between(500, 3000)),
        request_timeout: millis(rng.between(500, 3000)),
        ..Limits::default()
    }
}

fn inputs(rng: &mut Rng, policy: &Policy) -> Vec<(Micros, Input)> {
    let any = |rng: &mut Rng| match rng.between(0, 39) {
        0..24 => Input::Signal(Signal::Terminate),
        24..32 => Input::Signal(Signal::Interrupt),
        32..38 => Input::Signal(Signal::HangUp),
        38 => Input::Signal(Signal::Quit),
        _ => Input::Force,
    };
    let timeout = u64::try_from(policy.timeout.as_micros()).expect("seconds");
    let mut at = rng.between(0, 3 * SECOND);
    let mut inputs = vec![(at, any(rng))];
    if rng.chance(30) {
        // In the lame duck's time, if there is any, it is taken back; and begun anew.
        at += rng.between(0, timeout / 3);
        inputs.push((at, Input::Undo));
        at += rng.between(0, SECOND);
        inputs.push((at, any(rng)));
    }
    while rng.chance(20) {
        at += rng.between(0, timeout);
        inputs.push((at, any(rng)));
    }
    if inputs.iter().all(|(_, input)| *input == Input::Signal(Signal::HangUp))
        || policy.at_deadline == AtDeadline::WaitOn
    {
        // It waits for what never ends: somebody loses patience.
        at = at.max(inputs[0].0 + timeout) + rng.between(SECOND, 3 * SECOND);
        inputs.push((at, Input::Signal(Signal::Terminate)));
    }
    inputs
}

fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}
