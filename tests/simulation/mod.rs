//! The server in a made-up world: virtual time, fake kernels and clients, and one seed that says
//! all of it.
//!
//! Real are the drain, the endpoints with their slots, deadlines and orders, and everything that
//! happens to a connection, hyper included. Made up are the clock, the sockets and the network
//! ([`kernel`], [`stream`], [`backlog`]), the clients ([`script`], [`client`]), the application
//! ([`app`]) and the order in which things happen ([`settings`], [`world`]). When a world has
//! ended, the [`oracle`] says what must not have been, and [`runs`] which seed shows it and how to
//! see it again.
//!
//! It is a module of the crate, so that it reaches what is private and costs production nothing.

mod app;
mod backlog;
mod client;
mod kernel;
mod oracle;
mod reply;
mod rng;
mod runs;
mod script;
mod settings;
mod stream;
mod world;
