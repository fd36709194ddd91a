// The form that says what shall change of all waiting jobs that match: priority, queue, time.

import { useState } from "../vendor/preact-hooks.js";
import { html } from "./ui.js";

const EMPTY = { priority: "", queue: "", delay: "" };

/** Asks, then `onChange({priority?, queue?, delay?})`. */
export function ChangeAll({ isOff, onChange }) {
  const [form, setForm] = useState(null); // null: closed
  if (!form) return html`<button type="button" id="change-all" disabled=${isOff} onClick=${() => setForm(EMPTY)}>Change all that match …</button>`;
  const said = Object.entries(form).map(([name, text]) => [name, text.trim()]).filter(([, text]) => text);
  const submit = (event) => {
    event.preventDefault();
    setForm(null);
    onChange(Object.fromEntries(said.map(([name, text]) => [name, name === "queue" ? text : Number(text)])));
  };
  const field = (name, label, rest) => html`<label>${label} <input name=${name} value=${form[name]} onInput=${(e) => setForm({ ...form, [name]: e.target.value })} ...${rest} /></label>`;
  return html`<form class="pause" onSubmit=${submit} onKeyDown=${(event) => { if (event.key === "Escape") setForm(null); }}>
    ${field("priority", "Priority", { type: "number", min: 1, max: 10 })} ${field("queue", "Queue", { type: "text", spellcheck: false })}
    ${field("delay", "Not before, s from now", { type: "number", min: 0, step: "any" })}
    <button type="submit" class="go" disabled=${isOff || !said.length}>Change …</button><button type="button" onClick=${() => setForm(null)}>Not now</button></form>`;
}
