//! Commands that print documents: `schema`, `completions`, help and version.

use std::path::Path;
use std::process::Command;

use preheat::definition;
use serde_json::Value;

use crate::support::{self, document, preheat};

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

#[test]
fn docs_the_schema_beside_the_shipped_jobs_is_that_of_the_code() {
    let file = format!("jobs/{}", definition::SCHEMA_FILE);
    document::compare(&file, &definition::schema_text());
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/jobs")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "toml") {
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("#:schema ./job.schema.json\n"), "{}", path.display());
        }
    }
}

#[tokio::test]
async fn the_schema_is_written_where_job_files_look_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let schema = preheat(["schema"]).run().await.expect_code(0).stdout;
    let write = || preheat(["schema", "--write", "--jobs", "."]).within(folder.path());
    let said = write().run().await.expect_code(0).stdout;
    assert_eq!(said, "wrote ./job.schema.json\n");
    let written = std::fs::read_to_string(folder.path().join("job.schema.json")).unwrap();
    assert_eq!(written, schema);
    write().argument("--jobs=no/such").run().await.expect_code(2);
}

#[tokio::test]
async fn completions_are_scripts_that_their_shells_take() {
    for shell in ["bash", "zsh", "fish"] {
        let output = preheat(["completions", shell]).run().await.expect_code(0);
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

/// Prints what bash would offer after these words.
const IN_BASH: &str = r#"
source <(preheat completions bash)
COMP_WORDS=(preheat "$@"); COMP_CWORD=$#; COMP_TYPE=9
_clap_complete_preheat preheat "${!#}"
printf '%s\n' "${COMPREPLY[@]}"
"#;

/// The same in fish, which takes the words as one line.
const IN_FISH: &str = "preheat completions fish | source; complete -C \"preheat $argv\"";

/// The same in zsh, with a function in place of the one that shows the offers.
const IN_ZSH: &str = r#"
compdef() { : }
source <(preheat completions zsh)
_describe() { local offers=${@[-1]}; print -l -- "${(@P)offers}" }
words=(preheat "$@"); CURRENT=$(( $# + 1 ))
_clap_dynamic_completer_preheat
"#;

#[tokio::test]
async fn shells_complete_the_names_of_jobs() {
    let folder = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("jobs/services.toml", "description = \"What is offered.\"\n");
    write("jobs/slots.toml", "not even TOML");
    write("elsewhere/pets.toml", "");
    write(".env", "PREHEAT_JOBS=elsewhere\n");
    let program = Path::new(env!("CARGO_BIN_EXE_preheat")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    for shell in ["bash", "fish", "zsh"] {
        let offers = |words: &[&str], dotenv: &str| {
            let mut command = Command::new(shell);
            match shell {
                "bash" => command.args(["--norc", "-c", IN_BASH, "bash"]).args(words),
                "fish" => command.args(["--no-config", "-c", IN_FISH, "--", &words.join(" ")]),
                _ => command.args(["-f", "-c", IN_ZSH, "zsh"]).args(words),
            };
            command.current_dir(folder.path()).env("PATH", &path).env("PREHEAT_DOTENV", dotenv);
            let output = command.output().ok()?;
            let text = String::from_utf8(output.stdout).unwrap();
            let names = text.lines().map(|line| line.split(['\t', ':']).next().unwrap().trim());
            let mut names: Vec<String> = names.map(str::to_owned).collect();
            names.retain(|name| !name.starts_with('-') && !name.is_empty());
            names.sort();
            Some((names, String::from_utf8(output.stderr).unwrap()))
        };
        let cases: [(&[&str], &str, &[&str]); 7] = [
            (&["warm", "s"], "false", &["services", "slots"]),
            (&["warm", "services", "sl"], "false", &["slots"]),
            (&["preview", "se"], "false", &["services"]),
            (&["invalidate", "--job", "sl"], "false", &["slots"]),
            (&["--jobs", "elsewhere", "plan", "p"], "false", &["pets"]),
            (&["audit", "p"], "true", &["pets"]),
            (&["keys", "--lang", "rust", "sl"], "false", &["slots"]),
        ];
        for (words, dotenv, expected) in cases {
            let Some((names, errors)) = offers(words, dotenv) else {
                support::skipped(&format!("this machine has no {shell}"));
                break;
            };
            assert_eq!(names, expected, "{shell}: {words:?}: {errors}");
        }
    }
}

#[tokio::test]
async fn a_wrong_command_line_is_a_line_of_json_where_the_log_is() {
    let lines = |output: &support::Output| -> Vec<Value> {
        output.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let by_option = preheat(["warm", "--log-format", "json", "--nonsense"]);
    let by_variable = preheat(["nonsense"]).env("PREHEAT_LOG_FORMAT", "json");
    for (program, part) in [(by_option, "'--nonsense'"), (by_variable, "'nonsense'")] {
        let lines = lines(&program.run().await.expect_code(2));
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0]["level"], "ERROR");
        assert!(lines[0]["message"].as_str().unwrap().contains(part), "{lines:?}");
    }
    let help = preheat(["--help"]).env("PREHEAT_LOG_FORMAT", "json").run().await.expect_code(0);
    assert!(help.stdout.contains("Usage: preheat"), "{help:?}");
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
        "init",
        "check",
        "plan",
        "preview",
        "audit",
        "keys",
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
