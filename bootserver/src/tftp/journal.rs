//! What a restarted server needs to go on with the transfers of the one before it: a small file, appended to as transfers begin
//! and end. It survives a killed process; it is not synchronised, because clients do not survive a power cut of the head either.
//!
//! Must never be trusted: it is read with bounds, and a line that makes no sense is left out.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::SocketAddrV4;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::server::MAX_TRANSFERS;

/// Up to this size a file's content is in the journal itself: scripts, which would not be rendered twice to the same effect.
const SMALL: usize = 4 * 1024;
/// The journal is written anew when it is longer than this.
const COMPACT: u64 = 1024 * 1024;
/// Octets at either end of a file that its mark is made of.
const MARKED: usize = 4 * 1024;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A transfer began.
    Begun {
        /// Client.
        client: SocketAddrV4,
        /// What it needs to go on.
        record: Record,
    },
    /// The client certainly has this block.
    Progress {
        /// Client.
        client: SocketAddrV4,
        /// Block, counted without roll-over.
        block: u64,
    },
    /// The transfer is over.
    Ended {
        /// Client.
        client: SocketAddrV4,
    },
}

/// A transfer that was under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// File asked for.
    pub path: String,
    /// Octets per block.
    pub block_size: u16,
    /// Blocks per acknowledgement.
    pub window_size: u16,
    /// Length and ends of the content, hashed: what is served now must be what was served then.
    pub mark: [u8; 8],
    /// A block that the client certainly has.
    pub acknowledged: u64,
    /// The content itself, if it is small.
    pub content: Option<Bytes>,
}

/// The mark of a content.
pub fn mark(content: &[u8]) -> [u8; 8] {
    let mut hash = Sha256::new();
    hash.update((content.len() as u64).to_be_bytes());
    hash.update(content.get(..MARKED).unwrap_or(content));
    let end = content.len().saturating_sub(MARKED);
    hash.update(content.get(end..).unwrap_or(content));
    let mut mark = [0; 8];
    for (to, from) in mark.iter_mut().zip(hash.finalize()) {
        *to = from;
    }
    mark
}

impl Entry {
    /// A transfer begins.
    pub fn begun(
        client: SocketAddrV4,
        path: &str,
        (block_size, window_size): (u16, u16),
        content: &Bytes,
    ) -> Self {
        let record = Record {
            path: path.to_owned(),
            block_size,
            window_size,
            mark: mark(content),
            acknowledged: 0,
            content: (content.len() <= SMALL).then(|| content.clone()),
        };
        Self::Begun { client, record }
    }

    fn line(&self) -> String {
        match self {
            Self::Begun { client, record } => {
                let content = record.content.as_deref().map_or("-".to_owned(), hex);
                // An empty content is "" in hex; the letter keeps the word from vanishing.
                format!(
                    "B {client} {} {} {} {} x{} x{content}\n",
                    record.block_size,
                    record.window_size,
                    hex(&record.mark),
                    record.acknowledged,
                    hex(record.path.as_bytes()),
                )
            }
            Self::Progress { client, block } => format!("P {client} {block}\n"),
            Self::Ended { client } => format!("E {client}\n"),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let kind = words.next()?;
        let client = words.next()?.parse().ok()?;
        match kind {
            "B" => {
                let block_size = words.next()?.parse().ok()?;
                let window_size = words.next()?.parse().ok()?;
                let mark = unhex(words.next()?)?.try_into().ok()?;
                let acknowledged = words.next()?.parse().ok()?;
                let path = String::from_utf8(unhex(words.next()?.strip_prefix('x')?)?).ok()?;
                let content = match words.next()?.strip_prefix('x')? {
                    "-" => None,
                    text => Some(Bytes::from(unhex(text)?)),
                };
                let record = Record {
                    path,
                    block_size,
                    window_size,
                    mark,
                    acknowledged,
                    content,
                };
                Some(Self::Begun { client, record })
            }
            "P" => Some(Self::Progress {
                client,
                block: words.next()?.parse().ok()?,
            }),
            "E" => Some(Self::Ended { client }),
            _ => None,
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len() / 2)
        .map(|at| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok())
        .collect()
}

/// Transfers under way, as a journal tells them; bounded, and blind to lines that make no sense.
pub fn read(text: &str) -> BTreeMap<SocketAddrV4, Record> {
    let mut live = BTreeMap::<SocketAddrV4, Record>::new();
    for entry in text.lines().filter_map(Entry::parse) {
        match entry {
            Entry::Begun { client, record } => {
                if live.len() < MAX_TRANSFERS || live.contains_key(&client) {
                    live.insert(client, record);
                }
            }
            Entry::Progress { client, block } => {
                if let Some(record) = live.get_mut(&client) {
                    record.acknowledged = block;
                }
            }
            Entry::Ended { client } => {
                live.remove(&client);
            }
        }
    }
    live
}

/// The file.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Journal {
    /// Reads what the one before left, and begins anew with it. What cannot be read is as good as absent.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn open(path: &Path) -> io::Result<(Self, BTreeMap<SocketAddrV4, Record>)> {
        let mut text = String::new();
        if let Ok(file) = File::open(path) {
            let bounded = file.take(4 * COMPACT).read_to_string(&mut text);
            if let Err(error) = bounded {
                tracing::warn!(path = %path.display(), %error, "TFTP journal not readable: transfers under way are lost");
                text.clear();
            }
        }
        let live = read(&text);
        let (file, length) = rewrite(path, &live)?;
        let path = path.to_owned();
        Ok((Self { path, file, length }, live))
    }

