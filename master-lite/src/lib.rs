//! The thin master: it keeps who holds what, decides who is offered what, and relays.
//!
//! ```text
//!  agent ──> api ──> core: inventory ─> ledger ─> allocator ─> offers ──> api ──> framework
//!  agent <── api <── core: tasks <───── accept, kill, acknowledge <────── api <── framework
//! ```
//!
//! Everything but [`api`] and [`serve()`] is a function of its inputs. A master has no store of its own: agents list their
//! tasks when they register, and frameworks come back with their ids.
#![forbid(unsafe_code)]

pub mod allocator;
pub mod api;
pub mod config;
pub mod core;
pub mod framework;
pub mod ids;
pub mod inventory;
pub mod ledger;
pub mod metrics;
pub mod offers;
mod serve;
pub mod tasks;
pub mod timers;

pub use config::{Config, Options};
pub use serve::{Running, ServeError, serve, serve_with};
