//! How long things may be, and what must not be left behind.

use std::collections::{BTreeMap, BTreeSet};

use crate::manifest::target_roots;
use crate::source::{Kind, Place, Source, Token};
use crate::tree::{FILES, Findings, SOURCES, programs, src};

const COLUMNS_MAX: usize = 100;
const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_AIM: usize = 400;
const FILE_LINES_MAX: usize = 600;

/// Names for what has no name yet.
const EMPTY_NAMES: [&str; 6] = ["util", "utils", "common", "helpers", "misc", "prelude"];

/// Put together here, so that this file does not find itself.
const LEFTOVERS: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];

/// Macros that stand for work not done. (clippy knows them, too, but not in every kind of target.)
const UNFINISHED: [&str; 3] = ["todo", "unimplemented", "dbg"];

/// Where the project would speak of how it came to be instead of what it is.
const OUTSIDE: [&str; 7] = [
    concat!("/wo", "rk/"),
    concat!("this ses", "sion"),
    concat!("previous ses", "sion"),
    concat!("next ses", "sion"),
    concat!("this iss", "ue"),
    concat!("next iss", "ue"),
    concat!("the iss", "ue text"),
];

#[test]
fn lines_fit_in_the_columns() {
    let mut findings = Findings::default();
    for source in SOURCES.iter() {
        for (line, text) in (1..).zip(source.text.lines()) {
            let columns = text.chars().count();
            if columns > COLUMNS_MAX && !is_unbreakable(text) {
                findings.at(&source.path, line, format!("{columns} columns"));
            }
        }
    }
    findings.none_or(&format!("break the line: {COLUMNS_MAX} columns are the limit"));
}

/// A row of a Markdown table, or a comment of one word (a link).
fn is_unbreakable(line: &str) -> bool {
    let line = line.trim_start();
    let inside = line.trim_start_matches(['/', '!']).trim_start();
    line.starts_with("//") && (inside.starts_with('|') || !inside.contains(' '))
}

#[test]
fn functions_fit_on_a_screen() {
    let mut findings = Findings::default();
    for source in SOURCES.iter() {
        for function in source.functions() {
            if function.lines > FUNCTION_LINES_MAX {
                let what = format!("`{}` has {} lines", function.name, function.lines);
                findings.at(&source.path, function.line, what);
            }
        }
    }
    findings.none_or(&format!(
        "move a part that has a name of its own out: {FUNCTION_LINES_MAX} lines are the limit"
    ));
}

#[test]
fn files_stay_small() {
    let mut findings = Findings::default();
    for source in SOURCES.iter() {
        let lines = source.text.lines().count();
        if lines > FILE_LINES_MAX {
            findings.note(format!("{}: {lines} lines", source.path));
        } else if lines > FILE_LINES_AIM {
            println!("warning: {} has {lines} lines, aim for {FILE_LINES_AIM}", source.path);
        }
    }
    findings.none_or(&format!(
        "split the file where its subject splits: {FILE_LINES_MAX} lines are the limit, \
         {FILE_LINES_AIM} the aim"
    ));
}

#[test]
fn folders_of_src_are_one_level_deep_and_named_for_what_is_in_them() {
    let mut findings = Findings::default();
    for source in src() {
        if source.path.matches('/').count() > 2 {
            findings.note(format!("{}: a folder within a folder", source.path));
        }
        if source.module().iter().any(|name| EMPTY_NAMES.contains(name)) {
            findings.note(format!("{}: a name that says nothing", source.path));
        }
    }
    findings.none_or("put it next to its first user, under a noun of the trade");
}

#[test]
fn public_functions_take_enums_instead_of_bools() {
    let mut findings = Findings::default();
    for source in programs() {
        for function in source.functions().iter().filter(|function| function.is_public) {
            let is_bool = |two: &[Token]| two[0].is_mark(":") && two[1].is_word("bool");
            if function.parameters.windows(2).any(is_bool) {
                let what = format!("`{}` takes a bool", function.name);
                findings.at(&source.path, function.line, what);
            }
        }
    }
    findings.none_or("name the two modes in an enum");
}

#[test]
fn nothing_is_left_unfinished() {
    let mut findings = Findings::default();
    for (path, text) in FILES.iter() {
        for (line, text) in (1..).zip(text.lines()) {
            for leftover in LEFTOVERS.iter().filter(|leftover| has_word(text, leftover)) {
                findings.at(path, line, format!("{leftover} is a debt"));
            }
        }
    }
    for source in SOURCES.iter() {
        for two in source.tokens.windows(2).filter(|two| two[1].is_mark("!")) {
            if UNFINISHED.iter().any(|name| two[0].is_word(name)) {
                findings.at(&source.path, two[0].line, format!("{}! is not code", two[0].text));
            }
        }
    }
    findings.none_or("do it, or take it out");
}

#[test]
fn programs_say_why_an_unwrap_cannot_fail() {
    let mut findings = Findings::default();
    for source in programs() {
        for three in source.tokens.windows(3).filter(|three| !three[0].in_test) {
            if three[0].is_mark(".") && three[1].is_word("unwrap") && three[2].is_mark("(") {
                findings.at(&source.path, three[1].line, "`.unwrap()`");
            }
        }
    }
    findings.none_or("use expect(\"why this cannot fail\"), or handle the error");
}

