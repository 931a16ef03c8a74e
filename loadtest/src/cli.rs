//! The command line, and what it leads to.

use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{env, fs, io};

use clap::{Arg, ArgMatches, Command, value_parser};
use serde_json::Value;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::compare::{self, Sum};
use crate::ebbtide::Ebbtide;
use crate::field::Terms;
use crate::instance::Starter;
use crate::peer::{self, Peer};
use crate::restarts::Trip;
use crate::results::{self, Heading};
use crate::schedule::Plan;
use crate::target::{Fault, Target, Way};
use crate::{drain, picture, restarts, table};

/// Nothing was lost and every ledger is equal.
pub const CLEAN: u8 = 0;
/// Something was lost, or a ledger differs.
pub const LOST: u8 = 1;
/// The run could not be done, or not be finished.
pub const FAULT: u8 = 3;

/// The whole command line. (clap ends with status 2 for what it does not understand.)
pub fn command() -> Command {
    Command::new("loadtest")
        .about("Puts a server under load, stops it, and says what its clients lost")
        .after_help(STATUSES)
        .subcommand_required(true)
        .subcommand(
            restarting(other(options(Command::new("restarts"))))
                .about("Replaces the server under load again and again"),
        )
        .subcommand(
            restarting(options(Command::new("compare")))
                .about("The same with ebbtide and each server of loadtest/peers, in turn"),
        )
        .subcommand(
            other(options(Command::new("drain")))
                .about("Stops the server once, under load and beside idle clients, and explains it")
                .arg(seconds("pause", "1.5", "Load before the signal")),
        )
}

const STATUSES: &str = "Exit status: 0 nothing lost and all ledgers equal; 1 something lost or a \
    ledger unequal; 2 the command line was not understood; 3 the run could not be finished (the \
    server never starts, never stops or answers garbage). Results taken so far are written in any \
    case.";

fn options(command: Command) -> Command {
    command
        .arg(number("rate", "400", "Quick requests per second; the other kinds in proportion"))
        .arg(
            Arg::new("seed")
                .long("seed")
                .value_name("N")
                .default_value("1")
                .value_parser(value_parser!(u64))
                .help("What the times of the requests are drawn from"),
        )
        .arg(number("threads", "2", "Threads that make the load"))
        .arg(
            Arg::new("binary")
                .long("binary")
                .value_name("PATH")
                .value_parser(value_parser!(PathBuf))
                .help("The server; without it, cargo builds ebbtide's release and that is taken"),
        )
        .arg(
            Arg::new("out")
                .long("out")
                .value_name("DIR")
                .value_parser(value_parser!(PathBuf))
                .help("Where the results go [default: loadtest/results]"),
        )
        .arg(seconds("request-timeout", "10", "A request may take so long"))
        .arg(seconds("start-timeout", "10", "The server may take so long to say that it serves"))
        .arg(seconds("stop-timeout", "40", "The server may take so long to stop"))
}

/// What tells how often and how a server is replaced.
fn restarting(command: Command) -> Command {
    command
        .arg(number("times", "10", "How often it is replaced in each way"))
        .arg(
            Arg::new("ways")
                .long("ways")
                .value_name("LIST")
                .default_value("reuse_port,inherited,stop_start")
                .value_delimiter(',')
                .value_parser(Way::ALL.map(Way::name))
                .help("The ways in which it is replaced, in this order"),
        )
        .arg(seconds("pause", "0.8", "Load before the first restart and between two"))
}

/// What makes the server another one, or another one's.
fn other(command: Command) -> Command {
    command
        .arg(
            Arg::new("peer")
                .long("peer")
                .value_name("NAME")
                .conflicts_with("binary")
                .value_parser(peer::NAMES)
                .help("Another server, of loadtest/peers, built by `loadtest/peers/run build`"),
        )
        .arg(
            Arg::new("user")
                .long("user")
                .value_name("UID")
                .value_parser(value_parser!(u32))
                .help("The server's user, such as 65532 (needs root)"),
        )
}

