import { etagOf } from "./etag.js";
import type { ReadText } from "./reader.js";

/** What `respond` looks at in a request: a `Request` is one. */
export interface RequestLike {
  readonly method?: string;
  readonly headers: { get(name: string): string | null };
}

/** The response to a read: the raw text with an ETag, or 304 where the client has it. */
export function responseTo(request: RequestLike, read: ReadText): Response {
  if (read.text === undefined || read.text === "null") return notFound(read);
  const bytes = new TextEncoder().encode(read.text);
  const etag = etagOf(bytes);
  const headers: Record<string, string> = {
    ETag: etag,
    // The client keeps it and asks each time: the server is the one that knows when it changed.
    "Cache-Control": "private, no-cache",
    "Cache-Status": cacheStatus(read),
  };
  if (isKnown(request.headers.get("if-none-match"), etag)) {
    return new Response(null, { status: 304, headers });
  }
  headers["Content-Type"] = "application/json";
  headers["Content-Length"] = String(bytes.byteLength);
  return new Response(request.method === "HEAD" ? null : bytes, { headers });
}

/** There is no value, or none that the caller may see: nobody learns which. */
export function notFound(read: ReadText): Response {
  const headers = { "Cache-Control": "private, no-cache", "Cache-Status": cacheStatus(read) };
  return new Response(null, { status: 404, headers });
}

/** Too many loads wait already. */
export function exhausted(): Response {
  return new Response(null, { status: 503, headers: { "Retry-After": "1" } });
}

/** `Cache-Status` after RFC 9211. */
export function cacheStatus({ result, outcome }: ReadText): string {
  switch (result) {
    case "hit":
      return "preheat; hit";
    case "joined":
      return "preheat; fwd=miss; collapsed";
    case "bypass":
      return "preheat; fwd=bypass";
    case "miss":
      if (outcome?.fill === "written") return "preheat; fwd=miss; stored";
      if (outcome?.fill === "refused") return "preheat; fwd=miss; detail=refused";
      return outcome?.tooLarge ? "preheat; fwd=miss; detail=too_large" : "preheat; fwd=miss";
  }
}

/** `If-None-Match` compares weakly: proxies that compress mark our ETag as weak. */
function isKnown(ifNoneMatch: string | null, etag: string): boolean {
  if (ifNoneMatch === null) return false;
  if (ifNoneMatch.trim() === "*") return true;
  return ifNoneMatch.split(",").some((known) => known.trim().replace(/^W\//, "") === etag);
}
