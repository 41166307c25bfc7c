import { revalidateTenant } from "preheat-client/next";
import { tenantOf } from "@/lib/tenant";

/** Renders the tenant's pages anew, without a change of the data: after a new logo, say. */
export async function POST(request: Request) {
  const tenant = tenantOf(request.headers);
  if (!tenant) return new Response(null, { status: 401 });
  revalidateTenant(tenant);
  return new Response(null, { status: 204 });
}
