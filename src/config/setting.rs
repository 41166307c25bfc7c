//! A setting: its name, the variable that sets it, and what is said of it.

/// What our variables begin with.
pub(super) const PREFIX: &str = "PREHEAT_";

/// A setting as it is documented.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its section and name, as in `database.url`.
    pub key: &'static str,
    /// What it may be.
    pub allowed: String,
    /// What it is when nothing is said, as TOML; `None` where it is absent then.
    pub default: Option<String>,
    /// What it does, without a full stop.
    pub help: &'static str,
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
