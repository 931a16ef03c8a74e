//! Wakes a sleeping reactor from another thread: never too late, and once.
//!
//! A producer pushes mail into a queue and must wake the reactor if, and only if, it sleeps: a
//! write to the eventfd is a system call, and a reactor under load is never asleep. So the
//! reactor says when it is about to sleep, and producers look.
//!
//! ```text
//! reactor                            producer
//!   doze:   state = SLEEPING           push the mail
//!           fence(SeqCst)              ring:  fence(SeqCst)
//!   look into the queue;                      state == SLEEPING, and it is I who makes it
//!   wait only if it is empty                  AWAKE?  then write the eventfd
//!   awake:  state = AWAKE
//!   take all the mail
//! ```
//!
//! This is Dekker's pattern: each side writes its own word, then reads the other's. What must not
//! happen is that both read the old value, the reactor an empty queue and the producer `AWAKE`,
//! for then mail lies in the box of a sleeper. Neither release and acquire nor the queue's own
//! ordering forbids it: they order what is *seen* after a write is seen, and here each write may
//! still be in its core's store buffer while the core goes on to read. x86 does just that.
//!
//! The two fences forbid it. All `SeqCst` fences of a program stand in one order.
//! - If the producer's stands first, what it did before it is visible after the reactor's: the
//!   reactor finds the mail and does not wait.
//! - If the reactor's stands first, the producer sees `SLEEPING`, or a later value of `state`.
//!
//! One alone does nothing: a fence orders its thread's accesses against those before or after
//! another thread's fence. The loom tests (`tests/loom`) take each out in turn and see mail lost.
//!
//! A later value than `SLEEPING` is as good. If another producer made it `AWAKE`, that one writes
//! the eventfd; if the reactor did, it is up. Either way the reactor dozes again before its next
//! wait, and for a producer that read what stood before *that* `SLEEPING`, the first case holds:
//! the mail is found. At worst it waits for this next look.
//!
//! `swap` lets one producer win, so there is at most one write for each `doze`, however many ring.
//! It may come late: the reactor, finding mail, does not wait, and the write ends a later wait for
//! nothing. That costs a turn and is right.
//!
//! Nothing else needs an order, and all the accesses are relaxed: `state` carries no data. The mail
//! is handed over by the queue, which must release on push and acquire on pop and on the look. The
//! fences are `fence(SeqCst)` and not `SeqCst` accesses because the accesses to the queue are not
//! ours to strengthen, and because loom models the one and not the other.

use super::sync::{AtomicU32, Ordering, fence};

/// Between one reactor, which calls [`doze`](Self::doze) and [`awake`](Self::awake), and any
/// number of producers, who call [`ring`](Self::ring).
#[derive(Debug)]
pub struct Doorbell {
    /// [`SLEEPING`] from `doze` until the first of `awake` and a `ring`, else [`AWAKE`].
    state: AtomicU32,
}

impl Doorbell {
    /// A doorbell whose reactor is awake.
    pub fn new() -> Self {
        Self { state: AtomicU32::new(AWAKE) }
    }

    /// To be called by a producer *after* it pushed. Whether it must now write the eventfd: the
    /// reactor was asleep or about to be, and this caller is the one that wakes it.
    #[must_use = "the reactor sleeps on unless the eventfd is written"]
    pub fn ring(&self) -> bool {
        fence(Ordering::SeqCst);
        // Looking before swapping keeps the line shared while the reactor is busy.
        self.state.load(Ordering::Relaxed) == SLEEPING
            && self.state.swap(AWAKE, Ordering::Relaxed) == SLEEPING
    }

    /// To be called by the reactor when it is about to wait. It *must* look into the queue after
    /// this, and may wait only if it finds it empty. In either case it calls
    /// [`awake`](Self::awake) next, and then takes the mail.
    pub fn doze(&self) {
        self.state.store(SLEEPING, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// To be called by the reactor when it is back from the wait, for whatever reason, or did not
    /// wait after all. Spares producers the eventfd until the next [`doze`](Self::doze).
    pub fn awake(&self) {
        self.state.store(AWAKE, Ordering::Relaxed);
    }
}

impl Default for Doorbell {
    fn default() -> Self {
        Self::new()
    }
}

/// The reactor will see mail without being told.
const AWAKE: u32 = 0;
/// The reactor waits, or will unless it finds mail, and nobody has rung since it said so.
const SLEEPING: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_ring_of_a_sleep_asks_for_a_wake() {
        let bell = Doorbell::new();
        assert!(!bell.ring(), "a new reactor is awake");
        for _ in 0..3 {
            bell.doze();
            assert!(bell.ring());
            assert!(!bell.ring());
            bell.awake();
            assert!(!bell.ring());
        }
    }

    #[test]
    fn a_reactor_that_gets_up_by_itself_is_not_woken() {
        let bell = Doorbell::default();
        bell.doze();
        bell.awake();
        assert!(!bell.ring());
    }
}
