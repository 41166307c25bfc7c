//! The map of `lib.rs` as a test: which module may import which, and why.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// What one module may do.
struct Rule {
    module: &'static str,
    /// Which modules of the crate it may import; a module includes everything in it.
    imports: Imports,
    /// Crates whose names must not occur in it.
    forbidden: &'static [&'static str],
    reason: &'static str,
}

enum Imports {
    Everything,
    Only(&'static [&'static str]),
}

const RULES: [Rule; 15] = [
    Rule {
        module: "domain",
        imports: Imports::Only(&[]),
        forbidden: &["tokio", "futures", "tracing", "sqlx", "redis", "axum"],
        reason: "the rules are plain values and functions: no I/O, no async, no clock, no log",
    },
    Rule {
        module: "definition",
        imports: Imports::Only(&["domain"]),
        forbidden: &["tokio", "sqlx", "redis", "axum"],
        reason: "checking a file is pure; only the database knows whether its query works",
    },
    Rule {
        module: "observe",
        imports: Imports::Only(&["domain"]),
        forbidden: &["sqlx", "redis", "axum"],
        reason: "an event is told in the domain's words",
    },
    Rule {
        module: "engine",
        imports: Imports::Only(&["domain", "observe"]),
        forbidden: &["sqlx", "redis", "axum"],
        reason: "the engine knows the world through its ports alone",
    },
    Rule {
        module: "audit",
        imports: Imports::Only(&[
            "domain",
            "observe",
            "engine",
            "invalidate::census",
            "invalidate::job_reader",
        ]),
        forbidden: &["sqlx", "redis", "axum"],
        reason: "a tool beside the engine; it has the census and the reader of rows in common with `invalidate`",
    },
    Rule {
        module: "invalidate",
        imports: Imports::Only(&["domain", "observe", "engine"]),
        forbidden: &["sqlx", "redis", "axum"],
        reason: "a tool beside the engine, which asks it for nothing but to warm again",
    },
    Rule {
        module: "estimate",
        imports: Imports::Only(&["domain", "engine", "observe"]),
        forbidden: &["sqlx", "redis", "axum"],
        reason: "what a run would do, asked of the engine's ports; `preheat plan` alone needs it",
    },
    Rule {
        module: "keys",
        imports: Imports::Only(&["domain"]),
        forbidden: &["tokio", "tracing", "sqlx", "redis", "axum"],
        reason: "a file of key builders follows from jobs and columns alone",
    },
    Rule {
        module: "overview",
        imports: Imports::Only(&["domain", "engine", "audit", "invalidate", "observe"]),
        forbidden: &["sqlx", "redis", "axum"],
        reason: "what an operator asks, computed from what the engine and the tools know",
    },
    Rule {
        module: "adapter",
        imports: Imports::Only(&["domain", "engine::ports"]),
        forbidden: &["axum", "tracing"],
        reason: "adapters stand behind ports, and they return: who handles a failure logs it",
    },
    Rule {
        module: "http",
        imports: Imports::Only(&[
            "domain",
            "engine::schedule::handle",
            "engine::schedule::pauses",
            "engine::schedule::status",
            "invalidate",
            "audit",
            "observe",
            "overview",
        ]),
        forbidden: &["sqlx", "redis"],
        reason: "the control plane asks the engine and the tools, and never a server itself",
    },
    Rule {
        module: "config",
        imports: Imports::Only(&["domain"]),
        forbidden: &["sqlx", "redis", "axum"],
        reason: "settings are values; connecting with them is for `app`",
    },
    Rule {
        module: "telemetry",
        imports: Imports::Only(&["domain", "config"]),
        forbidden: &["sqlx", "redis", "axum"],
        reason: "where logs go depends on settings alone",
    },
    Rule {
        module: "app",
        imports: Imports::Everything,
        forbidden: &[],
        reason: "the composition root",
    },
    Rule {
        module: "cli",
        imports: Imports::Everything,
        forbidden: &[],
        reason: "a command is wired from everything",
    },
];

