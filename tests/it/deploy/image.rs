//! The image that `scripts/test` builds with buildah. Its program runs here as a container engine would start it.

use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::Value;
use tokio::process::Command;

use crate::support::program::Preheat;
use crate::support::{self, preheat, skipped};

/// What the process of a container may not do in a cluster that restricts pods, in the file system at `$1`: the root
/// is read-only, the user is `$2`, its group is `$3`, and no program can get more rights. `$4` is the working folder.
const CONTAINER: &str = r#"
root=$1 user=$2 group=$3 folder=$4
shift 4
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount --rbind /proc "$root/proc"
mount --rbind /dev "$root/dev"
exec chroot "$root" setpriv --reuid "$user" --regid "$group" --clear-groups --no-new-privs \
  --inh-caps=-all --bounding-set=-all env --chdir="$folder" "$@"
"#;

struct Image {
    root: PathBuf,
    config: Value,
}

impl Image {
    fn find() -> Option<Self> {
        let folder = std::env::var_os("PREHEAT_IMAGE").filter(|folder| !folder.is_empty());
        let Some(folder) = folder.map(PathBuf::from) else {
            skipped(
                "no image was built: `scripts/test` builds it where it can, and says why if it cannot",
            );
            return None;
        };
        let config = std::fs::read_to_string(folder.join("image.json")).unwrap();
        let image: Value = serde_json::from_str(&config).unwrap();
        let config = image["Docker"]["config"].clone();
        Some(Self { root: folder.join("root").canonicalize().unwrap(), config })
    }

    fn words(&self, name: &str) -> Vec<&str> {
        self.config[name].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
    }

    /// The command of its health check.
    fn health(&self) -> Vec<&str> {
        let words = self.config["Healthcheck"]["Test"].as_array().unwrap();
        let words: Vec<&str> = words.iter().map(|word| word.as_str().unwrap()).collect();
        assert_eq!(words[0], "CMD");
        words[1..].to_vec()
    }

    /// A command of the image in a container, with the environment of the image.
    fn run(&self, words: &[&str]) -> Preheat {
        let (user, group) = self.config["User"].as_str().unwrap().split_once(':').unwrap();
        let folder = self.config["WorkingDir"].as_str().unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-euc", CONTAINER, "sh"]).arg(&self.root);
        command.args([user, group, folder]).args(words);
        let mut program = preheat([]);
        let listen = program.address();
        for variable in self.words("Env") {
            let (name, value) = variable.split_once('=').unwrap();
            let value = match name {
                // At the same addresses, with a port of its own.
                "PREHEAT_HTTP__LISTEN" => value.replace("9464", &listen.port().to_string()),
                _ => value.to_owned(),
            };
            program = program.env(name, value);
        }
        program.by(command)
    }
}

#[tokio::test]
async fn the_image_warms_without_any_right_and_stops_when_it_is_told() {
    let Some(image) = Image::find() else { return };
    let (database, redis) = (support::clinic().await, support::redis());
    let start = [image.words("Entrypoint"), image.words("Cmd")].concat();
    assert_eq!(start, ["preheat", "serve"]);
    let worker =
        image.run(&start).database(database.tcp_url()).cache(redis.tcp_url().unwrap()).start();
    worker.answers("/readyz", 200).await;

    let about =
        |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", worker.id())).unwrap();
    let status = about("status");
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().split_whitespace().collect::<Vec<_>>()
    };
    assert_eq!(value("Uid:"), ["65532"; 4]);
    assert_eq!(value("Gid:"), ["65532"; 4]);
    for capabilities in ["CapEff:", "CapPrm:", "CapBnd:"] {
        assert_eq!(value(capabilities), ["0000000000000000"], "{capabilities}");
    }
    assert_eq!(value("NoNewPrivs:"), ["1"]);
    let mounts = about("mountinfo");
    let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap();
    assert!(root.split(' ').nth(5).unwrap().split(',').any(|option| option == "ro"), "{root}");

    let jobs = worker.get("/api/v1/jobs").await.json();
    assert!(jobs["jobs"].as_array().unwrap().len() >= 5, "{jobs}");
    let mut cache = support::redis_connection(&redis).await;
    let keys: Vec<String> =
        redis::cmd("KEYS").arg("services:*").query_async(&mut cache).await.unwrap();
    assert!(!keys.is_empty());

    let health = image.health();
    let listen = format!("0.0.0.0:{}", worker.address().port());
    image.run(&health).env("PREHEAT_HTTP__LISTEN", listen).run().await.expect_code(0);

    assert_eq!(image.config["StopSignal"], "SIGTERM");
    worker.signal(Signal::TERM);
    worker.ended().await.expect_code(0);
    // Nothing listens any more.
    image.run(&health).run().await.expect_code(1);
}

#[tokio::test]
async fn the_image_has_a_user_with_a_group_of_its_number_and_no_sample_servers() {
    let Some(image) = Image::find() else { return };
    let file = |name: &str| std::fs::read_to_string(image.root.join(name)).unwrap();
    assert!(file("etc/passwd").lines().any(|line| line.starts_with("preheat:x:65532:65532:")));
    assert!(file("etc/group").lines().any(|line| line == "preheat:x:65532:"));
    assert_eq!(image.config["ExposedPorts"], serde_json::json!({ "9464/tcp": {} }));
    let version = image.run(&["preheat", "--version"]).run().await.expect_code(0);
    assert_eq!(version.stdout, format!("preheat {}\n", env!("CARGO_PKG_VERSION")));
    image.run(&["preheat", "demo"]).run().await.expect_code(2);
}
