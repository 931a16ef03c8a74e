//! A token that tells work that nobody waits for it any longer.
//!
//! Made on one thread, asked and awaited on any: handlers await it, jobs on other threads look at
//! it between two steps. It fires once and stays fired.

use std::fmt;
use std::future::{Future, IntoFuture, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Tells that work should end. Clones are the same token. Await it, or ask
/// [`is_cancelled`](CancellationToken::is_cancelled) from any thread.
#[derive(Clone, Default)]
pub struct CancellationToken {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    is_cancelled: AtomicBool,
    /// What this fires with, until it is detached.
    parent: Option<CancellationToken>,
    is_detached: AtomicBool,
    waiting: Mutex<Waiting>,
}

/// Who waits, each at a place of its own: nearly always one, which needs no memory.
#[derive(Default)]
struct Waiting {
    first: Option<Waker>,
    /// Places 1, 2, ..
    others: Vec<Option<Waker>>,
    /// Places among the others that are free.
    free: Vec<usize>,
}

impl Waiting {
    fn add(&mut self, waker: Waker) -> usize {
        if self.first.is_none() {
            self.first = Some(waker);
            return 0;
        }
        if let Some(place) = self.free.pop() {
            self.others[place - 1] = Some(waker);
            return place;
        }
        self.others.push(Some(waker));
        self.others.len()
    }

    fn at(&mut self, place: usize) -> Option<&mut Option<Waker>> {
        if place == 0 { Some(&mut self.first) } else { self.others.get_mut(place - 1) }
    }

    /// The waker that was there, unless all were taken.
    fn remove(&mut self, place: usize) -> Option<Waker> {
        let removed = self.at(place)?.take()?;
        if place > 0 {
            self.free.push(place);
        }
        if self.free.len() == self.others.len() && self.others.len() > PLACES_KEPT_MAX {
            // What a crowd took is given back.
            (self.others, self.free) = (Vec::new(), Vec::new());
        }
        Some(removed)
    }
}

impl CancellationToken {
    /// A token that has not fired.
    pub fn new() -> CancellationToken {
        CancellationToken::default()
    }

    /// A token that fires when this one does, or by itself.
    #[must_use]
    pub fn child(&self) -> CancellationToken {
        let inner = Inner { parent: Some(self.clone()), ..Inner::default() };
        CancellationToken { inner: Arc::new(inner) }
    }

    /// Whether it has fired.
    pub fn is_cancelled(&self) -> bool {
        self.inner.is_cancelled.load(Ordering::Acquire)
            || self.parent().is_some_and(CancellationToken::is_cancelled)
    }

    fn parent(&self) -> Option<&CancellationToken> {
        let is_detached = self.inner.is_detached.load(Ordering::Acquire);
        self.inner.parent.as_ref().filter(|_| !is_detached)
    }

    /// From now on it does not fire with its parent; what has fired stays fired.
    pub(crate) fn detach(&self) {
        if self.is_cancelled() {
            self.cancel();
        }
        self.inner.is_detached.store(true, Ordering::Release);
    }

    /// Waits until it fires; ready at once when it has.
    pub fn cancelled(&self) -> Cancelled {
        let parent = self.parent().map(|parent| Box::new(parent.cancelled()));
        Cancelled { token: self.clone(), place: None, parent }
    }

    /// Does `work` until it is done or the token fires: `None` when that comes first.
    pub async fn run_until_cancelled<F: Future>(&self, work: F) -> Option<F::Output> {
        let mut work = pin!(work);
        let mut cancelled = self.cancelled();
        poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => Pin::new(&mut cancelled).poll(cx).map(|()| None),
        })
        .await
    }

    /// Fires it.
    pub fn cancel(&self) {
        // Set first: who registers after the wakers are taken sees it.
        self.inner.is_cancelled.store(true, Ordering::Release);
        let Waiting { first, others, .. } = std::mem::take(&mut *self.waiting());
        for waker in first.into_iter().chain(others.into_iter().flatten()) {
            waker.wake();
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.inner.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for CancellationToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancellationToken").field("is_cancelled", &self.is_cancelled()).finish()
    }
}