fn number(name: &'static str, default: &'static str, help: &'static str) -> Arg {
    let parser = value_parser!(u32).range(1..=100_000);
    Arg::new(name).long(name).value_name("N").default_value(default).value_parser(parser).help(help)
}

fn seconds(name: &'static str, default: &'static str, help: &'static str) -> Arg {
    let parse = |text: &str| -> Result<Duration, String> {
        let seconds: f64 = text.parse().map_err(|_| "seconds, such as 0.5".to_owned())?;
        let is_sound = (0.001..=3600.0).contains(&seconds);
        is_sound.then(|| Duration::from_secs_f64(seconds)).ok_or("0.001 to 3600 seconds".to_owned())
    };
    let argument = Arg::new(name).long(name).value_name("SECONDS").default_value(default);
    argument.value_parser(parse).help(help)
}

fn get<T: Clone + Send + Sync + 'static>(matches: &ArgMatches, name: &str) -> T {
    matches.get_one::<T>(name).expect("it has a default").clone()
}

/// Does what the command line says; returns the exit status.
pub fn run(matches: &ArgMatches) -> u8 {
    let Some((name, matches)) = matches.subcommand() else { return FAULT };
    let done = Site::new(matches).and_then(|site| match name {
        "restarts" => site.restarts(matches),
        "compare" => site.compare(matches),
        _ => site.drain(),
    });
    done.unwrap_or_else(|fault| {
        eprintln!("loadtest: {fault}");
        FAULT
    })
}

/// What both commands have: the terms, and where things go. The working directory of the servers
/// is removed with it.
struct Site {
    terms: Terms,
    heading: Heading,
    out: PathBuf,
}

impl Site {
    fn new(matches: &ArgMatches) -> Result<Site, Fault> {
        let user = matches.try_get_one::<u32>("user").ok().flatten().copied();
        let out = matches.get_one::<PathBuf>("out").cloned().unwrap_or_else(|| root().join(OUT));
        fs::create_dir_all(&out).map_err(Fault::of(&format!("write to {}", out.display())))?;
        let directory = env::temp_dir().join(format!("loadtest-{}", std::process::id()));
        fs::create_dir_all(&directory).map_err(Fault::of("make a directory"))?;
        if user.is_some() {
            std::os::unix::fs::chown(&directory, user, user)
                .map_err(Fault::of("give a directory to another user"))?;
        }
        let target: Arc<dyn Target> = match matches.try_get_one::<String>("peer").ok().flatten() {
            Some(name) => peer(name),
            None => Arc::new(Ebbtide { binary: binary(matches, user, &directory)? }),
        };
        let (rate, seed) = (get(matches, "rate"), get(matches, "seed"));
        let heading = Heading {
            target: target.name().to_owned(),
            seed,
            rate,
            user,
            unix_time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        };
        let starter = Starter {
            target,
            user,
            directory,
            epoch: Instant::now(),
            start_max: get(matches, "start-timeout"),
            stop_max: get(matches, "stop-timeout"),
        };
        let terms = Terms {
            starter,
            plan: Plan::mixed(rate, seed),
            threads: get(matches, "threads"),
            patience: get(matches, "request-timeout"),
            pause: get(matches, "pause"),
            interrupted: interruption().map_err(Fault::of("catch signals"))?,
        };
        Ok(Site { terms, heading, out })
    }

    fn restarts(&self, matches: &ArgMatches) -> Result<u8, Fault> {
        let times = get(matches, "times");
        let mut trips: Vec<Trip> = Vec::new();
        for way in ways(matches) {
            if !self.terms.starter.target.ways().contains(&way) {
                println!("{} cannot be replaced by {}\n", self.heading.target, way.name());
                continue;
            }
            let trip = restarts::run(&self.terms, way, times, &mut |line| eprintln!("{line}"));
            println!("{}", table::trip(&trip));
            let is_over = trip.fault.is_some();
            trips.push(trip);
            self.write("restarts", &results::restarts(&self.heading, &trips), &trips)?;
            if is_over {
                break;
            }
        }
        Ok(self.verdict(&trips))
    }

