//! Commands that print documents: `schema`, `completions`, help and version.

use std::process::Command;

use serde_json::Value;

use crate::support::preheat;

#[tokio::test]
async fn the_schema_is_that_of_every_shipped_job() {
    let schema = preheat(["schema"]).run().await.expect_code(0).json();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/jobs");
    let mut jobs = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "toml") {
            let text = std::fs::read_to_string(&path).unwrap();
            let job: Value = toml::from_str(&text).unwrap();
            let mut problems = Vec::new();
            validate(&schema, &job, "", &mut problems);
            assert_eq!(problems, [""; 0], "{}", path.display());
            jobs += 1;
        }
    }
    assert_eq!(jobs, 6);

    let wrong: Value = toml::from_str("schedule = 5\n[query]\nsqll = \"\"\n").unwrap();
    let mut problems = Vec::new();
    validate(&schema, &wrong, "", &mut problems);
    insta::assert_snapshot!(problems.join("\n"), @r#"
    /query/sqll: unknown
    /query: oneOf [{"required":["sql"]},{"required":["file"]}]
    /schedule: type "string"
    : required ["schedule","ttl","query","keys"]
    "#);
}

/// Validates against the part of JSON Schema that the schema of job files uses. An unknown keyword fails the
/// test, so that none is ignored.
fn validate(schema: &Value, value: &Value, at: &str, problems: &mut Vec<String>) {
    for (word, rule) in schema.as_object().unwrap() {
        let fits = match word.as_str() {
            "type" => is_a(rule.as_str().unwrap(), value),
            "enum" => rule.as_array().unwrap().contains(value),
            "anyOf" | "oneOf" => rule.as_array().unwrap().iter().any(|schema| {
                let mut of_this = Vec::new();
                validate(schema, value, at, &mut of_this);
                of_this.is_empty()
            }),
            "minimum" => value.as_f64() >= rule.as_f64(),
            "maximum" => value.as_f64() <= rule.as_f64(),
            "minItems" => {
                value.as_array().is_some_and(|items| items.len() as u64 >= rule.as_u64().unwrap())
            }
            "maxItems" => {
                value.as_array().is_some_and(|items| items.len() as u64 <= rule.as_u64().unwrap())
            }
            "required" => {
                let has = |name: &Value| value.get(name.as_str().unwrap()).is_some();
                rule.as_array().unwrap().iter().all(has)
            }
            "properties" | "additionalProperties" => {
                members(word, schema, value, at, problems);
                true
            }
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    validate(rule, item, &format!("{at}/{index}"), problems);
                }
                true
            }
            // Texts for people, and a pattern for editors.
            "$schema" | "title" | "description" | "default" | "examples" | "pattern" => true,
            other => panic!("this test knows no `{other}`, at {at}"),
        };
        if !fits {
            problems.push(format!("{at}: {word} {rule}"));
        }
    }
}

/// The known members of an object, or the others.
fn members(word: &str, schema: &Value, value: &Value, at: &str, problems: &mut Vec<String>) {
    for (name, member) in value.as_object().into_iter().flatten() {
        let at = format!("{at}/{name}");
        match (word, schema["properties"].get(name), &schema["additionalProperties"]) {
            ("properties", Some(known), _) => validate(known, member, &at, problems),
            ("properties", None, _) | (_, Some(_), _) => {}
            (_, None, Value::Bool(false)) => problems.push(format!("{at}: unknown")),
            (_, None, others) => validate(others, member, &at, problems),
        }
    }
}

fn is_a(kind: &str, value: &Value) -> bool {
    match kind {
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("no type `{other}`"),
    }
}

#[tokio::test]
async fn completions_are_scripts_that_their_shells_take() {
    for shell in ["bash", "zsh", "fish"] {
        let output = preheat(["completions", shell]).run().await.expect_code(0);
        for word in ["warm", "--deadline", "--jobs", "completions"] {
            let word = if shell == "fish" { word.trim_start_matches('-') } else { word };
            assert!(output.stdout.contains(word), "{shell}: {word}");
        }
        // Some machines lack some shells.
        let Ok(mut running) = Command::new(shell)
            .args(["-n", "/dev/stdin"])
            .stdin(std::process::Stdio::piped())
            .spawn()
        else {
            continue;
        };
        let script = output.stdout.as_bytes();
        std::io::Write::write_all(running.stdin.as_mut().unwrap(), script).unwrap();
        drop(running.stdin.take());
        assert!(running.wait().unwrap().success(), "{shell}");
    }
    preheat(["completions", "no-such-shell"]).run().await.expect_code(2);
}

#[tokio::test]
async fn help_and_version_are_for_everyone() {
    let version = preheat(["--version"]).run().await.expect_code(0).stdout;
    assert_eq!(version, format!("preheat {}\n", env!("CARGO_PKG_VERSION")));
    let help = preheat(["--help"]).run().await.expect_code(0);
    assert_eq!(help.stderr, "");
    insta::assert_snapshot!(help.stdout);
    for command in [
        "serve",
        "warm",
        "check",
        "plan",
        "audit",
        "migrate",
        "demo",
        "schema",
        "completions",
        "health",
    ] {
        let help = preheat([command, "--help"]).run().await.expect_code(0).stdout;
        for option in ["--config <FILE>", "--jobs <DIR>", "--verbose", "--log-format <FORMAT>"] {
            assert!(help.contains(option), "{command} takes {option}:\n{help}");
        }
    }
}
