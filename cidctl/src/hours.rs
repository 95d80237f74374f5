//! `cidctl hours`: when groups compute, and exceptions from it. Must not read a time: the head knows its time zone.

use anyhow::Result;
use cid_protocol::api::{GroupHours, HoursChange, HoursList, HoursRequest};
use clap::{Args, ValueEnum};

use crate::client::Client;
use crate::print::{columns, plain};
use crate::{Json, commands};

/// What stands behind `hours`.
#[derive(Debug, Args)]
pub(crate) struct Hours {
    /// A group of head.toml; without it, every group is shown.
    group: Option<String>,
    /// What it is to be for a while, whatever its hours say.
    #[arg(value_enum, requires = "group")]
    change: Option<Change>,
    /// The word `until` and a time: 23:00 (the next time the clock shows it), Mon 06:30 or 2026-11-24 06:30.
    #[arg(requires = "change", value_name = "until TIME")]
    until: Vec<String>,
    #[command(flatten)]
    json: Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Change {
    /// Open until then: it boots, and is woken.
    Open,
    /// Closed until then: whoever is up has its patience and goes home.
    Closed,
    /// As its hours say, from now on.
    Clear,
}

impl Hours {
    /// What is wrong with the words, seen without asking the head.
    pub(crate) fn usage_error(&self) -> Option<&'static str> {
        let end = self.end();
        match self.change {
            Some(Change::Clear) if !self.until.is_empty() => Some("`clear` takes no time; leave it out"),
            Some(Change::Open | Change::Closed) if end.is_empty() => {
                Some("until when? Write `until 23:00`, `until Mon 06:30` or `until 2026-11-24 06:30`")
            }
            _ => None,
        }
    }

    /// The time without the word before it.
    fn end(&self) -> String {
        let words = match self.until.split_first() {
            Some((first, rest)) if first == "until" => rest,
            _ => &self.until,
        };
        words.join(" ")
    }
}

pub(crate) async fn run(client: &Client, hours: Hours) -> Result<()> {
    let until = Some(hours.end()).filter(|end| !end.is_empty());
    let list: HoursList = match (hours.group, hours.change) {
        (Some(group), Some(change)) => {
            let change = match change {
                Change::Open => HoursChange::Open,
                Change::Closed => HoursChange::Closed,
                Change::Clear => HoursChange::Clear,
            };
            let request = HoursRequest { group, change, until };
            client.post("/v1/hours", &request).await?
        }
        (group, _) => {
            let query: Vec<(&str, String)> = group.into_iter().map(|group| ("group", group)).collect();
            client.get("/v1/hours", &query).await?
        }
    };
    if hours.json.json {
        commands::document(&list)
    } else {
        commands::write(&table(&list.groups))
    }
}

/// One line for each group: what it is, until when, what then, the exception if there is one, whose clock.
fn table(groups: &[GroupHours]) -> String {
    let header = ["GROUP", "NOW", "UNTIL", "THEN UNTIL", "EXCEPTION", "TIME ZONE"].map(str::to_owned);
    let mut rows = vec![header];
    rows.extend(groups.iter().map(row));
    columns(&rows)
}

fn row(group: &GroupHours) -> [String; 6] {
    let word = |open: bool| if open { "open" } else { "closed" };
    let end = |text: &str| match text {
        "" => "for good".to_owned(),
        text => plain(text),
    };
    let exception = group.exception.as_ref().map_or("-".to_owned(), |exception| {
        format!("{} until {}", word(exception.open), plain(&exception.until))
    });
    let never = group.hours.is_empty() && !group.open && group.changes.is_empty();
    let now = if never { "never" } else { word(group.open) };
    let (until, then) = match (never, group.changes.as_str()) {
        (true, _) => ("-".to_owned(), "-".to_owned()),
        (_, "") => ("for good".to_owned(), "-".to_owned()),
        (_, changes) => (
            plain(changes),
            format!("{} {}", word(!group.open), end(&group.then)),
        ),
    };
    [
        plain(&group.group),
        now.to_owned(),
        until,
        then,
        exception,
        plain(&group.time_zone),
    ]
}

#[cfg(test)]
mod tests {
    use cid_protocol::api::HoursException;
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Typed {
        #[command(flatten)]
        hours: Hours,
    }

    fn typed(words: &str) -> Result<Hours, String> {
        let words = std::iter::once("hours").chain(words.split_whitespace());
        let typed = Typed::try_parse_from(words).map_err(|error| error.to_string())?;
        match typed.hours.usage_error() {
            Some(error) => Err(error.to_owned()),
            None => Ok(typed.hours),
        }
    }

    #[test]
    fn words_are_a_group_what_and_until_when() {
        for (words, end) in [
            ("", ""),
            ("lab-a", ""),
            ("lab-a clear", ""),
            ("lab-a open until 23:00", "23:00"),
            ("lab-a open 23:00", "23:00"),
            ("lab-a closed until Mon 06:30", "Mon 06:30"),
            ("lab-a closed until 2026-11-24 06:30 --json", "2026-11-24 06:30"),
        ] {
            assert_eq!(typed(words).expect(words).end(), end, "{words}");
        }
        for wrong in [
            "lab-a open",
            "lab-a closed until",
            "lab-a clear until 23:00",
            "lab-a shut until 1:00",
        ] {
            assert!(typed(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_table_says_now_then_and_why() {
        let school = GroupHours {
            group: "lab-a".into(),
            open: false,
            changes_unix: Some(2),
            changes: "Mon 2026-11-23 20:00".into(),
            then_unix: Some(3),
            then: "Tue 2026-11-24 06:30".into(),
            hours: vec!["Mon-Fri 20:00-06:30".into()],
            exception: Some(HoursException {
                open: false,
                from_unix: 1,
                from: "Mon 2026-11-23 18:00".into(),
                until_unix: 2,
                until: "Mon 2026-11-23 20:00".into(),
            }),
            time_zone: "Europe/Berlin".into(),
        };
        let none = GroupHours {
            group: "new".into(),
            changes: String::new(),
            then: String::new(),
            hours: Vec::new(),
            exception: None,
            ..school.clone()
        };
        let always = GroupHours {
            group: "render".into(),
            open: true,
            hours: vec!["always".into()],
            ..none.clone()
        };
        let expected = "\
GROUP   NOW     UNTIL                 THEN UNTIL                 EXCEPTION                          TIME ZONE
lab-a   closed  Mon 2026-11-23 20:00  open Tue 2026-11-24 06:30  closed until Mon 2026-11-23 20:00  Europe/Berlin
new     never   -                     -                          -                                  Europe/Berlin
render  open    for good              -                          -                                  Europe/Berlin
";
        assert_eq!(table(&[school, none, always]), expected);
    }
}