    /// Says what each server lost; the exit status is ebbtide's.
    fn compare(&self, matches: &ArgMatches) -> Result<u8, Fault> {
        let times: u32 = get(matches, "times");
        let mut servers = vec![(Arc::clone(&self.terms.starter.target), Vec::new())];
        servers.extend(peer::NAMES.map(|name| (peer(name), Vec::new())));
        let mut sums: Vec<Sum> = Vec::new();
        'ways: for way in ways(matches) {
            let able = servers.iter().filter(|(target, _)| target.ways().contains(&way));
            let begin = sums.len();
            sums.extend(able.map(|(target, _)| Sum::new(target.name(), way)));
            for done in (0..times).step_by(ROUND as usize) {
                let sums = &mut sums[begin..];
                self.round(way, done, ROUND.min(times - done), &mut servers, sums)?;
                self.write_comparison(&servers)?;
                if self.terms.interrupted.load(Ordering::Relaxed) {
                    break 'ways;
                }
            }
        }
        println!("{}", compare::table(&sums));
        let mut status = CLEAN;
        for (target, trips) in &servers {
            for fault in trips.iter().filter_map(|trip| trip.fault.as_ref()) {
                println!("NOT FINISHED: {}: {fault}", target.name());
                status = FAULT;
            }
        }
        // What the others lose is what is to be seen, and no failure.
        let (ours, trips) = &servers[0];
        print!("{}: ", ours.name());
        Ok(status.max(self.verdict(trips)))
    }

    /// Some restarts of each server, with the same plan.
    fn round(
        &self,
        way: Way,
        done: u32,
        times: u32,
        servers: &mut [Compared],
        sums: &mut [Sum],
    ) -> Result<(), Fault> {
        for sum in sums {
            let of_name = |(target, _): &&mut Compared| target.name() == sum.server;
            let Some((target, trips)) = servers.iter_mut().find(of_name) else { continue };
            let mut terms = self.terms.clone();
            terms.starter.target = Arc::clone(target);
            terms.plan = Plan::mixed(self.heading.rate, self.heading.seed + u64::from(done));
            // No report of an earlier trip is to be taken for one of this.
            let directory = terms.starter.directory.join(target.name()).join(way.name());
            terms.starter.directory = directory.join(done.to_string());
            fs::create_dir_all(&terms.starter.directory).map_err(Fault::of("make a directory"))?;
            let mut say = |line: &str| eprintln!("{}: {line}", target.name());
            let trip = restarts::run(&terms, way, times, &mut say);
            sum.add(&trip);
            eprint!("{}", table::findings(&trip));
            trips.push(trip);
            if terms.interrupted.load(Ordering::Relaxed) {
                break;
            }
        }
        Ok(())
    }

    fn write_comparison(&self, servers: &[Compared]) -> Result<(), Fault> {
        let of_server = |(target, trips): &Compared| {
            let heading = Heading { target: target.name().to_owned(), ..self.heading.clone() };
            results::restarts(&heading, trips)
        };
        let all: Value = servers.iter().map(of_server).collect();
        let path = self.out.join("compare.json");
        fs::write(&path, format!("{all:#}\n"))
            .map_err(Fault::of(&format!("write {}", path.display())))
    }

    fn drain(&self) -> Result<u8, Fault> {
        let shutdown = drain::run(&self.terms);
        print!("{}", shutdown.text());
        let trips = [shutdown.trip];
        self.write("drain", &results::restarts(&self.heading, &trips), &trips)?;
        Ok(self.verdict(&trips))
    }

    fn write(&self, name: &str, json: &Value, trips: &[Trip]) -> Result<(), Fault> {
        let title = format!(
            "{}, {} quick requests a second, with paused, slow and streaming clients beside them{}",
            self.heading.target,
            self.heading.rate,
            self.heading.user.map_or(String::new(), |user| format!(", as user {user}")),
        );
        let stem = self.out.join(format!("{name}-{}", self.heading.target));
        let texts = [
            (stem.with_extension("json"), format!("{json:#}\n")),
            (stem.with_extension("svg"), picture::restarts(&title, trips)),
        ];
        for (path, text) in texts {
            fs::write(&path, text).map_err(Fault::of(&format!("write {}", path.display())))?;
        }
        Ok(())
    }

    /// Says how it went in one line, and returns the exit status.
    fn verdict(&self, trips: &[Trip]) -> u8 {
        let out = self.out.display();
        if let Some(fault) = trips.iter().find_map(|trip| trip.fault.as_ref()) {
            println!("NOT FINISHED: {fault}\nresults so far are in {out}");
            return FAULT;
        }
        let (losses, differences) = trips.iter().fold((0, 0), |(losses, differences), trip| {
            (losses + trip.losses(), differences + trip.all_differences().len())
        });
        let gaps: u64 = trips.iter().map(Trip::gap_connections).sum();
        println!("lost: {losses}; ledgers: {differences} differences; gap: {gaps}; see {out}");
        if trips.iter().all(Trip::is_clean) { CLEAN } else { LOST }
    }
}

