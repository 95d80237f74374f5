//! One end of a hop for the streams of one job: what may be sent next, in turn; what came, within its window.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use bytes::{Bytes, BytesMut};

use crate::CHUNK;
use crate::frame::{Kind, StreamId};

/// The other side broke the rules. Its connection, or its job, is to be ended: what it sends cannot be believed any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Overrun {
    /// More bytes than it had credit for.
    #[error("more data than was allowed")]
    Data,
    /// More credit than it got data.
    #[error("more credit than there was data")]
    Credit,
    /// A rank that is none of this job's here.
    #[error("a stream of another rank")]
    Rank,
    /// Data behind the end.
    #[error("data behind the end of a stream")]
    AfterEnd,
}

/// What came, for whoever uses the streams. Credit is the mux' own business.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// Bytes; [`Mux::consumed`] is to be told when they are gone.
    Data(StreamId, Bytes),
    /// No more will come of this stream.
    End(StreamId),
    /// The other side reads no more of this stream: what waits was dropped, and more need not be queued.
    Stop(StreamId),
    /// A message about the job.
    Control(Bytes),
    /// More of this stream may leave now.
    Credit(StreamId),
}

#[derive(Debug, Default)]
struct Out {
    waiting: BytesMut,
    credit: u32,
    /// In the round of those that can send.
    ready: bool,
    ended: bool,
    end_sent: bool,
    stopped: bool,
}

#[derive(Debug)]
struct In {
    /// What the other side may still send.
    allowed: u32,
    /// What was used up and is not given back yet.
    consumed: u32,
    ended: bool,
    stopped: bool,
}

/// One end.
#[derive(Debug)]
pub struct Mux {
    ranks: Range<u32>,
    window: u32,
    out: BTreeMap<StreamId, Out>,
    into: BTreeMap<StreamId, In>,
    /// Streams that have something to send and may, in turn.
    round: VecDeque<StreamId>,
    /// Leaves before data.
    first: VecDeque<Kind>,
}

impl Mux {
    /// For the streams of these ranks; the other end must have the same window ([`crate::window`]).
    #[must_use]
    pub fn new(ranks: Range<u32>, window: u32) -> Self {
        Self {
            ranks,
            window,
            out: BTreeMap::new(),
            into: BTreeMap::new(),
            round: VecDeque::new(),
            first: VecDeque::new(),
        }
    }

    /// How many bytes [`Self::queue`] takes of a stream now.
    #[must_use]
    pub fn room(&self, stream: StreamId) -> usize {
        let window = self.window as usize;
        match self.out.get(&stream) {
            Some(out) if out.ended || out.stopped => 0,
            Some(out) => window.saturating_sub(out.waiting.len()),
            None => window,
        }
    }

