// The form that makes a schedule or edits one, with the next runs of its rule.

import { useAnswer } from "./ask.js";
import { exact } from "./format.js";
import { Form, bodyText, editable, numberOf } from "./form.js";
import { api, post } from "./live.js";
import { knownTasks } from "./state.js";
import { When, html } from "./ui.js";

const NAME = /^[A-Za-z0-9._:-]{1,128}$/;

/** "30 2 * * *" is a cron line, "10m" an interval. */
const ruleOf = ({ when, timezone }) => (/\s/.test(when.trim()) ? { cron: when.trim() } : { every: when.trim() });
const withZone = (values) => ({ ...ruleOf(values), ...(values.timezone && { timezone: values.timezone }) });

function fieldsOf(values, name) {
  return [
    { name: "name", label: "Name", isFixed: Boolean(name) }, { name: "task", label: "Task", known: knownTasks() },
    { name: "when", label: "When: cron line, or 10m", also: ["cron", "every"] },
    { name: "timezone", label: "Its time zone; empty: UTC", known: Intl.supportedValuesOf("timeZone") },
    { name: "queue", label: "Queue" }, { name: "priority", label: "Priority, 1 first", kind: "number" },
    { name: "overlap", label: "If its last job is unfinished", kind: ["skip", "queue", "replace"] },
    { name: "missed", label: "Runs missed", kind: ["once", "skip", "all"] },
    ...(values.missed === "all" ? [{ name: "missed_max", label: "Of those missed at most", kind: "number" }] : []),
    { name: "payload", label: values.isKept ? "Another payload, JSON; empty: as it is" : "Payload, JSON", kind: "json", mayBeEmpty: values.isKept },
    { name: "options", label: "Other options of its jobs, JSON", kind: "json" },
  ];
}

/** What the form begins with; `schedule` is null for a new one, or has its name alone if it can't run. */
function firstOf(schedule) {
  const { job: { task = "", queue = "default", priority = 5, encoding, ...options } = {}, payload, ...rest } = schedule || {};
  return {
    name: "", timezone: "", overlap: "skip", missed: "once", missed_max: 10, ...Object.fromEntries(Object.entries(rest).filter(([, value]) => value !== null)),
    task, queue, priority: String(priority), when: rest.cron || rest.every || "", options: JSON.stringify(options),
    payload: payload ? editable(payload) : "{}", isKept: Boolean(payload && !editable(payload)),
  };
}

async function send(values, first, isNew) {
  if (!NAME.test(values.name)) throw { field: "name", message: "The name must be 1 to 128 characters out of A-Z a-z 0-9 . _ : -" };
  const path = `/api/schedules/${values.name}`;
  if (isNew && await api(path).catch(() => false)) throw { field: "name", message: "There is such a schedule already: edit it." };
  const { task, queue, priority, overlap, missed, missed_max: most } = values;
  const keeps = !isNew && values.payload === first.payload && Boolean(first.task);
  const job = bodyText({ ...JSON.parse(values.options), task, queue, priority: numberOf(priority) }, !keeps && values.payload);
  const rule = { ...withZone(values), overlap, missed, ...(missed === "all" && { missed_max: numberOf(most) }), ...(keeps && { keep_payload: true }) };
  await post(path, `${JSON.stringify(rule).slice(0, -1)},"job":${job}}`);
}

/** `name`: of the schedule to edit, "" for a new one; onDone(name). */
export function ScheduleForm({ name, onDone, onCancel }) {
  const { answer, refusal } = useAnswer(name ? `/api/schedules/${name}` : null, { isHeld: true });
  if (refusal) return html`<p class="banner tone-bad">${refusal.message}</p>`;
  if (name && !answer) return null;
  return html`<${Form} label=${name ? `Edit schedule ${name}` : "New schedule"} fields=${(values) => fieldsOf(values, name)} first=${firstOf(answer && answer.schedule)} word=${name ? "Save" : "Make it"}
    send=${async (values, first) => { await send(values, first, !name); onDone(values.name); }} onCancel=${onCancel} more=${(values) => html`<${Preview} values=${values} />`} />`;
}

function Preview({ values }) {
  const { answer, refusal } = useAnswer(values.when.trim() ? `/api/recurrence?${new URLSearchParams(withZone(values))}` : null, { isHeld: true });
  return html`<div class="whole" id="preview" role="status">${refusal ? html`<span class="muted">${refusal.message}</span>` : answer && html`Next run: <${NextRuns} runs=${answer.next_runs} />`}</div>`;
}

/** The first of some times, and the others to look at. */
export function NextRuns({ runs: [first, ...rest] }) {
  if (first === undefined) return html`<span class="muted">never again</span>`;
  return html`<${When} at=${first} /> <details><summary>${exact(first).split(" · ")[0]}</summary><ol>${rest.map((at) => html`<li title=${exact(at)}>${exact(at).split(" · ")[0]}</li>`)}</ol></details>`;
}