/// The member of the workspace that starts servers.
const SANDBOX: &str = "preheat_sandbox";
/// The only module that may use it: no command that a team runs starts servers.
const SANDBOX_USER: &str = "cli::demo";

/// The modules that may log. All other code emits events, so that each event is declared in one place.
const LOGGERS: [&str; 2] = ["observe", "telemetry"];

/// Files that are not modules of their own.
const ROOTS: [&str; 2] = ["main", "lib"];

#[derive(Debug, PartialEq, Eq)]
struct Violation {
    module: String,
    line: usize,
    found: String,
    reason: &'static str,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { module, line, found, reason } = self;
        write!(f, "`{module}`, line {line}: must not name `{found}`: {reason}")
    }
}

#[test]
fn modules_import_only_what_the_map_allows() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = sources(&root);
    assert!(files.len() > 20, "the sources are not where they are looked for");
    let violations: Vec<_> = files
        .iter()
        .flat_map(|path| {
            let text = fs::read_to_string(path).unwrap();
            check(&module_of(path.strip_prefix(&root).unwrap()), &text)
        })
        .map(|violation| violation.to_string())
        .collect();
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

/// Files that may import each other, and why.
const CIRCLES: [(&[&str], &str); 1] = [(
    &["domain::json::nested", "domain::json::text"],
    "the JSON of an array holds that of its text, which may be an array's",
)];

#[test]
fn no_two_files_import_each_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files: BTreeMap<String, String> = sources(&root)
        .iter()
        .map(|path| {
            (module_of(path.strip_prefix(&root).unwrap()), fs::read_to_string(path).unwrap())
        })
        .collect();
    let found = circles(&files);
    let allowed: BTreeSet<Vec<String>> =
        CIRCLES.iter().map(|(files, _)| files.iter().map(ToString::to_string).collect()).collect();
    let left: Vec<_> = found.difference(&allowed).map(|files| files.join(", ")).collect();
    assert!(left.is_empty(), "these files import each other:\n{}", left.join("\n"));
    let gone: Vec<_> = allowed.difference(&found).map(|files| files.join(", ")).collect();
    assert!(
        gone.is_empty(),
        "these circles are gone, and so should their exceptions be:\n{gone:?}"
    );
}

#[test]
fn a_circle_is_found_however_long_it_is() {
    let found = |files: &[(&str, &str)]| -> Vec<String> {
        let files =
            files.iter().map(|(module, text)| ((*module).to_owned(), (*text).to_owned())).collect();
        circles(&files).into_iter().map(|files| files.join(" ")).collect()
    };
    let three = [
        ("a::b", "use super::c::X;"),
        ("a::c", "fn f() { crate::d::e() }"),
        ("d", "use crate::a::b;"),
        ("e", "use crate::{a, d};"),
    ];
    assert_eq!(found(&three), ["a::b a::c d"]);
    let parent_and_child = [("a", "mod b; use self::b::X;"), ("a::b", "use super::Y;")];
    assert_eq!(found(&parent_and_child), [""; 0], "a folder and what is in it are one");
    assert_eq!(found(&[("a", "use crate::b;"), ("b", "// use crate::a;")]), [""; 0]);
}

/// Groups of files that can reach each other through imports, in order. Imports between a file and its own
/// folder do not count.
fn circles(files: &BTreeMap<String, String>) -> BTreeSet<Vec<String>> {
    let imported: BTreeMap<&str, BTreeSet<&str>> = files
        .iter()
        .map(|(module, text)| {
            let paths =
                imports(module, text).into_iter().filter_map(|import| file_of(files, &import.path));
            let is_within = |inner: &str, outer: &str| inner.starts_with(&format!("{outer}::"));
            let others = paths.filter(|path| {
                path != module && !is_within(path, module) && !is_within(module, path)
            });
            (module.as_str(), others.collect())
        })
        .collect();
    let reached: BTreeMap<&str, BTreeSet<&str>> =
        imported.keys().map(|module| (*module, reachable(&imported, module))).collect();
    let circle = |module: &&str| -> Vec<String> {
        let others = reached[module].iter().filter(|other| reached[*other].contains(module));
        others.map(ToString::to_string).collect()
    };
    reached.keys().map(circle).filter(|circle| circle.len() > 1).collect()
}

