import assert from "node:assert/strict";
import { test } from "node:test";
import { localDates } from "../src/index.js";

test("days are those of the zone, not of the server", () => {
  const now = new Date("2026-01-31T23:30:00Z");
  assert.deepEqual(localDates("Europe/Zurich", 2, now), ["2026-02-01", "2026-02-02"]);
  assert.deepEqual(localDates("America/New_York", 2, now), ["2026-01-31", "2026-02-01"]);
  assert.deepEqual(localDates("Pacific/Kiritimati", 1, now), ["2026-02-01"]);
});

test("a day of 23 or 25 hours is one day", () => {
  for (const zone of [
    "Europe/Zurich",
    "America/New_York",
    "America/Santiago",
    "Australia/Lord_Howe",
  ]) {
    for (let hour = 0; hour < 24 * 366; hour += 1) {
      const now = new Date(Date.UTC(2026, 0, 1, hour, 30));
      const days = localDates(zone, 3, now);
      const times = days.map((day) => Date.parse(`${day}T00:00:00Z`));
      assert.deepEqual(
        times,
        [0, 1, 2].map((i) => (times[0] as number) + i * 86_400_000),
        `${zone} ${days}`,
      );
    }
  }
  // Clocks go forward on 29 March and back on 25 October.
  const days = ["2026-03-28", "2026-03-29", "2026-03-30"];
  assert.deepEqual(localDates("Europe/Zurich", 3, new Date("2026-03-28T22:59:59Z")), days);
  assert.deepEqual(localDates("Europe/Zurich", 1, new Date("2026-03-28T23:00:00Z")), [
    "2026-03-29",
  ]);
  assert.deepEqual(localDates("Europe/Zurich", 1, new Date("2026-03-29T21:59:59Z")), [
    "2026-03-29",
  ]);
  assert.deepEqual(localDates("Europe/Zurich", 1, new Date("2026-03-29T22:00:00Z")), [
    "2026-03-30",
  ]);
  assert.deepEqual(localDates("Europe/Zurich", 1, new Date("2026-10-25T22:59:59Z")), [
    "2026-10-25",
  ]);
  assert.deepEqual(localDates("Europe/Zurich", 1, new Date("2026-10-25T23:00:00Z")), [
    "2026-10-26",
  ]);
});

test("years and leap days are carried over", () => {
  const dates = localDates("UTC", 3, new Date("2027-12-30T12:00:00Z"));
  assert.deepEqual(dates, ["2027-12-30", "2027-12-31", "2028-01-01"]);
  assert.deepEqual(localDates("UTC", 2, new Date("2028-02-28T12:00:00Z"))[1], "2028-02-29");
});

test("an unknown zone is an error", () => {
  assert.throws(() => localDates("Europe/Nowhere", 1), RangeError);
});
