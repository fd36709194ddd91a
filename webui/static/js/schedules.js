// The page of schedules: what is submitted again and again, when next, what became of it last; and all that is done with them.

import { useState } from "../vendor/preact-hooks.js";
import { useAnswer } from "./ask.js";
import { Confirm } from "./form.js";
import { count, visible } from "./format.js";
import { post } from "./live.js";
import { Paused, PauseForm } from "./pause.js";
import { go, route, showJob } from "./route.js";
import { NextRuns, ScheduleForm } from "./schedule_form.js";
import { Refused, When, html } from "./ui.js";

const LIMIT = 50;
const EVERY_MS = 5000;
const COLUMNS = ["Schedule", "When", "Next", "Last", "Runs"];

export function Schedules() {
  const after = route.value.params.after || "";
  const page = useAnswer(`/api/schedules?${new URLSearchParams({ limit: LIMIT, ...(after && { after }) })}`, { everyMs: EVERY_MS });
  const [said, setSaid] = useState({ name: "", text: "" });
  const [open, setOpen] = useState({ what: "", name: "" }); // the form that is open: "pause", "edit", "delete", and of which schedule
  const shut = () => setOpen({ what: "", name: "" });
  const schedules = page.answer ? page.answer.schedules : [];
  const act = async (name, word, body, tell) => {
    try {
      const answer = await post(`/api/schedules/${encodeURIComponent(name)}/${word}`, JSON.stringify(body));
      setSaid({ name, text: tell(answer) });
      if (open.what !== "edit") shut(); // what was typed there stays
    } catch (error) {
      setSaid({ name, text: error.message });
    }
    page.again();
  };
  return html`<section class="panel page" id="schedules" aria-labelledby="h-schedules">
    <div class="head"><h2 id="h-schedules">Schedules ${page.answer && html`<span class="muted">${count(page.answer.total)}</span>`}</h2><span class="grow"></span>
      <button aria-expanded=${open.what === "edit" && !open.name} onClick=${() => setOpen({ what: "edit", name: "" })}>New schedule …</button>
      <span class="pager"><button disabled=${!after} onClick=${() => go("schedules", {})}>First</button>
        <button disabled=${!page.answer || !page.answer.next} onClick=${() => go("schedules", { after: page.answer.next })}>More</button></span></div>
    <${Refused} refusal=${page.refusal} />
    ${open.what === "edit" && html`<${ScheduleForm} key=${open.name} name=${open.name} onCancel=${shut} onDone=${(name) => { shut(); setSaid({ name, text: "Saved." }); page.again(); }} />`}
    <div class="rows" tabindex="0" role="group" aria-labelledby="h-schedules">
      ${schedules.length > 0 && html`<table class="list"><caption class="sr">Schedules by name.</caption>
        <thead><tr>${COLUMNS.map((head) => html`<th scope="col" class=${head === "Runs" ? "num" : ""}>${head}</th>`)}<th scope="col"><span class="sr">Actions</span></th></tr></thead>
        <tbody>${schedules.map((schedule) => html`<${Schedule} key=${schedule.name} schedule=${schedule} act=${act} said=${said.name === schedule.name ? said.text : ""}
          open=${open.name === schedule.name ? open.what : ""} setOpen=${(what) => (what ? setOpen({ what, name: schedule.name }) : shut())} />`)}</tbody></table>`}
      ${page.answer && !schedules.length && html`<div class="empty"><p>No schedule yet. Make one with the button above, or:</p>
        <pre class="command">python client.py schedule night '{"n": 10}' --task fibonacci --cron '30 2 * * *'</pre></div>`}
    </div>
  </section>`;
}

function Schedule({ schedule, act, said, open, setOpen }) {
  const { name, job, error } = schedule;
  const confirm = open === "delete" && html`<${Confirm} question="Delete the schedule? The jobs that it submitted stay." word="Delete" onNo=${() => setOpen("")} onYes=${() => act(name, "delete", {}, () => "")} />`;
  const buttons = html`<button aria-expanded=${open === "edit"} onClick=${() => setOpen("edit")}>Edit …</button>
      <button class="danger" aria-expanded=${open === "delete"} onClick=${() => setOpen("delete")}>Delete …</button>`;
  if (error !== null) return html`<tr data-schedule=${name}><td class="wide" colspan="5"><b><bdi>${name}</bdi></b><p class="tone-text-bad">It can't run: <bdi>${visible(error)}</bdi></p>${confirm}</td><td class="do">${buttons}</td></tr>`;
  const isPaused = schedule.paused_at !== null;
  return html`<tr data-schedule=${name}>
    <td class="wide"><b><bdi>${name}</bdi></b>
      <p class="muted cut">task <bdi class="mono">${job.task}</bdi>${job.queue && job.queue !== "default" ? html`, queue <bdi class="mono">${job.queue}</bdi>` : ""}</p>
      ${isPaused && html`<${Paused} pause=${schedule} />`}
      ${said && html`<p role="status">${said}</p>`}
      ${confirm}
      ${open === "pause" && html`<${PauseForm} name=${name} onCancel=${() => setOpen("")} onPause=${({ reason }) => act(name, "pause", { reason }, () => "Paused.")} />`}</td>
    <td data-label="When"><${Rule} schedule=${schedule} /></td>
    <td data-label="Next">${isPaused ? html`<span class="muted">not while paused</span>` : html`<${NextRuns} runs=${schedule.next_runs} />`}</td>
    <td data-label="Last">${schedule.last_at === null ? html`<span class="muted">never</span>` : html`<${When} at=${schedule.last_at} />`}
      ${schedule.last_job ? html` <button class="link" onClick=${() => showJob(schedule.last_job)}>#${schedule.last_job}</button>` : ""}</td>
    <td data-label="Runs" class="num">${count(schedule.runs)}${schedule.skipped > 0 ? html` <span class="muted">${count(schedule.skipped)} skipped</span>` : ""}</td>
    <td class="do"><button onClick=${() => act(name, "run", {}, (answer) => `Job #${answer.id} was submitted.`)}>Run now</button>
      ${isPaused ? html`<button onClick=${() => act(name, "resume", {}, () => "Goes on.")}>Resume</button>`
        : html`<button aria-expanded=${open === "pause"} onClick=${() => setOpen(open === "pause" ? "" : "pause")}>Pause …</button>`}
      ${buttons}</td>
  </tr>`;
}

function Rule({ schedule }) {
  const zone = schedule.timezone;
  return html`<bdi class="mono">${schedule.cron ? schedule.cron : `every ${schedule.every}`}</bdi>${schedule.cron && zone ? html` <span class="muted">${zone}</span>` : ""}
    <p class="muted">overlap: ${schedule.overlap}, missed: ${schedule.missed}</p>`;
}
