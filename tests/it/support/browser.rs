//! A real browser: Chromium, driven through Node by `tests/browser/driver.mjs`.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::node::Node;

/// A browser with one window. It ends when it is dropped.
pub(crate) struct Browser {
    _driver: Child,
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Browser {
    /// Starts one; without Chromium or Node, reports that and returns `None`.
    pub(crate) async fn start() -> Option<Self> {
        Self::start_with("").await
    }

    /// The same with rules for names of hosts: `MAP name 127.0.0.1`.
    #[expect(clippy::unused_async, reason = "all starts of programs are awaited")]
    pub(crate) async fn start_with(rules: &str) -> Option<Self> {
        let Some(chromium) = chromium() else {
            super::skipped("chromium is not installed: no page is looked at in a browser");
            return None;
        };
        let node = Node::find_in("tests/browser", "no page is looked at in a browser")?;
        let mut driver = Command::new("node")
            .arg("driver.mjs")
            .arg(chromium)
            .arg(rules)
            .current_dir(node.folder())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let commands = driver.stdin.take().unwrap();
        let answers = BufReader::new(driver.stdout.take().unwrap()).lines();
        Some(Self { _driver: driver, commands, answers })
    }

    async fn ask(&mut self, command: Value) -> Value {
        self.commands.write_all(format!("{command}\n").as_bytes()).await.unwrap();
        let answer = self.answers.next_line().await.unwrap();
        let answer = answer.unwrap_or_else(|| panic!("the driver has ended at {command}"));
        let mut answer: Value = serde_json::from_str(&answer).unwrap();
        assert!(answer["error"].is_null(), "{command}: {answer:#}");
        answer["value"].take()
    }

    /// Opens a page in a new window; answers its status.
    pub(crate) async fn open(&mut self, url: &str) -> u64 {
        self.open_as(url, &Window::default()).await
    }

    pub(crate) async fn open_as(&mut self, url: &str, window: &Window) -> u64 {
        let Window { scheme, width, javascript } = window;
        let status = self
            .ask(json!({
                "command": "open",
                "url": url,
                "scheme": scheme,
                "width": width,
                "javascript": javascript,
            }))
            .await;
        status.as_u64().unwrap()
    }

    /// Opens a page in the same window; answers its status.
    pub(crate) async fn go(&mut self, url: &str) -> u64 {
        self.ask(json!({ "command": "go", "url": url })).await.as_u64().unwrap()
    }

    pub(crate) async fn text(&mut self, selector: &str) -> String {
        let text = self.ask(json!({ "command": "text", "selector": selector })).await;
        text.as_str().unwrap().to_owned()
    }

    pub(crate) async fn count(&mut self, selector: &str) -> u64 {
        self.ask(json!({ "command": "count", "selector": selector })).await.as_u64().unwrap()
    }

    pub(crate) async fn click(&mut self, selector: &str) {
        self.ask(json!({ "command": "click", "selector": selector })).await;
    }

    pub(crate) async fn fill(&mut self, selector: &str, text: &str) {
        self.ask(json!({ "command": "fill", "selector": selector, "text": text })).await;
    }

    pub(crate) async fn press(&mut self, key: &str) {
        self.ask(json!({ "command": "press", "key": key })).await;
    }

    pub(crate) async fn url(&mut self) -> String {
        self.ask(json!({ "command": "url" })).await.as_str().unwrap().to_owned()
    }

    /// The value of an expression in the page.
    pub(crate) async fn value(&mut self, js: &str) -> Value {
        self.ask(json!({ "command": "value", "js": js })).await
    }

    /// Waits until an expression in the page is true.
    pub(crate) async fn until(&mut self, js: &str) {
        self.ask(json!({ "command": "until", "js": js })).await;
    }

    /// Waits until an element shows that text.
    pub(crate) async fn shows(&mut self, selector: &str, text: &str) {
        self.ask(json!({ "command": "shows", "selector": selector, "text": text })).await;
    }

    /// Waits until the page says that word about its updates: `live`, `reconnecting`, `paused`.
    pub(crate) async fn is(&mut self, word: &str) {
        self.until(&format!("document.documentElement.dataset.state === {word:?}")).await;
    }

    /// Makes the window as wide.
    pub(crate) async fn width(&mut self, width: u32) {
        self.ask(json!({ "command": "width", "width": width })).await;
    }

    pub(crate) async fn scheme(&mut self, scheme: &str) {
        self.ask(json!({ "command": "scheme", "scheme": scheme })).await;
    }

    /// What the browser complained about since the last time.
    pub(crate) async fn problems(&mut self) -> Vec<String> {
        serde_json::from_value(self.ask(json!({ "command": "problems" })).await).unwrap()
    }

    /// What axe-core finds serious.
    pub(crate) async fn barriers(&mut self) -> Vec<String> {
        serde_json::from_value(self.ask(json!({ "command": "axe" })).await).unwrap()
    }

    /// Keeps a picture of the whole page in `target/pages`.
    pub(crate) async fn picture(&mut self, name: &str) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/pages");
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(format!("{name}.png"));
        self.ask(json!({ "command": "picture", "path": path })).await;
    }
}

/// How a window is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) scheme: &'static str,
    pub(crate) width: u32,
    pub(crate) javascript: bool,
}

impl Default for Window {
    fn default() -> Self {
        Self { scheme: "light", width: 1280, javascript: true }
    }
}

/// Where Chromium is.
fn chromium() -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let mut paths =
        std::env::split_paths(&folders).flat_map(|folder| names.map(|name| folder.join(name)));
    paths.find(|path| path.exists())
}
