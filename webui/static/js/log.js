// The job log: the newest jobs live, or a page of history when a status or an older page is asked for.

import { useEffect, useState } from "../vendor/preact-hooks.js";
import { useAnswer } from "./ask.js";
import { length, shownLine, visible } from "./format.js";
import { address, showJob } from "./route.js";
import { STATES, flashed, jobs, now, stateFilter, stats } from "./state.js";
import { JobBadges, Priority, When, html } from "./ui.js";

const LIMIT = 50;

function matches(job, text) {
  if (!text) return true;
  const hay = [`#${job.id}`, job.task, job.queue, job.worker, job.state, shownLine(job.result), job.error && `${job.error.name} ${job.error.message}`];
  return hay.some((part) => part && part.toLowerCase().includes(text));
}

export function JobLog() {
  const [text, setText] = useState("");
  const [trail, setTrail] = useState([]); // the `before` of each page further back
  const state = stateFilter.value;
  const before = trail.at(-1);
  const history = useAnswer(state || before ? `/api/jobs?limit=${LIMIT}${state ? `&state=${state}` : ""}${before ? `&before=${before}` : ""}` : null);
  const live = { jobs: jobs.value || [], next: jobs.value && jobs.value.length >= LIMIT ? jobs.value.at(-1).id : null };
  const page = state || before ? history.answer : live;
  useEffect(() => setTrail([]), [state]);
  const rows = page ? page.jobs.filter((job) => matches(job, text.trim().toLowerCase())) : [];
  const onKey = (event) => {
    const number = /^#?(\d{1,16})$/.exec(text.trim());
    if (event.key === "Enter" && number) showJob(Number(number[1]));
    if (event.key === "Escape") setText("");
  };
  return html`<section class="panel" id="log" aria-labelledby="h-log">
    <div class="head"><h2 id="h-log">Job log</h2><a class="all" href=${address("jobs", { state })}>all jobs</a>
      <input id="filter" type="search" placeholder="Filter these rows, or a job number" aria-label="Filter the rows shown; a job number and Enter opens that job" value=${text} onInput=${(e) => setText(e.target.value)} onKeyDown=${onKey} />
      <select id="log-state" aria-label="Status" value=${state} onChange=${(e) => { stateFilter.value = e.target.value; }}>
        <option value="">all statuses</option>${STATES.map((name) => html`<option value=${name}>${name}</option>`)}</select>
      <span class="pager">
        <button disabled=${!trail.length} onClick=${() => setTrail(trail.slice(0, -1))}>Newer</button>
        <button disabled=${!page || !page.next} onClick=${() => setTrail([...trail, page.next])}>Older</button>
      </span>
    </div>
    <div class="rows" tabindex="0" role="group" aria-labelledby="h-log">
      <${JobTable} jobs=${rows} />
      ${page && stats.value && !rows.length && html`<p class="empty">${text || state || trail.length ? "No job matches." : "No job yet. Submit one with the form."}</p>`}
    </div>
  </section>`;
}

/** Jobs as rows. `isFull`: with queue and a box to choose each; `chosen`: a Set of ids, `toggle(ids, isOn)`. */
export function JobTable({ jobs: rows, isFull = false, chosen, toggle }) {
  const heads = [["id", "ID"], ["task", "Task"], isFull && ["queue", "Queue"], ["priority", "Prio"], ["status", "Status"], ["worker", "Worker"], ["result", "Result"], ["when", "When"]];
  const isAll = isFull && rows.length > 0 && rows.every((job) => chosen.has(job.id));
  return html`<table class="jobs ${isFull ? "full" : ""}" role="table"><caption class="sr">Jobs, newest first. The number opens a job.</caption>
    <thead role="rowgroup"><tr role="row">
      ${isFull && html`<th role="columnheader" scope="col" class="c-check"><input type="checkbox" id="choose-all" aria-label="Select all on this page" checked=${isAll} onChange=${() => toggle(rows.map((job) => job.id), !isAll)} /></th>`}
      ${heads.filter(Boolean).map(([name, head]) => html`<th role="columnheader" scope="col" class="c-${name}">${head}</th>`)}</tr></thead>
    <tbody role="rowgroup">${rows.map((job) => html`<${Row} key=${job.id} job=${job} isFull=${isFull} isChosen=${isFull && chosen.has(job.id)} toggle=${toggle} />`)}</tbody>
  </table>`;
}

const cell = (name, inside) => html`<td role="cell" class="c-${name}">${inside}</td>`;

function Row({ job, isFull, isChosen, toggle }) {
  const open = () => showJob(job.id);
  return html`<tr role="row" class=${job.id === flashed.value ? "flash" : ""} onClick=${open} data-job=${job.id}>
    ${isFull && html`<td role="cell" class="c-check" onClick=${(e) => e.stopPropagation()}><input type="checkbox" aria-label="Select job ${job.id}" checked=${isChosen} onChange=${() => toggle([job.id], !isChosen)} /></td>`}
    <td role="cell" class="c-id"><button class="link" onClick=${(e) => { e.stopPropagation(); open(); }} aria-label="Open job ${job.id}">#${job.id}</button></td>
    ${cell("task", html`<bdi title=${job.task}>${job.task}</bdi>`)}
    ${isFull && cell("queue", html`<bdi title=${job.queue}>${job.queue}</bdi>`)}
    ${cell("priority", html`<${Priority} value=${job.priority} />`)}
    ${cell("status", html`<${JobBadges} job=${job} />`)}
    ${cell("worker", job.worker ? html`<bdi title=${job.worker}>${job.worker}</bdi>` : html`<span class="muted">–</span>`)}
    ${cell("result", html`<${Result} job=${job} />`)}
    ${cell("when", html`<${When} at=${job.finished_at || job.started_at || job.submitted_at} />`)}
  </tr>`;
}

function Result({ job }) {
  if (job.state === "running") return html`<span class="muted">for ${length(now.value - job.started_at)}</span>`;
  if (job.state === "scheduled") return html`<span class="muted">due <${When} at=${job.run_at} /></span>`;
  if (job.error) return html`<bdi class="tone-text-bad">${visible(`${job.error.name}: ${job.error.message}`)}</bdi>`;
  if (job.state !== "completed") return html`<span class="muted">–</span>`;
  return job.result ? html`<bdi class="mono">${shownLine(job.result)}</bdi>` : html`<span class="muted">${job.result_bytes} bytes</span>`;
}
