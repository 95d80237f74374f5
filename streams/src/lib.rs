//! Standard streams of programs over one connection: many streams, each with credit of its own, so that one that nobody reads stops
//! no other. A core: must never own a socket, a clock, a process or a file, nor know what the bytes mean.
//!
//! | module | holds |
//! |---|---|
//! | [`frame`] | what travels: data, end, credit, stop, control |
//! | [`mux`] | one end of a connection: what may be sent next, and what came |
//!
//! Credit is per hop: who forwards streams has one [`mux::Mux`] on each side, and gives credit on one side when bytes have left on the
//! other. What waits in any place is then bounded by the number of streams times their window ([`window`]).

pub mod frame;
pub mod mux;

pub use frame::{BadFrame, Channel, Frame, Kind, StreamId};
pub use mux::{Mux, Overrun, Received};

/// Bytes of all windows of one job in one direction of one hop, as far as [`SMALLEST_WINDOW`] lets it be so.
pub const BUDGET: u32 = 16 << 20;
/// Most bytes that one stream may have under way.
pub const LARGEST_WINDOW: u32 = 256 << 10;
/// Least: with less, each line of a program is a round trip.
pub const SMALLEST_WINDOW: u32 = 4 << 10;
/// Most bytes in one data frame: what control traffic waits for is one of them (1.3 ms at 100 Mbit/s).
pub const CHUNK: usize = 16 << 10;

/// The window of each stream of a job with so many ranks. All hops reckon by this rule, so nobody needs to tell it.
#[must_use]
pub fn window(ranks: u32) -> u32 {
    (BUDGET / ranks.max(1)).clamp(SMALLEST_WINDOW, LARGEST_WINDOW)
}

#[cfg(test)]
mod tests;