/// A server and its trips so far.
type Compared = (Arc<dyn Target>, Vec<Trip>);

fn peer(name: &str) -> Arc<dyn Target> {
    Arc::new(Peer { name: name.to_owned(), script: root().join(PEERS) })
}

fn ways(matches: &ArgMatches) -> Vec<Way> {
    let names = matches.get_many::<String>("ways").into_iter().flatten();
    names.filter_map(|name| Way::named(name)).collect()
}

impl Drop for Site {
    fn drop(&mut self) {
        // What cannot be removed is in the directory for such things.
        let _removed = fs::remove_dir_all(&self.terms.starter.directory);
    }
}

/// Set by SIGINT and SIGTERM: the servers are ended and the results written before we go. A second
/// one of them ends us at once.
fn interruption() -> io::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_default(signal, Arc::clone(&flag))?;
        flag::register(signal, Arc::clone(&flag))?;
    }
    Ok(flag)
}

/// The program of ebbtide; for another user its own copy, for the tree may be closed to others.
fn binary(matches: &ArgMatches, user: Option<u32>, directory: &Path) -> Result<PathBuf, Fault> {
    let binary = match matches.get_one::<PathBuf>("binary") {
        Some(binary) => std::path::absolute(binary).map_err(Fault::of("find the server"))?,
        None => built()?,
    };
    if user.is_none() {
        return Ok(binary);
    }
    let copy = directory.join("server");
    fs::copy(&binary, &copy).map_err(Fault::of(&format!("copy {}", binary.display())))?;
    Ok(copy)
}

/// The server's release, built by the cargo that runs us.
fn built() -> Result<PathBuf, Fault> {
    let build = ["build", "--release", "-p", "ebbtide"];
    if let Some(cargo) = env::var_os("CARGO") {
        let mut cargo = Process::new(cargo);
        cargo.args(build).current_dir(root()).stdin(Stdio::null());
        let status = cargo.status().map_err(Fault::of("run cargo"))?;
        if !status.success() {
            return Err(Fault("ebbtide does not build".to_owned()));
        }
    }
    let find = || -> io::Result<PathBuf> {
        let own = env::current_exe()?;
        let target = own.parent().and_then(Path::parent).unwrap_or(&own);
        target.join("release").join("ebbtide").canonicalize()
    };
    find().map_err(|_| Fault(format!("there is no server: run cargo {}", build.join(" "))))
}

/// The repository's.
fn root() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}

/// Restarts of a server before it is the next one's turn: five servers take less than a minute.
const ROUND: u32 = 2;

/// What starts other servers.
const PEERS: &str = "loadtest/peers/run";

const OUT: &str = "loadtest/results";
