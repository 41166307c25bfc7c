//! A setting: its name, the variable that sets it, and its documentation.

use super::problem::Origin;

/// The prefix of our variables.
pub(super) const PREFIX: &str = "PREHEAT_";

/// The documentation of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its section and name, as in `database.url`.
    pub key: &'static str,
    /// Which values are allowed.
    pub allowed: String,
    /// The default, as TOML; `None` if the setting has none.
    pub default: Option<String>,
    /// What it does, without the final full stop.
    pub help: &'static str,
}

/// A setting as a worker uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InUse {
    /// Its section and name, as in `database.url`.
    pub key: &'static str,
    /// Its value as TOML; of a secret, only whether it is set. `None` if it is not set.
    pub value: Option<String>,
    /// Where the value comes from: unset is the default.
    pub origin: Origin,
}

impl Setting {
    /// The variable that sets it.
    pub fn variable(&self) -> String {
        variable_of(self.key)
    }
}

/// `section.key` → `PREHEAT_SECTION__KEY`
pub(super) fn variable_of(setting: &str) -> String {
    format!("{PREFIX}{}", setting.replace('.', "__").to_ascii_uppercase())
}
