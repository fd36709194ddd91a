// Edit and retry: the form that submits a copy of a job, which itself stays as it is.

import { useState } from "../vendor/preact-hooks.js";
import { post } from "./live.js";
import { showJob } from "./route.js";
import { payloadProblem } from "./submit.js";
import { html } from "./ui.js";

/** Submits a copy of the job, with another payload if it was edited; an untouched one goes as the broker has it. */
export function CopyForm({ job, word }) {
  const [text, setText] = useState(null); // null: closed
  const [said, setSaid] = useState(null); // the answer, or what was refused
  const whole = "preview" in job.payload && !job.payload.cut ? JSON.stringify(job.payload.preview, null, 1) : "";
  const problem = text === null || text === whole ? "" : payloadProblem(text);
  const submit = async (event) => {
    event.preventDefault();
    try {
      setSaid(await post(`/api/jobs/${job.id}/resubmit`, text === whole ? "{}" : `{"payload":${text}}`));
      setText(null);
    } catch (refusal) {
      setSaid(refusal);
    }
  };
  return html`<div class="copy do">
    ${text === null ? html`<button type="button" onClick=${() => { setText(whole); setSaid(null); }}>${word} …</button>`
      : html`<form onSubmit=${submit}>
        <label for="copy-payload">Payload of the copy, JSON${whole ? "" : "; left empty: the same"}</label>
        <textarea id="copy-payload" class="mono" rows="4" spellcheck=${false} value=${text} onInput=${(e) => setText(e.target.value)} aria-invalid=${Boolean(problem)} aria-describedby="e-copy"></textarea>
        <p id="e-copy" class="tone-text-bad">${problem}</p>
        <button type="submit" class="go" disabled=${Boolean(problem)}>Submit the copy</button> <button type="button" onClick=${() => setText(null)}>Not now</button></form>`}
    <span role="status">${said && (said.id ? html` ${said.duplicate ? "Its unique key is taken by" : "The copy is"} <button type="button" class="link" onClick=${() => showJob(said.id)}>job #${said.id}</button>.` : html` <span class="tone-text-bad">${said.message}</span>`)}</span></div>`;
}
