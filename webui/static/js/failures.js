// The page of failures: failed jobs that failed the same way, put together; one is tried first, then the others.

import { useEffect, useState } from "../vendor/preact-hooks.js";
import { useAnswer } from "./ask.js";
import { BulkStatus, useBulk } from "./bulk.js";
import { useJob } from "./drawer.js";
import { count, length, visible } from "./format.js";
import { NameFilter } from "./jobs.js";
import { post } from "./live.js";
import { address, go, route, showJob } from "./route.js";
import { knownTasks } from "./state.js";
import { Badge, Icon, Refused, When, html } from "./ui.js";

const EVERY_MS = 10000;
const WORKERS_SHOWN = 2;

const filtersOf = ({ task = "", queue = "" }) => ({ task, queue });

export function Failures() {
  const { params } = route.value;
  const filters = filtersOf(params);
  const before = /^\d{1,16}$/.test(params.before || "") ? params.before : "";
  const query = new URLSearchParams(Object.entries({ ...filters, before }).filter(([, value]) => value));
  const [firsts, setFirsts] = useState([]); // what was tried first, newest on top: {turn, id, others, line, task, refusal?}
  const page = useAnswer(`/api/failures?${query}`, { everyMs: EVERY_MS });
  const bulk = useBulk(page.again);
  const set = (changes) => go("failures", { ...filtersOf(route.value.params), ...changes });
  const groups = page.answer ? page.answer.groups : [];
  /** The search line that finds the jobs of a group: those here, and all that failed alike since. */
  const lineOf = ({ fingerprint, task }) => `state:failed task:${task} fingerprint:${fingerprint}${filters.queue && ` queue:${filters.queue}`}${before && ` id<${before}`}`;
  const tryFirst = async (group) => {
    const first = { turn: performance.now(), id: group.newest, others: group.count - 1, line: lineOf(group), task: group.task };
    try {
      await post(`/api/jobs/${first.id}/retry`);
    } catch (refusal) {
      first.refusal = refusal.message;
    }
    setFirsts((old) => [first, ...old.filter((other) => other.id !== first.id)].slice(0, 5));
    page.again();
  };
  return html`<section class="panel page" id="failures" aria-labelledby="h-failures">
    <div class="head"><h2 id="h-failures">Failures</h2>
      <form class="filters" onSubmit=${(event) => event.preventDefault()}>
        <${NameFilter} name="task" value=${filters.task} known=${knownTasks()} set=${set} />
        <${NameFilter} name="queue" value=${filters.queue} known=${["default"]} set=${set} /></form>
      <span class="pager"><button disabled=${!before} onClick=${() => set({})}>Newest</button>
        <button disabled=${!page.answer || !page.answer.next} onClick=${() => set({ before: page.answer.next })}>Older</button></span></div>
    <p class="note muted" id="scanned">${page.answer ? range(page.answer, before) : "Looking at failed jobs …"}</p>
    <${Refused} refusal=${page.refusal} />
    <${BulkStatus} bulk=${bulk} />
    ${firsts.map((first) => html`<${First} key=${first.turn} first=${first} bulk=${bulk} onEnd=${page.again} close=${() => setFirsts((old) => old.filter((other) => other !== first))} />`)}
    <div class="rows" tabindex="0" role="group" aria-labelledby="h-failures">
      ${groups.length > 0 && html`<table class="list"><caption class="sr">Failed jobs by how they failed, most first.</caption>
        <thead><tr><th scope="col">How it failed</th><th scope="col" class="num">Jobs</th><th scope="col">First</th><th scope="col">Last</th><th scope="col">Workers</th><th scope="col"><span class="sr">Actions</span></th></tr></thead>
        <tbody>${groups.map((group) => html`<${Group} key=${group.fingerprint} group=${group} line=${lineOf(group)} bulk=${bulk} tryFirst=${tryFirst} />`)}</tbody></table>`}
      ${page.answer && !groups.length && html`<p class="empty">${page.answer.next ? "No failed job among those looked at." : "No failed job. Good."}</p>`}
    </div>
  </section>`;
}

