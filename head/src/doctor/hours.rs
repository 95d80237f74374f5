//! When each group boots, and groups that never do. Reads only.

use cid_protocol::api::GroupHours;
use cid_protocol::doctor::Finding;

use crate::api::Api;

const CHECK: &str = "hours";

/// One line for each group, and one for a clock that is nobody's.
pub(super) fn examine(api: &Api) -> Vec<Finding> {
    let now = api.core.now();
    let (zone, groups) = api
        .core
        .read(|registry| (registry.knows_its_zone(), registry.group_hours(now, None)));
    let mut findings: Vec<Finding> = time_zone(zone).into_iter().collect();
    findings.extend(groups.unwrap_or_default().iter().map(group));
    findings
}

fn time_zone(known: bool) -> Option<Finding> {
    (!known).then(|| {
        Finding::warn(
            CHECK,
            "neither head.toml nor this system names a time zone: hours are read as UTC",
            "set `time_zone = \"Europe/Berlin\"` (or yours) in head.toml and restart cidhead",
        )
    })
}

fn group(group: &GroupHours) -> Finding {
    let name = &group.group;
    let exception = group.exception.as_ref().map_or(String::new(), |exception| {
        let word = if exception.open { "open" } else { "closed" };
        format!("; an exception holds it {word} until {}", exception.until)
    });
    let zone = &group.time_zone;
    match (group.open, group.changes.as_str(), group.then.as_str()) {
        (false, "", _) if group.hours.is_empty() => Finding::warn(
            CHECK,
            format!("group {name} has no hours: it never boots"),
            format!("add `hours = [\"Mon-Fri 20:00-06:30\"]` to [groups.{name}] and restart cidhead"),
        ),
        (false, "", _) => Finding::warn(
            CHECK,
            format!("group {name} has hours that do not open in the next 400 days"),
            format!("look at `hours`, `holidays` and `on_holiday` in [groups.{name}]"),
        ),
        (false, opens, _) => Finding::ok(
            CHECK,
            format!("group {name} is closed and opens {opens} ({zone}){exception}"),
        ),
        (true, "", _) => Finding::ok(CHECK, format!("group {name} is always open{exception}")),
        (true, closes, "") => Finding::warn(
            CHECK,
            format!("group {name} is open until {closes} ({zone}) and does not open again{exception}"),
            format!("add `hours` to [groups.{name}], if it is to boot on other days too"),
        ),
        (true, closes, opens) => Finding::ok(
            CHECK,
            format!("group {name} is open until {closes} and opens again {opens} ({zone}){exception}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use cid_protocol::doctor::Level;

    use super::*;
    use crate::config::Config;
    use crate::registry::{Now, Registry};

    /// Tuesday 2023-11-14 at 22:13:20 UTC.
    const NOW: Now = Now {
        monotonic: std::time::Duration::ZERO,
        unix_ms: 1_700_000_000_000,
    };

    fn check(group_text: &str, level: Level, expected: &str) {
        let text = format!("interface = \"e0\"\ntime_zone = \"UTC\"\n[groups.lab-a]\n{group_text}");
        let config = Config::parse(std::path::Path::new("head.toml"), &text).expect("a configuration");
        let registry = Registry::new(&config, Vec::new(), NOW);
        let groups = registry.group_hours(NOW, None).expect("no group asked for");
        let finding = group(&groups[0]);
        assert_eq!((finding.level, finding.text.as_str()), (level, expected));
        assert_eq!(finding.remedy.is_empty(), level == Level::Ok);
    }

    #[test]
    fn groups_that_never_boot_are_told_from_those_that_do() {
        check("", Level::Warn, "group lab-a has no hours: it never boots");
        let closed = "hours = [\"always\"]\non_holiday = \"closed\"\nholidays = [\"2023-01-01..2026-12-31\"]";
        let never = "group lab-a has hours that do not open in the next 400 days";
        check(closed, Level::Warn, never);
        check("hours = [\"always\"]", Level::Ok, "group lab-a is always open");
        let open =
            "group lab-a is open until Wed 2023-11-15 06:30 and opens again Wed 2023-11-15 20:00 (UTC)";
        let closed = "group lab-a is closed and opens Wed 2023-11-15 20:00 (UTC)";
        check("hours = [\"20:00-06:30\"]", Level::Ok, open);
        check("hours = [\"20:00-22:00\"]", Level::Ok, closed);
    }

    #[test]
    fn a_zone_that_nobody_named_is_worth_a_look() {
        assert!(time_zone(true).is_none());
        assert_eq!(time_zone(false).map(|finding| finding.level), Some(Level::Warn));
    }
}
