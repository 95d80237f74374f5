//! From the raw file to the validated configuration. Must not read host state.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cid_bootserver::quirks;

use super::raw::Spanned;
use super::{Config, Dhcp, DhcpMode, Group, Machine, Pattern, Unknown, raw, requires};
use crate::mac::Mac;

use cid_protocol::node::{Ending, WayHome};

use crate::hours::{Hours, OnHoliday};
use crate::wake::WakeCommand;

/// Longest kernel command line addition, in bytes: x86 has 2048 for the whole line.
const MAX_KERNEL_ARGS: usize = 1024;

/// Most lines of `hours` and of `holidays`: each is looked at whenever a PC asks.
const MAX_LINES: usize = 64;

/// What is wrong, and where in the text.
pub(super) struct Fault {
    pub(super) span: Option<Range<usize>>,
    pub(super) what: String,
}

pub(super) fn fault(value: &Spanned<String>, what: impl Into<String>) -> Fault {
    Fault {
        span: Some(value.span()),
        what: what.into(),
    }
}

pub(super) fn validate(file: &Path, raw: raw::Head) -> Result<Config, Fault> {
    let mut groups = BTreeMap::new();
    for (name, group) in raw.groups {
        let checked = check_group(&name, group)?;
        groups.insert(name.into_inner(), checked);
    }
    let dhcp = check_dhcp(raw.dhcp)?;
    let interfaces = check_interfaces(raw.interface, raw.interfaces, dhcp.mode)?;
    let machines = raw.machines.into_iter().map(check_machine);
    Ok(Config {
        file: file.to_owned(),
        site: check_site(raw.site)?,
        interface: interfaces.first().cloned().unwrap_or_default(),
        interfaces,
        machines: machines.collect::<Result<_, _>>()?,
        state_dir: check_path(raw.state_dir, "/var/lib/cid")?,
        images_dir: check_path(raw.images_dir, "/var/lib/cid/images")?,
        socket: check_path(raw.socket, cid_protocol::DEFAULT_SOCKET)?,
        unknown: check_unknown(raw.unknown, raw.default_group, &groups)?,
        dhcp,
        time_zone: check_zone(raw.time_zone)?,
        token_valid: duration(
            raw.trust.token.as_ref(),
            "120s",
            Duration::from_secs(30)..=Duration::from_secs(600),
        )?,
        groups,
    })
}

fn check_zone(value: Option<Spanned<String>>) -> Result<Option<String>, Fault> {
    let Some(value) = value else { return Ok(None) };
    if jiff::tz::TimeZone::get(value.as_ref()).is_err() {
        let what = format!(
            "`{}` is no time zone; write one like \"Europe/Berlin\" (`timedatectl list-timezones`)",
            value.as_ref()
        );
        return Err(fault(&value, what));
    }
    Ok(Some(value.into_inner()))
}

fn check_hours(
    lines: &[Spanned<String>],
    holidays: &[Spanned<String>],
    on_holiday: Option<&Spanned<String>>,
) -> Result<Hours, Fault> {
    if let Some(line) = lines.get(MAX_LINES).or(holidays.get(MAX_LINES)) {
        return Err(fault(
            line,
            format!("more than {MAX_LINES} lines; join some of them"),
        ));
    }
    let mut hours = Hours::default();
    for line in lines {
        hours
            .add(line.as_ref())
            .map_err(|error| fault(line, error.to_string()))?;
    }
    for line in holidays {
        hours
            .add_holiday(line.as_ref())
            .map_err(|error| fault(line, error.to_string()))?;
    }
    match on_holiday.map(|value| (value, value.as_ref().as_str())) {
        None | Some((_, "open")) => {}
        Some((_, "closed")) => hours.set_on_holiday(OnHoliday::Closed),
        Some((value, other)) => {
            return Err(fault(value, format!("`{other}`: write \"open\" or \"closed\"")));
        }
    }
    Ok(hours)
}

/// A line on a text screen of 80 columns.
fn check_site(value: Option<Spanned<String>>) -> Result<String, Fault> {
    let Some(value) = value else {
        return Ok(String::new());
    };
    let text = value.as_ref().trim();
    if text.chars().any(char::is_control) || text.chars().count() > 48 {
        let what = "`site` is one line of at most 48 characters, shown on the PCs' screens";
        return Err(fault(&value, what));
    }
    Ok(text.to_owned())
}

