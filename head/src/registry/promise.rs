//! Nodes whose image has a root: each is promised it with its welcome and is `joining` until it says that it runs. Must not believe a
//! node that it runs what it was not promised.

use cid_protocol::api::NodeState;
use cid_protocol::root::{RootPromise, RootReport};
use cid_protocol::trace::What;

use std::collections::BTreeMap;

use super::{ConnectionId, Now, Registry, tame};
use crate::mac::Mac;
use crate::node_files::{self, Promised};

/// Counters of what nodes refuse; a word that is none of these counts as the last.
const REFUSALS: [&str; 12] = [
    "manifest-malformed",
    "manifest-other-key",
    "manifest-bad-signature",
    "manifest-other-image",
    "manifest-older",
    "memory",
    "mount",
    "health",
    "chunk-wrong",
    "tree",
    "template",
    "root-other",
];

impl Registry {
    /// What is promised to whoever boots these images, signed.
    pub fn set_promises(&mut self, promises: Vec<Promised>) {
        let named = promises
            .into_iter()
            .map(|promised| (promised.promise.image.clone(), promised));
        self.promises = named.collect();
    }

    /// What a node that said hello is promised. One that is there already in this boot runs it.
    ///
    /// # Errors
    /// A template of its image cannot be rendered for it: why, in one line. Nothing was changed.
    pub(super) fn promise_root(
        &mut self,
        mac: Mac,
        welcomed: bool,
    ) -> Result<Option<Box<RootPromise>>, String> {
        let Some(machine) = self.machines.get(&mac) else {
            return Ok(None);
        };
        let record = &machine.record;
        let Some(promised) = record.image.as_ref().and_then(|image| self.promises.get(image)) else {
            return Ok(None);
        };
        let mut promise = promised.promise.clone();
        if !welcomed && let Some((group, settings)) = self.group_of(record) {
            let none = BTreeMap::new();
            let node = node_files::Node {
                name: record.label(),
                group: group.to_owned(),
                mac: mac.to_string(),
                address: record
                    .address
                    .map(|address| address.to_string())
                    .unwrap_or_default(),
                image: promise.image.clone(),
            };
            let values = [&settings.values, self.machine_values.get(&mac).unwrap_or(&none)];
            promise.files = node_files::render(promised, &node, values)?;
        }
        if let Some(machine) = self.machines.get_mut(&mac) {
            if !welcomed {
                machine.peak_kib = None;
                machine.fetches = Some(format!("is to fetch {}", promise.image));
            }
            machine.promised = promise.sequence;
        }
        Ok(Some(Box::new(promise)))
    }

    /// What a node says of its root image.
    pub fn handle_root_report(&mut self, now: Now, connection: ConnectionId, report: &RootReport) {
        let Some(mac) = self.connections.get(&connection).copied() else {
            return;
        };
        let Some(machine) = self.machines.get_mut(&mac) else {
            return;
        };
        // Said again after each welcome: a head that was restarted learns it so.
        if let RootReport::Mounted { peak_kib, .. } = report {
            machine.peak_kib = Some(*peak_kib).filter(|peak| *peak > 0);
        }
        // It is on its way out, or has nothing to fetch.
        let joins = matches!(
            machine.record.state,
            NodeState::Joining | NodeState::Refused | NodeState::Suspect | NodeState::Lost
        );
        if machine.fetches.is_none() || !joins {
            return;
        }
        match report {
            RootReport::Fetching {
                image,
                have,
                of,
                waits,
            } => {
                let (image, waits) = (tame(image, 80), tame(waits, 120));
                let waits = if waits.is_empty() {
                    waits
                } else {
                    format!("; {waits}")
                };
                let text = format!(
                    "fetches {image}: {} of {} MB{waits}",
                    have / 1_000_000,
                    of.div_ceil(1_000_000)
                );
                machine.fetches = Some(text.clone());
                if machine.record.state != NodeState::Suspect {
                    // Not written: it is another in a second.
                    self.change_state(now, mac, NodeState::Joining, text);
                }
            }
            RootReport::Checking { image, says } => {
                let (image, says) = (tame(image, 80), tame(says, 200));
                let text = match says.is_empty() {
                    true => format!("checks whether {image} works"),
                    false => format!("checks whether {image} works; {says}"),
                };
                machine.fetches = Some(text.clone());
                if machine.record.state != NodeState::Suspect {
                    self.change_state(now, mac, NodeState::Joining, text);
                }
            }
            RootReport::Mounted { image, sequence, .. } => {
                let runs = machine.record.image.as_ref() == Some(image);
                if !runs || *sequence < machine.promised {
                    let text = format!(
                        "runs {} with sequence {sequence}, which it was not promised",
                        tame(image, 80)
                    );
                    return self.root_refused(now, mac, "manifest-older", text);
                }
                machine.fetches = None;
                let text = format!("runs {image}");
                self.event(now, mac, "root-mounted", text.clone());
                self.come_up(now, mac, text);
                self.persist(mac);
            }
            RootReport::Refused {
                image,
                counter,
                reason,
            } => {
                let text = format!("refuses {}: {}", tame(image, 80), tame(reason, 200));
                self.root_refused(now, mac, counter, text);
            }
            RootReport::Wish(_) | RootReport::BadPeer { .. } | RootReport::WrongChunk { .. } => {}
        }
    }

    pub(super) fn root_refused(&mut self, now: Now, mac: Mac, counter: &str, text: String) {
        let word = REFUSALS.iter().find(|word| **word == counter).copied();
        *self.refusals.entry(word.unwrap_or("root-other")).or_default() += 1;
        self.change_state(now, mac, NodeState::Refused, text.clone());
        self.trace(now, Some(mac), What::Refused { reason: text });
        self.persist(mac);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Trace, mac};
    use super::*;
    use cid_protocol::node::ToNode;

