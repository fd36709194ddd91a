// The job drawer: everything about one job, live while it runs, and its buttons.

import { useEffect, useRef, useState } from "../vendor/preact-hooks.js";
import { ChangeForm } from "./change.js";
import { CopyForm } from "./copy.js";
import { Confirm } from "./form.js";
import { clock, count, exact, length, share, shownBlock, visible } from "./format.js";
import { api, post } from "./live.js";
import { closeJob, openJob } from "./route.js";
import { FINISHED, RETRYABLE, WAITING, beat } from "./state.js";
import { Icon, JobBadges, Priority, Refused, When, html } from "./ui.js";
import { WhyWaiting } from "./why.js";

const LINES = 1000; // the broker keeps no more either

/** The job {id, job?, refusal?}, asked for when opened and with all news until it is finished. */
export function useJob(id) {
  const [known, setKnown] = useState({});
  const current = known.id === id ? known : {};
  const isOver = current.job && FINISHED.includes(current.job.state);
  useEffect(() => {
    if (id === null || isOver) return undefined;
    let wanted = true;
    api(`/api/jobs/${id}`).then(
      (answer) => { if (wanted) setKnown({ id, job: answer.job }); },
      (refusal) => { if (wanted && (refusal.status || !current.job)) setKnown({ id, job: current.job, refusal }); });
    return () => { wanted = false; };
  }, [id, isOver, beat.value]);
  return { ...current, forget: () => setKnown({}) };
}

export function Drawer() {
  const id = openJob.value;
  const { job, refusal, forget } = useJob(id);
  const dialog = useRef(null);
  useEffect(() => {
    if (id !== null && !dialog.current.open) dialog.current.showModal();
    if (id === null && dialog.current.open) dialog.current.close();
  }, [id]);
  return html`<dialog class="drawer" ref=${dialog} aria-labelledby="h-drawer" onClose=${closeJob} onClick=${(e) => { if (e.target === dialog.current) closeJob(); }}>
    ${id !== null && html`<div class="sheet">
      <div class="head"><h2 id="h-drawer">Job #${id}${job ? html` <bdi class="mono">${job.task}</bdi>` : ""}</h2>
        <button class="quiet" onClick=${closeJob} aria-label="Close"><${Icon} name="close" /></button></div>
      <${Refused} refusal=${refusal} />
      ${job && html`<${Details} key=${id} job=${job} reopenJob=${forget} />`}
    </div>`}
  </dialog>`;
}

function Details({ job, reopenJob }) {
  const [said, setSaid] = useState("");
  const [open, setOpen] = useState(""); // the form that is open
  const shut = () => setOpen("");
  const act = async (verb, tell) => {
    shut();
    try {
      setSaid(tell(await post(`/api/jobs/${job.id}/${verb}`)));
    } catch (error) {
      setSaid(error.message);
    }
  };
  const cancel = () => act("cancel", ({ outcome }) => (outcome === "requested" ? "The worker was asked to stop." : "Cancelled: it will never run."));
  const remove = () => act("delete", () => { closeJob(); return ""; });
  const retry = () => act("retry", () => {
    reopenJob();
    return "Queued again, behind the others of its priority.";
  });
  return html`<div class="state"><${JobBadges} job=${job} /><${Priority} value=${job.priority} />
      <span class="grow"></span>
      ${WAITING.includes(job.state) && html`<button aria-expanded=${open === "change"} onClick=${() => setOpen("change")}>Change …</button>`}
      ${!FINISHED.includes(job.state) && html`<button class="danger" disabled=${job.cancel_requested} onClick=${cancel}>Cancel job</button>`}
      ${RETRYABLE.includes(job.state) && html`<button onClick=${retry}>Retry job</button>`}
      ${FINISHED.includes(job.state) && html`<button class="danger" aria-expanded=${open === "delete"} onClick=${() => setOpen("delete")}>Delete …</button>`}</div>
    <p role="status" class="said">${said}</p>
    ${open === "change" && html`<${ChangeForm} job=${job} onCancel=${shut} onDone=${() => { shut(); setSaid("Changed."); }} />`}
    ${open === "delete" && html`<${Confirm} question="Delete it, with result, runs and log? Nothing brings it back." word="Delete" onYes=${remove} onNo=${shut} />`}
    <${WhyWaiting} job=${job} />
    ${job.state === "running" && gotTo(job) && html`<p class="progress"><progress max="1" value=${job.progress} aria-label="Progress"></progress> <bdi>${gotTo(job)}</bdi></p>`}
    <${Facts} job=${job} />
    <${Log} job=${job} />
    <${Runs} job=${job} />
    ${job.error && html`<h3>Error</h3><p class="error"><b><bdi>${visible(job.error.name)}</bdi></b> <bdi>${visible(job.error.message)}</bdi></p>
      ${job.error.traceback && html`<pre class="block" tabindex="0" aria-label="Traceback">${visible(job.error.traceback)}</pre>`}`}
    ${job.state === "completed" && html`<${Block} title="Result" shown=${job.result} bytes=${job.result_bytes} />`}
    <${Block} title="Payload" shown=${job.payload} bytes=${job.payload_bytes} />
    ${job.payload && html`<${CopyForm} job=${job} word=${RETRYABLE.includes(job.state) ? "Edit and retry" : "Submit a copy"} />`}`;
}

/** "25 % · page 1 of 4", or nothing. */
const gotTo = (job) => [typeof job.progress === "number" && share(job.progress, 1), job.progress_text && visible(job.progress_text)].filter(Boolean).join(" · ");

