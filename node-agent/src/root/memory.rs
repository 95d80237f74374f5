//! Whether an image fits into this PC's memory, before a byte of it is fetched. A PC that says no with its figures is better than
//! one whose kernel kills its programs.

use std::time::Duration;

/// What of the memory stays free for this node's own programs, the kernel's buffers and a person's key press, in KiB.
pub(crate) const RESERVE_KIB: u64 = 32 * 1024;
/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// The two figures of `/proc/meminfo` that count, in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Memory {
    pub(crate) total: u64,
    pub(crate) available: u64,
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
    /// Of this machine, from the text of `/proc/meminfo`.
    pub(crate) fn parse(text: &str) -> Self {
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        Self {
            total: field("MemTotal:").unwrap_or(0),
            available: field("MemAvailable:").unwrap_or(0),
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

    /// What is in use.
    pub(crate) fn used(self) -> u64 {
        self.total.saturating_sub(self.available)
    }
}

/// The most that was ever in use, as far as it was looked at.
#[derive(Debug, Default)]
pub(crate) struct Peak {
    used_kib: u64,
    next: Duration,
}

impl Peak {
    /// Whether it is time to look.
    pub(crate) fn is_due(&self, now: Duration) -> bool {
        now >= self.next
    }

    /// What a look found.
    pub(crate) fn handle_memory(&mut self, now: Duration, memory: Memory) {
        self.next = now + LOOK;
        self.used_kib = self.used_kib.max(memory.used());
    }

    /// `MemTotal - MemAvailable` at its highest, in KiB.
    pub(crate) fn used_kib(&self) -> u64 {
        self.used_kib
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn an_image_that_does_not_fit_is_refused_with_the_figures() {
        let memory = Memory::parse("MemTotal:  512000 kB\nMemFree: 1 kB\nMemAvailable:  307200 kB\n");
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
    fn the_peak_stays() {
        let mut peak = Peak::default();
        for available in [400, 100, 300] {
            peak.handle_memory(
                Duration::ZERO,
                Memory {
                    total: 500,
                    available,
                },
            );
        }
        assert_eq!(peak.used_kib(), 400);
        assert!(!peak.is_due(Duration::from_millis(999)) && peak.is_due(Duration::from_secs(1)));
    }
}
