//! The application: answers each request as planned for it, and notes that it was asked.

use std::rc::Rc;
use std::time::Duration;

use super::kernel::{Kernel, MILLISECOND, Micros, Moment};
use super::rng::Rng;
use crate::http::service::{Answer, App};
use crate::http::{Body, Request, Response};
use crate::reactor::sleep::sleep;

/// A request: what its client sends, what its handler does, and what became of it.
#[derive(Debug)]
pub struct Plan {
    pub id: usize,
    pub handler: Handler,
    pub upload: Upload,
    /// `Connection: close` in the request.
    pub is_last: bool,
    /// When its head, and all of it, was in the server's kernel.
    pub head_arrived: Option<Moment>,
    pub whole_arrived: Option<Moment>,
    /// Where in its client's stream it ends.
    pub end: u64,
    /// How often the application was called.
    pub calls: usize,
    pub called: Micros,
    /// The serial at which the turn began in which the handler had its answer.
    pub decided: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handler {
    Now,
    Later(Micros),
    Never,
    /// Answers when the shutdown asks it to come to its end, or also when its client is gone.
    UntilShutdown,
    UntilCancelled,
    Sized(usize),
    Stream {
        chunks: usize,
        gap: Micros,
        size: usize,
    },
    Endless {
        gap: Micros,
    },
    /// A stream that breaks off.
    Failing {
        chunks: usize,
        gap: Micros,
    },
    Panics,
    /// Reads the body, waits, and sends it back.
    Echo(Micros),
    /// Answers without the body, or with its first bytes only.
    Ignores,
    ReadsSome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upload {
    None,
    Sized(usize),
    /// `Expect: 100-continue`, of this size.
    Expecting(usize),
    Chunked(usize),
}

impl Upload {
    pub fn size(self) -> usize {
        match self {
            Upload::None => 0,
            Upload::Sized(size) | Upload::Expecting(size) | Upload::Chunked(size) => size,
        }
    }
}

impl Plan {
    pub fn new(id: usize, handler: Handler, upload: Upload, is_last: bool) -> Plan {
        Plan {
            id,
            handler,
            upload,
            is_last,
            head_arrived: None,
            whole_arrived: None,
            end: 0,
            calls: 0,
            called: 0,
            decided: None,
        }
    }

    /// Whether its connection has to close after it, shutdown or not.
    pub fn closes(&self) -> bool {
        let leaves_body = matches!(self.handler, Handler::Ignores | Handler::ReadsSome);
        self.is_last || leaves_body
    }

    /// When its handler has its answer, if it can be told.
    pub fn ready(&self) -> Option<Micros> {
        match self.handler {
            Handler::Now | Handler::Sized(_) => Some(self.called),
            Handler::Later(time) => Some(self.called + time),
            Handler::Echo(time) => Some(self.whole_arrived?.at.max(self.called) + time),
            _ => None,
        }
    }

    /// The status and the body of its answer; `None` when it has none that is complete.
    pub fn answer(&self) -> Option<(u16, Vec<u8>)> {
        let size = match self.handler {
            Handler::Now
            | Handler::Later(_)
            | Handler::Ignores
            | Handler::ReadsSome
            | Handler::UntilShutdown
            | Handler::UntilCancelled => 0,
            Handler::Sized(size) => size,
            Handler::Stream { chunks, size, .. } => chunks * size,
            Handler::Echo(_) => self.upload.size(),
            Handler::Panics => return Some((500, b"Internal Server Error".to_vec())),
            Handler::Never | Handler::Endless { .. } | Handler::Failing { .. } => return None,
        };
        Some((200, [named(self.id), pattern(self.id, 0, size)].concat()))
    }
}

/// Begins each answer.
fn named(id: usize) -> Vec<u8> {
    format!("{id};").into_bytes()
}

/// `count` bytes of the text of a request or its answer, from byte `from` on.
pub fn pattern(id: usize, from: usize, count: usize) -> Vec<u8> {
    let byte = |at: usize| b'a' + u8::try_from((id * 7 + at * 3 + at / 97) % 26).expect("below 26");
    (from..from + count).map(byte).collect()
}

/// See the module's essay.
pub struct Lab {
    pub kernel: Rc<Kernel>,
}

impl App for Lab {
    fn call(&self, request: Request) -> Answer {
        let id: usize = request.path()[1..].parse().expect("paths are numbers");
        let handler = {
            let mut plans = self.kernel.plans.borrow_mut();
            plans[id].calls += 1;
            plans[id].called = self.kernel.now.get();
            plans[id].handler
        };
        self.kernel.tell(|| format!("request {id} is called: {handler:?}"));
        let kernel = Rc::clone(&self.kernel);
        match handler {
            Handler::Now | Handler::Sized(_) | Handler::Ignores => {
                decided(&kernel, id);
                let plans = kernel.plans.borrow();
                let (_, body) = plans[id].answer().expect("these have one");
                Answer::Ready(Response::text(body))
            }
            // Without the hook, which would print each of them.
            Handler::Panics => {
                decided(&kernel, id);
                std::panic::resume_unwind(Box::new("planned"))
            }
            handler => Answer::Later(Box::pin(later(kernel, id, handler, request))),
        }
    }
}

async fn later(kernel: Rc<Kernel>, id: usize, handler: Handler, mut request: Request) -> Response {
    let response = match handler {
        Handler::Later(time) => {
            pause(time).await;
            Response::text(named(id))
        }
        Handler::Echo(time) => match request.bytes().await {
            Ok(bytes) => {
                pause(time).await;
                Response::text([&named(id), &bytes[..]].concat())
            }
            Err(error) => crate::http::IntoResponse::into_response(error),
        },
        Handler::ReadsSome => {
            drop(request.body_mut().chunk().await);
            Response::text(named(id))
        }
        Handler::Stream { chunks, gap, size } => {
            Response::from(http(stream(id, chunks, gap, size)))
        }
        Handler::Endless { gap } => Response::from(http(stream(id, usize::MAX, gap, 50))),
        Handler::Failing { chunks, gap } => Response::from(http(failing(id, chunks, gap))),
        Handler::UntilShutdown => {
            request.shutdown().cancelled().await;
            Response::text(named(id))
        }
        Handler::UntilCancelled => {
            request.cancelled().cancelled().await;
            Response::text(named(id))
        }
        Handler::Never => std::future::pending().await,
        Handler::Now | Handler::Sized(_) | Handler::Ignores | Handler::Panics => {
            unreachable!("answered at once")
        }
    };
    decided(&kernel, id);
    response
}

fn decided(kernel: &Kernel, id: usize) {
    kernel.plans.borrow_mut()[id].decided = Some(kernel.fetched.get());
}

async fn pause(time: Micros) {
    if time > 0 {
        sleep(Duration::from_micros(time)).await;
    }
}

fn http(body: Body) -> http::Response<Body> {
    http::Response::new(body)
}

/// The name, then `chunks` chunks of `size` bytes.
fn stream(id: usize, chunks: usize, gap: Micros, size: usize) -> Body {
    Body::unfold(0, move |at| async move {
        if at == 0 {
            return Some((named(id).into(), 1));
        }
        pause(gap).await;
        (at <= chunks).then(|| (pattern(id, (at - 1) * size, size).into(), at + 1))
    })
}

fn failing(id: usize, chunks: usize, gap: Micros) -> Body {
    Body::try_unfold(0, move |at| async move {
        pause(gap).await;
        if at == chunks {
            return Err("planned");
        }
        Ok(Some((pattern(id, at * 10, 10).into(), at + 1)))
    })
}

/// What a request does, of all there is.
pub fn any_handler(rng: &mut Rng) -> (Handler, Upload) {
    let most = if rng.chance(5) { 900_000 } else { 40_000 };
    let size = rng.skewed(most);
    let time = rng.pick(&[0, 1, 20, 200, 900, 3000]) * MILLISECOND;
    let gap = rng.pick(&[0, 1, 30, 300]) * MILLISECOND;
    let upload = match rng.between(0, 3) {
        0 => Upload::Chunked(size),
        1 => Upload::Expecting(size.max(1)),
        _ => Upload::Sized(size),
    };
    match rng.between(0, 99) {
        0..30 => (Handler::Now, Upload::None),
        30..46 => (Handler::Later(time), Upload::None),
        46..48 => (Handler::UntilShutdown, Upload::None),
        48..50 => (Handler::UntilCancelled, Upload::None),
        50..58 => (Handler::Sized(rng.skewed(1_000_000)), Upload::None),
        58..68 => {
            let chunks = rng.size(0, 12);
            (Handler::Stream { chunks, gap, size: 1 + rng.skewed(5000) }, Upload::None)
        }
        68..87 => (Handler::Echo(time.min(200 * MILLISECOND)), upload),
        87..89 => (Handler::Ignores, upload),
        89..91 => (Handler::ReadsSome, upload),
        91..93 => (Handler::Panics, Upload::None),
        93..95 => (Handler::Failing { chunks: rng.size(0, 3), gap }, Upload::None),
        95..97 => (Handler::Endless { gap: gap.max(30 * MILLISECOND) }, Upload::None),
        _ => (Handler::Never, Upload::None),
    }
}
