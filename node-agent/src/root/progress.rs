//! How far an image is, in words: for the person at the PC and for the head.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

/// The speed is that of so many of the last looks.
const LOOKS: usize = 5;
/// Nothing came for this long: what it waits for is said.
const STILL: Duration = Duration::from_secs(3);
const MB: u64 = 1_000_000;

/// What came, and from whom.
#[derive(Debug)]
pub(crate) struct Progress {
    image: String,
    of: u64,
    have: u64,
    /// Of this fetch alone.
    head_bytes: u64,
    peer_bytes: u64,
    peers: BTreeSet<String>,
    /// Time and bytes of the last looks.
    looks: VecDeque<(Duration, u64)>,
    came: Duration,
    waits: String,
}

/// One look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) text: String,
    pub(crate) have: u64,
    pub(crate) of: u64,
    /// Empty while bytes come.
    pub(crate) waits: String,
}

impl Progress {
    /// Of an image of `of` bytes, `have` of which were here before.
    pub(crate) fn new(image: String, of: u64, have: u64) -> Self {
        Self {
            image,
            of,
            have,
            head_bytes: 0,
            peer_bytes: 0,
            peers: BTreeSet::new(),
            looks: VecDeque::new(),
            came: Duration::ZERO,
            waits: String::new(),
        }
    }

    /// The head gave that many.
    pub(crate) fn head_gave(&mut self, bytes: u64) {
        self.head_bytes += bytes;
        self.have += bytes;
    }

    /// A node gave that many.
    pub(crate) fn peer_gave(&mut self, name: &str, bytes: u64) {
        self.peer_bytes += bytes;
        self.have += bytes;
        if !self.peers.contains(name) {
            self.peers.insert(name.to_owned());
        }
    }

    /// What went wrong last.
    pub(crate) fn waits(&mut self, why: String) {
        self.waits = why;
    }

    /// A look, every second.
    pub(crate) fn tick(&mut self, now: Duration) -> Shown {
        if self.looks.back().is_none_or(|(_, have)| *have != self.have) {
            self.came = now;
        }
        self.looks.push_back((now, self.have));
        if self.looks.len() > LOOKS {
            self.looks.pop_front();
        }
        let still = now >= self.came + STILL;
        let waits = match (still, self.waits.is_empty()) {
            (false, _) => String::new(),
            (true, true) => "its turn at the head".to_owned(),
            (true, false) => self.waits.clone(),
        };
        if !still {
            self.waits.clear();
        }
        let far = format!(
            "fetches {}: {} of {} MB",
            self.image,
            self.have / MB,
            self.of.div_ceil(MB)
        );
        let text = if still {
            format!("{far}; waits for {waits}")
        } else {
            format!("{far}, {:.1} MB/s, from {}", self.speed(), self.sources())
        };
        Shown {
            text,
            have: self.have,
            of: self.of,
            waits,
        }
    }

    /// Where it all came from.
    pub(crate) fn sum(&self) -> String {
        format!(
            "{:.1} MB from the head, {:.1} MB from {} PCs",
            megabytes(self.head_bytes),
            megabytes(self.peer_bytes),
            self.peers.len()
        )
    }

    fn speed(&self) -> f64 {
        let (Some((from, first)), Some((to, last))) = (self.looks.front(), self.looks.back()) else {
            return 0.0;
        };
        let secs = to.saturating_sub(*from).as_secs_f64();
        if secs > 0.0 {
            megabytes(last - first) / secs
        } else {
            0.0
        }
    }

    fn sources(&self) -> String {
        match (self.head_bytes, self.peers.len()) {
            (_, 0) => "the head".to_owned(),
            (0, 1) => "1 PC".to_owned(),
            (0, peers) => format!("{peers} PCs"),
            (_, 1) => "the head and 1 PC".to_owned(),
            (_, peers) => format!("the head and {peers} PCs"),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / MB as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn a_person_reads_how_far_it_is_how_fast_and_what_it_waits_for() {
        let mut progress = Progress::new("compute@3".into(), 200 * MB, 0);
        assert_eq!(
            progress.tick(at(0)).text,
            "fetches compute@3: 0 of 200 MB, 0.0 MB/s, from the head"
        );
        progress.head_gave(10 * MB);
        for peer in ["lab-a02", "lab-a03", "lab-a02"] {
            progress.peer_gave(peer, 8 * MB);
        }
        let shown = progress.tick(at(1));
        assert_eq!(
            shown.text,
            "fetches compute@3: 34 of 200 MB, 34.0 MB/s, from the head and 2 PCs"
        );
        assert_eq!(
            (shown.have, shown.of, shown.waits.as_str()),
            (34 * MB, 200 * MB, "")
        );
        progress.tick(at(2));
        assert_eq!(
            progress.tick(at(4)).text,
            "fetches compute@3: 34 of 200 MB; waits for its turn at the head"
        );
        progress.waits("the head: it answers with status 503".into());
        assert_eq!(progress.tick(at(5)).waits, "the head: it answers with status 503");
        progress.head_gave(MB);
        assert_eq!(progress.tick(at(6)).waits, "");
        assert_eq!(progress.sum(), "11.0 MB from the head, 24.0 MB from 2 PCs");
    }
}
