//! A worker keeps to its `OpenAPI` document, whatever is sent.

use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;

use crate::support::python;
use crate::support::shop::{Shop, TOKEN, items};

/// What a client that was generated from the document relies on, and no 5xx.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
    response_headers_conformance,response_schema_conformance";

#[tokio::test]
async fn schemathesis_finds_nothing_undeclared() {
    let Some(program) = python::program("st") else { return };
    let shop = Shop::open(6).await;
    let worker = shop.serve().job("items", &items("")).start();
    worker.answers("/readyz", 200).await;
    let url = format!("http://{}", worker.address());
    let folder = tempfile::tempdir().unwrap();
    let run = Command::new(program)
        .arg("run")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json"))
        .args(["--url", &url, "--header", &format!("Authorization: Bearer {TOKEN}")])
        .args(["--checks", CHECKS, "--phases", "examples,coverage,fuzzing"])
        // An answer without end is no case for it.
        .args(["--exclude-path", "/api/v1/events"])
        .args(["--seed", "1", "--max-examples", "30", "--no-color"])
        .current_dir(&folder)
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{said}{}", String::from_utf8_lossy(&run.stderr));
    assert!(!said.contains(" 0 selected"), "{said}");
    worker.answers("/healthz", 200).await;
}
