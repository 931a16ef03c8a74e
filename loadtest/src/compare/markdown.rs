//! The results as tables in Markdown: all servers at a glance, then each number with its spread.

use crate::compare::measure::Metric;
use crate::compare::samples::{Cell, Row, Samples};
use crate::table::put;

/// The whole file. `heading` is how and on what was measured, a line each.
pub fn page(heading: &[String], samples: &Samples) -> String {
    let mut text = String::from("# Servers side by side\n\n");
    for line in heading {
        put(&mut text, format_args!("- {line}\n"));
    }
    text.push_str("\n## At a glance\n\n");
    text.push_str(&glance(samples));
    text.push_str("\n## Pairs of the same round\n\n");
    text.push_str(&pairs(samples));
    text.push_str("\n## Who they are\n\n");
    text.push_str(&servers(samples));
    for metric in Metric::ALL.into_iter().filter(|metric| samples.has(*metric)) {
        text.push_str(&metric_table(metric, samples));
    }
    if !samples.notes.is_empty() {
        text.push_str("\n## To be known of these numbers\n\n");
        for note in &samples.notes {
            put(&mut text, format_args!("- {}\n", one_line(note)));
        }
    }
    text
}

/// Medians, a row for each server, also for those that are not there.
pub fn glance(samples: &Samples) -> String {
    let columns: Vec<(Metric, &str)> = Metric::ALL
        .into_iter()
        .filter(|metric| samples.has(*metric))
        .filter_map(|metric| Some((metric, metric.facts().brief?)))
        .collect();
    let mut text = String::from("| server |");
    for (_, brief) in &columns {
        put(&mut text, format_args!(" {brief} |"));
    }
    put(&mut text, format_args!("\n|---|{}\n", "---:|".repeat(columns.len())));
    for row in &samples.servers {
        put(&mut text, format_args!("| {} |", row.name));
        for (metric, _) in &columns {
            put(&mut text, format_args!(" {} |", median(samples.cell(row, *metric), *metric)));
        }
        text.push('\n');
    }
    text
}

/// The first server's CPU time over each other's within a round: the median, and the quartiles.
pub fn pairs(samples: &Samples) -> String {
    let metrics = [Metric::KeepAliveCpu, Metric::PipelinedCpu, Metric::ChurnCpu];
    let metrics: Vec<Metric> = metrics.into_iter().filter(|metric| samples.has(*metric)).collect();
    let Some((first, others)) = samples.servers.split_first().filter(|_| !metrics.is_empty())
    else {
        return "No CPU times were measured.\n".to_owned();
    };
    let mut text = format!("| {} over |", first.name);
    for metric in &metrics {
        put(&mut text, format_args!(" {} |", metric.facts().brief.unwrap_or_default()));
    }
    put(&mut text, format_args!("\n|---|{}\n", "---:|".repeat(metrics.len())));
    for row in others {
        put(&mut text, format_args!("| {} |", row.name));
        for metric in &metrics {
            match samples.ratio(row, *metric) {
                Some(ratio) => put(
                    &mut text,
                    format_args!(" {:.3} ({:.3} to {:.3}) |", ratio.median, ratio.low, ratio.high),
                ),
                None => put(
                    &mut text,
                    format_args!(" {} |", median(samples.cell(row, *metric), *metric)),
                ),
            }
        }
        text.push('\n');
    }
    text
}

fn median(cell: Cell, metric: Metric) -> String {
    match cell {
        Cell::Value(spread) => number(spread.median, metric),
        Cell::Failed => "failed".to_owned(),
        Cell::Absent => "not installed".to_owned(),
        Cell::None => "–".to_owned(),
    }
}

fn number(value: f64, metric: Metric) -> String {
    if value.is_infinite() {
        return "cannot keep up".to_owned();
    }
    format!("{value:.*}", metric.facts().digits)
}

