//! The server in this process, over real sockets, byte for byte.
//!
//! Reading order: [`support`] (a server, and waiting), [`gate`] (what holds its handlers),
//! [`client`] (exact bytes in, responses parsed by hand), then from plain serving to the ways a
//! shutdown can go.

mod client;
mod failures;
mod gate;
mod support;

mod serve;

#[cfg(feature = "sqlite")]
mod blocked;
mod handlers;

mod messages;

mod pipelining;

mod bodies;

mod uploads;

mod limits;

mod deadlines;

mod bad_input;

mod cuts;

mod panics;

mod tracking;

mod outcomes;

mod hibernation;

mod keep_alive;

mod cancellation;

mod truncated;

mod balance;
mod health;

mod connections;

mod report;

mod short_way;

mod shutdown;

mod shutdown_idle;

mod shutdown_queue;

mod shutdown_lame_duck;

mod shutdown_deadline;

mod shutdown_signals;

mod drain_states;

mod drain_hostile;

mod handle;

mod hooks;

mod hooks_alone;

mod workers_zero;

mod embedding;

mod listeners;

mod steering;

mod regression;
