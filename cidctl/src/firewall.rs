//! Would this machine's firewall drop what PCs send? Asked of `nft` and `iptables`, which answer root only. Must never
//! change a rule.

use std::process::Command;

use cid_protocol::doctor::Finding;

/// What PCs send to a head: name, protocol, port, and the name that `nft` may print for it.
const NEEDED: [(&str, &str, u16, &str); 5] = [
    ("DHCP", "udp", 67, "bootps"),
    ("TFTP", "udp", 69, "tftp"),
    ("HTTP", "tcp", 80, "http"),
    ("nodes", "tcp", cid_protocol::NODE_PORT, "-"),
    ("beacons", "udp", cid_protocol::NODE_PORT, "-"),
];

/// Looks at the rules of this machine.
pub(crate) fn examine() -> Finding {
    let nft = list("nft", &["list", "ruleset"]);
    let iptables = list("iptables", &["-S", "INPUT"]);
    match (nft, iptables) {
        (Listed::NotThere, Listed::NotThere) => Finding::ok(
            "firewall",
            "neither nft nor iptables is installed: no rules of this machine",
        ),
        (Listed::Refused(why), _) | (_, Listed::Refused(why)) => Finding::warn(
            "firewall",
            format!("the firewall's rules cannot be read: {why}"),
            "run `sudo cidctl doctor`; PCs need UDP 67, 69 and 3101 and TCP 80 and 3101 of this machine",
        ),
        (nft, iptables) => judge(nft.text(), iptables.text()),
    }
}

enum Listed {
    NotThere,
    Refused(String),
    Rules(String),
}

impl Listed {
    fn text(&self) -> &str {
        match self {
            Self::Rules(text) => text,
            Self::NotThere | Self::Refused(_) => "",
        }
    }
}