/** What the runs of the job wrote to its log, as it comes; it stays at its end unless somebody scrolled up. */
function Log({ job }) {
  const [log, setLog] = useState({ lines: [], next: 0, dropped: 0, finished: false });
  const box = useRef(null);
  const isAtEnd = useRef(true);
  useEffect(() => {
    if (log.finished || !job.attempt) return undefined;
    let wanted = true;
    api(`/api/jobs/${job.id}/logs?after=${log.next}`).then((answer) => {
      if (!wanted || !(answer.lines.length || answer.finished)) return;
      setLog({ ...answer, dropped: log.dropped + answer.dropped, lines: [...log.lines, ...answer.lines].slice(-LINES) });
    }, () => {});
    return () => { wanted = false; };
  }, [job.id, job.state, log.next, log.finished, beat.value]);
  useEffect(() => { if (box.current && isAtEnd.current) box.current.scrollTop = box.current.scrollHeight; }, [log.next]);
  if (!log.lines.length) return null;
  const note = ({ target }) => { isAtEnd.current = target.scrollHeight - target.scrollTop - target.clientHeight < 24; };
  return html`<h3>Log ${log.dropped > 0 && html`<span class="muted">${count(log.dropped)} older lines are not kept</span>`}</h3>
    <div class="block lines" ref=${box} tabindex="0" role="log" aria-label="Log" onScroll=${note}>${log.lines.map((line) =>
      html`<div key=${line.seq}><time title=${`attempt ${line.attempt}`}>${clock(line.at)}</time> ${visible(line.text)}</div>`)}</div>`;
}

function Facts({ job }) {
  const ran = job.started_at && (job.finished_at || null);
  const keptFor = (job.options || {}).keep_for;
  const rows = [
    ["Queue", html`<bdi class="mono">${job.queue}</bdi>`],
    ["Worker", job.worker ? html`<bdi class="mono">${job.worker}</bdi>` : "none yet"],
    ["Submitted", html`<${Moment} at=${job.submitted_at} />`],
    job.run_at && ["Not before", html`<${Moment} at=${job.run_at} />`],
    ["Started", html`<${Moment} at=${job.started_at} />`],
    ["Finished", html`<${Moment} at=${job.finished_at} />`],
    keptFor !== undefined && ["Kept until", job.finished_at ? html`<${Moment} at=${job.finished_at + keptFor} />` : `${length(keptFor)} after its end`],
    job.started_at && ["Waited", length(job.started_at - Math.max(job.submitted_at, job.run_at || 0))],
    ran && ["Ran", length(job.finished_at - job.started_at)],
    job.state !== "running" && gotTo(job) && ["Got to", html`<bdi>${gotTo(job)}</bdi>`],
    ["Attempts", `${count(job.attempt)}, of them failed ${count(job.failures)}, lost ${count(job.crashes)}`],
    job.crashes > 0 && !job.finished_at && ["Suspect", "was lost before: a worker with threads runs it alone"],
    ["Requeued", `${count(job.requeues)} ${job.requeues === 1 ? "time" : "times"}`],
    ["Encoding", job.encoding],
    ...Object.entries(job.options || {}).map(([name, value]) => [`Option ${name.replaceAll("_", " ")}`, html`<bdi>${optionText(name, value)}</bdi>`]),
    job.options && job.options.unique_key && ["Key taken", html`<${KeyTaken} job=${job} />`],
  ].filter(Boolean);
  return html`<dl class="facts">${rows.map(([name, value]) => html`<dt>${name}</dt><dd>${value}</dd>`)}</dl>`;
}

/** An option that the job was submitted with; numbers but `attempts` are seconds. */
const optionText = (name, value) => (typeof value !== "number" ? visible(String(value)) : name === "attempts" ? count(value) : `${count(value)} s`);

/** Until when its unique key is taken. */
function KeyTaken({ job }) {
  const { unique_mode: mode = "until_done", unique_for: span, debounce_max: most } = job.options;
  const by = (after) => html`<${Moment} at=${job.submitted_at + after} />`;
  return html`<span data-mode=${mode}>${{
    until_done: html`until the job is finished${span && html`, at the latest ${by(span)}`}`,
    throttle: by(span),
    debounce: job.attempt || FINISHED.includes(job.state) ? "no more" : html`until a worker gets it; each submit puts it off by ${length(span)}${most && html`, at the latest ${by(most)}`}`,
  }[mode]}</span>`;
}

/** How the runs ended that did not complete the job. */
function Runs({ job }) {
  const [runs, setRuns] = useState([]);
  useEffect(() => {
    if (job.attempt < 2 && !job.failures && !job.crashes) return;
    api(`/api/jobs/${job.id}/runs`).then((answer) => setRuns(answer.runs), () => {});
  }, [job.id, job.attempt, job.state]);
  if (!runs.length) return null;
  return html`<h3>Runs that did not complete it</h3><table class="runs"><thead><tr><th>Attempt</th><th>Outcome</th><th>Worker</th><th>Began</th><th>Ran</th></tr></thead>
    <tbody>${runs.map((run) => html`<tr key=${run.attempt}><td class="num">${count(run.attempt)}</td>
      <td>${run.outcome}${run.error ? html`: <bdi>${visible(run.error.name)}</bdi>` : ""}</td><td><bdi class="mono">${run.worker}</bdi></td>
      <td><${When} at=${run.started_at} /></td><td>${run.started_at ? length(run.ended_at - run.started_at) : ""}</td></tr>`)}</tbody></table>`;
}

const Moment = ({ at }) => html`<${When} at=${at} />${at ? html` <span class="muted">${exact(at).split(" · ")[0]}</span>` : ""}`;

const Block = ({ title, shown, bytes }) => html`<h3>${title} <span class="muted">${count(bytes)} bytes</span></h3>
  ${shown ? html`<pre class="block" tabindex="0" aria-label=${title}>${shownBlock(shown)}</pre>` : html`<p class="muted">not there</p>`}`;
