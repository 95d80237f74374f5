//! Which ranks go to which node. A pure function: candidates in, places out. Must never give a node more than it has, unless told so.

/// A node that takes work now.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate<T> {
    /// Who it is.
    pub id: T,
    /// Its name; decides between equals.
    pub name: String,
    /// CPUs.
    pub cpus: u32,
    /// Ranks it has already.
    pub used: u32,
    /// Tasks that run or want to, whosoever they are.
    pub load: f32,
}

/// Ranks for one node, one behind the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share<T> {
    /// Who.
    pub id: T,
    /// Its name.
    pub name: String,
    /// First rank.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoPlace {
    /// Nobody takes work.
    #[error("no node takes work now; `cidctl nodes --why` tells why not, `cidctl hours` when")]
    Nobody,
    /// Too few CPUs.
    #[error(
        "{wanted} ranks, and {free} free CPUs on the {nodes} nodes that take work; ask for fewer, wait for others to end, or let ranks share CPUs with --oversubscribe"
    )]
    Full {
        /// Ranks asked for.
        wanted: u32,
        /// CPUs that no rank has, as far as `--per-node` lets them be used.
        free: u32,
        /// Nodes.
        nodes: usize,
    },
}

/// The idlest nodes first, each filled up to its CPUs (or `per_node`). With `oversubscribe`, what is left is dealt out one by one.
///
/// # Errors
/// See [`NoPlace`].
pub fn place<T>(
    ranks: u32,
    per_node: Option<u32>,
    oversubscribe: bool,
    mut candidates: Vec<Candidate<T>>,
) -> Result<Vec<Share<T>>, NoPlace> {
    if candidates.is_empty() {
        return Err(NoPlace::Nobody);
    }
    // What others than our ranks do there counts as well.
    let idle = |it: &Candidate<T>| it.cpus as f32 - it.load.max(it.used as f32);
    candidates.sort_by(|a, b| idle(b).total_cmp(&idle(a)).then_with(|| a.name.cmp(&b.name)));
    let most = per_node.unwrap_or(u32::MAX);
    let mut counts = Vec::with_capacity(candidates.len());
    let mut left = ranks;
    for candidate in &candidates {
        let count = candidate.cpus.saturating_sub(candidate.used).min(most).min(left);
        left -= count;
        counts.push(count);
    }
    let room = u64::from(most) * candidates.len() as u64;
    if left > 0 && !(oversubscribe && u64::from(ranks) <= room) {
        return Err(NoPlace::Full {
            wanted: ranks,
            free: ranks - left,
            nodes: candidates.len(),
        });
    }
    while left > 0 {
        for count in counts.iter_mut().filter(|count| **count < most) {
            if left > 0 {
                *count += 1;
                left -= 1;
            }
        }
    }
    let mut first = 0;
    let shares = candidates.into_iter().zip(counts).filter(|(_, count)| *count > 0);
    Ok(shares
        .map(|(candidate, count)| {
            let share = Share {
                id: candidate.id,
                name: candidate.name,
                first,
                count,
            };
            first += count;
            share
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, cpus: u32, used: u32, load: f32) -> Candidate<()> {
        Candidate {
            id: (),
            name: name.to_owned(),
            cpus,
            used,
            load,
        }
    }

    fn counts(shares: &[Share<()>]) -> Vec<(&str, u32, u32)> {
        shares
            .iter()
            .map(|it| (it.name.as_str(), it.first, it.count))
            .collect()
    }

    #[test]
    fn the_idlest_comes_first_and_nobody_gets_more_than_it_has() {
        let nodes = vec![
            node("a", 4, 3, 0.0),
            node("b", 4, 0, 2.5),
            node("c", 4, 0, 0.1),
            node("d", 4, 0, 0.1),
        ];
        let shares = place(10, None, false, nodes.clone()).expect("13 are free");
        assert_eq!(counts(&shares), [("c", 0, 4), ("d", 4, 4), ("b", 8, 2)]);
        let shares = place(4, Some(1), false, nodes.clone()).expect("room");
        assert_eq!(
            counts(&shares),
            [("c", 0, 1), ("d", 1, 1), ("b", 2, 1), ("a", 3, 1)]
        );
        let full = NoPlace::Full {
            wanted: 14,
            free: 13,
            nodes: 4,
        };
        assert_eq!(place(14, None, false, nodes.clone()), Err(full));
        let shares = place(17, None, true, nodes.clone()).expect("they share");
        assert_eq!(
            counts(&shares),
            [("c", 0, 5), ("d", 5, 5), ("b", 10, 5), ("a", 15, 2)]
        );
        assert!(place(17, Some(4), true, nodes).is_err());
        assert_eq!(place::<()>(1, None, true, Vec::new()), Err(NoPlace::Nobody));
    }
}
