// The form that says what shall change of all waiting jobs that match: priority, queue, time.

import { useState } from "../vendor/preact-hooks.js";
import { Form } from "./form.js";
import { html } from "./ui.js";

const FIELDS = [{ name: "priority", label: "Priority", kind: "number" }, { name: "queue", label: "Queue" }, { name: "delay", label: "Not before, s from now", kind: "number" }];

/** Asks, then `onChange({priority?, queue?, delay?})`. */
export function ChangeAll({ isOff, onChange }) {
  const [isOpen, setOpen] = useState(false);
  const send = (values) => {
    const said = Object.entries(values).map(([name, text]) => [name, text.trim()]).filter(([, text]) => text);
    if (!said.length) throw { message: "Say what shall change." };
    setOpen(false);
    onChange(Object.fromEntries(said.map(([name, text]) => [name, name === "queue" ? text : Number(text)])));
  };
  return html`<button id="change-all" disabled=${isOff} aria-expanded=${isOpen} onClick=${() => setOpen(!isOpen)}>Change all that match …</button>
    ${isOpen && html`<${Form} label="Change all that match" fields=${() => FIELDS} first=${{ priority: "", queue: "", delay: "" }} word="Change …" send=${send} onCancel=${() => setOpen(false)} />`}`;
}
