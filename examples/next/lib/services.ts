import { Pool } from "pg";

const pool = new Pool({
  connectionString: process.env.DATABASE_URL,
  max: 10,
  connectionTimeoutMillis: 2_000,
  statement_timeout: 5_000, // All callers of a key wait for its load.
  query_timeout: 6_000, // Where the server is gone, and cannot end the statement itself.
});

export interface Service {
  id: string;
  name: string;
  description: string | null;
  duration_minutes: number;
  price: string;
  updated_at: Date;
}

/** The query of `jobs/services.toml`, for one tenant: the same columns in the same order. */
export async function listServices(tenant: string): Promise<Service[]> {
  const { rows } = await pool.query<Service>(
    `select id, name, description, duration_minutes, price, updated_at from services
     where tenant_id = $1 and active order by name, id`,
    [tenant],
  );
  return rows;
}

export interface NewService {
  name: string;
  duration_minutes: number;
  price: string;
}

/** Commits before it returns. */
export async function createService(tenant: string, service: NewService): Promise<string> {
  const { rows } = await pool.query<{ id: string }>(
    `insert into services (id, tenant_id, name, duration_minutes, price)
     values (gen_random_uuid(), $1, $2, $3, $4) returning id`,
    [tenant, service.name, service.duration_minutes, service.price],
  );
  return rows[0]!.id;
}
