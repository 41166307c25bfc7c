const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/**
 * Stands for your authentication: which tenant the request is for, once it has shown that it may be.
 * Here the header says so, and everybody believes it.
 */
export function tenantOf(headers: { get(name: string): string | null }): string | undefined {
  const tenant = headers.get("x-tenant") ?? "";
  return UUID.test(tenant) ? tenant : undefined;
}
