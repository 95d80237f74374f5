//! Node sets in ClusterShell's grammar: `lab-a[01-20,25]`, `@lab-a!lab-a03`, `*&@lab-b`. Text in, names out.
//! Must never expand more than [`MAX_NAMES`] names, however large the ranges somebody types.
//!
//! | form | means |
//! |---|---|
//! | `a,b` or `a b` | union |
//! | `a!b` | difference |
//! | `a&b` | intersection |
//! | `a^b` | in exactly one of the two |
//! | `n[01-20/2,25]` | ranges with zero padding and step; several brackets multiply |
//! | `@group`, `@*` | the members of a group; everybody |
//! | `lab-*`, `lab-?1` | known names that match |
//!
//! Operators have equal rank and are applied from left to right, as in ClusterShell. The crate `nodeset` 0.6 was
//! evaluated and left: docs/decisions/0003-node-sets.md.

use std::collections::BTreeSet;

/// Most names that one node set may expand to.
pub const MAX_NAMES: usize = 16_384;
/// Longest text, in bytes.
pub const MAX_TEXT: usize = 8_192;
/// Longest name, in bytes: what RFC 1035 allows a host name.
pub const MAX_NAME: usize = 253;

/// Why a text is not a node set, with the part at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeSetError {
    /// Nothing was given, or an operator has nothing to its right.
    #[error("node set `{0}`: a name is missing; write it like lab-a[01-20,25]")]
    MissingName(String),
    /// `[` without `]`, or the other way round.
    #[error("node set: the brackets of `{0}` do not match")]
    Brackets(String),
    /// Inside brackets there is something that is no range.
    #[error("node set: `{0}` is no range; write 01-20, 7 or 0-8/2")]
    Range(String),
    /// A range's ends are padded differently.
    #[error("node set: the ends of `{0}` are padded with zeros differently")]
    Padding(String),
    /// A character that no host name has.
    #[error("node set: `{0}` holds a character that names do not have")]
    Character(String),
    /// A group that nobody defined.
    #[error("node set: there is no group `{0}`")]
    UnknownGroup(String),
    /// Larger than [`MAX_NAMES`] or [`MAX_TEXT`].
    #[error("node set: more than {MAX_NAMES} names, or longer than {MAX_TEXT} bytes")]
    TooLarge,
}

/// What the names of groups and the wildcards stand for.
pub trait Known {
    /// Members of a group; `None` when there is no such group.
    fn group(&self, name: &str) -> Option<Vec<String>>;
    /// Every known name.
    fn everybody(&self) -> Vec<String>;
}

/// Knows nobody: for node sets that make new names.
pub struct Nobody;

impl Known for Nobody {
    fn group(&self, _name: &str) -> Option<Vec<String>> {
        None
    }

