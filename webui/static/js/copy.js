// Edit and retry: the form that submits a copy of a job, which itself stays as it is.

import { useState } from "../vendor/preact-hooks.js";
import { Form, bodyText, editable } from "./form.js";
import { post } from "./live.js";
import { showJob } from "./route.js";
import { html } from "./ui.js";

/** Submits a copy of the job, with another payload if it was edited; an untouched one goes as the broker has it. */
export function CopyForm({ job, word }) {
  const [isOpen, setOpen] = useState(false);
  const [said, setSaid] = useState(null); // the answer
  const whole = editable(job.payload);
  const fields = () => [{ name: "payload", label: whole ? "Payload of the copy, JSON" : "Another payload of the copy, JSON; empty: the same", kind: "json", mayBeEmpty: !whole }];
  const send = async ({ payload }) => {
    setSaid(await post(`/api/jobs/${job.id}/resubmit`, bodyText({}, payload !== whole && payload)));
    setOpen(false);
  };
  return html`<div class="copy">
    <button aria-expanded=${isOpen} onClick=${() => { setOpen(!isOpen); setSaid(null); }}>${word} …</button>
    ${isOpen && html`<${Form} at="copy" label="Copy of job ${job.id}" fields=${fields} first=${{ payload: whole }} word="Submit the copy" send=${send} onCancel=${() => setOpen(false)} />`}
    <span role="status">${said && html` ${said.duplicate ? "Its unique key is taken by" : "The copy is"} <button class="link" onClick=${() => showJob(said.id)}>job #${said.id}</button>.`}</span></div>`;
}
