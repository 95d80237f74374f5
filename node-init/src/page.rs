//! What the person at the PC reads, as text for a terminal of the kernel. Pure: words in, one string out.

use crate::supervise::Ending;

/// What there is to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Page {
    /// The PC is in the cluster, or on its way in.
    Working {
        /// What it is doing, in plain words.
        doing: String,
        /// For whom, as far as the head said.
        facts: Facts,
        /// What is wrong with this PC, if anything.
        trouble: String,
    },
    /// The PC goes back to its own system.
    GoingHome {
        /// Why, in plain words.
        reason: String,
        /// The steps, which of them is under way, and how many seconds are left for all of them.
        step: usize,
        /// Seconds until the restart, at the most.
        secs: u64,
        /// Restart, or off.
        ending: Ending,
    },
}

/// What the head said about this PC.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Who runs the cluster.
    pub(crate) site: String,
    /// Group of the PC.
    pub(crate) group: String,
    /// Name of the PC.
    pub(crate) name: String,
    /// Local time at which it goes home.
    pub(crate) until: String,
}

/// Steps of the way home, as the person reads them.
const STEPS: [&str; 3] = ["jobs are let go", "programs are ended", "the PC restarts"];
/// The last of them, when the PC is switched off.
const OFF: &str = "the PC is switched off";

fn step_name(step: usize, ending: Ending) -> &'static str {
    match (STEPS.get(step), ending) {
        (Some(name), _) if step + 1 < STEPS.len() => name,
        (_, Ending::PowerOff) => OFF,
        (last, Ending::Reboot) => last.unwrap_or(&"restarting"),
    }
}

/// Widest text, so that lines stay short enough to be read from some steps away.
const MAX_WIDTH: usize = 58;

impl Page {
    fn title(&self) -> &'static str {
        match self {
            Self::Working { .. } => "PRESS ANY KEY FOR WINDOWS",
            Self::GoingHome {
                ending: Ending::Reboot,
                ..
            } => "WINDOWS IS COMING BACK",
            Self::GoingHome { .. } => "THIS PC IS GOING OFF",
        }
    }

    /// The lines under the title; an empty one is a gap.
    fn body(&self) -> Vec<String> {
        match self {
            Self::Working {
                doing,
                facts,
                trouble,
            } => {
                let owner = if facts.site.is_empty() {
                    "a cluster".to_owned()
                } else {
                    facts.site.clone()
                };
                let mut lines = vec![format!("This PC computes for {owner}."), String::new()];
                lines.push(format!("Now: {doing}"));
                if !facts.name.is_empty() {
                    lines.push(format!("Name: {}, group {}", facts.name, facts.group));
                }
                if !facts.until.is_empty() {
                    lines.push(format!("Until: {}", facts.until));
                }
                if !trouble.is_empty() {
                    lines.push(trouble.clone());
                }
                lines.push(String::new());
                lines.push("Its disk is not touched.".to_owned());
                lines
            }
            Self::GoingHome {
                reason,
                step,
                secs,
                ending,
            } => {
                let mut lines = vec![format!("Why: {reason}"), String::new()];
                for number in 0..STEPS.len() {
                    let name = step_name(number, *ending);
                    let mark = match number.cmp(step) {
                        std::cmp::Ordering::Less => "done",
                        std::cmp::Ordering::Equal => "now",
                        std::cmp::Ordering::Greater => "then",
                    };
                    lines.push(format!("{mark}: {name}"));
                }
                lines.push(String::new());
                let what = match ending {
                    Ending::Reboot => "Restart",
                    Ending::PowerOff => "Off",
                };
                lines.push(format!("{what} within {secs} s."));
                lines
            }
        }
    }

    /// One line for logs and serial consoles.
    pub(crate) fn line(&self) -> String {
        match self {
            Self::Working {
                doing,
                facts,
                trouble,
            } => {
                let mut line = doing.clone();
                if !facts.name.is_empty() {
                    line.push_str(&format!("; this PC is {} of group {}", facts.name, facts.group));
                }
                if !facts.site.is_empty() {
                    line.push_str(&format!("; it computes for {}", facts.site));
                }
                if !facts.until.is_empty() {
                    line.push_str(&format!(" until {}", facts.until));
                }
                if !trouble.is_empty() {
                    line.push_str(&format!("; {trouble}"));
                }
                line.push_str("; press any key for Windows");
                line
            }
            Self::GoingHome {
                reason,
                step,
                secs,
                ending,
            } => {
                let step = step_name(*step, *ending);
                let what = match ending {
                    Ending::Reboot => "restart",
                    Ending::PowerOff => "off",
                };
                format!("going home: {reason}; {step}; {what} within {secs} s")
            }
        }
    }

    /// The whole screen for a terminal of so many columns and rows: an inverse title over a box, in the middle.
    pub(crate) fn render(&self, columns: usize, rows: usize) -> String {
        let width = columns.saturating_sub(6).clamp(20, MAX_WIDTH);
        let lines: Vec<String> = self.body().iter().flat_map(|line| fold(line, width)).collect();
        let left = " ".repeat(columns.saturating_sub(width + 4) / 2);
        // Title, box, air.
        let height = lines.len() + 7;
        let top = rows.saturating_sub(height) / 2;
        // Clear, home, no cursor, no scrolling surprises: autowrap off.
        let mut out = String::from("\x1b[2J\x1b[H\x1b[?25l\x1b[?7l");
        out.push_str(&"\r\n".repeat(top));
        let bar = " ".repeat(width + 4);
        let title = centred(self.title(), width + 4);
        // A low screen does without the air.
        let tight = height > rows;
        let head: &[&String] = if tight { &[&title] } else { &[&bar, &title, &bar] };
        for text in head {
            out.push_str(&format!("{left}\x1b[0;30;47m{text}\x1b[0;1m\r\n"));
        }
        let edge = "─".repeat(width + 2);
        out.push_str(&format!("{left}┌{edge}┐\r\n"));
        let air = String::new();
        let air = if tight { None } else { Some(&air) };
        for line in air.into_iter().chain(&lines).chain(air) {
            let pad = " ".repeat(width.saturating_sub(line.chars().count()));
            out.push_str(&format!("{left}│ {line}{pad} │\r\n"));
        }
        out.push_str(&format!("{left}└{edge}┘"));
        out
    }
}

