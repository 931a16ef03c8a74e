//! Latency at a rate that does not depend on the server: the open loop.
//!
//! Requests are due at the times of a [`Plan`], whatever became of those before, and their latency
//! counts from then. The thread has a core of its own and never sleeps: an epoll that waits for a
//! time wakes up to a millisecond late, ten times what a server takes. How late it was all the same
//! is a result of its own; where that is not far below the latencies, they are the load's.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::compare::answer::{self, Answer, Asks};
use crate::compare::statistics::quantile;
use crate::kind::Kind;
use crate::schedule::Plan;

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct OpenLoop {
    /// Requests a second.
    pub rate: f64,
    /// For so long.
    pub lasts: Duration,
    /// What the times are drawn from.
    pub seed: u64,
}

/// Latencies in µs, from when a request was due.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latencies {
    /// Half took at most this.
    pub median: f64,
    /// 99 of 100.
    pub p99: f64,
    /// 999 of 1000.
    pub p999: f64,
    /// 99 of 100 of those that found a connection free were sent at most so late.
    pub late: f64,
}

impl OpenLoop {
    /// Sends them all and waits for the answers, which are as long as this one; `None` when the
    /// server cannot keep this rate.
    ///
    /// # Errors
    /// When a connection is closed, or a response is another.
    pub fn run(&self, to: SocketAddr, answer: Answer) -> io::Result<Option<Latencies>> {
        let mut generator = Generator::new(to, answer)?;
        generator.warm_up()?;
        if generator.run(self)? == Pace::Behind {
            return Ok(None);
        }
        let in_order = |micros: &mut Vec<f64>| micros.sort_by(f64::total_cmp);
        in_order(&mut generator.latencies);
        in_order(&mut generator.late);
        let of = |part| quantile(&generator.latencies, part).unwrap_or(0.0);
        let late = quantile(&generator.late, 0.99).unwrap_or(0.0);
        Ok(Some(Latencies { median: of(0.5), p99: of(0.99), p999: of(0.999), late }))
    }
}

/// Whether a server kept the rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    Kept,
    Behind,
}

/// A connection with one request on its way at most.
struct Client {
    stream: TcpStream,
    /// When its request was due.
    due: Duration,
    /// Bytes of the answer that came; `None` when there is no request.
    came: Option<usize>,
}

struct Generator {
    poll: Poll,
    events: Events,
    clients: Vec<Client>,
    idle: VecDeque<usize>,
    request: Vec<u8>,
    answer: Answer,
    epoch: Instant,
    latencies: Vec<f64>,
    late: Vec<f64>,
}

impl Generator {
    fn new(to: SocketAddr, answer: Answer) -> io::Result<Generator> {
        let mut generator = Generator {
            poll: Poll::new()?,
            events: Events::with_capacity(CONNECTIONS),
            clients: Vec::new(),
            idle: (0..CONNECTIONS).collect(),
            request: answer::request(to, Asks::Keep),
            answer,
            epoch: Instant::now(),
            latencies: Vec::new(),
            late: Vec::new(),
        };
        for at in 0..CONNECTIONS {
            let stream = std::net::TcpStream::connect(to)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            generator.poll.registry().register(&mut stream, Token(at), Interest::READABLE)?;
            generator.clients.push(Client { stream, due: Duration::ZERO, came: None });
        }
        Ok(generator)
    }

    /// One request on each connection: the server has accepted it then.
    fn warm_up(&mut self) -> io::Result<()> {
        while let Some(at) = self.idle.pop_front() {
            self.send(at, self.epoch.elapsed())?;
        }
        while self.idle.len() < CONNECTIONS {
            self.receive()?;
            if self.epoch.elapsed() > answer::PATIENCE {
                return Err(io::Error::other("it does not answer all connections"));
            }
        }
        self.latencies.clear();
        Ok(())
    }

    fn run(&mut self, order: &OpenLoop) -> io::Result<Pace> {
        self.epoch = Instant::now();
        let plan = Plan::only(Kind::Get, order.rate, order.seed);
        let mut arrivals = plan.arrivals().take_while(|next| next.at < order.lasts).peekable();
        let mut waiting: VecDeque<Duration> = VecDeque::new();
        loop {
            let now = self.epoch.elapsed();
            while let Some(next) = arrivals.next_if(|next| next.at <= now) {
                match self.idle.pop_front() {
                    Some(at) => {
                        self.late.push(micros(now.saturating_sub(next.at)));
                        self.send(at, next.at)?;
                    }
                    None => waiting.push_back(next.at),
                }
            }
            self.receive()?;
            while let (Some(due), Some(at)) = (waiting.front(), self.idle.front()) {
                let (due, at) = (*due, *at);
                waiting.pop_front();
                self.idle.pop_front();
                self.send(at, due)?;
            }
            if arrivals.peek().is_none() && self.idle.len() == CONNECTIONS {
                return Ok(Pace::Kept);
            }
            if waiting.front().is_some_and(|due| now.saturating_sub(*due) > BEHIND_MAX)
                || now > order.lasts + answer::PATIENCE
            {
                return Ok(Pace::Behind);
            }
        }
    }

