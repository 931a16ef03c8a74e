//! A run of the command: whose turn it is, and what is written when.
//!
//! One server is replaced as often as it is asked for, way by way. Several take turns: a round is
//! two restarts of each that can be replaced in this way, one server behind the other, with the
//! same plan. So they are measured within the same minute, and what else the machine does meets
//! all.
//!
//! Results are written after each restart, each file whole or not at all: what was taken is there
//! however the run ends.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{env, io, process};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::ebbtide::Ebbtide;
use crate::field::Terms;
use crate::instance::Starter;
use crate::peer::Peer;
use crate::restarts::{Trip, Witness};
use crate::results::{self, Heading};
use crate::schedule::Plan;
use crate::sums::{self, Sum};
use crate::target::{Fault, Target, Way};
use crate::{drain, picture, restarts, table};

/// Nothing was lost and every ledger is equal.
pub const CLEAN: u8 = 0;
/// Something was lost, or a ledger differs.
pub const LOST: u8 = 1;
/// The run could not be done, or not be finished.
pub const FAULT: u8 = 3;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Order {
    /// Who is put under load. The first one is judged: the exit status is its.
    pub servers: Vec<Server>,
    /// The program of ebbtide; `None` to have it built.
    pub binary: Option<PathBuf>,
    /// The servers' user; `None` for our own.
    pub user: Option<u32>,
    /// Where results go.
    pub out: PathBuf,
    /// Quick requests per second.
    pub rate: u32,
    /// The seed of the plan.
    pub seed: u64,
    /// Threads that make the load.
    pub threads: u32,
    /// How long a request may take.
    pub patience: Duration,
    /// Load before the first signal and between two.
    pub pause: Duration,
    /// How long a server may take to start.
    pub start_max: Duration,
    /// How long it may take to stop.
    pub stop_max: Duration,
}

/// A server that can be asked for.
#[derive(Clone, Debug)]
pub enum Server {
    /// Ours.
    Ebbtide,
    /// Another one.
    Peer(Peer),
}

impl Server {
    /// Its name in results.
    pub fn name(&self) -> &str {
        match self {
            Server::Ebbtide => "ebbtide",
            Server::Peer(peer) => peer.name(),
        }
    }
}

/// See the module's essay.
#[derive(Debug)]
pub struct Site {
    order: Order,
    /// In the order of their turns, one at least.
    booths: Vec<Booth>,
    scratch: Scratch,
    epoch: Instant,
    interrupted: Arc<AtomicBool>,
}

/// A server, and what has come of it so far.
#[derive(Debug)]
struct Booth {
    target: Arc<dyn Target>,
    heading: Heading,
    /// One for each way, in their order.
    trips: Vec<Trip>,
    /// Likewise.
    sums: Vec<Sum>,
}

impl Site {
    /// Sees to it that results can be written and that the servers are there.
    ///
    /// # Errors
    /// When not.
    pub fn new(order: Order) -> Result<Site, Fault> {
        let interrupted = interruption().map_err(Fault::of("catch signals"))?;
        let out = &order.out;
        let writable = fs::create_dir_all(out).and_then(|()| results::probe(out));
        writable.map_err(Fault::of(&format!("write to {}", out.display())))?;
        let scratch = Scratch::new(order.user)?;
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let mut booths = Vec::new();
        for server in &order.servers {
            let target: Arc<dyn Target> = match server {
                Server::Ebbtide => Arc::new(Ebbtide { binary: binary(&order, &scratch)? }),
                Server::Peer(peer) => Arc::new(peer.clone()),
            };
            let heading = Heading {
                target: target.name().to_owned(),
                seed: order.seed,
                rate: order.rate,
                user: order.user,
                unix_time: seconds,
            };
            booths.push(Booth { target, heading, trips: Vec::new(), sums: Vec::new() });
        }
        Ok(Site { order, booths, scratch, epoch: Instant::now(), interrupted })
    }

