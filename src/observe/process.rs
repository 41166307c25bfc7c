//! What the operating system counts about this process. It is read from `/proc`, so that other systems than Linux
//! have none of it.

use std::fs;

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

/// This process, at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Process {
    /// Processor time in seconds, in user and system mode.
    pub(super) cpu: f64,
    /// Bytes in RAM.
    pub(super) resident: u64,
    /// Bytes of address space.
    pub(super) virtual_size: u64,
    pub(super) open_files: u64,
    /// How many files may be open; `None` if there is no limit.
    pub(super) max_files: Option<u64>,
    /// The start, as a Unix time in seconds.
    pub(super) started: f64,
}

impl Process {
    /// `None` if the system does not report these figures.
    #[expect(clippy::cast_precision_loss, reason = "ticks are few")]
    pub(super) fn look() -> Option<Self> {
        let stat = Stat::parse(&fs::read_to_string("/proc/self/stat").ok()?)?;
        let booted = booted(&fs::read_to_string("/proc/stat").ok()?)?;
        let open_files = fs::read_dir("/proc/self/fd").ok()?.count() as u64;
        let seconds = |ticks: f64| ticks / clock_ticks_per_second() as f64;
        Some(Self {
            cpu: seconds(stat.ticks),
            resident: stat.resident_pages * page_size() as u64,
            virtual_size: stat.virtual_size,
            // One of them is the folder that was just read.
            open_files: open_files.saturating_sub(1),
            max_files: getrlimit(Resource::Nofile).current,
            started: booted + seconds(stat.started_after_boot),
        })
    }
}

/// The figures of `/proc/self/stat`. Times are in ticks of the clock.
#[derive(Debug, PartialEq)]
struct Stat {
    ticks: f64,
    started_after_boot: f64,
    virtual_size: u64,
    resident_pages: u64,
}

impl Stat {
    /// The fields have numbers in the manual, proc(5). The second is the program's name in parentheses, which
    /// may contain spaces and parentheses itself.
    fn parse(text: &str) -> Option<Self> {
        let (_, after_name) = text.rsplit_once(')')?;
        let fields: Vec<_> = after_name.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).copied();
        let ticks = |number| field(number)?.parse::<f64>().ok();
        Some(Self {
            ticks: ticks(14)? + ticks(15)?,
            started_after_boot: ticks(22)?,
            virtual_size: field(23)?.parse().ok()?,
            resident_pages: field(24)?.parse().ok()?,
        })
    }
}

/// When the machine started, as a Unix time, by `/proc/stat`.
fn booted(text: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_found_behind_a_name_with_parentheses_and_spaces() {
        let text = "42 (a) b (c) S 1 42 42 0 -1 4194560 9 0 0 0 700 31 0 0 20 0 5 0 123456 \
                    99000000 2500 18446744073709551615 1 1";
        let found = Stat::parse(text);
        let expected = Stat {
            ticks: 731.0,
            started_after_boot: 123_456.0,
            virtual_size: 99_000_000,
            resident_pages: 2_500,
        };
        assert_eq!(found, Some(expected));
        assert_eq!(Stat::parse("42 (a) S 1"), None);
        assert_eq!(booted("cpu  1 2\nbtime 1700000000\nprocesses 9\n"), Some(1_700_000_000.0));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_is_found() {
        let process = Process::look().unwrap();
        assert!(process.resident > 1 << 20 && process.virtual_size >= process.resident);
        assert!(process.open_files >= 3, "{process:?}");
        assert!(process.max_files.is_none_or(|most| most >= process.open_files), "{process:?}");
        assert!(process.started > 1_600_000_000.0, "{process:?}");
    }
}
