//! Documents that are generated from the code.

use std::path::Path;

/// Fails if the file in the repository differs from `expected`; with `PREHEAT_BLESS` set, writes
/// the file instead.
#[track_caller]
pub(crate) fn compare(file: &str, expected: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    #[expect(clippy::disallowed_methods, reason = "the settings do not concern tests")]
    let bless = std::env::var_os("PREHEAT_BLESS").is_some();
    if bless {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, expected).unwrap();
        return;
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = found.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
    assert!(
        found == expected,
        "{file} is not what the code says; the first difference is {differs:?}.\n\
         hint: PREHEAT_BLESS=1 cargo test --test it docs_"
    );
}
