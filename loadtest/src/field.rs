//! A load and the instances that stand under it: what every run is made of.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use crate::books::{Books, Scope, Seen};
use crate::client::Event;
use crate::instance::{Instance, Starter};
use crate::listening;
use crate::load::{Load, Running};
use crate::outcome::{End, Outcome};
use crate::schedule::Plan;
use crate::target::{Fault, Seat, Way};
use crate::trial;

/// What all runs need to know.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Who starts the instances.
    pub starter: Starter,
    /// What comes when.
    pub plan: Plan,
    /// Threads that make the load.
    pub threads: u32,
    /// How long a request may take.
    pub patience: Duration,
    /// How long the load stands before the first restart, and between two of them.
    pub pause: Duration,
    /// Set when somebody wants the run to end.
    pub interrupted: Arc<AtomicBool>,
}

/// See the module's essay.
#[derive(Debug)]
pub struct Field {
    terms: Terms,
    way: Way,
    address: SocketAddr,
    /// The socket that all instances accept from, for [`Way::Inherited`].
    listener: Option<TcpListener>,
    load: Option<Running>,
    /// What the clients have seen so far.
    pub ends: Vec<End>,
    /// The client's port of each connection that was established.
    pub ports: Vec<u16>,
    /// All instances, the oldest first.
    pub instances: Vec<Instance>,
}

/// A server's ledger, compared.
#[derive(Clone, Debug)]
pub struct Compared {
    /// What the report said; `None` when there is none.
    pub books: Option<Books>,
    /// What does not agree with the clients, in words.
    pub differences: Vec<String>,
}

impl Field {
    /// An address, and nobody there yet.
    ///
    /// # Errors
    /// When there is no port to be had.
    pub fn new(terms: &Terms, way: Way) -> Result<Field, Fault> {
        let of = "find a free port";
        let mut listener = None;
        let address = if way == Way::Inherited {
            let held = listening::listener().map_err(Fault::of(of))?;
            listener.insert(held).local_addr().map_err(Fault::of(of))?
        } else {
            listening::free_address().map_err(Fault::of(of))?
        };
        Ok(Field {
            terms: terms.clone(),
            way,
            address,
            listener,
            load: None,
            ends: Vec::new(),
            ports: Vec::new(),
            instances: Vec::new(),
        })
    }

    /// Where the server is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Since the run began.
    pub fn now(&self) -> Duration {
        self.terms.starter.epoch.elapsed()
    }

    /// Starts one more instance and waits until it serves.
    ///
    /// # Errors
    /// When it never does.
    pub fn start_instance(&mut self) -> Result<(), Fault> {
        let number = u32::try_from(self.instances.len()).unwrap_or(u32::MAX);
        let seat = Seat { number, address: self.address, way: self.way, report: self.report() };
        let instance = self.terms.starter.start(seat, self.listener.as_ref())?;
        self.instances.push(instance);
        Ok(())
    }

    fn report(&self) -> PathBuf {
        let name = format!("{}-{}.json", self.way.name(), self.instances.len());
        self.terms.starter.directory.join(name)
    }

    /// Asks the server one request of each kind, then begins the load.
    ///
    /// # Errors
    /// When the answers are not the ones that were expected.
    pub fn start_load(&mut self) -> Result<(), Fault> {
        let routes = self.terms.starter.target.routes();
        let tried = trial::ask_each_kind(self.address, &routes, self.terms.starter.epoch)?;
        for event in tried {
            self.note(event)?;
        }
        let load = Load {
            to: self.address,
            routes,
            plan: self.terms.plan.clone(),
            threads: self.terms.threads,
            patience: self.terms.patience,
        };
        let running = load.start(self.terms.starter.epoch);
        self.load = Some(running.map_err(Fault::of("start the load"))?);
        Ok(())
    }

    /// Listens to the clients for so long.
    ///
    /// # Errors
    /// When the server answers garbage, or one of its instances does what it should not.
    pub fn gather(&mut self, during: Duration) -> Result<(), Fault> {
        let until = self.now() + during;
        self.gather_until(|field| field.now() >= until)
    }

    /// Tells the instance to stop and listens to the clients until it is gone.
    ///
    /// # Errors
    /// As [`Field::gather`], and when it does not stop.
    pub fn stop_instance(&mut self, number: usize) -> Result<(), Fault> {
        self.terms.starter.stop(&mut self.instances[number])?;
        self.gather_until(|field| field.instances[number].exited.is_some())
    }

    /// Sends nothing new and waits for what is on its way.
    ///
    /// # Errors
    /// As [`Field::gather`].
    pub fn stop_load(&mut self) -> Result<(), Fault> {
        let Some(load) = self.load.take() else { return Ok(()) };
        let mut found = Ok(());
        for event in load.finish() {
            found = found.and(self.note(event));
        }
        found
    }

    /// Takes in what the clients have told so far and listens no more: what ends from now on, when
    /// instances are killed, says nothing of the server.
    pub fn abandon(&mut self) {
        let Some(load) = self.load.take() else { return };
        while let Ok(event) = load.events().try_recv() {
            // The run has its fault already.
            let _known = self.note(event);
        }
    }

