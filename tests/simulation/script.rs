//! What clients do: a script for each of their connections, written before the world begins.

use std::collections::VecDeque;

use super::app::{Handler, Plan, Upload, any_handler, pattern};
use super::kernel::{Kernel, Link, MILLISECOND, Mark, Micros, SECOND};
use super::rng::Rng;

/// A step of a client.
#[derive(Clone, Debug)]
pub enum Action {
    Wait(Micros),
    WaitUntil(Micros),
    Send(Vec<u8>),
    /// Until so many responses are there.
    Await(usize),
    /// Until an interim response is there, with so many final ones before it.
    AwaitContinue(usize),
    Finish,
    Close,
    Reset,
    /// Until the server closes.
    StayOpen,
}

/// How a client reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    Fast,
    Slow {
        bytes: usize,
        every: Micros,
    },
    /// Never again after so many bytes.
    Stops(usize),
}

/// One connection's script.
pub struct Script {
    pub actions: VecDeque<Action>,
    pub pace: Pace,
    /// From the server's end of stream to the client's close; `None`: never.
    pub tardiness: Option<Micros>,
}

/// Writes the script of one connection and enters its requests into the books.
pub struct Writer<'a> {
    kernel: &'a Kernel,
    link: &'a mut Link,
    rng: &'a mut Rng,
    /// When the first signal comes.
    signal: Micros,
    actions: VecDeque<Action>,
    /// Bytes written so far.
    position: u64,
    requests: usize,
}

