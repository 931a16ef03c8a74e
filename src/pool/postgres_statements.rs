//! The statements that are prepared on one connection, by their texts.

use std::borrow::Cow;
use std::collections::HashMap;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use super::error::DatabaseError;
use super::postgres_row::PostgresColumn;

/// A statement that the server has prepared.
#[derive(Debug)]
pub struct Prepared {
    /// What it is called on its connection.
    pub name: String,
    pub params: Vec<Type>,
    pub columns: Arc<[PostgresColumn]>,
    /// Whether what it does is undone with its transaction.
    pub can_be_undone: bool,
    /// Whether it was done in no time when it was last done.
    pub is_quick: AtomicBool,
}

/// See the module's essay. `J` is a job that waits for its statement to be prepared.
#[derive(Debug)]
pub struct Statements<J> {
    by_text: HashMap<Box<str>, State<J>>,
    /// Those that are prepared and whose texts are part of the program, by where these are: that
    /// saves the hashing. Memory that lives as long as the program has one text.
    by_place: Vec<(usize, usize, Arc<Prepared>)>,
    /// Names given so far.
    named: u64,
}

#[derive(Debug)]
enum State<J> {
    /// The server was asked for it; these wait.
    Asked(Vec<J>),
    Known(Arc<Prepared>),
}

/// What is known of a statement's text.
#[derive(Debug)]
pub enum Found<'a, J> {
    Known(Arc<Prepared>),
    /// The server was asked to prepare it.
    Asked(&'a mut Vec<J>),
    New,
}

impl<J> Default for Statements<J> {
    fn default() -> Statements<J> {
        Statements { by_text: HashMap::new(), by_place: Vec::new(), named: 0 }
    }
}

impl<J> Statements<J> {
    #[allow(clippy::ptr_arg, reason = "a text that is part of the program stays where it is")]
    pub fn find(&mut self, text: &Cow<'static, str>) -> Found<'_, J> {
        let place = match text {
            Cow::Borrowed(text) => Some((text.as_ptr() as usize, text.len())),
            Cow::Owned(_) => None,
        };
        let is_there = |(at, length, _): &&(usize, usize, _)| Some((*at, *length)) == place;
        if let Some((_, _, prepared)) = self.by_place.iter().find(is_there) {
            return Found::Known(Arc::clone(prepared));
        }
        match self.by_text.get_mut(&**text) {
            Some(State::Known(prepared)) => {
                if let Some((at, length)) = place
                    && self.by_place.len() < PLACES_MAX
                {
                    self.by_place.push((at, length, Arc::clone(prepared)));
                }
                Found::Known(Arc::clone(prepared))
            }
            Some(State::Asked(waiting)) => Found::Asked(waiting),
            None => Found::New,
        }
    }

    /// The server is asked to prepare it, for this job first: under which name.
    pub fn ask(&mut self, text: &str, job: J) -> String {
        self.by_text.insert(text.into(), State::Asked(vec![job]));
        self.named += 1;
        format!("e{}", self.named)
    }

    /// The server has prepared it: who has waited for that.
    pub fn learn(&mut self, text: &str, prepared: Prepared) -> Vec<J> {
        match self.by_text.insert(text.into(), State::Known(Arc::new(prepared))) {
            Some(State::Asked(waiting)) => waiting,
            Some(State::Known(_)) | None => Vec::new(),
        }
    }

    /// It could not be prepared: who has waited for it.
    pub fn give_up(&mut self, text: &str) -> Vec<J> {
        match self.by_text.remove(text) {
            Some(State::Asked(waiting)) => waiting,
            Some(State::Known(_)) | None => Vec::new(),
        }
    }

    /// The next one who wants it has it prepared anew.
    pub fn forget(&mut self, prepared: &Arc<Prepared>) {
        self.by_place.retain(|(_, _, other)| !Arc::ptr_eq(other, prepared));
        self.by_text.retain(
            |_, state| !matches!(state, State::Known(other) if Arc::ptr_eq(other, prepared)),
        );
    }

    /// Whether there is no room for another: whoever makes up statements as they go gains nothing
    /// from keeping them.
    pub fn is_full(&self) -> bool {
        self.by_text.len() >= STATEMENTS_MAX
    }

    /// Forgets all that are prepared: which they were.
    pub fn forget_all(&mut self) -> Vec<Arc<Prepared>> {
        self.by_place.clear();
        let (mut forgotten, mut kept) = (Vec::new(), HashMap::new());
        for (text, state) in mem::take(&mut self.by_text) {
            match state {
                State::Known(prepared) => forgotten.push(prepared),
                State::Asked(_) => drop(kept.insert(text, state)),
            }
        }
        self.by_text = kept;
        forgotten
    }
}

/// Whether the server has refused to execute what it has prepared: the tables have changed, or it
/// was dropped.
pub fn is_stale(error: &DatabaseError) -> bool {
    let DatabaseError::Rejected(rejection) = error else { return false };
    STALE.iter().any(|state| state.code() == rejection.code)
}

/// Refuses a text that is not for a session that is shared.
///
/// # Errors
/// What is wrong with it.
pub fn is_for_all(text: &str) -> Result<(), DatabaseError> {
    match word_of_session(text) {
        None => Ok(()),
        Some(word) => Err(DatabaseError::Mismatch(format!(
            "{word} concerns a whole session, which a single statement has not got: use \
             `transaction` or `run`"
        ))),
    }
}

/// Whether what a statement does is undone with its transaction. A procedure may commit by itself,
/// and some commands do: of these none begins like this.
pub fn can_be_undone(text: &str) -> bool {
    let first = first_word(text);
    UNDONE.iter().any(|word| word.eq_ignore_ascii_case(first))
}

/// The first word of a statement, when it is one that changes the session for all who share it.
fn word_of_session(text: &str) -> Option<&'static str> {
    let first = first_word(text);
    WORDS_OF_SESSIONS.into_iter().find(|word| word.eq_ignore_ascii_case(first))
}

