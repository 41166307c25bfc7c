//! Node with the npm packages of a folder, such as `tests/parity`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

/// Node, in the folder of its packages.
pub(crate) struct Node {
    folder: PathBuf,
}

impl Node {
    /// The one in `tests/parity`.
    pub(crate) fn find() -> Option<Self> {
        Self::find_in("tests/parity", "nothing is compared with npm packages")
    }

    /// Installs the folder's packages if they are missing; without Node, reports that with what is not
    /// tested, and returns `None`.
    pub(crate) fn find_in(folder: &str, untested: &str) -> Option<Self> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _installing = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let answers = |program: &str| {
            let command = Command::new(program).arg("--version").stdout(Stdio::null()).status();
            command.is_ok_and(|status| status.success())
        };
        if !answers("node") || !answers("npm") {
            super::skipped(&format!("node and npm are not installed: {untested}"));
            return None;
        }
        let package = std::fs::read_to_string(folder.join("package.json")).unwrap();
        let package: Value = serde_json::from_str(&package).unwrap();
        let mut names = package["dependencies"].as_object().unwrap().keys();
        if !names.all(|name| folder.join("node_modules").join(name).exists()) {
            let arguments = ["install", "--no-package-lock", "--no-audit", "--no-fund"];
            let status = Command::new("npm").args(arguments).current_dir(&folder).status().unwrap();
            assert!(status.success(), "npm could not install the packages of {}", folder.display());
        }
        Some(Self { folder })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs a script of the folder with that input; returns the lines that it printed.
    pub(crate) fn run(&self, script: &str, input: &Value) -> Vec<Value> {
        let file = tempfile::NamedTempFile::new().unwrap();
        serde_json::to_writer(&file, input).unwrap();
        let output = Command::new("node")
            .arg(script)
            .arg(file.path())
            .current_dir(&self.folder)
            .env("TZ", "UTC")
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}
