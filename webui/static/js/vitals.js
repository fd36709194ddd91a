// The line at the bottom: how the broker itself is doing. What each figure means is in its title, and in docs/operations.md.

import { bytes, count, milliseconds, share } from "./format.js";
import { stats } from "./state.js";
import { html } from "./ui.js";

const SLOW_HUB_MS = 100; // as in docs/examples/greenroom-alerts.yml
const SLOW_COMMIT_MS = 250;
const NEARLY = 0.9;

/** Figures -> [key, label, text, title, worth a look]. */
function vitals({ hub, store, memory, process, door, settles, requeued_by: reasons }) {
  const lost = (reasons.lost || 0) + (reasons.expired || 0) + (reasons.crash || 0);
  const hits = memory.granted - memory.granted_after_refill;
  return [
    ["lag", "Hub lag", milliseconds(hub.lag_p99_ms), `99 % of the last minute's timers were at most so late; the worst ever ${milliseconds(hub.max_lag_ms)}`, hub.lag_p99_ms > SLOW_HUB_MS],
    ["commit", "Commit", milliseconds(store.commit_p99_ms), `99 % of the last minute's COMMITs took at most so long, half ${milliseconds(store.commit_p50_ms)}; the worst ever ${milliseconds(store.commit_max_ms)}`, store.commit_p99_ms > SLOW_COMMIT_MS],
    ["batch", "Rows a commit", count(store.batch_rows_p50), `half of the last minute's COMMITs; ${count(store.commits)} of ${count(store.rows)} rows so far`],
    ["window", "From memory", memory.granted ? share(hits, memory.granted) : "–", `of ${count(memory.granted)} jobs given out; others waited for the disk. In memory: ${count(memory.jobs)} of ${count(memory.max_jobs)} waiting jobs, ${bytes(memory.bytes)} of ${bytes(memory.max_bytes)}`],
    ["lost", "Workers lost jobs", count(lost), `jobs that came back as a worker died (${count(reasons.lost || 0)}), fell silent (${count(reasons.expired || 0)}) or lost a process (${count(reasons.crash || 0)})`],
    ["stale", "Stale settles", count(settles.stale), "settles refused because the lease was lost: work that was done twice", settles.stale > 0],
    ["connections", "Connections", count(door?.open), `of at most ${count(door?.max)}; ${count(door?.shaking)} shake hands`, door?.open > NEARLY * door?.max],
    ["disk", "Disk free", bytes(store.free_bytes), "on the disk of the data directory; below 64 MiB new jobs are refused", store.full],
    ["memory", "Memory", bytes(process?.resident_bytes), "of the broker's process"],
    ["files", "Files", count(process?.open_files), `open, of at most ${count(process?.max_files)}`, process?.open_files > NEARLY * process?.max_files],
  ];
}

export function Vitals() {
  if (!stats.value) return null;
  return html`<section class="vitals" id="vitals" aria-label="The broker itself"><dl>
    ${vitals(stats.value).map(([key, label, text, title, isOdd]) => html`<div key=${key} id="vital-${key}" title=${title}>
      <dt>${label}</dt><dd class=${isOdd ? "tone-text-warn" : ""}>${text}</dd></div>`)}
  </dl></section>`;
}
