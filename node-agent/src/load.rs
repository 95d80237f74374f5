//! How loaded this node is, in a membership's eight bytes. Must not report every flicker: what changes by a step travels to everybody.

use cid_discovery::load::LoadVector;

use crate::{hardware, links};

/// Measures once a second, and smooths over ten.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    runnable: Option<f32>,
}

/// Weight of the newest measurement.
const NEWEST: f32 = 0.1;

impl Meter {
    /// Now, of a node whose link in use has this name and whose CPU was judged to be this fast.
    pub(crate) fn measure(&mut self, link: &str, cpu_speed: Option<f32>) -> LoadVector {
        let runnable = runnable(&hardware::read("/proc/loadavg")).unwrap_or(0.0);
        let smooth = self
            .runnable
            .map_or(runnable, |before| before + (runnable - before) * NEWEST);
        self.runnable = Some(smooth);
        let (_, speed_mbit) = links::driver_and_speed(link);
        LoadVector {
            // `as` saturates.
            runnable_tenths: (smooth * 10.0) as u16,
            pressure_percent: pressure(&hardware::read("/proc/pressure/cpu")),
            memory_available_16mib: u16::try_from(hardware::load().memory_available_kib / (16 * 1024))
                .unwrap_or(u16::MAX),
            speed: thousandths(cpu_speed),
            link_log2_mbit: speed_mbit.checked_ilog2().map_or(0, |log| log as u8),
        }
    }
}

/// As it travels. 0 means that it is not known: a very slow CPU is not that.
fn thousandths(speed: Option<f32>) -> u16 {
    speed.map_or(0, |speed| ((speed * 1_000.0).round() as u16).max(1))
}

/// Tasks that run or want to, from `/proc/loadavg`; the one that reads it does not count.
fn runnable(loadavg: &str) -> Option<f32> {
    let (running, _) = loadavg.split(' ').nth(3)?.split_once('/')?;
    let running: u16 = running.parse().ok()?;
    Some(f32::from(running.saturating_sub(1)))
}

/// `some avg10` of `/proc/pressure/cpu`; 0 where the kernel does not measure it.
fn pressure(text: &str) -> u8 {
    let average = text
        .lines()
        .find_map(|line| line.strip_prefix("some avg10=")?.split(' ').next());
    average
        .and_then(|average| average.parse::<f32>().ok())
        .map_or(0, |percent| percent.clamp(0.0, 100.0) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_travels_in_thousandths_and_none_is_nothing() {
        let speeds = [None, Some(1.27), Some(0.000_1), Some(1e9), Some(f32::NAN)];
        assert_eq!(speeds.map(thousandths), [0, 1_270, 1, u16::MAX, 1]);
    }

    #[test]
    fn reads_what_the_kernel_writes() {
        assert_eq!(runnable("0.20 0.18 0.12 3/80 11206"), Some(2.0));
        assert_eq!(runnable("0.20 0.18"), None);
        let text =
            "some avg10=12.75 avg60=0.00 avg300=0.00 total=9\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0";
        assert_eq!((pressure(text), pressure("")), (12, 0));
    }
}
