//! One shutdown under load and beside idle clients, explained.

use std::time::Duration;

use crate::field::{Field, Terms};
use crate::idle::{self, Habit, Story, World};
use crate::outcome::{End, Tally};
use crate::restarts::{Mark, Trip, conclude};
use crate::table::{self, put};
use crate::target::{Fault, Way};

/// What was seen.
#[derive(Debug)]
pub struct Shutdown {
    /// The load's part, as of a restart without a successor.
    pub trip: Trip,
    /// The idle clients' part.
    pub stories: Vec<Story>,
}

/// Starts a server, loads it, stops it, and goes on asking for a moment.
pub fn run(terms: &Terms) -> Shutdown {
    let way = Way::StopStart;
    let mut field = match Field::new(terms, way) {
        Ok(field) => field,
        Err(fault) => return Shutdown { trip: Trip::not_begun(way, fault), stories: Vec::new() },
    };
    let mut stories = Vec::new();
    let fault = drive(&mut field, terms, &mut stories).err();
    let trip = conclude(&mut field, way, &[Mark { old: 0, successor: None }], fault);
    Shutdown { trip, stories }
}

fn drive(field: &mut Field, terms: &Terms, stories: &mut Vec<Story>) -> Result<(), Fault> {
    field.start_instance()?;
    field.start_load()?;
    let world = World {
        to: field.address(),
        routes: terms.starter.target.routes(),
        epoch: terms.starter.epoch,
        signal: field.now() + terms.pause,
    };
    let mut clients = Vec::new();
    for (id, habit) in (FIRST_ID..).step_by(2).zip(Habit::ALL) {
        let started = idle::start(world, habit, id).map_err(Fault::of("start a thread"))?;
        clients.push(started);
    }
    field.gather(terms.pause)?;
    field.stop_instance(0)?;
    field.gather(AFTER)?;
    field.stop_load()?;
    for client in clients {
        let story = client.join().map_err(|_| Fault("an idle client panicked".to_owned()))?;
        let story = story.map_err(Fault::of("be an idle client"))?;
        for event in &story.events {
            field.note(event.clone())?;
        }
        stories.push(story);
    }
    Ok(())
}

impl Shutdown {
    /// The explanation.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let Some(restart) = self.trip.restarts.first() else {
            return self.trip.fault.as_ref().map_or(text, ToString::to_string) + "\n";
        };
        let since = |at: Duration| at.as_secs_f64() - restart.signalled.as_secs_f64();
        let said = |at: Option<Duration>| {
            at.map_or("never".to_owned(), |at| format!("{:.3} s", since(at)))
        };
        put(
            &mut text,
            format_args!(
                "signal after {:.3} s; listeners closed {} later, process gone {} later with \
                 status {}\n",
                restart.signalled.as_secs_f64(),
                said(restart.closed),
                said(restart.exited),
                restart.status.map_or("none".to_owned(), |status| status.to_string()),
            ),
        );
        if let Some(books) = restart.ledger.as_ref().and_then(|ledger| ledger.books.as_ref()) {
            let named = |map: &std::collections::BTreeMap<String, u64>| {
                let counts = map.iter().filter(|(_, count)| **count > 0);
                counts.map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
            };
            let took = |name: &str| Some(format!("{name} {:.3} s", books.phases.get(name)?));
            let phases: Vec<String> = PHASES.into_iter().filter_map(took).collect();
            put(
                &mut text,
                format_args!(
                    "the server's report: {}\n  requests: {} begun: {}\n  connections: {} opened: \
                     {}\n",
                    phases.join(", "),
                    books.begun,
                    named(&books.finished),
                    books.opened,
                    named(&books.closed),
                ),
            );
        }
        let (before, after): (Vec<End>, Vec<End>) =
            self.trip.ends.iter().cloned().partition(|end| end.ended < restart.signalled);
        put(&mut text, format_args!("\nbefore the signal\n{}", table::by_kind(&before)));
        put(&mut text, format_args!("\nafter the signal\n{}\n", table::by_kind(&after)));
        for story in &self.stories {
            let end = story.ended.map_or("it was never closed".to_owned(), |(at, how)| {
                format!("{how} {:.3} s after the signal", since(at))
            });
            let name = story.habit.name();
            put(&mut text, format_args!("{name}: got {}, then {end}\n", story.got));
        }
        put(&mut text, format_args!("{}", table::findings(&self.trip)));
        let tally = Tally::of(&self.trip.ends);
        let verdict = if self.trip.is_clean() { "and the ledgers are equal" } else { "see above" };
        let losses = self.trip.losses();
        put(&mut text, format_args!("{} requests, {losses} lost, {verdict}\n", tally.all()));
        text
    }
}

/// Far from those of the plan.
const FIRST_ID: u64 = 1 << 61;

/// The load goes on for so long when the server is gone.
const AFTER: Duration = Duration::from_millis(500);

/// The phases of ebbtide's shutdown, in their order.
const PHASES: [&str; 4] = ["lame_duck", "draining", "cancelling", "cleaning_up"];
