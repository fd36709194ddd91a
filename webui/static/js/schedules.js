// The page of schedules: what is submitted again and again, when next, what became of it last; pause, resume, run now.

import { useState } from "../vendor/preact-hooks.js";
import { useAnswer } from "./ask.js";
import { count, exact, visible } from "./format.js";
import { post } from "./live.js";
import { Paused, PauseForm } from "./pause.js";
import { go, route, showJob } from "./route.js";
import { When, html } from "./ui.js";

const LIMIT = 50;
const EVERY_MS = 5000;
const COLUMNS = ["Schedule", "When", "Next", "Last", "Runs"];

export function Schedules() {
  const after = route.value.params.after || "";
  const page = useAnswer(`/api/schedules?${new URLSearchParams({ limit: LIMIT, ...(after && { after }) })}`, { everyMs: EVERY_MS });
  const [said, setSaid] = useState({ name: "", text: "" });
  const [paused, setPaused] = useState(""); // the one that is about to be paused
  const schedules = page.answer ? page.answer.schedules : [];
  const act = async (name, word, body, tell) => {
    try {
      const answer = await post(`/api/schedules/${encodeURIComponent(name)}/${word}`, JSON.stringify(body));
      setSaid({ name, text: tell(answer) });
      setPaused("");
    } catch (error) {
      setSaid({ name, text: error.message });
    }
    page.again();
  };
  return html`<section class="panel page" id="schedules" aria-labelledby="h-schedules">
    <div class="head"><h2 id="h-schedules">Schedules ${page.answer && html`<span class="muted">${count(page.answer.total)}</span>`}</h2><span class="grow"></span>
      <span class="pager"><button type="button" disabled=${!after} onClick=${() => go("schedules", {})}>First</button>
        <button type="button" disabled=${!page.answer || !page.answer.next} onClick=${() => go("schedules", { after: page.answer.next })}>More</button></span></div>
    ${page.refusal && html`<p class="banner tone-bad">${page.refusal.message}</p>`}
    <div class="rows" tabindex="0" role="group" aria-labelledby="h-schedules">
      ${schedules.length > 0 && html`<table class="list"><caption class="sr">Schedules by name.</caption>
        <thead><tr>${COLUMNS.map((head) => html`<th scope="col" class=${head === "Runs" ? "num" : ""}>${head}</th>`)}<th scope="col"><span class="sr">Actions</span></th></tr></thead>
        <tbody>${schedules.map((schedule) => html`<${Schedule} key=${schedule.name} schedule=${schedule} act=${act} said=${said.name === schedule.name ? said.text : ""}
          isPausing=${paused === schedule.name} pause=${(isOn) => setPaused(isOn ? schedule.name : "")} />`)}</tbody></table>`}
      ${page.answer && !schedules.length && html`<div class="empty"><p>No schedule yet. Make one:</p>
        <pre class="command">python client.py schedule night '{"n": 10}' --task fibonacci --cron '30 2 * * *'</pre></div>`}
    </div>
  </section>`;
}

function Schedule({ schedule, act, said, isPausing, pause }) {
  const { name, job, error } = schedule;
  if (error !== null) return html`<tr data-schedule=${name}><td class="wide"><b><bdi>${name}</bdi></b><p class="tone-text-bad">It can't run: <bdi>${visible(error)}</bdi></p></td><td colspan="5"></td></tr>`;
  const isPaused = schedule.paused_at !== null;
  return html`<tr data-schedule=${name}>
    <td class="wide"><b><bdi>${name}</bdi></b>
      <p class="muted cut">task <bdi class="mono">${job.task}</bdi>${job.queue && job.queue !== "default" ? html`, queue <bdi class="mono">${job.queue}</bdi>` : ""}</p>
      ${isPaused && html`<${Paused} pause=${schedule} />`}
      ${said && html`<p role="status">${said}</p>`}
      ${isPausing && html`<${PauseForm} name=${name} onCancel=${() => pause(false)} onPause=${({ reason }) => act(name, "pause", { reason }, () => "Paused.")} />`}</td>
    <td data-label="When"><${Rule} schedule=${schedule} /></td>
    <td data-label="Next">${isPaused ? html`<span class="muted">not while paused</span>` : html`<${Next} schedule=${schedule} />`}</td>
    <td data-label="Last">${schedule.last_at === null ? html`<span class="muted">never</span>` : html`<${When} at=${schedule.last_at} />`}
      ${schedule.last_job ? html` <button type="button" class="link" onClick=${() => showJob(schedule.last_job)}>#${schedule.last_job}</button>` : ""}</td>
    <td data-label="Runs" class="num">${count(schedule.runs)}${schedule.skipped > 0 ? html` <span class="muted">${count(schedule.skipped)} skipped</span>` : ""}</td>
    <td class="do"><button type="button" onClick=${() => act(name, "run", {}, (answer) => `Job #${answer.id} was submitted.`)}>Run now</button>
      ${isPaused ? html`<button type="button" onClick=${() => act(name, "resume", {}, () => "Goes on.")}>Resume</button>`
        : html`<button type="button" aria-expanded=${isPausing} onClick=${() => pause(!isPausing)}>Pause …</button>`}</td>
  </tr>`;
}

function Rule({ schedule }) {
  const zone = schedule.timezone;
  return html`<bdi class="mono">${schedule.cron ? schedule.cron : `every ${schedule.every}`}</bdi>${schedule.cron && zone ? html` <span class="muted">${zone}</span>` : ""}
    <p class="muted">overlap: ${schedule.overlap}, missed: ${schedule.missed}</p>`;
}

function Next({ schedule }) {
  const [first, ...rest] = schedule.next_runs;
  if (first === undefined) return html`<span class="muted">never again</span>`;
  return html`<${When} at=${first} /> <details><summary>${exact(first).split(" · ")[0]}</summary><ol>${rest.map((at) => html`<li title=${exact(at)}>${exact(at).split(" · ")[0]}</li>`)}</ol></details>`;
}
