//! `GET /metrics`: Prometheus' text format. Counts only; names of machines never become labels.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use cid_protocol::api::DhcpStatus;

use super::Api;

pub(super) async fn metrics(State(api): State<Arc<Api>>) -> impl IntoResponse {
    let mut text = String::new();
    let states = api.core.read(crate::registry::Registry::count_by_state);
    let states = states
        .into_iter()
        .map(|(state, count)| (state.to_owned(), count as u64));
    family(
        &mut text,
        "cid_machines",
        "gauge",
        "Machines by state.",
        "state",
        states,
    );
    let running = api.core.read(crate::registry::Registry::count_by_image);
    let running = running
        .into_iter()
        .map(|(image, count)| (image, u64::from(count)));
    let help = "Nodes by the version of the image that they run.";
    family(&mut text, "cid_nodes_by_image", "gauge", help, "image", running);
    let now = api.core.now();
    let groups = api.core.read(|registry| registry.group_hours(now, None));
    let groups = groups.unwrap_or_default().into_iter();
    family(
        &mut text,
        "cid_group_open",
        "gauge",
        "1 while the group may compute.",
        "group",
        groups.map(|group| (group.group, u64::from(group.open))),
    );
    let help = "Packets, messages and requests not answered, by reason.";
    family(
        &mut text,
        "cid_drops_total",
        "counter",
        help,
        "reason",
        api.drops(),
    );
    let refusals = api.core.read(|registry| {
        let refusals = registry.refusals();
        refusals
            .map(|(reason, count)| (reason.to_owned(), count))
            .collect::<Vec<_>>()
    });
    family(
        &mut text,
        "cid_refusals_total",
        "counter",
        "Nodes that asked to join and measured less than their group requires, by reason.",
        "reason",
        refusals,
    );
    let help = "Boot answers by decision and reason.";
    family(
        &mut text,
        "cid_decisions_total",
        "counter",
        help,
        "decision",
        api.boot.decisions(),
    );
    single(
        &mut text,
        "cid_leases",
        "Leases that have not expired.",
        api.boot.leases() as u64,
    );
    single(
        &mut text,
        "cid_node_connections",
        "Open node connections.",
        api.core.connection_count() as u64,
    );
    let (name, help) = (
        "cid_node_connections_total",
        "Connections taken at the nodes' port; those that ended for another reason than a good-bye are in the drops.",
    );
    let taken = api.core.drops.connections();
    let _ = writeln!(
        text,
        "# HELP {name} {help}\n# TYPE {name} counter\n{name} {taken}"
    );
    members(&api, &mut text);
    roots(&api, &mut text);
    let serving = u64::from(matches!(api.boot.dhcp(), DhcpStatus::Serving));
    single(
        &mut text,
        "cid_dhcp_serving",
        "1 while DHCP is answered, 0 beside a rival.",
        serving,
    );
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

/// Root images on their way to nodes.
fn roots(api: &Api, text: &mut String) {
    let figures = api.core.content.figures();
    let word = |word: &str, count| (word.to_owned(), count);
    let nodes = [
        word("fetching", figures.fetching),
        word("whole", figures.whole),
        word("waiting", figures.waiting),
    ];
    let help = "Nodes by what they have of their root image; those that wait for the head fetch.";
    family(text, "cid_root_nodes", "gauge", help, "state", nodes);
    let tickets = [
        word("first", figures.first),
        word("again", figures.again),
        word("expired", figures.expired),
    ];
    let help = "Tickets for chunks of root images: that nobody had, that others had, that were not used.";
    family(text, "cid_root_tickets_total", "counter", help, "kind", tickets);
    let given = [word("given", figures.bytes)];
    let help = "Bytes of root images over the head's links.";
    family(text, "cid_root_bytes_total", "counter", help, "what", given);
    let faults = [
        word("accusation", figures.accusations),
        word("part", figures.refused),
    ];
    let help =
        "Peers that were said to give wrong chunks; parts of root images that the head refused to give.";
    family(text, "cid_root_faults_total", "counter", help, "what", faults);
}

/// The membership; nothing before it was begun.
fn members(api: &Api, text: &mut String) {
    let found = api.core.members(|members| {
        let counts = members.count_by_liveness();
        let refusals: Vec<_> = members.membership().refusals().iter().collect();
        let keys = (members.keys().current().epoch, members.keys().rotations());
        let traffic = (members.traffic().all(), members.traffic().door());
        (
            counts,
            refusals,
            members.unopened(),
            keys,
            traffic,
            members.history(),
        )
    });
    let Some((counts, refusals, unopened, (epoch, rotations), (traffic, door), history)) = found else {
        return;
    };
    let owned = |(word, count): (&'static str, u64)| (word.to_owned(), count);
    let help = "Members as the head's own membership sees them.";
    family(text, "cid_members", "gauge", help, "liveness", counts.map(owned));
    let help = "Datagrams of the membership that were not taken, by reason.";
    let drops = unopened.into_iter().chain(refusals).map(owned);
    family(text, "cid_member_drops_total", "counter", help, "reason", drops);
    let help = "What became of each datagram at the membership's port; those received and not named here are in the drops.";
    let door = door.into_iter().map(owned);
    family(text, "cid_member_door_total", "counter", help, "what", door);
    let help = "Sealed datagrams and their bytes, without IP and UDP.";
    family(
        text,
        "cid_member_traffic_total",
        "counter",
        help,
        "what",
        traffic.map(owned),
    );
    single(
        text,
        "cid_group_key_epoch",
        "Epoch of the group key in force.",
        u64::from(epoch),
    );
    let help = "Changes of the group key since the start.";
    single(text, "cid_group_key_rotations", help, rotations);
    let help = "Which history this head writes.";
    single(text, "cid_history_epoch", help, u64::from(history.epoch));
    let help = "Changes in the history that are on disk.";
    single(text, "cid_history_length", help, u64::from(history.length));
}

fn single(text: &mut String, name: &str, help: &str, value: u64) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
}

fn family(
    text: &mut String,
    name: &str,
    kind: &str,
    help: &str,
    label: &str,
    values: impl IntoIterator<Item = (String, u64)>,
) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (value, count) in values {
        let value = value
            .replace('\\', r"\\")
            .replace('"', "\\\"")
            .replace('\n', r"\n");
        let _ = writeln!(text, "{name}{{{label}=\"{value}\"}} {count}");
    }
}
