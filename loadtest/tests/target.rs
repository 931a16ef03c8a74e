//! A server that is not ebbtide, keeps no ledger and knows no graceful end, as a target.

mod bad;

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use loadtest::books::Books;
use loadtest::ebbtide::Ebbtide;
use loadtest::field::Terms;
use loadtest::instance::Starter;
use loadtest::kind::Routes;
use loadtest::restarts::{self, Trip, Witness};
use loadtest::schedule::Plan;
use loadtest::table;
use loadtest::target::{Fault, Launch, Note, Seat, Target, Way};

/// This very program, told to serve.
#[derive(Debug)]
struct Plain;

impl Target for Plain {
    fn name(&self) -> &'static str {
        "plain"
    }

    fn routes(&self) -> Routes {
        Ebbtide { binary: PathBuf::new() }.routes()
    }

    fn ways(&self) -> &[Way] {
        &[Way::StopStart]
    }

    fn launch(&self, seat: &Seat) -> Launch {
        let arguments = ["--exact", "stands_in_for_a_server", "--nocapture"];
        Launch {
            program: std::env::current_exe().unwrap(),
            args: arguments.map(str::to_owned).to_vec(),
            env: vec![("LISTEN", seat.address.to_string())],
        }
    }

    fn note(&self, line: &str) -> Note {
        if line == "serving" { Note::Ready } else { Note::Other }
    }

    fn has_report(&self) -> bool {
        false
    }

    fn books(&self, _report: &str) -> Result<Books, String> {
        Err("there is none".to_owned())
    }
}

/// What a run has told while it lasted.
#[derive(Default)]
struct Kept {
    lines: Vec<String>,
    trips: Vec<Trip>,
}

impl Witness for Kept {
    fn say(&mut self, line: &str) {
        self.lines.push(line.to_owned());
    }

    fn keep(&mut self, so_far: Trip) -> Result<(), Fault> {
        self.trips.push(so_far);
        Ok(())
    }
}

/// A witness that cannot keep anything.
struct Full;

impl Witness for Full {
    fn say(&mut self, _line: &str) {}

    fn keep(&mut self, _so_far: Trip) -> Result<(), Fault> {
        Err(Fault("no space left".to_owned()))
    }
}

/// Not a test: run by [`Plain`], it serves until it is killed.
#[test]
fn stands_in_for_a_server() {
    let Ok(address) = std::env::var("LISTEN") else { return };
    bad::start(TcpListener::bind(address).unwrap(), bad::well);
    eprintln!("serving");
    loop {
        std::thread::park();
    }
}

fn terms(pause: Duration) -> Terms {
    let starter = Starter {
        target: Arc::new(Plain),
        user: None,
        directory: env!("CARGO_TARGET_TMPDIR").into(),
        epoch: Instant::now(),
        start_max: Duration::from_secs(10),
        stop_max: Duration::from_secs(10),
    };
    Terms {
        starter,
        plan: Plan::mixed(200, 3),
        threads: 2,
        patience: Duration::from_secs(10),
        pause,
        interrupted: Arc::default(),
    }
}

#[test]
fn a_run_whose_results_cannot_be_kept_ends() {
    let trip = restarts::run(&terms(Duration::from_millis(50)), Way::StopStart, 100, &mut Full);
    assert_eq!(trip.fault, Some(Fault("no space left".to_owned())));
    assert_eq!(trip.restarts.len(), 1);
}

#[test]
fn a_server_without_a_ledger_is_judged_by_its_clients() {
    // Slow requests are under way when the signal comes: such a server must lose them.
    let terms = terms(Duration::from_secs(1));
    let mut kept = Kept::default();
    let trip = restarts::run(&terms, Way::StopStart, 3, &mut kept);
    assert_eq!(trip.fault, None);
    assert_eq!(trip.restarts.len(), 3);
    assert!(trip.restarts.iter().all(|restart| restart.ledger.as_ref().unwrap().books.is_none()));
    assert_eq!(trip.all_differences(), [""; 0]);
    assert!(trip.losses() > 0 && !trip.is_clean(), "{}", table::trip(&trip));
    // What was kept meanwhile is what there was at that time.
    assert_eq!(kept.lines.len(), 3);
    assert_eq!(kept.trips.iter().map(|trip| trip.restarts.len()).collect::<Vec<_>>(), [1, 2]);
    let first = &kept.trips[0].restarts[0];
    assert_eq!(
        (first.signalled, first.exited),
        (trip.restarts[0].signalled, trip.restarts[0].exited)
    );
    assert!(kept.trips[1].losses() >= kept.trips[0].losses() && kept.trips[0].losses() > 0);
    // Each loss is named with its place in time.
    let text = table::trip(&trip);
    assert!(text.contains("lost: ") && text.contains("of the signal: connected"), "{text}");
}
