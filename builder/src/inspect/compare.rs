//! `diff`: what is not the same in two images: entries of stage 1, files of root images, packages.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

use serde::Serialize;

use super::{Format, Listed, entries, json, root, shown};
use crate::stage2::list::List;
use crate::stage2::read::RootImage;

/// One difference as `diff --json` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Absolute path.
    pub path: String,
    /// What the first image has there.
    pub first: Option<Listed>,
    /// What the second image has there.
    pub second: Option<Listed>,
}

/// One package whose version is not the same, as `diff --json` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PackageDifference {
    /// Name and architecture, `python3:amd64`.
    pub package: String,
    /// Its version in the first image.
    pub first: Option<String>,
    /// Its version in the second image.
    pub second: Option<String>,
}

/// `diff A B`: entries that are not the same in both, of stage 1 and of root images, and packages. True when there are none.
pub fn diff(first: &Path, second: &Path, format: Format, output: &mut dyn Write) -> anyhow::Result<bool> {
    let bare = |image: &Path| image.is_file() && RootImage::is_one(image);
    let mut differences = Vec::new();
    if !bare(first) && !bare(second) {
        let (mut a, mut b) = (entries(first)?, entries(second)?);
        let paths: BTreeSet<String> = a.keys().chain(b.keys()).cloned().collect();
        for path in paths {
            let (first, second) = (a.remove(&path), b.remove(&path));
            if first != second {
                differences.push(Difference { path, first, second });
            }
        }
    }
    let has_root = |image: &Path| bare(image) || image.join("root.img").is_file();
    let mut packages = Vec::new();
    if has_root(first) || has_root(second) {
        let list = |image: &Path| match has_root(image) {
            true => root::list(image),
            false => Ok(List::default()),
        };
        differences.extend(root::differences(&list(first)?, &list(second)?));
        packages = package_differences(root::packages(first)?, root::packages(second)?);
    }
    match format {
        Format::Json if packages.is_empty() => json(output, &differences)?,
        Format::Json => {
            let document: Vec<serde_json::Value> = differences
                .iter()
                .map(serde_json::to_value)
                .chain(packages.iter().map(serde_json::to_value))
                .collect::<Result<_, _>>()?;
            json(output, &document)?;
        }
        Format::Text => print_differences(&differences, &packages, output)?,
    }
    Ok(differences.is_empty() && packages.is_empty())
}

fn package_differences(
    mut a: BTreeMap<String, String>,
    mut b: BTreeMap<String, String>,
) -> Vec<PackageDifference> {
    let names: BTreeSet<String> = a.keys().chain(b.keys()).cloned().collect();
    names
        .into_iter()
        .map(|package| PackageDifference {
            first: a.remove(&package),
            second: b.remove(&package),
            package,
        })
        .filter(|difference| difference.first != difference.second)
        .collect()
}

fn print_differences(
    differences: &[Difference],
    packages: &[PackageDifference],
    output: &mut dyn Write,
) -> anyhow::Result<()> {
    let mark = |first: bool, second: bool| match (first, second) {
        (true, false) => '-',
        (false, _) => '+',
        (true, true) => '*',
    };
    let size = |entry: &Option<Listed>| entry.as_ref().map_or(String::from("-"), |e| e.size.to_string());
    for Difference { path, first, second } in differences {
        writeln!(
            output,
            "{} {:>10} {:>10} {}",
            mark(first.is_some(), second.is_some()),
            size(first),
            size(second),
            shown(path)
        )?;
    }
    let version = |version: &Option<String>| shown(version.as_deref().unwrap_or("-"));
    for PackageDifference {
        package,
        first,
        second,
    } in packages
    {
        let mark = mark(first.is_some(), second.is_some());
        writeln!(
            output,
            "{mark} package {}: {} -> {}",
            shown(package),
            version(first),
            version(second)
        )?;
    }
    Ok(())
}
