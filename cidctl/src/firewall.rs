//! Would this machine's firewall drop what PCs send? Asked of `nft` and `iptables`, which answer root only. Must never
//! change a rule.

use std::collections::BTreeMap;
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

/// Whether some chain that hooks into `input` drops it.
fn nft_blocks(ruleset: &str, need: &Need) -> bool {
    let chains = chains(ruleset);
    let bases = chains.iter().filter_map(|((table, name), rules)| {
        let hook = rules.iter().find(|rule| rule.contains("hook input"))?;
        Some((*table, *name, hook.contains("policy drop")))
    });
    bases.into_iter().any(
        |(table, name, policy_drops)| match fate(&chains, (table, name), need, MAX_JUMPS) {
            Fate::Accepted => false,
            Fate::Dropped => true,
            Fate::Undecided => policy_drops,
        },
    )
}

/// Chains by table and name, in the order of their rules.
type Chains<'a> = BTreeMap<(&'a str, &'a str), Vec<&'a str>>;

/// Reads what `nft list ruleset` printed.
fn chains(ruleset: &str) -> Chains<'_> {
    let mut chains = Chains::new();
    let (mut table, mut chain) = ("", None);
    for line in ruleset.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("table ") {
            table = name.trim_end_matches(" {");
        } else if let Some(name) = line.strip_prefix("chain ") {
            chain = Some(name.trim_end_matches(" {"));
            chains.entry((table, name.trim_end_matches(" {"))).or_default();
        } else if line == "}" {
            chain = None;
        } else if let Some(name) = chain {
            chains.entry((table, name)).or_default().push(line);
        }
    }
    chains
}

/// What a chain does with what we ask about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Accepted,
    Dropped,
    Undecided,
}

/// Whether a rule is about it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bearing {
    Surely,
    /// It names interfaces, addresses or else what this cannot know.
    Perhaps,
    Not,
}

/// Goes through a chain and those it jumps to. What this cannot know lets it in: no false alarm.
fn fate(chains: &Chains<'_>, at: (&str, &str), need: &Need, jumps: usize) -> Fate {
    let Some(rules) = chains.get(&at) else {
        return Fate::Undecided;
    };
    // Perhaps it has left this chain already.
    let mut perhaps_left = false;
    for rule in rules {
        let (condition, verdict, target) = split(rule);
        let bearing = match verdict {
            "vmap" if !narrow(condition) => Bearing::Perhaps,
            _ => bearing(condition, need),
        };
        let inner = match verdict {
            _ if bearing == Bearing::Not => continue,
            "accept" => Fate::Accepted,
            "drop" | "reject" => Fate::Dropped,
            "return" if bearing == Bearing::Surely => return Fate::Undecided,
            "return" => {
                perhaps_left = true;
                continue;
            }
            // The kernel allows no more either.
            "jump" | "goto" if jumps == 0 => Fate::Accepted,
            "jump" | "goto" => fate(chains, (at.0, target), need, jumps - 1),
            // A map of verdicts is not looked into.
            "vmap" => Fate::Accepted,
            _ => continue,
        };
        match inner {
            Fate::Accepted => return Fate::Accepted,
            Fate::Dropped if perhaps_left => return Fate::Undecided,
            // A chain for some interfaces may drop on these; the plain rule of one line is taken at its word.
            Fate::Dropped if bearing == Bearing::Perhaps && !target.is_empty() => {}
            Fate::Dropped => return Fate::Dropped,
            Fate::Undecided if verdict == "goto" && bearing == Bearing::Surely => return Fate::Undecided,
            Fate::Undecided => {}
        }
    }
    Fate::Undecided
}

/// A rule's condition, verdict, and the chain it leads to.
fn split(rule: &str) -> (&str, &str, &str) {
    let mut from = 0;
    for word in rule.split(' ') {
        if ["accept", "drop", "reject", "return", "jump", "goto", "vmap"].contains(&word) {
            let target = match word {
                "jump" | "goto" => rule[from + word.len()..]
                    .split_whitespace()
                    .next()
                    .unwrap_or_default(),
                _ => "",
            };
            return (&rule[..from], word, target);
        }
        from += word.len() + 1;
    }
    (rule, "", "")
}

fn bearing(condition: &str, need: &Need) -> Bearing {
    let words: Vec<&str> = condition.split_whitespace().collect();
    // Counters and log lines are no conditions.
    let counted =
        |words: &[&str]| words.first() == Some(&"counter") && (words.len() == 1 || words.len() == 5);
    if words.is_empty() || counted(&words) {
        Bearing::Surely
    } else if condition.contains("dport") {
        if names_port(condition, need, "dport") {
            Bearing::Surely
        } else {
            Bearing::Not
        }
    } else if narrow(condition) {
        Bearing::Not
    } else {
        Bearing::Perhaps
    }
}

/// Jumps within jumps, as the kernel bounds them (NFT_JUMP_STACK_SIZE).
const MAX_JUMPS: usize = 16;

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
            ("drop", "jump nowhere", Level::Fail),
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

    /// What nft itself prints of these rules, in a network namespace of the test's own.
    fn printed(rules: &str) -> String {
        use std::io::Write;
        let mut nft = Command::new("unshare")
            .args(["--user", "--map-root-user", "--net", "sh", "-c"])
            .arg("PATH=$PATH:/usr/sbin:/sbin; nft -f - && nft list ruleset")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        nft.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
        let output = nft.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "nft (ci/prepare installs nftables): {rules}"
        );
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn jumps_are_followed_through_what_nft_prints() {
        let open = "udp dport { 67, 69, 3101 } accept\ntcp dport { 80, 3101 } accept";
        for (policy, input, lab, level) in [
            ("drop", "jump lab", open, Level::Ok),
            ("drop", "jump lab", "udp dport 67 accept", Level::Fail),
            ("drop", "jump lab", "return\naccept", Level::Fail),
            (
                "drop",
                "counter jump lab",
                "iifname \"eth0\" jump open",
                Level::Ok,
            ),
            ("accept", "jump lab", "udp dport 69 drop", Level::Fail),
            ("accept", "goto lab\ndrop", "", Level::Ok),
            ("accept", "jump lab\ndrop", "", Level::Fail),
            ("accept", "iifname \"eth1\" jump lab", "drop", Level::Ok),
            ("accept", "udp dport 69 jump lab", "drop", Level::Fail),
            ("accept", "udp dport 53 jump lab", "drop", Level::Ok),
            ("drop", "ct state established jump lab", "accept", Level::Fail),
            (
                "drop",
                "ct state vmap { established : accept, invalid : drop }\njump lab",
                "",
                Level::Fail,
            ),
            // As ufw does with broadcasts.
            (
                "accept",
                "jump lab",
                "fib daddr type local return\ndrop",
                Level::Ok,
            ),
            ("drop", "udp dport vmap { 67 : jump lab }", "accept", Level::Ok),
        ] {
            let rules = format!(
                "table inet filter {{\nchain open {{\n{open}\n}}\nchain lab {{\n{lab}\n}}\nchain input {{\ntype filter hook input priority 0; policy {policy};\n{input}\n}}\n}}\n"
            );
            let finding = judge(&printed(&rules), "");
            assert_eq!(finding.level, level, "{policy}: {input}: {lab}: {finding:?}");
        }
    }

    #[test]
    fn a_row_of_jumps_longer_than_the_kernel_allows_ends() {
        let rules = "table ip filter {\nchain a {\njump a\n}\nchain input {\ntype filter hook input priority filter; policy drop;\njump a\n}\n}\n";
        assert_eq!(judge(rules, "").level, Level::Ok);
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
