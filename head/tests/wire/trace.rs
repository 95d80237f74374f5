//! Reads `strace -f -yy -xx` of the head: was each lease written to the log, and the log synchronised, before the
//! DHCPACK that promised it went out?

/// Option 53 of a DHCPACK, as strace prints bytes.
const ACK: &str = r"\x35\x01\x05";

/// Bytes as strace prints them.
fn printed(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!(r"\x{byte:02x}")).collect()
}

/// The row of the lease that an acknowledgement promises, as SQLite stores it: `chaddr`, then `yiaddr` as an integer
/// of four bytes.
fn promised_row(call: &str) -> Option<String> {
    let bytes: Vec<&str> = call.split('"').nth(1)?.split(r"\x").skip(1).collect();
    let [chaddr, yiaddr] = [bytes.get(28..34)?, bytes.get(16..20)?];
    Some(
        chaddr
            .iter()
            .chain(yiaddr)
            .map(|byte| format!(r"\x{byte}"))
            .collect(),
    )
}

/// How many acknowledgements there were, each behind its commit; or the start of the one that came too early.
pub(crate) fn check(trace: &str) -> Result<usize, String> {
    let log = printed(b"cid.db-wal");
    let mut acknowledged = 0;
    let mut written: Vec<&str> = Vec::new();
    // What a synchronisation that has begun covers; one thread writes the database, so there is one at a time.
    let mut covered = 0;
    let mut durable = 0;
    for line in trace.lines() {
        let call = line.split_once(' ').map_or("", |(_, call)| call.trim_start());
        if call.starts_with("pwrite64(") && call.contains(&log) {
            written.push(call);
        } else if (call.starts_with("fsync(") || call.starts_with("fdatasync(")) && call.contains(&log) {
            covered = written.len();
            if call.ends_with("= 0") {
                durable = covered;
            }
        } else if call.contains("sync resumed>") && call.ends_with("= 0") {
            durable = covered;
        } else if (call.starts_with("sendto(") || call.starts_with("sendmsg(")) && call.contains(ACK) {
            let row = promised_row(call).ok_or_else(|| line.to_owned())?;
            if !written[..durable].iter().any(|page| page.contains(&row)) {
                return Err(format!(
                    "{row} is promised and not on disk by: {}",
                    &line[..line.len().min(200)]
                ));
            }
            acknowledged += 1;
        }
    }
    Ok(acknowledged)
}

#[test]
fn the_check_can_fail() {
    let mut packet = [0; 240];
    packet[16..20].copy_from_slice(&[10, 77, 0, 200]);
    packet[28..34].copy_from_slice(&[0x52, 0x54, 0, 0, 0, 1]);
    let ack = format!(
        "7 sendto(9<UDP:[0.0.0.0:67]>, \"{}{ACK}\", 243) = 243",
        printed(&packet)
    );
    let log = printed(b"/x/cid.db-wal");
    let row = printed(&[0x52, 0x54, 0, 0, 0, 1, 10, 77, 0, 200]);
    let other = printed(&[0x52, 0x54, 0, 0, 0, 2, 10, 77, 0, 200]);
    let write = |row: &str| format!("8 pwrite64(11<{log}>, \"{row}\", 4096, 0) = 4096");
    let sync = format!("8 fsync(11<{log}>) = 0");
    let begun = format!("8 fdatasync(11<{log}> <unfinished ...>");
    let done = "8 <... fdatasync resumed>) = 0".to_owned();
    let passes = |lines: &[&String]| {
        let text: Vec<&str> = lines.iter().map(|line| line.as_str()).collect();
        check(&text.join("\n")) == Ok(1)
    };
    assert!(passes(&[&write(&row), &sync, &ack]));
    assert!(passes(&[&write(&row), &begun, &done, &ack]));
    assert!(!passes(&[&ack, &write(&row), &sync]));
    assert!(!passes(&[&write(&row), &ack, &sync]));
    assert!(!passes(&[&write(&row), &begun, &ack, &done]));
    // A synchronisation that began before the write does not cover it; another lease's row is not this one's.
    assert!(!passes(&[&begun, &write(&row), &done, &ack]));
    assert!(!passes(&[&write(&other), &sync, &ack]));
}
