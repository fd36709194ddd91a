// Many jobs at once: bounded requests one after another, with progress, until done or stopped.

import { useRef, useState } from "../vendor/preact-hooks.js";
import { count } from "./format.js";
import { post } from "./live.js";
import { html } from "./ui.js";

const IDS_A_REQUEST = 100;
const MOST_TRIES = 10; // of one request that the broker had no room for
const PAUSE_MS = 1000;

export const DO = { retry: "Retry", cancel: "Cancel", delete: "Delete", change: "Change" };
const DONE = { retry: "Retried", cancel: "Cancelled", delete: "Deleted", change: "Changed" };

const pause = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

/** Asks, again after a while when the broker is busy. */
export async function patiently(ask) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await ask();
    } catch (error) {
      if (error.status !== 429 || tries === MOST_TRIES) throw error;
      await pause(PAUSE_MS);
    }
  }
}

/** Goes through all jobs that a filter lets through, slice by slice: `take(slice)` returns false to stop. Returns whether it came to the end. `changes`: of the action "change". */
async function slices(action, q, changes, isDry, take) {
  let before = null;
  do {
    const slice = await patiently(() => post("/api/jobs/bulk", JSON.stringify({ action, q, ...changes, dry_run: isDry, before })));
    before = slice.next;
    if (!take(slice) && before) return false;
  } while (before);
  return true;
}

/** {step, …} of what goes on, and how to start and stop it. Steps: "" nothing, "counting", "asking", "doing", "done". */
export function useBulk(onEnd) {
  const [now, setNow] = useState({ step: "" });
  const isStopped = useRef(false);
  const goesOn = () => !isStopped.current;

  async function run(verb, ids) {
    isStopped.current = false;
    const sum = { step: "doing", verb, total: ids.length, done: 0, good: 0, refused: 0, why: "" };
    try {
      for (let at = 0; at < ids.length && goesOn(); at += IDS_A_REQUEST) {
        setNow({ ...sum });
        const some = ids.slice(at, at + IDS_A_REQUEST);
        const { outcomes } = await patiently(() => post(`/api/jobs/${verb}`, JSON.stringify({ ids: some })));
        for (const outcome of outcomes) {
          if (!outcome.error) sum.good += 1;
          else { sum.refused += 1; sum.why = sum.why || outcome.error.message; }
        }
        sum.done += some.length;
      }
    } catch (error) {
      sum.why = error.message;
    }
    setNow({ ...sum, step: "done" });
    onEnd();
  }

  /** Counts what fits a filter, then asks. */
  async function prepare(verb, q, changes = {}) {
    isStopped.current = false;
    let total = 0;
    let isExact = true;
    setNow({ step: "counting", found: 0 });
    try {
      const isAll = await slices(verb, q, changes, true, ({ matched, exact }) => {
        total += matched;
        isExact = isExact && exact;
        setNow({ step: "counting", found: total });
        return goesOn();
      });
      setNow({ step: "asking", verb, q, changes, total, isAll, isExact });
    } catch (error) {
      setNow({ step: "done", verb, good: 0, done: 0, total: 0, refused: 0, why: error.message });
    }
  }

  /** Does it to all that fit, newest first. */
  async function runAll({ verb, q, changes, total }) {
    isStopped.current = false;
    const sum = { step: "doing", verb, total, done: 0, good: 0, refused: 0, why: "" };
    setNow({ ...sum });
    try {
      await slices(verb, q, changes, false, (slice) => {
        sum.good += slice.done;
        sum.refused += slice.refused;
        sum.done += slice.matched;
        sum.total = Math.max(sum.total, sum.done);
        sum.why = sum.why || slice.why || "";
        setNow({ ...sum });
        return goesOn();
      });
    } catch (error) {
      sum.why = error.message;
    }
    setNow({ ...sum, step: "done" });
    onEnd();
  }

  const ask = (verb, ids) => setNow({ step: "asking", verb, ids, total: ids.length, isAll: true, isExact: true });
  const goOn = () => (now.ids ? run(now.verb, now.ids) : runAll(now));
  const stop = () => { isStopped.current = true; };
  const clear = () => setNow({ step: "" });
  return { now, isBusy: now.step === "counting" || now.step === "doing", run, runAll, ask, prepare, goOn, stop, clear };
}

/** What goes on, in words, with the buttons that belong to it. */
export function BulkStatus({ bulk }) {
  const { now } = bulk;
  return html`<div class="bulk" role="status">${now.step !== "" && html`<p class="banner tone-wait">
    ${now.step === "counting" && html`<span>Counting: ${count(now.found)} so far …</span><button onClick=${bulk.stop}>That is enough</button>`}
    ${now.step === "asking" && html`<span>${question(now)}</span>
      ${(now.total > 0 || !now.isAll) && html`<button class="go" onClick=${bulk.goOn}>${DO[now.verb]} ${now.isAll && now.isExact ? count(now.total) : "them"}</button>`}
      <button onClick=${bulk.clear}>${now.total || !now.isAll ? "Not now" : "Close"}</button>`}
    ${now.step === "doing" && html`<progress max=${now.total} value=${now.done} aria-label="progress"></progress>
      <span>${count(now.done)} of ${count(now.total)}</span><button onClick=${bulk.stop}>Stop</button>`}
    ${now.step === "done" && html`<span>${outcome(now)}</span><button onClick=${bulk.clear}>Close</button>`}
  </p>`}</div>`;
}

function question({ verb, ids, total, isAll, isExact }) {
  const forGood = verb === "delete" ? " Nothing brings them back." : "";
  if (ids) return `${DO[verb]} ${count(total)} ${total === 1 ? "job" : "jobs"}?${forGood}`;
  if (!total && isAll) return `No job matches that can be ${DONE[verb].toLowerCase()}.`;
  const many = `${isAll ? (isExact ? "" : "Up to ") : "At least "}${count(total)} ${total === 1 ? "job matches" : "jobs match"}`;
  return `${many} and can be ${DONE[verb].toLowerCase()}.${isAll ? "" : " Older ones were not counted, and are meant too."}${forGood}`;
}

function outcome({ verb, good, done, total, refused, why }) {
  const parts = [`${DONE[verb]} ${count(good)} of ${count(total)}.`];
  if (refused) parts.push(`${count(refused)} not possible, such as: ${why}.`);
  else if (why) parts.push(why);
  if (done < total) parts.push(`${count(total - done)} were left as they are.`);
  return parts.join(" ");
}
