//! What the last boot of a machine came to: a pure function over its timeline and what is known of the machine.
//! Each usual failure has its own verdict, a line in plain words and a remedy. Must not guess where it cannot know.

use std::time::Duration;

use cid_protocol::api::NodeState;
use cid_protocol::trace::{Card, Diagnosis, Step, What};

/// Silence after which a boot that is under way is taken for stuck. Slow firmware needs a minute between two steps.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same once the kernel was fetched: unpacking, drivers, links that negotiate.
const KERNEL_PATIENCE: Duration = Duration::from_secs(120);

/// What is known besides the timeline.
#[derive(Debug, Clone, Default)]
pub struct Facts<'a> {
    /// The head's clock.
    pub now_unix_ms: u64,
    /// Its network cards.
    pub cards: &'a [Card],
    /// The image of its group.
    pub image: &'a str,
    /// Drivers of network cards in that image; `None` when no such image is loaded.
    pub drivers: Option<&'a [String]>,
    /// PCI vendors and devices that those drivers serve, as `8086:15f3`; empty when the image does not say.
    pub ids: &'a [String],
}

/// Where the last boot begins in `steps`: at the firmware's first question.
pub fn last_boot(steps: &[Step]) -> usize {
    (0..steps.len()).rev().find(|at| begins(steps, *at)).unwrap_or(0)
}

/// Whether a boot begins here. A loader that asks again (iPXE after `undionly.kpxe`) continues the boot it is in.
pub fn begins(steps: &[Step], at: usize) -> bool {
    let Some(What::Discover { client, .. }) = steps.get(at).map(|step| &step.what) else {
        return false;
    };
    let before = steps.get(..at).unwrap_or_default().iter().rev();
    let before = before
        .map(|step| &step.what)
        .find(|what| !matches!(what, What::State { .. } | What::Rival { .. } | What::Head { .. }));
    match before {
        Some(What::Discover { .. } | What::Offer { .. }) => false,
        Some(What::File { name }) if client == "ipxe" => !is_ipxe(name),
        _ => true,
    }
}

/// Says what the last boot came to.
pub fn diagnose(steps: &[Step], facts: &Facts<'_>) -> Diagnosis {
    let boot = Boot::new(steps, facts);
    boot.never_asked()
        .or_else(|| boot.ended())
        .or_else(|| boot.offer_not_taken())
        .or_else(|| boot.sent_home())
        .or_else(|| boot.loader_refused())
        .or_else(|| boot.nothing_fetched())
        .or_else(|| boot.grub_went_silent())
        .or_else(|| boot.init_never_spoke())
        .unwrap_or_else(|| boot.under_way())
}

struct Boot<'a> {
    all: &'a [Step],
    steps: &'a [Step],
    facts: &'a Facts<'a>,
    /// Since the last step of the machine itself.
    quiet: Duration,
}

fn fine(verdict: &str, text: String) -> Diagnosis {
    Diagnosis {
        verdict: verdict.to_owned(),
        fault: false,
        text,
        remedy: String::new(),
    }
}

fn fault(verdict: &str, text: String, remedy: &str) -> Diagnosis {
    Diagnosis {
        verdict: verdict.to_owned(),
        fault: true,
        text,
        remedy: remedy.to_owned(),
    }
}

fn is_ipxe(name: &str) -> bool {
    matches!(name, "undionly.kpxe" | "ipxe.lkrn" | "snponly.efi" | "ipxe.efi")
}

fn is_first_loader(name: &str) -> bool {
    name.to_ascii_lowercase().starts_with("shim") || is_ipxe(name)
}

/// What the machine itself did or said.
fn is_sign_of_life(what: &What) -> bool {
    !matches!(
        what,
        What::State { .. } | What::Rival { .. } | What::Head { .. } | What::Command { .. }
    )
}

/// `90 s`, `4 min`, `3 h`.
pub(crate) fn in_words(time: Duration) -> String {
    match time.as_secs() {
        secs @ 0..=119 => format!("{secs} s"),
        secs @ 120..=7_199 => format!("{} min", secs / 60),
        secs @ 7_200..=172_799 => format!("{} h", secs / 3_600),
        secs => format!("{} days", secs / 86_400),
    }
}

impl<'a> Boot<'a> {
    fn new(all: &'a [Step], facts: &'a Facts<'a>) -> Self {
        let steps = all.get(last_boot(all)..).unwrap_or_default();
        let heard = steps.iter().filter(|step| is_sign_of_life(&step.what));
        let heard = heard.map(|step| step.last_unix_ms).max().unwrap_or(0);
        Self {
            all,
            steps,
            facts,
            quiet: Duration::from_millis(facts.now_unix_ms.saturating_sub(heard)),
        }
    }

    fn has(&self, wanted: impl Fn(&What) -> bool) -> bool {
        self.steps.iter().any(|step| wanted(&step.what))
    }

    fn fetched(&self, wanted: impl Fn(&str) -> bool) -> bool {
        self.has(|what| matches!(what, What::File { name } if wanted(name)))
    }

