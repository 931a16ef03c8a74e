//! What is said on one connection, in the order in which it is answered (PostgreSQL's
//! documentation, Message Flow, Extended Query). Writes into a buffer and is told messages: it
//! knows no socket.
//!
//! What is asked goes in units, each of which ends with a `Sync`: the server works on it in a
//! transaction of its own, and a failure undoes the unit and passes over what is left of it. A
//! statement is a unit by itself; only those whose callers say that they only read, and that were
//! done in no time before, share one. That saves the server a transaction and a packet for each.
//!
//! Invariants:
//! 1. Answers come in the order of what was asked: the front of the list is what the next message
//!    belongs to, and nothing leaves it but in units.
//! 2. A job is done when the server has said that its unit is: never before it is committed.
//! 3. When a unit that several share fails, those that did not make it fail are asked again, each
//!    by itself: the server has said that it has undone them. Only queries share units, for what
//!    they do is undone with their transaction whatever it is.
//! 4. What is written for a job is whole, or nothing is.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use tokio_postgres::types::{Oid, ToSql, Type};

use super::error::DatabaseError;
use super::postgres_messages::{self as messages, Fields, IDLE, Refusal, bind, null};
use super::postgres_params::Params;
use super::postgres_row::{PostgresColumn, PostgresRow};
use super::postgres_statements::{
    Found, Prepared, Statements, can_be_undone, is_for_all, is_stale,
};
use super::postgres_types::{LOOKUP, Missing, Types, columns};

/// What a statement is asked for.
pub trait Asks {
    fn text(&self) -> &Cow<'static, str>;
    fn params(&self) -> &Params;
    /// Whether it may share a transaction with others of which this is true.
    fn only_reads(&self) -> bool;
    /// Whether anybody waits for it still.
    fn is_wanted(&self) -> bool;
}

/// A job with its result.
#[derive(Debug)]
pub struct Done<J> {
    pub job: J,
    pub rows: Result<Vec<PostgresRow>, DatabaseError>,
}

/// The server does not keep to the protocol, or has ended the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken(pub &'static str);

/// See the module's essay.
#[derive(Debug)]
pub struct Conversation<J> {
    statements: Statements<J>,
    types: Types,
    /// What was asked and is not answered, oldest first.
    asked: VecDeque<Asked<J>>,
    /// The position of what the next message belongs to: within the first unit.
    at: usize,
    /// What the server has refused of the first unit: what is at `at`.
    refusal: Option<DatabaseError>,
    /// All of the first unit was done: what fails now is the end of its transaction.
    is_executed: bool,
    /// What has waited or was undone is not asked for any more.
    is_ending: bool,
    /// How many of the last unit there are; 0 when it has its `Sync`.
    open: usize,
    /// When the last unit was answered.
    answered: Option<Instant>,
    output: BytesMut,
}

#[derive(Debug)]
struct Asked<J> {
    what: What<J>,
    at: Instant,
    /// Whether a `Sync` comes behind it.
    ends_unit: bool,
}

#[derive(Debug)]
enum What<J> {
    Job { job: J, prepared: Arc<Prepared>, rows: Vec<PostgresRow> },
    Preparing(Box<Preparing>),
    Lookup { oid: Oid, row: Option<PostgresRow>, of: Box<Preparing> },
    Forgetting,
}

/// A statement that the server prepares.
#[derive(Debug)]
struct Preparing {
    text: String,
    name: String,
    params: Vec<Oid>,
    columns: Vec<(String, Oid)>,
    /// Types that the catalogue was asked of.
    looked_up: Vec<Oid>,
}

impl<J> Default for Conversation<J> {
    fn default() -> Conversation<J> {
        Conversation {
            statements: Statements::default(),
            types: Types::default(),
            asked: VecDeque::new(),
            at: 0,
            refusal: None,
            is_executed: false,
            is_ending: false,
            open: 0,
            answered: None,
            output: BytesMut::new(),
        }
    }
}

impl<J: Asks> Conversation<J> {
    /// What is to be sent.
    pub fn output(&mut self) -> &mut BytesMut {
        &mut self.output
    }

    /// Asks for a job. It may be done at once: with an error. Whoever has asked for all that there
    /// is calls [`end_unit`](Conversation::end_unit).
    pub fn ask(&mut self, job: J, now: Instant, done: &mut Vec<Done<J>>) {
        match self.statements.find(job.text()) {
            Found::Known(prepared) => {
                let is_quick = prepared.is_quick.load(Ordering::Relaxed);
                let shares = job.only_reads() && prepared.can_be_undone && is_quick;
                self.execute(job, prepared, shares, now, done);
            }
            Found::Asked(waiting) => waiting.push(job),
            Found::New => match is_for_all(job.text()) {
                Ok(()) => self.prepare(job, now, done),
                Err(error) => done.push(Done { job, rows: Err(error) }),
            },
        }
    }

