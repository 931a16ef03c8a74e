//! Threads for clean-up hooks.

use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::Builder;
use std::time::Duration;

use crate::cleanup::{Cleanup, Hook, HookId, HookOutcome, HookReport, Start};
use crate::reactor::turn::clock;

/// Runs `hooks` and waits for them, for `limit` at most.
pub fn run_all(hooks: Vec<Hook>, limit: Duration) -> Vec<HookReport> {
    let (sender, ended) = mpsc::channel();
    let mut cleanup = Cleanup::default();
    let begun = clock();
    let mut starts = cleanup.begin(begun, begun + limit, hooks);
    loop {
        for start in starts.drain(..) {
            let sender = sender.clone();
            spawn(start, move |id, outcome| {
                // Nobody listens any more for a hook that has overrun.
                let _given_up = sender.send((id, outcome));
            });
        }
        let Some(deadline) = cleanup.deadline() else { return cleanup.reports().to_vec() };
        let patience = deadline.saturating_duration_since(clock());
        starts = match ended.recv_timeout(patience) {
            Ok((id, outcome)) => cleanup.ended(clock(), id, outcome),
            Err(_) => cleanup.expire(clock()),
        };
    }
}

/// Runs a hook on a thread of its own, which tells `ended` of its outcome. The thread is never
/// waited for.
pub fn spawn(start: Start, ended: impl FnOnce(HookId, HookOutcome) + Send + 'static) {
    let id = start.id;
    let name = format!("ebbtide-hook-{id}");
    // Given to the thread, or back when there is none.
    let parcel = Arc::new(Mutex::new(Some((start, ended))));
    let take = |parcel: &Mutex<Option<(Start, _)>>| {
        parcel.lock().unwrap_or_else(PoisonError::into_inner).take()
    };
    let theirs = Arc::clone(&parcel);
    let spawned = Builder::new().name(name).spawn(move || {
        if let Some((start, ended)) = take(&theirs) {
            ended(id, start.run());
        }
    });
    if let Err(error) = spawned
        && let Some((_, ended)) = take(&parcel)
    {
        ended(id, HookOutcome::Failed(format!("no thread could be started for it: {error}")));
    }
}
