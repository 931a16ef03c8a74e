//! A client on one of its connections: follows its script, reads responses strictly, and stops
//! sending when it is told that the connection closes.

use std::cell::RefCell;
use std::rc::Rc;

use super::kernel::{Event, Fin, Kernel, Link, Micros, Way};
use super::reply::{Reader, Reply};
use super::script::{Action, Pace, Script};

pub struct Session {
    pub link: Rc<RefCell<Link>>,
    script: Script,
    reader: Reader,
    pub replies: Vec<Reply>,
    /// What was wrong with what it read.
    pub fault: Option<String>,
    /// Until when it waits, while it does.
    until: Option<Micros>,
    /// When it may read again.
    next_read: Micros,
    /// When the end of stream was read.
    ended: Option<Micros>,
    /// Whether it is through with the connection.
    pub is_over: bool,
}

impl Session {
    pub fn new(link: Rc<RefCell<Link>>, script: Script) -> Session {
        Session {
            link,
            script,
            reader: Reader::default(),
            replies: Vec::new(),
            fault: None,
            until: None,
            next_read: 0,
            ended: None,
            is_over: false,
        }
    }

    /// Whether it reads all that it is sent, sooner or later.
    pub fn reads_all(&self) -> bool {
        !matches!(self.script.pace, Pace::Stops(_))
    }

    pub fn is_fast(&self) -> bool {
        self.script.pace == Pace::Fast
    }

    /// Does what can be done now.
    pub fn run(&mut self, kernel: &Kernel) {
        if self.is_over {
            return;
        }
        self.read(kernel);
        if self.link.borrow().client_reset {
            self.is_over = true;
            let now = kernel.moment();
            self.link.borrow_mut().left.get_or_insert(now);
            return;
        }
        if let Some(ended) = self.ended {
            let Some(tardiness) = self.script.tardiness else { return };
            if kernel.now.get() >= ended + tardiness {
                self.close(kernel);
            } else {
                let id = self.link.borrow().id;
                kernel.schedule(ended + tardiness, Event::Client(id));
            }
            return;
        }
        while !self.is_over {
            let Some(action) = self.script.actions.front().cloned() else {
                self.close(kernel);
                return;
            };
            if !self.act(kernel, action) {
                return;
            }
            self.script.actions.pop_front();
        }
    }

    /// Whether the action is done.
    fn act(&mut self, kernel: &Kernel, action: Action) -> bool {
        let is_told = self.is_told();
        match action {
            Action::Wait(time) => self.wait(kernel, kernel.now.get() + time),
            Action::WaitUntil(at) => self.wait(kernel, at),
            Action::Send(_) | Action::Await(_) | Action::AwaitContinue(_) if is_told => {
                // No more is sent; what is under way is read to its end.
                let is_all = self.reader.is_between();
                if is_all {
                    self.close(kernel);
                }
                is_all
            }
            Action::Send(bytes) => {
                let mut link = self.link.borrow_mut();
                kernel.tell(|| {
                    let start = bytes[..bytes.len().min(60)].escape_ascii();
                    format!("link {}: the client writes {} bytes: {start}", link.id, bytes.len())
                });
                link.up.unsent.extend(bytes);
                link.pump(kernel, Way::Up);
                true
            }
            Action::Await(count) => self.replies.len() >= count,
            Action::AwaitContinue(before) if self.replies.len() > before => {
                // Answered without its body, which is not sent then.
                self.close(kernel);
                true
            }
            Action::AwaitContinue(before) => {
                self.replies.len() == before && self.reader.interim() > 0
            }
            Action::Finish => {
                kernel.tell(|| format!("link {}: the client sends FIN", self.link.borrow().id));
                self.link.borrow_mut().client_finishes(kernel);
                true
            }
            Action::Close => {
                self.close(kernel);
                true
            }
            Action::Reset => {
                kernel.tell(|| format!("link {}: the client sends RST", self.link.borrow().id));
                self.link.borrow_mut().client_resets(kernel);
                self.is_over = true;
                true
            }
            Action::StayOpen => {
                if is_told && self.reader.is_between() {
                    self.close(kernel);
                }
                false
            }
        }
    }

    /// Whether a response has announced the close.
    fn is_told(&self) -> bool {
        let current = self.reader.current().is_some_and(|reply| reply.closes);
        current || self.replies.iter().any(|reply| reply.closes)
    }

    fn wait(&mut self, kernel: &Kernel, until: Micros) -> bool {
        let until = *self.until.get_or_insert(until);
        if kernel.now.get() >= until {
            self.until = None;
            return true;
        }
        let id = self.link.borrow().id;
        kernel.schedule(until, Event::Client(id));
        false
    }

    fn read(&mut self, kernel: &Kernel) {
        let mut link = self.link.borrow_mut();
        let waiting = link.down.queue.len();
        let now = kernel.now.get();
        let most = match self.script.pace {
            _ if link.client_reset => waiting,
            Pace::Fast => waiting,
            Pace::Slow { .. } if now < self.next_read => 0,
            Pace::Slow { bytes, every } => {
                if waiting > 0 {
                    self.next_read = now + every;
                    kernel.schedule(self.next_read, Event::Client(link.id));
                }
                bytes.min(waiting)
            }
            Pace::Stops(after) => waiting.min(after.saturating_sub(self.reader.taken)),
        };
        if most > 0 {
            let bytes: Vec<u8> = link.down.queue.drain(..most).collect();
            kernel.tell(|| format!("link {}: the client reads {most} bytes", link.id));
            let delay = link.latency;
            kernel.after(delay, Event::PumpDown(link.id));
            if self.fault.is_none() {
                self.fault = self.reader.take(&bytes, &mut self.replies).err();
            }
        }
        if link.down.queue.is_empty() && link.down.fin >= Fin::Arrived {
            self.ended.get_or_insert(now);
        }
    }

    fn close(&mut self, kernel: &Kernel) {
        kernel.tell(|| format!("link {}: the client closes", self.link.borrow().id));
        self.is_over = true;
        self.link.borrow_mut().client_closes(kernel);
    }
}