    /// Asks for what has waited for its statement, or was undone with its unit: by itself.
    fn ask_again(&mut self, job: J, now: Instant, done: &mut Vec<Done<J>>) {
        if self.is_ending || !job.is_wanted() {
            done.push(Done { job, rows: Err(DatabaseError::Cancelled) });
            return;
        }
        // It may have been closed since.
        match self.statements.find(job.text()) {
            Found::Known(prepared) => self.execute(job, prepared, false, now, done),
            Found::Asked(waiting) => waiting.push(job),
            Found::New => self.prepare(job, now, done),
        }
    }

    /// What has waited or was undone is not asked for any more: the session is about to end.
    pub fn begin_end(&mut self) {
        self.is_ending = true;
    }

    /// The job that the server works on, unless it prepares a statement or works on nothing.
    pub fn in_front(&self) -> Option<&J> {
        match &self.asked.get(self.at)?.what {
            What::Job { job, .. } => Some(job),
            What::Preparing(_) | What::Lookup { .. } | What::Forgetting => None,
        }
    }

    /// The last unit is to be answered.
    pub fn end_unit(&mut self) {
        if self.open > 0 {
            self.open = 0;
            if let Some(last) = self.asked.back_mut() {
                last.ends_unit = true;
            }
            frontend::sync(&mut self.output);
        }
    }

    /// Says good-bye.
    pub fn terminate(&mut self) {
        self.end_unit();
        frontend::terminate(&mut self.output);
    }

    fn execute(
        &mut self,
        job: J,
        prepared: Arc<Prepared>,
        shares: bool,
        now: Instant,
        done: &mut Vec<Done<J>>,
    ) {
        if !shares {
            self.end_unit();
        }
        let length = self.output.len();
        // Values are written by foreign code.
        let writing = AssertUnwindSafe(|| bind(&prepared, job.params(), &mut self.output));
        let written = catch_unwind(writing).unwrap_or(Err(DatabaseError::Panicked));
        if let Err(error) = written {
            self.output.truncate(length);
            done.push(Done { job, rows: Err(error) });
            return;
        }
        self.push(What::Job { job, prepared, rows: Vec::new() }, now);
        if !shares || self.open >= UNIT_MAX {
            self.end_unit();
        }
    }

    /// What it is asked, once it is written.
    fn push(&mut self, what: What<J>, now: Instant) {
        self.open += 1;
        self.asked.push_back(Asked { what, at: now, ends_unit: false });
    }

    fn prepare(&mut self, job: J, now: Instant, done: &mut Vec<Done<J>>) {
        let text = job.text().to_string();
        if text.contains('\0') {
            let error = DatabaseError::Mismatch("the statement has a zero byte".to_owned());
            done.push(Done { job, rows: Err(error) });
            return;
        }
        self.end_unit();
        if self.statements.is_full() {
            let forgotten = self.statements.forget_all();
            let names: Vec<&str> = forgotten.iter().map(|prepared| &*prepared.name).collect();
            self.close(&names, now);
        }
        let name = self.statements.ask(&text, job);
        written(frontend::parse(&name, &text, [], &mut self.output));
        written(frontend::describe(b'S', &name, &mut self.output));
        let preparing = Preparing {
            text,
            name,
            params: Vec::new(),
            columns: Vec::new(),
            looked_up: Vec::new(),
        };
        self.push(What::Preparing(Box::new(preparing)), now);
        self.end_unit();
    }

    fn close(&mut self, prepared: &[&str], now: Instant) {
        let length = self.output.len();
        for name in prepared {
            written(frontend::close(b'S', name, &mut self.output));
        }
        if self.output.len() > length {
            self.push(What::Forgetting, now);
            self.end_unit();
        }
    }

    /// Asks the catalogue of a type that a statement has.
    fn look_up(&mut self, oid: Oid, of: Box<Preparing>, now: Instant) {
        written(frontend::parse("", LOOKUP, [Type::OID.oid()], &mut self.output));
        let value = |oid: Oid, out: &mut BytesMut| {
            oid.to_sql(&Type::OID, out).map(|is_null| null(&is_null))
        };
        let bound = frontend::bind("", "", [1], [oid], value, [1], &mut self.output);
        debug_assert!(bound.is_ok(), "a number can be written");
        written(frontend::execute("", 0, &mut self.output));
        self.push(What::Lookup { oid, row: None, of }, now);
        self.end_unit();
    }
}

