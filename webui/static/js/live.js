// Keeps the page's state fresh: pushed events while they work, polling while they do not, and back again by itself.

import { isHidden, link, security, takeOverview } from "./state.js";

const POLL_MS = 2000;
const SILENCE_MS = 15000; // the broker says something each 5 s; after so much silence the stream is dead
const JOBS = 50;

let source = null;
let heardAt = 0;
let timer = 0;

/** Asks the API. Resolves to the JSON; throws {code, message, field, status} as the API says, code "OFFLINE" without an answer. */
export async function api(path, options) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(10000), ...options });
  } catch {
    throw { code: "OFFLINE", message: "The broker does not answer.", status: 0 };
  }
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw { code: "INTERNAL", message: `HTTP status ${response.status}`, ...body.error, status: response.status };
  return body;
}

/** Sends a change; `text` is JSON already, so that integers keep all their digits. */
export const post = (path, text = "{}") =>
  api(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: text });

/** Starts; called once. A hidden page lets its stream go: a browser has six connections per origin for all its tabs. */
export function startLive() {
  open();
  setInterval(watchSilence, 1000);
  document.addEventListener("visibilitychange", () => {
    isHidden.value = document.hidden;
    if (document.hidden) close();
    else open();
  });
}

function open() {
  close();
  heardAt = performance.now();
  source = new EventSource("/api/events");
  source.addEventListener("overview", (event) => {
    heardAt = performance.now();
    clearTimeout(timer);
    takeOverview(JSON.parse(event.data));
    link.value = "live";
  });
  source.addEventListener("security", (event) => { security.value = JSON.parse(event.data); });
  source.onerror = fallBack;
}

function close() {
  if (source) source.close();
  source = null;
  clearTimeout(timer);
}

function watchSilence() {
  if (source && performance.now() - heardAt > SILENCE_MS) fallBack();
}

/** The stream broke: ask once now, then try the stream again. */
async function fallBack() {
  close();
  try {
    const [stats, workers, page, secure] = await Promise.all(
      [api("/api/stats"), api("/api/workers"), api(`/api/jobs?limit=${JOBS}`), api("/api/security")]);
    if (source || document.hidden) return;
    takeOverview({ stats, workers: workers.workers.slice(0, 50), workers_total: workers.total, jobs: page.jobs });
    security.value = secure;
    link.value = "polling";
  } catch {
    if (source) return;
    link.value = "lost";
  }
  if (!document.hidden) timer = setTimeout(open, POLL_MS * (0.75 + Math.random() / 2)); // not all pages at once
}
