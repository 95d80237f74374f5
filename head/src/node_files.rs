//! Files of a root image that differ from node to node: templates of its recipe, rendered with what the head knows of one node. Must
//! not send more than a welcome holds, and nothing that is not said in the image or in head.toml.

use std::collections::BTreeMap;
use std::error::Error;

use cid_protocol::manifest::Template;
use cid_protocol::root::{MAX_ROOT_FILES, RootFile, RootPromise};
use serde::Serialize;
use tera::Tera;

use crate::config::Value;

/// What nodes that boot an image are promised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promised {
    /// Without files: those are each node's own.
    pub promise: RootPromise,
    /// They are rendered for each node.
    pub templates: Vec<Template>,
    /// The recipe's values for them.
    pub values: BTreeMap<String, serde_json::Value>,
}

/// What a template may name, besides `values`.
#[derive(Debug, Clone, Serialize)]
pub struct Node {
    /// Its name; templates say `node`.
    #[serde(rename = "node")]
    pub name: String,
    /// Its group.
    pub group: String,
    /// As head.toml writes it.
    pub mac: String,
    /// Of the link in use.
    pub address: String,
    /// `compute@3`
    pub image: String,
}

/// The files of one node. Of `values` the last has the last word, before all of them the recipe.
///
/// # Errors
/// The template that cannot be rendered and why, in one line with the remedy; or that all of them are too large.
pub fn render<'a>(
    promised: &Promised,
    node: &Node,
    values: impl IntoIterator<Item = &'a BTreeMap<String, Value>>,
) -> Result<Vec<RootFile>, String> {
    if promised.templates.is_empty() {
        return Ok(Vec::new());
    }
    let mut all = promised.values.clone();
    for (name, value) in values.into_iter().flatten() {
        let value = match value {
            Value::Flag(flag) => (*flag).into(),
            Value::Number(number) => (*number).into(),
            Value::Text(text) => text.as_str().into(),
        };
        all.insert(name.clone(), value);
    }
    let wrong = |path: &str, error: &tera::Error| {
        format!(
            "template {path}.node.tera of {}: {}; name the value in [groups.{}.values] of head.toml or in the recipe",
            node.image,
            one_line(error),
            node.group
        )
    };
    let mut context = tera::Context::from_serialize(node).map_err(|error| wrong("", &error))?;
    context.insert("values", &all);
    let (mut files, mut bytes) = (Vec::new(), 0);
    for template in &promised.templates {
        let (path, name) = (&template.path, "file");
        let mut tera = Tera::default();
        tera.autoescape_on(Vec::<&str>::new());
        let text = tera
            .add_raw_template(name, &template.text)
            .and_then(|()| tera.render(name, &context))
            .map_err(|error| wrong(path, &error))?;
        bytes += path.len() + text.len();
        if bytes > MAX_ROOT_FILES {
            return Err(format!(
                "the files that templates of {} make for one node are larger than {MAX_ROOT_FILES} bytes; make values in head.toml shorter",
                node.image
            ));
        }
        files.push(RootFile {
            path: path.clone(),
            mode: template.mode,
            text,
        });
    }
    Ok(files)
}

fn one_line(error: &tera::Error) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut cause: Option<&dyn Error> = Some(error);
    while let Some(one) = cause {
        words.push(one.to_string().split_whitespace().collect::<Vec<_>>().join(" "));
        cause = one.source();
    }
    words.dedup();
    words.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn promised(text: &str) -> Promised {
        Promised {
            promise: RootPromise {
                image: "compute@3".into(),
                sequence: 7,
                manifest: "AAAA".into(),
                files: Vec::new(),
            },
            templates: vec![Template {
                path: "etc/rack".into(),
                mode: 0o644,
                text: text.into(),
            }],
            values: [
                ("room".to_owned(), "hall".into()),
                ("rack".to_owned(), "none".into()),
            ]
            .into(),
        }
    }

    fn node() -> Node {
        Node {
            name: "lab-a01".into(),
            group: "lab-a".into(),
            mac: "52:54:00:00:00:01".into(),
            address: "10.77.0.130".into(),
            image: "compute@3".into(),
        }
    }

    #[test]
    fn the_machine_comes_before_its_group_and_that_before_the_recipe() {
        let text = "{{ node }} {{ group }} {{ mac }} {{ address }} {{ image }} {{ values.room }} {{ values.rack }} {{ values.slots }}\n\
            {% if values.gpu %}gpu{% endif %}\n";
        let of_group = BTreeMap::from([
            ("rack".to_owned(), Value::Text("north".into())),
            ("slots".to_owned(), Value::Number(4)),
            ("gpu".to_owned(), Value::Flag(false)),
        ]);
        let of_machine = BTreeMap::from([("gpu".to_owned(), Value::Flag(true))]);
        let files = render(&promised(text), &node(), [&of_group, &of_machine]).unwrap();
        let wanted = RootFile {
            path: "etc/rack".into(),
            mode: 0o644,
            text: "lab-a01 lab-a 52:54:00:00:00:01 10.77.0.130 compute@3 hall north 4\ngpu\n".into(),
        };
        assert_eq!(files, [wanted]);
    }

    #[test]
    fn what_cannot_be_rendered_says_so_in_one_line() {
        let none: [&BTreeMap<String, Value>; 0] = [];
        let why = render(&promised("{{ values.tray }}"), &node(), none).unwrap_err();
        assert!(
            why.starts_with("template etc/rack.node.tera of compute@3: "),
            "{why}"
        );
        assert!(
            why.contains("tray") && why.contains("[groups.lab-a.values]") && !why.contains('\n'),
            "{why}"
        );
        let long = BTreeMap::from([("rack".to_owned(), Value::Text("x".repeat(MAX_ROOT_FILES)))]);
        let why = render(&promised("{{ values.rack }}"), &node(), [&long]).unwrap_err();
        assert!(why.contains("larger than"), "{why}");
    }
}
