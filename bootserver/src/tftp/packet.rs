//! TFTP on the wire (RFC 1350) with options (RFC 2347, 2348, 2349, 7440). Must never judge what is asked for.

/// Why a datagram is no TFTP packet that a server takes. The name is the counter's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Malformed {
    /// Too short, an unknown operation code, or strings without their end.
    #[error("tftp-malformed")]
    Packet,
    /// A client may only read.
    #[error("tftp-write-request")]
    WriteRequest,
    /// Only `octet` is served: netascii would change the bytes of a loader.
    #[error("tftp-mode-not-octet")]
    Mode,
    /// DATA or OACK: a server's own packets.
    #[error("tftp-not-a-clients-packet")]
    Direction,
}

/// What a client sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// RRQ.
    Read(Request),
    /// ACK of a block, modulo 65536.
    Acknowledgement(u16),
    /// ERROR: the client ends its transfer.
    Error,
}

/// A read request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// File name as sent.
    pub path: String,
    /// Options that this server knows and that have a sensible value; the others are left out, as RFC 2347 wants.
    pub options: Options,
}

/// Options of a request, or of the answer to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Octets per block, 8 to 65464 (RFC 2348).
    pub block_size: Option<u16>,
    /// Seconds until a retransmission, 1 to 255 (RFC 2349).
    pub timeout: Option<u8>,
    /// Size of the file is asked for (RFC 2349).
    pub transfer_size: bool,
    /// Blocks per acknowledgement, 1 to 65535 (RFC 7440).
    pub window_size: Option<u16>,
}

impl Options {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Reads a datagram.
///
/// # Errors
/// It is none of the packets that a client sends to a server it reads from.
pub fn decode(bytes: &[u8]) -> Result<Packet, Malformed> {
    let (code, rest) = bytes.split_first_chunk::<2>().ok_or(Malformed::Packet)?;
    match u16::from_be_bytes(*code) {
        1 => request(rest).map(Packet::Read),
        2 => Err(Malformed::WriteRequest),
        3 | 6 => Err(Malformed::Direction),
        4 => match rest.first_chunk::<2>() {
            Some(block) => Ok(Packet::Acknowledgement(u16::from_be_bytes(*block))),
            None => Err(Malformed::Packet),
        },
        5 => Ok(Packet::Error),
        _ => Err(Malformed::Packet),
    }
}

fn request(bytes: &[u8]) -> Result<Request, Malformed> {
    // Some ROMs pad the packet behind the last string; without an end the last string is none.
    let end = bytes
        .iter()
        .rposition(|byte| *byte == 0)
        .ok_or(Malformed::Packet)?;
    let mut strings = bytes
        .get(..end)
        .unwrap_or_default()
        .split(|byte| *byte == 0)
        .map(|string| std::str::from_utf8(string).map_err(|_| Malformed::Packet));
    let path = strings.next().ok_or(Malformed::Packet)??.to_owned();
    let mode = strings.next().ok_or(Malformed::Packet)??;
    if !mode.eq_ignore_ascii_case("octet") {
        return Err(Malformed::Mode);
    }
    let mut options = Options::default();
    while let (Some(Ok(name)), Some(Ok(value))) = (strings.next(), strings.next()) {
        let number = value.parse::<u32>().ok();
        let within = |low: u32, high: u32| number.filter(|number| (low..=high).contains(number));
        match name.to_ascii_lowercase().as_str() {
            "blksize" => options.block_size = within(8, 65_464).and_then(|size| u16::try_from(size).ok()),
            "timeout" => options.timeout = within(1, 255).and_then(|secs| u8::try_from(secs).ok()),
            "tsize" => options.transfer_size = number.is_some(),
            "windowsize" => options.window_size = within(1, 65_535).and_then(|size| u16::try_from(size).ok()),
            _ => {}
        }
    }
    Ok(Request { path, options })
}

/// The first four octets of DATA.
pub fn data_header(block: u16) -> [u8; 4] {
    let [high, low] = block.to_be_bytes();
    [0, 3, high, low]
}

/// OACK.
pub fn option_acknowledgement(options: &Options, size: u64) -> Vec<u8> {
    let mut bytes = vec![0, 6];
    let mut add = |name: &str, value: String| {
        for text in [name, &value] {
            bytes.extend_from_slice(text.as_bytes());
            bytes.push(0);
        }
    };
    if let Some(value) = options.block_size {
        add("blksize", value.to_string());
    }
    if let Some(value) = options.timeout {
        add("timeout", value.to_string());
    }
    if options.transfer_size {
        add("tsize", size.to_string());
    }
    if let Some(value) = options.window_size {
        add("windowsize", value.to_string());
    }
    bytes
}

/// Error codes of RFC 1350 that this server sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// 0: see the message.
    Undefined = 0,
    /// 1: file not found.
    FileNotFound = 1,
    /// 2: access violation.
    AccessViolation = 2,
    /// 4: illegal operation.
    IllegalOperation = 4,
    /// 5: unknown transfer ID.
    UnknownTransfer = 5,
}

/// ERROR.
pub fn error(code: ErrorCode, message: &str) -> Vec<u8> {
    let mut bytes = vec![0, 5, 0, code as u8];
    bytes.extend_from_slice(message.as_bytes());
    bytes.push(0);
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_ovmf_asks_is_read() {
        let bytes = b"\0\x01shimx64.efi\0octet\0tsize\x000\0blksize\x001468\0windowsize\x004\0";
        let options = Options {
            block_size: Some(1468),
            timeout: None,
            transfer_size: true,
            window_size: Some(4),
        };
        let path = "shimx64.efi".to_owned();
        assert_eq!(decode(bytes), Ok(Packet::Read(Request { path, options })));
    }

    #[test]
    fn names_of_options_and_modes_have_no_case_and_odd_values_are_not_acknowledged() {
        let Ok(Packet::Read(request)) =
            decode(b"\0\x01f\0OcTeT\0BLKSIZE\x004\0Timeout\x000\0WindowSize\x00x\0utimeout\x009\0")
        else {
            panic!("a request");
        };
        assert!(request.options.is_empty());
        let Ok(Packet::Read(request)) = decode(b"\0\x01f\0OCTET\0BlkSize\x00512\0") else {
            panic!("a request");
        };
        assert_eq!(request.options.block_size, Some(512));
    }

    #[test]
    fn what_is_no_read_is_named() {
        for (bytes, expected) in [
            (&b"\0\x02f\0octet\0"[..], Malformed::WriteRequest),
            (b"\0\x01f\0netascii\0", Malformed::Mode),
            (b"\0\x03\0\x01data", Malformed::Direction),
            (b"\0\x01f\0octet", Malformed::Packet),
            (b"\0\x04\0", Malformed::Packet),
            (b"\0\x09", Malformed::Packet),
            (b"", Malformed::Packet),
        ] {
            assert_eq!(decode(bytes), Err(expected), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn no_datagram_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(&bytes);
        }
    }
}