impl<'a> Writer<'a> {
    pub fn new(
        kernel: &'a Kernel,
        link: &'a mut Link,
        rng: &'a mut Rng,
        signal: Micros,
    ) -> Writer<'a> {
        Writer { kernel, link, rng, signal, actions: VecDeque::new(), position: 0, requests: 0 }
    }

    pub fn write(mut self) -> Script {
        match self.rng.between(0, 99) {
            0..6 => {}
            6..12 => {
                self.pause();
                self.half_head();
            }
            _ => self.exchanges(),
        }
        self.actions.push_back(Action::StayOpen);
        let every = self.rng.between(1, 200) * MILLISECOND;
        let pace = match self.rng.between(0, 99) {
            0..80 => Pace::Fast,
            80..95 => Pace::Slow { bytes: 500 + self.rng.skewed(60_000), every },
            _ => Pace::Stops(self.rng.skewed(20_000)),
        };
        let tardiness = match self.rng.between(0, 9) {
            0 => None,
            1 | 2 => Some(self.rng.between(0, 4 * SECOND)),
            _ => Some(self.rng.between(0, 2 * MILLISECOND)),
        };
        Script { actions: self.actions, pace, tardiness }
    }

    fn exchanges(&mut self) {
        for _ in 0..self.rng.size(1, 5) {
            self.pause();
            let batch = match self.rng.between(0, 99) {
                0..70 => 1,
                70..95 => self.rng.size(2, 5),
                // More than hyper serves in one poll.
                _ => self.rng.size(6, 50),
            };
            let mut bytes = Vec::new();
            for index in 0..batch {
                let (handler, upload) = match index {
                    // Many at once are served at once.
                    1.. if batch > 5 => (Handler::Sized(self.rng.skewed(100)), Upload::None),
                    _ => any_handler(self.rng),
                };
                let is_over = self.request(&mut bytes, handler, upload);
                if is_over {
                    self.send(bytes);
                    self.actions.push_back(Action::Await(self.requests));
                    return;
                }
            }
            self.send(bytes);
            if self.rng.chance(75) {
                self.actions.push_back(Action::Await(self.requests));
            }
            if self.rng.chance(15) {
                self.leave();
                return;
            }
        }
        match self.rng.between(0, 9) {
            0..3 => {
                self.actions.push_back(Action::Await(self.requests));
                self.actions.push_back(Action::Close);
            }
            3 => self.half_head(),
            4 => self.actions.push_back(Action::Finish),
            _ => {}
        }
    }

    /// Goes away, whatever is outstanding.
    fn leave(&mut self) {
        let wait = self.rng.skewed(300_000) as u64;
        self.actions.push_back(Action::Wait(wait));
        let action = match self.rng.between(0, 2) {
            0 => Action::Finish,
            1 => Action::Close,
            _ => Action::Reset,
        };
        self.actions.push_back(action);
    }

    fn pause(&mut self) {
        let action = match self.rng.between(0, 9) {
            0..4 => return,
            4..7 => Action::Wait(self.rng.skewed(2_500_000) as u64),
            7 => Action::WaitUntil(self.signal + self.rng.between(0, 7) * SECOND / 2),
            _ => {
                let around = self.rng.between(0, 12 * MILLISECOND);
                Action::WaitUntil((self.signal + around).saturating_sub(5 * MILLISECOND))
            }
        };
        self.actions.push_back(action);
    }

    fn half_head(&mut self) {
        let head = format!("GET /none HTTP/1.1\r\nHost: x\r\nX: {}\r\n", "h".repeat(60));
        let length = self.rng.size(1, head.len());
        self.send(head.as_bytes()[..length].to_vec());
    }

    /// Adds a request. Whether it is the connection's last.
    fn request(&mut self, bytes: &mut Vec<u8>, handler: Handler, upload: Upload) -> bool {
        let is_last = self.rng.chance(2);
        let id = {
            let mut plans = self.kernel.plans.borrow_mut();
            let id = plans.len();
            plans.push(Plan::new(id, handler, upload, is_last));
            id
        };
        self.link.plans.push(id);
        self.requests += 1;
        bytes.extend(self.head(id, upload, is_last));
        self.mark(bytes.len(), id, Mark::Head);
        match upload {
            Upload::None => {}
            Upload::Sized(size) => bytes.extend(pattern(id, 0, size)),
            Upload::Chunked(size) => bytes.extend(self.chunked(id, size)),
            Upload::Expecting(size) => {
                self.send(std::mem::take(bytes));
                self.actions.push_back(Action::AwaitContinue(self.requests - 1));
                bytes.extend(pattern(id, 0, size));
            }
        }
        self.mark(bytes.len(), id, Mark::Request);
        let leaves_body = matches!(handler, Handler::Ignores | Handler::ReadsSome);
        // Nobody sends more behind a body that the server may not want.
        is_last || leaves_body || matches!(upload, Upload::Expecting(_))
    }

    fn head(&mut self, id: usize, upload: Upload, is_last: bool) -> Vec<u8> {
        let method = if upload == Upload::None { "GET" } else { "POST" };
        let mut head = format!("{method} /{id} HTTP/1.1\r\nHost: x\r\n");
        if self.rng.chance(20) {
            head.extend(["X-Padding: ", &"p".repeat(self.rng.skewed(2000)), "\r\n"]);
        }
        if is_last {
            head += "Connection: close\r\n";
        }
        match upload {
            Upload::None => {}
            Upload::Sized(size) | Upload::Expecting(size) => {
                head.extend(["Content-Length: ", &size.to_string(), "\r\n"]);
            }
            Upload::Chunked(_) => head += "Transfer-Encoding: chunked\r\n",
        }
        if matches!(upload, Upload::Expecting(_)) {
            head += "Expect: 100-continue\r\n";
        }
        (head + "\r\n").into_bytes()
    }

    fn chunked(&mut self, id: usize, size: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut at = 0;
        while at < size {
            let count = self.rng.size(1, size - at);
            bytes.extend(format!("{count:x}\r\n").into_bytes());
            bytes.extend(pattern(id, at, count));
            bytes.extend(b"\r\n");
            at += count;
        }
        bytes.extend(b"0\r\n\r\n");
        bytes
    }

    /// Notes what ends `ahead` bytes behind what has been written.
    fn mark(&mut self, ahead: usize, id: usize, mark: Mark) {
        let end = self.position + ahead as u64;
        self.kernel.plans.borrow_mut()[id].end = end;
        self.link.marks.push_back((end, id, mark));
    }

    /// In one piece or in several, with pauses between them.
    fn send(&mut self, bytes: Vec<u8>) {
        self.position += bytes.len() as u64;
        if self.rng.chance(60) {
            self.actions.push_back(Action::Send(bytes));
            return;
        }
        let mut rest = bytes.as_slice();
        for _ in 0..self.rng.size(1, 6) {
            let (now, later) = rest.split_at(self.rng.size(0, rest.len()));
            rest = later;
            self.actions.push_back(Action::Send(now.to_vec()));
            self.actions.push_back(Action::Wait(self.rng.skewed(800_000) as u64));
        }
        self.actions.push_back(Action::Send(rest.to_vec()));
    }
}