fn servers(samples: &Samples) -> String {
    let mut text = String::from("| server | what it is | header fields, kept | closed | |\n");
    text.push_str("|---|---|---:|---:|---|\n");
    for Row { name, what, absent, fields, failed } in &samples.servers {
        let ours = samples.servers.first().map_or([None; 2], |first| first.fields);
        let [kept, closed] = [0, 1].map(|at| match (fields[at], ours[at]) {
            (None, _) => "–".to_owned(),
            (Some(count), Some(ours)) if count != ours => format!("{count} (unequal)"),
            (Some(count), _) => count.to_string(),
        });
        // Why is at the end of the page.
        let failures = failed.keys().map(|measure| format!("failed: {}", measure.name()));
        let remarks: Vec<String> = absent.iter().cloned().chain(failures).collect();
        let remarks = one_line(&remarks.join("; "));
        put(&mut text, format_args!("| {name} | {what} | {kept} | {closed} | {remarks} |\n"));
    }
    text
}

/// One number of all servers, and the first one's share of each other's.
fn metric_table(metric: Metric, samples: &Samples) -> String {
    let facts = metric.facts();
    let mut text = format!("\n## {}, {}\n\n", facts.title, facts.unit);
    let first = samples.servers.first().map_or("", |row| row.name);
    put(
        &mut text,
        format_args!(
            "| server | median | quartiles | rounds | {first} / it, paired | quartiles |\n\
             |---|---:|---:|---:|---:|---:|\n"
        ),
    );
    for row in &samples.servers {
        let cell = samples.cell(row, metric);
        put(&mut text, format_args!("| {} | {} |", row.name, median(cell, metric)));
        let Cell::Value(spread) = cell else {
            text.push_str(" | | | |\n");
            continue;
        };
        let (low, high) = (number(spread.low, metric), number(spread.high, metric));
        put(&mut text, format_args!(" {low} to {high} | {} |", spread.count));
        match samples.ratio(row, metric).filter(|_| row.name != first) {
            Some(ratio) => put(
                &mut text,
                format_args!(
                    " **{:.3}** | {:.3} to {:.3} |\n",
                    ratio.median, ratio.low, ratio.high
                ),
            ),
            None => text.push_str(" | |\n"),
        }
    }
    text
}

/// What a server said may have any number of lines, and bars.
fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::samples::tests::samples;

    #[test]
    fn a_missing_server_stays_in_every_table() {
        let page = page(&["two cores".to_owned()], &samples());
        assert_eq!(page.matches("| lost | not installed |").count(), 4, "{page}");
        assert!(page.contains("| lost | a server | 5 | – | not installed: install it |"));
        assert!(page.contains("| bad | failed |"));
        assert!(page.contains("- bad, keep_alive, round 1: it ended\n"));
    }

    #[test]
    fn a_number_has_its_spread_and_our_share_of_it() {
        let page = page(&[], &samples());
        assert!(page.contains("| ebbtide | 9.00 | 7.50 to 10.50 | 2 | | |\n"), "{page}");
        let slow = "| slow | 18.00 | 15.00 to 21.00 | 2 | **0.500** | 0.500 to 0.500 |\n";
        assert!(page.contains(slow), "{page}");
        assert!(page.contains("| slow | 0.500 (0.500 to 0.500) |\n"), "{page}");
        assert!(!page.contains("churn"), "what nobody has is no table");
        let page = page.split("99 % latency at 80 % load").nth(1).unwrap();
        assert!(page.contains("| slow | cannot keep up |"), "{page}");
    }

    #[test]
    fn work_that_is_not_equal_is_pointed_out() {
        let mut samples = samples();
        samples.servers[1].fields = [Some(4), Some(4)];
        assert!(page(&[], &samples).contains("| slow | a server | 4 (unequal) | 4 |"));
    }

    #[test]
    fn what_a_server_said_does_not_break_a_table() {
        assert_eq!(one_line("a |\n  b\n"), "a \\| b");
    }
}