    fn promise(sequence: u64) -> Promised {
        Promised {
            promise: RootPromise {
                image: "minimal".into(),
                sequence,
                manifest: "AAAA".into(),
                files: Vec::new(),
            },
            templates: Vec::new(),
            values: BTreeMap::new(),
        }
    }

    fn booted() -> Trace {
        booted_with(promise(7))
    }

    fn booted_with(promised: Promised) -> Trace {
        let mut trace = Trace::new();
        trace.registry.set_promises(vec![promised]);
        trace.session(1, 1);
        trace.adopt(1, "lab-a01");
        trace.session(5, 1);
        trace.script(6, 1);
        trace.hello(20, 1, 1, "boot-1");
        trace
    }

    fn say(trace: &mut Trace, second: u64, report: &RootReport) {
        trace
            .registry
            .handle_root_report(super::super::tests::at(second), ConnectionId(1), report);
        trace.drain();
    }

    fn mounted(sequence: u64) -> RootReport {
        RootReport::Mounted {
            image: "minimal".into(),
            sequence,
            tree: "ab".into(),
            peak_kib: 250_000,
        }
    }

    fn reason(trace: &Trace) -> String {
        trace.registry.record(mac(1)).unwrap().reason.clone()
    }

    #[test]
    fn a_node_joins_until_it_runs_what_it_was_promised() {
        let mut trace = booted();
        let promised = trace.sent.iter().any(|(_, message)| {
            matches!(message, ToNode::Welcome(welcome)
                if welcome.root.as_ref().is_some_and(|root| root.sequence == 7))
        });
        assert!(promised && trace.state(1) == NodeState::Joining);
        let fetching = RootReport::Fetching {
            image: "minimal".into(),
            have: 34_000_000,
            of: 200_000_000,
            waits: String::new(),
        };
        say(&mut trace, 25, &fetching);
        assert_eq!(reason(&trace), "fetches minimal: 34 of 200 MB");
        trace.pulse(30, 1);
        assert_eq!(trace.state(1), NodeState::Joining);
        assert!(!trace.registry.takes_work(mac(1)));
        say(&mut trace, 31, &mounted(6));
        assert_eq!(trace.state(1), NodeState::Refused, "older than promised");
        say(&mut trace, 32, &mounted(7));
        assert_eq!(
            (trace.state(1), reason(&trace)),
            (NodeState::Up, "runs minimal".to_owned())
        );
        let peak = |trace: &Trace| trace.registry.rows(&[mac(1)])[0].memory_peak_kib;
        assert_eq!(peak(&trace), Some(250_000));
        // A head that was restarted does not send a node that runs back to joining.
        trace.restart(40);
        trace.registry.set_promises(vec![promise(9)]);
        trace.hello(41, 1, 2, "boot-1");
        assert_eq!(trace.state(1), NodeState::Up);
        trace
            .registry
            .handle_root_report(super::super::tests::at(42), ConnectionId(2), &mounted(9));
        assert_eq!(peak(&trace), Some(250_000), "told anew");
    }

    #[test]
    fn a_node_is_promised_files_of_its_own_or_is_told_what_is_missing() {
        let with = |text: &str| {
            let mut promised = promise(7);
            promised.templates.push(cid_protocol::manifest::Template {
                path: "etc/own".into(),
                mode: 0o600,
                text: text.into(),
            });
            booted_with(promised)
        };
        let trace = with("{{ node }} in {{ group }}");
        let files = trace.sent.iter().find_map(|(_, message)| match message {
            ToNode::Welcome(welcome) => welcome.root.as_ref().map(|root| root.files.clone()),
            _ => None,
        });
        let wanted = cid_protocol::root::RootFile {
            path: "etc/own".into(),
            mode: 0o600,
            text: "lab-a01 in lab-a".into(),
        };
        assert_eq!(files, Some(vec![wanted]));
        let trace = with("{{ values.rack }}");
        assert_eq!(trace.state(1), NodeState::Refused);
        assert!(
            reason(&trace).contains("template etc/own.node.tera of minimal"),
            "{}",
            reason(&trace)
        );
        assert_eq!(trace.registry.refusals().collect::<Vec<_>>(), [("template", 1)]);
    }

    #[test]
    fn a_node_joins_until_its_image_works_there() {
        let mut trace = booted();
        let checking = RootReport::Checking {
            image: "minimal".into(),
            says: "/bin/healthy ended with exit status: 3".into(),
        };
        say(&mut trace, 25, &checking);
        assert_eq!(trace.state(1), NodeState::Joining);
        assert_eq!(
            reason(&trace),
            "checks whether minimal works; /bin/healthy ended with exit status: 3"
        );
        say(&mut trace, 26, &mounted(7));
        assert_eq!(trace.state(1), NodeState::Up);
    }

    #[test]
    fn a_refusal_is_seen_and_counted() {
        let mut trace = booted();
        let refused = RootReport::Refused {
            image: "minimal".into(),
            counter: "memory".into(),
            reason: "needs 400 MB, has 200".into(),
        };
        say(&mut trace, 25, &refused);
        assert_eq!(trace.state(1), NodeState::Refused);
        assert_eq!(reason(&trace), "refuses minimal: needs 400 MB, has 200");
        assert_eq!(trace.registry.refusals().collect::<Vec<_>>(), [("memory", 1)]);
    }
}
