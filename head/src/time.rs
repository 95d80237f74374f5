//! The head's time for its nodes, as NTP packets (RFC 5905) in their connections, and how far each node's clock is from it.
//! Must not read a clock: the moments are arguments.
//!
//! A node asks with a packet and adds when it read the answer before; so each side has four moments and measures the other
//! for itself. What `cidctl top` shows is the head's own measurement.

use std::time::Duration;

/// Bytes of a packet without extensions.
pub const PACKET: usize = 48;
/// Seconds from 1900 to 1970.
const NTP_UNIX: u64 = 2_208_988_800;
/// Versions 3 and 4 mean the same for client and server.
const VERSIONS: std::ops::RangeInclusive<u8> = 3..=4;
const CLIENT: u8 = 3;
const SERVER: u8 = 4;
/// Far below any real source: a head that is itself synchronised does not say so here.
const STRATUM: u8 = 8;
/// 2^-20 s, about a microsecond.
const PRECISION: u8 = 0xec;
/// The reference of an uncalibrated local clock, by convention.
const LOCAL_CLOCK: [u8; 4] = [127, 127, 1, 0];
/// An exchange that lies further back says nothing: clocks drift.
const REMEMBERED: Duration = Duration::from_secs(300);

/// How far a node's clock is from the head's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockOffset {
    /// By how much the node's clock is ahead, in microseconds.
    pub ahead_us: i64,
    /// The figure is off by this much at the most, in microseconds: half the round trip.
    pub error_us: u64,
}

/// One node's clock as the head's packets measure it.
#[derive(Debug, Default)]
pub struct Observer {
    /// When the last answer left.
    sent: Option<Duration>,
    offset: Option<ClockOffset>,
    at: Duration,
}

impl Observer {
    /// A question came at `received`; `heard_us` is the node's clock when it read our answer before, in microseconds since
    /// 1970. Returns a new measurement, if this was one.
    pub fn handle_question(
        &mut self,
        packet: &[u8; PACKET],
        heard_us: Option<u64>,
        received: Duration,
    ) -> Option<ClockOffset> {
        let sent = self.sent.take()?;
        let asked = micros_of(timestamp(packet, 40), received);
        let (heard, asked) = (i128::from(heard_us?), i128::from(asked));
        let (sent, received) = (sent.as_micros() as i128, received.as_micros() as i128);
        // Nonsense is bounded, not believed: a node that says it asked before it heard measures nothing.
        let (ours, theirs) = (received - sent, asked - heard);
        if !(0..REMEMBERED.as_micros() as i128).contains(&ours) || theirs < 0 || theirs > ours + 1_000 {
            return None;
        }
        let ahead = ((heard - sent) + (asked - received)) / 2;
        let error = (ours - theirs).max(0) / 2;
        let new = ClockOffset {
            ahead_us: i64::try_from(ahead).ok()?,
            error_us: u64::try_from(error).ok()?,
        };
        // The better of two measurements close to one another stays: its round trip was shorter.
        let kept = self.offset.filter(|old| {
            old.error_us < new.error_us && received as u128 <= (self.at + BETTER_FOR).as_micros()
        });
        if kept.is_none() {
            self.offset = Some(new);
            self.at = Duration::from_micros(u64::try_from(received).unwrap_or(0));
        }
        self.offset
    }

    /// The answer left.
    pub fn handle_sent(&mut self, sent: Duration) {
        self.sent = Some(sent);
    }
}

/// A measurement with a short round trip counts against worse ones for this long: a burst.
const BETTER_FOR: Duration = Duration::from_millis(900);

/// The answer to a question that came at `received` and is answered at `sent`, both since 1970; `None` when it is no
/// question of a client.
pub fn answer(question: &[u8; PACKET], received: Duration, sent: Duration) -> Option<[u8; PACKET]> {
    let (version, mode) = (question[0] >> 3 & 7, question[0] & 7);
    if !VERSIONS.contains(&version) || mode != CLIENT {
        return None;
    }
    let mut packet = [0; PACKET];
    packet[0] = version << 3 | SERVER;
    packet[1] = STRATUM;
    packet[2] = question[2];
    packet[3] = PRECISION;
    packet[12..16].copy_from_slice(&LOCAL_CLOCK);
    packet[16..24].copy_from_slice(&ntp(received).to_be_bytes());
    packet[24..32].copy_from_slice(&question[40..48]);
    packet[32..40].copy_from_slice(&ntp(received).to_be_bytes());
    packet[40..48].copy_from_slice(&ntp(sent).to_be_bytes());
    Some(packet)
}

