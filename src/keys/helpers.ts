/** A text in a key. */
function asText(name: string, value: string): string {
  if (typeof value !== "string") throw refusal(`\`${name}\` is no text`);
  if (value === "") throw refusal(`\`${name}\` is empty`);
  if (/[\ud800-\udfff]/u.test(value)) throw refusal(`\`${name}\` contains half a character`);
  return value;
}

/** A UUID as Postgres writes it. */
function asUuid(name: string, value: string): string {
  if (!/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(value)) throw refusal(`\`${name}\` is no UUID in lower case`);
  return value;
}

/** An integer as Postgres writes it. */
function asInteger(name: string, value: number | bigint | string): string {
  const text = String(value);
  const isExact = typeof value !== "number" || Number.isSafeInteger(value);
  if (!isExact || !/^-?\d+$/.test(text) || String(BigInt.asIntN(64, BigInt(text))) !== text)
    throw refusal(`\`${name}\` is no integer that Postgres writes so`);
  return text;
}

/** A date, `YYYY-MM-DD`. */
function asDate(name: string, value: string): string {
  const isDate = /^\d{4}-\d\d-\d\d$/.test(value) && !Number.isNaN(Date.parse(value));
  if (!isDate || new Date(value).toISOString().slice(0, 10) !== value) throw refusal(`\`${name}\` is no date YYYY-MM-DD`);
  return value;
}

/** A text that does not contain the text by which it ends in the key. */
function endedBy(name: string, value: string, end: string): string {
  if ((value + end).indexOf(end) < value.length) throw refusal(`\`${name}\` contains \`${end}\``);
  return value;
}

/** A key that is none of another template. */
function notOf(other: RegExp, key: string): string {
  if (other.test(key)) throw refusal("it could be the key of something else");
  return key;
}

/** A key that a template reads in one way only. */
function readOnce(shortest: RegExp, longest: RegExp, key: string): string {
  if (JSON.stringify(shortest.exec(key)) !== JSON.stringify(longest.exec(key))) throw refusal("it could be the key of something else");
  return key;
}

function refusal(reason: string): RangeError {
  return new RangeError(`no cache key: ${reason}`);
}