fn centred(text: &str, width: usize) -> String {
    let free = width.saturating_sub(text.chars().count());
    let left = " ".repeat(free / 2);
    let right = " ".repeat(free - free / 2);
    format!("{left}{text}{right}")
}

/// Cuts a text into lines at blanks; a word that is too long is cut hard. Only what every font of the kernel has.
fn fold(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let mut word: String = word
            .chars()
            .map(|c| if c.is_control() { '?' } else { c })
            .collect();
        loop {
            let length = lines.last().map_or(0, |line| line.chars().count());
            let gap = usize::from(length > 0);
            let count = word.chars().count();
            if length + gap + count <= width {
                if let Some(line) = lines.last_mut() {
                    line.push_str(if gap == 1 { " " } else { "" });
                    line.push_str(&word);
                }
                break;
            }
            if length > 0 {
                lines.push(String::new());
                continue;
            }
            let rest: String = word.chars().skip(width).collect();
            if let Some(line) = lines.last_mut() {
                line.extend(word.chars().take(width));
            }
            lines.push(String::new());
            word = rest;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn working() -> Page {
        Page::Working {
            doing: "ready for jobs".into(),
            facts: Facts {
                site: "Computing centre, room 101".into(),
                group: "lab-a".into(),
                name: "lab-a07".into(),
                until: "06:30".into(),
            },
            trouble: String::new(),
        }
    }

    /// The text without escape sequences and frame.
    fn plain(page: &str) -> Vec<String> {
        let mut text = String::new();
        let mut chars = page.chars();
        while let Some(c) = chars.next() {
            match c {
                '\x1b' => drop(chars.by_ref().find(char::is_ascii_alphabetic)),
                '\r' => {}
                c => text.push(c),
            }
        }
        let frame = |c: char| c.is_whitespace() || "│┌┐└┘─".contains(c);
        let lines = text.lines().map(|line| line.trim_matches(frame).to_owned());
        lines.filter(|line| !line.is_empty()).collect()
    }

    #[test]
    fn the_page_says_what_for_whom_until_when_and_how_to_get_windows() {
        let expected = [
            "PRESS ANY KEY FOR WINDOWS",
            "This PC computes for Computing centre, room 101.",
            "Now: ready for jobs",
            "Name: lab-a07, group lab-a",
            "Until: 06:30",
            "Its disk is not touched.",
        ];
        assert_eq!(plain(&working().render(80, 25)), expected);
    }

    #[test]
    fn no_line_is_wider_and_no_page_higher_than_the_screen() {
        let long = Page::Working {
            doing: "calling the head at 10.77.0.1, which does not answer; trying again".into(),
            facts: Facts {
                site: "x".repeat(200),
                ..Facts::default()
            },
            trouble: "no driver for the network card 8086:15f3".into(),
        };
        for (columns, rows) in [
            (80, 25),
            (50, 18),
            (64, 24),
            (100, 37),
            (240, 67),
            (20, 5),
            (0, 0),
        ] {
            for page in [&working(), &long] {
                let text = page.render(columns, rows);
                for line in plain(&text) {
                    assert!(line.chars().count() <= columns.max(26), "{columns}: {line}");
                }
                if rows >= 18 {
                    assert!(text.lines().count() <= rows, "{columns}x{rows}");
                }
            }
        }
    }

    #[test]
    fn the_way_home_shows_its_steps_and_counts_down() {
        let page = Page::GoingHome {
            reason: "key pressed".into(),
            step: 1,
            secs: 4,
            ending: Ending::Reboot,
        };
        let expected = [
            "WINDOWS IS COMING BACK",
            "Why: key pressed",
            "done: jobs are let go",
            "now: programs are ended",
            "then: the PC restarts",
            "Restart within 4 s.",
        ];
        assert_eq!(plain(&page.render(80, 25)), expected);
        assert_eq!(
            page.line(),
            "going home: key pressed; programs are ended; restart within 4 s"
        );
    }

    #[test]
    fn a_name_cannot_steer_the_terminal() {
        let page = Page::GoingHome {
            reason: "x\x1b[2Jy".into(),
            step: 0,
            secs: 4,
            ending: Ending::Reboot,
        };
        assert!(page.render(80, 25).contains("x?[2Jy"));
    }
}
