import { cacheLife, cacheTag } from "next/cache";
import { headers } from "next/headers";
import { tenantTag } from "preheat-client/next";
import { Suspense } from "react";
import { cache } from "@/lib/cache";
import { keys } from "@/lib/preheat.gen";
import { listServices } from "@/lib/services";
import { tenantOf } from "@/lib/tenant";

export default function Page() {
  return (
    <Suspense fallback={<p>…</p>}>
      <Clinic />
    </Suspense>
  );
}

async function Clinic() {
  const tenant = tenantOf(await headers());
  return tenant ? <Services tenant={tenant} /> : <p>Who are you?</p>;
}

/** Kept in Redis until the tenant's fence moves, by whichever instance rendered it. */
async function Services({ tenant }: { tenant: string }) {
  "use cache: remote";
  cacheTag(tenantTag(tenant));
  cacheLife("hours");
  const services = await cache.cached(keys.services(tenant), () => listServices(tenant));
  return (
    <main data-rendered={crypto.randomUUID()}>
      {services.map(({ id, name, price }) => (
        <p key={id}>
          {name}: {price}
        </p>
      ))}
    </main>
  );
}