/// Behind comments, which may be within each other, and empty statements.
fn first_word(text: &str) -> &str {
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches(|at: char| at.is_whitespace() || at == ';');
        let end = match rest.get(..2) {
            Some("--") => rest.find('\n').map(|at| at + 1),
            Some("/*") => end_of_comment(rest),
            _ => break,
        };
        rest = &rest[end.unwrap_or(rest.len())..];
    }
    let end = rest.find(|at: char| !at.is_ascii_alphabetic()).unwrap_or(rest.len());
    &rest[..end]
}

/// Where the comment ends that `text` begins with.
fn end_of_comment(text: &str) -> Option<usize> {
    let (bytes, mut depth, mut at) = (text.as_bytes(), 0, 0);
    while at + 1 < bytes.len() {
        match &bytes[at..at + 2] {
            b"/*" => depth += 1,
            b"*/" => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

/// What queries begin with. (A `WITH` may write, within the transaction.)
const UNDONE: [&str; 4] = ["SELECT", "VALUES", "TABLE", "WITH"];

/// They begin or end transactions, leave something in the session that later ones find, or have
/// data sent outside of their answers.
const WORDS_OF_SESSIONS: [&str; 16] = [
    "BEGIN",
    "START",
    "COMMIT",
    "END",
    "ROLLBACK",
    "ABORT",
    "SAVEPOINT",
    "RELEASE",
    "SET",
    "RESET",
    "DISCARD",
    "PREPARE",
    "DEALLOCATE",
    "LISTEN",
    "UNLISTEN",
    "COPY",
];

/// Of statements that were prepared and cannot be executed any more: "cached plan must not change
/// result type", and a name that the server does not know.
const STALE: [SqlState; 2] =
    [SqlState::FEATURE_NOT_SUPPORTED, SqlState::INVALID_SQL_STATEMENT_NAME];

/// Statements kept prepared on a connection.
const STATEMENTS_MAX: usize = 256;

/// Statements found by place; beyond that the hashing is as cheap as the looking through.
const PLACES_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_queries_are_sure_to_be_undone() {
        for text in ["SELECT f()", " /* a */ with a as (select 1) table a", "VALUES (1)"] {
            assert!(can_be_undone(text), "{text}");
        }
        for text in ["CALL p()", "DO $$ $$", "VACUUM", "INSERT INTO t VALUES (1)", "(SELECT 1)", ""]
        {
            assert!(!can_be_undone(text), "{text}");
        }
    }

    #[test]
    fn what_concerns_the_session_is_known_by_its_first_word() {
        for (text, word) in [
            ("BEGIN", Some("BEGIN")),
            ("  begin;", Some("BEGIN")),
            ("/* a */ -- b\n start transaction", Some("START")),
            ("set statement_timeout = 0", Some("SET")),
            ("SELECT 1", None),
            ("settle", None),
            ("-- COMMIT", None),
            ("/* never closed", None),
            (";; begin", Some("BEGIN")),
            ("/* /* */ SELECT */ set a = 1", Some("SET")),
            ("/**/", None),
            ("/*/ BEGIN", None),
            ("", None),
            ("\u{e9}t\u{e9}", None),
            ("UPDATE t SET a = 1", None),
        ] {
            assert_eq!(word_of_session(text), word, "{text}");
        }
    }
}
