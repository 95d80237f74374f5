//! What PID 1 and the agent say to each other: one line per message over a `SOCK_STREAM` socket pair whose
//! agent end is inherited as file descriptor [`AGENT_FD`].
//!
//! Unknown lines are ignored by both sides, so that either may be newer. Lines are at most
//! [`MAX_LINE`] bytes; a longer one is dropped whole.

/// The agent's end of the socket pair, by number (as with systemd's socket passing, after stdio).
pub const AGENT_FD: i32 = 3;

/// Longest line either side accepts, in bytes, newline included.
pub const MAX_LINE: usize = 512;

/// The agent sends at least one [`FromAgent`] line in every such interval, in seconds.
pub const HEARTBEAT_SECS: u64 = 2;

/// PID 1 takes an agent that said nothing for this long as stuck, in seconds.
pub const SILENCE_SECS: u64 = 20;

/// From `cid-agent` to `cid-init`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromAgent {
    /// `alive`: the heartbeat.
    Alive,
    /// `status TEXT`: one line for the screen, in plain words.
    Status(String),
    /// `up NAME`: the node has joined under this name.
    Up(String),
    /// `fact KEY TEXT`: something for the person at the PC; `site`, `group` and `until` (local time at which the PC goes
    /// home) are shown, other keys are passed over.
    Fact {
        /// One word.
        key: String,
        /// Plain words; empty takes it back.
        text: String,
    },
    /// `home REASON`: reboot into the PC's own system now; draining is finished.
    Home(String),
    /// `off REASON`: the same, but switch the PC off. A person who wants the PC gets a reboot all the same.
    Off(String),
}

/// From `cid-init` to `cid-agent`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromInit {
    /// `drain SECONDS REASON`: stop taking work, tell the head, answer `home` within the time.
    /// PID 1 reboots at the end of it whether or not the agent answered.
    Drain {
        /// Time allowed, in seconds.
        secs: u64,
        /// Why, in plain words ("key pressed").
        reason: String,
    },
    /// `phase MILLISECONDS NAME`: a phase of the boot was done so long after the kernel's start; for the report to the head.
    Phase {
        /// Milliseconds from the kernel's start.
        done_ms: u64,
        /// Its name.
        name: String,
    },
}

impl FromAgent {
    /// The line without its newline. Control characters in texts become spaces, so a text cannot forge a line.
    pub fn to_line(&self) -> String {
        match self {
            Self::Alive => "alive".to_owned(),
            Self::Status(text) => format!("status {}", one_line(text)),
            Self::Up(name) => format!("up {}", one_line(name)),
            Self::Fact { key, text } => format!("fact {} {}", key.replace(' ', "-"), one_line(text)),
            Self::Home(reason) => format!("home {}", one_line(reason)),
            Self::Off(reason) => format!("off {}", one_line(reason)),
        }
    }

    /// Reads a line without its newline; `None` for a line this version does not know.
    pub fn parse(line: &str) -> Option<Self> {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        match verb {
            "alive" => Some(Self::Alive),
            "status" => Some(Self::Status(rest.to_owned())),
            "up" => Some(Self::Up(rest.to_owned())),
            "home" => Some(Self::Home(rest.to_owned())),
            "off" => Some(Self::Off(rest.to_owned())),
            "fact" => {
                let (key, text) = rest.split_once(' ').unwrap_or((rest, ""));
                Some(Self::Fact {
                    key: key.to_owned(),
                    text: text.to_owned(),
                })
            }
            _ => None,
        }
    }
}

impl FromInit {
    /// The line without its newline.
    pub fn to_line(&self) -> String {
        match self {
            Self::Drain { secs, reason } => format!("drain {secs} {}", one_line(reason)),
            Self::Phase { done_ms, name } => format!("phase {done_ms} {}", one_line(name)),
        }
    }

    /// Reads a line without its newline; `None` for a line this version does not know.
    pub fn parse(line: &str) -> Option<Self> {
        let (verb, rest) = line.split_once(' ')?;
        let (number, text) = rest.split_once(' ').unwrap_or((rest, ""));
        let (number, text) = (number.parse().ok()?, text.to_owned());
        match verb {
            "drain" => Some(Self::Drain {
                secs: number,
                reason: text,
            }),
            "phase" => Some(Self::Phase {
                done_ms: number,
                name: text,
            }),
            _ => None,
        }
    }
}

/// Replaces control characters and bounds the length in bytes, leaving room for verb and newline.
fn one_line(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if out.len() + c.len_utf8() > MAX_LINE - 32 {
            break;
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_round_trip() {
        for message in [
            FromAgent::Alive,
            FromAgent::Status("asking for an address".into()),
            FromAgent::Up("lab-a01".into()),
            FromAgent::Home("released".into()),
            FromAgent::Off("released".into()),
            FromAgent::Fact {
                key: "site".into(),
                text: "Computing centre, room 101".into(),
            },
        ] {
            assert_eq!(FromAgent::parse(&message.to_line()), Some(message));
        }
        let drain = FromInit::Drain {
            secs: 10,
            reason: "key pressed".into(),
        };
        let phase = FromInit::Phase {
            done_ms: 1900,
            name: "is the image whole".into(),
        };
        for message in [drain, phase] {
            assert_eq!(FromInit::parse(&message.to_line()), Some(message));
        }
    }

    #[test]
    fn a_text_cannot_forge_a_line_or_exceed_the_limit() {
        let line = FromAgent::Status(format!("x\nhome now{}", "é".repeat(400))).to_line();
        assert!(!line.contains('\n'));
        assert!(line.len() < MAX_LINE);
    }

    #[test]
    fn unknown_and_broken_lines_are_none() {
        for line in ["", "aliv", "drain", "drain x y", "reboot"] {
            assert_eq!(FromAgent::parse(line), None);
            assert_eq!(FromInit::parse(line), None);
        }
    }
}
