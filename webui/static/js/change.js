// The form that changes a job that waits. Only what was edited is sent: the broker keeps the rest as it is.

import { Form, bodyText, editable, numberOf } from "./form.js";
import { post } from "./live.js";
import { html } from "./ui.js";

/** Seconds since 1970 -> local time as an input of the type datetime-local has it. */
function local(at) {
  const date = new Date(at * 1000);
  return new Date(date - date.getTimezoneOffset() * 60000).toISOString().slice(0, 19);
}

export function ChangeForm({ job, onDone, onCancel }) {
  const fields = () => [
    { name: "priority", label: "Priority, 1 first", kind: "number" }, { name: "queue", label: "Queue" },
    { name: "run_at", label: "Not before; empty: at once", kind: "datetime-local", also: ["delay"] },
    { name: "payload", label: editable(job.payload) ? "Payload, JSON" : "Another payload, JSON; empty: as it is", kind: "json", mayBeEmpty: true },
  ];
  const first = { priority: String(job.priority), queue: job.queue, run_at: job.run_at ? local(job.run_at) : "", payload: editable(job.payload) };
  const send = async (values, before) => {
    const edited = (name) => values[name] !== before[name];
    const rest = {
      ...(edited("priority") && { priority: numberOf(values.priority) }), ...(edited("queue") && { queue: values.queue }),
      ...(edited("run_at") && (values.run_at ? { run_at: Date.parse(values.run_at) / 1000 } : { delay: 0 })),
    };
    await post(`/api/jobs/${job.id}/change`, bodyText(rest, edited("payload") && values.payload));
    onDone();
  };
  return html`<${Form} label="Change job ${job.id}" fields=${fields} first=${first} word="Change job" send=${send} onCancel=${onCancel} />`;
}