    /// Loaders fetch the kernel first: one that asked for the initrd has it.
    fn kernel_fetched(&self) -> bool {
        self.fetched(|name| name == "initrd.img")
    }

    fn went_on(&self) -> bool {
        self.has(|what| matches!(what, What::Script { .. } | What::Joined { .. }))
            || self.fetched(|name| !is_first_loader(name))
    }

    fn never_asked(&self) -> Option<Diagnosis> {
        let asked = self.all.iter().any(|step| is_sign_of_life(&step.what));
        (!asked).then(|| {
            fault(
                "never-asked",
                "its firmware has not asked this head for anything since the head began to take notes".to_owned(),
                "switch it on with the network first in its boot order; check the cable, and that this head's interface \
                 is in the same network or a relay forwards DHCP to it",
            )
        })
    }

    /// It joined; what became of it then.
    fn ended(&self) -> Option<Diagnosis> {
        for step in self.steps.iter().rev() {
            let ago = || {
                in_words(Duration::from_millis(
                    self.facts.now_unix_ms.saturating_sub(step.last_unix_ms),
                ))
            };
            match &step.what {
                What::Joined { name, .. } => {
                    return Some(fine(
                        "up",
                        format!("it joined as {name} {} ago and is in the cluster", ago()),
                    ));
                }
                What::Refused { reason } => {
                    return Some(fault(
                        "refused",
                        format!("it booted and asked to join, and was refused: {reason}"),
                        "do what the reason says; the PC goes home by itself within a minute",
                    ));
                }
                What::Left { reason } => {
                    return Some(fine(
                        "went-home",
                        format!(
                            "it left {} ago ({reason}) and its firmware has not asked since",
                            ago()
                        ),
                    ));
                }
                What::State {
                    state: NodeState::Lost,
                    reason,
                } if self.has(|what| matches!(what, What::Joined { .. })) => {
                    return Some(fault(
                        "lost",
                        format!(
                            "it had joined and vanished {} ago ({reason}); its firmware has not asked since",
                            ago()
                        ),
                        "look at the PC: power, cable, screen; a node without its head goes home after `bail_out`",
                    ));
                }
                _ => {}
            }
        }
        None
    }

    fn offer_not_taken(&self) -> Option<Diagnosis> {
        let offers: u32 = self
            .steps
            .iter()
            .filter(|step| matches!(step.what, What::Offer { .. }))
            .map(|step| step.times)
            .sum();
        let asked = self.has(|what| matches!(what, What::Discover { .. }));
        let taken =
            self.has(|what| matches!(what, What::Ack { .. } | What::File { .. } | What::Script { .. }));
        if !asked || taken || (offers < 2 && self.quiet < PATIENCE) {
            return None;
        }
        let rival = self.all.iter().rev().find_map(|step| match &step.what {
            What::Rival { server, .. } => Some(server),
            _ => None,
        });
        if offers == 0 {
            let why = rival.map_or_else(String::new, |server| {
                format!(": another DHCP server answers at {server}, and this head keeps silent beside it")
            });
            return Some(fault(
                "no-offer",
                format!("it asked and this head did not answer{why}"),
                "`cidctl status` counts what was dropped and why; switch the other DHCP server off, or set `mode = \"proxy\"` in [dhcp]",
            ));
        }
        Some(match rival {
            Some(server) => fault(
                "offer-not-taken",
                format!(
                    "it was offered a boot {offers} times and took none: another server, {server}, answers on this network"
                ),
                "switch that server off on this network, or set `mode = \"proxy\"` in [dhcp] so that both can live together; \
                 where it is a proxy already, the switch drops its offers (DHCP snooping): have the head's port trusted",
            ),
            None => fault(
                "offer-not-taken",
                format!(
                    "it was offered a boot {offers} times and took none: the offers do not reach it, or it takes somebody else's"
                ),
                "a switch with DHCP snooping drops answers from untrusted ports: have the head's port marked trusted; or \
                 look for another PXE server (`cidctl doctor` lists those it heard)",
            ),
        })
    }

    /// Told to start its own system: no failure.
    fn sent_home(&self) -> Option<Diagnosis> {
        let answer = self.steps.iter().rev().find_map(|step| match &step.what {
            What::Offer { answer, boot, .. } => Some((answer, *boot)),
            _ => None,
        });
        match answer {
            Some((answer, false)) if !self.has(|what| matches!(what, What::Script { .. })) => Some(fine(
                "sent-home",
                format!(
                    "it was sent to its own system: {}",
                    answer.trim_start_matches("local-disk: ")
                ),
            )),
            _ => None,
        }
    }

