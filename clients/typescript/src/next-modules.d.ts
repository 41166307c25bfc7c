/**
 * What is used of Next.js, so that the package compiles without it. The names end in `.js` because Next
 * has no `exports`, and Node's own loader, which loads cache handlers, completes no names.
 */
declare module "next/cache.js" {
  export function revalidateTag(tag: string, profile: string | { expire?: number }): undefined;
}

declare module "next/server.js" {
  export function after(work: () => Promise<void>): void;
}
