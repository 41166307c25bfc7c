//! The systemd unit.

use std::process::Command;

use preheat::config::{Settings, reference};

use super::read;
use crate::support::skipped;

const UNIT: &str = "deploy/systemd/preheat.service";

/// The values of a name in the unit.
fn values<'u>(unit: &'u str, name: &str) -> Vec<&'u str> {
    let lines = unit.lines().filter_map(|line| line.split_once('='));
    lines.filter(|(found, _)| *found == name).map(|(_, value)| value).collect()
}

#[test]
fn the_unit_starts_the_worker_and_gives_it_time_to_drain() {
    let unit = read(UNIT);
    assert_eq!(values(&unit, "ExecStart"), ["/usr/local/bin/preheat serve"]);
    let stop: u64 = values(&unit, "TimeoutStopSec")[0].parse().unwrap();
    assert!(stop > Settings::builtin().runner.drain.as_secs());
    let fixed = ["PREHEAT_CONFIG", "PREHEAT_JOBS", "DATABASE_URL", "REDIS_URL"];
    let known: Vec<String> = reference().iter().map(preheat::config::Setting::variable).collect();
    let words = unit.split(|c: char| !(c.is_ascii_uppercase() || c == '_'));
    let variables = words.filter(|word| word.starts_with("PREHEAT_") || word.ends_with("_URL"));
    let variables: Vec<&str> = variables.collect();
    assert!(variables.len() >= 4, "{variables:?}");
    for variable in variables {
        let exists = fixed.contains(&variable) || known.iter().any(|known| known == variable);
        assert!(exists, "{variable} is no setting");
    }
}

#[test]
fn systemd_accepts_the_unit_and_calls_it_well_protected() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("preheat.service");
    let unit = read(UNIT).replace("/usr/local/bin/preheat", env!("CARGO_BIN_EXE_preheat"));
    std::fs::write(&file, unit).unwrap();
    let analyze = |arguments: &[&str]| {
        Command::new("systemd-analyze").args(arguments).arg(&file).env("LC_ALL", "C").output()
    };
    let Ok(verified) = analyze(&["verify", "--man=no"]) else {
        return skipped("systemd-analyze is not installed: the systemd unit is not verified");
    };
    let said = String::from_utf8_lossy(&verified.stderr);
    // Other units of the machine may have defects of their own.
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("preheat")).collect();
    assert!(verified.status.success() && ours.is_empty(), "{said}");
    // From 0.0, nothing is open to it, to 10.0; systemd calls 2.0 and less "OK".
    let security = analyze(&["security", "--offline=yes", "--threshold=20"]).unwrap();
    let table = String::from_utf8_lossy(&security.stdout);
    assert!(security.status.success(), "{table}{}", String::from_utf8_lossy(&security.stderr));
}
