// Many jobs at once: bounded requests one after another, with progress, until done or stopped.

import { useRef, useState } from "../vendor/preact-hooks.js";
import { count } from "./format.js";
import { api, post } from "./live.js";
import { html } from "./ui.js";

const IDS_A_REQUEST = 100;
const JOBS_A_PAGE = 200;
const MOST_JOBS = 10000; // counted and handled in one go; the rest is for another
const MOST_PAGES = 500;
const MOST_TRIES = 10; // of one request that the broker had no room for
const PAUSE_MS = 1000;

const DONE = { retry: "Retried", cancel: "Cancelled" };

const pause = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

/** Asks, again after a while when the broker is busy. */
async function patiently(ask) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await ask();
    } catch (error) {
      if (error.status !== 429 || tries === MOST_TRIES) throw error;
      await pause(PAUSE_MS);
    }
  }
}

/** The ids of the jobs that match, newest first: {ids, isAll}. `note(found)` returns false to stop. */
async function collect(query, note) {
  const ids = [];
  let before = null;
  for (let pages = 0; pages < MOST_PAGES && ids.length < MOST_JOBS; pages += 1) {
    const page = await patiently(() => api(`/api/jobs?${query}&limit=${JOBS_A_PAGE}${before ? `&before=${before}` : ""}`));
    ids.push(...page.jobs.map((job) => job.id));
    before = page.next;
    if (!before) return { ids, isAll: true };
    if (!note(ids.length)) break;
  }
  return { ids, isAll: false };
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

  /** Counts what matches, then asks. */
  async function prepare(verb, what, query) {
    isStopped.current = false;
    setNow({ step: "counting", found: 0 });
    try {
      const { ids, isAll } = await collect(query, (found) => { setNow({ step: "counting", found }); return goesOn(); });
      setNow({ step: "asking", verb, what, ids, isAll });
    } catch (error) {
      setNow({ step: "done", verb, good: 0, done: 0, total: 0, refused: 0, why: error.message });
    }
  }

  const stop = () => { isStopped.current = true; };
  const clear = () => setNow({ step: "" });
  return { now, isBusy: now.step === "counting" || now.step === "doing", run, prepare, stop, clear };
}

/** What goes on, in words, with the buttons that belong to it. */
export function BulkStatus({ bulk }) {
  const { now } = bulk;
  return html`<div class="bulk" role="status">${now.step !== "" && html`<p class="banner tone-wait">
    ${now.step === "counting" && html`<span>Counting: ${count(now.found)} so far …</span><button type="button" onClick=${bulk.stop}>That is enough</button>`}
    ${now.step === "asking" && html`<span>${question(now)}</span>
      ${now.ids.length > 0 && html`<button type="button" class="go" onClick=${() => bulk.run(now.verb, now.ids)}>${now.verb === "retry" ? "Retry" : "Cancel"} ${count(now.ids.length)}</button>`}
      <button type="button" onClick=${bulk.clear}>${now.ids.length ? "Not now" : "Close"}</button>`}
    ${now.step === "doing" && html`<progress max=${now.total} value=${now.done} aria-label="progress"></progress>
      <span>${count(now.done)} of ${count(now.total)}</span><button type="button" onClick=${bulk.stop}>Stop</button>`}
    ${now.step === "done" && html`<span>${outcome(now)}</span><button type="button" onClick=${bulk.clear}>Close</button>`}
  </p>`}</div>`;
}

function question({ what, ids, isAll }) {
  if (!ids.length) return isAll ? `No ${what} job matches.` : `No ${what} job among those looked at.`;
  return `${isAll ? "" : "At least "}${count(ids.length)} ${what} ${ids.length === 1 ? "job matches" : "jobs match"}${isAll ? "." : "; these are the newest."}`;
}

function outcome({ verb, good, done, total, refused, why }) {
  const parts = [`${DONE[verb]} ${count(good)} of ${count(total)}.`];
  if (refused) parts.push(`${count(refused)} not possible, such as: ${why}.`);
  else if (why) parts.push(why);
  if (done < total) parts.push(`${count(total - done)} were left as they are.`);
  return parts.join(" ");
}
