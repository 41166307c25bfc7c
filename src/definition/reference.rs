//! The JSON Schema of a job file, and the reference in `jobs/README.md` that is made from it.

use schemars::generate::SchemaSettings;
use serde_json::Value;

/// The JSON Schema of a job file.
pub fn schema() -> Value {
    let settings = SchemaSettings::draft2020_12();
    let schema = settings.into_generator().into_root_schema_for::<super::file::JobFile>();
    let mut schema = schema.to_value();
    remove_null(&mut schema);
    schema
}

/// TOML has no null: a field that may be missing is just not required.
fn remove_null(schema: &mut Value) {
    let null = Value::from("null");
    match schema {
        Value::Object(members) => {
            if let Some(Value::Array(kinds)) = members.get_mut("type") {
                kinds.retain(|kind| *kind != null);
                if let [only] = kinds.as_slice() {
                    let only = only.clone();
                    members.insert("type".to_owned(), only);
                }
            }
            if let Some(Value::Array(words)) = members.get_mut("enum") {
                words.retain(|word| !word.is_null());
            }
            if let Some(Value::Array(choices)) = members.get_mut("anyOf") {
                choices.retain(|choice| choice.get("type") != Some(&null));
                if let [Value::Object(only)] = choices.as_slice() {
                    let only = only.clone();
                    members.remove("anyOf");
                    for (name, value) in only {
                        members.entry(name).or_insert(value);
                    }
                }
            }
            members.values_mut().for_each(remove_null);
        }
        Value::Array(elements) => elements.iter_mut().for_each(remove_null),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
