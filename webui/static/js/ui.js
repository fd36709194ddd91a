// Small building blocks: icons, badges, times. No state of their own.

import htm from "../vendor/htm.js";
import { h } from "../vendor/preact.js";
import { ago, exact } from "./format.js";
import { now } from "./state.js";

/** Elements from a template; a button sends no form unless it says so. */
export const html = htm.bind((type, props, ...children) => h(type, type === "button" ? { type, ...props } : props, ...children));

/** What the API refused, if it did: {message}. */
export const Refused = ({ refusal }) => refusal && html`<p class="banner tone-bad">${refusal.message}</p>`;

const CROSS = "M4 4l8 8M12 4l-8 8";
const PLAY = "M5 3.2v9.6L12.5 8z";
const ICONS = {
  queued: "M4 2.5h8M4 13.5h8M5 2.5v2L8 8l3-3.5v-2M5 13.5v-2L8 8l3 3.5v2",
  scheduled: "M8 1.75a6.25 6.25 0 1 0 0 12.5a6.25 6.25 0 0 0 0-12.5M8 4.5V8l2.5 1.5",
  running: PLAY,
  completed: "M3 8.5l3.3 3.3L13 4.7",
  failed: CROSS,
  expired: "M8 1.75a6.25 6.25 0 1 0 0 12.5a6.25 6.25 0 0 0 0-12.5M8 4.5v3.7l2.4 1.5",
  cancelled: "M8 1.75a6.25 6.25 0 1 0 0 12.5a6.25 6.25 0 0 0 0-12.5M3.6 12.4l8.8-8.8",
  requeued: "M13 8a5 5 0 1 1-1.6-3.7M13 2v3h-3",
  idle: "M8 4a4 4 0 1 0 0 8a4 4 0 0 0 0-8",
  busy: PLAY,
  lost: CROSS,
  queue: "M2.5 4h11M2.5 8h11M2.5 12h7",
  workers: "M8 7.5a2.75 2.75 0 1 0 0-5.5a2.75 2.75 0 0 0 0 5.5M2.5 14c.5-3 2.7-4.5 5.5-4.5s5 1.5 5.5 4.5",
  total: "M3 13V7M6.33 13V3M9.67 13V9M13 13V5",
  lock: "M4 7.5h8v6H4zM5.5 7.5V5a2.5 2.5 0 0 1 5 0v2.5",
  unlock: "M4 7.5h8v6H4zM5.5 7.5V5a2.5 2.5 0 0 1 4.8-1",
  warn: "M8 2.5L14.2 13.5H1.8zM8 6.5v3M8 11.6v.2",
  theme: "M8 1.75a6.25 6.25 0 1 0 0 12.5zM8 1.75a6.25 6.25 0 0 1 0 12.5",
  close: CROSS,
  paused: "M5.5 3.5v9M10.5 3.5v9",
};

/** An icon; decoration only, a word always stands beside it. */
export const Icon = ({ name }) => html`<svg class="icon" viewBox="0 0 16 16" aria-hidden="true"><path d=${ICONS[name]} /></svg>`;

/** Icon, word and colour of a state, or those that another word `look`s like. The classes are a closed list: a state is data. */
export function Badge({ state, look = state }) {
  const known = look in ICONS ? look : "cancelled";
  return html`<span class="badge s-${known}"><${Icon} name=${known} />${state}</span>`;
}

/** A job's state; a queued job that came back says so. */
export const JobBadges = ({ job }) => html`<span class="badges">
  <${Badge} state=${job.state} />
  ${job.state === "queued" && job.requeues > 0 && html`<${Badge} state="requeued" />`}
  ${job.state === "running" && job.cancel_requested && html`<span class="badge s-cancelled"><${Icon} name="cancelled" />cancel asked</span>`}
</span>`;

export const Priority = ({ value }) => html`<span class="priority" title="priority ${value}; 1 runs first">P${value}</span>`;

/** A moment: how long ago, and exactly on hover. */
export const When = ({ at }) => (at === null || at === undefined ? html`<span class="muted">–</span>`
  : html`<time datetime=${new Date(at * 1000).toISOString()} title=${exact(at)}>${ago(now.value - at)}</time>`);

/** The command that starts a worker of this broker. */
export function workerCommand(security) {
  const port = security ? security.port : 65432;
  return port === 65432 ? "python worker.py" : `python worker.py --url greenroom://localhost:${port}`;
}
