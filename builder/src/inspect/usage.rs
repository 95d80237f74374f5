//! `du`: what takes the space in an image.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::bail;
use serde::Serialize;

use super::{Format, Part, entries, json, root, shown};
use crate::stage2::list::Entry;

/// One folder as `du --json` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Absolute path.
    pub path: String,
    /// Bytes of all files below it, unpacked; a file with several names counts once.
    pub size: u64,
    /// Files, folders and links below it.
    pub entries: usize,
}

/// `du IMAGE [PATH]`: what the entries of one folder hold, the largest first, and all together last.
pub fn du(
    image: &Path,
    part: Part,
    path: &str,
    format: Format,
    output: &mut dyn Write,
) -> anyhow::Result<()> {
    let base = format!("/{}", path.trim_matches('/'));
    let files: Vec<(String, u64)> = if part.of(image)? == Part::Root {
        let list = root::list(image)?;
        let own = |entry: Entry| (entry.path, if entry.same_as.is_none() { entry.size } else { 0 });
        list.entries.into_values().map(own).collect()
    } else {
        entries(image)?
            .into_values()
            .map(|entry| (entry.path, entry.size))
            .collect()
    };
    let below = if base == "/" {
        base.clone()
    } else {
        format!("{base}/")
    };
    let mut folders: BTreeMap<String, Usage> = BTreeMap::new();
    let mut all = Usage {
        path: base.clone(),
        size: 0,
        entries: 0,
    };
    for (path, size) in files {
        let Some(rest) = path.strip_prefix(&below).filter(|rest| !rest.is_empty()) else {
            continue;
        };
        let child = format!("{below}{}", rest.split('/').next().unwrap_or(rest));
        let usage = folders.entry(child.clone()).or_insert(Usage {
            path: child,
            size: 0,
            entries: 0,
        });
        for usage in [usage, &mut all] {
            usage.size += size;
            usage.entries += 1;
        }
    }
    if all.entries == 0 {
        bail!("{}: nothing below {base} in it", image.display());
    }
    let mut rows: Vec<Usage> = folders.into_values().collect();
    rows.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.path.cmp(&b.path)));
    rows.push(all);
    match format {
        Format::Json => json(output, &rows),
        Format::Text => {
            for row in &rows {
                writeln!(output, "{:>12} {:>7} {}", row.size, row.entries, shown(&row.path))?;
            }
            Ok(())
        }
    }
}