/// Seconds since 1900, modulo an era, and their 2^32nd parts.
fn ntp(since_1970: Duration) -> u64 {
    let fraction = (u64::from(since_1970.subsec_nanos()) << 32) / 1_000_000_000;
    (since_1970.as_secs() + NTP_UNIX) << 32 | fraction
}

fn timestamp(packet: &[u8; PACKET], at: usize) -> u64 {
    let bytes = packet.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u64::from_be_bytes)
}

/// Microseconds since 1970 of a timestamp, in the era that is nearest to `near`.
fn micros_of(timestamp: u64, near: Duration) -> u64 {
    let near = near.as_secs() + NTP_UNIX;
    let behind = (timestamp >> 32).wrapping_sub(near) as u32 as i32;
    let secs = near.saturating_add_signed(behind.into()).saturating_sub(NTP_UNIX);
    let micros = ((timestamp & u64::from(u32::MAX)) * 1_000_000) >> 32;
    secs * 1_000_000 + micros
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_795_000_000);

    fn question(asked: Duration) -> [u8; PACKET] {
        let mut packet = [0; PACKET];
        packet[0] = 4 << 3 | CLIENT;
        packet[40..48].copy_from_slice(&ntp(asked).to_be_bytes());
        packet
    }

    #[test]
    fn the_answer_has_the_fields_of_rfc_5905() {
        let packet = answer(&question(NOW), NOW, NOW + Duration::from_micros(7)).expect("a client asks");
        assert_eq!(packet[0], 0x24, "no leap warning, version 4, server");
        assert_eq!(
            packet[24..32],
            ntp(NOW).to_be_bytes(),
            "what the client sent, as origin"
        );
        assert_eq!(packet[32..40], ntp(NOW).to_be_bytes());
        assert_ne!(packet[40..48], packet[32..40]);
        assert_eq!(
            packet[32..36],
            (1_795_000_000_u32.wrapping_add(2_208_988_800)).to_be_bytes()
        );
    }

    #[test]
    fn what_is_no_question_gets_no_answer() {
        for first in [0, 0x24, 0x26, 2 << 3 | CLIENT, 5 << 3 | CLIENT] {
            let mut packet = question(NOW);
            packet[0] = first;
            assert_eq!(answer(&packet, NOW, NOW), None, "{first:#x}");
        }
    }

    /// A node whose clock is ahead, `there` and `back` being the ways of its packets.
    fn measured(ahead_us: i64, there: u64, back: u64) -> Option<ClockOffset> {
        let node = |time: Duration| (time.as_micros() as i64 + ahead_us) as u64;
        let mut observer = Observer::default();
        let first = question(Duration::from_micros(node(NOW)));
        assert_eq!(
            observer.handle_question(&first, None, NOW),
            None,
            "nothing was answered before"
        );
        let sent = NOW + Duration::from_micros(40);
        observer.handle_sent(sent);
        let heard = node(sent + Duration::from_micros(back));
        let asked = sent + Duration::from_secs(16);
        let received = asked + Duration::from_micros(there);
        observer.handle_question(
            &question(Duration::from_micros(node(asked))),
            Some(heard),
            received,
        )
    }

    #[test]
    fn the_true_offset_lies_within_the_error_whatever_the_ways_are() {
        for ahead in [-3_600_000_000, -400, 0, 9_000, 7_200_000_000] {
            for (there, back) in [(0, 0), (200, 200), (200, 4_000), (90_000, 10)] {
                let found = measured(ahead, there, back).expect("a measurement");
                let wrong = (found.ahead_us - ahead).unsigned_abs();
                assert!(wrong <= found.error_us + 2, "{ahead} {there} {back}: {found:?}");
                assert!(found.error_us.abs_diff((there + back) / 2) <= 2);
            }
        }
    }

    #[test]
    fn nonsense_measures_nothing() {
        let mut observer = Observer::default();
        for heard in [0, u64::MAX] {
            observer.handle_sent(NOW);
            let asked = question(NOW + Duration::from_secs(16));
            let found = observer.handle_question(&asked, Some(heard), NOW + Duration::from_secs(16));
            assert_eq!(found, None);
        }
    }

    #[test]
    fn a_year_behind_the_era_is_understood() {
        // 7 February 2036, 06:28:16 UTC, is second 0 of era 1.
        let rollover = Duration::from_secs((1 << 32) - NTP_UNIX);
        let later = rollover + Duration::from_micros(2_500_000);
        assert_eq!(ntp(later) >> 32, 2);
        assert_eq!(
            micros_of(ntp(later), rollover).abs_diff(later.as_micros() as u64),
            0
        );
    }
}
