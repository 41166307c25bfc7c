//! Compiles generated TypeScript, and runs it in Node.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::node::Node;

/// A folder with generated builders, beside the types of `preheat-client`.
pub(super) struct Compiled {
    folder: tempfile::TempDir,
}

/// The strictest settings that an application may have.
const SETTINGS: &str = r#"{
  "compilerOptions": {
    "target": "es2022", "lib": ["es2022", "dom"], "types": [], "module": "nodenext", "strict": true,
    "noUnusedLocals": true, "noUnusedParameters": true, "noImplicitReturns": true,
    "noUncheckedIndexedAccess": true, "exactOptionalPropertyTypes": true, "noPropertyAccessFromIndexSignature": true,
    "verbatimModuleSyntax": true, "isolatedModules": true, "isolatedDeclarations": true, "declaration": true
  },
  "include": ["*.ts"]
}"#;

/// The client's types of keys.
const CLIENT: &str = include_str!("../../../../clients/typescript/src/key.ts");

/// Calls builders, and prints what each returns or why it refuses.
const RUNNER: &str = r#"
import { readFileSync } from "node:fs";
import { keys } from "./keys.js";
// The JSON of the calls cannot hold half a character.
const half = (value) => (value === "half" ? "\ud83d" : value);
for (const [name, ...values] of JSON.parse(readFileSync(process.argv[2], "utf8"))) {
  try {
    console.log(JSON.stringify(keys[name](...values.map(half))));
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    console.log(JSON.stringify({ refused: error.message }));
  }
}
"#;

impl Compiled {
    /// Compiles the builders together with `uses`, a file of an application that uses them; `None` without Node.
    pub(super) fn new(builders: &str, uses: &str) -> Option<Self> {
        let node = Node::find_in("tests/parity", "generated TypeScript is not compiled")?;
        let folder = tempfile::tempdir().unwrap();
        let client = folder.path().join("node_modules/preheat-client");
        fs::create_dir_all(&client).unwrap();
        fs::write(client.join("index.ts"), CLIENT).unwrap();
        let package = json!({ "name": "preheat-client", "type": "module", "types": "./index.ts" });
        fs::write(client.join("package.json"), package.to_string()).unwrap();
        let files = [
            ("package.json", r#"{ "type": "module" }"#),
            ("tsconfig.json", SETTINGS),
            ("keys.ts", builders),
            ("uses.ts", uses),
            ("run.mjs", RUNNER),
        ];
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let compiler = node.folder().join("node_modules/typescript/bin/tsc");
        let output =
            Command::new("node").arg(compiler).arg("-p").arg(folder.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}\n{builders}");
        Some(Self { folder })
    }

    /// What the builders return for these names and arguments.
    pub(super) fn run(&self, calls: &Value) -> Vec<Value> {
        let file = self.folder.path().join("calls.json");
        fs::write(&file, calls.to_string()).unwrap();
        let mut command = Command::new("node");
        command.arg("run.mjs").arg(&file).current_dir(self.folder.path());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Checks that a text is as `rustfmt` would write it, with its own settings.
pub(super) fn is_formatted(text: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.rs");
    fs::write(&file, text).unwrap();
    let output = Command::new("rustfmt").args(["--check", "--edition", "2024"]).arg(&file).output();
    match output {
        Err(_) => crate::support::skipped(
            "rustfmt is not installed: generated Rust is not compared with its",
        ),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{said}\n{}", Path::new(&file).display());
        }
    }
}