fn list(program: &str, arguments: &[&str]) -> Listed {
    // An administrator's PATH without the system folders is common.
    let path = std::env::var("PATH").unwrap_or_default();
    let run = Command::new(program)
        .args(arguments)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .output();
    match run {
        Err(_) => Listed::NotThere,
        Ok(output) if output.status.success() => {
            Listed::Rules(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let line = said
                .lines()
                .find(|line| !line.trim().is_empty())
                .unwrap_or("no reason");
            Listed::Refused(format!("{program}: {}", line.trim()))
        }
    }
}

fn judge(nft: &str, iptables: &str) -> Finding {
    let blocked: Vec<String> = NEEDED
        .iter()
        .filter(|need| nft_blocks(nft, need) || iptables_blocks(iptables, need))
        .map(|(what, protocol, port, _)| format!("{what} ({protocol} {port})"))
        .collect();
    if blocked.is_empty() {
        Finding::ok("firewall", "no rule of this machine drops what PCs send")
    } else {
        Finding::fail(
            "firewall",
            format!("the rules of this machine seem to drop {}", blocked.join(", ")),
            "allow them on the interface that faces the lab, e.g. `nft insert rule inet filter input iifname HEAD0 accept`",
        )
    }
}

type Need = (&'static str, &'static str, u16, &'static str);

/// Whether a chain that hooks into `input` ends in `drop` without a rule before that could let this in, or drops it
/// by name.
fn nft_blocks(ruleset: &str, need: &Need) -> bool {
    let mut input = false;
    let mut policy_drops = false;
    let mut accepted = false;
    for line in ruleset.lines().map(str::trim) {
        if line.starts_with("chain ") {
            (input, policy_drops, accepted) = (false, false, false);
        } else if line.contains("hook input") {
            input = true;
            policy_drops = line.contains("policy drop");
        } else if line == "}" {
            if input && policy_drops && !accepted {
                return true;
            }
            input = false;
        } else if input && !accepted {
            let names = names_port(line, need, "dport");
            if line.ends_with("accept") || line.contains(" accept ") {
                // A rule without a port lets whole interfaces or networks in: this cannot know which.
                accepted |= names || (!line.contains("dport") && !narrow(line));
            } else if nft_drops(line, names) {
                return true;
            } else if line.contains("jump ") || line.contains("goto ") {
                // Another chain decides; firewalld and ufw are made of those. Not followed: no false alarm.
                accepted = true;
            }
        }
    }
    false
}

/// Whether a rule drops what it is about, or everything that is left.
fn nft_drops(line: &str, names: bool) -> bool {
    let everything = !line.contains("dport") && !narrow(line);
    (names || everything) && (line.ends_with("drop") || line.contains(" drop ") || line.contains("reject"))
}

fn iptables_blocks(rules: &str, need: &Need) -> bool {
    let mut policy_drops = false;
    for line in rules.lines().map(str::trim) {
        if let Some(policy) = line.strip_prefix("-P INPUT ") {
            policy_drops = policy == "DROP" || policy == "REJECT";
            continue;
        }
        let names = names_port(line, need, "--dport");
        let general = !line.contains("--dport") && !narrow(line);
        if line.ends_with("-j ACCEPT") && (names || general) {
            return false;
        }
        if (names || general) && (line.contains("-j DROP") || line.contains("-j REJECT")) {
            return true;
        }
        if line.contains("-j ")
            && !["ACCEPT", "DROP", "REJECT", "LOG"]
                .iter()
                .any(|target| line.contains(target))
        {
            return false;
        }
    }
    policy_drops
}

/// Rules for the loopback, for connections that exist already, for ICMP: they decide nothing here.
fn narrow(line: &str) -> bool {
    let words = [
        "established",
        "ESTABLISHED",
        "icmp",
        "\"lo\"",
        "-i lo ",
        "ct state",
        "saddr",
        "-s ",
    ];
    words.iter().any(|word| line.contains(word))
}

/// Whether a rule names this protocol and port: alone, in a set, in a range, or by name.
fn names_port(line: &str, (_, protocol, port, service): &Need, keyword: &str) -> bool {
    let Some((before, after)) = line.split_once(keyword) else {
        return false;
    };
    let about = before.contains(protocol) || before.contains("th ") || before.contains("meta l4proto");
    let ports = after.trim_start_matches(['s', ' ', '=']);
    let ports = match ports.strip_prefix('{') {
        Some(set) => set.split('}').next().unwrap_or_default(),
        None => ports.split_whitespace().next().unwrap_or_default(),
    };
    let holds = |item: &str| {
        let item = item.trim();
        let range = item.split_once(['-', ':']).unwrap_or((item, item));
        let bounds = range.0.parse::<u16>().ok().zip(range.1.parse::<u16>().ok());
        item == *service || bounds.is_some_and(|(low, high)| (low..=high).contains(port))
    };
    about && ports.split(',').any(holds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cid_protocol::doctor::Level;

    /// As `nft list ruleset` prints it.
    fn chain(policy: &str, rules: &str) -> String {
        format!(
            "table inet filter {{\n\tchain input {{\n\t\ttype filter hook input priority filter; policy {policy};\n{rules}\n\t}}\n\
             \tchain forward {{\n\t\ttype filter hook forward priority filter; policy drop;\n\t}}\n}}\n"
        )
    }

    #[test]
    fn a_firewall_that_drops_a_needed_port_is_named() {
        let open = "udp dport { bootps, tftp, 3101 } accept\ntcp dport { 80, 3101 } accept";
        for (policy, rules, level) in [
            ("accept", "", Level::Ok),
            ("drop", "", Level::Fail),
            (
                "drop",
                "iifname \"lo\" accept\nct state established,related accept",
                Level::Fail,
            ),
            ("drop", open, Level::Ok),
            (
                "drop",
                "udp dport 60-70 accept\ntcp dport { 80, 3101 } accept",
                Level::Fail,
            ),
            ("drop", "iifname \"head0\" accept", Level::Ok),
            ("accept", "udp dport 69 drop", Level::Fail),
            (
                "accept",
                "tcp dport 22 accept\ncounter packets 0 bytes 0 drop",
                Level::Fail,
            ),
            ("drop", "jump ufw-before-input", Level::Ok),
        ] {
            let finding = judge(&chain(policy, rules), "");
            assert_eq!(finding.level, level, "{policy}: {rules}: {finding:?}");
        }
        let finding = judge(
            &chain("drop", "udp dport { 67, 69 } accept\ntcp dport 80 accept"),
            "",
        );
        assert_eq!(
            finding.text,
            "the rules of this machine seem to drop nodes (tcp 3101), beacons (udp 3101)"
        );
    }

    #[test]
    fn iptables_rules_are_read_in_their_order() {
        for (rules, level) in [
            ("-P INPUT ACCEPT\n", Level::Ok),
            ("-P INPUT DROP\n-A INPUT -i lo -j ACCEPT\n", Level::Fail),
            ("-P INPUT DROP\n-A INPUT -i head0 -j ACCEPT\n", Level::Ok),
            (
                "-P INPUT ACCEPT\n-A INPUT -p udp -m udp --dport 69 -j DROP\n",
                Level::Fail,
            ),
            ("-P INPUT DROP\n-A INPUT -j ufw-before-input\n", Level::Ok),
        ] {
            assert_eq!(judge("", rules).level, level, "{rules}");
        }
    }
}
