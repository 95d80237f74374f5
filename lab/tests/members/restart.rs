//! Show 8 with real agents: the head is killed and started again, and has them all, its history as it was.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cid_protocol::api::Event;
use cidlab::rig::{Asker, Rig};

use super::{all_heard_again, all_up, head_dies, head_says, last_event, nobody_went_home, state_changes};

/// The bound.
pub(super) const BOUND: Duration = Duration::from_secs(10);

/// `CID_RIG_AGENTS`, or as many as two processors carry.
fn agents() -> usize {
    let set = std::env::var("CID_RIG_AGENTS")
        .ok()
        .and_then(|text| text.parse().ok());
    set.unwrap_or(200)
}

/// Epoch and length.
pub(super) type History = (u64, u64);

/// Epoch and length of the history that the head has on its disk.
pub(super) fn history(rig: &Rig) -> Result<History> {
    let metrics = rig.head.control().metrics()?;
    let of = |name: &str| metrics.get(name).copied().with_context(|| format!("no {name}"));
    Ok((of("cid_history_epoch")?, of("cid_history_length")?))
}

/// What was told before the death is told after it, word by word, as far back as is told at all.
pub(super) fn is_prefix(before: &[Event], after: &[Event]) -> Result<()> {
    let first = after.first().map_or(0, |event| event.seq);
    let words = |event: &Event| {
        (
            event.seq,
            event.kind.clone(),
            event.mac.clone(),
            event.text.clone(),
        )
    };
    let kept = before.iter().filter(|event| event.seq >= first).map(words);
    let kept: Vec<_> = kept.collect();
    let same: Vec<_> = after.iter().take(kept.len()).map(words).collect();
    ensure!(
        kept == same,
        "events changed: {:?}",
        kept.iter().zip(&same).find(|(before, after)| before != after)
    );
    Ok(())
}

/// Agents, asked themselves, hold that history still, and no shorter.
fn agents_hold(rig: &Rig, before: History) -> Result<()> {
    let step = rig.agents().len().div_ceil(50);
    let some: Vec<usize> = (0..rig.agents().len()).step_by(step).collect();
    hold(&Asker::new(rig)?, &some, before)
}

/// The same of some that an asker can reach.
pub(super) fn hold(asker: &Asker, some: &[usize], (epoch, length): History) -> Result<()> {
    for (agent, view) in some.iter().zip(asker.ask(some)?) {
        let view = view.with_context(|| format!("agent {agent}"))?;
        ensure!(
            view.history_epoch == epoch && view.history_length >= length,
            "agent {agent} holds {} changes of history {}, of {length} of {epoch}",
            view.history_length,
            view.history_epoch
        );
    }
    Ok(())
}

#[test]
fn a_killed_head_has_all_back_within_ten_seconds() -> Result<()> {
    let count = agents();
    let limit = Duration::from_secs(120 + count as u64);
    let mut rig = Rig::start("restart", count)?;
    rig.power_on(10)?;
    rig.wait_up(limit)?;
    head_says(&rig, "all are up", limit, |nodes| all_up(nodes, count))?;
    for (name, down) in [
        ("at once", Duration::ZERO),
        ("after a minute", Duration::from_secs(60)),
    ] {
        let event = last_event(&rig)?;
        let (told, history) = (rig.head.control().events()?, history(&rig)?);
        let since = head_dies(&mut rig, down)?;
        let took = all_heard_again(&rig, count, since, limit)?;
        println!("{count} agents, head back {name}: all heard {took:.1?} after it answers");
        ensure!(took < BOUND, "{took:.1?}");
        let events = rig.head.control().events()?;
        is_prefix(&told, &events)?;
        let now = self::history(&rig)?;
        println!("history {history:?} before, {now:?} now (epoch, changes)");
        ensure!(now == history, "another history: {history:?}, {now:?}");
        agents_hold(&rig, history)?;
        nobody_went_home(&rig)?;
        for agent in rig.agents() {
            let lost = state_changes(&events, event, agent);
            ensure!(
                !lost.iter().any(|text| text.contains("is lost")),
                "{}: {lost:?}",
                agent.mac()
            );
        }
    }
    rig.succeeded();
    Ok(())
}
