// The page of queues: what waits, runs and ended in each, who takes from it, and what is paused or limited.

import { useState } from "../vendor/preact-hooks.js";
import { useAnswer } from "./ask.js";
import { count } from "./format.js";
import { Limited, LimitForm } from "./limits.js";
import { post } from "./live.js";
import { Paused, PauseForm } from "./pause.js";
import { address } from "./route.js";
import { stats } from "./state.js";
import { Icon, html } from "./ui.js";

const COUNTS = ["queued", "scheduled", "running", "failed", "completed"];

export function Queues() {
  const page = useAnswer("/api/queues");
  const pauses = useAnswer("/api/pauses");
  const [said, setSaid] = useState("");
  const [pausing, setPausing] = useState(null); // the queue that is about to be paused
  const [limiting, setLimiting] = useState(null); // … or limited
  const queues = page.answer ? page.answer.queues : [];
  const tasks = pauses.answer ? pauses.answer.pauses.filter((pause) => pause.task !== null) : [];
  const hidden = page.answer ? page.answer.total - queues.length : 0;
  const act = async (word, body) => {
    try {
      await post(`/api/${word}`, JSON.stringify(body));
      setSaid("");
      setPausing(null);
      setLimiting(null);
    } catch (error) {
      setSaid(error.message);
    }
    page.again();
    pauses.again();
  };
  return html`<section class="panel page" id="queues" aria-labelledby="h-queues">
    <div class="head"><h2 id="h-queues">Queues ${page.answer && html`<span class="muted">${count(page.answer.total)}</span>`}</h2></div>
    ${page.refusal && html`<p class="banner tone-bad">${page.refusal.message}</p>`}
    ${said && html`<p class="banner tone-bad" role="status">${said}</p>`}
    <div class="rows" tabindex="0" role="group" aria-labelledby="h-queues">
      ${tasks.map((pause) => html`<div class="paused-task" key=${pause.task}><span>Task <bdi class="mono">${pause.task}</bdi>, in all queues</span><${Paused} pause=${pause} />
        <button type="button" onClick=${() => act("resume", { task: pause.task })}>Resume</button></div>`)}
      ${queues.length > 0 && html`<table class="list"><caption class="sr">Queues by name. Each number leads to its jobs.</caption>
        <thead><tr><th scope="col">Queue</th>${COUNTS.map((state) => html`<th scope="col" class="num">${state}</th>`)}<th scope="col" class="num">workers</th><th scope="col" class="num">tasks</th><th scope="col"><span class="sr">Actions</span></th></tr></thead>
        <tbody>${queues.map((queue) => html`<${Queue} key=${queue.name} queue=${queue} act=${act} isPausing=${pausing === queue.name} pause=${setPausing}
          isLimiting=${limiting === queue.name} limit=${setLimiting} />`)}</tbody></table>`}
      ${hidden > 0 && html`<p class="empty">and ${count(hidden)} more</p>`}
      ${page.answer && !queues.length && html`<p class="empty">No queue yet. The first job makes it.</p>`}
    </div>
  </section>`;
}

function Queue({ queue, act, isPausing, pause, isLimiting, limit }) {
  const { name, paused } = queue;
  const isDeaf = queue.queued > 0 && queue.workers === 0;
  return html`<tr data-queue=${name}>
    <td class="wide"><a href=${address("jobs", { queue: name })}><b><bdi>${name}</bdi></b></a>
      ${paused && html`<${Paused} pause=${paused} />`}
      ${queue.limit && html`<${Limited} limit=${queue.limit} />`}
      ${isDeaf && html`<p class="tone-text-warn"><${Icon} name="warn" /> no connected worker takes from it</p>`}
      ${isPausing && html`<${PauseForm} name=${name} hasLength onCancel=${() => pause(null)} onPause=${(how) => act("pause", { queue: name, ...how })} />`}
      ${isLimiting && html`<${LimitForm} name=${name} limit=${queue.limit} onCancel=${() => limit(null)} onRemove=${() => act("unlimit", { queue: name })} onLimit=${(what) => act("limit", { queue: name, ...what })} />`}</td>
    ${COUNTS.map((state) => html`<td class="num half" data-label=${state}>${queue[state] ? html`<a href=${address("jobs", { queue: name, state })}>${count(queue[state])}</a>` : html`<span class="muted">0</span>`}</td>`)}
    <td class="num half" data-label="workers">${count(queue.workers)}</td>
    <td class="num half" data-label="tasks">${count(queue.tasks)}</td>
    <td class="do">${paused ? html`<button type="button" onClick=${() => act("resume", { queue: name })}>Resume</button>`
      : html`<button type="button" aria-expanded=${isPausing} onClick=${() => pause(isPausing ? null : name)}>Pause …</button>`}
      <button type="button" aria-expanded=${isLimiting} onClick=${() => limit(isLimiting ? null : name)}>Limit …</button></td>
  </tr>`;
}

/** What is paused, on every page. */
export function PausedBanner() {
  const paused = stats.value && stats.value.paused;
  if (!paused || !(paused.queue + paused.task)) return null;
  const parts = [["queue", paused.queue], ["task", paused.task]].filter(([, n]) => n).map(([word, n]) => `${count(n)} ${word}${n === 1 ? "" : "s"}`);
  return html`<p class="banner tone-warn" id="paused"><${Icon} name="paused" /><span>${parts.join(" and ")} ${paused.queue + paused.task === 1 ? "is" : "are"} paused: <a href=${address("queues")}>see Queues</a></span></p>`;
}
