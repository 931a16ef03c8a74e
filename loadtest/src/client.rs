//! One connection of a correct client, and the requests on it.
//!
//! What a correct client does, and what this one holds itself to:
//!
//! * It sends nothing on a connection whose response announced the close.
//! * Before it sends on a kept connection it looks whether that was closed meanwhile, and connects
//!   again if so: nothing was sent, so nothing is lost ([`Fate::Retry`]).
//! * What it has begun to send it never sends again: the server may have acted upon it. If no
//!   answer comes, the request is lost, whoever is to blame.
//! * A 408 that announces the close, and comes before the next request was sent, is such a close
//!   with its reason (RFC 9110 15.5.9). Any other answer that nobody asked for is garbage.
//! * It reads every response to its last byte and believes none whose framing or content is wrong.
//!
//! No clock is read here: `now` is the loop's, since the run began.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use mio::net::TcpStream;
use socket2::{Domain, Socket, Type};

use crate::kind::{Body, Kind, READ_PAUSE, READ_PIECE, Routes, WRITE_PAUSE, WRITE_PIECE};
use crate::outcome::{End, Outcome};
use crate::response::{Closes, Reader, Response};
use crate::schedule::Arrival;

/// A request on its way.
#[derive(Debug)]
pub struct Exchange {
    id: u64,
    planned: Duration,
    /// When its first byte was given to the kernel.
    sent: Option<Duration>,
    expected: Body,
    /// How many requests were sent on the connection before it.
    nth: u32,
}

/// What the loop has to do with a connection after it was driven.
#[derive(Debug)]
pub enum Fate {
    /// Requests are on their way; `Some` when it wants to be driven again at that time.
    Busy(Option<Duration>),
    /// It can take the next request.
    Idle,
    /// It is gone, and every request on it has its end.
    Gone,
    /// It is gone, and of this arrival nothing had been sent: another connection may take it.
    Retry(Arrival),
}

/// What clients tell of, in the order in which it happens.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A connection was established.
    Connected {
        /// When.
        at: Duration,
        /// The client's port.
        port: u16,
    },
    /// A request has ended.
    Ended(End),
    /// What came was no HTTP, or nothing that anybody asked for: such a server cannot be judged.
    Garbage(String),
    /// The load generator itself lacks something.
    Failed(String),
}

/// See the module's essay.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    kind: Kind,
    port: u16,
    connected: Option<Duration>,
    /// A refusal, or the error of a write that the next read is to explain.
    failure: Option<io::Error>,
    /// What it was last asked to send, for another try.
    arrival: Arrival,
    /// In the order in which they were sent.
    waiting: VecDeque<Exchange>,
    output: Vec<u8>,
    written: usize,
    /// Slow kinds neither read nor write before.
    pause: Option<Duration>,
    reader: Reader,
    /// Requests that were put on it.
    asked: u32,
    /// Requests that were answered on it.
    answered: u32,
    /// Whether a byte has come on it.
    is_heard: bool,
    /// See [`End::reset_unheard`].
    reset_unheard: bool,
}

/// How a read or a write went.
enum Flow {
    /// As far as it goes for now.
    On,
    /// Every request has its end, and the connection is at its own.
    Over,
    /// The arrival may go elsewhere.
    Elsewhere,
}