/// One of the two keys; the other one is not missed.
fn check_interfaces(
    one: Option<Spanned<String>>,
    several: Vec<Spanned<String>>,
    mode: DhcpMode,
) -> Result<Vec<String>, Fault> {
    let values = match (one, several) {
        (Some(_), several) if !several.is_empty() => {
            return Err(fault(
                &several[0],
                "`interface` and `interfaces` are both given; keep one of them",
            ));
        }
        (Some(one), _) => vec![one],
        (None, several) if several.is_empty() => {
            return Err(Fault {
                span: Some(0..0),
                what: "the key `interface` is missing; it is the one key without a default".to_owned(),
            });
        }
        (None, several) => several,
    };
    let mut names: Vec<String> = Vec::new();
    for value in &values {
        let name = check_interface(value)?;
        if names.contains(&name) {
            return Err(fault(value, format!("`{name}` is named twice")));
        }
        if mode == DhcpMode::Full && !names.is_empty() {
            return Err(fault(
                value,
                "mode = \"full\" serves one interface; name one, or set mode = \"proxy\" in [dhcp]",
            ));
        }
        names.push(name);
    }
    Ok(names)
}

fn check_machine((key, raw): (Spanned<String>, raw::Machine)) -> Result<(Mac, Machine), Fault> {
    let mac: Mac = key
        .as_ref()
        .parse()
        .map_err(|error: cid_bootserver::machine::BadMacAddress| fault(&key, error.to_string()))?;
    if let Some(value) = &raw.quirk
        && quirks::named(value.as_ref()).is_none()
    {
        let known: Vec<&str> = quirks::QUIRKS.iter().map(|quirk| quirk.name).collect();
        let text = format!(
            "there is no quirk `{}`; there are: {}",
            value.as_ref(),
            known.join(", ")
        );
        return Err(fault(value, text));
    }
    let quirk = raw.quirk.map(Spanned::into_inner);
    let values = raw.values;
    Ok((mac, Machine { quirk, values }))
}

fn check_interface(value: &Spanned<String>) -> Result<String, Fault> {
    let name = value.as_ref();
    // IFNAMSIZ is 16 with its NUL; a slash or blank cannot be in a name (dev_valid_name in the kernel).
    if name.is_empty() || name.len() > 15 || name.contains(['/', ':']) || name.contains(char::is_whitespace) {
        return Err(fault(
            value,
            format!("`{name}` is no interface name; `ip -brief link` lists them"),
        ));
    }
    Ok(name.clone())
}

fn check_path(value: Option<Spanned<String>>, default: &str) -> Result<PathBuf, Fault> {
    let Some(value) = value else {
        return Ok(PathBuf::from(default));
    };
    let path = PathBuf::from(value.as_ref());
    if !path.is_absolute() || value.as_ref().contains('\0') {
        return Err(fault(
            &value,
            format!("`{}` must be an absolute path", path.display()),
        ));
    }
    Ok(path)
}

fn check_unknown(
    unknown: Option<Spanned<String>>,
    default_group: Option<Spanned<String>>,
    groups: &BTreeMap<String, Group>,
) -> Result<Unknown, Fault> {
    if let Some(group) = &default_group
        && !groups.contains_key(group.as_ref())
    {
        return Err(fault(
            group,
            format!("there is no [groups.{}] in this file", group.as_ref()),
        ));
    }
    let Some(value) = unknown else {
        return Ok(Unknown::Wait);
    };
    match (value.as_ref().as_str(), default_group) {
        ("wait", _) => Ok(Unknown::Wait),
        ("boot", Some(group)) => Ok(Unknown::Boot {
            group: group.into_inner(),
        }),
        ("boot", None) => Err(fault(
            &value,
            "unknown = \"boot\" needs default_group: the group that strangers boot in",
        )),
        (other, _) => Err(fault(&value, format!("`{other}`: write \"wait\" or \"boot\""))),
    }
}

