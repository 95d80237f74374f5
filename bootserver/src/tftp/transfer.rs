//! One transfer: what is in flight, what is acknowledged, when to send again. Must own no socket and no clock.

use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;

/// Retransmission time before anything was measured; a room of firmware clients answers within milliseconds.
const FIRST_TIMEOUT: Duration = Duration::from_secs(1);
/// Firmware that writes to its screen between blocks must not be taken for a loss.
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(200);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(3);
/// A client that has said nothing for this long is gone. Firmware itself gives up after some 16 s.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Octets per block without the option (RFC 1350).
pub const DEFAULT_BLOCK_SIZE: u16 = 512;

/// What an acknowledgement or a deadline leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Send these blocks.
    Send(RangeInclusive<u64>),
    /// Send the OACK.
    SendOptions,
    /// Nothing: a duplicate or a late packet.
    Ignore,
    /// The client has all of it.
    Finished,
    /// The client is gone.
    GivenUp,
}

/// State of one transfer. Blocks are numbered from 1 without roll-over here; on the wire they are modulo 65536.
#[derive(Debug)]
pub struct Transfer {
    content: Bytes,
    block_size: u16,
    window_size: u16,
    /// The answer to the client's options, for as long as it waits for ACK 0.
    options: Option<Vec<u8>>,
    /// Highest block acknowledged; after a restart: a block that certainly was, at most 16384 behind.
    acknowledged: u64,
    /// Highest block sent since the last acknowledgement.
    sent: u64,
    /// After a restart: the next acknowledgement says where the client is.
    resumed: bool,
    /// The window was sent again because of a repeated ACK; a second one within it is the network's doing.
    repeated: bool,
    timing: Timing,
}

/// Round-trip times and the next deadline.
#[derive(Debug)]
struct Timing {
    fixed: Option<Duration>,
    smoothed: Option<(Duration, Duration)>,
    /// When the packets that are out were first sent; `None` after a retransmission (Karn's rule).
    sent_at: Option<Duration>,
    backoff: u32,
    /// When the window that is out left, for the first time or again.
    window_at: Duration,
    deadline: Duration,
    heard: Duration,
}

impl Timing {
    fn new(now: Duration, fixed: Option<Duration>) -> Self {
        Self {
            fixed,
            smoothed: None,
            sent_at: None,
            backoff: 0,
            window_at: now,
            deadline: now + PATIENCE,
            heard: now,
        }
    }

    /// RFC 6298's estimate, with a floor and a ceiling that suit firmware.
    fn timeout(&self) -> Duration {
        if let Some(fixed) = self.fixed {
            return fixed;
        }
        let base = match self.smoothed {
            Some((mean, deviation)) => (mean + deviation * 4).max(SHORTEST_TIMEOUT),
            None => FIRST_TIMEOUT,
        };
        (base * 2_u32.pow(self.backoff.min(4))).min(LONGEST_TIMEOUT)
    }

    fn sent(&mut self, now: Duration, again: bool) {
        self.sent_at = (!again).then_some(now);
        self.window_at = now;
        self.deadline = now + self.timeout();
    }

    fn heard(&mut self, now: Duration) {
        self.heard = now;
        self.backoff = 0;
        if let Some(sent) = self.sent_at.take() {
            let sample = now.saturating_sub(sent);
            self.smoothed = Some(match self.smoothed {
                None => (sample, sample / 2),
                Some((mean, deviation)) => (
                    (mean * 7 + sample) / 8,
                    (deviation * 3 + mean.abs_diff(sample)) / 4,
                ),
            });
        }
    }
}

impl Transfer {
    /// A new transfer. `options`: OACK to be acknowledged first, if the client asked for any. `timeout`: what it asked for.
    pub fn new(
        now: Duration,
        content: Bytes,
        (block_size, window_size): (u16, u16),
        options: Option<Vec<u8>>,
        timeout: Option<Duration>,
    ) -> Self {
        Self {
            content,
            block_size: block_size.max(8),
            window_size: window_size.max(1),
            options,
            acknowledged: 0,
            sent: 0,
            resumed: false,
            repeated: false,
            timing: Timing::new(now, timeout),
        }
    }

    /// A transfer that an earlier life of this process began; `acknowledged` is a block that the client certainly has.
    pub fn resume(now: Duration, content: Bytes, sizes: (u16, u16), acknowledged: u64) -> Self {
        let mut transfer = Self::new(now, content, sizes, None, None);
        transfer.acknowledged = acknowledged.min(transfer.last_block());
        transfer.sent = transfer.acknowledged;
        transfer.resumed = true;
        transfer.timing.deadline = now + FIRST_TIMEOUT;
        transfer
    }

