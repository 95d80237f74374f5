//! `head.toml` as it is written: serde types only, every value still text with its place in the file.
//! Must not judge anything; that is the validated type's work.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Head {
    pub(super) interface: Spanned<String>,
    pub(super) site: Option<Spanned<String>>,
    pub(super) state_dir: Option<Spanned<String>>,
    pub(super) images_dir: Option<Spanned<String>>,
    pub(super) socket: Option<Spanned<String>>,
    pub(super) unknown: Option<Spanned<String>>,
    pub(super) default_group: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) dhcp: Dhcp,
    #[serde(default)]
    pub(super) groups: BTreeMap<Spanned<String>, Group>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Dhcp {
    pub(super) range: Option<Spanned<String>>,
    pub(super) lease: Option<Spanned<String>>,
    pub(super) router: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) dns: Vec<Spanned<String>>,
    pub(super) domain: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Group {
    pub(super) image: Option<Spanned<String>>,
    pub(super) kernel_args: Option<Spanned<String>>,
    pub(super) bail_out: Option<Spanned<String>>,
    pub(super) patience: Option<Spanned<String>>,
    #[serde(default, rename = "match")]
    pub(super) matches: Vec<Spanned<String>>,
}
