//! What the database does, and for whom: `pg_stat_statements`.

use std::ops::{Add, Sub};

use sqlx::PgPool;

/// Statements of one role.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Statements {
    pub(crate) calls: f64,
    /// Those of the calls that read only.
    pub(crate) selects: f64,
    pub(crate) rows: f64,
    pub(crate) milliseconds: f64,
    /// Those of the calls that read only.
    pub(crate) reading: f64,
}

impl Sub for Statements {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            calls: self.calls - earlier.calls,
            selects: self.selects - earlier.selects,
            rows: self.rows - earlier.rows,
            milliseconds: self.milliseconds - earlier.milliseconds,
            reading: self.reading - earlier.reading,
        }
    }
}

impl Add for Statements {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            calls: self.calls + other.calls,
            selects: self.selects + other.selects,
            rows: self.rows + other.rows,
            milliseconds: self.milliseconds + other.milliseconds,
            reading: self.reading + other.reading,
        }
    }
}

/// The application's statements and preheat's.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    pub(crate) application: Statements,
    pub(crate) preheat: Statements,
}

impl Cost {
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            application: self.application - earlier.application,
            preheat: self.preheat - earlier.preheat,
        }
    }
}

/// The application's role, and preheat's.
pub(crate) const APPLICATION: &str = "clinic";
pub(crate) const PREHEAT: &str = "preheat";

/// The roles of the server and the extension that counts.
pub(crate) const PREPARE: &str = "
    create role clinic login;
    create role preheat login;
    create extension pg_stat_statements";

/// Their rights in the sample clinic, as `docs/deploying.md` names them.
pub(crate) const GRANT: &str = "
    grant select, insert, update on all tables in schema public to clinic;
    grant select on tenants, services, products, staff, slots, pets, pages to preheat";

const SO_FAR: &str = "
    select role, sum(calls)::float8, coalesce(sum(calls) filter (where reads), 0)::float8, sum(rows)::float8,
      sum(total_exec_time)::float8, coalesce(sum(total_exec_time) filter (where reads), 0)::float8
    from (
      select r.rolname::text as role, s.*, query ~* '^\\s*select' and query !~* 'for update\\s*$' as reads
      from pg_stat_statements s join pg_roles r on r.oid = s.userid join pg_database d on d.oid = s.dbid
      where d.datname = $1
    ) statements
    group by role";

/// What a database did so far. `counter` is a connection to the database that has the extension.
pub(crate) async fn so_far(counter: &PgPool, database: &str) -> Cost {
    let rows: Vec<(String, f64, f64, f64, f64, f64)> =
        sqlx::query_as(SO_FAR).bind(database).fetch_all(counter).await.expect("statements");
    let of = |role: &str| {
        let row = rows.iter().find(|(name, ..)| name == role);
        row.map_or_else(Statements::default, |(_, calls, selects, rows, milliseconds, reading)| {
            Statements {
                calls: *calls,
                selects: *selects,
                rows: *rows,
                milliseconds: *milliseconds,
                reading: *reading,
            }
        })
    };
    Cost { application: of(APPLICATION), preheat: of(PREHEAT) }
}