    fn everybody(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The names that `text` stands for, each once, in the order of first mention (ranges rise).
///
/// # Errors
/// The writer's: see [`NodeSetError`]. Nothing is expanded beyond the limits.
pub fn expand(text: &str, known: &dyn Known) -> Result<Vec<String>, NodeSetError> {
    if text.len() > MAX_TEXT {
        return Err(NodeSetError::TooLarge);
    }
    let mut names: Vec<String> = Vec::new();
    let mut first = true;
    for (operator, word) in words(text)? {
        let right = expand_word(word, known)?;
        names = if first {
            union(Vec::new(), right)
        } else {
            apply(operator, names, right)
        };
        if names.len() > MAX_NAMES {
            return Err(NodeSetError::TooLarge);
        }
        first = false;
    }
    if first {
        Err(NodeSetError::MissingName(text.to_owned()))
    } else {
        Ok(names)
    }
}

fn apply(operator: char, left: Vec<String>, right: Vec<String>) -> Vec<String> {
    let in_right: BTreeSet<String> = right.iter().cloned().collect();
    match operator {
        '!' => left.into_iter().filter(|name| !in_right.contains(name)).collect(),
        '&' => left.into_iter().filter(|name| in_right.contains(name)).collect(),
        '^' => {
            let in_left: BTreeSet<String> = left.iter().cloned().collect();
            let fresh = right.into_iter().filter(|name| !in_left.contains(name));
            let kept = left.into_iter().filter(|name| !in_right.contains(name));
            union(Vec::new(), kept.chain(fresh).collect())
        }
        _ => union(left, right),
    }
}

fn union(left: Vec<String>, right: Vec<String>) -> Vec<String> {
    let mut met = BTreeSet::new();
    left.into_iter()
        .chain(right)
        .filter(|name| met.insert(name.clone()))
        .collect()
}

/// Splits at operators outside brackets: each word with the operator before it (`,` for the first).
fn words(text: &str) -> Result<Vec<(char, &str)>, NodeSetError> {
    let mut words = Vec::new();
    let mut operator = ',';
    let mut begin = 0;
    let mut depth = 0_u32;
    for (at, c) in text.char_indices().chain([(text.len(), ',')]) {
        match c {
            '[' => depth += 1,
            ']' if depth == 0 => return Err(NodeSetError::Brackets(text.to_owned())),
            ']' => depth -= 1,
            _ => {}
        }
        let closing = at == text.len();
        if depth > 1 || (closing && depth != 0) {
            return Err(NodeSetError::Brackets(text.to_owned()));
        }
        if depth == 0 && (closing || matches!(c, ',' | '!' | '&' | '^') || c.is_whitespace()) {
            let word = text[begin..at].trim();
            begin = at + if closing { 0 } else { c.len_utf8() };
            if !word.is_empty() {
                words.push((operator, word));
                operator = ',';
            } else if operator != ',' && (closing || !c.is_whitespace()) {
                return Err(NodeSetError::MissingName(text.to_owned()));
            }
            if matches!(c, '!' | '&' | '^') {
                if words.is_empty() {
                    return Err(NodeSetError::MissingName(text.to_owned()));
                }
                operator = c;
            }
        }
    }
    Ok(words)
}

fn expand_word(word: &str, known: &dyn Known) -> Result<Vec<String>, NodeSetError> {
    if let Some(group) = word.strip_prefix('@') {
        return match group {
            "*" => Ok(known.everybody()),
            _ => known
                .group(group)
                .ok_or_else(|| NodeSetError::UnknownGroup(group.to_owned())),
        };
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.:*?".contains(c);
    let mut names = vec![String::new()];
    let mut rest = word;
    while !rest.is_empty() {
        let (plain, after) = rest
            .split_once('[')
            .map_or((rest, None), |(plain, after)| (plain, Some(after)));
        if !plain.chars().all(fits) {
            return Err(NodeSetError::Character(word.to_owned()));
        }
        names.iter_mut().for_each(|name| name.push_str(plain));
        let Some(after) = after else { break };
        let (inside, behind) = after
            .split_once(']')
            .ok_or_else(|| NodeSetError::Brackets(word.to_owned()))?;
        names = multiply(&names, inside)?;
        rest = behind;
    }
    if names.iter().any(|name| name.len() > MAX_NAME) {
        return Err(NodeSetError::TooLarge);
    }
    if word.contains(['*', '?']) {
        let everybody = known.everybody();
        return Ok(everybody
            .into_iter()
            .filter(|name| names.iter().any(|glob| glob_matches(glob, name)))
            .collect());
    }
    Ok(names)
}

/// Every name with every number of the comma-separated ranges behind it.
fn multiply(names: &[String], ranges: &str) -> Result<Vec<String>, NodeSetError> {
    let mut numbers: Vec<String> = Vec::new();
    for range in ranges.split(',') {
        append_range(range.trim(), &mut numbers)?;
    }
    if names.len().saturating_mul(numbers.len()) > MAX_NAMES {
        return Err(NodeSetError::TooLarge);
    }
    Ok(names
        .iter()
        .flat_map(|name| numbers.iter().map(move |number| format!("{name}{number}")))
        .collect())
}

fn append_range(range: &str, into: &mut Vec<String>) -> Result<(), NodeSetError> {
    let wrong = || NodeSetError::Range(range.to_owned());
    let number = |text: &str| -> Result<u64, NodeSetError> {
        // u32 as in ClusterShell's peers; ten digits are plenty for a room.
        let digits = !text.is_empty() && text.len() <= 10 && text.bytes().all(|byte| byte.is_ascii_digit());
        if digits {
            text.parse().map_err(|_| wrong())
        } else {
            Err(wrong())
        }
    };
    let (ends, step) = match range.split_once('/') {
        Some((ends, step)) => (ends, number(step)?),
        None => (range, 1),
    };
    let (low_text, high_text) = match ends.split_once('-') {
        Some((low, high)) => (low, high),
        None if range.contains('/') => return Err(wrong()),
        None => (ends, ends),
    };
    let (low, high) = (number(low_text)?, number(high_text)?);
    if high < low || step == 0 {
        return Err(wrong());
    }
    let padded = |text: &str| text.len() > 1 && text.starts_with('0');
    if (padded(low_text) || padded(high_text)) && low_text.len() != high_text.len() && padded(high_text)
        || (padded(low_text) && high_text.len() < low_text.len())
    {
        return Err(NodeSetError::Padding(range.to_owned()));
    }
    let width = if padded(low_text) || padded(high_text) {
        low_text.len()
    } else {
        0
    };
    if (high - low) / step >= (MAX_NAMES - into.len().min(MAX_NAMES)) as u64 {
        return Err(NodeSetError::TooLarge);
    }
    let mut value = low;
    while value <= high {
        into.push(format!("{value:0width$}"));
        value += step;
    }
    Ok(())
}

/// Whether `glob` (`*` any run, `?` one character) matches the whole of `text`.
pub fn glob_matches(glob: &str, text: &str) -> bool {
    let (glob, text) = (glob.as_bytes(), text.as_bytes());
    let (mut at, mut next) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while next < text.len() {
        match glob.get(at) {
            Some(b'*') => {
                star = Some((at, next));
                at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == text[next] => {
                at += 1;
                next += 1;
            }
            _ => match star {
                // Let the last star swallow one byte more and try again: linear memory, no recursion.
                Some((star_at, swallowed)) => {
                    star = Some((star_at, swallowed + 1));
                    at = star_at + 1;
                    next = swallowed + 1;
                }
                None => return false,
            },
        }
    }
    glob[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests;
