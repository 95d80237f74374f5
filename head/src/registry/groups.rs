//! Which group a machine boots in. Reads only.

use super::{Record, Registry};
use crate::config::{Group, Pattern, Unknown};
use crate::mac::Mac;
use crate::nodeset::glob_matches;

impl Registry {
    /// The group a machine boots in, whether by adoption, by a `match` of the configuration or because strangers
    /// may boot; with the group's name.
    pub fn group_of(&self, record: &Record) -> Option<(&str, &Group)> {
        let by_name = |name: &str| {
            self.groups
                .get_key_value(name)
                .map(|(name, group)| (name.as_str(), group))
        };
        if let Some(name) = &record.group {
            return by_name(name);
        }
        let matched = self
            .groups
            .iter()
            .find(|(_, group)| {
                group
                    .matches
                    .iter()
                    .any(|pattern| pattern_matches(pattern, record))
            })
            .map(|(name, group)| (name.as_str(), group));
        matched.or_else(|| match &self.unknown {
            Unknown::Boot { group } => by_name(group),
            Unknown::Wait => None,
        })
    }

    /// The group a machine that was never heard of would boot in.
    pub fn group_of_stranger(&self, mac: Mac) -> Option<(&str, &Group)> {
        self.group_of(&Record::seen(mac, 0))
    }
}

fn pattern_matches(pattern: &Pattern, record: &Record) -> bool {
    match pattern {
        Pattern::Mac(glob) => glob_matches(glob, &record.mac.to_string()),
        Pattern::Uuid(uuid) => record.uuid.as_ref() == Some(uuid),
        Pattern::Address(address) => record.address == Some(*address),
        Pattern::Name(glob) => record.name.as_ref().is_some_and(|name| glob_matches(glob, name)),
    }
}