    fn loader_refused(&self) -> Option<Diagnosis> {
        if !self.fetched(is_first_loader) || self.went_on() {
            return None;
        }
        let rounds = self.rounds_with_loader_only();
        if rounds < 2 && self.quiet < PATIENCE {
            return None;
        }
        let uefi =
            self.has(|what| matches!(what, What::Discover { firmware, .. } if firmware.starts_with("uefi")));
        let again = if rounds > 1 {
            format!("{rounds} times in a row")
        } else {
            "once".to_owned()
        };
        Some(if uefi {
            fault(
                "loader-refused",
                format!(
                    "it fetched the loader {again} and never started it: Secure Boot in its firmware refused it"
                ),
                "allow the \"Microsoft 3rd-party UEFI CA\" in its firmware setup (many PCs ship with it off); do not replace the shim of the image",
            )
        } else {
            fault(
                "loader-refused",
                format!(
                    "it fetched the loader {again} and nothing after it: the loader does not run on this PC"
                ),
                "look at its screen; its firmware may need an update, or another door (`docs/doors.md`)",
            )
        })
    }

    /// Boots at the end of the timeline that fetched a first loader and nothing else, this one included.
    fn rounds_with_loader_only(&self) -> u32 {
        let mut rounds = 0;
        let mut end = self.all.len();
        for at in (0..self.all.len()).rev().filter(|at| begins(self.all, *at)) {
            let facts = Facts::default();
            let boot = Boot {
                all: self.all,
                steps: self.all.get(at..end).unwrap_or_default(),
                facts: &facts,
                quiet: Duration::ZERO,
            };
            if !boot.fetched(is_first_loader) || boot.went_on() {
                break;
            }
            rounds += 1;
            end = at;
        }
        rounds
    }

    fn nothing_fetched(&self) -> Option<Diagnosis> {
        let taken = self.has(|what| matches!(what, What::Ack { .. }));
        let fetched = self.has(|what| matches!(what, What::File { .. } | What::Script { .. }));
        (taken && !fetched && self.quiet >= PATIENCE).then(|| {
            fault(
                "nothing-fetched",
                "it took the offer and fetched nothing".to_owned(),
                "something between it and this head drops TFTP (UDP port 69) or HTTP (TCP port 80): a firewall here \
                 (`cidctl doctor` looks) or on the way",
            )
        })
    }

    fn grub_went_silent(&self) -> Option<Diagnosis> {
        let started = self.went_on();
        if !started || self.kernel_fetched() || self.quiet < PATIENCE {
            return None;
        }
        let last = self.steps.iter().rev().find_map(|step| match &step.what {
            What::File { name } => Some(name.as_str()),
            What::Script { .. } => Some("its script"),
            _ => None,
        });
        let last = last.unwrap_or("its loader");
        let ipxe = self.has(|what| matches!(what, What::Discover { client, .. } if client == "ipxe"))
            && !self.fetched(|name| name.starts_with("grub"));
        let loader = if ipxe { "iPXE" } else { "GRUB" };
        Some(fault(
            "loader-went-silent",
            format!("{loader} asked for {last} and went silent; kernel and initrd did not both arrive"),
            "look at its screen: a loader that loses the network reboots by itself after a while; try another network \
             port or a newer firmware, and see that nothing limits TFTP and HTTP to this head",
        ))
    }

    fn init_never_spoke(&self) -> Option<Diagnosis> {
        if !self.kernel_fetched() || self.quiet < KERNEL_PATIENCE {
            return None;
        }
        let image = self.facts.image;
        let head = "it fetched kernel and initrd, and the node never spoke";
        Some(match self.card_without_driver() {
            Some(card) => fault(
                "no-driver",
                format!("{head}: no driver for its NIC {card} in image {image}"),
                "add the driver to the recipe and build the image again with `cidbuild image`",
            ),
            None => fault(
                "node-never-spoke",
                format!(
                    "{head}: the kernel stopped, the cable's switch port came up too late, or image {image} has no driver for its NIC"
                ),
                "its screen says which: it names each network card without a driver by vendor and device; \
                 `cidbuild ls` lists the drivers of the image",
            ),
        })
    }

    /// The first card that the image cannot drive, as far as that is known.
    fn card_without_driver(&self) -> Option<String> {
        let drivers = self.facts.drivers?;
        self.facts.cards.iter().find_map(|card| {
            let name = |card: &Card| match (card.id.as_str(), card.driver.as_str()) {
                (id, "") => id.to_owned(),
                ("", driver) => format!("(driver {driver})"),
                (id, driver) => format!("{id} (driver {driver})"),
            };
            let missing = if card.driver.is_empty() {
                !self.facts.ids.is_empty() && !card.id.is_empty() && !self.facts.ids.contains(&card.id)
            } else {
                !drivers.contains(&card.driver)
            };
            missing.then(|| name(card))
        })
    }

    fn under_way(&self) -> Diagnosis {
        let quiet = in_words(self.quiet);
        let text = if self.kernel_fetched() {
            format!("it is booting: the kernel was fetched, last sign {quiet} ago")
        } else if self.quiet < PATIENCE {
            format!("it is booting: last sign {quiet} ago")
        } else {
            format!("it asked last {quiet} ago, and never since")
        };
        fine("under-way", text)
    }
}

#[cfg(test)]
mod tests;
