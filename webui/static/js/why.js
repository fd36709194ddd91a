// Why something does not run, as the verb explain says it: a job, a queue.

import { useAnswer } from "./ask.js";
import { count, visible } from "./format.js";
import { WAITING } from "./state.js";
import { When, html } from "./ui.js";

const Gates = ({ gates }) => gates.length > 0 && html`<ol class="why">${gates.map((gate) => html`<li key=${gate.code} data-gate=${gate.code}><bdi>${visible(gate.text)}</bdi>
  <p class="muted">opens: <bdi>${visible(gate.opens)}</bdi>${gate.at ? html`, <${When} at=${gate.at} />` : ""}</p></li>`)}</ol>`;

/** All that holds a job back: what, and what opens it. */
export function WhyWaiting({ job }) {
  const isWaiting = WAITING.includes(job.state);
  const { answer } = useAnswer(isWaiting ? `/api/jobs/${job.id}/explain` : null);
  if (!answer || !isWaiting) return null;
  return html`<h3>Why it waits</h3><${Gates} gates=${answer.gates} />
    ${answer.starts_at !== null && html`<p class="muted">It starts about <${When} at=${answer.starts_at} />${answer.ahead_exact ? "" : ", not before"}.</p>`}
    ${!answer.gates.length && html`<p class="muted">Nothing holds it back.</p>`}`;
}

/** How fast jobs end, how many wait, who can take them: of a queue, or of one of its tasks. */
const pace = ({ rate, queued, scheduled, running, workers, asking }) => [
  rate === null ? "pace not known yet" : `${count(rate)} jobs ended a second lately`, `${count(queued)} queued`, `${count(scheduled)} scheduled`, `${count(running)} running`,
  `${count(workers)} ${workers === 1 ? "worker" : "workers"}, ${count(asking)} open reserves`].join(" · ");

/** Why a queue's throughput is what it is, task by task. */
export function WhyQueue({ name }) {
  const { answer, refusal } = useAnswer(`/api/queues/${name}/explain`);
  if (!answer) return html`<p class="muted" role="status">${refusal ? refusal.message : "…"}</p>`;
  return html`<p>${pace(answer)}</p><${Gates} gates=${answer.gates} />
    ${answer.tasks.map((task) => html`<h3 key=${task.task}><bdi class="mono">${task.task}</bdi> <span class="muted">${pace(task)}</span></h3><${Gates} gates=${task.gates} />`)}
    ${answer.tasks_total > answer.tasks.length && html`<p class="muted">and ${count(answer.tasks_total - answer.tasks.length)} more tasks</p>`}`;
}
