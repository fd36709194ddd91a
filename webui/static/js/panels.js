// The upper half of the page: header, banners, cards, charts, workers, security.

import { count, day, length, share } from "./format.js";
import { FullBanner } from "./limits.js";
import { PausedBanner } from "./queues.js";
import { PAGES, address, route, showJob } from "./route.js";
import { STATES, jobs, link, now, security, stateFilter, stats, workers, workersTotal } from "./state.js";
import { Badge, Icon, When, html, workerCommand } from "./ui.js";

const WARN_DAYS = 14;
const TASKS_SHOWN = 6;

const LINKS = {
  connecting: ["wait", "connecting"],
  live: ["ok", "live"],
  polling: ["warn", "polling"],
  lost: ["bad", "offline"],
};

export function Header({ onTheme }) {
  const [tone, word] = LINKS[link.value];
  return html`<header class="top">
    <h1><img src="/static/favicon.svg" alt="" width="24" height="24" />Greenroom</h1>
    <span class="muted version">${stats.value ? `v${stats.value.version}` : ""}</span>
    <${Nav} />
    <span class="grow"></span>
    <${TlsBadge} />
    <span class="pill tone-${tone}" id="link" title="how this page gets its news"><span class="dot"></span>${word}</span>
    <button class="quiet" onClick=${onTheme} title="light or dark (t)" aria-label="Switch between light and dark"><${Icon} name="theme" /></button>
  </header>`;
}

function Nav() {
  return html`<nav aria-label="Pages">${PAGES.map((page) => html`<a key=${page} href=${address(page)} aria-current=${route.value.page === page ? "page" : null}>
    ${page[0].toUpperCase() + page.slice(1)}</a>`)}</nav>`;
}

function TlsBadge() {
  const facts = security.value;
  if (!facts) return html`<span class="pill tone-wait" id="tls"><${Icon} name="lock" />TLS …</span>`;
  if (!facts.tls) return html`<span class="pill tone-bad" id="tls"><${Icon} name="unlock" />TLS off</span>`;
  const days = facts.certificate.days_left;
  if (days < 0) return html`<span class="pill tone-bad" id="tls"><${Icon} name="warn" />TLS: certificate expired</span>`;
  const left = `${Math.floor(days)} ${Math.floor(days) === 1 ? "day" : "days"}`;
  if (days < WARN_DAYS) return html`<span class="pill tone-warn" id="tls"><${Icon} name="warn" />TLS on<span class="more"> · ${left} left</span></span>`;
  return html`<span class="pill tone-ok" id="tls"><${Icon} name="lock" />TLS on<span class="more"> · ${facts.protocol.replace("TLSv", "")}</span></span>`;
}

