//! Applications: the router, health and metrics endpoints, and what `ebbtide serve` serves.
//!
//! No sockets and no threads: handlers in, [`App`](crate::http::service::App) out.

pub mod admin;
pub mod handler;
#[cfg(feature = "redis")]
pub mod hits;
mod item;
pub mod items;
pub mod lab;
pub mod router;
pub mod sample;
mod sqlstate;
pub mod status;

pub use handler::Handler;
pub use router::{Methods, Router, any, delete, get, patch, post, put};
