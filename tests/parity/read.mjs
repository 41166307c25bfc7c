// Reads every table of the parity test as an application would and compares it with preheat's JSON.
//
//   node read.mjs INPUT
//
// INPUT is a JSON file: {"url", "tables": [{"table", "type", "dimensions", "profiles": {PROFILE: [TEXT…]}}]},
// where TEXT is one row as preheat wrote it. What differs is printed, one JSON object a line; the
// last line says how many rows were compared.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { drizzle } from "drizzle-orm/node-postgres";
import * as core from "drizzle-orm/pg-core";
import pg from "pg";

const { url, tables } = JSON.parse(readFileSync(process.argv[2], "utf8"));
const pool = new pg.Pool({ connectionString: url, max: 1, options: "-c TimeZone=UTC" });
const db = drizzle(pool);

/// The columns of a schema as drizzle-kit writes one, in their default modes. Types that drizzle-orm
/// has no column for come as the driver gives them.
const columns = {
  bool: () => core.boolean("value"),
  int2: () => core.smallint("value"),
  int4: () => core.integer("value"),
  int8: () => core.bigint("value", { mode: "number" }),
  float4: () => core.real("value"),
  float8: () => core.doublePrecision("value"),
  numeric: () => core.numeric("value"),
  text: () => core.text("value"),
  varchar: () => core.varchar("value"),
  bpchar: () => core.char("value"),
  mood: () => core.pgEnum("mood", ["sad"])("value"),
  uuid: () => core.uuid("value"),
  date: () => core.date("value"),
  time: () => core.time("value"),
  timetz: () => core.time("value", { withTimezone: true }),
  timestamp: () => core.timestamp("value"),
  timestamptz: () => core.timestamp("value", { withTimezone: true }),
  interval: () => core.interval("value"),
  json: () => core.json("value"),
  jsonb: () => core.jsonb("value"),
  inet: () => core.inet("value"),
  cidr: () => core.cidr("value"),
  macaddr: () => core.macaddr("value"),
  macaddr8: () => core.macaddr8("value"),
  point: () => core.point("value"),
};

const asTheDriverGivesIt = (type) => () => core.customType({ dataType: () => type })("value");

async function readDrizzle({ table, type, dimensions }) {
  let value = (columns[type] ?? asTheDriverGivesIt(type))();
  for (let i = 0; i < dimensions; i++) value = value.array();
  const schema = core.pgTable(table, { id: core.integer("id"), value });
  return db.select({ value: schema.value }).from(schema).orderBy(schema.id);
}

async function readNodePostgres({ table }) {
  return (await pool.query(`select value from ${table} order by id`)).rows;
}

async function readPostgres({ table }) {
  const sql = `select row_to_json(r)::text as row from (select value from ${table} order by id) r`;
  return (await pool.query(sql)).rows.map(({ row }) => row);
}

const profiles = {
  drizzle: async (table) => (await readDrizzle(table)).map((row) => JSON.stringify(row)),
  "node-postgres": async (table) => (await readNodePostgres(table)).map((row) => JSON.stringify(row)),
  postgres: readPostgres,
};

let compared = 0;
for (const table of tables) {
  for (const [profile, ours] of Object.entries(table.profiles)) {
    const report = (difference) =>
      console.log(JSON.stringify({ table: table.table, profile, ...difference }));
    let theirs;
    try {
      theirs = await profiles[profile](table);
    } catch (error) {
      report({ error: String(error) });
      continue;
    }
    if (theirs.length !== ours.length) report({ theirs: theirs.length, ours: ours.length });
    theirs.forEach((their, row) => {
      compared += 1;
      try {
        assert.deepStrictEqual(JSON.parse(ours[row]), JSON.parse(their));
      } catch {
        report({ row, ours: ours[row], theirs: their });
      }
    });
  }
}
console.log(JSON.stringify({ compared }));
await pool.end();