    fn gather_until(&mut self, is_over: impl Fn(&Field) -> bool) -> Result<(), Fault> {
        while !is_over(self) {
            if self.terms.interrupted.load(Ordering::Relaxed) {
                return Err(Fault("interrupted by a signal".to_owned()));
            }
            let told = if let Some(load) = &self.load {
                load.events().recv_timeout(LOOK)
            } else {
                std::thread::park_timeout(LOOK);
                Err(RecvTimeoutError::Timeout)
            };
            match told {
                Ok(event) => {
                    self.note(event)?;
                    while let Some(event) =
                        self.load.as_ref().and_then(|load| load.events().try_recv().ok())
                    {
                        self.note(event)?;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Fault("a thread of the load generator has ended".to_owned()));
                }
            }
            for instance in &mut self.instances {
                self.terms.starter.look(instance)?;
            }
        }
        Ok(())
    }

    /// Takes in what a client tells.
    ///
    /// # Errors
    /// When it tells of garbage.
    pub fn note(&mut self, event: Event) -> Result<(), Fault> {
        match event {
            Event::Connected { port, .. } => self.ports.push(port),
            Event::Ended(end) => self.ends.push(end),
            Event::Garbage(what) => {
                return Err(Fault(format!("the server answers garbage: {what}")));
            }
            Event::Failed(what) => return Err(Fault(what)),
        }
        Ok(())
    }

    /// Compares the ledger of every instance that was told to stop and did with what the clients
    /// saw: `None` for the others. What comes second are the differences that are no single
    /// instance's, which only a whole run can have.
    pub fn compare(&self, scope: Scope) -> (Vec<Option<Compared>>, Vec<String>) {
        let mut seen = Seen::new(&self.ends, &self.ports, scope);
        let compare = |instance: &Instance| {
            let remains = instance.has_stopped().then(|| self.terms.starter.remains(instance))?;
            let mut differences: Vec<String> = remains.complaint.iter().cloned().collect();
            if let Some(books) = &remains.books {
                differences.extend(seen.compare(books, &remains.journal));
            }
            Some(Compared { books: remains.books, differences })
        };
        let compared: Vec<Option<Compared>> = self.instances.iter().map(compare).collect();
        let has_books = |one: &Option<Compared>| one.as_ref().is_some_and(|it| it.books.is_some());
        if scope == Scope::SoFar || !compared.iter().all(has_books) {
            return (compared, Vec::new());
        }
        (compared, seen.rest(&self.reset_in_queue(), &self.terms.starter.target.routes()))
    }

    /// The ports of connections that no instance can have accepted: reset, without an answer to
    /// their first request, and made in the last moment of a listener.
    fn reset_in_queue(&self) -> Vec<u16> {
        let firsts = self.ends.iter().filter(|end| end.nth == 0);
        firsts.filter(|end| self.gap_of(end).is_some()).map(|end| end.port).collect()
    }

    /// Lost requests so far, without those that the gap explains.
    pub fn losses(&self) -> usize {
        let lost = self.ends.iter().filter(|end| end.outcome.is_loss());
        lost.filter(|end| self.gap_of(end).is_none()).count()
    }

    /// How long before a listener's close the connection of a lost request was made, if the gap
    /// that the kernel leaves explains its loss.
    pub fn gap_of(&self, end: &End) -> Option<Duration> {
        if self.way != Way::StopStart {
            // Somebody else has the port, or the queue.
            return None;
        }
        gap_before(end, self.instances.iter().filter_map(|instance| instance.closed))
    }
}

/// See [`Field::gap_of`]: reset by the kernel before a byte came on the connection, which was made
/// at most [`GAP_MAX`] before one of the closings. A server that accepts a connection and closes it
/// sends a FIN: what met that is lost.
fn gap_before(end: &End, mut closings: impl Iterator<Item = Duration>) -> Option<Duration> {
    let is_unheard = end.reset_unheard && end.outcome == Outcome::ResetBeforeResponse;
    let connected = end.connected.filter(|_| is_unheard)?;
    closings.find_map(|at| at.checked_sub(connected).filter(|before| *before <= GAP_MAX))
}

/// A connection made so shortly before the close of a listener that stands alone may be reset by
/// the kernel: no call takes a connection and closes the queue in one.
pub const GAP_MAX: Duration = Duration::from_millis(10);

/// How often instances are looked at while nothing is heard from the clients.
const LOOK: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;

    #[test]
    fn only_an_unheard_reset_of_the_last_ten_milliseconds_met_the_gap() {
        let ms = Duration::from_millis;
        let closings = [ms(1_000), ms(5_000)];
        let reset = |kind, connected, nth| End {
            id: 1,
            kind,
            outcome: Outcome::ResetBeforeResponse,
            planned: ms(990),
            sent: Some(ms(995)),
            ended: ms(1_001),
            connected: Some(connected),
            port: 1,
            nth,
            reset_unheard: true,
            detail: "".into(),
        };
        let gap = |end: &End| gap_before(end, closings.into_iter());
        assert_eq!(gap(&reset(Kind::Get, ms(995), 0)), Some(ms(5)));
        assert_eq!(gap(&reset(Kind::Get, ms(4_990), 0)), Some(ms(10)));
        assert_eq!(gap(&reset(Kind::Pipelined, ms(995), 3)), Some(ms(5)));
        let closed = End { reset_unheard: false, ..reset(Kind::Get, ms(995), 0) };
        assert_eq!(gap(&closed), None, "a FIN, or a connection on which something had come");
        assert_eq!(gap(&reset(Kind::Get, ms(989), 0)), None, "eleven milliseconds before");
        assert_eq!(gap(&reset(Kind::Get, ms(1_002), 0)), None, "after the close");
        let truncated = End { outcome: Outcome::Truncated, ..reset(Kind::Get, ms(995), 0) };
        assert_eq!(gap(&truncated), None, "another end");
    }
}
