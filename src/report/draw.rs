//! A report as text for a terminal: at most 80 columns, everything that came from outside visible.
//!
//! One time axis for all bars, from the signal to the end: phases, the slowest requests, those that
//! were lost, the hooks. A bar's length is exact to an eighth of a column, its place to a half.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::read::{Seconds, Written, WrittenHook, WrittenLine};
use crate::ledger::{ConnectionOutcome, RequestOutcome};
use crate::logging::visible;

/// Whether escape sequences may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// For files and pipes.
    Plain,
    /// For a terminal.
    Colour,
}

/// Draws a report.
pub fn draw(report: &Written, style: Style) -> String {
    let mut page = Page { style, text: String::new(), axis: Axis::to(report.duration_seconds) };
    headline(&mut page, report);
    phases(&mut page, report);
    page.requests("Slowest requests", Ink::Bold, &report.slowest, SLOWEST_DRAWN, 0);
    hooks(&mut page, report);
    requests(&mut page, report);
    connections(&mut page, report);
    page.requests("Lost requests", Ink::Red, &report.lost, LOST_DRAWN, report.lost_unnamed);
    page.text
}

fn headline(page: &mut Page, report: &Written) {
    let title = format!("Shutdown by {} at {}", report.reason, report.started_at);
    page.line(Ink::Bold, &title);
    let (took, budget, left) =
        (report.duration_seconds.0, report.budget_seconds.0, report.budget_left_seconds.0);
    page.line(
        Ink::Plain,
        &format!("  took {took:.3} s of a budget of {budget:.3} s, {left:.3} s were left"),
    );
    let status = report.exit_status;
    let ink = if status == 0 { Ink::Plain } else { Ink::Red };
    page.line(ink, &format!("  exit status {status}: {}", meaning(report)));
}

/// The exit status in words.
fn meaning(report: &Written) -> String {
    match report.exit_status {
        0 => "no request was lost".to_owned(),
        1 => "a thread of the server was lost by a fault of its own".to_owned(),
        3 if report.other_work > 0 => "requests were refused or cut, or other work".to_owned(),
        3 if report.responses_undelivered > 0 => {
            format!("responses that no client has acknowledged: {}", report.responses_undelivered)
        }
        3 => "the shutdown refused or cut at least one request or connection".to_owned(),
        4 => "a clean-up hook failed or overran its limit".to_owned(),
        130 => "ended at once by a repeated SIGINT".to_owned(),
        131 => "ended at once by SIGQUIT".to_owned(),
        143 => "ended at once by a repeated SIGTERM".to_owned(),
        status @ 129.. => format!("ended at once by signal {}", status - 128),
        _ => "not a status of this version".to_owned(),
    }
}

fn phases(page: &mut Page, report: &Written) {
    page.heading("Phases", Ink::Bold);
    page.axis();
    for phase in report.phases.iter().take(PHASES_DRAWN) {
        let (start, took) = (phase.start_seconds.0, phase.seconds.0);
        page.bar(&phase.name, start, start + took, took);
    }
}

fn hooks(page: &mut Page, report: &Written) {
    if report.hooks.is_empty() {
        return;
    }
    page.heading("Clean-up hooks", Ink::Bold);
    for hook in report.hooks.iter().take(HOOKS_DRAWN) {
        let start = hook.start_seconds.unwrap_or_else(|| stage_start(report, hook)).0;
        page.bar(&hook.name, start, start + hook.seconds.0, hook.seconds.0);
        let mut detail = format!("{}: {}", hook.stage, hook.outcome);
        if let Some(limit) = hook.limit_seconds {
            let written = write!(detail, ", limit {:.3} s", limit.0);
            written.expect("writing to a string cannot fail");
        }
        if let Some(error) = &hook.error {
            detail = format!("{detail}: {error}");
        }
        page.line(Ink::Plain, &format!("    {detail}"));
    }
    page.more(report.hooks.len().saturating_sub(HOOKS_DRAWN) as u64);
}

/// When a hook's stage began: hooks of a stage run side by side, the stages one after the other.
fn stage_start(report: &Written, hook: &WrittenHook) -> Seconds {
    let phase = report.phases.iter().find(|phase| phase.name == "cleaning_up");
    let mut start = phase.map_or(report.duration_seconds.0, |phase| phase.start_seconds.0);
    let mut stage = report.hooks.first().map_or("", |first| &first.stage);
    let mut longest: f64 = 0.0;
    for other in &report.hooks {
        if other.stage != stage {
            start += std::mem::take(&mut longest);
            stage = &other.stage;
        }
        if stage == hook.stage {
            break;
        }
        longest = longest.max(other.seconds.0);
    }
    Seconds(start)
}

