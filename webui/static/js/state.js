// What the page knows, as signals. Filled by live.js, read by the parts of the page.

import { signal } from "./signal.js";

/** The states of a job, and what can be done in which. */
export const WAITING = ["queued", "scheduled"];
export const RETRYABLE = ["failed", "cancelled", "expired"];
export const FINISHED = ["completed", ...RETRYABLE];
export const STATES = [...WAITING, "running", ...FINISHED];

export const stats = signal(null);
export const workers = signal([]);
export const workersTotal = signal(0);
export const jobs = signal(null); // the newest jobs
export const security = signal(null);

/** How news arrive: "connecting", "live" (pushed), "polling" (asked for each 2 s), "lost" (the broker does not answer). */
export const link = signal("connecting");
export const beat = signal(0); // grows with every set of news
export const tick = signal(performance.now()); // moves once a second, so that ages do

export const isHidden = signal(document.hidden); // the page lies behind others: it lets its streams go

export const stateFilter = signal(""); // of the job log
export const flashed = signal(0); // id of the job that was just submitted

let receivedAt = 0; // performance.now() of the latest news

/** Takes one set of news: {stats, workers, workers_total, jobs}. */
export function takeOverview(news) {
  receivedAt = performance.now();
  stats.value = news.stats;
  workers.value = news.workers;
  workersTotal.value = news.workers_total;
  jobs.value = news.jobs;
  beat.value += 1;
}

/** The broker's clock now, in seconds since 1970: its word plus the time that passed here. */
export const now = { get value() { return stats.value ? stats.value.now + Math.max(0, tick.value - receivedAt) / 1000 : 0; } };

/** Names of tasks, to choose from. */
export const knownTasks = () => (stats.value ? stats.value.tasks.map((entry) => entry.task) : []);

setInterval(() => { if (!document.hidden) tick.value = performance.now(); }, 1000);
