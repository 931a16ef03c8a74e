//! A load generator that decides whether a shutdown lost anything, for ebbtide and for others.
//!
//! It starts a server, asks it all the time in the ways in which clients ask ([`kind`]), replaces
//! it ([`restarts`]) or stops it ([`drain`]), and notes of every request how it ended
//! ([`outcome`]). What was lost is what has no answer though it was sent. Then it holds its own
//! account against the one that the server gives of itself ([`books`]). How fast and how small
//! servers are is another question, with a load of its own ([`compare`]).
//!
//! # Map, in reading order
//!
//! | module | what it is |
//! |---|---|
//! | [`outcome`] | the eight ends of a request |
//! | [`kind`] | the kinds of client: what they send, what they expect |
//! | [`schedule`] | when each request is due, planned ahead: the open loop |
//! | [`response`] | responses taken apart, strictly; pure |
//! | [`client`] | one connection of a correct client |
//! | [`load`] | threads, each a loop over its connections |
//! | [`target`] | what a server has to say of itself; [`ebbtide`], and each [`peer`] |
//! | [`instance`] | a process of a server, from its start to its end; [`listening`] sockets |
//! | [`books`] | the server's ledger against what the clients saw: which equalities, and why |
//! | [`field`] | a load and the instances under it; [`trial`] comes before |
//! | [`restarts`], [`drain`] | the two runs; [`idle`] clients watch the second |
//! | [`table`], [`results`], [`moments`], [`picture`] | what is told of a run |
//! | [`sums`] | several servers side by side, and where each of them loses |
//! | [`data`] | servers with one database, side by side |
//! | [`site`] | a run of the command: whose turn it is, and what is written when |
//! | [`compare`] | servers side by side: what a request, a connection and a start cost each |
//! | [`cli`] | the command line |
//!
//! # Invariants
//!
//! 1. Every request that the plan has comes to exactly one end. Nothing waits without a limit.
//! 2. Latency counts from when a request was due, not from when it could be sent.
//! 3. What was begun to be sent is never sent again.
//! 4. All times are since one instant, the beginning of the run.
//! 5. No process outlives its [`instance::Instance`].
//! 6. What cannot be judged is a [`target::Fault`], and no loss: exit status 3.

pub mod books;
pub mod cli;
pub mod client;
pub mod compare;
pub mod data;
pub mod drain;
pub mod ebbtide;
pub mod field;
pub mod idle;
pub mod instance;
pub mod kind;
pub mod listening;
pub mod load;
pub mod moments;
pub mod outcome;
pub mod peer;
pub mod picture;
pub mod response;
pub mod restarts;
pub mod results;
pub mod schedule;
pub mod site;
pub mod sums;
pub mod table;
pub mod target;
pub mod trial;

use std::path::Path;

/// The repository's.
pub(crate) fn root() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}
