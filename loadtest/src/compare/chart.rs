//! A number of all servers as a picture: a bar for each, as long as its median, with a line from
//! quartile to quartile.

use crate::compare::measure::Metric;
use crate::compare::samples::{Cell, Samples};
use crate::table::put;

/// Draws it; every server has its line.
pub fn draw(metric: Metric, samples: &Samples, subtitle: &str) -> String {
    let facts = metric.facts();
    let cells: Vec<Cell> = samples.servers.iter().map(|row| samples.cell(row, metric)).collect();
    let longest = cells.iter().filter_map(|cell| match cell {
        Cell::Value(spread) => Some(spread.high).filter(|high| high.is_finite()),
        _ => None,
    });
    let longest = longest.fold(f64::MIN_POSITIVE, f64::max);
    let mut body = String::new();
    let mut y = 64.0;
    for (row, cell) in samples.servers.iter().zip(cells) {
        // What is not measured of a server is no line.
        if cell == Cell::None {
            continue;
        }
        let is_ours = samples.servers.first().is_some_and(|first| first.name == row.name);
        put(
            &mut body,
            format_args!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
                LEFT - 10.0,
                y + 14.0,
                row.name
            ),
        );
        bar(&mut body, metric, cell, y, longest, is_ours);
        y += LINE;
    }
    let height = y + 16.0;
    let (title, unit) = (facts.title, facts.unit);
    let subtitle = subtitle.replace('&', "&amp;").replace('<', "&lt;");
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" \
         role=\"img\">\n<title>{title}, {unit}</title>\n\
         <style>text {{ font: 13px system-ui, 'DejaVu Sans', sans-serif; fill: #e6edf3 }} \
         .dim {{ fill: #9fb3c0; font-size: 12px }}</style>\n\
         <rect width=\"{WIDTH}\" height=\"{height:.0}\" rx=\"12\" fill=\"#10212b\"/>\n\
         <text x=\"20\" y=\"28\">{title}, {unit}: less is better</text>\n\
         <text class=\"dim\" x=\"20\" y=\"46\">{subtitle}</text>\n{body}</svg>\n"
    )
}

fn bar(body: &mut String, metric: Metric, cell: Cell, y: f64, longest: f64, is_ours: bool) {
    let place = |value: f64| LEFT + (value / longest).clamp(0.0, 1.0) * SPAN;
    let said = match cell {
        Cell::Value(spread) if spread.median.is_infinite() => (LEFT, "cannot keep up".to_owned()),
        Cell::Value(spread) => {
            let colour = if is_ours { OURS } else { THEIRS };
            let middle = y + 10.0;
            put(
                body,
                format_args!(
                    "<rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.1}\" height=\"16\" rx=\"2\" \
                     fill=\"{colour}\"/>\n<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle:.1}\" \
                     y2=\"{middle:.1}\" stroke=\"#e6edf3\" stroke-width=\"2\"/>\n",
                    y + 2.0,
                    (place(spread.median) - LEFT).max(1.0),
                    place(spread.low),
                    place(spread.high),
                ),
            );
            let end = place(spread.high);
            (end, format!("{:.*}", metric.facts().digits, spread.median))
        }
        Cell::Absent => (LEFT, "not installed".to_owned()),
        Cell::Failed | Cell::None => (LEFT, "failed".to_owned()),
    };
    put(
        body,
        format_args!(
            "<text class=\"dim\" x=\"{:.1}\" y=\"{:.1}\">{}</text>\n",
            said.0 + 8.0,
            y + 14.0,
            said.1
        ),
    );
}

/// Whether there is a picture of it: those that are seen at a glance and can be compared by length.
pub fn is_drawn(metric: Metric) -> bool {
    metric.facts().brief.is_some()
}

const WIDTH: f64 = 860.0;
/// Where bars begin.
const LEFT: f64 = 120.0;
/// The longest one.
const SPAN: f64 = 640.0;
/// From one server to the next.
const LINE: f64 = 26.0;
const OURS: &str = "#2fa58e";
const THEIRS: &str = "#3d5a73";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::samples::tests::samples;

    #[test]
    fn bars_are_as_long_as_their_medians_and_nobody_is_left_out() {
        let svg = draw(Metric::KeepAliveCpu, &samples(), "a < b & c");
        // The upper quartile of the slow one, 21, is the longest.
        for width in ["274.3", "548.6"] {
            assert!(svg.contains(&format!("width=\"{width}\"")), "{svg}");
        }
        for said in [">ebbtide<", ">slow<", ">lost<", ">bad<", ">not installed<", ">failed<"] {
            assert!(svg.contains(said), "{said} is not in {svg}");
        }
        assert!(svg.contains("a &lt; b &amp; c"));
    }
}
