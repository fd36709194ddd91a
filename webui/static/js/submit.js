// The submit form. Checks the payload in place; everything else is the broker's word, shown at the field that it names.

import { useState } from "../vendor/preact-hooks.js";
import { Field, bodyText, numberOf, payloadProblem } from "./form.js";
import { post } from "./live.js";
import { showJob } from "./route.js";
import { flashed, knownTasks, workers } from "./state.js";
import { html } from "./ui.js";

const EXAMPLES = {
  reverse_string: '{"data": "stressed"}',
  to_uppercase: '{"data": "greenroom"}',
  fibonacci: '{"n": 100}',
  is_prime: '{"n": "618970019642690137449562111"}',
  slow_task: '{"seconds": 3}',
};

function otherTasks() {
  const names = new Set([...workers.value.flatMap((worker) => worker.tasks || []), ...knownTasks()]);
  return [...names].filter((name) => !(name in EXAMPLES)).sort();
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
      const answer = await post("/api/submit", bodyText({ task: form.task, queue: form.queue, priority: numberOf(form.priority) }, form.payload));
      flashed.value = answer.id;
      setRefusal(null);
      setOutcome(answer);
    } catch (error) {
      setRefusal(error);
    }
    setSending(false);
  }

  const said = (field) => (field === "payload" && problem ? problem : refusal && refusal.field === field ? refusal.message : "");
  const field = (about) => html`<${Field} id="f-${about.name}" field=${about} value=${form[about.name]} said=${said(about.name)} set=${(value) => set({ [about.name]: value })} />`;
  const others = otherTasks();
  return html`<section class="panel" id="submit" aria-labelledby="h-submit">
    <h2 id="h-submit">Submit a job <kbd>n</kbd></h2>
    <form class="body" onSubmit=${submit} noValidate autocomplete="off">
      <div class="field"><label for="f-task">Task</label>
        <select id="f-task" value=${form.task} onChange=${(e) => set({ task: e.target.value, payload: EXAMPLES[e.target.value] || "{}" })}>
          <optgroup label="Built in">${Object.keys(EXAMPLES).map((name) => html`<option value=${name}>${name}</option>`)}</optgroup>
          ${others.length > 0 && html`<optgroup label="From workers and jobs">${others.map((name) => html`<option value=${name}>${name}</option>`)}</optgroup>`}
        </select><p class="said tone-text-bad">${said("task")}</p></div>
      <div class="pair">${field({ name: "priority", label: "Priority, 1 first", kind: "number" })}${field({ name: "queue", label: "Queue" })}</div>
      ${field({ name: "payload", label: "Payload, JSON", kind: "json" })}
      <button class="primary" type="submit" disabled=${Boolean(problem) || sending}>${sending ? "Submitting…" : "Submit job"}</button>
      <div class="outcome" role="status">
        ${outcome && html`<p><button class="link" onClick=${() => showJob(outcome.id)}>Job #${outcome.id}</button> is ${outcome.state}.</p>`}
        ${outcome && outcome.warning && html`<p class="tone-text-warn">${outcome.warning}.</p>`}
        ${refusal && !["task", "priority", "queue", "payload"].includes(refusal.field) && html`<p class="tone-text-bad">${refusal.message}</p>`}
      </div>
    </form>
    <p class="keys muted"><kbd>/</kbd> filter <kbd>t</kbd> theme <kbd>Esc</kbd> close</p>
  </section>`;
}
