//! The timeline as a picture: a lane for each restart, time from its signal to the right, the
//! colour of a place the longest latency of the requests that were due then. Losses lie on top, and
//! refusals where there should be none.

use std::time::Duration;

use crate::outcome::{End, Outcome, Tally};
use crate::restarts::{Restart, Trip};
use crate::table::put;

/// Draws all trips of a run, one below the other.
pub fn restarts(title: &str, trips: &[&Trip]) -> String {
    let mut body = String::new();
    let mut top = 76.0;
    for trip in trips {
        top = panel(&mut body, trip, top);
    }
    legend(&mut body, top);
    let height = top + 44.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" \
         role=\"img\">\n<title>Losses and latency around each restart of a server under load\
         </title>\n\
         <style>text {{ font: 13px system-ui, 'DejaVu Sans', sans-serif; fill: #e6edf3 }} \
         .dim {{ fill: #9fb3c0; font-size: 12px }}</style>\n\
         <rect width=\"{WIDTH}\" height=\"{height:.0}\" rx=\"12\" fill=\"#10212b\"/>\n\
         <text x=\"{LEFT}\" y=\"30\">{title}</text>\n\
         <text class=\"dim\" x=\"{LEFT}\" y=\"50\">Each lane is one restart; its signal is at 0 s. \
         Colour: the longest latency of the requests due in those {BIN_MS} ms, from when they were \
         due.</text>\n{body}</svg>\n"
    )
}

/// Returns where the next one begins.
fn panel(svg: &mut String, trip: &Trip, top: f64) -> f64 {
    let tally = Tally::of(&trip.ends);
    put(
        svg,
        format_args!(
            "<text x=\"{LEFT}\" y=\"{:.1}\">{}: {} restarts, {} requests, {} lost, {} refused, \
             {} in the gap</text>\n",
            top + 14.0,
            trip.way.name(),
            trip.restarts.len(),
            tally.all(),
            trip.losses(),
            tally.count(Outcome::Refused),
            trip.gap_connections(),
        ),
    );
    let lanes = trip.restarts.len().max(1);
    #[allow(clippy::cast_precision_loss, reason = "a few hundred")]
    let height = (LANES_HEIGHT / lanes as f64).clamp(3.0, 18.0);
    let mut y = top + 22.0;
    let begin = y;
    for (at, restart) in trip.restarts.iter().enumerate() {
        let next = trip.restarts.get(at + 1).map_or(Duration::MAX, |next| next.signalled);
        lane(svg, trip, restart, next, y, height);
        y += height;
    }
    let zero = x(0.0);
    put(
        svg,
        format_args!(
            "<line x1=\"{zero:.1}\" x2=\"{zero:.1}\" y1=\"{:.1}\" y2=\"{y:.1}\" \
             stroke=\"#e6edf3\" stroke-width=\"1\"/>\n",
            begin - 3.0
        ),
    );
    let mut second = 0.0;
    while second <= AFTER {
        put(
            svg,
            format_args!(
                "<text class=\"dim\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{second} s\
                 </text>\n",
                x(second),
                y + 15.0
            ),
        );
        second += 1.0;
    }
    y + 34.0
}

/// What was due, or lost, until the next signal.
fn lane(svg: &mut String, trip: &Trip, restart: &Restart, next: Duration, y: f64, height: f64) {
    let signal = restart.signalled.as_secs_f64();
    let mut longest: Vec<Option<Duration>> = vec![None; BINS];
    let mut refused = [false; BINS];
    let since = |at: Duration| at.as_secs_f64() - signal;
    for end in trip.ends.iter().filter(|end| !end.kind.is_slow() && end.planned < next) {
        let Some(bin) = bin(since(end.planned)) else { continue };
        if end.outcome == Outcome::Refused {
            refused[bin] = true;
        } else if end.outcome.is_answered() {
            longest[bin] = longest[bin].max(Some(end.latency()));
        }
    }
    let inner = (height - 0.6).max(2.0);
    let colours: Vec<Option<&str>> = longest
        .iter()
        .zip(refused)
        .map(|(longest, refused)| longest.map(colour).or(refused.then_some(REFUSED)))
        .collect();
    let mut at = 0;
    for same in colours.chunk_by(|one, next| one == next) {
        let (left, width) = (LEFT + across(at), across(same.len()) + 0.05);
        at += same.len();
        if let Some(colour) = same[0] {
            put(
                svg,
                format_args!(
                    "<rect x=\"{left:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" \
                     height=\"{inner:.1}\" fill=\"{colour}\"/>\n"
                ),
            );
        }
    }
    if let Some(exited) = restart.exited.map(since).filter(|at| *at < AFTER) {
        put(
            svg,
            format_args!(
                "<rect x=\"{:.1}\" y=\"{y:.1}\" width=\"1.6\" height=\"{inner:.1}\" \
                 fill=\"#e6edf3\"/>\n",
                x(exited)
            ),
        );
    }
    for (at, end) in trip.ends.iter().enumerate().filter(|(_, end)| trip.is_failure(end)) {
        let is_gap = trip.gaps.iter().any(|(of, _)| *of == at);
        let when = since(end.ended);
        if bin(when).is_some() && end.ended < next {
            dot(svg, end, x(when), y + height / 2.0, is_gap);
        }
    }
}

