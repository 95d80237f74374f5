//! What is special about some firmware: one table, each row with its reason and its source. Must not look at anything but
//! the facts it is given.
//!
//! A row matches by itself, or is forced on one machine by an administrator (`[machines."52:54:00:12:34:56"] quirk =
//! "NAME"`), whose word stands above the table's.

use crate::machine::{Client, MacAddress, Platform};
use crate::policy::Facts;

/// How a proxy offer tells a PXE firmware where its boot file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProxyStyle {
    /// No option 43: the firmware asks port 4011 for the file (EDK2 calls it BINL).
    Binl,
    /// Option 43 with discovery control 8: the file of the offer is the boot file (EDK2 calls it PXE10).
    Pxe10,
}

/// How a machine is sent to its own disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LocalBoot {
    /// The PXE boot menu with one entry, taken at once.
    Menu,
    /// No word about booting: the firmware gives up by itself, later.
    Silence,
}

/// Whether option 67 repeats the header field `file`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BootFileOption {
    /// It does not; the header field is the one that every loader reads.
    Absent,
    /// It does, and ends with a zero byte.
    NulTerminated,
}

/// What option 60 of an answer to UEFI HTTP Boot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HttpClass {
    /// `HTTPClient` and a zero byte.
    NulTerminated,
    /// `HTTPClient`.
    Bare,
}

/// The manner in which one machine is answered: the defaults, changed by every quirk in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manner {
    /// In proxy mode.
    pub proxy_style: ProxyStyle,
    /// In every mode.
    pub local_boot: LocalBoot,
    /// In every mode, for PXE.
    pub boot_file_option: BootFileOption,
    /// In every mode, for UEFI HTTP Boot.
    pub http_class: HttpClass,
    /// What the machine really is, if it is not what it says.
    pub platform: Option<Platform>,
    /// Quirk that matched by itself.
    pub by_table: Option<&'static str>,
    /// Quirk that an administrator forced.
    pub forced: Option<&'static str>,
}

const DEFAULT: Manner = Manner {
    proxy_style: ProxyStyle::Binl,
    local_boot: LocalBoot::Menu,
    boot_file_option: BootFileOption::Absent,
    http_class: HttpClass::NulTerminated,
    platform: None,
    by_table: None,
    forced: None,
};

/// One row.
#[derive(Debug)]
pub struct Quirk {
    /// Stable name, kebab-case.
    pub name: &'static str,
    /// Firmware it is for.
    pub firmware: &'static str,
    /// Why.
    pub reason: &'static str,
    /// Who found it: issue, source file or specification.
    pub source: &'static str,
    matches: Matches,
    change: Change,
}

#[derive(Debug)]
enum Matches {
    /// Only where an administrator says so.
    Forced,
    /// First three bytes of the MAC address.
    Vendor(&'static [[u8; 3]]),
    /// What asks, on which firmware.
    Firmware(Client, Platform),
}

#[derive(Debug)]
enum Change {
    Style(ProxyStyle),
    LocalBoot(LocalBoot),
    BootFile(BootFileOption),
    HttpClass(HttpClass),
    Platform(Platform),
}

/// The table. The first row that matches is the one in force.
pub static QUIRKS: [Quirk; 7] = [
    Quirk {
        name: "raspberry-pi",
        firmware: "Raspberry Pi boot ROM",
        reason: "it says that it is a PC with BIOS (architecture 0), and sends a UUID of its own making",
        source: "tinkerbell/smee dhcp.go; raspberrypi/rpi-eeprom issue 103",
        matches: Matches::Vendor(&[
            [0x28, 0xcd, 0xc1],
            [0x2c, 0xcf, 0x67],
            [0xb8, 0x27, 0xeb],
            [0xd8, 0x3a, 0xdd],
            [0xdc, 0xa6, 0x32],
            [0xe4, 0x5f, 0x01],
        ]),
        change: Change::Platform(Platform::Other(41)),
    },
    Quirk {
        name: "bios-direct",
        firmware: "PXE ROMs of BIOS PCs",
        reason: "a ROM expects option 43 in a proxy offer; discovery control 8 makes it take the file of the offer",
        source: "RFC 4578; PXE 2.1 section 2.2; danderson/netboot pixiecore/dhcp.go",
        matches: Matches::Firmware(Client::PxeFirmware, Platform::Bios),
        change: Change::Style(ProxyStyle::Pxe10),
    },
    Quirk {
        name: "pxe10",
        firmware: "UEFI beside a DHCP server that itself says `PXEClient` (WDS on the same machine)",
        reason: "EDK2 ranks such a server above a proxy without option 43, and below one with it",
        source: "edk2 NetworkPkg/UefiPxeBcDxe/PxeBcDhcp4.c, PxeBcParseDhcp4Packet and the order of offers",
        matches: Matches::Forced,
        change: Change::Style(ProxyStyle::Pxe10),
    },
    Quirk {
        name: "binl",
        firmware: "BIOS ROMs that stop at option 43",
        reason: "no option 43 in the proxy offer; the ROM asks port 4011",
        source: "dnsmasq CHANGELOG 2.78 (for UEFI; here for whoever needs it)",
        matches: Matches::Forced,
        change: Change::Style(ProxyStyle::Binl),
    },
    Quirk {
        name: "no-menu",
        firmware: "firmware with a broken PXE menu",
        reason: "the menu with one local-boot entry hangs or loops; without it the PC takes a minute longer to its disk",
        source: "dnsmasq CHANGELOG 2.78 on broken menus",
        matches: Matches::Forced,
        change: Change::LocalBoot(LocalBoot::Silence),
    },
    Quirk {
        name: "nul-terminated-file",
        firmware: "ROMs that read option 67 and run past its end",
        reason: "option 67 with a zero byte inside, beside the header field",
        source: "dnsmasq rfc2131.c; edk2 writes the zero byte over the next option if it is missing",
        matches: Matches::Forced,
        change: Change::BootFile(BootFileOption::NulTerminated),
    },
    Quirk {
        name: "bare-http-class",
        firmware: "UEFI HTTP Boot that compares option 60 with its length",
        reason: "`HTTPClient` without the zero byte that GRUB needs to know an HTTP boot",
        source: "grub-core/net/bootp.c compares a C string; the UEFI specification 24.7 names ten bytes",
        matches: Matches::Forced,
        change: Change::HttpClass(HttpClass::Bare),
    },
];

/// The row of this name.
pub fn named(name: &str) -> Option<&'static Quirk> {
    QUIRKS.iter().find(|quirk| quirk.name == name)
}