    /// Replaces each server so often in each way it has; returns the exit status.
    ///
    /// # Errors
    /// When results cannot be written.
    pub fn restarts(&mut self, ways: &[Way], times: u32) -> Result<u8, Fault> {
        let is_alone = self.booths.len() == 1;
        let round = if is_alone { times } else { ROUND };
        for way in ways {
            let mut able = Vec::new();
            for (at, booth) in self.booths.iter().enumerate() {
                if booth.target.ways().contains(way) {
                    able.push(at);
                } else {
                    println!("{} cannot be replaced by {}\n", booth.heading.target, way.name());
                }
            }
            for done in (0..times).step_by(round as usize) {
                for at in able.clone() {
                    self.turn(at, *way, done, round.min(times - done))?;
                    if self.booths[at].has_fault() {
                        able.retain(|able| *able != at);
                    }
                    if self.is_interrupted() {
                        return Ok(self.verdict());
                    }
                }
            }
            if is_alone && self.booths[0].has_fault() {
                break;
            }
        }
        Ok(self.verdict())
    }

    /// Stops the first server once; returns the exit status.
    ///
    /// # Errors
    /// When results cannot be written.
    pub fn drain(&mut self) -> Result<u8, Fault> {
        let terms = self.terms(0, self.order.seed, Path::new("drain"))?;
        let shutdown = drain::run(&terms);
        print!("{}", shutdown.text());
        let booth = &mut self.booths[0];
        booth.add(shutdown.trip);
        booth.write(&self.order.out, "drain", None)?;
        Ok(self.verdict())
    }

    /// Some restarts of a server; what they brought is added and written.
    fn turn(&mut self, at: usize, way: Way, done: u32, times: u32) -> Result<(), Fault> {
        let seed = self.order.seed + u64::from(done);
        // No report of an earlier turn is to be taken for one of this.
        let place = Path::new(way.name()).join(done.to_string());
        let terms = self.terms(at, seed, &place)?;
        let is_alone = self.booths.len() == 1;
        let booth = &mut self.booths[at];
        let trip = {
            let mut keeper = Keeper { booth, out: &self.order.out, is_alone };
            restarts::run(&terms, way, times, &mut keeper)
        };
        if is_alone {
            println!("{}", table::trip(&trip));
        } else {
            eprint!("{}", table::findings(&trip));
        }
        booth.add(trip);
        booth.write(&self.order.out, "restarts", None)?;
        if !is_alone {
            let path = self.order.out.join("restarts.md");
            let written = results::write(&path, &sums::table(&self.sums()));
            written.map_err(Fault::of(&format!("write {}", path.display())))?;
        }
        Ok(())
    }

    /// What a turn needs to know, in a directory of its own.
    fn terms(&self, at: usize, seed: u64, place: &Path) -> Result<Terms, Fault> {
        let Booth { target, .. } = &self.booths[at];
        let starter = Starter {
            target: Arc::clone(target),
            user: self.order.user,
            directory: self.scratch.place(&Path::new(target.name()).join(place))?,
            epoch: self.epoch,
            start_max: self.order.start_max,
            stop_max: self.order.stop_max,
        };
        Ok(Terms {
            starter,
            plan: Plan::mixed(self.order.rate, seed),
            threads: self.order.threads,
            patience: self.order.patience,
            pause: self.order.pause,
            interrupted: Arc::clone(&self.interrupted),
        })
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// Of all servers, way by way.
    fn sums(&self) -> Vec<Sum> {
        let mut sums = Vec::new();
        for way in Way::ALL {
            let all = self.booths.iter().flat_map(|booth| &booth.sums);
            sums.extend(all.filter(|sum| sum.way == way).cloned());
        }
        sums
    }

    /// Says how it went, and returns the exit status. What the others lose is what is to be seen,
    /// and no failure; that one of them could not be judged is.
    fn verdict(&self) -> u8 {
        if self.booths.len() > 1 {
            println!("{}", sums::table(&self.sums()));
        }
        let out = self.order.out.display();
        let mut has_fault = false;
        for booth in &self.booths {
            for fault in booth.trips.iter().filter_map(|trip| trip.fault.as_ref()) {
                println!("NOT FINISHED: {}: {fault}", booth.heading.target);
                has_fault = true;
            }
        }
        if has_fault {
            println!("results so far are in {out}");
            return FAULT;
        }
        let Booth { trips, heading, .. } = &self.booths[0];
        let (mut losses, mut refusals, mut gaps, mut differences) = (0, 0, 0, 0);
        for trip in trips {
            losses += trip.losses();
            refusals += trip.refusals();
            gaps += trip.gap_connections();
            differences += trip.all_differences().len();
        }
        println!(
            "{}: lost: {losses}; refused for no reason: {refusals}; ledgers: {differences} \
             differences; gap: {gaps}; see {out}",
            heading.target
        );
        if trips.iter().all(Trip::is_clean) { CLEAN } else { LOST }
    }
}

impl Booth {
    fn has_fault(&self) -> bool {
        self.trips.iter().any(|trip| trip.fault.is_some())
    }