fn dot(svg: &mut String, end: &End, x: f64, y: f64, is_gap: bool) {
    let colour = if is_gap { GAP } else { LOST };
    let (kind, outcome) = (end.kind.name(), end.outcome.name());
    put(
        svg,
        format_args!(
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\" stroke=\"#10212b\">\
             <title>{kind} {} {outcome}</title></circle>\n",
            end.id
        ),
    );
}

fn legend(svg: &mut String, y: f64) {
    let mut at = LEFT;
    let steps = STEPS.map(|(_, name, colour)| (name, colour));
    let marks =
        [("refused only", REFUSED), ("old instance gone", "#e6edf3"), ("lost", LOST), ("gap", GAP)];
    for (name, colour) in steps.into_iter().chain(marks) {
        put(
            svg,
            format_args!(
                "<rect x=\"{at:.1}\" y=\"{:.1}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\
                 <text class=\"dim\" x=\"{:.1}\" y=\"{:.1}\">{name}</text>\n",
                y + 10.0,
                at + 17.0,
                y + 20.5
            ),
        );
        #[allow(clippy::cast_precision_loss, reason = "a short word")]
        let width = name.chars().count() as f64 * 6.6;
        at += 34.0 + width;
    }
}

fn colour(latency: Duration) -> &'static str {
    let step = STEPS.iter().find(|(below, ..)| latency < *below);
    step.map_or(STEPS[STEPS.len() - 1].2, |(.., colour)| colour)
}

fn bin(seconds: f64) -> Option<usize> {
    if !(BEFORE..AFTER).contains(&seconds) {
        return None;
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in range")]
    let bin = ((seconds - BEFORE) / (AFTER - BEFORE) * BINS_F) as usize;
    Some(bin.min(BINS - 1))
}

/// The width of so many bins.
fn across(bins: usize) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "below a thousand")]
    let bins = bins as f64;
    bins * BIN_WIDTH
}

fn x(seconds: f64) -> f64 {
    LEFT + (seconds - BEFORE) / (AFTER - BEFORE) * (RIGHT - LEFT)
}

/// Latencies below the first, and how they are shown; the last is all above.
const STEPS: [(Duration, &str, &str); 6] = [
    (Duration::from_millis(2), "under 2 ms", "#1d3b4a"),
    (Duration::from_millis(5), "5 ms", "#1b5f6b"),
    (Duration::from_millis(20), "20 ms", "#1b9e8f"),
    (Duration::from_millis(100), "100 ms", "#8fbf5a"),
    (Duration::from_secs(1), "1 s", "#d2b422"),
    (Duration::MAX, "more", "#e8894a"),
];

const REFUSED: &str = "#4a3a5e";
const LOST: &str = "#ff4d4d";
const GAP: &str = "#bc8cff";

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 24.0;
const RIGHT: f64 = 976.0;

/// All lanes of a trip together are at most so high, if they can be.
const LANES_HEIGHT: f64 = 240.0;

/// Seconds from the signal that are shown.
const BEFORE: f64 = -0.5;
const AFTER: f64 = 6.0;

const BIN_MS: u32 = 25;
const BINS: usize = 260;
const BINS_F: f64 = 260.0;
const BIN_WIDTH: f64 = (RIGHT - LEFT) / BINS_F;