/// The file that contains a path.
fn file_of<'f>(files: &'f BTreeMap<String, String>, path: &str) -> Option<&'f str> {
    let mut path = path;
    loop {
        if let Some((module, _)) = files.get_key_value(path) {
            return Some(module);
        }
        path = path.rsplit_once("::")?.0;
    }
}

fn reachable<'f>(imported: &BTreeMap<&'f str, BTreeSet<&'f str>>, from: &str) -> BTreeSet<&'f str> {
    let mut reached = BTreeSet::new();
    let mut left: Vec<&str> = imported[from].iter().copied().collect();
    while let Some(module) = left.pop() {
        if reached.insert(module) {
            left.extend(&imported[module]);
        }
    }
    reached
}

/// The rooms of the engine, from the ground up, each with the reason why no room imports from a later one.
const ROOMS: [(&str, &str); 5] = [
    ("ports", "what the engine needs of the world knows nothing of the engine"),
    ("registry", "who may have keys is asked by runs"),
    ("run", "how a run goes does not depend on when"),
    ("schedule", "when a job runs does not depend on what wakes it"),
    ("tasks", "what goes on beside the runs"),
];

#[test]
fn no_room_of_the_engine_imports_from_a_later_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let upwards: Vec<String> = sources(&root.join("engine"))
        .iter()
        .flat_map(|path| {
            let text = fs::read_to_string(path).unwrap();
            let module = module_of(path.strip_prefix(&root).unwrap());
            upwards(&module, &text).into_iter().map(move |found| format!("`{module}`{found}"))
        })
        .collect();
    assert!(upwards.is_empty(), "\n{}", upwards.join("\n"));
}

#[test]
fn an_import_from_a_later_room_is_found() {
    let later = "use crate::engine::schedule::handle::Handle;";
    assert_eq!(upwards("engine::run::warm", later).len(), 1);
    assert_eq!(upwards("engine::tasks::feed", later).len(), 0);
    assert_eq!(upwards("engine::registry", "use super::run::Runner;").len(), 1);
    assert_eq!(upwards("engine::run", "use super::registry::Registry;").len(), 0);
}

/// The imports of an engine module from a later room.
fn upwards(module: &str, text: &str) -> Vec<String> {
    let place = |path: &str| {
        let room = path.strip_prefix("engine::")?.split("::").next()?;
        ROOMS.iter().position(|(name, _)| *name == room)
    };
    let Some(own) = place(module) else { return Vec::new() };
    let later = imports(module, text).into_iter().filter(|import| place(&import.path) > Some(own));
    let (_, reason) = ROOMS[own];
    later
        .map(|Import { line, path }| format!(", line {line}: `{path}` is above: {reason}"))
        .collect()
}

/// A file with more lines is split by what it is about, unless its first line gives a reason with [`REASON`].
const MOST_LINES: usize = 750;
const REASON: &str = "longer than most:";

#[test]
fn no_file_is_long_without_a_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["src", "tests", "benches", "sandbox", "clients/rust", "examples/clinic"];
    let files: Vec<_> = folders.iter().flat_map(|folder| sources(&root.join(folder))).collect();
    let long: Vec<_> = files
        .iter()
        .filter(|path| is_too_long(&fs::read_to_string(path).unwrap()))
        .map(|path| path.strip_prefix(root).unwrap().display().to_string())
        .collect();
    assert!(
        long.is_empty(),
        "these files have more than {MOST_LINES} lines; split them, or say in the first line why each is \
         `{REASON} …`:\n{}",
        long.join("\n")
    );
}

#[test]
fn a_long_file_is_found_unless_it_says_why() {
    assert!(!is_too_long(&"\n".repeat(MOST_LINES)));
    assert!(is_too_long(&"\n".repeat(MOST_LINES + 1)));
    let late = format!("//! A table.\n//! {REASON} one table{}", "\n".repeat(MOST_LINES));
    assert!(is_too_long(&late));
    let reason = format!("//! A table, {REASON} one table{}", "\n".repeat(MOST_LINES + 1));
    assert!(!is_too_long(&reason));
}

