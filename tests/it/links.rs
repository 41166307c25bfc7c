//! The links in the documents lead to existing places.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn docs_link_to_files_and_headings_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let documents = documents(root);
    assert!(documents.len() > 10, "the documents are not where they are looked for");
    let broken: Vec<String> = documents
        .iter()
        .flat_map(|path| {
            let text = fs::read_to_string(path).unwrap();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            let broken = links(&text).into_iter().filter(|link| !leads_somewhere(path, link));
            broken.map(|link| format!("{name}: {link}")).collect::<Vec<_>>()
        })
        .collect();
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn a_link_that_leads_nowhere_is_found() {
    let text =
        "See [a](b.md#c-d), `[no](code.md)` and [e](https://example.org).\n```\n[f](g)\n```\n";
    assert_eq!(links(text), ["b.md#c-d"]);
    let headings = headings("# One, two!\n## `a_b` and c\n```\n# no\n```\n## One, two!\n");
    assert_eq!(headings.into_iter().collect::<Vec<_>>(), ["a_b-and-c", "one-two", "one-two-1"]);
}

/// The repository's documents: those at its root, and those in folders for readers.
fn documents(root: &Path) -> Vec<PathBuf> {
    let folders = [".", "docs", "jobs", "demo", "migrations", "deploy", "clients", "examples"];
    let files = folders.iter().filter_map(|folder| fs::read_dir(root.join(folder)).ok()).flatten();
    let files = files.map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|ending| ending == "md")).collect()
}

/// The links of a text within the repository.
fn links(text: &str) -> Vec<String> {
    let prose = prose(text);
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    let targets = targets.map(|(target, _)| target.to_owned());
    targets.filter(|target| !target.contains("://") && !target.starts_with("mailto:")).collect()
}

/// A text without its code.
fn prose(text: &str) -> String {
    let mut prose = String::new();
    let mut in_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        } else if !in_code {
            prose.extend(line.split('`').step_by(2));
            prose.push('\n');
        }
    }
    prose
}

fn leads_somewhere(from: &Path, link: &str) -> bool {
    let (file, heading) = link.split_once('#').map_or((link, None), |(file, at)| (file, Some(at)));
    let path = match file {
        "" => from.to_owned(),
        file => from.parent().unwrap().join(file),
    };
    match heading {
        Some(heading) => {
            fs::read_to_string(&path).is_ok_and(|text| headings(&text).contains(heading))
        }
        None => path.exists(),
    }
}

/// The anchors of a text's headings, as code hosts generate them: lower case, without symbols,
/// dashes for spaces.
fn headings(text: &str) -> BTreeSet<String> {
    let mut in_code = false;
    let mut found = BTreeSet::new();
    for line in text.lines() {
        in_code ^= line.trim_start().starts_with("```");
        let title = line.trim_start_matches('#');
        if in_code || title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let kept = title.trim().to_lowercase();
        let kept = kept.chars().filter(|char| char.is_alphanumeric() || " -_".contains(*char));
        let anchor = kept.collect::<String>().replace(' ', "-");
        let mut number = 0;
        let mut unique = anchor.clone();
        while !found.insert(unique.clone()) {
            number += 1;
            unique = format!("{anchor}-{number}");
        }
    }
    found
}
