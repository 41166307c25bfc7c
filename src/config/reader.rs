//! Reads one setting after the other from the layers. Each call declares a setting: its name, the
//! allowed values, its default and its help. The documentation is generated from these
//! declarations.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use chrono_tz::{TZ_VARIANTS, Tz};
use figment::value::{Num, Value};
use secrecy::SecretString;

use super::layer::Layers;
use super::problem::{Origin, Problem};
use super::setting::{InUse, Setting};
use crate::domain::duration;
use crate::domain::job::Share;
use crate::domain::network::Network;
use crate::domain::server_url::UrlProblem;
use crate::domain::share::{SHARES, Shares};
use crate::domain::{size, spelling};

/// The allowed form of an address.
const ADDRESS: &str = "an IP address with a port";

pub(super) struct Reader<'a> {
    layers: &'a Layers,
    declared: Vec<Setting>,
    /// The declared settings whose values are secret.
    secrets: Vec<&'static str>,
    problems: Vec<Problem>,
}

/// The value found for a setting, and its origin.
struct Found {
    value: Value,
    origin: Origin,
}

/// Why a value is refused.
struct Refused {
    /// The value as the message shows it; `None` if it may be secret.
    found: Option<String>,
    hint: Option<String>,
}

impl Refused {
    fn hidden() -> Self {
        Self { found: None, hint: None }
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(layers: &'a Layers) -> Self {
        Self { layers, declared: Vec::new(), secrets: Vec::new(), problems: Vec::new() }
    }

    /// The declared settings, and the problems found.
    pub(super) fn finish(self) -> (Vec<Setting>, Vec<Problem>) {
        (self.declared, self.problems)
    }

    /// The declared settings with their values. The value of a secret is hidden.
    pub(super) fn in_use(&self) -> Vec<InUse> {
        let in_use = |setting: &Setting| {
            let Setting { key, default, .. } = setting;
            let found = self.layers.find(key);
            let (value, origin) = match found {
                Some((value, origin)) => (Some(shown(&value)), origin),
                None => (default.clone(), Origin::Unset),
            };
            let hidden = || value.as_ref().map(|_| "set".to_owned());
            let value = if self.secrets.contains(key) { hidden() } else { value };
            InUse { key, value, origin }
        };
        self.declared.iter().map(in_use).collect()
    }

    pub(super) fn refuse_variable(&mut self, name: &str, found: &str, allowed: &str) {
        self.problems.push(Problem {
            origin: self.layers.origin_of_variable(name),
            message: format!("found `{found}`; allowed: {allowed}"),
            hint: None,
        });
    }

    /// Refuses the value of a setting because of another setting.
    pub(super) fn refuse(&mut self, key: &'static str, why: &str, hint: &str) {
        let origin = self.layers.find(key).map_or(Origin::Unset, |(_, origin)| origin);
        let message = format!("setting `{key}`: {why}");
        self.problems.push(Problem { origin, message, hint: Some(hint.to_owned()) });
    }

    pub(super) fn number(
        &mut self,
        key: &'static str,
        default: u32,
        range: RangeInclusive<u32>,
        help: &'static str,
    ) -> u32 {
        let allowed = format!("a whole number from {} to {}", range.start(), range.end());
        self.declare(key, allowed, Some(default.to_string()), help);
        let read = self.read(|found| {
            let number = found.number().and_then(|number| u32::try_from(number).ok());
            number.filter(|number| range.contains(number)).ok_or_else(|| found.refused())
        });
        read.unwrap_or(default)
    }

    pub(super) fn optional_number(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u32>,
        help: &'static str,
    ) -> Option<u32> {
        let allowed = format!("a whole number from {} to {}", range.start(), range.end());
        self.declare(key, allowed, None, help);
        self.read(|found| {
            let number = found.number().and_then(|number| u32::try_from(number).ok());
            number.filter(|number| range.contains(number)).ok_or_else(|| found.refused())
        })
    }

    /// The part of the tenants of one of several replicas, as in `2/5`.
    pub(super) fn part(&mut self, key: &'static str, help: &'static str) -> Option<Shares> {
        let allowed = format!(
            "a replica's number from 0 on, and the number of replicas up to {SHARES}, as in `\"2/5\"`"
        );
        self.declare(key, allowed, None, help);
        self.read(|found| {
            let text = found.text().unwrap_or_default();
            let numbers = text.split_once('/').and_then(|(replica, of)| {
                Some((replica.trim().parse::<u8>().ok()?, of.trim().parse::<u8>().ok()?))
            });
            let part = numbers.and_then(|(replica, of)| Shares::part(replica, of));
            part.ok_or_else(|| {
                let past_the_end = numbers.filter(|(replica, of)| *replica >= *of && *of > 0);
                let hint = past_the_end.map(|(_, of)| {
                    format!("replicas are numbered from 0, so the last one is `{}/{of}`", of - 1)
                });
                Refused { hint, ..found.refused() }
            })
        })
    }

    pub(super) fn count(
        &mut self,
        key: &'static str,
        default: u32,
        range: RangeInclusive<u32>,
        help: &'static str,
    ) -> NonZeroUsize {
        let number = self.number(key, default, range, help);
        usize::try_from(number).ok().and_then(NonZeroUsize::new).unwrap_or(NonZeroUsize::MIN)
    }

    pub(super) fn duration(
        &mut self,
        key: &'static str,
        default: &str,
        range: RangeInclusive<Duration>,
        help: &'static str,
    ) -> Duration {
        self.declare(key, durations(&range), Some(quoted(default)), help);
        let read = self.read(|found| found.duration(&range));
        read.unwrap_or_else(|| duration::read(default).unwrap_or_default())
    }

    /// A duration, or `"off"`, which is none.
    pub(super) fn duration_or_off(
        &mut self,
        key: &'static str,
        default: &str,
        range: RangeInclusive<Duration>,
        help: &'static str,
    ) -> Option<Duration> {
        let allowed = format!("{}, or `\"off\"`", durations(&range));
        self.declare(key, allowed, Some(quoted(default)), help);
        let read = self.read(|found| match found.text().as_deref().map(str::trim) {
            Some("off") => Ok(None),
            Some(_) | None => found.duration(&range).map(Some),
        });
        read.unwrap_or_else(|| duration::read(default).ok())
    }

    /// A number of bytes.
    pub(super) fn size(
        &mut self,
        key: &'static str,
        default: &str,
        range: RangeInclusive<usize>,
        help: &'static str,
    ) -> usize {
        let [least, most] = [range.start(), range.end()].map(|end| size::text(*end));
        let allowed = format!("a number of bytes from `\"{least}\"` to `\"{most}\"`");
        self.declare(key, allowed, Some(quoted(default)), help);
        let bytes = |text: &str| usize::try_from(size::parse(text)?).ok();
        let read = self.read(|found| {
            let text = found.text().or_else(|| found.number().map(|number| number.to_string()));
            let size = text.as_deref().and_then(bytes).filter(|size| range.contains(size));
            size.ok_or_else(|| found.refused())
        });
        read.or_else(|| bytes(default)).unwrap_or_default()
    }

    pub(super) fn share(&mut self, key: &'static str, default: &str, help: &'static str) -> Share {
        let allowed = "a share from `\"0%\"` to `\"100%\"`".to_owned();
        self.declare(key, allowed, Some(quoted(default)), help);
        let read = self.read(|found| {
            let share = found.text().and_then(|text| text.parse().ok());
            share.ok_or_else(|| found.refused())
        });
        read.or_else(|| default.parse().ok()).unwrap_or(Share::NONE)
    }

    pub(super) fn flag(&mut self, key: &'static str, default: bool, help: &'static str) -> bool {
        let allowed = "`true` or `false`".to_owned();
        self.declare(key, allowed, Some(default.to_string()), help);
        self.read(|found| found.flag().ok_or_else(|| found.refused())).unwrap_or(default)
    }

    /// One of some words, `true` and `false` among them without quotes. The first is the default.
    pub(super) fn choice<T: Copy + Default, const N: usize>(
        &mut self,
        key: &'static str,
        choices: [(&'static str, T); N],
        help: &'static str,
    ) -> T {
        let as_toml = |word: &str| match word {
            "true" | "false" => word.to_owned(),
            word => quoted(word),
        };
        let words: Vec<_> =
            choices.iter().map(|(word, _)| format!("`{}`", as_toml(word))).collect();
        let default = choices.first();
        self.declare(key, words.join(" or "), default.map(|(word, _)| as_toml(word)), help);
        let read = self.read(|found| {
            let word = found.flag().map(|flag| flag.to_string()).or_else(|| found.text());
            let choice = choices.iter().find(|(known, _)| Some(*known) == word.as_deref());
            choice.map(|(_, choice)| *choice).ok_or_else(|| found.refused())
        });
        read.or(default.map(|(_, choice)| *choice)).unwrap_or_default()
    }

    /// If a text is not allowed, `check` returns what is.
    pub(super) fn text(
        &mut self,
        key: &'static str,
        default: &str,
        help: &'static str,
        check: fn(&str) -> Result<(), &'static str>,
    ) -> String {
        let allowed = check("").err().unwrap_or("text").to_owned();
        self.declare(key, allowed, Some(quoted(default)), help);
        let read = self.read(|found| {
            let text = found.text().filter(|text| check(text).is_ok());
            text.ok_or_else(|| found.refused())
        });
        read.unwrap_or_else(|| default.to_owned())
    }

    /// A list of ranges of addresses: an array, or one text with commas, as a variable has it.
    pub(super) fn networks(&mut self, key: &'static str, help: &'static str) -> Vec<Network> {
        let allowed = "a list of IP addresses and ranges such as `\"10.0.0.0/8\"`".to_owned();
        self.declare(key, allowed, Some("[]".to_owned()), help);
        let read = self.read(|found| {
            let in_variable =
                "a variable has the list with commas, without brackets or quotes: `10.0.0.0/8,127.0.0.1`";
            let is_text = found.text().is_some();
            let texts = found.texts().ok_or_else(|| found.refused())?;
            let parsed = texts.iter().map(|text| {
                text.parse().map_err(|_no_network| Refused {
                    found: Some(format!("`{}`", quoted(text))),
                    hint: is_text.then(|| in_variable.to_owned()),
                })
            });
            parsed.collect()
        });
        read.unwrap_or_default()
    }

    pub(super) fn path(&mut self, key: &'static str, help: &'static str) -> Option<PathBuf> {
        self.declare(key, "a path".to_owned(), None, help);
        self.read(|found| found.text().map(PathBuf::from).ok_or_else(|| found.refused()))
    }

    pub(super) fn zone(&mut self, key: &'static str, help: &'static str) -> Option<Tz> {
        self.declare(key, "the name of a time zone".to_owned(), None, help);
        self.read(|found| {
            let text = found.text().unwrap_or_default();
            text.parse().map_err(|_not_one| {
                let nearest = spelling::nearest(&text, TZ_VARIANTS.iter().map(|zone| zone.name()));
                let hint = nearest.map(|name| format!("did you mean `{name}`?"));
                Refused { hint, ..found.refused() }
            })
        })
    }

    pub(super) fn address(
        &mut self,
        key: &'static str,
        default: SocketAddr,
        help: &'static str,
    ) -> SocketAddr {
        self.declare(key, ADDRESS.to_owned(), Some(quoted(&default.to_string())), help);
        self.read(Found::address).unwrap_or(default)
    }

    pub(super) fn optional_address(
        &mut self,
        key: &'static str,
        help: &'static str,
    ) -> Option<SocketAddr> {
        self.declare(key, ADDRESS.to_owned(), None, help);
        self.read(Found::address)
    }

    /// If a text is not allowed, `check` returns what is. An empty text counts as not set.
    pub(super) fn secret(
        &mut self,
        key: &'static str,
        help: &'static str,
        check: fn(&str) -> Result<(), &'static str>,
    ) -> Option<SecretString> {
        let allowed = check("\n").err().unwrap_or("text").to_owned();
        self.secrets.push(key);
        self.declare(key, allowed, None, help);
        let read = self.read(|found| {
            let text = found.text().filter(|text| check(text).is_ok());
            text.ok_or_else(Refused::hidden)
        });
        read.filter(|text| !text.is_empty()).map(SecretString::from)
    }

    /// A URL with one of the schemes, parsed by `parse`. An empty text counts as not set.
    pub(super) fn url<T>(
        &mut self,
        key: &'static str,
        schemes: &[&str],
        help: &'static str,
        parse: fn(&str) -> Result<T, Vec<UrlProblem>>,
    ) -> Option<SecretString> {
        let schemes_shown: Vec<_> = schemes.iter().map(|s| format!("`{s}://`")).collect();
        self.secrets.push(key);
        self.declare(key, format!("a URL with {}", schemes_shown.join(" or ")), None, help);
        let mut problems = Vec::new();
        let read = self.read(|found| {
            let text = found.text().ok_or_else(Refused::hidden)?.trim().to_owned();
            if !text.is_empty()
                && let Err(wrong) = parse(&text)
            {
                problems =
                    wrong.into_iter().map(|problem| (problem, found.origin.clone())).collect();
            }
            Ok(text)
        });
        let is_right = problems.is_empty();
        for (problem, origin) in problems {
            self.refuse_url(key, problem, origin);
        }
        read.filter(|text| is_right && !text.is_empty()).map(SecretString::from)
    }

    fn refuse_url(&mut self, key: &'static str, problem: UrlProblem, origin: Origin) {
        let allowed = self.declared.last().map_or("a URL", |setting| setting.allowed.as_str());
        let (message, hint) = match problem {
            UrlProblem::Unreadable { hint } => {
                (format!("setting `{key}` is not valid; allowed: {allowed}"), Some(hint))
            }
            UrlProblem::Scheme { found, hint } => {
                (format!("setting `{key}`: found `{found}://…`; allowed: {allowed}"), hint)
            }
            UrlProblem::Part { message, hint } => {
                (format!("setting `{key}`: {message}"), Some(hint))
            }
        };
        self.problems.push(Problem { origin, message, hint });
    }

    fn declare(
        &mut self,
        key: &'static str,
        allowed: String,
        default: Option<String>,
        help: &'static str,
    ) {
        self.declared.push(Setting { key, allowed, default, help });
    }

    /// The value of the setting that was declared last; `None` if it is not set or wrong. A wrong
    /// value becomes a problem.
    fn read<T>(&mut self, parse: impl FnOnce(&Found) -> Result<T, Refused>) -> Option<T> {
        let setting = self.declared.last()?;
        let (value, origin) = self.layers.find(setting.key)?;
        let found = Found { value, origin };
        match parse(&found) {
            Ok(value) => Some(value),
            Err(Refused { found: shown, hint }) => {
                let Setting { key, allowed, .. } = setting;
                let message = match shown {
                    Some(shown) => format!("setting `{key}`: found {shown}; allowed: {allowed}"),
                    None => format!("setting `{key}` is not valid; allowed: {allowed}"),
                };
                self.problems.push(Problem { origin: found.origin, message, hint });
                None
            }
        }
    }
}

/// A value as a file has it.
fn shown(value: &Value) -> String {
    match value {
        Value::String(_, text) => quoted(text),
        Value::Char(_, char) => quoted(&char.to_string()),
        Value::Bool(_, is) => is.to_string(),
        Value::Num(_, number) => shown_number(*number),
        Value::Array(_, values) => {
            format!("[{}]", values.iter().map(shown).collect::<Vec<_>>().join(", "))
        }
        Value::Empty(..) | Value::Dict(..) => String::new(),
    }
}

impl Found {
    /// A variable contains only text; the setting decides whether it means a number.
    fn is_variable(&self) -> bool {
        matches!(self.origin, Origin::Variable(_) | Origin::EnvFile { .. })
    }

    fn text(&self) -> Option<String> {
        self.value.as_str().map(str::to_owned)
    }

    /// The texts of a list. A text alone is a list with commas.
    fn texts(&self) -> Option<Vec<String>> {
        if let Some(text) = self.text() {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            return Some(parts.map(str::to_owned).collect());
        }
        let texts = self.value.as_array()?.iter().map(|value| value.as_str().map(str::to_owned));
        texts.collect()
    }

    fn duration(&self, range: &RangeInclusive<Duration>) -> Result<Duration, Refused> {
        let text = self.text().ok_or_else(|| Refused {
            hint: Some("a duration is text with its unit, as in `\"30s\"`".to_owned()),
            ..self.refused()
        })?;
        let duration = duration::read(&text)
            .map_err(|error| Refused { hint: Some(error.to_string()), ..self.refused() })?;
        if range.contains(&duration) { Ok(duration) } else { Err(self.refused()) }
    }

    fn address(&self) -> Result<SocketAddr, Refused> {
        let address = self.text().and_then(|text| text.parse().ok());
        address.ok_or_else(|| Refused {
            hint: Some("as in `\"127.0.0.1:9464\"`, or `\"0.0.0.0:9464\"` for all".to_owned()),
            ..self.refused()
        })
    }

    fn number(&self) -> Option<u128> {
        match self.value.as_str() {
            Some(text) if self.is_variable() => text.trim().parse().ok(),
            Some(_) => None,
            // TOML's numbers are signed.
            None => self.value.to_u128().or(self.value.to_i128()?.try_into().ok()),
        }
    }

    fn flag(&self) -> Option<bool> {
        match self.value.as_str() {
            Some(text) if self.is_variable() => text.trim().parse().ok(),
            Some(_) => None,
            None => self.value.to_bool(),
        }
    }

    fn refused(&self) -> Refused {
        let in_a_file = !self.is_variable();
        let found = match &self.value {
            Value::String(_, text) if in_a_file => format!("`{}`", quoted(text)),
            Value::String(_, text) => format!("`{text}`"),
            Value::Char(_, char) => format!("`{char}`"),
            Value::Bool(_, flag) => format!("`{flag}`"),
            Value::Num(_, number) => format!("`{}`", shown_number(*number)),
            Value::Empty(..) => "nothing".to_owned(),
            Value::Dict(..) => "a table".to_owned(),
            Value::Array(..) => "an array".to_owned(),
        };
        Refused { found: Some(found), hint: None }
    }
}

fn shown_number(number: Num) -> String {
    let float = number.to_f64().map(|float| float.to_string());
    let unsigned = number.to_u128().map(|whole| whole.to_string());
    let signed = number.to_i128().map(|whole| whole.to_string());
    unsigned.or(signed).or(float).unwrap_or_else(|| "a number".to_owned())
}

/// The text as a TOML string.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.escape_debug().to_string().replace("\\'", "'"))
}

/// Which durations are allowed, in words.
fn durations(range: &RangeInclusive<Duration>) -> String {
    let [shortest, longest] = [range.start(), range.end()].map(|&end| duration::text(end));
    format!("a duration from `\"{shortest}\"` to `\"{longest}\"`")
}
