//! Which modules an image must hold so that the wanted ones load; and the proof that none of them can make a block
//! device. Never adds a module without a name that asked for it.

use std::collections::{BTreeMap, BTreeSet};

use crate::index::{Lookup, ModuleIndex};
use crate::module::ModuleFacts;

/// Why the wanted modules cannot go into an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClosureError {
    /// Nothing has this name.
    #[error("no module or alias {name:?} in this kernel")]
    Unknown {
        /// The name as asked for.
        name: String,
    },
    /// A module needs another that is not there.
    #[error("module {module} needs {missing}, which this kernel does not have")]
    Missing {
        /// The one that needs it.
        module: String,
        /// What it needs.
        missing: String,
    },
    /// A module could make a block device.
    #[error("module {module} can make block devices (it imports {symbol}); it is here because of {because}")]
    BlockDriver {
        /// The module.
        module: String,
        /// The first such symbol.
        symbol: String,
        /// Who asked for it: `itself`, or the chain of names that leads to it.
        because: String,
    },
}

/// Module name to the name that asked for it (empty for the wanted ones themselves).
pub type Closure = BTreeMap<String, String>;

/// Everything `wanted` needs: dependencies, soft dependencies, carriers of aliases. What is built in needs nothing.
/// Soft dependencies that nothing answers to, or that are `excluded`, are left out, as modprobe does.
pub fn close(
    index: &ModuleIndex,
    wanted: &BTreeSet<String>,
    excluded: &BTreeSet<String>,
) -> Result<Closure, ClosureError> {
    let mut closure = Closure::new();
    let mut open: Vec<&ModuleFacts> = Vec::new();
    for name in wanted {
        let found = match index.lookup(name) {
            Lookup::Module(module) => vec![module],
            Lookup::Alias(carriers) => carriers,
            Lookup::Builtin => vec![],
            Lookup::Unknown => return Err(ClosureError::Unknown { name: name.clone() }),
        };
        for module in found {
            if closure.insert(module.name.clone(), String::new()).is_none() {
                open.push(module);
            }
        }
    }
    while let Some(module) = open.pop() {
        for needed in needs(index, module, excluded)? {
            if !closure.contains_key(&needed.name) {
                closure.insert(needed.name.clone(), module.name.clone());
                open.push(needed);
            }
        }
    }
    Ok(closure)
}

fn needs<'a>(
    index: &'a ModuleIndex,
    module: &ModuleFacts,
    excluded: &BTreeSet<String>,
) -> Result<Vec<&'a ModuleFacts>, ClosureError> {
    let mut needed = Vec::new();
    for name in &module.depends {
        match index.lookup(name) {
            Lookup::Module(found) => needed.push(found),
            Lookup::Alias(carriers) => needed.extend(carriers),
            Lookup::Builtin => {}
            Lookup::Unknown => {
                return Err(ClosureError::Missing {
                    module: module.name.clone(),
                    missing: name.clone(),
                });
            }
        }
    }
    for name in module.soft_before.iter().chain(&module.soft_after) {
        let found = match index.lookup(name) {
            Lookup::Module(found) => vec![found],
            Lookup::Alias(carriers) => carriers,
            Lookup::Builtin | Lookup::Unknown => vec![],
        };
        needed.extend(found.into_iter().filter(|found| !excluded.contains(&found.name)));
    }
    Ok(needed)
}

/// The proof: no module of the closure imports a symbol by which a block device comes into being, except those
/// named in `allowed`.
pub fn prove_no_block_driver(
    index: &ModuleIndex,
    closure: &Closure,
    allowed: &BTreeSet<String>,
) -> Result<(), ClosureError> {
    for name in closure.keys() {
        let Some(module) = index.module(name) else {
            continue;
        };
        if let Some(symbol) = module.block_symbols.first()
            && !allowed.contains(name)
        {
            return Err(ClosureError::BlockDriver {
                module: name.clone(),
                symbol: symbol.clone(),
                because: chain(closure, name),
            });
        }
    }
    Ok(())
}