fn is_too_long(text: &str) -> bool {
    let first = text.lines().next().unwrap_or_default();
    text.lines().count() > MOST_LINES && !first.contains(REASON)
}

#[test]
fn every_module_has_a_rule() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for path in sources(&root) {
        let module = module_of(path.strip_prefix(&root).unwrap());
        let top = module.split("::").next().unwrap();
        let is_known = ROOTS.contains(&top) || RULES.iter().any(|rule| rule.module == top);
        assert!(is_known, "`{top}` has no rule here");
    }
}

#[test]
fn a_violation_is_found_in_each_way_to_write_it() {
    let found = |module: &str, text: &str| -> Vec<(usize, String)> {
        check(module, text).into_iter().map(|violation| (violation.line, violation.found)).collect()
    };
    let one = |line, name: &str| vec![(line, name.to_owned())];
    assert_eq!(found("domain::key", "use crate::engine::ports;"), one(1, "engine::ports"));
    assert_eq!(found("domain", "\n\nlet x = crate::app::run();"), one(3, "app::run"));
    assert_eq!(found("domain::key", "use super::super::http;"), one(1, "http"));
    assert_eq!(found("domain", "use super::{\n  http,\n  domain::key,\n};"), one(1, "http"));
    assert_eq!(
        found(
            "definition::check",
            "use crate::{domain::{job, key}, config::{self, Settings as S}};"
        ),
        [(1, "config".to_owned()), (1, "config::Settings".to_owned())]
    );
    assert_eq!(found("http::jobs", "use crate::engine::run;"), one(1, "engine::run"));
    assert_eq!(found("engine::run", "use crate::audit::Auditor;"), one(1, "audit::Auditor"));
    assert_eq!(found("audit", "use crate::invalidate::Touched;"), one(1, "invalidate::Touched"));
    assert_eq!(found("adapter::redis", "use crate::engine::*;"), one(1, "engine"));
    assert_eq!(found("domain", "mod tests { use super::super::engine; }"), one(1, "engine"));
    assert_eq!(found("domain::key", "#[tokio::test]\nfn f() {}"), one(1, "tokio"));
    assert_eq!(found("domain", "use futures as f;"), one(1, "futures"));
    assert_eq!(found("domain", "use {std::fmt, sqlx::Row};"), one(1, "sqlx"));
    assert_eq!(found("http", "extern crate redis;"), one(1, "redis"));
    assert_eq!(found("adapter::postgres", "tracing::info!(\"x\");"), one(1, "tracing"));
    assert_eq!(found("http", "tracing::info!(\"x\");"), one(1, "tracing"));
    assert_eq!(found("cli::serve", "use preheat_sandbox::Postgres;"), one(1, "preheat_sandbox"));
}

