//! The words the head writes on a node's kernel command line, and how to read them back.
//!
//! The kernel passes unknown `a.b=c` words on to nobody, so they are read from `/proc/cmdline`.

/// `cid.head=10.77.0.1:3101`: the head that booted this node; the agent talks to no other.
pub const HEAD: &str = "cid.head";
/// `cid.image=minimal`: name of the image, for the person who looks and for the report.
pub const IMAGE: &str = "cid.image";
/// `cid.bail_out=600`: seconds without the head after which the node goes home.
pub const BAIL_OUT: &str = "cid.bail_out";
/// `cid.patience=60`: seconds that draining may take before the reboot.
pub const PATIENCE: &str = "cid.patience";
/// `cid.ca=BASE64URL`: SHA-256 of the SubjectPublicKeyInfo of the head's certificate authority. The node trusts no other head.
pub const AUTHORITY: &str = "cid.ca";
/// `cid.token=BASE64URL`: proves to the head that this is the boot it answered; one use, one machine, some seconds.
pub const TOKEN: &str = "cid.token";
/// `BOOTIF=01-52-54-00-12-34-56`: the NIC the firmware booted from (hardware type, then MAC).
pub const BOOTIF: &str = "BOOTIF";
/// `cid.door=pxe-uefi`: the door this boot came through, for the report.
pub const DOOR: &str = "cid.door";
/// `cid.busy`: the node's neighbours watch it as closely as one that runs jobs, so that its death is known within 3 s instead of 10 s;
/// for that it is asked six times as often. For trials, and for rooms whose work is not started by CID.
pub const BUSY: &str = "cid.busy";
/// `cid.hold`: a developer's switch; PID 1 stops with the error on screen where it would otherwise reboot.
pub const HOLD: &str = "cid.hold";

/// The value of `key` in a kernel command line. The last one wins, as in the kernel. A word without `=`
/// has the empty value. Quoted values (`"a b"`) are understood.
///
/// ```
/// use cid_protocol::cmdline::{lookup, HEAD, HOLD};
/// let line = "quiet cid.head=10.0.0.1:3101 cid.hold panic=10\n";
/// assert_eq!(lookup(line, HEAD), Some("10.0.0.1:3101"));
/// assert_eq!(lookup(line, HOLD), Some(""));
/// assert_eq!(lookup(line, "cid.image"), None);
/// ```
pub fn lookup<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let mut found = None;
    for word in words(line) {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        if name == key {
            found = Some(value.trim_matches('"'));
        }
    }
    found
}

/// Splits at white space outside double quotes.
fn words(line: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    line.split(move |c: char| {
        if c == '"' {
            quoted = !quoted;
        }
        c.is_whitespace() && !quoted
    })
    .filter(|word| !word.is_empty())
}

/// Parses the value of [`BOOTIF`]: `01-` and six bytes, separated by `-` (pxelinux) or `:` (GRUB).
///
/// ```
/// use cid_protocol::cmdline::parse_bootif;
/// assert_eq!(parse_bootif("01-52-54-00-12-34-56"), Some([0x52, 0x54, 0, 0x12, 0x34, 0x56]));
/// assert_eq!(parse_bootif("52:54:00:12:34:56"), Some([0x52, 0x54, 0, 0x12, 0x34, 0x56]));
/// assert_eq!(parse_bootif("01-52-54"), None);
/// ```
pub fn parse_bootif(value: &str) -> Option<[u8; 6]> {
    let mut bytes = [0_u8; 7];
    let mut count = 0;
    for part in value.split(['-', ':']) {
        *bytes.get_mut(count)? = u8::from_str_radix(part, 16).ok()?;
        count += 1;
    }
    let [first, rest @ ..] = bytes;
    match count {
        // 01 is the ARP hardware type of Ethernet.
        7 if first == 1 => Some(rest),
        6 => bytes[..6].try_into().ok(),
        _ => None,
    }
}
