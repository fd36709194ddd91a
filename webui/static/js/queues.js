// The page of queues: what waits, runs and ended in each, who takes from it, why it is as fast as it is, and what is paused or limited.

import { useState } from "../vendor/preact-hooks.js";
import { useAnswer } from "./ask.js";
import { patiently } from "./bulk.js";
import { Confirm } from "./form.js";
import { count } from "./format.js";
import { Limited, LimitForm } from "./limits.js";
import { post } from "./live.js";
import { Paused, PauseForm } from "./pause.js";
import { address } from "./route.js";
import { stats } from "./state.js";
import { Icon, Refused, html } from "./ui.js";
import { WhyQueue } from "./why.js";

const COUNTS = ["queued", "scheduled", "running", "failed", "completed"];

export function Queues() {
  const page = useAnswer("/api/queues");
  const pauses = useAnswer("/api/pauses");
  const [said, setSaid] = useState("");
  const [open, setOpen] = useState({ what: "", name: "" }); // what is open: "pause", "limit", "purge", "why", and of which queue
  const [purged, setPurged] = useState(null); // {name, done}
  const queues = page.answer ? page.answer.queues : [];
  const tasks = pauses.answer ? pauses.answer.pauses.filter((pause) => pause.task !== null) : [];
  const hidden = page.answer ? page.answer.total - queues.length : 0;
  const change = async (word, body) => {
    await post(`/api/${word}`, JSON.stringify(body));
    setSaid("");
    setOpen({ what: "", name: "" });
    page.again();
    pauses.again();
  };
  const act = (word, body) => change(word, body).catch((error) => setSaid(error.message));
  const purge = async (name) => {
    let done = 0;
    setOpen({ what: "", name: "" });
    try {
      for (let before; before !== null;) {
        const slice = await patiently(() => post(`/api/queues/${name}/purge`, JSON.stringify({ before })));
        before = slice.next;
        done += slice.purged;
        setPurged({ name, done });
      }
      setSaid("");
    } catch (error) {
      setSaid(error.message);
    }
    page.again();
  };
  return html`<section class="panel page" id="queues" aria-labelledby="h-queues">
    <div class="head"><h2 id="h-queues">Queues ${page.answer && html`<span class="muted">${count(page.answer.total)}</span>`}</h2></div>
    <${Refused} refusal=${page.refusal} />
    ${said && html`<p class="banner tone-bad" role="status">${said}</p>`}
    <div class="rows" tabindex="0" role="group" aria-labelledby="h-queues">
      ${tasks.map((pause) => html`<div class="paused-task" key=${pause.task}><span>Task <bdi class="mono">${pause.task}</bdi>, in all queues</span><${Paused} pause=${pause} />
        <button onClick=${() => act("resume", { task: pause.task })}>Resume</button></div>`)}
      ${queues.length > 0 && html`<table class="list"><caption class="sr">Queues by name. Each number leads to its jobs.</caption>
        <thead><tr><th scope="col">Queue</th>${COUNTS.map((state) => html`<th scope="col" class="num">${state}</th>`)}<th scope="col" class="num">workers</th><th scope="col" class="num">tasks</th><th scope="col"><span class="sr">Actions</span></th></tr></thead>
        <tbody>${queues.map((queue) => html`<${Queue} key=${queue.name} queue=${queue} act=${act} change=${change} purge=${purge} purged=${purged && purged.name === queue.name ? purged.done : null}
          open=${open.name === queue.name ? open.what : ""} setOpen=${(what) => setOpen({ what, name: queue.name })} />`)}</tbody></table>`}
      ${hidden > 0 && html`<p class="empty">and ${count(hidden)} more</p>`}
      ${page.answer && !queues.length && html`<p class="empty">No queue yet. The first job makes it.</p>`}
    </div>
  </section>`;
}

function Queue({ queue, act, change, purge, purged, open, setOpen }) {
  const { name, paused } = queue;
  const isDeaf = queue.queued > 0 && queue.workers === 0;
  const waiting = queue.queued + queue.scheduled;
  const toggle = (what, word, kind = "") => html`<button class=${kind} aria-expanded=${open === what} onClick=${() => setOpen(open === what ? "" : what)}>${word}</button>`;
  return html`<tr data-queue=${name}>
    <td class="wide"><a href=${address("jobs", { queue: name })}><b><bdi>${name}</bdi></b></a>
      ${paused && html`<${Paused} pause=${paused} />`}
      ${queue.limit && html`<${Limited} limit=${queue.limit} />`}
      ${isDeaf && html`<p class="tone-text-warn"><${Icon} name="warn" /> no connected worker takes from it</p>`}
      ${purged !== null && html`<p role="status">${count(purged)} ${purged === 1 ? "job was" : "jobs were"} cancelled.</p>`}
      ${open === "pause" && html`<${PauseForm} name=${name} hasLength onCancel=${() => setOpen("")} onPause=${(how) => change("pause", { queue: name, ...how })} />`}
      ${open === "limit" && html`<${LimitForm} name=${name} limit=${queue.limit} onCancel=${() => setOpen("")} onRemove=${() => act("unlimit", { queue: name })} onLimit=${(what) => change("limit", { queue: name, ...what })} />`}
      ${open === "purge" && html`<${Confirm} question="Cancel all ${count(waiting)} that wait here (${count(queue.queued)} queued, ${count(queue.scheduled)} scheduled)? What runs goes on." word="Cancel them" onYes=${() => purge(name)} onNo=${() => setOpen("")} />`}</td>
    ${COUNTS.map((state) => html`<td class="num half" data-label=${state}>${queue[state] ? html`<a href=${address("jobs", { queue: name, state })}>${count(queue[state])}</a>` : html`<span class="muted">0</span>`}</td>`)}
    <td class="num half" data-label="workers">${count(queue.workers)}</td>
    <td class="num half" data-label="tasks">${count(queue.tasks)}</td>
    <td class="do">${toggle("why", "Explain")}
      ${paused ? html`<button onClick=${() => act("resume", { queue: name })}>Resume</button>`
      : toggle("pause", "Pause …")}
      ${toggle("limit", "Limit …")}
      ${waiting > 0 && toggle("purge", "Purge …", "danger")}</td>
  </tr>
  ${open === "why" && html`<tr><td colspan="9" class="explained"><${WhyQueue} name=${name} /></td></tr>`}`;
}

/** What is paused, on every page. */
export function PausedBanner() {
  const paused = stats.value && stats.value.paused;
  if (!paused || !(paused.queue + paused.task)) return null;
  const parts = [["queue", paused.queue], ["task", paused.task]].filter(([, n]) => n).map(([word, n]) => `${count(n)} ${word}${n === 1 ? "" : "s"}`);
  return html`<p class="banner tone-warn" id="paused"><${Icon} name="paused" /><span>${parts.join(" and ")} ${paused.queue + paused.task === 1 ? "is" : "are"} paused: <a href=${address("queues")}>see Queues</a></span></p>`;
}