fn check_mode(raw: &raw::Dhcp) -> Result<DhcpMode, Fault> {
    let Some(value) = &raw.mode else {
        return Ok(DhcpMode::Full);
    };
    let modes = [DhcpMode::Full, DhcpMode::Proxy, DhcpMode::Off];
    let Some(mode) = modes.into_iter().find(|mode| mode.word() == value.as_ref()) else {
        let text = format!("`{}`: write \"full\", \"proxy\" or \"off\"", value.as_ref());
        return Err(fault(value, text));
    };
    let of_full = [&raw.range, &raw.lease, &raw.router, &raw.domain];
    let given = of_full.into_iter().flatten().chain(&raw.dns).next();
    match given {
        Some(given) if mode != DhcpMode::Full => {
            let text = format!(
                "with mode = \"{}\" somebody else gives out the addresses; remove `range`, `lease`, `router`, `dns` and `domain`",
                mode.word()
            );
            Err(fault(given, text))
        }
        _ => Ok(mode),
    }
}

fn check_dhcp(raw: raw::Dhcp) -> Result<Dhcp, Fault> {
    let mode = check_mode(&raw)?;
    let range = raw.range.as_ref().map(check_range).transpose()?;
    let lease = duration(
        raw.lease.as_ref(),
        "1h",
        Duration::from_secs(60)..=Duration::from_secs(30 * 86_400),
    )?;
    let address = |value: &Spanned<String>| -> Result<Ipv4Addr, Fault> {
        value
            .as_ref()
            .parse()
            .map_err(|_| fault(value, format!("`{}` is no IPv4 address", value.as_ref())))
    };
    if let Some(sixth) = raw.dns.get(5) {
        return Err(fault(sixth, "at most five name servers"));
    }
    if let Some(domain) = &raw.domain
        && (domain.as_ref().is_empty()
            || domain.as_ref().len() > 253
            || !domain
                .as_ref()
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.'))
    {
        return Err(fault(domain, format!("`{}` is no domain name", domain.as_ref())));
    }
    Ok(Dhcp {
        mode,
        range,
        lease,
        router: raw.router.as_ref().map(address).transpose()?,
        dns: raw.dns.iter().map(address).collect::<Result<_, _>>()?,
        domain: raw.domain.map(Spanned::into_inner),
    })
}

fn check_range(value: &Spanned<String>) -> Result<(Ipv4Addr, Ipv4Addr), Fault> {
    let text = value.as_ref();
    let ends = text.split_once('-').and_then(|(low, high)| {
        Some((
            low.trim().parse::<Ipv4Addr>().ok()?,
            high.trim().parse::<Ipv4Addr>().ok()?,
        ))
    });
    match ends {
        Some((low, high)) if low <= high && high.to_bits() - low.to_bits() < 65_536 => Ok((low, high)),
        Some((low, high)) if low <= high => {
            Err(fault(value, format!("`{text}` holds more than 65,536 addresses")))
        }
        Some(_) => Err(fault(value, format!("`{text}` ends before it starts"))),
        None => Err(fault(
            value,
            format!("`{text}` is no range; write 10.77.0.100-10.77.0.250"),
        )),
    }
}

fn check_group(name: &Spanned<String>, raw: raw::Group) -> Result<Group, Fault> {
    if !is_label(name.as_ref()) {
        return Err(fault(
            name,
            format!(
                "`{}`: a group name has letters, digits, `-`, `_` and `.` only",
                name.as_ref()
            ),
        ));
    }
    let image = raw.image.map_or_else(
        || Ok("minimal".to_owned()),
        |value| {
            let name = match crate::versions::split(value.as_ref()) {
                Some((name, _)) => name,
                None => value.as_ref().as_str(),
            };
            if is_label(name) {
                Ok(value.into_inner())
            } else {
                Err(fault(
                    &value,
                    format!(
                        "`{}` is no image name; it is a folder under images_dir, or `minimal@2` for one version of it",
                        value.as_ref()
                    ),
                ))
            }
        },
    )?;
    let kernel_args = match raw.kernel_args {
        // A line break would start a command of the loader script; a quote would end its string.
        Some(value) if value.as_ref().chars().any(|c| c.is_control() || !c.is_ascii()) => {
            return Err(fault(
                &value,
                "kernel_args holds a control character or one outside ASCII",
            ));
        }
        Some(value) if value.as_ref().len() > MAX_KERNEL_ARGS => {
            return Err(fault(
                &value,
                format!("kernel_args is longer than {MAX_KERNEL_ARGS} bytes"),
            ));
        }
        Some(value) => value.into_inner().trim().to_owned(),
        None => String::new(),
    };
    let mut matches = Vec::new();
    for pattern in &raw.matches {
        let parsed = parse_pattern(pattern.as_ref());
        matches.push(parsed.ok_or_else(|| {
            fault(
                pattern,
                format!("`{}` is no MAC glob, UUID, address or name", pattern.as_ref()),
            )
        })?);
    }
    Ok(Group {
        image,
        kernel_args,
        bail_out: duration(
            raw.bail_out.as_ref(),
            "10m",
            Duration::from_secs(30)..=Duration::from_secs(86_400),
        )?,
        patience: duration(
            raw.patience.as_ref(),
            "60s",
            Duration::from_secs(1)..=Duration::from_secs(86_400),
        )?,
        wake: raw.wake.unwrap_or(true),
        wake_command: raw
            .wake_command
            .map(|value| WakeCommand::parse(value.as_ref()).map_err(|error| fault(&value, error.to_string())))
            .transpose()?,
        at_close: one_of(
            raw.at_close.as_ref(),
            [("reboot", Ending::Reboot), ("power-off", Ending::PowerOff)],
        )?,
        way_home: one_of(
            raw.way_home.as_ref(),
            [
                ("local-boot", WayHome::LocalBoot),
                ("boot-next", WayHome::BootNext),
            ],
        )?,
        hours: check_hours(&raw.hours, &raw.holidays, raw.on_holiday.as_ref())?,
        matches,
        requires: requires::check(&raw.requires)?,
        values: raw.values,
    })
}

/// One of two words; the first is the default.
fn one_of<T>(value: Option<&Spanned<String>>, [first, second]: [(&str, T); 2]) -> Result<T, Fault> {
    match value {
        None => Ok(first.1),
        Some(value) if value.as_ref() == first.0 => Ok(first.1),
        Some(value) if value.as_ref() == second.0 => Ok(second.1),
        Some(value) => Err(fault(
            value,
            format!("`{}`: write \"{}\" or \"{}\"", value.as_ref(), first.0, second.0),
        )),
    }
}

fn duration(
    value: Option<&Spanned<String>>,
    default: &str,
    allowed: std::ops::RangeInclusive<Duration>,
) -> Result<Duration, Fault> {
    let text = value.map_or(default, |value| value.as_ref().as_str());
    let span = value.map(Spanned::span);
    match parse_duration(text) {
        Some(parsed) if allowed.contains(&parsed) => Ok(parsed),
        Some(_) => Err(Fault {
            span,
            what: format!(
                "`{text}` is out of bounds: {}s to {}s",
                allowed.start().as_secs(),
                allowed.end().as_secs()
            ),
        }),
        None => Err(Fault {
            span,
            what: format!("`{text}` is no duration; write 90s, 10m, 1h or 2d"),
        }),
    }
}

/// `90s`, `10m`, `1h`, `2d`: a whole number and a unit.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits
        .parse::<u64>()
        .ok()?
        .checked_mul(unit)
        .map(Duration::from_secs)
}

/// Tells the kinds of patterns apart by their shape.
pub fn parse_pattern(text: &str) -> Option<Pattern> {
    let lower = text.to_ascii_lowercase();
    if let Ok(address) = lower.parse() {
        return Some(Pattern::Address(address));
    }
    let is_hex = |c: char| c.is_ascii_hexdigit();
    let parts: Vec<&str> = lower.split('-').collect();
    if parts.iter().map(|part| part.len()).eq([8, 4, 4, 4, 12])
        && lower.chars().all(|c| is_hex(c) || c == '-')
    {
        return Some(Pattern::Uuid(lower));
    }
    if lower.contains(':') {
        let fits = lower.len() <= 17 && lower.chars().all(|c| is_hex(c) || ":*?".contains(c));
        return fits.then_some(Pattern::Mac(lower));
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.*?".contains(c);
    (!text.is_empty() && text.len() <= 253 && text.chars().all(fits)).then(|| Pattern::Name(text.to_owned()))
}

/// One path component that is also a word of a kernel command line.
fn is_label(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 63
        && !text.starts_with('.')
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}