impl<J: Asks> Conversation<J> {
    /// A message has come. What it is the end of is added to `done`; what the server has undone is
    /// asked again.
    ///
    /// # Errors
    /// When nothing more can be understood: what was asked is lost.
    pub fn hear(
        &mut self,
        kind: u8,
        body: &[u8],
        now: Instant,
        done: &mut Vec<Done<J>>,
    ) -> Result<(), Broken> {
        match kind {
            messages::DATA_ROW => self.take_row(body),
            messages::COMMAND_COMPLETE | messages::EMPTY_QUERY => {
                match self.asked.get(self.at) {
                    Some(asked) if asked.ends_unit => self.is_executed = true,
                    Some(_) => self.at += 1,
                    None => return Err(Broken("an end that was not asked for")),
                }
                Ok(())
            }
            messages::READY_FOR_QUERY => self.end_answer(body, now, done),
            messages::PARAMETER_DESCRIPTION => self.take_description(body, Preparing::take_params),
            messages::ROW_DESCRIPTION => self.take_description(body, Preparing::take_columns),
            messages::ERROR_RESPONSE => self.take_refusal(body, done),
            messages::NOTICE_RESPONSE => {
                if let Some(refusal) = Refusal::read(body) {
                    log::debug!(event_type = "database_notice"; "{}", refusal.error);
                }
                Ok(())
            }
            messages::BIND_COMPLETE
            | messages::PARSE_COMPLETE
            | messages::CLOSE_COMPLETE
            | messages::NO_DATA
            | messages::PARAMETER_STATUS
            | messages::NOTIFICATION_RESPONSE => Ok(()),
            _ => Err(Broken("a message that was not asked for")),
        }
    }

    fn take_row(&mut self, body: &[u8]) -> Result<(), Broken> {
        if self.is_executed {
            return Err(Broken("a row of what was done"));
        }
        match self.asked.get_mut(self.at).map(|asked| &mut asked.what) {
            Some(What::Job { prepared, rows, .. }) => {
                rows.push(PostgresRow::read(&prepared.columns, body).ok_or(TORN)?);
                Ok(())
            }
            Some(What::Lookup { row, .. }) => {
                *row = Some(PostgresRow::read(&columns(), body).ok_or(TORN)?);
                Ok(())
            }
            _ => Err(Broken("a row that was not asked for")),
        }
    }

