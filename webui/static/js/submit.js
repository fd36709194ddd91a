// The submit form. Checks the payload in place; everything else is the broker's word, shown at the field that it names.

import { useState } from "../vendor/preact-hooks.js";
import { post } from "./live.js";
import { showJob } from "./route.js";
import { flashed, stats, workers } from "./state.js";
import { html } from "./ui.js";

const EXAMPLES = {
  reverse_string: '{"data": "stressed"}',
  to_uppercase: '{"data": "greenroom"}',
  fibonacci: '{"n": 100}',
  is_prime: '{"n": "618970019642690137449562111"}',
  slow_task: '{"seconds": 3}',
};

function otherTasks() {
  const names = new Set(workers.value.flatMap((worker) => worker.tasks || []));
  for (const task of stats.value ? stats.value.tasks : []) names.add(task.task);
  return [...names].filter((name) => !(name in EXAMPLES)).sort();
}

export function payloadProblem(text) {
  try {
    JSON.parse(text);
    return "";
  } catch (error) {
    return `Not JSON yet: ${error.message}`;
  }
}

/** The body as text: the payload goes in as it was typed, because JavaScript would round large integers. */
function bodyText({ task, payload, priority, queue }) {
  const rest = { task, queue, priority: priority.trim() === "" ? "" : Number(priority) };
  return `${JSON.stringify(rest).slice(0, -1)},"payload":${payload}}`;
}

export function SubmitForm() {
  const [form, setForm] = useState({ task: "fibonacci", payload: EXAMPLES.fibonacci, priority: "5", queue: "default" });
  const [refusal, setRefusal] = useState(null); // {field, message}
  const [outcome, setOutcome] = useState(null); // the answer to the latest submit
  const [sending, setSending] = useState(false);
  const problem = payloadProblem(form.payload);
  const set = (changes) => { setForm({ ...form, ...changes }); setRefusal(null); };

  async function submit(event) {
    event.preventDefault();
    if (problem || sending) return;
    setSending(true);
    setOutcome(null);
    try {
      const answer = await post("/api/submit", bodyText(form));
      flashed.value = answer.id;
      setRefusal(null);
      setOutcome(answer);
    } catch (error) {
      setRefusal(error);
    }
    setSending(false);
  }

  const said = (field) => (field === "payload" && problem ? problem : refusal && refusal.field === field ? refusal.message : "");
  const others = otherTasks();
  return html`<section class="panel" id="submit" aria-labelledby="h-submit">
    <h2 id="h-submit">Submit a job <kbd>n</kbd></h2>
    <form class="body" onSubmit=${submit} noValidate autocomplete="off">
      <${Field} name="task" label="Task" said=${said("task")}>
        <select id="f-task" value=${form.task} onChange=${(e) => set({ task: e.target.value, payload: EXAMPLES[e.target.value] || "{}" })}>
          <optgroup label="Built in">${Object.keys(EXAMPLES).map((name) => html`<option value=${name}>${name}</option>`)}</optgroup>
          ${others.length > 0 && html`<optgroup label="From workers and jobs">${others.map((name) => html`<option value=${name}>${name}</option>`)}</optgroup>`}
        </select><//>
      <div class="pair">
        <${Field} name="priority" label="Priority, 1 first" said=${said("priority")}>
          <input id="f-priority" type="number" min="1" max="10" step="1" inputmode="numeric" value=${form.priority} onInput=${(e) => set({ priority: e.target.value })} aria-invalid=${Boolean(said("priority"))} aria-describedby="e-priority" /><//>
        <${Field} name="queue" label="Queue" said=${said("queue")}>
          <input id="f-queue" type="text" spellcheck=${false} value=${form.queue} onInput=${(e) => set({ queue: e.target.value })} aria-invalid=${Boolean(said("queue"))} aria-describedby="e-queue" /><//>
      </div>
      <${Field} name="payload" label="Payload, JSON" said=${said("payload")}>
        <textarea id="f-payload" class="mono" rows="3" spellcheck=${false} value=${form.payload} onInput=${(e) => set({ payload: e.target.value })} aria-invalid=${Boolean(said("payload"))} aria-describedby="e-payload"></textarea><//>
      <button class="primary" type="submit" disabled=${Boolean(problem) || sending}>${sending ? "Submitting…" : "Submit job"}</button>
      <div class="outcome" role="status">
        ${outcome && html`<p><button type="button" class="link" onClick=${() => showJob(outcome.id)}>Job #${outcome.id}</button> is ${outcome.state}.</p>`}
        ${outcome && outcome.warning && html`<p class="tone-text-warn">${outcome.warning}.</p>`}
        ${refusal && !["task", "priority", "queue", "payload"].includes(refusal.field) && html`<p class="tone-text-bad">${refusal.message}</p>`}
      </div>
    </form>
    <p class="keys muted"><kbd>/</kbd> filter <kbd>t</kbd> theme <kbd>Esc</kbd> close</p>
  </section>`;
}

const Field = ({ name, label, said, children }) => html`<div class="field f-${name}">
  <label for="f-${name}">${label}</label>${children}
  <p class="said tone-text-bad" id="e-${name}">${said}</p>
</div>`;
