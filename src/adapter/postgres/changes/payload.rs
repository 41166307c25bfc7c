//! What a trigger, or `install`, says.

use serde::Deserialize;

use crate::domain::change::GoneValues;

/// The payload of a trigger's notification (see `sql::body`) or of `install` (see `sql::tell_installed`).
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Payload {
    pub(super) source: String,
    pub(super) tenants: Option<Vec<String>>,
    #[serde(default)]
    pub(super) gone: GoneValues,
    /// The SQLSTATE of an error while the trigger looked for tenants.
    pub(super) error: Option<String>,
    /// No row was written: the triggers are new or mended.
    pub(super) installed: Option<bool>,
}

impl Payload {
    /// If a trigger of another version reports more than this, the payload counts as a change of any tenant.
    pub(super) fn read(text: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Source {
            source: String,
        }
        serde_json::from_str(text).ok().or_else(|| {
            let Source { source } = serde_json::from_str(text).ok()?;
            let gone = GoneValues::new();
            Some(Self { source, tenants: None, gone, error: None, installed: None })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_read_however_little_of_it_is_understood() {
        let read = |text: &str| {
            Payload::read(text).map(|payload| (payload.source, payload.tenants, payload.error))
        };
        let text = |text: &str| text.to_owned();
        let of = |tenants: &[&str]| Some(tenants.iter().map(|id| text(id)).collect::<Vec<_>>());
        assert_eq!(read(r#"{"source":"a"}"#), Some((text("a"), None, None)));
        assert_eq!(
            read(r#"{"source":"a","tenants":["1","\"\u00e4\n"]}"#),
            Some((text("a"), of(&["1", "\"ä\n"]), None))
        );
        assert_eq!(
            read(r#"{"source":"a","error":"42501"}"#),
            Some((text("a"), None, Some(text("42501"))))
        );
        assert_eq!(read(r#"{"source":"a","tenants":[1]}"#), Some((text("a"), None, None)));
        let of_keys = r#"{"source":"a","tenants":[],"gone":{"i\"d":["7","\u00e4"]}}"#;
        assert_eq!(read(of_keys), Some((text("a"), of(&[]), None)));
        let gone = Payload::read(of_keys).unwrap().gone;
        assert_eq!(gone, GoneValues::from([(text("i\"d"), of(&["7", "ä"]).unwrap())]));
        let unknown = r#"{"source":"a","tenants":[],"gone":7}"#;
        assert_eq!(read(unknown), Some((text("a"), None, None)));
        assert_eq!(read(r#"{"source":"a","rows":7}"#), Some((text("a"), None, None)));
        for nothing in ["", "a", "7", "[]", "{}", r#"{"source":7}"#] {
            assert_eq!(read(nothing), None, "{nothing}");
        }
    }
}
