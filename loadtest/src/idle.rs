//! Clients that are idle, or nearly so, when the signal comes: each on a thread, in plain blocking
//! calls, and each tells a story.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::client::Event;
use crate::kind::{Ask, Kind, Routes};
use crate::outcome::{End, Outcome};
use crate::response::{Closes, Garbage, Reader, Response};

/// What an idle client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    /// It connects and never sends a byte.
    Silent,
    /// One request, then nothing more.
    Idle,
    /// One request, and another one [`LATER`] after the signal.
    OneMore,
    /// Half a head, whose rest it sends [`LATER`] after the signal.
    HalfHead,
}

impl Habit {
    /// All of them.
    pub const ALL: [Habit; 4] = [Habit::Silent, Habit::Idle, Habit::OneMore, Habit::HalfHead];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Habit::Silent => "connected, never sends a byte",
            Habit::Idle => "idle after one request",
            Habit::OneMore => "idle, sends one more after the signal",
            Habit::HalfHead => "half a head, completed after the signal",
        }
    }
}

/// After the signal.
pub const LATER: Duration = Duration::from_millis(800);

/// What became of an idle client. Times are since the run began.
#[derive(Debug)]
pub struct Story {
    /// What it did.
    pub habit: Habit,
    /// What a load's client would tell of the same.
    pub events: Vec<Event>,
    /// What it got after the signal, in words.
    pub got: &'static str,
    /// When its connection ended, and how.
    pub ended: Option<(Duration, &'static str)>,
}

/// An idle client's world.
#[derive(Clone, Copy, Debug)]
pub struct World {
    /// The server.
    pub to: SocketAddr,
    /// Its paths.
    pub routes: Routes,
    /// The beginning of time.
    pub epoch: Instant,
    /// When the signal will come.
    pub signal: Duration,
}

/// Starts a client; its story is told when the server has closed, or after 40 s.
///
/// # Errors
/// When no thread can be started.
pub fn start(world: World, habit: Habit, id: u64) -> io::Result<JoinHandle<io::Result<Story>>> {
    let thread = thread::Builder::new().name("idle".to_owned());
    thread.spawn(move || Life::new(world, habit, TcpStream::connect(world.to)?)?.live(id))
}

struct Life {
    world: World,
    stream: TcpStream,
    port: u16,
    connected: Duration,
    reader: Reader,
    story: Story,
    nth: u32,
}

/// What a read, or a write, came to.
enum Heard {
    Answer(Response),
    /// The end of the connection, by its name.
    End(&'static str),
    Garbage(Garbage),
    Silence,
}

impl Life {
    fn new(world: World, habit: Habit, stream: TcpStream) -> io::Result<Life> {
        let port = stream.local_addr()?.port();
        let connected = world.epoch.elapsed();
        let events = vec![Event::Connected { at: connected, port }];
        let story = Story { habit, events, got: "nothing", ended: None };
        Ok(Life { world, stream, port, connected, reader: Reader::default(), story, nth: 0 })
    }

    fn live(mut self, id: u64) -> io::Result<Story> {
        let habit = self.story.habit;
        let later = self.world.signal + LATER;
        let first = Kind::Get.ask(&self.world.routes, id);
        let second = Kind::Get.ask(&self.world.routes, id + 1);
        match habit {
            Habit::Silent => {}
            Habit::Idle => self.exchange(&first, id)?,
            Habit::OneMore => {
                self.exchange(&first, id)?;
                if self.story.ended.is_none() && self.is_left_alone(later)? {
                    self.exchange(&second, id + 1)?;
                }
            }
            Habit::HalfHead => {
                let planned = self.now();
                let (half, rest) = first.bytes.split_at(first.bytes.len() / 2);
                // An answer to half a request, or an end, is what became of the whole.
                let heard = match self.send(half, later)? {
                    Heard::Silence => self.send(rest, later + PATIENCE)?,
                    heard => heard,
                };
                self.conclude(heard, &first, id, planned);
            }
        }
        if self.story.ended.is_none() {
            let end = self.now() + PATIENCE;
            self.is_left_alone(end)?;
        }
        Ok(self.story)
    }

    fn now(&self) -> Duration {
        self.world.epoch.elapsed()
    }

    /// Sends, waits for the answer, and notes what became of it.
    fn exchange(&mut self, ask: &Ask, id: u64) -> io::Result<()> {
        let planned = self.now();
        let heard = self.send(&ask.bytes, planned + PATIENCE)?;
        self.conclude(heard, ask, id, planned);
        Ok(())
    }

    /// Sends, and waits for what is said to that.
    fn send(&mut self, bytes: &[u8], until: Duration) -> io::Result<Heard> {
        match self.stream.write_all(bytes) {
            Ok(()) => self.hear(until),
            // What the server said before it went may still be read.
            Err(error) => match (end_of(error)?, self.hear(until)?) {
                (how, Heard::Silence | Heard::End(_)) => Ok(Heard::End(how)),
                (_, heard) => Ok(heard),
            },
        }
    }

