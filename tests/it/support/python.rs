//! Programs from Python packages, in the virtual environment of the tests.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// The path of a program from `tests/python/requirements.txt`. Installs the packages if it is
/// missing; if that does not work, reports it and returns `None`.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _installing = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join("target/tools/python");
    let path = folder.join("bin").join(name);
    if !path.exists() && !install(&folder, &root.join("tests/python/requirements.txt")) {
        super::skipped(&format!("`{name}` is not installed: Python or its packages are missing"));
        return None;
    }
    assert!(path.exists(), "{} is in no package of the requirements", path.display());
    Some(path)
}

fn install(folder: &Path, requirements: &Path) -> bool {
    let works = |mut command: Command| {
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        quiet.status().is_ok_and(|status| status.success())
    };
    let mut create = Command::new("python3");
    create.args(["-m", "venv"]).arg(folder);
    let mut fill = Command::new(folder.join("bin/pip"));
    fill.args(["install", "--quiet", "--disable-pip-version-check", "-r"]).arg(requirements);
    works(create) && works(fill)
}
