/** Whether `next build` runs. There is no Redis then, or one that a build must not touch. */
export function building(): boolean {
  const { process } = globalThis as { process?: { env?: Record<string, string | undefined> } };
  return process?.env?.["NEXT_PHASE"] === "phase-production-build";
}
