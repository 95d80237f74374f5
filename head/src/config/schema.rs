//! What `head.toml` may hold, told from the raw types: as JSON schema for editors, as head.toml(5) for people.
//! Must not know a key by name.

use cid_manual::{FilePage, KeySection};
use serde_json::Value;

use super::{STARTER, raw};

/// The JSON schema of `head.toml`.
pub fn schema() -> Value {
    schemars::schema_for!(raw::Head).to_value()
}

/// The manual page of `head.toml`, one section per table.
pub fn manual_page() -> FilePage {
    let schema = schema();
    let mut sections = Vec::new();
    tables(&schema, &schema, "", &mut sections);
    FilePage {
        name: "head.toml".to_owned(),
        about: "configuration of cidhead(8)".to_owned(),
        description: vec![
            "cidhead reads /etc/cid/head.toml, or the file that --config or CID_HEAD_CONFIG names. The file is TOML. \
             `cidhead init` writes one with comments; `cidhead check` prints it with every default filled in and \
             names what is missing; a key that cidhead does not know is an error that names the nearest known key."
                .to_owned(),
            "`cidhead schema` prints the JSON schema of this file, for editors that check what is typed.".to_owned(),
        ],
        sections,
        example: STARTER.replace("@INTERFACE@", "eth1"),
        see_also: "cidhead(8), cidctl(1), cidbuild(1)".to_owned(),
    }
}

/// One section for a table's own keys, then one for each table in it.
fn tables(root: &Value, table: &Value, path: &str, sections: &mut Vec<KeySection>) {
    let mut keys = Vec::new();
    let mut inner = Vec::new();
    for (name, property) in table["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        let target = resolve(root, property);
        // A map of tables has one name more: the administrator's.
        let below = target
            .get("additionalProperties")
            .filter(|below| below.is_object());
        match below {
            Some(below) if resolve(root, below).get("properties").is_some() => {
                inner.push((format!("{path}.NAME"), resolve(root, below), about(property)));
            }
            _ if target.get("properties").is_some() => inner.push((path, target, about(property))),
            _ => keys.push((format!("{name} ({})", kind(root, property)), about(property))),
        }
    }
    if !keys.is_empty() {
        let heading = if path.is_empty() {
            "TOP LEVEL".to_owned()
        } else {
            format!("[{path}]")
        };
        let above = if path.is_empty() {
            String::new()
        } else {
            about(table)
        };
        sections.push(KeySection {
            heading,
            about: above,
            keys,
        });
    }
    for (path, table, text) in inner {
        let before = sections.len();
        tables(root, table, &path, sections);
        if let Some(section) = sections.get_mut(before) {
            section.about = text;
        }
    }
}

/// The schema that a `$ref`, or the only one that is not `null` of an `anyOf`, stands for.
fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    if let Some(name) = schema["$ref"]
        .as_str()
        .and_then(|path| path.strip_prefix("#/$defs/"))
    {
        return resolve(root, &root["$defs"][name]);
    }
    let some = schema["anyOf"].as_array().into_iter().flatten();
    match some
        .filter(|choice| choice["type"] != "null")
        .collect::<Vec<_>>()
        .as_slice()
    {
        [only] => resolve(root, only),
        _ => schema,
    }
}

fn kind(root: &Value, property: &Value) -> String {
    let target = resolve(root, property);
    let name = match &target["type"] {
        Value::String(name) => name.as_str(),
        Value::Array(names) => names
            .iter()
            .find_map(|name| name.as_str().filter(|name| *name != "null"))
            .unwrap_or("value"),
        _ => "value",
    };
    match name {
        "array" => format!("list of {}s", kind(root, &target["items"])),
        "object" => "table".to_owned(),
        other => other.to_owned(),
    }
}

/// The comment, its lines joined.
fn about(schema: &Value) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every key of every table, from the schema itself: (path, description).
    fn keys(root: &Value, table: &Value, path: &str, found: &mut Vec<(String, String)>) {
        for (name, property) in table["properties"].as_object().into_iter().flatten() {
            let target = resolve(root, property);
            found.push((format!("{path}{name}"), about(property)));
            keys(root, target, &format!("{path}{name}."), found);
            if let Some(below) = target.get("additionalProperties") {
                keys(root, resolve(root, below), &format!("{path}{name}.NAME."), found);
            }
        }
    }

    #[test]
    fn every_key_is_explained_in_the_schema_and_on_the_page() {
        let schema = schema();
        let mut found = Vec::new();
        keys(&schema, &schema, "", &mut found);
        assert!(found.len() > 15, "{found:?}");
        let page = manual_page();
        for (path, text) in &found {
            assert!(
                !text.is_empty(),
                "{path}: write a comment on its field in config/raw.rs"
            );
            let name = path.rsplit('.').next().unwrap();
            let listed = page.sections.iter().any(|section| {
                &section.about == text
                    || section.heading == format!("[{path}]")
                    || section
                        .keys
                        .iter()
                        .any(|(key, about)| key.starts_with(&format!("{name} (")) && about == text)
            });
            assert!(listed, "{path} is not on the page");
        }
    }

    /// serde itself says which keys it knows: the list in its message about one that it does not know.
    #[test]
    fn the_schema_has_the_keys_that_the_reader_knows() {
        let schema = schema();
        for (text, table) in [
            ("nonsense_ = 1\n", &schema),
            (
                "interface = \"x\"\n[dhcp]\nnonsense_ = 1\n",
                resolve(&schema, &schema["properties"]["dhcp"]),
            ),
            (
                "interface = \"x\"\n[trust]\nnonsense_ = 1\n",
                resolve(&schema, &schema["properties"]["trust"]),
            ),
            (
                "interface = \"x\"\n[groups.a]\nnonsense_ = 1\n",
                resolve(&schema, &schema["properties"]["groups"]["additionalProperties"]),
            ),
        ] {
            let error = toml::from_str::<raw::Head>(text).unwrap_err();
            let mut known: Vec<String> = error
                .message()
                .split('`')
                .skip(1)
                .step_by(2)
                .skip(1)
                .map(str::to_owned)
                .collect();
            known.sort();
            let mut listed: Vec<String> = table["properties"].as_object().unwrap().keys().cloned().collect();
            listed.sort();
            assert_eq!(known, listed, "{text}");
        }
    }
}
