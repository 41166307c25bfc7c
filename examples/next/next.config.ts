import { fileURLToPath } from "node:url";
import type { NextConfig } from "next";

const config: NextConfig = {
  cacheComponents: true,
  partialPrefetching: true,
  cacheHandlers: { remote: fileURLToPath(new URL("cache-handler.mjs", import.meta.url)) },
  // This folder is the project, whatever lock files lie above it.
  turbopack: { root: fileURLToPath(new URL(".", import.meta.url)) },
};

export default config;
