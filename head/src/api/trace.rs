//! `GET /v1/trace/{machine}`: a machine's timeline with its diagnosis. Must not change anything.

use cid_protocol::trace::{Card, Trace};

use super::Api;
use crate::mac::Mac;
use crate::registry::Record;
use crate::timeline::diagnose::{Facts, begins, diagnose};

/// What happened to a machine; `None` for one that was never seen.
pub(super) fn trace(api: &Api, mac: Mac) -> Option<Trace> {
    let now_unix_ms = api.core.now().unix_ms;
    let (record, steps, cards, image) = api.core.read(|registry| {
        let record = registry.record(mac)?.clone();
        let timelines = registry.timelines();
        let cards = cards(&record, timelines.card(mac));
        let image = registry
            .group_of(&record)
            .map(|(_, group)| group.image.clone())
            .or_else(|| record.image.clone())
            .unwrap_or_default();
        Some((record, timelines.of(mac), cards, image))
    })?;
    let drivers = api.boot.drivers(&image);
    let facts = Facts {
        now_unix_ms,
        cards: &cards,
        image: &image,
        drivers: drivers.as_ref().map(|drivers| drivers.names.as_slice()),
        ids: drivers.as_ref().map_or(&[], |drivers| drivers.ids.as_slice()),
    };
    let diagnosis = diagnose(&steps, &facts);
    Some(Trace {
        mac: mac.to_string(),
        name: record.label(),
        state: record.state,
        reason: record.reason,
        now_unix_ms,
        cards,
        boots: (0..steps.len()).filter(|at| begins(&steps, *at)).collect(),
        steps,
        diagnosis,
    })
}

/// The cards it had when it was in the cluster last, and the one its loader named.
fn cards(record: &Record, named: Option<&str>) -> Vec<Card> {
    let links = record.hardware.iter().flat_map(|hardware| &hardware.links);
    let mut cards: Vec<Card> = links
        .map(|link| Card {
            id: link.id.clone(),
            driver: link.driver.clone(),
        })
        .collect();
    if let Some(id) = named
        && !cards.iter().any(|card| card.id == id)
    {
        // It asks over this one: it comes first.
        let card = Card {
            id: id.to_owned(),
            driver: String::new(),
        };
        cards.insert(0, card);
    }
    cards
}