    /// Adds what a turn has brought.
    fn add(&mut self, trip: Trip) {
        if self.sums.last().is_none_or(|sum| sum.way != trip.way) {
            self.sums.push(Sum::new(self.target.name(), trip.way));
        }
        if let Some(sum) = self.sums.last_mut() {
            sum.add(&trip);
        }
        match self.trips.last_mut().filter(|last| last.way == trip.way) {
            Some(last) => last.join(trip),
            None => self.trips.push(trip),
        }
    }

    /// Writes all there is, with what a turn has brought that is not over.
    fn write(&self, out: &Path, name: &str, so_far: Option<Trip>) -> Result<(), Fault> {
        let mut trips: Vec<&Trip> = self.trips.iter().collect();
        let joined = so_far.map(|so_far| match trips.pop_if(|last| last.way == so_far.way) {
            Some(last) => {
                let mut joined = last.clone();
                joined.join(so_far);
                joined
            }
            None => so_far,
        });
        trips.extend(&joined);
        let title = format!(
            "{}, {} quick requests a second, with paused, slow and streaming clients beside them{}",
            self.heading.target,
            self.heading.rate,
            self.heading.user.map_or(String::new(), |user| format!(", as user {user}")),
        );
        let stem = format!("{name}-{}", self.heading.target);
        let texts = [
            (format!("{stem}.json"), format!("{:#}\n", results::restarts(&self.heading, &trips))),
            (format!("{stem}.svg"), picture::restarts(&title, &trips)),
        ];
        for (name, text) in texts {
            let path = out.join(name);
            let written = results::write(&path, &text);
            written.map_err(Fault::of(&format!("write {}", path.display())))?;
        }
        Ok(())
    }
}

/// Writes what a server's turn brings while it lasts.
struct Keeper<'a> {
    booth: &'a Booth,
    out: &'a Path,
    is_alone: bool,
}

impl Witness for Keeper<'_> {
    fn say(&mut self, line: &str) {
        if self.is_alone {
            eprintln!("{line}");
        } else {
            eprintln!("{}: {line}", self.booth.heading.target);
        }
    }

    fn keep(&mut self, so_far: Trip) -> Result<(), Fault> {
        self.booth.write(self.out, "restarts", Some(so_far))
    }
}

/// The working directory of the servers, removed with it.
#[derive(Debug)]
pub(crate) struct Scratch {
    directory: PathBuf,
    user: Option<u32>,
}

impl Scratch {
    pub(crate) fn new(user: Option<u32>) -> Result<Scratch, Fault> {
        let directory = env::temp_dir().join(format!("loadtest-{}", process::id()));
        let scratch = Scratch { directory, user };
        scratch.place(Path::new(""))?;
        Ok(scratch)
    }

    /// A directory in it in which the servers may write.
    pub(crate) fn place(&self, inside: &Path) -> Result<PathBuf, Fault> {
        let place = self.directory.join(inside);
        fs::create_dir_all(&place).map_err(Fault::of("make a directory"))?;
        if self.user.is_some() {
            chown(&place, self.user, self.user)
                .map_err(Fault::of("give a directory to another user"))?;
        }
        Ok(place)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is in the directory for such things.
        let _removed = fs::remove_dir_all(&self.directory);
    }
}

/// The program of ebbtide; for another user its own copy, for the tree may be closed to others.
fn binary(order: &Order, scratch: &Scratch) -> Result<PathBuf, Fault> {
    let binary = match &order.binary {
        Some(binary) => std::path::absolute(binary).map_err(Fault::of("find the server"))?,
        None => Ebbtide::build()?,
    };
    if order.user.is_none() {
        return Ok(binary);
    }
    let copy = scratch.directory.join("server");
    fs::copy(&binary, &copy).map_err(Fault::of(&format!("copy {}", binary.display())))?;
    Ok(copy)
}

/// Set by SIGINT and SIGTERM: the servers are ended and the results written before we go. A second
/// one of them ends us at once.
pub(crate) fn interruption() -> io::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_default(signal, Arc::clone(&flag))?;
        flag::register(signal, Arc::clone(&flag))?;
    }
    Ok(flag)
}

/// Restarts of a server before it is the next one's turn: five servers take less than a minute.
const ROUND: u32 = 2;