    fn take_description(
        &mut self,
        body: &[u8],
        take: impl FnOnce(&mut Preparing, Fields<'_>) -> Option<()>,
    ) -> Result<(), Broken> {
        match self.asked.front_mut().map(|asked| &mut asked.what) {
            Some(What::Preparing(preparing)) => take(preparing, Fields::of(body)).ok_or(TORN),
            _ => Err(Broken("a description that was not asked for")),
        }
    }

    fn take_refusal(&mut self, body: &[u8], done: &mut Vec<Done<J>>) -> Result<(), Broken> {
        let refusal = Refusal::read(body).ok_or(TORN)?;
        if !refusal.is_fatal && !self.asked.is_empty() {
            self.refusal = Some(refusal.error);
            return Ok(());
        }
        // The last that it says. It is said of the one in front, if there is one.
        let what = self.asked.get_mut(self.at).map(|asked| &mut asked.what);
        if let Some(what @ What::Job { .. }) = what
            && let What::Job { job, .. } = mem::replace(what, What::Forgetting)
        {
            done.push(Done { job, rows: Err(refusal.error) });
        }
        Err(Broken("the server has ended the session"))
    }

    /// The first unit is done, or undone.
    fn end_answer(
        &mut self,
        body: &[u8],
        now: Instant,
        done: &mut Vec<Done<J>>,
    ) -> Result<(), Broken> {
        let mut refusal = self.refusal.take();
        let (at, is_executed) = (mem::take(&mut self.at), mem::take(&mut self.is_executed));
        let Some(last) = self.asked.iter().position(|asked| asked.ends_unit) else {
            return Err(Broken("an answer that was not asked for"));
        };
        let is_undone = refusal.is_some();
        let is_statement = matches!(self.asked[last].what, What::Job { .. } | What::Lookup { .. });
        if is_statement && !is_undone && !is_executed {
            return Err(Broken("an answer without an end"));
        }
        // Of several whose transaction could not be ended none is known to be the one at fault.
        let at_fault = if is_executed && last > 0 { None } else { Some(at) };
        let begun = self.asked.front().map_or(now, |asked| asked.at);
        let begun = self.answered.replace(now).map_or(begun, |answered| answered.max(begun));
        let count = u32::try_from(last + 1).unwrap_or(u32::MAX);
        let is_quick = now.saturating_duration_since(begun) <= QUICK_MAX.saturating_mul(count);
        for at in 0..=last {
            let Some(asked) = self.asked.pop_front() else { break };
            let error = if at_fault == Some(at) { refusal.take() } else { None };
            match asked.what {
                What::Job { job, prepared, rows } => {
                    prepared.is_quick.store(is_quick, Ordering::Relaxed);
                    match error {
                        Some(error) => {
                            if is_stale(&error) {
                                self.statements.forget(&prepared);
                                self.close(&[&prepared.name], now);
                            }
                            done.push(Done { job, rows: Err(error) });
                        }
                        None if is_undone => self.ask_again(job, now, done),
                        None => done.push(Done { job, rows: Ok(rows) }),
                    }
                }
                What::Preparing(preparing) => self.learn(preparing, error, now, done),
                What::Lookup { oid, row, of } => {
                    let told = error.map_or_else(|| self.types.tell(oid, row.as_ref()), Err);
                    self.learn(of, told.err(), now, done);
                }
                What::Forgetting => {}
            }
        }
        // In a transaction nothing is committed: who has left it there is not known.
        if body == [IDLE] { Ok(()) } else { Err(Broken("a statement has begun a transaction")) }
    }

    /// A statement is prepared, or is not: what has waited for that goes on.
    fn learn(
        &mut self,
        mut preparing: Box<Preparing>,
        error: Option<DatabaseError>,
        now: Instant,
        done: &mut Vec<Done<J>>,
    ) {
        let found = error.map_or_else(|| Ok(self.types_of(&preparing)), Err);
        let error = match found {
            Ok(Ok((params, columns))) => {
                let Preparing { text, name, .. } = *preparing;
                let can_be_undone = can_be_undone(&text);
                let is_quick = false.into();
                let prepared = Prepared { name, params, columns, can_be_undone, is_quick };
                for job in self.statements.learn(&text, prepared) {
                    self.ask_again(job, now, done);
                }
                return;
            }
            Ok(Err(Missing(oid))) if !preparing.looked_up.contains(&oid) => {
                preparing.looked_up.push(oid);
                return self.look_up(oid, preparing, now);
            }
            Ok(Err(Missing(oid))) => {
                DatabaseError::Mismatch(format!("the type {oid} cannot be understood"))
            }
            Err(error) => error,
        };
        for job in self.statements.give_up(&preparing.text) {
            done.push(Done { job, rows: Err(error.clone()) });
        }
        // Of one that was not prepared the server takes no notice.
        self.close(&[&preparing.name], now);
    }

    fn types_of(
        &mut self,
        preparing: &Preparing,
    ) -> Result<(Vec<Type>, Arc<[PostgresColumn]>), Missing> {
        let params = preparing.params.iter().map(|oid| self.types.find(*oid));
        let params = params.collect::<Result<_, Missing>>()?;
        let columns = preparing.columns.iter().map(|(name, oid)| {
            Ok(PostgresColumn { name: name.clone(), ty: self.types.find(*oid)? })
        });
        Ok((params, columns.collect::<Result<_, Missing>>()?))
    }
}

impl Preparing {
    fn take_params(&mut self, mut fields: Fields<'_>) -> Option<()> {
        for _ in 0..fields.u16()? {
            self.params.push(fields.u32()?);
        }
        Some(())
    }

    fn take_columns(&mut self, mut fields: Fields<'_>) -> Option<()> {
        for _ in 0..fields.u16()? {
            let name = String::from_utf8_lossy(fields.text()?).into_owned();
            let (_table, _number) = (fields.u32()?, fields.u16()?);
            self.columns.push((name, fields.u32()?));
            let (_size, _modifier, _format) = (fields.u16()?, fields.u32()?, fields.u16()?);
        }
        Some(())
    }
}

/// Only a zero byte within a text, or a message of 2 GiB, cannot be written.
fn written(result: io::Result<()>) {
    if let Err(error) = result {
        debug_assert!(false, "{error}");
    }
}

const TORN: Broken = Broken("a message that cannot be read");

/// Statements that share a unit. The first of them waits for the last.
pub const UNIT_MAX: usize = 32;

/// How long a statement may take to be one that others may wait for.
pub const QUICK_MAX: Duration = Duration::from_millis(1);