#[test]
fn every_test_runs_and_none_waits_by_sleeping() {
    let mut findings = Findings::default();
    for source in SOURCES.iter() {
        for three in source.tokens.windows(3) {
            if three[0].is_mark("#") && three[1].is_mark("[") && three[2].is_word("ignore") {
                findings.at(&source.path, three[0].line, "an ignored test tests nothing");
            }
            let is_sleep = three[0].is_word("thread") && three[2].is_word("sleep");
            if is_sleep && three[1].is_mark("::") && !source.path.starts_with("src/") {
                findings.at(&source.path, three[0].line, "`thread::sleep`");
            }
        }
        for comment in source.comments.iter().filter(|comment| comment.text.contains("```ignore")) {
            findings.at(&source.path, comment.line, "an ignored example may be wrong");
        }
    }
    findings.none_or("let it run (`no_run`, a condition with a deadline), or delete it");
}

#[test]
fn files_begin_with_what_they_are() {
    let mut findings = Findings::default();
    for source in programs().filter(|source| !source.text.starts_with("//! ")) {
        findings.note(format!("{}: no `//!` at its head", source.path));
    }
    findings.none_or("begin the file with its essay: what it is, its invariants, its reasons");
}

#[test]
fn every_file_is_part_of_a_target() {
    let by_path: BTreeMap<&str, &Source> =
        SOURCES.iter().map(|source| (source.path.as_str(), source)).collect();
    let mut left: Vec<(String, Place)> =
        target_roots().into_iter().map(|root| (root, Place::CrateRoot)).collect();
    let mut reached = BTreeSet::new();
    while let Some((path, place)) = left.pop() {
        if let Some(source) = by_path.get(path.as_str())
            && reached.insert(path)
        {
            let declared = source.declared_files(place).into_iter();
            left.extend(declared.map(|path| (path, Place::Module)));
        }
    }
    let mut findings = Findings::default();
    for path in by_path.keys().filter(|path| !reached.contains(**path)) {
        findings.note(format!("{path}: no target compiles it"));
    }
    findings.none_or("declare it with `mod`, or delete it");
}

#[test]
fn the_project_speaks_of_itself_alone() {
    let mut findings = Findings::default();
    for (path, text) in FILES.iter() {
        for (line, text) in (1..).zip(text.lines()) {
            let text = text.to_lowercase();
            if let Some(word) = OUTSIDE.iter().find(|word| text.contains(**word)) {
                findings.at(path, line, format!("speaks of `{word}`"));
            }
            if names_a_ticket(&text) {
                findings.at(path, line, "names a ticket");
            }
        }
    }
    findings.none_or(
        "say what is so and why, for a reader who has this tree and nothing else; \
         a ticket of another project is written owner/name#12",
    );
}

/// Whether a lower-case line holds the word for a ticket with a number behind it, or `#` with a
/// number that stands alone.
fn names_a_ticket(line: &str) -> bool {
    let is_number = |text: &str| text.starts_with(|next: char| next.is_ascii_digit());
    let word = concat!("iss", "ue");
    let spelt_out = line.split(word).skip(1).any(|after| {
        let after = after.trim_start_matches(' ');
        is_number(after.strip_prefix('#').unwrap_or(after))
    });
    let mut words = line.split([' ', '(', ')', ',', '.', ':', ';']);
    spelt_out
        || words.any(|word| {
            word.strip_prefix('#').is_some_and(|number| {
                !number.is_empty() && number.len() < 5 && number.chars().all(|c| c.is_ascii_digit())
            })
        })
}

fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let is_part = |next: Option<char>| next.is_some_and(char::is_alphanumeric);
        !is_part(line[..at].chars().next_back()) && !is_part(line[at + word.len()..].chars().next())
    })
}

#[test]
fn the_checks_see_code_and_neither_comments_nor_strings() {
    let text = r##"
        //! hyper::a /* not the beginning of a block
        fn f<'a>(x: &'a str, on: bool) -> [u8; 2] { g("\"hyper::b\"", r#"hyper::"c"#, '"', b'\'') }
        /* hyper::d /* and */ hyper::e */ use hyper::{f, g::{self, H as I}, j::*};
        #[cfg(test)] #[allow(unused)] mod tests { fn h() { 0..5; 1.0_f64.max(2.); super::k() } }
        pub(crate) fn l(off: bool) {
        }
    "##;
    let source = Source::new("src/a/b.rs".to_owned(), text.to_owned());
    let named: Vec<String> =
        crate::paths::paths(&source).iter().map(|path| path.segments.join("::")).collect();
    assert_eq!(named, ["hyper::f", "hyper::g", "hyper::g::H", "hyper::j::*", "super::k"]);
    let texts: Vec<&str> =
        source.tokens.iter().filter(|t| t.kind == Kind::Text).map(|t| t.text.as_str()).collect();
    assert_eq!(texts, [r#"\"hyper::b\""#, "hyper::\"c"]);
    let relative = &crate::paths::paths(&source)[4];
    assert!(relative.in_test);
    assert_eq!(relative.in_our_crate(), Some(vec!["a", "b", "k"]));
    let functions: Vec<_> =
        source.functions().iter().map(|f| (f.name.to_owned(), f.lines, f.is_public)).collect();
    let expected = [("f", 1, false), ("h", 1, false), ("l", 2, true)];
    assert_eq!(functions, expected.map(|(name, lines, public)| (name.to_owned(), lines, public)));
}
