//! The manifests: valid for Kubernetes, consistent with each other, and true of the program.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use preheat::config::{FleetShares, Overrides, Settings, reference};
use preheat::domain::share::Shares;
use serde_json::Value;

use super::{path, read};
use crate::support::program::Preheat;
use crate::support::{self, Database, LONG, document, eventually, http, preheat, python, skipped};

const FOLDER: &str = "deploy/kubernetes";
/// What the kustomization leaves out on purpose: a Job is run, not kept.
const APART: &str = "post-upgrade-job.yaml";

/// The folders of manifests, each with a kustomization.
fn folders() -> [String; 3] {
    ["", "/monitoring", "/fixed"].map(|folder| format!("{FOLDER}{folder}"))
}

/// The manifests, by their file's path in the repository.
fn files() -> Vec<String> {
    let mut found = Vec::new();
    for folder in folders() {
        for entry in fs::read_dir(path(&folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if std::path::Path::new(&name).extension().is_some_and(|kind| kind == "yaml") {
                found.push(format!("{folder}/{name}"));
            }
        }
    }
    found.sort();
    found
}

fn documents_of(file: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&read(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn is_kustomization(file: &str) -> bool {
    file.ends_with("/kustomization.yaml")
}

/// All documents except the kustomizations, by kind and name.
fn manifests() -> BTreeMap<(String, String), Value> {
    let documents = files().into_iter().filter(|file| !is_kustomization(file));
    let documents = documents.flat_map(|file| documents_of(&file));
    let named = documents.map(|document| {
        let name = [&document["kind"], &document["metadata"]["name"]];
        (name.map(|text| text.as_str().unwrap().to_owned()).into(), document)
    });
    named.collect()
}

fn manifest(kind: &str, name: &str) -> Value {
    manifests().remove(&(kind.to_owned(), name.to_owned())).unwrap()
}

/// The pods' templates: the worker's and the warming job's.
fn pods() -> [Value; 2] {
    [("Deployment", "preheat"), ("Job", "preheat-warm")]
        .map(|(kind, name)| manifest(kind, name)["spec"]["template"].clone())
}

fn container(pod: &Value) -> &Value {
    let containers = pod["spec"]["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 1);
    &containers[0]
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("{value} is no list"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

#[test]
fn each_manifest_is_valid_for_the_oldest_and_the_newest_kubernetes() {
    let validate = |files: &[PathBuf]| -> Option<Output> {
        let python = python::program("kubernetes-validate")?.with_file_name("python");
        let script = path("tests/python/manifests.py");
        Some(Command::new(python).arg(script).args(files).output().unwrap())
    };
    let manifests = files().into_iter().filter(|file| !is_kustomization(file));
    let manifests: Vec<PathBuf> = manifests.map(|file| path(&file)).collect();
    let Some(output) = validate(&manifests) else { return };
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));

    let folder = tempfile::tempdir().unwrap();
    for (file, right, wrong) in [
        ("deployment.yaml", "replicas: 3", "replicas: three"),
        ("deployment.yaml", "enableServiceLinks", "enableServiceLink"),
        ("service.yaml", "publishNotReadyAddresses", "publishUnreadyAddresses"),
        ("monitoring/podmonitor.yaml", "interval: 15s", "interval: often"),
        ("monitoring/prometheusrule.yaml", "expr:", "expression:"),
    ] {
        let right_text = read(&format!("{FOLDER}/{file}"));
        assert!(right_text.contains(right), "{file}");
        let copy = folder.path().join("wrong.yaml");
        fs::write(&copy, right_text.replacen(right, wrong, 1)).unwrap();
        let output = validate(&[copy]).unwrap();
        assert_eq!(output.status.code(), Some(1), "{wrong} was not found: {output:?}");
    }
}

#[test]
fn the_kustomizations_name_every_manifest() {
    for folder in folders() {
        let kustomization = documents_of(&format!("{folder}/kustomization.yaml")).remove(0);
        let named: BTreeSet<&str> = list(&kustomization["resources"]).iter().map(text).collect();
        let all = files();
        let there = all.iter().filter_map(|file| file.strip_prefix(&format!("{folder}/")));
        let there = there.filter(|file| !file.contains('/') && *file != "kustomization.yaml");
        let there: BTreeSet<&str> = there.filter(|file| *file != APART).collect();
        assert_eq!(named, there, "{folder}");
    }
}

#[test]
fn both_pods_run_the_image_of_this_version_from_the_same_registry() {
    let kustomization = documents_of(&format!("{FOLDER}/kustomization.yaml")).remove(0);
    let image = &kustomization["images"][0];
    let [worker, job] = pods();
    assert_eq!(container(&worker)["image"], image["name"]);
    let named = format!("{}:{}", text(&image["newName"]), text(&image["newTag"]));
    assert_eq!(container(&job)["image"], named);
    assert_eq!(image["newTag"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn a_pod_has_no_right_that_it_does_not_need() {
    for pod in pods() {
        let spec = &pod["spec"];
        assert_eq!(spec["automountServiceAccountToken"], false);
        // Otherwise the cluster would inject `PREHEAT_…` variables for the Service.
        assert_eq!(spec["enableServiceLinks"], false);
        let user = &spec["securityContext"];
        assert_eq!(user["runAsNonRoot"], true);
        assert_eq!(user["seccompProfile"]["type"], "RuntimeDefault");
        let user = format!("USER {}:{}\n", user["runAsUser"], user["runAsGroup"]);
        assert!(read("Dockerfile").contains(&user), "{user}");
        let process = &container(&pod)["securityContext"];
        assert_eq!(process["allowPrivilegeEscalation"], false);
        assert_eq!(process["readOnlyRootFilesystem"], true);
        assert_eq!(process["capabilities"], serde_json::json!({ "drop": ["ALL"] }));
        let resources = &container(&pod)["resources"];
        assert!(resources["limits"]["cpu"].is_null(), "a limit of the CPU only makes it late");
        // The worker's peak is measured: see `hazard_20_the_largest_tenant_…`.
        let most = text(&resources["limits"]["memory"]).strip_suffix("Mi").unwrap();
        let most: u64 = most.parse().unwrap();
        assert!(most >= support::documented_peak_mib() * 3 / 2, "{most}");
    }
}

#[test]
fn the_worker_is_replaced_and_stopped_as_it_needs() {
    let deployment = manifest("Deployment", "preheat");
    assert_eq!(deployment["spec"]["replicas"], 3);
    let strategy = &deployment["spec"]["strategy"];
    assert_eq!(strategy["type"], "RollingUpdate");
    assert_eq!(
        strategy["rollingUpdate"],
        serde_json::json!({ "maxSurge": 1, "maxUnavailable": 0 })
    );
    let spread = &deployment["spec"]["template"]["spec"]["topologySpreadConstraints"][0];
    assert_eq!(spread["labelSelector"], deployment["spec"]["selector"]);
    // A node without room must not keep a pod from starting.
    assert_eq!(spread["whenUnsatisfiable"], "ScheduleAnyway");
    let settings = Settings::builtin();
    let [worker, _] = pods();
    let grace = worker["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(grace >= settings.runner.drain.as_secs() + 5);
    let budget = manifest("PodDisruptionBudget", "preheat");
    assert_eq!(budget["spec"]["maxUnavailable"], 1);
    assert!(budget["spec"]["minAvailable"].is_null());
    // A cold cache must not take the dashboard away.
    assert_eq!(manifest("Service", "preheat")["spec"]["publishNotReadyAddresses"], true);
}

#[test]
fn the_statefulset_is_the_deployment_with_fixed_parts() {
    let (stateful, deployment) =
        (manifest("StatefulSet", "preheat"), manifest("Deployment", "preheat"));
    let replicas = stateful["spec"]["replicas"].as_u64().unwrap();
    assert_eq!(stateful["spec"]["selector"], deployment["spec"]["selector"]);
    let mut template = stateful["spec"]["template"].clone();
    let env = template["spec"]["containers"][0]["env"].as_array_mut().unwrap();
    let own = env.extract_if(.., |one| {
        let name = text(&one["name"]);
        name == "POD_INDEX" || name.starts_with("PREHEAT_FLEET__")
    });
    let own: BTreeMap<String, Value> =
        own.map(|one| (text(&one["name"]).to_owned(), one)).collect();
    assert_eq!(template, deployment["spec"]["template"]);
    let share = text(&own["PREHEAT_FLEET__SHARE"]["value"]);
    assert_eq!(share, format!("$(POD_INDEX)/{replicas}"));
    assert_eq!(own["PREHEAT_FLEET__ENABLED"]["value"], "false");
    // Each of these settings is right for the program.
    let file = manifest("ConfigMap", "preheat-settings");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("preheat.toml");
    fs::write(&path, text(&file["data"]["preheat.toml"])).unwrap();
    for index in 0..replicas {
        let variables = [
            ("PREHEAT_FLEET__SHARE", share.replace("$(POD_INDEX)", &index.to_string())),
            ("PREHEAT_FLEET__ENABLED", "false".to_owned()),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value));
        let overrides = Overrides { config: Some(path.clone()), ..Overrides::default() };
        let settings = Settings::load(&overrides, variables).unwrap();
        let part = Shares::part(u8::try_from(index).unwrap(), 3).unwrap();
        assert_eq!(settings.fleet.shares, FleetShares::Fixed(part));
    }
}

#[test]
fn with_the_component_the_statefulset_takes_the_place_of_the_deployment() {
    let line = "# components: [fixed]";
    let kustomization = read(&format!("{FOLDER}/kustomization.yaml"));
    assert!(kustomization.contains(line));
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("fixed")).unwrap();
    for file in files() {
        let name = file.strip_prefix(&format!("{FOLDER}/")).unwrap();
        if !name.starts_with("monitoring/") {
            fs::write(folder.path().join(name), read(&file)).unwrap();
        }
    }
    let rendered = || {
        let output = Command::new("kubectl").arg("kustomize").arg(folder.path()).output().ok()?;
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        let workers = documents.into_iter().filter(|one| !one["spec"]["template"].is_null());
        Some(workers.collect::<Vec<_>>())
    };
    let Some(without) = rendered() else { return skipped("`kubectl` is not installed") };
    let used = kustomization.replace(line, line.strip_prefix("# ").unwrap());
    fs::write(folder.path().join("kustomization.yaml"), used).unwrap();
    let with = rendered().unwrap();
    let image = container(&pods()[1])["image"].clone();
    for (workers, kind) in [(without, "Deployment"), (with, "StatefulSet")] {
        assert_eq!(workers.len(), 1, "{workers:?}");
        assert_eq!(workers[0]["kind"], kind);
        assert_eq!(container(&workers[0]["spec"]["template"])["image"], image);
    }
}

#[test]
fn selectors_find_the_pods_and_ports_have_their_names() {
    let [worker, job] = pods();
    let labels = &worker["metadata"]["labels"];
    let finds = |selector: &Value, labels: &Value| {
        let wanted = selector.as_object().unwrap();
        assert!(!wanted.is_empty());
        wanted.iter().all(|(name, value)| labels[name] == *value)
    };
    let deployment = manifest("Deployment", "preheat");
    let service = manifest("Service", "preheat");
    let budget = manifest("PodDisruptionBudget", "preheat");
    let monitor = manifest("PodMonitor", "preheat");
    for selector in [
        &deployment["spec"]["selector"]["matchLabels"],
        &service["spec"]["selector"],
        &budget["spec"]["selector"]["matchLabels"],
        &monitor["spec"]["selector"]["matchLabels"],
    ] {
        assert!(finds(selector, labels), "{selector}");
        assert!(!finds(selector, &job["metadata"]["labels"]), "{selector} finds the job's pod");
    }
    let policy = manifest("NetworkPolicy", "preheat");
    for pod in [&worker, &job] {
        let labels = &pod["metadata"]["labels"];
        assert!(finds(&policy["spec"]["podSelector"]["matchLabels"], labels));
    }
    // The rules select `job="preheat"`.
    assert_eq!(labels[text(&monitor["spec"]["jobLabel"])], "preheat");

    let ports = list(&container(&worker)["ports"]);
    let port = |name: &Value| {
        let port = ports.iter().find(|port| port["name"] == *name);
        port.unwrap_or_else(|| panic!("no port {name}"))["containerPort"].clone()
    };
    let of_setting = |variable: &str| {
        let env = list(&container(&worker)["env"]);
        let address = env.iter().find(|one| one["name"] == variable).unwrap();
        text(&address["value"]).rsplit_once(':').unwrap().1.parse::<u64>().unwrap()
    };
    assert_eq!(port(&"http".into()), of_setting("PREHEAT_HTTP__LISTEN"));
    assert_eq!(port(&"probes".into()), of_setting("PREHEAT_HTTP__PROBES"));
    let service = &service["spec"]["ports"][0];
    assert_eq!(port(&service["targetPort"]), service["port"]);
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        assert_eq!(container(&worker)[probe]["httpGet"]["port"], "probes");
    }
    port(&monitor["spec"]["podMetricsEndpoints"][0]["port"]);
    port(&policy["spec"]["ingress"][0]["ports"][0]["port"]);
}

#[test]
fn docs_the_prometheusrule_has_the_rules_of_prometheus() {
    let rules = read("deploy/prometheus/rules.yml");
    let rules = &rules[rules.find("groups:").unwrap()..];
    let rules: String = rules
        .lines()
        .map(|line| if line.is_empty() { "\n".to_owned() } else { format!("  {line}\n") })
        .collect();
    let manifest = format!(
        "# Made from deploy/prometheus/rules.yml: PREHEAT_BLESS=1 cargo test --test it docs_\n\
         apiVersion: monitoring.coreos.com/v1\n\
         kind: PrometheusRule\n\
         metadata:\n  name: preheat\n  labels: {{ app.kubernetes.io/name: preheat }}\n\
         spec:\n{rules}"
    );
    document::compare(&format!("{FOLDER}/monitoring/prometheusrule.yaml"), &manifest);
    let theirs = &documents_of("deploy/prometheus/rules.yml")[0]["groups"];
    let ours: Value = serde_saphyr::from_str(&manifest).unwrap();
    assert_eq!(ours["spec"]["groups"], *theirs);
}

/// The `ConfigMaps` as Kubernetes mounts them: links into a folder that is exchanged as a whole.
fn mounts(pod: &Value) -> BTreeMap<PathBuf, (tempfile::TempDir, String)> {
    let volumes = list(&pod["spec"]["volumes"]);
    let mounts = list(&container(pod)["volumeMounts"]).iter().map(|mount| {
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).unwrap();
        let name = text(&volume["configMap"]["name"]);
        let folder = tempfile::Builder::new().prefix("preheat-it-").tempdir().unwrap();
        let version = "..2026_01_01";
        fs::create_dir(folder.path().join(version)).unwrap();
        symlink(version, folder.path().join("..data")).unwrap();
        let config = manifest("ConfigMap", name);
        for (file, content) in config["data"].as_object().unwrap() {
            fs::write(folder.path().join(version).join(file), text(content)).unwrap();
            symlink(format!("..data/{file}"), folder.path().join(file)).unwrap();
        }
        (PathBuf::from(text(&mount["mountPath"])), (folder, name.to_owned()))
    });
    mounts.collect()
}

fn is_setting(variable: &str) -> bool {
    ["DATABASE_URL", "REDIS_URL"].contains(&variable)
        || reference().iter().any(|setting| setting.variable() == variable)
}

/// The container's program with its arguments and its environment. The values of the Secret are those of the
/// test's servers, and its paths lead into `mounts`.
fn started_like(
    pod: &Value,
    mounts: &BTreeMap<PathBuf, (tempfile::TempDir, String)>,
    secret: &BTreeMap<&str, String>,
) -> Preheat {
    let container = container(pod);
    let mut program = preheat(list(&container["args"]).iter().map(text));
    for variable in list(&container["env"]) {
        let name = text(&variable["name"]);
        let from_secret = &variable["valueFrom"]["secretKeyRef"];
        let value = match (&variable["value"], name) {
            // Ports of its own.
            (_, "PREHEAT_HTTP__LISTEN") => continue,
            (Value::Null, _) => {
                assert_eq!(from_secret["key"], name);
                assert_eq!(from_secret["name"], "preheat");
                assert!(is_setting(name), "{name} is no setting");
                let Some(value) = secret.get(name) else {
                    assert_eq!(from_secret["optional"], true, "{name}");
                    continue;
                };
                value.clone()
            }
            (_, "PREHEAT_HTTP__PROBES") => secret[name].clone(),
            (value, _) => {
                let value = Path::new(text(value));
                let place = mounts.iter().find_map(|(path, (folder, _))| {
                    Some(folder.path().join(value.strip_prefix(path).ok()?))
                });
                place.unwrap_or_else(|| value.to_owned()).to_str().unwrap().to_owned()
            }
        };
        program = program.env(name, value);
    }
    program
}

#[tokio::test]
async fn the_containers_work_with_the_arguments_settings_and_paths_of_their_manifests() {
    let (database, redis): (Database, _) = (support::clinic().await, support::redis());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let probes = listener.local_addr().unwrap();
    drop(listener);
    let secret = BTreeMap::from([
        ("DATABASE_URL", database.url()),
        ("REDIS_URL", redis.url()),
        ("PREHEAT_HTTP__TOKEN", "a-token".to_owned()),
        ("PREHEAT_HTTP__PROBES", probes.to_string()),
    ]);
    let [worker, job] = pods();
    let (worker_mounts, job_mounts) = (mounts(&worker), mounts(&job));

    let warmed = started_like(&job, &job_mounts, &secret).run().await.expect_code(0);
    assert_eq!(warmed.json()["outcome"], "ok", "{warmed:?}");

    let running = started_like(&worker, &worker_mounts, &secret).start();
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let path = text(&container(&worker)[probe]["httpGet"]["path"]);
        eventually(&format!("{path} is 200:\n{}", running.stderr()), LONG, async || {
            http::get(probes, path).await.is_ok_and(|answer| answer.status == 200)
        })
        .await;
    }
    let monitor = manifest("PodMonitor", "preheat");
    // It is ready as a stand-by, and warms once it has taken its shares.
    let metrics = text(&monitor["spec"]["podMetricsEndpoints"][0]["path"]);
    eventually("the worker has warmed", LONG, async || {
        running.get(metrics).await.body.contains("preheat_last_success_timestamp_seconds")
    })
    .await;
    let jobs = running.get("/api/v1/jobs").await.json();
    assert_eq!(jobs["jobs"][0]["name"], "products", "{jobs}");
    assert_eq!(jobs["jobs"][0]["last_run"]["outcome"], "ok", "{jobs}");
}