fn requests(page: &mut Page, report: &Written) {
    let requests = &report.requests;
    page.heading("Requests", Ink::Bold);
    let order = RequestOutcome::ALL.map(RequestOutcome::name);
    page.counts(&requests.finished, &order);
    let mut parts: Vec<String> = order
        .iter()
        .map(|name| format!("{} {name}", requests.finished.get(*name).copied().unwrap_or(0)))
        .collect();
    if requests.in_flight > 0 {
        parts.push(format!("{} in flight", requests.in_flight));
    }
    let sum = sum(&requests.finished) + u128::from(requests.in_flight);
    let sign = if sum == u128::from(requests.begun) { "=" } else { "≠" };
    page.line(Ink::Plain, &format!("  {} begun {sign} {}", requests.begun, parts.join(" + ")));
    let (refused, cut) = (report.refused_in_shutdown, report.cut_in_shutdown);
    if report.other_work > 0 {
        page.line(Ink::Red, &format!("  other work that did not end: {}", report.other_work));
    }
    if refused > 0 || cut > 0 {
        page.line(Ink::Plain, &format!("  in the shutdown: {refused} refused, {cut} cut"));
    }
    let rejected = requests.rejected.iter().filter(|(_, count)| **count > 0);
    let rejected: Vec<String> =
        rejected.map(|(code, count)| format!("{count} answered {code}")).collect();
    if !rejected.is_empty() {
        page.line(Ink::Plain, &format!("  never a request: {}", rejected.join(", ")));
    }
}

fn connections(page: &mut Page, report: &Written) {
    let connections = &report.connections;
    page.heading("Connections", Ink::Bold);
    let order = ConnectionOutcome::ALL.map(ConnectionOutcome::name);
    page.counts(&connections.closed, &order);
    if connections.open > 0 {
        page.count("open", connections.open);
    }
    let closed = sum(&connections.closed);
    let sum = closed + u128::from(connections.open);
    let sign = if sum == u128::from(connections.opened) { "=" } else { "≠" };
    let (opened, active) = (connections.opened, report.active_connections_at_shutdown);
    page.line(
        Ink::Plain,
        &format!("  {opened} opened {sign} {closed} closed; {active} open at the signal"),
    );
    page.line(Ink::Plain, &format!("  {} late bytes", report.late_bytes));
}

fn sum(counts: &BTreeMap<String, u64>) -> u128 {
    counts.values().copied().map(u128::from).sum()
}

/// The text in the making.
struct Page {
    style: Style,
    text: String,
    axis: Axis,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ink {
    Plain,
    Bold,
    Red,
}

impl Page {
    /// One line, cut to the width of the page.
    fn line(&mut self, ink: Ink, text: &str) {
        let text = fit(text, COLUMNS);
        let (begin, end) = match (self.style, ink) {
            (Style::Plain, _) | (_, Ink::Plain) => ("", ""),
            (Style::Colour, Ink::Bold) => ("\x1b[1m", "\x1b[0m"),
            (Style::Colour, Ink::Red) => ("\x1b[1;31m", "\x1b[0m"),
        };
        self.text.push_str(begin);
        self.text.push_str(text.trim_end());
        self.text.push_str(end);
        self.text.push('\n');
    }

    fn heading(&mut self, text: &str, ink: Ink) {
        self.text.push('\n');
        self.line(ink, text);
    }

    /// A label, a bar and a number of seconds.
    fn bar(&mut self, label: &str, start: f64, end: f64, seconds: f64) {
        let (label, bar) = (padded(label, LABEL_COLUMNS), self.axis.bar(start, end));
        self.line(Ink::Plain, &format!("  {label} {bar} {seconds:>9.3} s"));
    }

    fn axis(&mut self) {
        let (numbers, ruler) = self.axis.drawn();
        let blank = " ".repeat(LABEL_COLUMNS + 3);
        self.line(Ink::Plain, &format!("{blank}{numbers}"));
        self.line(Ink::Plain, &format!("{blank}{ruler}"));
    }

    fn requests(&mut self, title: &str, ink: Ink, all: &[WrittenLine], max: usize, unnamed: u64) {
        if all.is_empty() && unnamed == 0 {
            return;
        }
        self.heading(title, ink);
        for line in all.iter().take(max) {
            let end = line.ended_seconds.0;
            self.bar(&line.outcome, end - line.age_seconds.0, end, line.age_seconds.0);
            let from = format!(" from {}, ", fit(&line.peer, PEER_COLUMNS));
            let why = format!("waited for {}", line.waited_for);
            let room = COLUMNS - 4 - columns(&from);
            let target = fit(&format!("{} {}", line.method, line.path), room);
            if columns(&target) + columns(&visible(&why)) <= room {
                self.line(Ink::Plain, &format!("    {target}{from}{why}"));
            } else {
                self.line(Ink::Plain, &format!("    {target}{from}"));
                self.line(Ink::Plain, &format!("    {why}"));
            }
        }
        self.more((all.len().saturating_sub(max) as u64).saturating_add(unnamed));
    }

    fn more(&mut self, count: u64) {
        if count > 0 {
            self.line(Ink::Plain, &format!("  and {count} more"));
        }
    }

    /// The rows that are not zero: the known names in their order, then others.
    fn counts(&mut self, counts: &BTreeMap<String, u64>, order: &[&str]) {
        let known = order.iter().filter_map(|name| counts.get_key_value(*name));
        let others = counts.iter().filter(|(name, _)| !order.contains(&name.as_str()));
        for (name, count) in known.chain(others.take(OTHERS_DRAWN)).filter(|(_, n)| **n > 0) {
            self.count(name, *count);
        }
    }