/** How far was looked, in words. */
function range({ scanned, next, groups_total: total, groups }, before) {
  const what = before ? `failed jobs below #${before}` : "failed jobs";
  const shown = total > groups.length ? `; the ${count(groups.length)} largest of ${count(total)} groups` : "";
  if (next === null) return scanned.jobs ? `All ${count(scanned.jobs)} ${what}${shown}.` : "";
  return `The newest ${count(scanned.jobs)} ${what}, down to #${scanned.oldest || next}${shown}. Older ones were not looked at.`;
}

function Group({ group, line, bulk, tryFirst }) {
  const hidden = group.workers_total - WORKERS_SHOWN;
  return html`<tr data-group=${group.fingerprint}>
    <td class="wide"><p><b><bdi>${visible(group.error) || "no error name"}</bdi></b>${group.place && html` <span class="muted">@ <bdi class="mono">${visible(group.place)}</bdi></span>`}</p>
      <p class="cut tone-text-bad"><bdi title=${visible(group.message)}>${visible(group.message)}</bdi></p>
      <p class="muted cut">task <bdi class="mono">${group.task}</bdi>, newest <button class="link" onClick=${() => showJob(group.newest)}>#${group.newest}</button></p></td>
    <td data-label="Jobs" class="num"><a href=${address("jobs", { q: line })} title="these jobs">${count(group.count)}</a></td>
    <td data-label="First"><${When} at=${group.first_at} /></td>
    <td data-label="Last"><${When} at=${group.last_at} /></td>
    <td data-label="Workers" class="cut">${group.workers.slice(0, WORKERS_SHOWN).map((name, i) => html`${i ? ", " : ""}<bdi>${name}</bdi>`)}${hidden > 0 ? ` and ${count(hidden)} more` : ""}${group.workers_total === 1 && group.count > 1 ? " only" : ""}</td>
    <td class="do"><button disabled=${bulk.isBusy} onClick=${() => tryFirst(group)}>Retry one first</button>
      <button disabled=${bulk.isBusy} onClick=${() => bulk.runAll({ verb: "retry", q: line, total: group.count })}>Retry ${group.count === 1 ? "it" : `all ${count(group.count)}`}</button></td>
  </tr>`;
}

/** The one that was tried first, and what became of it. */
function First({ first, bulk, onEnd, close }) {
  const { job, refusal } = useJob(first.refusal ? null : first.id);
  const isGood = job && job.state === "completed";
  const isBad = job && (job.state === "failed" || (job.state === "scheduled" && job.failures > 0));
  useEffect(() => { if (isGood || isBad) onEnd(); }, [isGood, isBad]); // the groups counted it while it ran
  return html`<div class="first banner ${isGood ? "tone-ok" : isBad || first.refusal ? "tone-bad" : "tone-wait"}" role="status" data-first=${first.id}>
    <span>Tried first: <button class="link" onClick=${() => showJob(first.id)}><bdi>${first.task}</bdi> #${first.id}</button></span>
    ${job && html`<${Badge} state=${job.state} />`}
    <span class="grow">${first.refusal || (refusal && refusal.message) || (job && became(job, isGood, isBad))}</span>
    ${first.others > 0 && html`<button class=${isGood ? "go" : ""} disabled=${bulk.isBusy} onClick=${() => { bulk.runAll({ verb: "retry", q: first.line, total: first.others }); close(); }}>Retry the other ${count(first.others)}</button>`}
    <button class="quiet" onClick=${close} aria-label="Close"><${Icon} name="close" /></button>
  </div>`;
}

function became(job, isGood, isBad) {
  if (isGood) return `It went well this time, in ${length(job.finished_at - job.started_at)}.`;
  if (!isBad) return job.state === "running" ? "It runs." : "It waits for a worker.";
  const why = job.error ? visible(`${job.error.name}: ${job.error.message}`).slice(0, 200) : "";
  return `It failed again. ${why}${job.state === "scheduled" ? " The broker tries it again later." : ""}`;
}