#[test]
fn what_is_allowed_is_let_through() {
    let cases = [
        ("domain::key", "use super::job::Job; use crate::domain::row; use self::x::y;"),
        ("domain::key", "mod tests { use super::*; use super::super::job; }"),
        ("domain::key", "// crate::engine::ports\n/* use tokio::spawn; */ /// [`crate::app`]\n"),
        ("domain::key", "let x = \"crate::engine\"; let y = r#\"use tokio::x\"#; let z = '\"';"),
        ("domain::key", "let tokio = 1; struct Tokio; let x = a::tokio::b; fn redis() {}"),
        ("adapter::redis", "use crate::engine::ports::{Cache, CacheError}; use redis::Cmd;"),
        ("http::jobs", "use crate::engine::schedule::{handle::Handle, status}; use axum::Router;"),
        ("definition", "use crate::domain::job::{self, Job};\nmod check;\nuse check::Check;"),
        ("cli::demo", "use preheat_sandbox::Postgres;"),
        ("main", "use preheat::cli;"),
    ];
    for (module, text) in cases {
        assert_eq!(check(module, text), [], "{text}");
    }
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// `domain/key.rs` → `domain::key`, `engine/mod.rs` → `engine`.
fn module_of(path: &Path) -> String {
    let path = path.with_extension("");
    let parts: Vec<_> = path.iter().map(|part| part.to_str().unwrap()).collect();
    parts.strip_suffix(&["mod"]).unwrap_or(&parts).join("::")
}

fn check(module: &str, text: &str) -> Vec<Violation> {
    let top = module.split("::").next().unwrap();
    let Some(rule) = RULES.iter().find(|rule| rule.module == top) else { return Vec::new() };
    let violation =
        |line, found: String, reason| Violation { module: module.to_owned(), line, found, reason };
    let mut violations = Vec::new();
    for Import { line, path } in imports(module, text) {
        let is_within =
            |allowed: &str| path == allowed || path.starts_with(&format!("{allowed}::"));
        let is_allowed = match &rule.imports {
            Imports::Everything => true,
            Imports::Only(allowed) => is_within(top) || allowed.iter().any(|path| is_within(path)),
        };
        if !is_allowed {
            violations.push(violation(line, path, rule.reason));
        }
    }
    for (line, name) in crates(text) {
        if name == "tracing" && !LOGGERS.contains(&top) {
            violations.push(violation(line, name, "what happens is an event of `observe`"));
        } else if rule.forbidden.contains(&name.as_str()) {
            violations.push(violation(line, name, rule.reason));
        } else if name == SANDBOX && module != SANDBOX_USER {
            violations.push(violation(line, name, "`cli::demo` alone starts servers"));
        }
    }
    violations
}

/// A path within the crate, from its root.
#[derive(Debug)]
struct Import {
    line: usize,
    path: String,
}

/// Every path of the crate that a text names, through `crate::`, `super::` or the crate's own name.
fn imports(module: &str, text: &str) -> Vec<Import> {
    let tokens = tokens(text);
    let file: Vec<_> = module.split("::").map(str::to_owned).collect();
    let mut imports = Vec::new();
    // The inline modules around a token, each with the depth of its braces.
    let mut inline: Vec<(String, usize)> = Vec::new();
    let mut depth = 0;
    let mut index = 0;
    while index < tokens.len() {
        let word = |at: usize| tokens.get(at).map(|(_, word)| word.as_str()).unwrap_or_default();
        match word(index) {
            "{" => depth += 1,
            "}" => {
                inline.retain(|(_, opened)| *opened < depth);
                depth -= 1;
            }
            "mod" if word(index + 2) == "{" => inline.push((word(index + 1).to_owned(), depth)),
            root @ ("crate" | "super" | "preheat")
                if word(index + 1) == "::" && (index == 0 || word(index - 1) != "::") =>
            {
                let mut base = match root {
                    "super" => file.clone(),
                    _ => Vec::new(),
                };
                let mut next = index + 2;
                if root == "super" {
                    base.extend(inline.iter().map(|(name, _)| name.clone()));
                    base.pop();
                    while word(next) == "super" {
                        base.pop();
                        next += 2;
                    }
                }
                let line = tokens[index].0;
                let mut paths = Vec::new();
                tree(&tokens, next, base, &mut paths);
                imports.extend(paths.into_iter().map(|path| Import { line, path }));
            }
            _ => {}
        }
        index += 1;
    }
    // A path that ends where it began names no module.
    imports.retain(|import| !import.path.is_empty());
    imports
}

/// The paths of a use tree that begins at a token; returns where it ends.
fn tree(
    tokens: &[(usize, String)],
    at: usize,
    base: Vec<String>,
    paths: &mut Vec<String>,
) -> usize {
    let word = |at: usize| tokens.get(at).map(|(_, word)| word.as_str()).unwrap_or_default();
    let mut path = base;
    let mut at = at;
    loop {
        match word(at) {
            "{" => {
                at += 1;
                while word(at) != "}" && at < tokens.len() {
                    at = tree(tokens, at, path.clone(), paths);
                    while word(at) != "," && word(at) != "}" && at < tokens.len() {
                        at += 1;
                    }
                    if word(at) == "," {
                        at += 1;
                    }
                }
                return at + 1;
            }
            "self" | "*" => {
                paths.push(path.join("::"));
                return at + 1;
            }
            name if is_name(name) => path.push(name.to_owned()),
            _ => {
                paths.push(path.join("::"));
                return at;
            }
        }
        if word(at + 1) != "::" {
            paths.push(path.join("::"));
            return at + 1;
        }
        at += 2;
    }
}

/// The first words of paths and imports, which may be the names of crates.
fn crates(text: &str) -> Vec<(usize, String)> {
    let tokens = tokens(text);
    let word = |at: usize| tokens.get(at).map(|(_, word)| word.as_str()).unwrap_or_default();
    let mut crates = Vec::new();
    let mut in_use = false;
    for (index, (line, name)) in tokens.iter().enumerate() {
        let before = if index == 0 { "" } else { word(index - 1) };
        in_use = name == "use" || in_use && name != ";";
        let begins = before == "use" || before == "crate" || in_use && matches!(before, "{" | ",");
        if is_name(name) && before != "::" && (word(index + 1) == "::" || begins) {
            crates.push((*line, name.clone()));
        }
    }
    crates
}

fn is_name(word: &str) -> bool {
    word.starts_with(|char: char| char.is_alphabetic() || char == '_')
}

/// The words and symbols of a text, each with its line, without comments and strings.
fn tokens(text: &str) -> Vec<(usize, String)> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let (mut at, mut line) = (0, 1);
    let starts =
        |at: usize, sign: &str| sign.chars().eq(chars.iter().skip(at).take(sign.len()).copied());
    while at < chars.len() {
        let char = chars[at];
        let start = at;
        if starts(at, "//") {
            at = end(&chars, at, "\n");
        } else if starts(at, "/*") {
            at = end(&chars, at, "*/") + 2;
        } else if let Some(quotes) = raw_string(&chars, at) {
            at = end(&chars, at + quotes.len() + 1, &quotes) + quotes.len();
        } else if char == '"' {
            at = end_of_string(&chars, at + 1);
        } else if char == '\'' {
            at = end_of_char(&chars, at);
        } else if char.is_alphanumeric() || char == '_' {
            while at < chars.len() && (chars[at].is_alphanumeric() || chars[at] == '_') {
                at += 1;
            }
            tokens.push((line, chars[start..at].iter().collect()));
        } else if starts(at, "::") {
            at += 2;
            tokens.push((line, "::".to_owned()));
        } else {
            at += 1;
            if !char.is_whitespace() {
                tokens.push((line, char.to_string()));
            }
        }
        line += chars[start..at.min(chars.len())].iter().filter(|char| **char == '\n').count();
    }
    tokens
}

