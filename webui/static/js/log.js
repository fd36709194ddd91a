// The job log: the newest jobs live, or a page of history when a status or an older page is asked for.

import { useEffect, useRef, useState } from "../vendor/preact-hooks.js";
import { length, shownLine, visible } from "./format.js";
import { api } from "./live.js";
import { beat, flashed, jobs, now, openJob, stateFilter, stats } from "./state.js";
import { JobBadges, Priority, When, html } from "./ui.js";

const STATES = ["scheduled", "queued", "running", "completed", "failed", "cancelled", "expired"];
const REFETCH_MS = 2000;

/** Rows of history, asked for again when something changed but at most each 2 s. */
function usePage(state, before) {
  const [page, setPage] = useState(null);
  const fetchedAt = useRef(0);
  const asked = useRef("");
  const wanted = state || before;
  const query = `limit=50${state ? `&state=${state}` : ""}${before ? `&before=${before}` : ""}`;
  useEffect(() => {
    if (!wanted) { asked.current = ""; setPage(null); return; }
    if (asked.current === query && performance.now() - fetchedAt.current < REFETCH_MS) return;
    if (asked.current !== query) setPage(null);
    asked.current = query;
    fetchedAt.current = performance.now();
    api(`/api/jobs?${query}`).then((answer) => { if (asked.current === query) setPage(answer); }, () => {});
  }, [query, wanted, beat.value]);
  return wanted ? page : { jobs: jobs.value || [], next: jobs.value && jobs.value.length >= 50 ? jobs.value.at(-1).id : null };
}

function matches(job, text) {
  if (!text) return true;
  const hay = [`#${job.id}`, job.task, job.queue, job.worker, job.state, shownLine(job.result), job.error && `${job.error.name} ${job.error.message}`];
  return hay.some((part) => part && part.toLowerCase().includes(text));
}

export function JobLog() {
  const [text, setText] = useState("");
  const [trail, setTrail] = useState([]); // the `before` of each page further back
  const state = stateFilter.value;
  const page = usePage(state, trail.at(-1));
  useEffect(() => setTrail([]), [state]);
  const rows = page ? page.jobs.filter((job) => matches(job, text.trim().toLowerCase())) : [];
  const onKey = (event) => {
    const number = /^#?(\d{1,16})$/.exec(text.trim());
    if (event.key === "Enter" && number) openJob.value = Number(number[1]);
    if (event.key === "Escape") setText("");
  };
  return html`<section class="panel" id="log" aria-labelledby="h-log">
    <div class="head"><h2 id="h-log">Job log</h2>
      <input id="filter" type="search" placeholder="Filter these rows, or a job number" aria-label="Filter the rows shown; a job number and Enter opens that job" value=${text} onInput=${(e) => setText(e.target.value)} onKeyDown=${onKey} />
      <select id="log-state" aria-label="Status" value=${state} onChange=${(e) => { stateFilter.value = e.target.value; }}>
        <option value="">all statuses</option>${STATES.map((name) => html`<option value=${name}>${name}</option>`)}</select>
      <span class="pager">
        <button type="button" disabled=${!trail.length} onClick=${() => setTrail(trail.slice(0, -1))}>Newer</button>
        <button type="button" disabled=${!page || !page.next} onClick=${() => setTrail([...trail, page.next])}>Older</button>
      </span>
    </div>
    <div class="rows" tabindex="0" role="group" aria-labelledby="h-log">
      <table class="jobs" role="table"><caption class="sr">Jobs, newest first. The number opens a job.</caption>
        <thead role="rowgroup"><tr role="row">${["ID", "Task", "Prio", "Status", "Worker", "Result", "When"].map((head) => html`<th role="columnheader" scope="col">${head}</th>`)}</tr></thead>
        <tbody role="rowgroup">${rows.map((job) => html`<${Row} key=${job.id} job=${job} />`)}</tbody>
      </table>
      ${page && stats.value && !rows.length && html`<p class="empty">${text || state || trail.length ? "No job matches." : "No job yet. Submit one with the form."}</p>`}
    </div>
  </section>`;
}

function Row({ job }) {
  const open = () => { openJob.value = job.id; };
  return html`<tr role="row" class=${job.id === flashed.value ? "flash" : ""} onClick=${open} data-job=${job.id}>
    <td role="cell" class="c-id"><button type="button" class="link" onClick=${(e) => { e.stopPropagation(); open(); }} aria-label="Open job ${job.id}">#${job.id}</button></td>
    <td role="cell" class="c-task"><bdi title=${job.task}>${job.task}</bdi></td>
    <td role="cell" class="c-priority"><${Priority} value=${job.priority} /></td>
    <td role="cell" class="c-status"><${JobBadges} job=${job} /></td>
    <td role="cell" class="c-worker">${job.worker ? html`<bdi title=${job.worker}>${job.worker}</bdi>` : html`<span class="muted">–</span>`}</td>
    <td role="cell" class="c-result"><${Result} job=${job} /></td>
    <td role="cell" class="c-when"><${When} at=${job.finished_at || job.started_at || job.submitted_at} /></td>
  </tr>`;
}

function Result({ job }) {
  if (job.state === "running") return html`<span class="muted">for ${length(now.value - job.started_at)}</span>`;
  if (job.state === "scheduled") return html`<span class="muted">due <${When} at=${job.run_at} /></span>`;
  if (job.error) return html`<bdi class="tone-text-bad">${visible(`${job.error.name}: ${job.error.message}`)}</bdi>`;
  if (job.state !== "completed") return html`<span class="muted">–</span>`;
  return job.result ? html`<bdi class="mono">${shownLine(job.result)}</bdi>` : html`<span class="muted">${job.result_bytes} bytes</span>`;
}
