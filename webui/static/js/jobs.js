// The page of jobs: filters in the address, pages of history, and what is done to many at once.

import { useEffect, useState } from "../vendor/preact-hooks.js";
import { useAnswer } from "./ask.js";
import { BulkStatus, useBulk } from "./bulk.js";
import { count } from "./format.js";
import { api } from "./live.js";
import { JobTable, STATES } from "./log.js";
import { go, route } from "./route.js";
import { stats, workers } from "./state.js";
import { html } from "./ui.js";

const LIMIT = 50;
const MOST_ASKED = 10; // requests for one page: each looks at 20,000 jobs
const FILTERS = ["state", "queue", "task", "worker"];
const RETRYABLE = ["failed", "cancelled", "expired"];

const filtersOf = (params) => Object.fromEntries(FILTERS.map((name) => [name, params[name] || ""]));
const queryOf = (filters) => new URLSearchParams(Object.entries(filters).filter(([, value]) => value));

/** A page of jobs that match; looks on through pages where few do. {jobs, next, asked} */
async function pageOf(path) {
  const url = new URL(path, location.origin);
  const jobs = [];
  for (let asked = 1; ; asked += 1) {
    const page = await api(url.pathname + url.search);
    jobs.push(...page.jobs);
    if (jobs.length > LIMIT) return { jobs: jobs.slice(0, LIMIT), next: jobs[LIMIT - 1].id, asked };
    if (jobs.length === LIMIT || !page.next || asked === MOST_ASKED) return { jobs, next: page.next, asked };
    url.searchParams.set("before", page.next);
  }
}

export function Jobs() {
  const { params } = route.value;
  const filters = filtersOf(params);
  const before = /^\d{1,16}$/.test(params.before || "") ? params.before : "";
  const query = queryOf({ ...filters, before });
  const [chosen, setChosen] = useState(new Set());
  const [isCostly, setCostly] = useState(false);
  const page = useAnswer(`/api/jobs?limit=${LIMIT}&${query}`, { ask: pageOf, isHeld: chosen.size > 0, everyMs: isCostly ? 15000 : 2000 });
  const bulk = useBulk(() => { setChosen(new Set()); page.again(); });
  useEffect(() => setChosen(new Set()), [query.toString()]);
  useEffect(() => setCostly(Boolean(page.answer && page.answer.asked > 2)), [page.answer]);
  const jobs = page.answer ? page.answer.jobs : [];
  const set = (changes) => go("jobs", { ...filtersOf(route.value.params), ...changes });
  const toggle = (ids, isOn) => setChosen((old) => {
    const next = new Set(old);
    for (const id of ids) (isOn ? next.add(id) : next.delete(id));
    return next;
  });
  return html`<section class="panel page" id="jobs" aria-labelledby="h-jobs">
    <div class="head"><h2 id="h-jobs">Jobs</h2><${Filters} filters=${filters} set=${set} />
      <span class="pager"><button type="button" id="newest" disabled=${!before} onClick=${() => set({})}>Newest</button>
        <button type="button" id="older" disabled=${!page.answer || !page.answer.next} onClick=${() => set({ before: page.answer.next })}>Older</button></span></div>
    <${Actions} chosen=${chosen} filters=${filters} bulk=${bulk} />
    <${BulkStatus} bulk=${bulk} />
    ${page.refusal && html`<p class="banner tone-bad">${page.refusal.message}</p>`}
    <div class="rows" tabindex="0" role="group" aria-labelledby="h-jobs">
      <${JobTable} jobs=${jobs} isFull chosen=${chosen} toggle=${toggle} />
      ${page.answer && !jobs.length && html`<p class="empty">${page.answer.next ? `None among the jobs down to #${page.answer.next}; older ones were not looked at yet.` : "No job matches."}</p>`}
    </div>
  </section>`;
}

function Filters({ filters, set }) {
  const names = {
    queue: ["default"], task: stats.value ? stats.value.tasks.map((entry) => entry.task) : [], worker: workers.value.map((worker) => worker.name),
  };
  return html`<form class="filters" onSubmit=${(event) => event.preventDefault()}>
    <select id="filter" aria-label="Status" value=${filters.state} onChange=${(e) => set({ state: e.target.value })}>
      <option value="">all statuses</option>${STATES.map((name) => html`<option value=${name}>${name}</option>`)}</select>
    ${FILTERS.slice(1).map((name) => html`<${NameFilter} key=${name} name=${name} value=${filters[name]} known=${names[name]} set=${set} />`)}
  </form>`;
}

/** A filter by a name; it counts when it is left or Enter is hit. */
export function NameFilter({ name, value, known, set }) {
  const [text, setText] = useState(value); // as it is typed, whatever news come meanwhile
  useEffect(() => setText(value), [value]);
  return html`<input type="search" id="filter-${name}" list="names-${name}" placeholder=${name} aria-label="Filter by ${name}" spellcheck=${false} autocomplete="off"
      value=${text} onInput=${(e) => setText(e.target.value)} onChange=${(e) => { if (e.target.value.trim() !== value) set({ [name]: e.target.value.trim() }); }} />
    <datalist id="names-${name}">${[...new Set(known)].map((text) => html`<option value=${text} />`)}</datalist>`;
}

function Actions({ chosen, filters, bulk }) {
  const ids = [...chosen];
  const target = filters.state === "" ? "failed" : filters.state;
  return html`<div class="actions">
    <span class="muted" role="status">${ids.length ? `${count(ids.length)} selected, the list stands still` : "none selected"}</span>
    <button type="button" id="retry-chosen" disabled=${!ids.length || bulk.isBusy} onClick=${() => bulk.run("retry", ids)}>Retry selected</button>
    <button type="button" id="cancel-chosen" class="danger" disabled=${!ids.length || bulk.isBusy} onClick=${() => bulk.run("cancel", ids)}>Cancel selected</button>
    <span class="grow"></span>
    ${RETRYABLE.includes(target) && html`<button type="button" id="retry-all" disabled=${bulk.isBusy}
      onClick=${() => bulk.prepare("retry", target, queryOf({ ...filters, state: target }))}>Retry all ${target} that match …</button>`}
  </div>`;
}
