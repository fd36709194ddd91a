// The page of jobs: filters in the address, pages of history, and what is done to many at once.

import { useEffect, useState } from "../vendor/preact-hooks.js";
import { useAnswer } from "./ask.js";
import { BulkStatus, DO, useBulk } from "./bulk.js";
import { ChangeAll } from "./change_all.js";
import { count } from "./format.js";
import { api } from "./live.js";
import { JobTable } from "./log.js";
import { go, route } from "./route.js";
import { FINISHED, RETRYABLE, STATES, WAITING, knownTasks, workers } from "./state.js";
import { Refused, html } from "./ui.js";

const LIMIT = 50;
const MOST_ASKED = 10; // requests for one page: each looks for 0.1 s
const FILTERS = ["state", "queue", "task", "worker", "q"];
const ACTIONS = { retry: RETRYABLE, cancel: [...WAITING, "running"], delete: FINISHED };
const quoted = (text) => `"${text.replace(/["\\]/g, "\\$&")}"`;

const filtersOf = (params) => Object.fromEntries(FILTERS.map((name) => [name, params[name] || ""]));
const queryOf = (filters) => new URLSearchParams(Object.entries(filters).filter(([, value]) => value));

/** The same filters as one line, as people write it; `q` is one already. */
const lineOf = ({ q, ...others }) => [...Object.entries(others).filter(([, value]) => value).map(([name, value]) => `${name}:${quoted(value)}`), q].join(" ");

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
      <span class="pager"><button id="newest" disabled=${!before} onClick=${() => set({})}>Newest</button>
        <button id="older" disabled=${!page.answer || !page.answer.next} onClick=${() => set({ before: page.answer.next })}>Older</button></span></div>
    <${Actions} chosen=${chosen} filters=${filters} bulk=${bulk} />
    <${BulkStatus} bulk=${bulk} />
    <${Refused} refusal=${page.refusal} />
    <div class="rows" tabindex="0" role="group" aria-labelledby="h-jobs">
      <${JobTable} jobs=${jobs} isFull chosen=${chosen} toggle=${toggle} />
      ${page.answer && page.answer.next && jobs.length < LIMIT && html`<p class="empty">${jobs.length ? "No more" : "None"} among the jobs down to #${page.answer.next}; older ones were not looked at yet.</p>`}
      ${page.answer && !page.answer.next && !jobs.length && html`<p class="empty">No job matches.</p>`}
    </div>
  </section>`;
}

function Filters({ filters, set }) {
  const names = {
    queue: ["default"], task: knownTasks(), worker: workers.value.map((worker) => worker.name),
  };
  return html`<form class="filters" onSubmit=${(event) => event.preventDefault()}>
    <select id="filter" aria-label="Status" value=${filters.state} onChange=${(e) => set({ state: e.target.value })}>
      <option value="">all statuses</option>${STATES.map((name) => html`<option value=${name}>${name}</option>`)}</select>
    <${NameFilter} name="q" label="search" value=${filters.q} known=${[]} set=${set} />
    ${FILTERS.slice(1, -1).map((name) => html`<${NameFilter} key=${name} name=${name} value=${filters[name]} known=${names[name]} set=${set} />`)}
  </form>`;
}

/** A filter by a name; it counts when it is left or Enter is hit. */
export function NameFilter({ name, label = name, value, known, set }) {
  const [text, setText] = useState(value); // as it is typed, whatever news come meanwhile
  useEffect(() => setText(value), [value]);
  return html`<input type="search" id="filter-${name}" list="names-${name}" placeholder=${label} aria-label="Filter by ${label}" title=${name === "q" ? 'task:mail.* error:TimeoutError finished>-2h "no answer"' : ""} spellcheck=${false} autocomplete="off"
      value=${text} onInput=${(e) => setText(e.target.value)} onChange=${(e) => { if (e.target.value.trim() !== value) set({ [name]: e.target.value.trim() }); }} />
    <datalist id="names-${name}">${[...new Set(known)].map((text) => html`<option value=${text} />`)}</datalist>`;
}

function Actions({ chosen, filters, bulk }) {
  const ids = [...chosen];
  return html`<div class="actions">
    <span class="muted" role="status">${ids.length ? `${count(ids.length)} selected, the list stands still` : "none selected"}</span>
    <button id="retry-chosen" disabled=${!ids.length || bulk.isBusy} onClick=${() => bulk.run("retry", ids)}>Retry selected</button>
    <button id="cancel-chosen" class="danger" disabled=${!ids.length || bulk.isBusy} onClick=${() => bulk.run("cancel", ids)}>Cancel selected</button>
    <button id="delete-chosen" class="danger" disabled=${!ids.length || bulk.isBusy} onClick=${() => bulk.ask("delete", ids)}>Delete selected …</button>
    <span class="grow"></span>
    ${Object.keys(ACTIONS).filter((verb) => !filters.state || ACTIONS[verb].includes(filters.state)).map((verb) =>
      html`<button key=${verb} id="${verb}-all" class=${verb === "retry" ? "" : "danger"} disabled=${bulk.isBusy}
        onClick=${() => bulk.prepare(verb, lineOf(filters))}>${DO[verb]} all that match …</button>`)}
    ${(!filters.state || WAITING.includes(filters.state)) && html`<${ChangeAll} isOff=${bulk.isBusy} onChange=${(changes) => bulk.prepare("change", lineOf(filters), changes)} />`}
  </div>`;
}
