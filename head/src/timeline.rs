//! What was seen of each machine's boots, step by step. A value without clock and disk; bounded per machine and in
//! the number of machines. Must not decide what a machine boots: it is for people who ask what happened.
//!
//! In memory: everything, the last [`MAX_STEPS`] of a machine. In the database: of machines that were adopted, what
//! tells one night from the next ([`matters`]); addresses and files fetched are gone when the head is.

pub mod diagnose;

use std::collections::{BTreeMap, VecDeque};

use cid_protocol::trace::{Step, What};

use crate::mac::Mac;

/// Steps kept of one machine: about ten boots.
pub const MAX_STEPS: usize = 128;
/// Machines with a timeline; the one that was quiet for longest makes room.
pub const MAX_MACHINES: usize = 8_192;
/// Longest text in a step, in bytes.
const MAX_TEXT: usize = 300;

/// The timelines of all machines.
#[derive(Debug, Default)]
pub struct Timelines {
    machines: BTreeMap<Mac, Line>,
    /// What concerns all of them: the head, its rivals.
    everywhere: VecDeque<Step>,
}

#[derive(Debug, Default)]
struct Line {
    steps: VecDeque<Step>,
    card: Option<String>,
}

impl Timelines {
    /// Starts from what the database kept, oldest first; no MAC means all machines.
    pub fn new(kept: impl IntoIterator<Item = (Option<Mac>, Step)>) -> Self {
        let mut timelines = Self::default();
        for (about, step) in kept {
            if let Some(steps) = timelines.steps(about) {
                push(steps, step);
            }
        }
        timelines
    }

    /// Adds what happened to `about` (to all when absent). Returns the step when it is a new one: the same again only
    /// counts.
    pub fn add(&mut self, at_unix_ms: u64, about: Option<Mac>, mut what: What) -> Option<Step> {
        tame(&mut what);
        let steps = self.steps(about)?;
        if let Some(same) = repeated(steps, &what) {
            same.times = same.times.saturating_add(1);
            same.last_unix_ms = at_unix_ms;
            return None;
        }
        let step = Step {
            at_unix_ms,
            last_unix_ms: at_unix_ms,
            times: 1,
            what,
        };
        push(steps, step.clone());
        Some(step)
    }

    /// The loader named the PCI vendor and device of the card it asks over.
    pub fn set_card(&mut self, mac: Mac, card: String) {
        if let Some(line) = self.machines.get_mut(&mac) {
            line.card = Some(card);
        }
    }

    /// The card it asked over, if a loader ever named it.
    pub fn card(&self, mac: Mac) -> Option<&str> {
        self.machines.get(&mac)?.card.as_deref()
    }

    /// Everything about one machine, oldest first, with what concerned all since its first step.
    pub fn of(&self, mac: Mac) -> Vec<Step> {
        let own = self.machines.get(&mac).map(|line| &line.steps);
        let mut steps: Vec<Step> = own.into_iter().flatten().cloned().collect();
        let first = steps.first().map_or(0, |step| step.at_unix_ms);
        steps.extend(
            self.everywhere
                .iter()
                .filter(|step| step.last_unix_ms >= first)
                .cloned(),
        );
        steps.sort_by_key(|step| step.at_unix_ms);
        steps
    }

    /// The machine is no longer known.
    pub fn forget(&mut self, mac: Mac) {
        self.machines.remove(&mac);
    }

    fn steps(&mut self, about: Option<Mac>) -> Option<&mut VecDeque<Step>> {
        let Some(mac) = about else {
            return Some(&mut self.everywhere);
        };
        if self.machines.len() >= MAX_MACHINES && !self.machines.contains_key(&mac) {
            let last = |line: &Line| line.steps.back().map_or(0, |step| step.last_unix_ms);
            let quietest = self.machines.iter().min_by_key(|(_, line)| last(line));
            let quietest = quietest.map(|(mac, _)| *mac)?;
            self.machines.remove(&quietest);
        }
        Some(&mut self.machines.entry(mac).or_default().steps)
    }
}

fn push(steps: &mut VecDeque<Step>, step: Step) {
    if steps.len() >= MAX_STEPS {
        steps.pop_front();
    }
    steps.push_back(step);
}

/// The step that `what` repeats: the last one; or the question before the last answer, because firmware that does not
/// take an offer asks and is answered again.
fn repeated<'a>(steps: &'a mut VecDeque<Step>, what: &What) -> Option<&'a mut Step> {
    let asked_again = matches!(what, What::Discover { .. })
        && matches!(steps.back().map(|step| &step.what), Some(What::Offer { .. }));
    let back = if asked_again { 2 } else { 1 };
    let at = steps.len().checked_sub(back)?;
    steps.get_mut(at).filter(|step| step.what == *what)
}

/// Whether a step of an adopted machine is written to the database.
pub fn matters(what: &What) -> bool {
    match what {
        What::Discover { .. } | What::Offer { .. } | What::Ack { .. } | What::File { .. } | What::System => {
            false
        }
        What::Script { .. }
        | What::Init { .. }
        | What::Joined { .. }
        | What::Refused { .. }
        | What::Left { .. }
        | What::State { .. }
        | What::Command { .. }
        | What::Rival { .. }
        | What::Head { .. } => true,
    }
}

/// Bounds every text; strangers choose some of them.
fn tame(what: &mut What) {
    let texts: Vec<&mut String> = match what {
        What::Discover { client, firmware } => vec![client, firmware],
        What::Offer { answer, .. } => vec![answer],
        What::File { name } | What::Joined { name, .. } => vec![name],
        What::Script { image } => vec![image],
        What::Refused { reason } | What::Left { reason } | What::State { reason, .. } => vec![reason],
        What::Command { text } | What::Head { text } => vec![text],
        What::Rival { server, text } => vec![server, text],
        What::Init { phases, .. } => {
            phases.truncate(32);
            phases.iter_mut().map(|phase| &mut phase.name).collect()
        }
        What::Ack { .. } | What::System => Vec::new(),
    };
    for text in texts {
        *text = crate::registry::tame(text, MAX_TEXT);
    }
}

#[cfg(test)]
mod tests;