    fn send(&mut self, at: usize, due: Duration) -> io::Result<()> {
        let client = &mut self.clients[at];
        (client.due, client.came) = (due, Some(0));
        // A socket whose last request was answered has room.
        let count = client.stream.write(&self.request)?;
        if count == self.request.len() {
            return Ok(());
        }
        Err(io::Error::other("a request went in two pieces"))
    }

    /// Takes what has come.
    fn receive(&mut self) -> io::Result<()> {
        match self.poll.poll(&mut self.events, Some(Duration::ZERO)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => result?,
        }
        let now = self.epoch.elapsed();
        for event in &self.events {
            let at = event.token().0;
            let client = &mut self.clients[at];
            if client.take(self.answer)? {
                self.latencies.push(micros(now.saturating_sub(client.due)));
                self.idle.push_back(at);
            }
        }
        Ok(())
    }
}

impl Client {
    /// Reads; whether the answer is whole now.
    fn take(&mut self, answer: Answer) -> io::Result<bool> {
        let mut buffer = [0; 2048];
        let count = match self.stream.read(&mut buffer) {
            Ok(0) => return Err(io::Error::other("it closes a kept connection")),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        let Some(came) = &mut self.came else {
            return Err(io::Error::other("it answers what nobody asked"));
        };
        let is_begin = *came > 0 || buffer[..count].starts_with(b"HTTP/1.1 200");
        *came += count;
        if !is_begin || *came > answer.bytes {
            return Err(io::Error::other("its answers are not all the same"));
        }
        let is_whole = *came == answer.bytes;
        if is_whole {
            self.came = None;
        }
        Ok(is_whole)
    }
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// As many as wrk has.
const CONNECTIONS: usize = 64;

/// A server that is so far behind will not catch up.
const BEHIND_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

    /// Answers what comes on each connection in this way, which says whether to go on.
    fn serve(
        way: impl Fn(&mut std::net::TcpStream) -> bool + Clone + Send + 'static,
    ) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, way) = (stream.unwrap(), way.clone());
                thread::spawn(move || {
                    while stream.read(&mut [0; 1024]).is_ok_and(|count| count > 0)
                        && way(&mut stream)
                    {}
                });
            }
        });
        to
    }

    fn run(to: SocketAddr) -> io::Result<Option<Latencies>> {
        let order = OpenLoop { rate: 500.0, lasts: Duration::from_millis(300), seed: 1 };
        order.run(to, Answer { fields: 1, bytes: ANSWER.len() })
    }

    #[test]
    fn every_request_of_the_plan_is_answered_and_timed() {
        let latencies = run(serve(|stream| stream.write_all(ANSWER).is_ok())).unwrap().unwrap();
        assert!(latencies.median > 0.0 && latencies.median <= latencies.p99);
        assert!(latencies.p99 <= latencies.p999);
    }

    #[test]
    fn the_time_that_a_stalled_server_lets_requests_wait_counts() {
        let stall = Duration::from_millis(20);
        let to = serve(move |stream| {
            thread::park_timeout(stall);
            stream.write_all(ANSWER).is_ok()
        });
        let latencies = run(to).unwrap().unwrap();
        assert!(latencies.median >= 20_000.0, "{latencies:?}");
    }

    #[test]
    fn a_server_that_cannot_keep_the_rate_is_no_fault() {
        let once = std::sync::atomic::AtomicU32::new(0);
        let once = std::sync::Arc::new(once);
        let to = serve(move |stream| {
            // The first request on each connection, and no other.
            let before = once.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            before >= 64 || stream.write_all(ANSWER).is_ok()
        });
        assert_eq!(run(to).unwrap(), None);
    }

    #[test]
    fn answers_that_differ_or_end_are_faults() {
        let of = |to| run(to).unwrap_err().to_string();
        let other = |stream: &mut std::net::TcpStream| stream.write_all(&[b'x'; 38]).is_ok();
        assert_eq!(of(serve(other)), "its answers are not all the same");
        assert_eq!(of(serve(|_| false)), "it closes a kept connection");
    }
}
