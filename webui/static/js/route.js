// The address: which page, with which filters, and which job is open: "#/jobs?state=failed&job=12". So everything can be linked to.

import { signal } from "./signal.js";

export const PAGES = ["overview", "jobs", "failures", "queues", "schedules", "events"];

function read() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?", 2);
  return { page: PAGES.includes(path) ? path : "overview", params: Object.fromEntries(new URLSearchParams(query)) };
}

/** {page, params}: where we are. */
export const route = signal(read());

/** The number of the job in the drawer, or null. */
export const openJob = { get value() { return /^\d{1,16}$/.test(route.value.params.job || "") ? Number(route.value.params.job) : null; } };

/** Page and parameters -> "#/jobs?state=failed"; empty ones are left out. */
export function address(page, params = {}) {
  const query = new URLSearchParams(Object.entries(params).filter(([, value]) => value !== "" && value !== null && value !== undefined));
  return `#/${page === "overview" ? "" : page}${query.size ? `?${query}` : ""}`;
}

/** Goes there. `replaces`: the present place is left out of the way back. */
export function go(page, params, { replaces = false, state = null } = {}) {
  const url = address(page, params);
  if (replaces) history.replaceState(state, "", url);
  else history.pushState(state, "", url);
  route.value = read();
}

/** Opens a job over the page where we are. */
export function showJob(id) {
  const { page, params } = route.value;
  go(page, { ...params, job: id }, { state: { isOverPage: true }, replaces: openJob.value !== null });
}

/** Closes it: the way back, if that is where it was opened. */
export function closeJob() {
  if (openJob.value === null) return;
  const { page, params } = route.value;
  if (history.state && history.state.isOverPage) history.back();
  else go(page, { ...params, job: "" }, { replaces: true });
}

addEventListener("popstate", () => { route.value = read(); });
