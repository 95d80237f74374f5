//! What ranks say, to our stdout and stderr. A single rank's bytes go through as they come; of several, whole lines, so that none is torn.

use std::collections::BTreeMap;

use bytes::Bytes;
use cid_streams::{Channel, StreamId};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::port::Port;

/// A line that is longer is cut: it must not wait for its end.
const LONGEST_LINE: usize = 8 * 1024;

/// `None`: the stream has ended.
type Given = (u32, Option<Bytes>);

/// A task that writes to one of the two.
pub(super) struct Sink {
    sender: mpsc::UnboundedSender<Given>,
    task: JoinHandle<()>,
}

impl Sink {
    pub(super) fn start(channel: Channel, port: &Port, ranks: u32, label: bool) -> Self {
        let (sender, given) = mpsc::unbounded_channel();
        let lines = Lines::new(ranks, label);
        let port = port.clone();
        let task = match channel {
            Channel::Stdout => tokio::spawn(write(tokio::io::stdout(), channel, port, lines, given)),
            _ => tokio::spawn(write(tokio::io::stderr(), channel, port, lines, given)),
        };
        Self { sender, task }
    }

    pub(super) fn give(&self, rank: u32, data: Option<Bytes>) {
        let _ = self.sender.send((rank, data));
    }

    /// Waits until all is written.
    pub(super) async fn finish(self) {
        drop(self.sender);
        let _ = self.task.await;
    }
}

async fn write(
    mut file: impl AsyncWrite + Unpin,
    channel: Channel,
    port: Port,
    mut lines: Lines,
    mut given: mpsc::UnboundedReceiver<Given>,
) {
    let mut open = true;
    while let Some((rank, data)) = given.recv().await {
        let stream = StreamId { rank, channel };
        let length = data.as_ref().map_or(0, Bytes::len);
        let text = match &data {
            Some(data) => lines.handle(rank, data),
            None => lines.end(rank),
        };
        if open {
            let written = async {
                file.write_all(&text).await?;
                // What a program says is seen at once.
                file.flush().await
            };
            open = written.await.is_ok();
        }
        match open {
            true if length > 0 => port.consumed(stream, length),
            true => {}
            // `| head -1`: the program hears of it as it would here, by SIGPIPE.
            false => port.stop(stream),
        }
    }
}

/// Cuts what ranks say into lines. A core.
#[derive(Debug)]
pub(super) struct Lines {
    ranks: u32,
    label: bool,
    width: usize,
    begun: BTreeMap<u32, Vec<u8>>,
}

impl Lines {
    fn new(ranks: u32, label: bool) -> Self {
        let width = ranks.saturating_sub(1).to_string().len();
        Self {
            ranks,
            label,
            width,
            begun: BTreeMap::new(),
        }
    }

    /// What is to be written now.
    fn handle(&mut self, rank: u32, data: &[u8]) -> Vec<u8> {
        if self.ranks == 1 && !self.label {
            return data.to_vec();
        }
        let mut line = self.begun.remove(&rank).unwrap_or_default();
        let mut out = Vec::new();
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            line.extend(piece);
            if line.ends_with(b"\n") || line.len() >= LONGEST_LINE {
                self.put(rank, &line, &mut out);
                line.clear();
            }
        }
        if !line.is_empty() {
            self.begun.insert(rank, line);
        }
        out
    }

    /// The last line, which no newline ended; with a label it gets one.
    fn end(&mut self, rank: u32) -> Vec<u8> {
        let mut out = Vec::new();
        if let Some(line) = self.begun.remove(&rank) {
            self.put(rank, &line, &mut out);
        }
        out
    }

    fn put(&self, rank: u32, line: &[u8], out: &mut Vec<u8>) {
        if self.label {
            out.extend(format!("{rank:>width$}: ", width = self.width).as_bytes());
        }
        out.extend(line);
        if self.label && !line.ends_with(b"\n") {
            out.push(b'\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_rank_is_untouched() {
        let mut lines = Lines::new(1, false);
        assert_eq!(lines.handle(0, b"a\0\xffb"), b"a\0\xffb");
        assert_eq!(lines.end(0), b"");
    }

    #[test]
    fn lines_of_several_are_whole_and_labelled_on_request() {
        let mut lines = Lines::new(12, false);
        assert_eq!(lines.handle(3, b"one\ntw"), b"one\n");
        assert_eq!(lines.handle(4, b"other\n"), b"other\n");
        assert_eq!(lines.handle(3, b"o\nrest"), b"two\n");
        assert_eq!(lines.end(3), b"rest");
        let mut lines = Lines::new(12, true);
        assert_eq!(lines.handle(3, b"one\ntwo\nthr"), b" 3: one\n 3: two\n");
        assert_eq!(lines.end(3), b" 3: thr\n");
        assert_eq!(lines.handle(11, &[b'x'; LONGEST_LINE]).len(), LONGEST_LINE + 5);
    }
}
