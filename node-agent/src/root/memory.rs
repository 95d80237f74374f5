//! Whether an image fits into this PC's memory, before a byte of it is fetched. A PC that says no with its figures is better than
//! one whose kernel kills its programs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::hardware;

/// What of the memory stays free for this node's own programs, the kernel's buffers and a person's key press, in KiB.
pub(crate) const RESERVE_KIB: u64 = 32 * 1024;
/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// A page of x86-64, in KiB.
const PAGE_KIB: u64 = 4;

/// What the kernel says of the memory, in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Memory {
    pub(crate) total: u64,
    pub(crate) available: u64,
    /// Free, or nobody's who could not do without: pages of files that can be read again, and the kernel's own caches.
    spare: u64,
}

/// An image that does not fit, with the figures in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooLittle {
    needed: u64,
    image: u64,
    total: u64,
    available: u64,
}

impl std::fmt::Display for TooLittle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            needed,
            image,
            total,
            available,
        } = self;
        write!(
            f,
            "too little memory: it takes {needed} MB, {image} of them for its file; this PC has {available} MB free of {total}"
        )
    }
}

impl Memory {
    /// Of this machine, now.
    pub(crate) fn look() -> Self {
        Self::parse(
            &hardware::read("/proc/meminfo"),
            &hardware::read("/proc/zoneinfo"),
        )
    }

    /// From the texts of `/proc/meminfo` and `/proc/zoneinfo`.
    pub(crate) fn parse(text: &str, zones: &str) -> Self {
        let field = |name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let figure = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            figure.unwrap_or(0)
        };
        // Free pages that each processor keeps for itself, tens of MiB with much memory, are not in `MemFree`.
        let kept = zones
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix("count:"))
            .filter_map(|figure| figure.trim().parse::<u64>().ok())
            .fold(0, u64::saturating_add);
        let spare = [
            field("MemFree:"),
            field("Active(file):"),
            field("Inactive(file):"),
            field("KReclaimable:"),
            kept.saturating_mul(PAGE_KIB),
        ];
        Self {
            total: field("MemTotal:"),
            available: field("MemAvailable:"),
            spare: spare.iter().fold(0, |sum, part| sum.saturating_add(*part)),
        }
    }

    /// Whether an image fits whose file has `image_bytes`, and for which the build reckoned that `needed_bytes` must be free, the file
    /// among them.
    pub(crate) fn takes(self, image_bytes: u64, needed_bytes: u64) -> Result<(), TooLittle> {
        let image = image_bytes.div_ceil(1024);
        let needed = needed_bytes.div_ceil(1024).max(image.saturating_add(RESERVE_KIB));
        if needed <= self.available {
            return Ok(());
        }
        Err(TooLittle {
            needed: needed.div_ceil(1024),
            image: image.div_ceil(1024),
            total: self.total / 1024,
            available: self.available / 1024,
        })
    }

    /// What is in use. Not `MemTotal` less `MemAvailable`: that counts what the kernel keeps free for itself as used, 71 MiB of it
    /// as soon as the PC has memory enough for huge pages.
    pub(crate) fn used(self) -> u64 {
        self.total.saturating_sub(self.spare)
    }
}

/// The most that was ever in use, as far as it was looked at. Clones count together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Peak {
    used_kib: Arc<AtomicU64>,
    next: Duration,
}

impl Peak {
    /// Whether it is time to look.
    pub(crate) fn is_due(&self, now: Duration) -> bool {
        now >= self.next
    }

    /// What a look in its time found.
    pub(crate) fn handle_look(&mut self, now: Duration, memory: Memory) {
        self.next = now + LOOK;
        self.handle_memory(memory);
    }

    /// What a look between found.
    pub(crate) fn handle_memory(&self, memory: Memory) {
        self.used_kib.fetch_max(memory.used(), Ordering::Relaxed);
    }

    /// [`Memory::used`] at its highest, in KiB.
    pub(crate) fn used_kib(&self) -> u64 {
        self.used_kib.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn an_image_that_does_not_fit_is_refused_with_the_figures() {
        let memory = Memory::parse(
            "MemTotal:  512000 kB\nMemFree: 1 kB\nMemAvailable:  307200 kB\n",
            "",
        );
        assert_eq!((memory.total, memory.available), (512_000, 307_200));
        assert_eq!(memory.takes(268 * MIB, 300 * MIB), Ok(()));
        let refused = memory.takes(269 * MIB, 0).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "too little memory: it takes 301 MB, 269 of them for its file; this PC has 300 MB free of 500"
        );
        // The build knows of what comes after the file.
        assert!(memory.takes(100 * MIB, 301 * MIB).is_err());
        assert!(memory.takes(u64::MAX, u64::MAX).is_err());
    }

    #[test]
    fn what_the_kernel_could_give_away_is_not_in_use() {
        let text = "MemTotal:  1000 kB\nMemFree:  300 kB\nMemAvailable:  310 kB\nActive(file):  40 kB\n\
                    Inactive(file):  50 kB\nUnevictable:  200 kB\nKReclaimable:  10 kB\nSReclaimable:  10 kB\n";
        let zones = "Node 0, zone   Normal\n  pages free     75\n  pagesets\n    cpu: 0\n              count:    20\n              \
                     high:     50\n    cpu: 1\n              count:    5\n";
        assert_eq!(
            Memory::parse(text, zones).used(),
            1000 - 300 - 40 - 50 - 10 - 25 * 4
        );
        assert_eq!(
            Memory::parse("", "count: x\ncount: 18446744073709551615").used(),
            0
        );
    }

    #[test]
    fn the_peak_stays() {
        let mut peak = Peak::default();
        let look = |spare| Memory {
            total: 500,
            available: 0,
            spare,
        };
        for spare in [400, 100, 300] {
            peak.handle_look(Duration::ZERO, look(spare));
        }
        assert_eq!(peak.used_kib(), 400);
        peak.clone().handle_memory(look(90));
        assert_eq!(peak.used_kib(), 410);
        assert!(!peak.is_due(Duration::from_millis(999)) && peak.is_due(Duration::from_secs(1)));
    }
}