/// How a machine is answered. `forced` is a name from the table; an unknown one changes nothing.
pub fn manner(facts: &Facts, forced: Option<&str>) -> Manner {
    let mut manner = DEFAULT;
    if let Some(quirk) = QUIRKS.iter().find(|quirk| quirk.is_for(facts)) {
        quirk.apply(&mut manner);
        manner.by_table = Some(quirk.name);
    }
    if let Some(quirk) = forced.and_then(named) {
        quirk.apply(&mut manner);
        manner.forced = Some(quirk.name);
    }
    manner
}

impl Quirk {
    fn is_for(&self, facts: &Facts) -> bool {
        match self.matches {
            Matches::Forced => false,
            Matches::Vendor(list) => list.iter().any(|prefix| has_prefix(facts.mac, *prefix)),
            Matches::Firmware(client, platform) => (facts.client, facts.platform) == (client, platform),
        }
    }

    fn apply(&self, manner: &mut Manner) {
        match self.change {
            Change::Style(style) => manner.proxy_style = style,
            Change::LocalBoot(way) => manner.local_boot = way,
            Change::BootFile(option) => manner.boot_file_option = option,
            Change::HttpClass(class) => manner.http_class = class,
            Change::Platform(platform) => manner.platform = Some(platform),
        }
    }
}

fn has_prefix(mac: MacAddress, prefix: [u8; 3]) -> bool {
    let [a, b, c, ..] = mac.0;
    [a, b, c] == prefix
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Stage;

    fn facts(mac: [u8; 6], client: Client, platform: Platform) -> Facts {
        Facts {
            mac: MacAddress(mac),
            uuid: None,
            client,
            platform,
            stage: Stage::Asking,
        }
    }

    #[test]
    fn every_row_says_for_whom_why_and_whence_under_a_name_of_its_own() {
        for (index, quirk) in QUIRKS.iter().enumerate() {
            assert!(
                quirk
                    .name
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            );
            assert!(!quirk.firmware.is_empty() && !quirk.reason.is_empty() && !quirk.source.is_empty());
            assert_eq!(
                QUIRKS.iter().position(|other| other.name == quirk.name),
                Some(index)
            );
            assert!(std::ptr::eq(named(quirk.name).unwrap(), quirk));
        }
    }

    #[test]
    fn a_forced_row_stands_above_the_one_that_matches() {
        let pc = [0x52, 0x54, 0, 0, 0, 1];
        let rom = facts(pc, Client::PxeFirmware, Platform::Bios);
        assert_eq!(manner(&rom, None).proxy_style, ProxyStyle::Pxe10);
        assert_eq!(manner(&rom, Some("binl")).proxy_style, ProxyStyle::Binl);
        assert_eq!(manner(&rom, Some("no-such-row")), manner(&rom, None));
        let uefi = facts(pc, Client::PxeFirmware, Platform::UefiX64);
        assert_eq!(manner(&uefi, None), DEFAULT);
        let pi = facts([0xdc, 0xa6, 0x32, 0, 0, 1], Client::PxeFirmware, Platform::Bios);
        assert_eq!(manner(&pi, None).platform, Some(Platform::Other(41)));
    }
}