    /// Bytes that wait to be sent, of all streams.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.out.values().map(|out| out.waiting.len()).sum()
    }

    /// Messages, credit and the like that wait to be sent.
    #[must_use]
    pub fn waiting_first(&self) -> usize {
        self.first.len()
    }

    /// Whether everything that was to be sent has left.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        let sent = |out: &Out| out.waiting.is_empty() && (!out.ended || out.end_sent);
        self.first.is_empty() && self.out.values().all(sent)
    }

    /// Adds bytes to a stream. What a stopped stream is given is dropped; behind [`Self::end`] nothing is taken.
    pub fn queue(&mut self, stream: StreamId, bytes: &[u8]) {
        let out = self.open(stream);
        if out.ended || out.stopped {
            return;
        }
        out.waiting.extend_from_slice(bytes);
        self.enlist(stream);
    }

    /// Ends a stream behind what waits.
    pub fn end(&mut self, stream: StreamId) {
        self.open(stream).ended = true;
        self.enlist(stream);
    }

    /// A message about the job; leaves before any data.
    pub fn control(&mut self, text: impl Into<Bytes>) {
        self.first.push_back(Kind::Control(text.into()));
    }

    /// This side reads no more of a stream: tells the other.
    pub fn stop(&mut self, stream: StreamId) {
        let into = self.incoming(stream);
        if !into.stopped && !into.ended {
            into.stopped = true;
            self.first.push_back(Kind::Stop(stream));
        }
    }

    /// Bytes of [`Received::Data`] are gone: as many may come again.
    pub fn consumed(&mut self, stream: StreamId, bytes: usize) {
        let window = self.window;
        let into = self.incoming(stream);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        into.consumed = into.consumed.saturating_add(bytes);
        if into.ended || into.stopped {
            return;
        }
        // Not for each line: half a window is still under way.
        if into.consumed >= window / 2 {
            let credit = std::mem::take(&mut into.consumed);
            into.allowed = into.allowed.saturating_add(credit).min(window);
            self.first.push_back(Kind::Credit(stream, credit));
        }
    }

    /// What is to be sent next.
    pub fn poll_frame(&mut self) -> Option<Kind> {
        if let Some(kind) = self.first.pop_front() {
            return Some(kind);
        }
        while let Some(stream) = self.round.pop_front() {
            if let Some(kind) = self.next_of(stream) {
                return Some(kind);
            }
        }
        None
    }

    fn next_of(&mut self, stream: StreamId) -> Option<Kind> {
        let out = self.out.get_mut(&stream)?;
        out.ready = false;
        let length = out.waiting.len().min(CHUNK).min(out.credit as usize);
        if length == 0 {
            let ends = out.waiting.is_empty() && out.ended && !out.end_sent;
            out.end_sent |= ends;
            return ends.then_some(Kind::End(stream));
        }
        let data = Bytes::copy_from_slice(out.waiting.get(..length)?);
        out.credit -= u32::try_from(length).unwrap_or(out.credit);
        if length == out.waiting.len() {
            // Gives its memory back: most streams are silent most of the time.
            out.waiting = BytesMut::new();
        } else {
            bytes::Buf::advance(&mut out.waiting, length);
        }
        self.enlist(stream);
        Some(Kind::Data(stream, data))
    }

    /// Takes what came. `None`: nothing that anybody has to know.
    ///
    /// # Errors
    /// See [`Overrun`]; nothing more of this peer should be taken.
    pub fn handle(&mut self, kind: Kind) -> Result<Option<Received>, Overrun> {
        match kind {
            Kind::Control(text) => Ok(Some(Received::Control(text))),
            Kind::Data(stream, data) => {
                let into = self.known(stream)?;
                if into.ended {
                    return Err(Overrun::AfterEnd);
                }
                let length = u32::try_from(data.len()).map_err(|_| Overrun::Data)?;
                into.allowed = into.allowed.checked_sub(length).ok_or(Overrun::Data)?;
                let wanted = !into.stopped;
                Ok(wanted.then_some(Received::Data(stream, data)))
            }
            Kind::End(stream) => {
                let into = self.known(stream)?;
                let first = !std::mem::replace(&mut into.ended, true);
                Ok(first.then_some(Received::End(stream)))
            }
            Kind::Credit(stream, credit) => {
                self.check(stream)?;
                let window = self.window;
                let out = self.open(stream);
                out.credit = out.credit.checked_add(credit).ok_or(Overrun::Credit)?;
                if out.credit > window {
                    return Err(Overrun::Credit);
                }
                self.enlist(stream);
                Ok(Some(Received::Credit(stream)))
            }
            Kind::Stop(stream) => {
                self.check(stream)?;
                let out = self.open(stream);
                out.waiting = BytesMut::new();
                out.stopped = true;
                // Its end is still told.
                self.enlist(stream);
                Ok(Some(Received::Stop(stream)))
            }
        }
    }

    fn check(&self, stream: StreamId) -> Result<(), Overrun> {
        self.ranks
            .contains(&stream.rank)
            .then_some(())
            .ok_or(Overrun::Rank)
    }

    fn known(&mut self, stream: StreamId) -> Result<&mut In, Overrun> {
        self.check(stream)?;
        Ok(self.incoming(stream))
    }

    fn incoming(&mut self, stream: StreamId) -> &mut In {
        let allowed = self.window;
        self.into.entry(stream).or_insert(In {
            allowed,
            consumed: 0,
            ended: false,
            stopped: false,
        })
    }

    fn open(&mut self, stream: StreamId) -> &mut Out {
        let credit = self.window;
        self.out.entry(stream).or_insert_with(|| Out {
            credit,
            ..Out::default()
        })
    }

    /// Into the round, if it has something to send and may.
    fn enlist(&mut self, stream: StreamId) {
        let Some(out) = self.out.get_mut(&stream) else {
            return;
        };
        let data = !out.waiting.is_empty() && out.credit > 0;
        let end = out.waiting.is_empty() && out.ended && !out.end_sent;
        if !out.ready && (data || end) {
            out.ready = true;
            self.round.push_back(stream);
        }
    }
}