impl Client {
    /// Begins to connect.
    ///
    /// # Errors
    /// When there is no socket to be had, which is the machine's fault and not the server's.
    pub fn connect(to: SocketAddr, arrival: Arrival) -> io::Result<Client> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if arrival.kind == Kind::SlowReader {
            // So that the server feels the slowness: with the usual one the kernel takes it all.
            socket.set_recv_buffer_size(SLOW_BUFFER)?;
        }
        let failure = match socket.connect(&to.into()) {
            Ok(()) => None,
            Err(error) if is_pending(&error) => None,
            // On loopback the refusal is there at once; it is told of when driven.
            Err(error) if is_refusal(&error) => Some(error),
            Err(error) => return Err(error),
        };
        let stream = TcpStream::from_std(socket.into());
        let port = stream.local_addr().map_or(0, |address| address.port());
        Ok(Client {
            stream,
            kind: arrival.kind,
            port,
            connected: None,
            failure,
            arrival,
            waiting: VecDeque::new(),
            output: Vec::new(),
            written: 0,
            pause: None,
            reader: Reader::default(),
            asked: 0,
            answered: 0,
            is_heard: false,
            reset_unheard: false,
        })
    }

    /// For its registration.
    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Which arrivals it serves: those of its kind, and of its user.
    pub fn arrival(&self) -> Arrival {
        self.arrival
    }

    /// When the oldest request on it was due.
    pub fn oldest(&self) -> Option<Duration> {
        self.waiting.front().map(|exchange| exchange.planned)
    }

    /// Puts a request on it, or several at once.
    pub fn ask(&mut self, arrival: Arrival, routes: &Routes) {
        self.arrival = arrival;
        self.output.clear();
        self.written = 0;
        for index in 0..u64::from(self.kind.batch()) {
            let id = arrival.id() + index;
            let ask = self.kind.ask(routes, id);
            self.output.extend_from_slice(&ask.bytes);
            self.waiting.push_back(Exchange {
                id,
                planned: arrival.at,
                sent: None,
                expected: ask.body,
                nth: self.asked,
            });
            self.asked += 1;
        }
    }

    /// Whether it was closed while nobody used it.
    pub fn is_stale(&mut self) -> bool {
        let mut byte = [0];
        // A byte that nobody asked for (a 408, say) makes it as useless as an end does.
        self.reader.has_begun()
            || !matches!(self.stream.read(&mut byte), Err(error) if is_pending(&error))
    }

    /// Reads and writes as far as it goes.
    pub fn drive(&mut self, now: Duration, events: &mut Vec<Event>) -> Fate {
        if self.connected.is_none() {
            match self.establish(now, events) {
                Flow::On if self.connected.is_none() => return Fate::Busy(None),
                Flow::On => {}
                Flow::Over | Flow::Elsewhere => return Fate::Gone,
            }
        }
        if self.pause.is_some_and(|until| now < until) {
            return Fate::Busy(self.pause);
        }
        self.pause = None;
        for step in [Client::write, Client::read] {
            match step(self, now, events) {
                Flow::On => {}
                Flow::Over => return Fate::Gone,
                Flow::Elsewhere => return Fate::Retry(self.arrival),
            }
        }
        if !self.waiting.is_empty() {
            Fate::Busy(self.pause)
        } else if self.kind == Kind::Fresh {
            Fate::Gone
        } else {
            Fate::Idle
        }
    }

    /// Gives up what is on it: the time is over.
    pub fn give_up(&mut self, now: Duration, events: &mut Vec<Event>) {
        if self.connected.is_none() {
            // A connect that timed out, with not a byte sent.
            self.end_all(Outcome::Refused, "no answer to the connect", now, events);
            return;
        }
        let detail = if self.reader.has_begun() {
            format!("with {}", self.reader.progress())
        } else {
            "without a byte of the response".to_owned()
        };
        self.end_all(Outcome::Timeout, detail, now, events);
    }

    fn establish(&mut self, now: Duration, events: &mut Vec<Event>) -> Flow {
        let told = self.failure.take().map_or_else(|| self.stream.take_error(), |e| Ok(Some(e)));
        let error = match (told, self.stream.peer_addr()) {
            (Ok(None), Ok(_)) => {
                self.connected = Some(now);
                self.port = self.stream.local_addr().map_or(self.port, |address| address.port());
                events.push(Event::Connected { at: now, port: self.port });
                return Flow::On;
            }
            (Ok(None), Err(error)) if error.kind() == ErrorKind::NotConnected => return Flow::On,
            (Ok(Some(error)) | Err(error), _) | (Ok(None), Err(error)) => error,
        };
        if is_refusal(&error) {
            self.end_all(Outcome::Refused, "", now, events);
        } else {
            // It was established in the listener's queue, and reset there.
            self.connected = Some(now);
            events.push(Event::Connected { at: now, port: self.port });
            self.broken(&error, now, events);
        }
        Flow::Over
    }

    fn write(&mut self, now: Duration, events: &mut Vec<Event>) -> Flow {
        while self.written < self.output.len() {
            let mut rest = &self.output[self.written..];
            if self.kind == Kind::SlowUploader {
                rest = &rest[..rest.len().min(WRITE_PIECE)];
            }
            match self.stream.write(rest) {
                Ok(count) => {
                    self.written += count;
                    for exchange in self.waiting.iter_mut().filter(|one| one.sent.is_none()) {
                        exchange.sent = Some(now);
                    }
                    if self.kind == Kind::SlowUploader && self.written < self.output.len() {
                        self.pause = Some(now + WRITE_PAUSE);
                        return Flow::On;
                    }
                }
                Err(error) if is_pending(&error) => return Flow::On,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // What the server said before it went may still be read.
                Err(error) if self.written > 0 => {
                    self.failure = Some(error);
                    return Flow::On;
                }
                Err(error) => return self.broken(&error, now, events),
            }
        }
        Flow::On
    }

    fn read(&mut self, now: Duration, events: &mut Vec<Event>) -> Flow {
        let mut buffer = [0; READ_PIECE];
        for _ in 0..READS_AT_ONCE {
            match self.stream.read(&mut buffer) {
                Ok(0) => return self.ended(now, events),
                Ok(count) => {
                    self.is_heard = true;
                    self.reader.push(&buffer[..count]);
                    match self.take_responses(now, events) {
                        Flow::On => {}
                        over => return over,
                    }
                    if self.kind == Kind::SlowReader && !self.waiting.is_empty() {
                        self.pause = Some(now + READ_PAUSE);
                        return Flow::On;
                    }
                }
                Err(error) if is_pending(&error) => return Flow::On,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return self.broken(&error, now, events),
            }
        }
        // A server that sends without end has the others' turn, and runs into the patience.
        self.pause = Some(now);
        Flow::On
    }

    fn take_responses(&mut self, now: Duration, events: &mut Vec<Event>) -> Flow {
        loop {
            let is_unasked = self.waiting.is_empty() || self.may_go_elsewhere();
            if is_unasked && self.reader.has_begun() {
                return self.take_unasked(now, events);
            }
            match self.reader.take() {
                Ok(None) => return Flow::On,
                Ok(Some(response)) => {
                    if let Flow::Over = self.answer(&response, now, events) {
                        return Flow::Over;
                    }
                }
                Err(garbage) => {
                    events.push(Event::Garbage(format!("no HTTP: {garbage}")));
                    let detail = format!("no HTTP: {garbage}");
                    self.end_all(Outcome::Status, detail, now, events);
                    return Flow::Over;
                }
            }
        }
    }

    /// Bytes are here before anything was sent that they could answer.
    fn take_unasked(&mut self, now: Duration, events: &mut Vec<Event>) -> Flow {
        let progress = self.reader.progress();
        match self.reader.begin() {
            Ok(None) => return Flow::On,
            Ok(Some((408, Closes::Yes))) if self.waiting.is_empty() => return Flow::Over,
            Ok(Some((408, Closes::Yes))) => return Flow::Elsewhere,
            Ok(Some(_)) | Err(_) => {}
        }
        let what = format!("an answer that nobody asked for: {progress}");
        events.push(Event::Garbage(what.clone()));
        self.end_all(Outcome::Status, what, now, events);
        Flow::Over
    }

    /// A whole response is here.
    fn answer(&mut self, response: &Response, now: Duration, events: &mut Vec<Event>) -> Flow {
        let Some(exchange) = self.waiting.pop_front() else { return Flow::Over };
        self.answered += 1;
        let is_early = self.written < self.output.len();
        let closes = response.closes == Closes::Yes;
        let (outcome, detail) = match response.fault(&exchange.expected, exchange.id) {
            Some(fault) => (Outcome::Status, fault),
            None if is_early => (Outcome::Status, "answered before all of it was sent".to_owned()),
            None if closes => (Outcome::OkClose, String::new()),
            None => (Outcome::Ok, String::new()),
        };
        events.push(Event::Ended(self.end(&exchange, outcome, detail.into(), now)));
        if closes || is_early {
            let behind = "behind an answer that announced the close";
            self.end_all(Outcome::StaleEof, behind, now, events);
            return Flow::Over;
        }
        Flow::On
    }

    /// The server has sent its FIN.
    fn ended(&mut self, now: Duration, events: &mut Vec<Event>) -> Flow {
        if let Some(response) = self.reader.end()
            && let Flow::Over = self.answer(&response, now, events)
        {
            return Flow::Over;
        }
        if let Some(error) = self.failure.take() {
            return self.broken(&error, now, events);
        }
        if self.waiting.is_empty() && self.reader.has_begun() {
            let what =
                format!("part of an answer that nobody asked for: {}", self.reader.progress());
            events.push(Event::Garbage(what));
            return Flow::Over;
        }
        if self.reader.has_begun() {
            let detail = format!("closed after {}", self.reader.progress());
            return self.cut_short(detail, now, events);
        }
        if self.may_go_elsewhere() {
            return Flow::Elsewhere;
        }
        let outcome =
            if self.answered > 0 { Outcome::StaleEof } else { Outcome::ResetBeforeResponse };
        self.end_all(outcome, "closed without an answer", now, events);
        Flow::Over
    }

    /// The connection was reset.
    fn broken(&mut self, error: &io::Error, now: Duration, events: &mut Vec<Event>) -> Flow {
        if self.reader.has_begun() {
            let detail = format!("reset after {}", self.reader.progress());
            return self.cut_short(detail, now, events);
        }
        if self.may_go_elsewhere() {
            return Flow::Elsewhere;
        }
        // Behind a FIN the error of a reset is EPIPE.
        self.reset_unheard = !self.is_heard && error.kind() == ErrorKind::ConnectionReset;
        let when = if self.written == 0 { " before a byte was sent" } else { "" };
        let detail = format!("reset{when} ({error})");
        self.end_all(Outcome::ResetBeforeResponse, detail, now, events);
        Flow::Over
    }

    /// The end of a connection in the middle of a response: those behind it got nothing.
    fn cut_short(&mut self, detail: String, now: Duration, events: &mut Vec<Event>) -> Flow {
        if let Some(exchange) = self.waiting.pop_front() {
            let end = self.end(&exchange, Outcome::Truncated, detail.into(), now);
            events.push(Event::Ended(end));
        }
        self.end_all(Outcome::StaleEof, "behind a truncated answer", now, events);
        Flow::Over
    }

    /// A kept connection that ends before anything of a request was sent has lost nothing.
    fn may_go_elsewhere(&self) -> bool {
        self.answered > 0 && self.written == 0 && !self.waiting.is_empty()
    }

    fn end_all(
        &mut self,
        outcome: Outcome,
        detail: impl Into<Cow<'static, str>>,
        now: Duration,
        events: &mut Vec<Event>,
    ) {
        let detail = detail.into();
        for exchange in std::mem::take(&mut self.waiting) {
            events.push(Event::Ended(self.end(&exchange, outcome, detail.clone(), now)));
        }
    }

    fn end(
        &self,
        exchange: &Exchange,
        outcome: Outcome,
        detail: Cow<'static, str>,
        now: Duration,
    ) -> End {
        End {
            id: exchange.id,
            kind: self.kind,
            outcome,
            planned: exchange.planned,
            sent: exchange.sent,
            ended: now,
            connected: self.connected,
            port: self.port,
            nth: exchange.nth,
            reset_unheard: self.reset_unheard,
            detail,
        }
    }
}

/// Not yet, rather than never.
fn is_pending(error: &io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock
        || error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error())
}

fn is_refusal(error: &io::Error) -> bool {
    [ErrorKind::ConnectionRefused, ErrorKind::TimedOut].contains(&error.kind())
}

/// The receive buffer of a slow reader.
const SLOW_BUFFER: usize = 64 * 1024;

/// Reads of one connection before the others have their turn.
const READS_AT_ONCE: usize = 64;
