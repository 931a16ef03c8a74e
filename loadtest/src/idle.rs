//! Clients that are idle, or nearly so, when the signal comes: each on a thread, in plain blocking
//! calls, and each tells a story.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::client::Event;
use crate::kind::{Kind, Routes};
use crate::outcome::{End, Outcome};
use crate::response::{Closes, Reader};

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
    thread.spawn(move || {
        let stream = TcpStream::connect(world.to)?;
        let port = stream.local_addr()?.port();
        let at = world.epoch.elapsed();
        let events = vec![Event::Connected { at, port }];
        let story = Story { habit, events, got: "nothing", ended: None };
        let reader = Reader::default();
        Life { world, stream, port, connected: at, reader, story, nth: 0 }.live(id)
    })
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

/// What a read came to.
enum Heard {
    Answer(Closes),
    End(&'static str),
    Silence,
}

impl Life {
    fn live(mut self, id: u64) -> io::Result<Story> {
        let habit = self.story.habit;
        let later = self.world.signal + LATER;
        let first = Kind::Get.ask(&self.world.routes, id).bytes;
        let second = Kind::Get.ask(&self.world.routes, id + 1).bytes;
        match habit {
            Habit::Silent => {}
            Habit::Idle => self.exchange(&first, id)?,
            Habit::OneMore => {
                self.exchange(&first, id)?;
                if self.is_left_alone(later)? {
                    self.exchange(&second, id + 1)?;
                }
            }
            Habit::HalfHead => {
                let (half, rest) = first.split_at(first.len() / 2);
                self.stream.write_all(half)?;
                if self.is_left_alone(later)? {
                    self.exchange(rest, id)?;
                }
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

    /// Sends and waits for the answer, which must be the expected one.
    fn exchange(&mut self, bytes: &[u8], id: u64) -> io::Result<()> {
        let planned = self.now();
        self.stream.write_all(bytes)?;
        let heard = self.hear(planned + PATIENCE)?;
        let (outcome, got) = match heard {
            Heard::Answer(Closes::Yes) => (Outcome::OkClose, "an answer that announced the close"),
            Heard::Answer(Closes::No) => (Outcome::Ok, "an answer"),
            Heard::End(_) if self.nth > 0 => (Outcome::StaleEof, "no answer"),
            Heard::End(_) => (Outcome::ResetBeforeResponse, "no answer"),
            Heard::Silence => (Outcome::Timeout, "no answer"),
        };
        if planned >= self.world.signal {
            self.story.got = got;
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
            detail: "an idle client".into(),
        }));
        self.nth += 1;
        if let Heard::End(how) = heard {
            self.story.ended = Some((self.now(), how));
        }
        Ok(())
    }

    /// Waits; whether the server has neither closed nor said anything until then.
    fn is_left_alone(&mut self, until: Duration) -> io::Result<bool> {
        match self.hear(until)? {
            Heard::Silence => return Ok(true),
            Heard::End(how) => self.story.ended = Some((self.now(), how)),
            Heard::Answer(_) => self.story.got = "an answer that nobody asked for",
        }
        Ok(false)
    }

    fn hear(&mut self, until: Duration) -> io::Result<Heard> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(response) = self.reader.take().map_err(|e| io::Error::other(e.0))? {
                return Ok(Heard::Answer(response.closes));
            }
            let left = until.saturating_sub(self.now());
            if left.is_zero() {
                return Ok(Heard::Silence);
            }
            self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(Heard::End("FIN")),
                Ok(count) => self.reader.push(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    return Ok(Heard::End("reset"));
                }
                Err(error) if is_time_out(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn is_time_out(error: &io::Error) -> bool {
    [ErrorKind::WouldBlock, ErrorKind::TimedOut, ErrorKind::Interrupted].contains(&error.kind())
}

/// Longer than any server's patience with an idle client that is to be told of here.
const PATIENCE: Duration = Duration::from_secs(40);