/// The position of the text's next occurrence; the end if there is none.
fn end(chars: &[char], from: usize, text: &str) -> usize {
    let text: Vec<char> = text.chars().collect();
    let rest = chars.get(from..).unwrap_or_default();
    rest.windows(text.len()).position(|window| window == text).map_or(chars.len(), |at| from + at)
}

/// The end marker of the raw string that begins here.
fn raw_string(chars: &[char], at: usize) -> Option<String> {
    let is_word =
        |at: usize| chars.get(at).is_some_and(|char| char.is_alphanumeric() || *char == '_');
    if chars[at] != 'r' || at > 0 && is_word(at - 1) && chars[at - 1] != 'b' {
        return None;
    }
    let hashes = chars[at + 1..].iter().take_while(|char| **char == '#').count();
    (chars.get(at + 1 + hashes) == Some(&'"')).then(|| format!("\"{}", "#".repeat(hashes)))
}

fn end_of_string(chars: &[char], mut at: usize) -> usize {
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// The position after a character literal, or after the tick of a lifetime.
fn end_of_char(chars: &[char], at: usize) -> usize {
    match chars.get(at + 1) {
        Some('\\') => end(chars, at + 3, "'") + 1,
        Some(_) if chars.get(at + 2) == Some(&'\'') => at + 3,
        _ => at + 1,
    }
}
