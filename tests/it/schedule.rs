//! tokio-cron-scheduler accepts the bell's pattern of every schedule.

use chrono_tz::Tz;
use preheat::domain::schedule::Schedule;

#[test]
fn hazard_22_the_scheduler_takes_the_bell_of_every_schedule() {
    let schedules = [
        "every 1s",
        "every 90s",
        "every 10m",
        "every 366d",
        "* * * * * *",
        "*/7 * * * * *",
        "59 59 23 31 12 * 2027-2030",
        "30 2 * * MON-FRI",
        "0 0 12 LW * *",
    ];
    for text in schedules {
        let schedule = Schedule::parse(text, Tz::Asia__Kathmandu).unwrap();
        let bell = schedule.bell_pattern();
        let job = tokio_cron_scheduler::Job::new(bell.as_str(), |_, _| {});
        assert!(job.is_ok(), "{text}: {bell}");
    }
}
