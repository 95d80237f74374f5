//! The speed of one CPU, in a unit that means the same on every machine and in every year. Must stay as it is: figures
//! of different versions are compared.
//!
//! One step is a 64-bit multiplication and addition, and a load from a table of 1 MiB at a place that depends on the step
//! before. 1.0 is 100 million steps a second: about a core of 2 GHz whose second-level cache holds the table.

use std::hint::black_box;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// Entries of the table, 4 bytes each.
const ENTRIES: usize = 1 << 18;
/// Steps between looks at the clock: below a millisecond on a PC.
const CHUNK: u32 = 50_000;
/// The best of these counts: a neighbour slows some, seldom all.
const ROUNDS: u32 = 10;
/// Each takes this much of the thread's own CPU time, ...
const ROUND: Duration = Duration::from_millis(8);
/// ... and all of them no more than this by the wall.
const BOUND: Duration = Duration::from_millis(180);
/// Steps a second that are 1.0.
const UNIT: f64 = 100e6;

/// Runs the loop on this thread for at most [`BOUND`] and a chunk.
pub(crate) fn speed() -> f32 {
    let table = table();
    let began = Instant::now();
    let (mut state, mut best) = (1_u64, 0_f64);
    // Brings table and code into the caches.
    state = walk(&table, state);
    for _ in 0..ROUNDS {
        // Not the wall's clock: what a stop or another program takes is not this CPU's slowness.
        let start = thread_time();
        let mut steps = 0_u32;
        let spent = loop {
            state = walk(&table, state);
            steps += CHUNK;
            let spent = thread_time().saturating_sub(start);
            if spent >= ROUND || began.elapsed() >= BOUND {
                break spent;
            }
        };
        if !spent.is_zero() {
            best = best.max(f64::from(steps) / spent.as_secs_f64());
        }
        if began.elapsed() >= BOUND {
            break;
        }
    }
    black_box(state);
    // Two decimals: what is behind them differs from boot to boot.
    ((best / UNIT * 100.0).round() / 100.0) as f32
}

fn table() -> Vec<u32> {
    let mut value = 1_u32;
    let next = || {
        value = value.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        value
    };
    std::iter::repeat_with(next).take(ENTRIES).collect()
}

fn walk(table: &[u32], mut state: u64) -> u64 {
    for _ in 0..CHUNK {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let place = (state >> 46) as usize % ENTRIES;
        state ^= u64::from(table.get(place).copied().unwrap_or(0));
    }
    state
}

fn thread_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figure_is_about_the_same_again_and_ends_in_time_beside_busy_neighbours() {
        let alone = speed();
        assert!(alone > 0.0);
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
            // The best of some: this machine has more to do than this test.
            let crowded = (0..5).map(|_| speed()).fold(0_f32, f32::max);
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            // By the wall it would be a quarter or less. The rest is shared caches, and this test's own machine.
            assert!(crowded > alone * 0.5, "{crowded} beside eight, {alone} alone");
        });
    }
}
