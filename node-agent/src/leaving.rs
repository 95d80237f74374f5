//! What a node gets ready for the PC's next start: its cards can be woken, and firmware knows the way to Windows where a group
//! wants that. Must never keep the PC from going home: a step that fails is told, and the rest goes on.

use cid_protocol::node::{Leaving, MAX_STEPS};
use cid_sys::wake_on_lan;

use crate::boot_next;

/// What is ready.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Prepared {
    /// What the next start will be.
    pub(crate) leaving: Leaving,
    /// What was done, or could not be; in plain words.
    pub(crate) steps: Vec<String>,
}

impl Prepared {
    /// It took too long: nobody knows how far it got. BootNext may or may not be set, so the head expects a question.
    pub(crate) fn late(wanted: Leaving) -> Self {
        let leaving = match wanted {
            Leaving::BootNext => Leaving::LocalBoot,
            other => other,
        };
        let steps = vec!["getting ready for the next start took too long".to_owned()];
        Self { leaving, steps }
    }
}

/// Arms the cards of these links, and sets BootNext where that is the way. Blocks.
pub(crate) fn prepare(links: Vec<String>, wanted: Leaving) -> Prepared {
    let armed = links.iter().take(MAX_STEPS - 1);
    let mut steps: Vec<String> = armed
        .map(|link| format!("Wake-on-LAN of {link}: {}", arm(link)))
        .collect();
    let leaving = if wanted == Leaving::BootNext {
        match boot_next::set() {
            Ok(entry) => {
                steps.push(format!("BootNext is {entry}"));
                Leaving::BootNext
            }
            Err(why) => {
                steps.push(format!("BootNext is not set, firmware asks the head: {why}"));
                Leaving::LocalBoot
            }
        }
    } else {
        wanted
    };
    Prepared { leaving, steps }
}

/// Lets a magic packet, and nothing else, wake the card; the answer in words. What wakes a card on everything sent to it would have a
/// switched-off PC come back at once.
pub(crate) fn arm(link: &str) -> String {
    let attempt = || -> std::io::Result<&'static str> {
        if wake_on_lan::read(link)?.supported & wake_on_lan::MAGIC == 0 {
            return Ok(NOT_SUPPORTED);
        }
        wake_on_lan::set(link, wake_on_lan::MAGIC)?;
        let active = wake_on_lan::read(link)?.active;
        Ok(if active & wake_on_lan::MAGIC == 0 {
            "its driver did not take it"
        } else {
            "armed"
        })
    };
    match attempt() {
        Ok(word) => word.to_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::Unsupported => NOT_SUPPORTED.to_owned(),
        Err(error) => error.to_string(),
    }
}

const NOT_SUPPORTED: &str = "not supported";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_done_is_told_and_leads_home_by_the_head() {
        assert_eq!(arm("lo"), NOT_SUPPORTED);
        let late = Prepared::late(Leaving::BootNext);
        assert_eq!((late.leaving, late.steps.len()), (Leaving::LocalBoot, 1));
        assert_eq!(Prepared::late(Leaving::PowerOff).leaving, Leaving::PowerOff);
        let prepared = prepare(vec!["lo".to_owned()], Leaving::PowerOff);
        assert_eq!(prepared.leaving, Leaving::PowerOff);
        assert_eq!(prepared.steps, ["Wake-on-LAN of lo: not supported"]);
    }
}
