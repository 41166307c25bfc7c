import { isUnknownScript } from "./redis-like.js";
import type { Script } from "./scripts.js";

/** Runs a script by its SHA-1; a server that does not know it gets the text once. */
export async function evaluate(
  script: Script,
  bySha1: (sha1: string) => Promise<unknown>,
  byText: (text: string) => Promise<unknown>,
): Promise<unknown> {
  try {
    return await bySha1(script.sha1);
  } catch (error) {
    if (!isUnknownScript(error)) throw error;
    return byText(script.text);
  }
}