/** What a person should know now; nothing when all is well. */
export function Banners() {
  const waiting = stats.value && link.value !== "lost" && workersTotal.value > 0
    ? stats.value.tasks.filter((task) => task.queued > 0 && task.workers === 0) : [];
  return html`<div class="banners" role="status">
    ${link.value === "lost" && html`<p class="banner tone-bad" id="lost"><${Icon} name="warn" />Connection lost, retrying. The figures below are from before.</p>`}
    ${stats.value?.store?.full && html`<p class="banner tone-bad" id="disk-full"><${Icon} name="warn" />The broker's disk is nearly full: new jobs are refused, running ones can be settled.</p>`}
    ${stats.value?.damaged?.total > 0 && html`<p class="banner tone-bad"><${Icon} name="warn" />${count(stats.value.damaged.total)} jobs are damaged on the broker's disk; its log names them.</p>`}
    <${PausedBanner} />
    <${FullBanner} />
    ${waiting.length > 0 && html`<p class="banner tone-warn"><${Icon} name="warn" /><span>No connected worker can run
      ${waiting.slice(0, 3).map((task, i) => html`${i ? ", " : " "}<bdi class="mono">${task.task}</bdi> (${count(task.queued)} waiting)`)}
      ${waiting.length > 3 ? ` and ${waiting.length - 3} more` : ""}</span></p>`}
  </div>`;
}

const CARDS = [
  ["queue_size", "Queue size", "queue", "queued"], ["workers", "Workers", "workers", null], ["idle", "Idle", "idle", null],
  ["busy", "Busy", "busy", "running"], ["completed", "Completed", "completed", "completed"], ["failed", "Failed", "failed", "failed"],
  ["requeued", "Requeued", "requeued", null], ["total", "Total jobs", "total", ""],
];

export function Cards() {
  const figures = stats.value || {};
  return html`<section class="cards" aria-label="Figures">${CARDS.map(([key, label, icon, filter]) => {
    const inside = html`<span class="label"><${Icon} name=${icon} />${label}</span><span class="figure" id="card-${key}">${count(figures[key])}</span>`;
    const tone = `card c-${key} ${figures[key] > 0 ? "some" : ""}`;
    return filter === null ? html`<div class=${tone}>${inside}</div>`
      : html`<button class=${tone} title=${filter ? `show ${filter} jobs` : "show all jobs"} onClick=${() => { stateFilter.value = filter; }}>${inside}</button>`;
  })}</section>`;
}

/** Bars with the numbers beside them: the chart is a table, so everybody can read it. */
function Bars({ caption, heads, rows, empty, wide }) {
  const most = Math.max(1, ...rows.map((row) => row.value));
  const whole = rows.reduce((sum, row) => sum + (row.apart ? 0 : row.value), 0);
  if (!rows.length) return html`<p class="empty">${empty}</p>`;
  return html`<table class="bars"><caption class="sr">${caption}</caption>
    <colgroup><col class=${wide ? "col-wide" : "col-head"} /><col /><col class="col-jobs" /><col class="col-share" /></colgroup>
    <thead class="sr"><tr>${heads.map((head) => html`<th scope="col">${head}</th>`)}</tr></thead>
    <tbody>${rows.map((row) => html`<tr key=${row.key}>
      <th scope="row" title=${row.key}>${row.head}</th>
      <td><span aria-hidden="true" class="bar ${row.value ? "" : "none"} s-${row.tone}" style=${{ width: `${(100 * row.value) / most}%` }}></span></td>
      <td class="number">${count(row.value)}</td>
      <td class="number muted">${row.apart ? "" : share(row.value, whole)}</td>
    </tr>`)}</tbody></table>`;
}

export function StatusChart() {
  const figures = stats.value;
  const rows = figures ? STATES.filter((state) => state !== "expired" || figures.expired).map((state) => ({ key: state, head: html`<${Badge} state=${state} />`, value: figures[state], tone: state })) : [];
  if (figures) rows.push({ key: "requeued", head: html`<${Badge} state="requeued" />`, value: figures.requeued, tone: "requeued", apart: true });
  return html`<section class="panel" id="status-chart" aria-labelledby="h-status"><h2 id="h-status">Status breakdown</h2>
    <div class="body"><${Bars} caption="Jobs by status" heads=${["Status", "Bar", "Jobs", "Share"]} rows=${rows} empty="…" /></div></section>`;
}

export function TaskChart() {
  const tasks = stats.value ? stats.value.tasks : [];
  const rows = tasks.slice(0, TASKS_SHOWN).map((task) => ({ key: task.task, head: html`<bdi class="mono">${task.task}</bdi>`, value: task.total, tone: "completed" }));
  const others = tasks.slice(TASKS_SHOWN).reduce((sum, task) => sum + task.total, 0);
  if (others) rows.push({ key: "others", head: `${tasks.length - TASKS_SHOWN} ${tasks.length - TASKS_SHOWN === 1 ? "other" : "others"}`, value: others, tone: "cancelled" });
  return html`<section class="panel" id="task-chart" aria-labelledby="h-tasks"><h2 id="h-tasks">Task distribution</h2>
    <div class="body"><${Bars} wide caption="Jobs by task" heads=${["Task", "Bar", "Jobs", "Share"]} rows=${rows} empty="No job yet. Submit one with the form." /></div></section>`;
}

export function Workers() {
  const hidden = workersTotal.value - workers.value.length;
  return html`<section class="panel" id="workers" aria-labelledby="h-workers">
    <h2 id="h-workers">Workers <span class="muted">${count(workersTotal.value)}</span></h2>
    <div class="body scroll" tabindex="0" role="group" aria-labelledby="h-workers">
      ${stats.value && !workersTotal.value && html`<div class="empty"><p>No worker is connected. Start one in this folder:</p><pre class="command">${workerCommand(security.value)}</pre></div>`}
      <ul class="workers">${workers.value.map((worker) => html`<${Worker} key=${worker.session} worker=${worker} />`)}</ul>
      ${hidden > 0 && html`<p class="muted">and ${count(hidden)} more</p>`}
    </div></section>`;
}

function Worker({ worker }) {
  const [job] = worker.jobs;
  return html`<li>
    <span class="who"><bdi class="name" title="${worker.address} · ${worker.software || ""}">${worker.name}</bdi><${Badge} state=${worker.status} /></span>
    <span class="what muted"><span class="doing">${job ? html`<button class="link" onClick=${() => showJob(job.id)}><bdi>${job.task}</bdi> #${job.id}</button>
      ${` ${length(now.value - job.started_at)}`}${worker.running > 1 ? ` +${worker.running - 1}` : ""}` : `${count(worker.done)} done${worker.failed ? `, ${count(worker.failed)} failed` : ""}`}</span>
      <span class="heartbeat" title="last heartbeat"><span aria-hidden="true">♥ </span><span class="sr">last heartbeat </span><${When} at=${worker.last_seen_at} /></span></span>
  </li>`;
}

const words = (reason) => reason.replaceAll("_", " ");

export function Security() {
  const facts = security.value;
  const certificate = facts && facts.certificate;
  return html`<section class="panel" id="security" aria-labelledby="h-security"><h2 id="h-security">Security</h2>
    <div class="body scroll" tabindex="0" role="group" aria-labelledby="h-security">${facts && html`<dl class="facts">
      <dt>Protocol</dt><dd>${facts.tls ? `${facts.protocol} only · ${facts.alpn}` : "no TLS"}</dd>
      <dt>Port</dt><dd><b>${facts.port}</b> on ${facts.host}</dd>
      <dt>Certificate</dt><dd title="SHA-256 ${certificate.sha256}"><${CertificateStatus} certificate=${certificate} /></dd>
      <dt>Rejected</dt><dd id="rejected"><b>${count(facts.rejected_total)}</b> of ${count(facts.handshakes + facts.rejected_total)}${Object.entries(facts.rejected).map(([reason, n]) => html` <span class="chip">${words(reason)} ${count(n)}</span>`)}</dd>
      <dt>Policy</dt><dd>${facts.policy}</dd>
      <dt>Clients</dt><dd>client certificate ${facts.client_certificates}</dd>
      <dt>Key</dt><dd>${certificate.key_type} · <bdi class="mono">${certificate.file}</bdi></dd>
    </dl>`}</div></section>`;
}

function CertificateStatus({ certificate }) {
  const days = Math.floor(certificate.days_left);
  if (days < 0) return html`<b class="tone-text-bad">expired</b> on ${day(certificate.not_after)}`;
  return html`<b class=${days < WARN_DAYS ? "tone-text-warn" : "tone-text-ok"}>${days < WARN_DAYS ? "expires soon" : "valid"}</b> · ${count(days)} ${days === 1 ? "day" : "days"} left`;
}

/** One sentence for screen readers. */
export function summary() {
  const figures = stats.value;
  if (link.value === "lost") return "Connection to the broker lost, retrying.";
  if (!figures || !jobs.value) return "";
  return `${figures.queue_size} jobs waiting, ${figures.running} running, ${figures.completed} completed, ${figures.failed} failed, ${figures.workers} workers.`;
}
