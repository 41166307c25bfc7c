import { cache } from "@/lib/cache";
import { keys } from "@/lib/preheat.gen";
import { createService, listServices, type NewService } from "@/lib/services";
import { tenantOf } from "@/lib/tenant";

export async function GET(request: Request) {
  const tenant = tenantOf(request.headers);
  if (!tenant) return new Response(null, { status: 401 });
  return cache.respond(request, keys.services(tenant), () => listServices(tenant));
}

export async function POST(request: Request) {
  const tenant = tenantOf(request.headers);
  if (!tenant) return new Response(null, { status: 401 });
  const id = await createService(tenant, (await request.json()) as NewService);
  await cache.changed(() => keys.services(tenant)); // never throws; the tenant's pages expire as well
  return Response.json({ id }, { status: 201 });
}