    /// Number of the last block; it is shorter than the others, empty if need be.
    pub fn last_block(&self) -> u64 {
        self.content.len() as u64 / u64::from(self.block_size) + 1
    }

    /// Highest acknowledged block.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Whether nothing of the content was acknowledged yet.
    pub fn is_fresh(&self) -> bool {
        self.acknowledged == 0 && !self.resumed
    }

    /// The OACK, while it is waited for.
    pub fn options(&self) -> Option<&[u8]> {
        self.options.as_deref()
    }

    /// Content of a block; shares memory with the file.
    pub fn block(&self, number: u64) -> Bytes {
        let size = usize::from(self.block_size);
        let start = usize::try_from(number.saturating_sub(1))
            .unwrap_or(usize::MAX)
            .saturating_mul(size)
            .min(self.content.len());
        let end = start.saturating_add(size).min(self.content.len());
        self.content.slice(start..end)
    }

    /// When [`Self::handle_deadline`] wants to be called.
    pub fn deadline(&self) -> Duration {
        self.timing.deadline
    }

    /// What goes out first, and again when the same request comes again.
    pub fn begin(&mut self, now: Duration) -> Next {
        if self.options.is_some() {
            self.timing.sent(now, self.timing.backoff > 0);
            return Next::SendOptions;
        }
        self.send_window(now, false)
    }

    /// ACK `wire` has come.
    pub fn handle_acknowledgement(&mut self, now: Duration, wire: u16) -> Next {
        if self.options.is_some() {
            if wire != 0 {
                return Next::Ignore;
            }
            self.options = None;
            self.timing.heard(now);
            return self.send_window(now, false);
        }
        let ahead = u64::from(wire.wrapping_sub(low(self.acknowledged)));
        if self.resumed {
            let reached = self.acknowledged + ahead;
            if reached > self.last_block() {
                return Next::Ignore;
            }
            self.resumed = false;
            self.acknowledged = reached;
        } else if ahead == 0 {
            return self.handle_repeated(now);
        } else if ahead > self.sent - self.acknowledged {
            // Late, from before what is acknowledged: an answer to it would double every packet from here on
            // (the "Sorcerer's Apprentice Syndrome", RFC 1123 section 4.2.3.1).
            return Next::Ignore;
        } else {
            self.acknowledged += ahead;
        }
        self.repeated = false;
        self.timing.heard(now);
        if self.acknowledged >= self.last_block() {
            return Next::Finished;
        }
        self.send_window(now, false)
    }

    /// The block acknowledged last is acknowledged again. In lock step that is a duplicate. In a window it is how a client
    /// says that the window's first block is missing (RFC 7440 section 4): once per window that is believed, and not
    /// before an answer to that window can be here: an earlier one answers packets from before, and would double every
    /// window that follows.
    fn handle_repeated(&mut self, now: Duration) -> Next {
        let round_trip = self.timing.smoothed.map(|(mean, _)| mean * 3 / 4);
        let answered = round_trip.is_some_and(|time| now.saturating_sub(self.timing.window_at) >= time);
        if self.window_size == 1 || self.repeated || !answered || self.sent <= self.acknowledged + 1 {
            return Next::Ignore;
        }
        self.repeated = true;
        self.timing.heard = now;
        self.send_window(now, true)
    }

    fn send_window(&mut self, now: Duration, again: bool) -> Next {
        let first = self.acknowledged + 1;
        let last = (self.acknowledged + u64::from(self.window_size)).min(self.last_block());
        self.sent = last;
        self.timing.sent(now, again);
        Next::Send(first..=last)
    }

    /// The deadline has come.
    pub fn handle_deadline(&mut self, now: Duration) -> Next {
        if now < self.timing.deadline {
            return Next::Ignore;
        }
        if now.saturating_sub(self.timing.heard) >= PATIENCE {
            return Next::GivenUp;
        }
        // After a restart, too: where the client stands it says when it sees an old block.
        self.timing.backoff += 1;
        self.repeated = false;
        if self.options.is_some() {
            self.timing.sent(now, true);
            return Next::SendOptions;
        }
        self.send_window(now, true)
    }
}

/// A block's number on the wire: after 65535 comes 0.
pub fn low(block: u64) -> u16 {
    (block & 0xffff) as u16
}
