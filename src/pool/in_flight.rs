//! The statements that a connection has in flight.
//!
//! Each is a future of one and a half kilobytes, most of it the client library's. They live in
//! boxes that later ones take over: malloc has no list at hand for blocks of that size, and tidies
//! all of its heap when one is asked for.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio_util::sync::ReusableBoxFuture;

/// See the module's essay.
#[derive(Default)]
pub struct InFlight {
    statements: FuturesUnordered<Boxed>,
    /// Boxes of statements that are done: no more than were ever in flight at once.
    spare: Vec<ReusableBoxFuture<'static, ()>>,
}

impl InFlight {
    pub fn is_empty(&self) -> bool {
        self.statements.is_empty()
    }

    /// Adds one; it is begun by the next [`poll_next`](InFlight::poll_next).
    pub fn push(&mut self, statement: impl Future<Output = ()> + Send + 'static) {
        let boxed = match self.spare.pop() {
            Some(mut boxed) => {
                boxed.set(statement);
                boxed
            }
            None => ReusableBoxFuture::new(statement),
        };
        self.statements.push(Boxed(Some(boxed)));
    }

    /// Moves those that can be moved, until one is done: whether one is.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> bool {
        let Poll::Ready(Some(boxed)) = self.statements.poll_next_unpin(cx) else { return false };
        self.spare.push(boxed);
        true
    }
}

/// A statement, which leaves its box when it is done.
struct Boxed(Option<ReusableBoxFuture<'static, ()>>);

impl Future for Boxed {
    type Output = ReusableBoxFuture<'static, ()>;

    /// # Panics
    /// When it is polled after it was ready.
    fn poll(mut self: Pin<&mut Boxed>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let boxed = self.0.as_mut().expect("a statement is done once");
        ready!(boxed.poll(cx));
        Poll::Ready(self.0.take().expect("it was there"))
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Waker;

    use super::*;

    #[test]
    fn each_statement_is_done_once_and_the_boxes_stay() {
        let done = Arc::new(AtomicUsize::new(0));
        let mut cx = Context::from_waker(Waker::noop());
        let mut in_flight = InFlight::default();
        for round in 1..=3 {
            for _ in 0..4 {
                let done = Arc::clone(&done);
                in_flight.push(async move {
                    let mut is_second = false;
                    poll_fn(move |cx| {
                        cx.waker().wake_by_ref();
                        let was_second = std::mem::replace(&mut is_second, true);
                        if was_second { Poll::Ready(()) } else { Poll::Pending }
                    })
                    .await;
                    done.fetch_add(1, Ordering::Relaxed);
                });
            }
            let mut polls = 0;
            while !in_flight.is_empty() {
                in_flight.poll_next(&mut cx);
                polls += 1;
                assert!(polls < 100, "it ends");
            }
            assert_eq!((done.load(Ordering::Relaxed), in_flight.spare.len()), (4 * round, 4));
        }
        in_flight.push(pending());
        assert!(!in_flight.poll_next(&mut cx));
        assert!(!in_flight.is_empty());
    }
}