    /// Adds a line. A journal that cannot be written costs a restart's continuity, not the transfer.
    pub fn append(&mut self, entry: &Entry) {
        let line = entry.line();
        match self.file.write_all(line.as_bytes()) {
            Ok(()) => self.length += line.len() as u64,
            Err(error) => tracing::debug!(%error, "TFTP journal not written"),
        }
        if self.length > COMPACT
            && let Err(error) = self.compact()
        {
            tracing::warn!(path = %self.path.display(), %error, "TFTP journal not shortened");
            self.length = 0;
        }
    }

    fn compact(&mut self) -> io::Result<()> {
        let live = read(&std::fs::read_to_string(&self.path)?);
        (self.file, self.length) = rewrite(&self.path, &live)?;
        Ok(())
    }
}

/// Puts a journal of these in the place of the one that is there; whoever reads meanwhile finds one of the two, whole.
fn rewrite(path: &Path, live: &BTreeMap<SocketAddrV4, Record>) -> io::Result<(File, u64)> {
    let begun = |(client, record): (&SocketAddrV4, &Record)| Entry::Begun {
        client: *client,
        record: record.clone(),
    };
    let text: String = live.iter().map(|one| begun(one).line()).collect();
    let next = path.with_extension("new");
    // Scripts are in it, and a script holds a token that is good for two minutes.
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&next)?;
    file.write_all(text.as_bytes())?;
    std::fs::rename(&next, path)?;
    Ok((file, text.len() as u64))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client(port: u16) -> SocketAddrV4 {
        SocketAddrV4::new([10, 77, 0, 100].into(), port)
    }

    #[test]
    fn what_is_under_way_is_told_and_what_ended_is_not() {
        let small = Bytes::from_static(b"a script");
        let large = Bytes::from(vec![7; 100_000]);
        let lines = [
            Entry::begun(client(1), "grub.cfg", (1024, 1), &small),
            Entry::begun(client(2), "a b/shimx64.efi", (1468, 4), &large),
            Entry::begun(client(3), "", (512, 1), &Bytes::new()),
            Entry::Progress {
                client: client(2),
                block: 16_384,
            },
            Entry::Ended { client: client(1) },
        ];
        let text: String = lines.iter().map(Entry::line).collect();
        let live = read(&text);
        assert_eq!(live.keys().copied().collect::<Vec<_>>(), [client(2), client(3)]);
        let record = &live[&client(2)];
        assert_eq!(
            (record.path.as_str(), record.acknowledged),
            ("a b/shimx64.efi", 16_384)
        );
        assert_eq!((record.mark, &record.content), (mark(&large), &None));
        assert_eq!(live[&client(3)].content, Some(Bytes::new()));
    }

    #[test]
    fn a_journal_that_grows_is_shortened_to_what_is_under_way() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("tftp.journal");
        let (mut journal, live) = Journal::open(&path).expect("opens");
        assert!(live.is_empty());
        let content = Bytes::from(vec![1; SMALL]);
        journal.append(&Entry::begun(client(9), "kept", (512, 1), &content));
        for round in 0..400 {
            journal.append(&Entry::begun(client(round), "x", (512, 1), &content));
            if round != 9 {
                journal.append(&Entry::Ended {
                    client: client(round),
                });
            }
        }
        assert!(std::fs::metadata(&path).expect("there").len() < COMPACT + 10_000);
        drop(journal);
        let (_, live) = Journal::open(&path).expect("opens");
        assert_eq!(live.keys().copied().collect::<Vec<_>>(), [client(9)]);
    }

    proptest! {
        #[test]
        fn no_journal_panics(text in "([BPE] [0-9.]{7,12}:[0-9]{1,5} [0-9a-fx -]{0,60}\n|.{0,20}\n){0,8}") {
            prop_assert!(read(&text).len() <= MAX_TRANSFERS);
        }
    }
}