    fn count(&mut self, name: &str, count: u64) {
        self.line(Ink::Plain, &format!("  {} {count:>12}", padded(name, COUNT_COLUMNS)));
    }
}

/// From the beginning of the shutdown to its end.
struct Axis {
    /// Above zero.
    seconds: f64,
}

impl Axis {
    fn to(end: Seconds) -> Axis {
        Axis { seconds: end.0.max(SHORTEST) }
    }

    /// Eighths of a column from the left, within the axis.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "clamped to a few hundred first"
    )]
    fn eighths(&self, at: f64) -> usize {
        let wide = (BAR_COLUMNS * 8) as f64;
        (at / self.seconds * wide).clamp(0.0, wide).round() as usize
    }

    /// As wide as the axis. What began before it begins with an arrow.
    fn bar(&self, start: f64, end: f64) -> String {
        let (from, to) = (self.eighths(start), self.eighths(end));
        let length = to.saturating_sub(from).max(1);
        let wide = length.div_ceil(8);
        let first = ((from + 4) / 8).min(BAR_COLUMNS - wide);
        let mut bar = " ".repeat(first);
        bar.extend(std::iter::repeat_n('█', length / 8));
        if !length.is_multiple_of(8) {
            bar.push(PARTS[length % 8]);
        }
        if start < 0.0 {
            bar = bar.replacen(['█', PARTS[length % 8]], "◂", 1);
        }
        bar.extend(std::iter::repeat_n(' ', BAR_COLUMNS - first - wide));
        bar
    }

    /// The numbers and the ruler.
    fn drawn(&self) -> (String, String) {
        let (step, decimals) = self.step();
        let (mut numbers, mut ruler) = (String::new(), String::new());
        for tick in 0..=TICKS_MAX {
            let at = step * f64::from(tick);
            let column = (self.eighths(at) / 8).min(BAR_COLUMNS - 1);
            if at > self.seconds || (tick > 0 && column < columns(&numbers) + 1) {
                break;
            }
            numbers = format!("{numbers:<column$}{at:.decimals$} s");
            ruler.extend(std::iter::repeat_n('─', column - columns_of_rule(&ruler)));
            ruler.push('┬');
        }
        ruler.extend(std::iter::repeat_n('─', BAR_COLUMNS - columns_of_rule(&ruler)));
        (numbers, ruler)
    }

    /// The distance of two ticks, and its decimals.
    fn step(&self) -> (f64, usize) {
        for exponent in -4_i16..=9 {
            for unit in [1.0, 2.0, 5.0] {
                let step = unit * 10_f64.powi(exponent.into());
                if self.seconds / step <= f64::from(TICKS_MAX) {
                    return (step, usize::from(exponent.min(0).unsigned_abs()));
                }
            }
        }
        (self.seconds, 0)
    }
}

/// A ruler's characters take one column each.
fn columns_of_rule(ruler: &str) -> usize {
    ruler.chars().count()
}

/// Columns that a terminal gives to the text at most: what is not ASCII may be wide.
fn columns(text: &str) -> usize {
    text.chars().map(width).sum()
}

fn width(c: char) -> usize {
    if c.is_ascii() || OURS.contains(&c) { 1 } else { 2 }
}

/// The text, visible, in at most so many columns; where something is left out stands an ellipsis.
fn fit(text: &str, room: usize) -> String {
    let text = visible(text);
    if columns(&text) <= room {
        return text.into_owned();
    }
    let mut left = room.saturating_sub(1);
    let kept = text.chars().take_while(|c| {
        let fits = width(*c) <= left;
        left = left.saturating_sub(width(*c));
        fits
    });
    kept.chain(['…']).collect()
}

/// As [`fit`], filled up with blanks.
fn padded(text: &str, room: usize) -> String {
    let text = fit(text, room);
    let blanks = " ".repeat(room.saturating_sub(columns(&text)));
    text + &blanks
}

/// Eighths of a column, by their number.
const PARTS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];

/// Characters of ours that are one column wide.
const OURS: [char; 14] = ['█', '▏', '▎', '▍', '▌', '▋', '▊', '▉', '◂', '─', '┬', '…', '≠', ' '];

const COLUMNS: usize = 80;
const LABEL_COLUMNS: usize = 18;
const BAR_COLUMNS: usize = 45;
const COUNT_COLUMNS: usize = 22;
/// What an IPv6 address with its port takes.
const PEER_COLUMNS: usize = 47;
const _: () = assert!(2 + LABEL_COLUMNS + 1 + BAR_COLUMNS + 1 + 9 + 2 <= COLUMNS);

/// A shutdown that took less is drawn on an axis of this length.
const SHORTEST: f64 = 1e-3;

const TICKS_MAX: u8 = 5;
const PHASES_DRAWN: usize = 20;
const SLOWEST_DRAWN: usize = 10;
const LOST_DRAWN: usize = 20;
const HOOKS_DRAWN: usize = 50;
const OTHERS_DRAWN: usize = 20;
