import type { LocalDate } from "./key.js";

/**
 * The next `days` days of a calendar in a time zone, today first: the days that a tenant means, and not
 * the server's.
 *
 * @param zone a name such as `Europe/Zurich`; an unknown one is a `RangeError`
 */
export function localDates(zone: string, days: number, now: Date = new Date()): LocalDate[] {
  const parts = new Map(
    formatOf(zone)
      .formatToParts(now)
      .map(({ type, value }) => [type, Number(value)]),
  );
  const [year = 0, month = 0, day = 0] = [parts.get("year"), parts.get("month"), parts.get("day")];
  // Calendar days are counted in UTC, where each has 24 hours.
  return Array.from({ length: days }, (_, i) => {
    return new Date(Date.UTC(year, month - 1, day + i)).toISOString().slice(0, 10) as LocalDate;
  });
}

/** Making one takes longer than all the rest. There are as many as there are zones. */
const formats = new Map<string, Intl.DateTimeFormat>();

function formatOf(zone: string): Intl.DateTimeFormat {
  let format = formats.get(zone);
  if (!format) {
    format = new Intl.DateTimeFormat("en-US", {
      timeZone: zone,
      calendar: "gregory",
      numberingSystem: "latn",
      year: "numeric",
      month: "numeric",
      day: "numeric",
    });
    formats.set(zone, format);
  }
  return format;
}
