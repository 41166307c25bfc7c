// Keeps a page up to date, and does what HTML alone cannot do. All pages work without it.
"use strict";

const root = document.documentElement;

// The theme is set before anything is drawn.
const stored = (name) => { try { return localStorage.getItem("preheat." + name); } catch { return null; } };
const store = (name, value) => { try { localStorage.setItem("preheat." + name, value); } catch { /* not kept */ } };
const setTheme = (theme) => theme === "system" ? delete root.dataset.theme : root.dataset.theme = theme;
const THEMES = ["system", "light", "dark"];
const themeNow = () => THEMES.includes(stored("theme")) ? stored("theme") : "system";
setTheme(themeNow());

// How far the worker's clock is ahead of this one, in milliseconds.
let ahead = root.dataset.now ? Number(root.dataset.now) - Date.now() : 0;

// As `words::relative` writes it.
function relative(at) {
  const apart = Math.trunc((at - Date.now() - ahead) / 1000), s = Math.abs(apart);
  if (s === 0) return "now";
  const pair = (large, unit, small, smallUnit) => large + " " + unit + (small ? " " + small + " " + smallUnit : "");
  const [m, h, d] = [60, 3600, 86400].map((length) => Math.floor(s / length));
  const text = s < 60 ? s + " s" : s < 600 ? pair(m, "min", s % 60, "s") : s < 3600 ? m + " min"
    : s < 86400 ? pair(h, "h", m % 60, "min") : pair(d, "d", h % 24, "h");
  return apart > 0 ? "in " + text : text + " ago";
}

function tick() {
  for (const time of document.querySelectorAll("time[data-rel]")) {
    const text = relative(Date.parse(time.dateTime));
    if (time.textContent !== text) time.textContent = text;
  }
}

// Whether somebody is typing, choosing or selecting text in this node: it must not be taken away.
function isInUse(node) {
  const selection = getSelection();
  const selects = selection && !selection.isCollapsed && selection.containsNode(node, true);
  return selects || node.querySelector("input:focus, select:focus, textarea:focus") !== null || node.querySelector("dialog[open]") !== null;
}

// Where the keyboard is in this node, as a way to find the same place in the node's successor.
function focusIn(node) {
  const focused = document.activeElement;
  if (!focused || focused === node || !node.contains(focused)) return () => null;
  const likes = [...node.querySelectorAll(focused.localName)], place = likes.indexOf(focused);
  const href = focused.getAttribute("href");
  return (next) => (focused.id && next.querySelector("#" + CSS.escape(focused.id)))
    || (href && next.querySelector(focused.localName + "[href='" + CSS.escape(href) + "']"))
    || next.querySelectorAll(focused.localName)[place];
}

function replace(node, next) {
  const opened = [...node.querySelectorAll("details")].map((details) => details.open);
  next.querySelectorAll("details").forEach((details, place) => { if (opened[place]) details.open = true; });
  const find = focusIn(node);
  node.replaceWith(next);
  find(next)?.focus({ preventScroll: true });
}

let fetching = false, again = null;

// Draws anew what has changed, by asking for the same page: what it shows is right whatever was missed before.
// `parts` is null for everything.
async function refresh(parts) {
  if (fetching) {
    again = again === null || parts === null ? { parts } : { parts: again.parts && [...again.parts, ...parts] };
    return;
  }
  fetching = true;
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" }, cache: "no-store" });
    if (answer.redirected || answer.status === 401) return location.reload();
    if (!answer.ok) return;
    const next = new DOMParser().parseFromString(await answer.text(), "text/html");
    // Another version of the worker has another script and another style.
    if (next.querySelector("script")?.getAttribute("src") !== document.querySelector("script").getAttribute("src")) return location.reload();
    ahead = Number(next.documentElement.dataset.now) - Date.now();
    for (const node of document.querySelectorAll("[data-live]")) {
      const wanted = parts === null || node.dataset.live.split(" ").some((part) => parts.includes(part));
      const drawn = wanted && node.isConnected && !isInUse(node) && next.getElementById(node.id);
      if (drawn && !drawn.isEqualNode(node)) replace(node, drawn);
    }
    tick();
  } catch { /* the next event, or the next connection, draws it */ } finally {
    fetching = false;
    const left = again;
    again = null;
    if (left) refresh(left.parts);
  }
}

let source = null, wait = 500, timer = 0;

function say(word) {
  root.dataset.state = word;
  const shown = document.getElementById("live");
  if (!shown) return;
  shown.hidden = false;
  shown.textContent = word;
  shown.className = "live is-" + word;
}

function close() {
  clearTimeout(timer);
  source?.close();
  source = null;
}

// A browser gives an `EventSource` up for good after an answer that is not 200, as a worker gives while it stops or a
// proxy while it is gone. So we try again ourselves. A hidden page holds no connection: browsers open six at most.
function open() {
  close();
  if (document.hidden) return say("paused");
  source = new EventSource(root.dataset.root + "live");
  source.onopen = () => { wait = 500; say("live"); refresh(null); };
  source.addEventListener("changed", (event) => refresh(JSON.parse(event.data).parts));
  source.onerror = () => {
    say("reconnecting");
    close();
    refresh([]);
    timer = setTimeout(open, wait * (0.5 + Math.random()));
    wait = Math.min(wait * 2, 15000);
  };
}

function tools() {
  const theme = document.getElementById("theme");
  const showTheme = () => { theme.textContent = "Theme: " + themeNow(); };
  theme.hidden = false;
  showTheme();
  theme.addEventListener("click", () => {
    store("theme", THEMES[(THEMES.indexOf(themeNow()) + 1) % THEMES.length]);
    setTheme(themeNow());
    showTheme();
  });
  const help = document.getElementById("help");
  const openHelp = document.getElementById("open-help");
  openHelp.hidden = false;
  openHelp.addEventListener("click", () => help.showModal());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, dialog")) return;
    if (event.key === "/") {
      event.preventDefault();
      document.getElementById("search").focus();
    } else if (event.key === "?") {
      help.showModal();
    }
  });
  // A button is for one click, and says that it was heard.
  document.addEventListener("submit", (event) => {
    const button = event.submitter;
    if (event.target.method === "post" && button) setTimeout(() => { button.disabled = true; });
  });
}

document.addEventListener("DOMContentLoaded", () => {
  tools();
  tick();
  setInterval(tick, 1000);
  if (document.querySelector("[data-live]")) {
    document.addEventListener("visibilitychange", () => document.hidden ? (close(), say("paused")) : open());
    addEventListener("pagehide", close);
    addEventListener("pageshow", (event) => { if (event.persisted) open(); });
    open();
  }
});
