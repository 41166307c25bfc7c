//! The image, the compose file and the settings file that come with the program. The tests use no container
//! engine; they check what can be wrong without one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use preheat::config::{Overrides, Settings, reference};

use crate::support::document;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn read(file: &str) -> String {
    std::fs::read_to_string(Path::new(ROOT).join(file)).unwrap()
}

/// What the Dockerfile copies from the repository.
fn copied() -> Vec<String> {
    read("Dockerfile")
        .lines()
        .filter_map(|line| line.strip_prefix("COPY "))
        .filter(|line| !line.starts_with("--from="))
        .flat_map(|line| {
            let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
            words[..words.len() - 1].to_vec()
        })
        .collect()
}

#[test]
fn everything_that_the_image_copies_exists_and_is_not_ignored() {
    let kept: Vec<String> = read(".dockerignore")
        .lines()
        .filter_map(|line| line.strip_prefix('!'))
        .map(str::to_owned)
        .collect();
    let copied = copied();
    assert!(copied.len() > 5, "{copied:?}");
    for path in &copied {
        assert!(Path::new(ROOT).join(path).exists(), "{path} is copied but does not exist");
        assert!(kept.contains(path), "{path} is copied but .dockerignore leaves it out");
    }
    for path in &kept {
        assert!(copied.contains(path), "{path} is sent to the engine but never copied");
    }
}

#[test]
fn everything_that_the_program_includes_is_in_the_image_before_it_is_built() {
    let copied = copied();
    let mut included = Vec::new();
    for file in sources(&Path::new(ROOT).join("src")) {
        if file.ends_with("cli/demo.rs") {
            continue; // the image is built without it
        }
        let text = std::fs::read_to_string(&file).unwrap();
        for include in text.split("include_str!(\"").skip(1) {
            let path = file.parent().unwrap().join(include.split('"').next().unwrap());
            included.push(path.canonicalize().unwrap_or_else(|_| panic!("{}", path.display())));
        }
    }
    assert!(!included.is_empty());
    let root = Path::new(ROOT).canonicalize().unwrap();
    for path in included {
        let path = path.strip_prefix(&root).unwrap();
        let is_copied = copied.iter().any(|copied| path.starts_with(copied));
        assert!(is_copied, "{} is included but not copied", path.display());
    }
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let found = entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] });
    found.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

#[test]
fn the_image_has_no_code_that_starts_servers() {
    const BUILT_WITH: &str = "--no-default-features --features otel";
    let dockerfile = read("Dockerfile");
    let builds: Vec<_> = dockerfile.lines().filter(|line| line.contains("cargo build")).collect();
    assert!(!builds.is_empty());
    assert!(builds.iter().all(|build| build.contains(BUILT_WITH)), "{builds:?}");

    let crates = |features: &[&str]| {
        let tree = ["tree", "--locked", "--offline", "--package", "preheat"];
        let output = Command::new(env!("CARGO"))
            .args(tree)
            .args(["--edges", "normal", "--prefix", "none", "--format", "{lib}"])
            .args(features)
            .current_dir(ROOT)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let names = String::from_utf8(output.stdout).unwrap();
        names.lines().map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let features: Vec<&str> = BUILT_WITH.split(' ').collect();
    let (all, image) = (crates(&[]), crates(&features));
    assert!(image.contains("redis") && image.contains("opentelemetry_sdk"), "{image:?}");
    assert!(image.is_subset(&all), "{image:?}");
    for name in ["preheat_sandbox", "tempfile"] {
        assert!(all.contains(name) && !image.contains(name), "{name}");
    }
}

#[test]
fn the_settings_of_the_image_name_settings_that_exist() {
    let dockerfile = read("Dockerfile");
    let compose = read("compose.yaml");
    let fixed = ["PREHEAT_CONFIG", "PREHEAT_JOBS", "PREHEAT_TOKEN"];
    let known: Vec<String> = reference().iter().map(preheat::config::Setting::variable).collect();
    let word = |c: char| !(c.is_ascii_uppercase() || c == '_');
    let variables = dockerfile
        .split(word)
        .chain(compose.split(word))
        .filter(|word| word.starts_with("PREHEAT_"));
    let mut count = 0;
    for variable in variables {
        count += 1;
        let exists = fixed.contains(&variable) || known.iter().any(|known| known == variable);
        assert!(exists, "{variable} is no setting");
    }
    assert!(count >= 4, "{count}");
}

#[test]
fn docs_the_settings_file_has_every_setting_with_its_default() {
    let mut lines: Vec<String> = [
        "# The settings of preheat, each with its default; one that is commented out has none.",
        "# The environment goes over this file: PREHEAT_SECTION__KEY, DATABASE_URL, REDIS_URL.",
        "# Made from the code: PREHEAT_BLESS=1 cargo test --test it docs_",
    ]
    .map(str::to_owned)
    .into();
    let mut section = "";
    for setting in reference() {
        let (found, name) = setting.key.split_once('.').unwrap();
        lines.push(String::new());
        if found != section {
            lines.push(format!("[{found}]"));
            section = found;
        }
        let help = setting.help.trim_end_matches('.');
        let allowed = setting.allowed.replace('`', "");
        let comment = wrapped(&format!("{help}. Allowed: {allowed}."), 98);
        lines.extend(comment.iter().map(|line| format!("# {line}")));
        lines.push(match setting.default {
            Some(default) => format!("{name} = {default}"),
            None => format!("# {name} ="),
        });
    }
    let text = lines.join("\n") + "\n";
    document::compare("preheat.toml", &text);

    let overrides =
        Overrides { config: Some(Path::new(ROOT).join("preheat.toml")), ..Overrides::default() };
    let loaded = Settings::load(&overrides, []).unwrap();
    // Where the values come from differs, and nothing else.
    let loaded = Settings { in_use: Vec::new(), ..loaded };
    let builtin = Settings { has_file: true, in_use: Vec::new(), ..Settings::builtin() };
    assert_eq!(format!("{loaded:?}"), format!("{builtin:?}"));
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().unwrap();
        if line.is_empty() {
            line.push_str(word);
        } else if line.len() + 1 + word.len() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[test]
fn the_scripts_are_programs_and_have_no_syntax_error() {
    use std::os::unix::fs::PermissionsExt;
    for script in
        ["scripts/demo", "scripts/test", "scripts/bench", "scripts/bench-changes", ".ci/run"]
    {
        let path = Path::new(ROOT).join(script);
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o111, 0o111, "{script} cannot be run");
    }
    for script in [
        "scripts/demo",
        "scripts/test",
        "scripts/bench",
        "scripts/bench-changes",
        "scripts/lib/setup.sh",
        "scripts/lib/image.sh",
    ] {
        let checked = Command::new("bash").arg("-n").arg(Path::new(ROOT).join(script)).status();
        assert!(checked.unwrap().success(), "{script}");
    }
}
