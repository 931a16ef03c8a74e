//! Which metrics an expression of Prometheus asks for, and with which labels. Not a parser: that is
//! promtool. What is no metric is known by what stands around it.

use std::collections::BTreeSet;

/// A metric that is asked for, and the labels whose values are given as they are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked {
    pub name: String,
    /// Name and values: the one of `name="value"`, those of `name=~"one|other"` that are plain
    /// words; none of other matchers.
    pub labels: Vec<(String, Vec<String>)>,
}

/// Words that are neither functions nor metrics.
const KEYWORDS: [&str; 9] =
    ["and", "or", "unless", "bool", "offset", "group_left", "group_right", "inf", "nan"];

/// Words whose brackets hold labels.
const GROUPING: [&str; 4] = ["by", "without", "on", "ignoring"];

/// The metrics of an expression.
pub fn asked(expression: &str) -> BTreeSet<Asked> {
    let mut found = BTreeSet::new();
    let mut rest = expression;
    while let Some(start) = rest.find(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == '[') {
        rest = &rest[start..];
        if let Some(range) = rest.strip_prefix('[') {
            rest = range.split_once(']').expect("a range ends").1;
            continue;
        }
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
        let (word, behind) = rest.split_at(end.unwrap_or(rest.len()));
        rest = behind;
        let next = behind.trim_start();
        if GROUPING.contains(&word) {
            rest = next.split_once(')').expect("labels stand in brackets").1;
        } else if word.starts_with(|c: char| c.is_ascii_digit())
            || KEYWORDS.contains(&word)
            || next.starts_with('(')
        {
            // A number, an operator, a function; an aggregation with its labels in front.
            let labels_first = GROUPING.iter().any(|grouping| next.starts_with(grouping));
            assert!(!labels_first || next.starts_with('('), "{word}");
        } else if GROUPING.iter().any(|grouping| next.starts_with(&format!("{grouping} ("))) {
            // `sum by (label) (...)`.
        } else {
            let mut labels = Vec::new();
            if let Some(matchers) = next.strip_prefix('{') {
                let (inside, behind) = matchers.split_once('}').expect("matchers end");
                labels = inside.split(',').map(matcher).collect();
                rest = behind;
            }
            found.insert(Asked { name: word.to_owned(), labels });
        }
    }
    found
}

fn matcher(text: &str) -> (String, Vec<String>) {
    let end = text.find(['=', '!']).unwrap_or_else(|| panic!("no matcher: {text}"));
    let (name, operator) = text.split_at(end);
    let quoted = |start: &str| operator.strip_prefix(start)?.strip_suffix('"');
    let values: Vec<&str> = match (quoted("=\""), quoted("=~\"")) {
        (Some(value), _) => vec![value],
        (None, Some(pattern)) => {
            let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            pattern.split('|').filter(|part| part.chars().all(is_word)).collect()
        }
        (None, None) => Vec::new(),
    };
    (name.trim().to_owned(), values.into_iter().map(str::to_owned).collect())
}

/// The labels that an expression groups by.
pub fn grouped(expression: &str) -> BTreeSet<String> {
    let mut labels = BTreeSet::new();
    for word in GROUPING {
        for (at, start) in expression.match_indices(&format!("{word} (")) {
            if expression[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
                continue;
            }
            let list = expression[at + start.len()..].split_once(')').expect("labels end").0;
            labels.extend(list.split(',').map(|label| label.trim().to_owned()));
        }
    }
    labels
}

/// Whether what comes out has the labels that it is grouped by, and no others.
pub fn aggregates(expression: &str) -> bool {
    ["sum", "max", "min", "count", "avg"].iter().any(|word| {
        let mut found = expression.match_indices(word);
        found.any(|(at, _)| {
            let rest = expression[at + word.len()..].trim_start();
            let before = &expression[..at];
            (rest.starts_with('(') || rest.starts_with("by ("))
                && !before.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        })
    })
}

#[test]
fn metrics_are_told_from_functions_labels_and_numbers() {
    let names = |expression: &str| -> Vec<String> {
        asked(expression).into_iter().map(|asked| asked.name).collect()
    };
    assert_eq!(names("up"), ["up"]);
    assert_eq!(names("sum by (job, le) (rate(a_bucket{b=\"c\"}[5m])) > 0.5"), ["a_bucket"]);
    assert_eq!(names("(sum(a) or vector(0)) / on (instance) b{x!~\"y\"}"), ["a", "b"]);
    assert_eq!(names("3 * max by (i) (a) and time() - b > 1e3"), ["a", "b"]);
    let asked = asked("a{job=\"$job\", code=~\"5..\", outcome=~\"cut|lost\", x!=\"y\"}[$__range]");
    let labels =
        [("job", vec!["$job"]), ("code", vec![]), ("outcome", vec!["cut", "lost"]), ("x", vec![])];
    let owned = |values: Vec<&str>| values.into_iter().map(str::to_owned).collect();
    let labels = labels.map(|(name, values)| (name.to_owned(), owned(values))).to_vec();
    assert_eq!(asked.into_iter().collect::<Vec<_>>(), [Asked { name: "a".to_owned(), labels }]);
}

#[test]
fn labels_of_groups_are_those_that_come_out() {
    let labels = |expression: &str| grouped(expression).into_iter().collect::<Vec<_>>();
    assert_eq!(
        labels("sum by (job, le) (rate(a[5m])) / on (x) max by (job) (b)"),
        ["job", "le", "x"]
    );
    assert_eq!(labels("sum(a)"), [""; 0]);
    assert!(aggregates("time() - max by (i) (a)") && aggregates("sum(a)"));
    assert!(!aggregates("sum_of{a=\"b\"} - rate(checksum[1m])"));
}
