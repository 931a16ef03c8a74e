//! The reactor: one epoll, one thread, one turn at a time. It knows mio and time, and nothing of
//! HTTP.
//!
//! Reading order: [`turn`] (the loop and its numbered steps), [`socket`] (a stream with readiness
//! bits), [`listener`] and [`origin`], [`mailbox`] and [`doorbell`] (the only way in from another
//! thread), [`task`] (what the reactor's own thread can reach: wakers, sleeping, the clock),
//! [`slots`] and [`timer`] (pure).
//!
//! What one may rely on:
//! * The clock is read once a turn; everything in the turn sees the same `now`.
//! * A token that outlived its slot finds nothing. Readiness for it is dropped.
//! * Every wake of a sleeping reactor costs one `write(2)` on its eventfd, however many wakes come.

pub mod blocking;
pub mod cancel;
pub mod doorbell;
pub mod listener;
pub mod mailbox;
pub mod origin;
pub mod pages;
pub mod sleep;
pub mod slots;
pub mod socket;
pub mod task;
pub mod timer;
pub mod turn;

mod sync {
    //! The atomics of [`doorbell`](super::doorbell), under a name that a model checker can supply.
    pub(super) use std::sync::atomic::{AtomicU32, Ordering, fence};
}