/// `c <- b <- a`: who asked for `name`, up to a wanted one.
fn chain(closure: &Closure, name: &str) -> String {
    let mut names = Vec::new();
    let mut at = name;
    // Ends: each step goes to a module that was in the closure before this one.
    while let Some(because) = closure.get(at).filter(|because| !because.is_empty()) {
        names.push(because.as_str());
        at = because;
    }
    if names.is_empty() {
        "itself".to_owned()
    } else {
        names.join(" <- ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::tests::facts;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn check(index: &ModuleIndex, wanted: &[&str], expected: &[&str]) {
        let closure = close(index, &set(wanted), &set(&[])).unwrap();
        assert_eq!(closure.keys().map(String::as_str).collect::<Vec<_>>(), expected);
    }

    fn index() -> ModuleIndex {
        let mut r8169 = facts("r8169", &["libphy"]);
        r8169.soft_before = vec!["realtek".into()];
        r8169.soft_after = vec!["nothing-has-this-name".into(), "extra".into()];
        let mut crc = facts("crc32c-intel", &[]);
        crc.aliases = vec!["crc32c".into()];
        let mut disk = facts("ssb-disk", &[]);
        disk.block_symbols = vec!["device_add_disk".into()];
        ModuleIndex::new(
            vec![
                r8169,
                crc,
                disk,
                facts("libphy", &["mdio-devres"]),
                facts("mdio-devres", &[]),
                facts("realtek", &["libphy"]),
                facts("extra", &[]),
                facts("b44", &["ssb"]),
                facts("ssb", &["ssb-disk"]),
                facts("broken", &["gone"]),
                facts("uses-builtin", &["crc16"]),
            ],
            "kernel/lib/crc16.ko\n",
            b"",
        )
    }

    #[test]
    fn closes_over_everything() {
        check(
            &index(),
            &["r8169"],
            &["extra", "libphy", "mdio_devres", "r8169", "realtek"],
        );
        check(&index(), &["uses-builtin"], &["uses_builtin"]);
        check(&index(), &["crc16"], &[]);
        check(&index(), &["crc32c"], &["crc32c_intel"]);
    }

    #[test]
    fn excluded_soft_dependencies_stay_out() {
        let closure = close(&index(), &set(&["r8169"]), &set(&["extra"])).unwrap();
        assert!(!closure.contains_key("extra"));
    }

    #[test]
    fn unknown_and_missing() {
        let error = |name| {
            close(&index(), &set(&[name]), &set(&[]))
                .expect_err(name)
                .to_string()
        };
        assert_eq!(error("e1001"), "no module or alias \"e1001\" in this kernel");
        assert_eq!(
            error("broken"),
            "module broken needs gone, which this kernel does not have"
        );
    }

    #[test]
    fn a_block_driver_is_named_with_who_brought_it() {
        let index = index();
        let closure = close(&index, &set(&["b44"]), &set(&[])).unwrap();
        let error = prove_no_block_driver(&index, &closure, &set(&[])).expect_err("block driver");
        assert_eq!(
            error.to_string(),
            "module ssb_disk can make block devices (it imports device_add_disk); it is here because of ssb <- b44"
        );
        assert_eq!(
            prove_no_block_driver(&index, &closure, &set(&["ssb_disk"])),
            Ok(())
        );
    }

    proptest::proptest! {
        /// Any graph, rings included: the closure holds what was wanted, and everything its members need.
        #[test]
        fn a_closure_is_closed(edges in proptest::collection::vec((0_usize..12, 0_usize..12), 0..40), start in 0_usize..12) {
            let name = |n: usize| format!("m{n}");
            let modules = (0..12).map(|n| {
                let to: Vec<String> = edges.iter().filter(|(from, _)| *from == n).map(|(_, to)| name(*to)).collect();
                facts(&name(n), &to.iter().map(String::as_str).collect::<Vec<_>>())
            }).collect();
            let index = ModuleIndex::new(modules, "", b"");
            let closure = close(&index, &set(&[&name(start)]), &set(&[])).unwrap();
            proptest::prop_assert!(closure.contains_key(&name(start)));
            for member in closure.keys() {
                for needed in &index.module(member).unwrap().depends {
                    proptest::prop_assert!(closure.contains_key(needed));
                }
                let _ = chain(&closure, member);
            }
        }
    }
}
