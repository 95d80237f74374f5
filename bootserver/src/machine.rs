//! Names of a machine on the wire: MAC address, UUID, architecture, door. Values only.

use std::fmt;
use std::str::FromStr;

/// Ethernet address: the identity of a machine towards the boot server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// Whether one machine can own it: not multicast, not all zero.
    pub fn is_unicast(self) -> bool {
        let [first, ..] = self.0;
        first & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is no MAC address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no MAC address; write it like 52:54:00:12:34:56")]
pub struct BadMacAddress(pub String);

impl FromStr for MacAddress {
    type Err = BadMacAddress;

    /// Six bytes in hex between colons or hyphens, either case.
    fn from_str(text: &str) -> Result<Self, BadMacAddress> {
        let bad = || BadMacAddress(text.chars().take(64).collect());
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = u8::from_str_radix(part.ok_or_else(bad)?, 16).map_err(|_| bad())?;
        }
        let mac = Self(bytes);
        if parts.next().is_some() || !mac.is_unicast() {
            Err(bad())
        } else {
            Ok(mac)
        }
    }
}

/// The machine's UUID as option 97 carries it (type byte removed).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuid(pub [u8; 16]);

impl fmt::Display for Uuid {
    /// As Linux prints `product_uuid`: the first three fields are little-endian on the wire (SMBIOS 2.6, 7.2.1).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a0, a1, a2, a3, b0, b1, c0, c1, d0, d1, e0, e1, e2, e3, e4, e5] = self.0;
        write!(
            f,
            "{a3:02x}{a2:02x}{a1:02x}{a0:02x}-{b1:02x}{b0:02x}-{c1:02x}{c0:02x}-{d0:02x}{d1:02x}-"
        )?;
        write!(f, "{e0:02x}{e1:02x}{e2:02x}{e3:02x}{e4:02x}{e5:02x}")
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a machine's firmware is, as we tell firmwares apart, from the client system architectures of option 93 (RFC 4578 2.1, IANA registry).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Platform {
    /// 0: PC BIOS. Also when firmware names none: option 93 is younger than PXE.
    Bios,
    /// 7, and 9 by an erratum of RFC 4578: x86-64 UEFI.
    UefiX64,
    /// 16: x86-64 UEFI over HTTP.
    UefiX64Http,
    /// Anything else, by its first number.
    Other(u16),
}

/// Client system architectures as IANA registers them ("Processor Architecture Types"): number, platform, name for people.
/// A number that stands here as [`Platform::Other`] is refused by name; one that does not stand here by number.
pub const ARCHITECTURES: [(u16, Platform, &str); 24] = [
    (0, Platform::Bios, "bios"),
    (1, Platform::Other(1), "nec-pc98"),
    (2, Platform::Other(2), "uefi-itanium"),
    (6, Platform::Other(6), "uefi-ia32"),
    (7, Platform::UefiX64, "uefi-x64"),
    // RFC 4578 calls it "EFI BC" by an erratum; firmware means x86-64. Matching one of the two alone makes an endless loop
    // of boots on the other (xcat-core issue 7645).
    (9, Platform::UefiX64, "uefi-x64"),
    (10, Platform::Other(10), "uefi-arm32"),
    (11, Platform::Other(11), "uefi-arm64"),
    (12, Platform::Other(12), "powerpc-open-firmware"),
    (14, Platform::Other(14), "power-opal"),
    (15, Platform::Other(15), "uefi-ia32-http"),
    (16, Platform::UefiX64Http, "uefi-x64"),
    (18, Platform::Other(18), "uefi-arm32-http"),
    (19, Platform::Other(19), "uefi-arm64-http"),
    (20, Platform::Other(20), "bios-http"),
    (21, Platform::Other(21), "uboot-arm32"),
    (22, Platform::Other(22), "uboot-arm64"),
    (25, Platform::Other(25), "uefi-riscv32"),
    (27, Platform::Other(27), "uefi-riscv64"),
    (28, Platform::Other(28), "uefi-riscv64-http"),
    (31, Platform::Other(31), "s390"),
    (39, Platform::Other(39), "uefi-loongarch64"),
    (40, Platform::Other(40), "uefi-loongarch64-http"),
    (41, Platform::Other(41), "raspberry-pi"),
];

impl Platform {
    /// The first architecture of the list that we boot; else the first.
    pub fn from_architectures(list: &[u16]) -> Self {
        let booted = |number: &u16| {
            ARCHITECTURES
                .iter()
                .find(|(known, platform, _)| known == number && !matches!(platform, Self::Other(_)))
                .map(|(_, platform, _)| *platform)
        };
        list.iter()
            .find_map(booted)
            .unwrap_or_else(|| list.first().map_or(Self::Bios, |number| Self::Other(*number)))
    }

    /// Its name in [`ARCHITECTURES`]; `None` for a number that does not stand there.
    pub fn name(self) -> Option<&'static str> {
        ARCHITECTURES
            .iter()
            .find(|(_, platform, _)| *platform == self)
            .map(|(_, _, name)| *name)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name(), self) {
            (Some(name), _) => f.write_str(name),
            (None, Self::Other(number)) => write!(f, "architecture-{number}"),
            (None, _) => f.write_str("x86"),
        }
    }
}

/// Who speaks: what runs on the machine at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Client {
    /// PXE firmware: option 60 starts with `PXEClient`.
    PxeFirmware,
    /// iPXE, as a ROM or loaded: option 77 is `iPXE`.
    Ipxe,
    /// A loader on a USB stick of ours: it asks by HTTP, with an address that it has already.
    Stick,
    /// UEFI HTTP Boot: option 60 starts with `HTTPClient`.
    HttpFirmware,
    /// Linux, Windows, a printer: anything else that wants an address.
    OperatingSystem,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_as_text() {
        let mac: MacAddress = "52-54-00-AB-cd-01".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:01");
        for wrong in [
            "",
            "52:54:00:ab:cd",
            "52:54:00:ab:cd:01:02",
            "52:54:00:ab:cd:+1",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
        ] {
            assert!(wrong.parse::<MacAddress>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn uuid_is_printed_as_linux_prints_it() {
        let uuid = Uuid([
            0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff,
        ]);
        assert_eq!(uuid.to_string(), "00112233-4455-6677-8899-aabbccddeeff");
    }

    #[test]
    fn architectures_are_a_list_and_nine_is_seven() {
        assert_eq!(Platform::from_architectures(&[]), Platform::Bios);
        assert_eq!(Platform::from_architectures(&[9]), Platform::UefiX64);
        assert_eq!(Platform::from_architectures(&[6, 7]), Platform::UefiX64);
        assert_eq!(Platform::from_architectures(&[11, 6]), Platform::Other(11));
        for (number, platform, name) in ARCHITECTURES {
            assert_eq!(Platform::from_architectures(&[number]), platform, "{number}");
            assert_eq!(platform.to_string(), name, "{number}");
        }
        assert_eq!(Platform::Other(4711).to_string(), "architecture-4711");
    }
}
