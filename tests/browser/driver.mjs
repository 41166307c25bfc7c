// Drives a real browser: reads commands from its input, one JSON object a line, and answers each with one line,
// `{"value": …}` or `{"error": "…"}`.
//
//   node driver.mjs PATH-OF-CHROMIUM [HOST-RESOLVER-RULES]

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

// Far longer than anything takes on a slow machine.
const LONG = 60000;
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const [executablePath, rules] = process.argv.slice(2);

const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];
if (rules) args.push("--host-resolver-rules=" + rules);
const browser = await chromium.launch({ executablePath, headless: true, args });
let context = null, page = null, problems = [];

const commands = {
  // A new window, which knows nothing of earlier ones.
  async open({ url, scheme = "light", width = 1280, javascript = true }) {
    await context?.close();
    problems = [];
    context = await browser.newContext({ colorScheme: scheme, viewport: { width, height: 900 }, javaScriptEnabled: javascript });
    context.setDefaultTimeout(LONG);
    page = await context.newPage();
    page.on("console", (message) => { if (message.type() === "error") problems.push(message.text()); });
    page.on("pageerror", (error) => problems.push(String(error)));
    page.on("dialog", (dialog) => { problems.push("dialog: " + dialog.message()); dialog.dismiss(); });
    return commands.go({ url });
  },
  async go({ url }) {
    const answer = await page.goto(url, { waitUntil: "load" });
    return answer.status();
  },
  async text({ selector }) { return page.locator(selector).first().innerText(); },
  async html() { return page.content(); },
  async count({ selector }) { return page.locator(selector).count(); },
  async click({ selector }) { await page.locator(selector).first().click(); return null; },
  async fill({ selector, text }) { await page.locator(selector).first().fill(text); return null; },
  async press({ key }) { await page.keyboard.press(key); return null; },
  async url() { return page.url(); },
  // The value of an expression.
  async value({ js }) { return page.evaluate(js); },
  // Waits until an expression is true.
  async until({ js }) {
    // The page's policy forbids what `page.waitForFunction` does.
    for (const end = Date.now() + LONG; Date.now() < end; await new Promise((resolve) => setTimeout(resolve, 100))) {
      // While a page is replaced by another, nothing can be asked.
      if (await page.evaluate(js).catch(() => false)) return null;
    }
    throw new Error("it never became true");
  },
  // Waits until an element has a text.
  async shows({ selector, text }) {
    await page.locator(selector).filter({ hasText: text }).first().waitFor({ timeout: LONG });
    return null;
  },
  // What the console and the page complained about since the last time.
  async problems() { const told = problems; problems = []; return told; },
  async width({ width }) { await page.setViewportSize({ width, height: 900 }); return null; },
  async scheme({ scheme }) { await page.emulateMedia({ colorScheme: scheme }); return null; },
  async picture({ path }) { await page.screenshot({ path, fullPage: true }); return null; },
  // What axe-core finds serious.
  async axe() {
    await page.evaluate(axe);
    const found = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
    const serious = found.violations.filter((one) => ["serious", "critical"].includes(one.impact));
    return serious.map((one) => `${one.id}: ${one.help}: ` + one.nodes.slice(0, 3).map((node) => node.html.slice(0, 200) + " " + (node.any[0]?.message ?? "")).join(" | "));
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  let answer;
  try {
    const { command, ...options } = JSON.parse(line);
    answer = { value: await commands[command](options) ?? null };
  } catch (error) {
    answer = { error: String(error), problems, url: page?.url() };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
await browser.close();
