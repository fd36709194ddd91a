// How much may wait in a queue, how full it is, and the form that limits it.

import { Form, numberOf } from "./form.js";
import { bytes, count, visible } from "./format.js";
import { address } from "./route.js";
import { stats } from "./state.js";
import { Icon, When, html } from "./ui.js";

const MIB = 2 ** 20;

/** What waits of what may, who is refused, and who said so: an entry of /api/limits. */
export function Limited({ limit }) {
  const parts = [limit.jobs && `${count(limit.waiting)} of ${count(limit.jobs)} jobs`, limit.bytes && `${bytes(limit.waiting_bytes)} of ${bytes(limit.bytes)}`].filter(Boolean);
  const fill = Math.max(limit.jobs ? limit.waiting / limit.jobs : 0, limit.bytes ? limit.waiting_bytes / limit.bytes : 0);
  const refused = limit.full === "all" ? "all new jobs are refused" : `new jobs are refused, priorities up to ${limit.urgent} are not`;
  return html`<p class=${limit.full ? "tone-text-warn limit" : "muted limit"}>
    ${limit.full && html`<span class="badge s-paused"><${Icon} name="warn" />full</span>`}
    <progress max="1" value=${Math.min(1, fill)} aria-label="how full the queue is" /> ${parts.join(", ")} wait${limit.full ? `: ${refused}` : ""}${limit.refused ? `; ${count(limit.refused)} kept out so far` : ""}
    <small> · limited <${When} at=${limit.set_at} /> by <bdi>${visible(limit.by)}</bdi>${limit.reason ? html`: <bdi>${visible(limit.reason)}</bdi>` : ""}</small></p>`;
}

/** Asks for a limit, or for its end: onLimit(body of /api/limit without the queue), onRemove(). */
export function LimitForm({ name, limit, onLimit, onRemove, onCancel }) {
  const fields = () => [
    { name: "jobs", label: "Jobs that may wait", kind: "number" }, { name: "mib", label: "MiB of payloads", kind: "number", also: ["bytes"] },
    { name: "urgent", label: "Urgent up to priority; empty: none", kind: "number" }, { name: "extra", label: "by per cent", kind: "number" },
    { name: "reason", label: "Why? It is shown to everybody" },
  ];
  const first = { jobs: limit?.jobs ?? "", mib: limit?.bytes ? limit.bytes / MIB : "", urgent: limit?.urgent ?? "", extra: limit?.extra ?? 10, reason: limit?.reason ?? "" };
  const send = ({ jobs, mib, urgent, extra, reason }) => onLimit({
    ...(jobs && { jobs: Number(jobs) }), ...(mib && { bytes: Math.round(Number(mib) * MIB) }), ...(urgent && { urgent: Number(urgent) }), extra: numberOf(extra), reason: reason.trim(),
  });
  return html`<${Form} label="Limit ${name}" fields=${fields} first=${first} word="Limit" send=${send} onCancel=${onCancel} more=${() => limit && html`<p class="whole"><button onClick=${onRemove}>Remove limit</button></p>`} />`;
}

/** Which queues are full, on every page. */
export function FullBanner() {
  const full = stats.value?.waiting?.full_queues;
  return full ? html`<p class="banner tone-warn" id="full-queues"><${Icon} name="warn" /><span>${count(full)} ${full === 1 ? "queue is" : "queues are"} full, new jobs are refused: <a href=${address("queues")}>see Queues</a></span></p>` : null;
}
