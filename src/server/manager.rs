//! The service manager (systemd): what it is told of the server's life (`sd_notify(3)`).
//!
//! A thread of its own tells it: a manager that does not take its mail holds nobody up.

use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use super::narrate::Progress;

/// A service manager that wants to know how the server is.
///
/// Told are `READY=1` once the server listens, `STOPPING=1` when its shutdown begins, then each
/// second `STATUS=` and, as long as the budget lasts, `EXTEND_TIMEOUT_USEC=`. Where a watchdog is
/// wanted `WATCHDOG=1` is sent twice in its time, but only while every worker answers.
#[derive(Debug)]
pub struct ServiceManager {
    sender: SyncSender<Vec<State>>,
    /// How often it wants to hear of the workers.
    watchdog: Option<Duration>,
    /// When the workers are asked again; `None` without a watchdog, and until the server is ready.
    next_ping: Option<Instant>,
    /// The number of the last question to the workers.
    ping: u64,
}

/// [`NotifyState`] without a lifetime.
#[derive(Clone, Debug)]
enum State {
    Ready,
    Stopping,
    Status(String),
    ExtendTimeout(Duration),
    Watchdog,
}

/// The service manager that started this process and wants to be told (`NOTIFY_SOCKET`,
/// `WATCHDOG_USEC`). Without one the words go nowhere.
///
/// # Errors
/// When no thread can be started to tell it.
pub fn service_manager() -> io::Result<ServiceManager> {
    let (sender, receiver) = sync_channel::<Vec<State>>(QUEUE);
    std::thread::Builder::new().name("ebbtide-notify".to_owned()).spawn(move || {
        while let Ok(states) = receiver.recv() {
            tell(&states);
        }
    })?;
    Ok(ServiceManager { sender, watchdog: sd_notify::watchdog_enabled(), next_ping: None, ping: 0 })
}

fn tell(states: &[State]) {
    let words: Vec<NotifyState<'_>> = states
        .iter()
        .map(|state| match state {
            State::Ready => NotifyState::Ready,
            State::Stopping => NotifyState::Stopping,
            State::Status(text) => NotifyState::Status(text),
            State::ExtendTimeout(time) => {
                NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX))
            }
            State::Watchdog => NotifyState::Watchdog,
        })
        .collect();
    if let Err(error) = sd_notify::notify(&words) {
        log::warn!(event_type = "notify_failed"; "cannot tell the service manager: {error}");
    }
}

impl ServiceManager {
    /// The server listens.
    pub(super) fn ready(&mut self, now: Instant) {
        self.say(vec![State::Ready, State::Status("serving".to_owned())]);
        self.next_ping = self.watchdog.map(|within| now + within / 2);
    }

    /// The shutdown was taken back.
    pub(super) fn serving(&self) {
        self.say(vec![State::Status("serving".to_owned())]);
    }

    /// The shutdown has begun.
    pub(super) fn stopping(&self, progress: &Progress<'_>) {
        let mut states = vec![State::Stopping];
        states.extend(told(progress));
        self.say(states);
    }

    /// The shutdown goes on.
    pub(super) fn progress(&self, progress: &Progress<'_>) {
        self.say(told(progress));
    }

    /// When [`watch`](ServiceManager::watch) has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.next_ping
    }

    /// Says that the workers live, if they have answered the last question. Returns the next one.
    pub(super) fn watch(&mut self, now: Instant, answered: impl Fn(u64) -> bool) -> Option<u64> {
        let within = self.watchdog.filter(|_| self.next_ping.is_some_and(|at| now >= at))?;
        self.next_ping = Some(now + within / 2);
        if !answered(self.ping) {
            return None;
        }
        self.say(vec![State::Watchdog]);
        self.ping += 1;
        Some(self.ping)
    }

    fn say(&self, states: Vec<State>) {
        // A manager that takes nothing misses it; the next words say more.
        let _missed = self.sender.try_send(states);
    }
}

fn told(progress: &Progress<'_>) -> Vec<State> {
    let (open, in_flight) = (progress.counts.open(), progress.counts.in_flight);
    let phase = progress.phase.name();
    let left = progress.left.unwrap_or_default();
    let mut states = vec![State::Status(format!(
        "{phase}: {in_flight} requests in flight, {open} connections, {} s left",
        left.as_secs()
    ))];
    if !left.is_zero() {
        // Until the next words, but not beyond the budget and the moment that the exit takes.
        states.push(State::ExtendTimeout((left + EXIT).min(EXTENSION)));
    }
    states
}

/// Words that wait for the manager to take them.
const QUEUE: usize = 16;

/// By how much each word of a shutdown extends the time: some of the words that come each second
/// may be missed.
const EXTENSION: Duration = Duration::from_secs(5);

/// From the end of the budget to that of the process.
const EXIT: Duration = Duration::from_secs(1);
