// Puts the page together: layout, keys, theme, announcements.

import { useEffect, useLayoutEffect, useRef, useState } from "../vendor/preact-hooks.js";
import { render } from "../vendor/preact.js";
import { Drawer } from "./drawer.js";
import { Events } from "./events.js";
import { Failures } from "./failures.js";
import { Jobs } from "./jobs.js";
import { startLive } from "./live.js";
import { JobLog } from "./log.js";
import { Banners, Cards, Header, Security, StatusChart, TaskChart, Workers, summary } from "./panels.js";
import { Queues } from "./queues.js";
import { PAGES, go, route } from "./route.js";
import { Schedules } from "./schedules.js";
import { onChange } from "./signal.js";
import { SubmitForm } from "./submit.js";
import { html } from "./ui.js";
import { Vitals } from "./vitals.js";

const ANNOUNCE_MS = 10000; // a screen reader must be able to finish the sentence
const GO_MS = 1500;

function switchTheme() {
  const root = document.documentElement;
  const systemIsDark = matchMedia("(prefers-color-scheme: dark)").matches;
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : systemIsDark;
  root.dataset.theme = isDark ? "light" : "dark";
  localStorage.setItem("greenroom-theme", root.dataset.theme);
}

let wentAt = -Infinity; // when g was hit: the next key says where to go

function focusOn(id) {
  const element = document.getElementById(id);
  if (element) element.focus();
}

function submitKey() {
  if (route.value.page !== "overview") go("overview");
  requestAnimationFrame(() => focusOn("f-task"));
}

function onKey(event) {
  const isTyping = event.target.closest && event.target.closest("input:not([type=checkbox]), textarea, select");
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const page = performance.now() - wentAt < GO_MS && PAGES.find((name) => name[0] === event.key);
  wentAt = event.key === "g" ? performance.now() : -Infinity;
  const action = page ? () => go(page) : { n: submitKey, "/": () => focusOn("filter"), t: switchTheme }[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

function Announcer() {
  const [said, setSaid] = useState("");
  useEffect(() => {
    const timer = setInterval(() => setSaid(summary()), ANNOUNCE_MS);
    return () => clearInterval(timer);
  }, []);
  return html`<p class="sr" aria-live="polite">${said}</p>`;
}

const Overview = () => html`<${Cards} />
  <div class="panels"><${StatusChart} /><${TaskChart} /><${Workers} /><${Security} /></div>
  <div class="lower"><${JobLog} /><${SubmitForm} /></div>
  <${Vitals} />`;

const VIEWS = { overview: Overview, jobs: Jobs, failures: Failures, queues: Queues, schedules: Schedules, events: Events };

function Page() {
  const [, draw] = useState(0);
  useLayoutEffect(() => onChange(() => draw((number) => number + 1)), []);
  const { page } = route.value;
  const main = useRef(null);
  const shown = useRef(page);
  useEffect(() => {
    document.title = page === "overview" ? "Greenroom" : `${page[0].toUpperCase()}${page.slice(1)} · Greenroom`;
    const isInside = main.current.contains(document.activeElement); // a key may have gone to a field already
    if (shown.current !== page && !isInside) main.current.focus(); // so that a screen reader begins with what is new
    shown.current = page;
  }, [page]);
  return html`<${Header} onTheme=${switchTheme} />
  <main ref=${main} tabindex="-1"><${Banners} /><${VIEWS[page]} /></main>
  <${Drawer} />
  <${Announcer} />`;
}

document.addEventListener("keydown", onKey);
const root = document.getElementById("app");
root.replaceChildren();
render(html`<${Page} />`, root);
startLive();