impl IntoFuture for CancellationToken {
    type Output = ();
    type IntoFuture = Cancelled;

    fn into_future(self) -> Cancelled {
        self.cancelled()
    }
}

/// The future of a [`CancellationToken`].
#[must_use = "a future does nothing unless awaited"]
pub struct Cancelled {
    token: CancellationToken,
    /// `Some` while its waker is registered.
    place: Option<usize>,
    /// Waits for the token's parent.
    parent: Option<Box<Cancelled>>,
}

impl Future for Cancelled {
    type Output = ();

    fn poll(mut self: Pin<&mut Cancelled>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(parent) = &mut self.parent
            && Pin::new(&mut **parent).poll(cx).is_ready()
            && self.token.is_cancelled()
        {
            return Poll::Ready(());
        }
        let place = self.place;
        let (place, before) = {
            let mut waiting = self.token.waiting();
            // Asked under the lock: `cancel` sets it before it takes the wakers.
            if self.token.is_cancelled() {
                return Poll::Ready(());
            }
            match place.and_then(|place| Some((place, waiting.at(place)?))) {
                None => (waiting.add(cx.waker().clone()), None),
                Some((_, Some(waker))) if waker.will_wake(cx.waker()) => return Poll::Pending,
                Some((place, waker)) => (place, waker.replace(cx.waker().clone())),
            }
        };
        // Dropped with nothing locked: it may run foreign code.
        drop(before);
        self.place = Some(place);
        Poll::Pending
    }
}

impl Drop for Cancelled {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            let waker = self.token.waiting().remove(place);
            drop(waker);
        }
    }
}

impl fmt::Debug for Cancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.token.fmt(f)
    }
}

/// Places that are kept though nobody has them: as many as mostly wait at once.
const PLACES_KEPT_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Count>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn everyone_who_waits_is_woken_once_and_who_left_is_not() {
        let token = CancellationToken::new();
        let (stays, leaves) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let (one, two) = (Waker::from(Arc::clone(&stays)), Waker::from(Arc::clone(&leaves)));
        let mut waits = Box::pin(token.clone().into_future());
        let mut gone = Box::pin(token.cancelled());
        for _ in 0..2 {
            assert!(waits.as_mut().poll(&mut Context::from_waker(&one)).is_pending());
            assert!(gone.as_mut().poll(&mut Context::from_waker(&two)).is_pending());
        }
        drop(gone);
        assert!(!token.is_cancelled());
        token.cancel();
        token.cancel();
        assert!(token.is_cancelled());
        assert_eq!((stays.0.load(Ordering::Relaxed), leaves.0.load(Ordering::Relaxed)), (1, 0));
        assert!(waits.as_mut().poll(&mut Context::from_waker(&one)).is_ready());
        let child = CancellationToken::new().child();
        assert!(!child.is_cancelled());
        let mut waits = Box::pin(child.cancelled());
        assert!(waits.as_mut().poll(&mut Context::from_waker(&one)).is_pending());
        child.inner.parent.as_ref().expect("a child").cancel();
        assert_eq!((child.is_cancelled(), stays.0.load(Ordering::Relaxed)), (true, 2));
        assert!(waits.as_mut().poll(&mut Context::from_waker(&one)).is_ready());
        let parent = CancellationToken::new();
        let child = parent.child();
        let mut waits = Box::pin(child.cancelled());
        assert!(waits.as_mut().poll(&mut Context::from_waker(&one)).is_pending());
        child.detach();
        parent.cancel();
        assert!(!child.is_cancelled());
        assert!(waits.as_mut().poll(&mut Context::from_waker(&one)).is_pending());
        child.cancel();
        assert!(waits.as_mut().poll(&mut Context::from_waker(&one)).is_ready());
        let mut late = Box::pin(token.cancelled());
        assert!(late.as_mut().poll(&mut Context::from_waker(&one)).is_ready());
    }
}