    /// Notes how a request ended, by the rules of the load's clients.
    fn conclude(&mut self, heard: Heard, ask: &Ask, id: u64, planned: Duration) {
        let (outcome, detail) = self.judge(&heard, ask, id);
        if self.now() >= self.world.signal {
            self.story.got = match outcome {
                Outcome::OkClose => "an answer that announced the close",
                Outcome::Ok => "an answer",
                Outcome::Status => "another answer than the expected one",
                Outcome::Truncated => "a part of an answer",
                _ => "no answer",
            };
        }
        self.story.events.push(Event::Ended(End {
            id,
            kind: Kind::Paused,
            outcome,
            planned,
            sent: Some(planned),
            ended: self.now(),
            connected: Some(self.connected),
            port: self.port,
            nth: self.nth,
            // It was made long before any listener closed.
            reset_unheard: false,
            detail: format!("an idle client{detail}").into(),
        }));
        self.nth += 1;
        self.ended_by(heard);
    }

    /// How a request ended, and what there is to say of it.
    fn judge(&self, heard: &Heard, ask: &Ask, id: u64) -> (Outcome, String) {
        let progress = || self.reader.progress();
        match heard {
            Heard::Answer(response) => match response.fault(&ask.body, id) {
                Some(fault) => (Outcome::Status, format!(": {fault}")),
                None if response.closes == Closes::Yes => (Outcome::OkClose, String::new()),
                None => (Outcome::Ok, String::new()),
            },
            Heard::Garbage(garbage) => (Outcome::Status, format!(": no HTTP: {garbage}")),
            Heard::End(how) if self.reader.has_begun() => {
                (Outcome::Truncated, format!(": {how} after {}", progress()))
            }
            Heard::End("FIN") if self.nth > 0 => (Outcome::StaleEof, ": FIN".to_owned()),
            Heard::End(how) => (Outcome::ResetBeforeResponse, format!(": {how}")),
            Heard::Silence if self.reader.has_begun() => {
                (Outcome::Timeout, format!(": with {}", progress()))
            }
            Heard::Silence => (Outcome::Timeout, String::new()),
        }
    }

    /// Waits; whether the server has neither closed nor said anything until then.
    fn is_left_alone(&mut self, until: Duration) -> io::Result<bool> {
        let heard = self.hear(until)?;
        if let Heard::Answer(_) = heard {
            self.story.got = "an answer that nobody asked for";
        }
        let is_left_alone = matches!(heard, Heard::Silence);
        self.ended_by(heard);
        Ok(is_left_alone)
    }

    /// Notes what has ended the connection, if it is that.
    fn ended_by(&mut self, heard: Heard) {
        match heard {
            Heard::End(how) => self.story.ended = Some((self.now(), how)),
            Heard::Garbage(garbage) => {
                self.story.events.push(Event::Garbage(format!("no HTTP: {garbage}")));
                self.story.ended = Some((self.now(), "garbage"));
            }
            Heard::Answer(_) | Heard::Silence => {}
        }
    }

    fn hear(&mut self, until: Duration) -> io::Result<Heard> {
        let mut buffer = [0; 4096];
        loop {
            match self.reader.take() {
                Ok(None) => {}
                Ok(Some(response)) => return Ok(Heard::Answer(response)),
                Err(garbage) => return Ok(Heard::Garbage(garbage)),
            }
            let left = until.saturating_sub(self.now());
            if left.is_zero() {
                return Ok(Heard::Silence);
            }
            self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match self.stream.read(&mut buffer) {
                // A response without a length ends with its connection.
                Ok(0) => return Ok(self.reader.end().map_or(Heard::End("FIN"), Heard::Answer)),
                Ok(count) => self.reader.push(&buffer[..count]),
                Err(error) if is_time_out(&error) => {}
                Err(error) => return end_of(error).map(Heard::End),
            }
        }
    }
}

/// The name of an end that the server has made; every other error is ours.
fn end_of(error: io::Error) -> io::Result<&'static str> {
    let is_end = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&error.kind());
    if is_end { Ok("reset") } else { Err(error) }
}

/// Whether a blocking call may be tried again: nothing has happened so far.
pub(crate) fn is_time_out(error: &io::Error) -> bool {
    [ErrorKind::WouldBlock, ErrorKind::TimedOut, ErrorKind::Interrupted].contains(&error.kind())
}

/// Longer than any server's patience with an idle client that is to be told of here.
const PATIENCE: Duration = Duration::from_secs(40);

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use socket2::SockRef;

    use super::*;
    use crate::ebbtide::ROUTES;

    #[test]
    fn a_write_into_a_connection_that_is_gone_is_a_loss() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let stream = TcpStream::connect(to).unwrap();
        let (server, _) = listener.accept().unwrap();
        // After a FIN and a reset a write gets EPIPE.
        server.shutdown(std::net::Shutdown::Write).unwrap();
        SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
        drop(server);
        let world =
            World { to, routes: ROUTES, epoch: Instant::now(), signal: Duration::from_secs(60) };
        let mut life = Life::new(world, Habit::Idle, stream).unwrap();
        life.exchange(&Kind::Get.ask(&ROUTES, 4), 4).unwrap();
        let Some(Event::Ended(end)) = life.story.events.last() else { panic!("it has no end") };
        assert_eq!(end.outcome, Outcome::ResetBeforeResponse);
        assert_eq!(end.detail, "an idle client: reset");
    }
}
