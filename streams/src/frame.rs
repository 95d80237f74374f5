//! Frames as they travel. Whoever carries them says where each one ends: a big-endian `u32` length stands before each on every hop.
//!
//! | byte | field |
//! |---|---|
//! | 0 | kind: 1 data, 2 end, 3 credit, 4 stop, 5 control |
//! | 1-4 | job, big-endian; 0 where the connection has one job only |
//! | 5-8 | rank, big-endian; not in control frames |
//! | 9 | channel: 0 stdin, 1 stdout, 2 stderr; not in control frames |
//! | rest | bytes of data; credit as big-endian `u32`; control's text; nothing |
//!
//! A kind is below 0x20, so that JSON messages, which begin with a brace, can travel on the same connection.

use bytes::Bytes;

use crate::CHUNK;

/// Which of a program's standard streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// To the program.
    Stdin,
    /// From it.
    Stdout,
    /// From it, errors.
    Stderr,
}

impl Channel {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Stdin, Self::Stdout, Self::Stderr];

    fn code(self) -> u8 {
        match self {
            Self::Stdin => 0,
            Self::Stdout => 1,
            Self::Stderr => 2,
        }
    }
}

/// A stream of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId {
    /// Whose.
    pub rank: u32,
    /// Which.
    pub channel: Channel,
}

/// What a frame says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The next bytes of a stream, 1 to [`CHUNK`].
    Data(StreamId, Bytes),
    /// No more bytes will come.
    End(StreamId),
    /// So many more bytes may be sent.
    Credit(StreamId, u32),
    /// Who reads it wants no more of it.
    Stop(StreamId),
    /// About the job: a message of `cid_protocol::work`.
    Control(Bytes),
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Number of the job; 0 where the connection has one job only.
    pub job: u32,
    /// What it says.
    pub kind: Kind,
}

/// Why bytes are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// It ends too soon.
    #[error("a job frame that is cut short")]
    Short,
    /// An unknown kind.
    #[error("a job frame of kind {0}")]
    Kind(u8),
    /// An unknown channel.
    #[error("a job frame for channel {0}")]
    Channel(u8),
    /// Data of no bytes or of too many; bytes where none belong.
    #[error("a job frame of the wrong length")]
    Length,
}

const DATA: u8 = 1;
const END: u8 = 2;
const CREDIT: u8 = 3;
const STOP: u8 = 4;
const CONTROL: u8 = 5;

impl Frame {
    /// Whether the body of a frame is one of these, and no JSON.
    #[must_use]
    pub fn is_one(body: &[u8]) -> bool {
        body.first().is_some_and(|kind| *kind < 0x20)
    }

    /// Reads the body of a frame.
    ///
    /// # Errors
    /// See [`BadFrame`].
    pub fn decode(body: &[u8]) -> Result<Self, BadFrame> {
        let (kind, rest) = body.split_first().ok_or(BadFrame::Short)?;
        let (job, rest) = number(rest)?;
        if *kind == CONTROL {
            let kind = Kind::Control(Bytes::copy_from_slice(rest));
            return Ok(Self { job, kind });
        }
        if !(DATA..=STOP).contains(kind) {
            return Err(BadFrame::Kind(*kind));
        }
        let (rank, rest) = number(rest)?;
        let (channel, rest) = rest.split_first().ok_or(BadFrame::Short)?;
        let channel = match channel {
            0 => Channel::Stdin,
            1 => Channel::Stdout,
            2 => Channel::Stderr,
            other => return Err(BadFrame::Channel(*other)),
        };
        let stream = StreamId { rank, channel };
        let kind = match (*kind, rest) {
            (DATA, rest) if (1..=CHUNK).contains(&rest.len()) => {
                Kind::Data(stream, Bytes::copy_from_slice(rest))
            }
            (END, []) => Kind::End(stream),
            (STOP, []) => Kind::Stop(stream),
            (CREDIT, rest) => match number(rest)? {
                (credit, []) => Kind::Credit(stream, credit),
                _ => return Err(BadFrame::Length),
            },
            _ => return Err(BadFrame::Length),
        };
        Ok(Self { job, kind })
    }

    /// Length and body, as they travel.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; 4];
        let head = |bytes: &mut Vec<u8>, kind: u8, stream: Option<&StreamId>| {
            bytes.push(kind);
            bytes.extend(self.job.to_be_bytes());
            if let Some(stream) = stream {
                bytes.extend(stream.rank.to_be_bytes());
                bytes.push(stream.channel.code());
            }
        };
        match &self.kind {
            Kind::Data(stream, data) => {
                head(&mut bytes, DATA, Some(stream));
                bytes.extend(data);
            }
            Kind::End(stream) => head(&mut bytes, END, Some(stream)),
            Kind::Credit(stream, credit) => {
                head(&mut bytes, CREDIT, Some(stream));
                bytes.extend(credit.to_be_bytes());
            }
            Kind::Stop(stream) => head(&mut bytes, STOP, Some(stream)),
            Kind::Control(text) => {
                head(&mut bytes, CONTROL, None);
                bytes.extend(text);
            }
        }
        let length = u32::try_from(bytes.len() - 4).unwrap_or(u32::MAX);
        if let Some(place) = bytes.first_chunk_mut::<4>() {
            *place = length.to_be_bytes();
        }
        bytes
    }
}

fn number(bytes: &[u8]) -> Result<(u32, &[u8]), BadFrame> {
    let (number, rest) = bytes.split_first_chunk::<4>().ok_or(BadFrame::Short)?;
    Ok((u32::from_be_bytes(*number), rest))
}
