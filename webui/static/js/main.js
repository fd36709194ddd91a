// Puts the page together: layout, keys, theme, announcements.

import { useEffect, useState } from "../vendor/preact-hooks.js";
import { render } from "../vendor/preact.js";
import "../vendor/signals.js";
import { Drawer } from "./drawer.js";
import { startLive } from "./live.js";
import { JobLog } from "./log.js";
import { Banners, Cards, Header, Security, StatusChart, TaskChart, Workers, summary } from "./panels.js";
import { SubmitForm } from "./submit.js";
import { html } from "./ui.js";
import { Vitals } from "./vitals.js";

const ANNOUNCE_MS = 10000; // a screen reader must be able to finish the sentence

function switchTheme() {
  const root = document.documentElement;
  const systemIsDark = matchMedia("(prefers-color-scheme: dark)").matches;
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : systemIsDark;
  root.dataset.theme = isDark ? "light" : "dark";
  localStorage.setItem("greenroom-theme", root.dataset.theme);
}

function onKey(event) {
  const isTyping = event.target.closest && event.target.closest("input, textarea, select");
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const action = {
    n: () => document.getElementById("f-task").focus(),
    "/": () => document.getElementById("filter").focus(),
    t: switchTheme,
  }[event.key];
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

const Page = () => html`
  <${Header} onTheme=${switchTheme} />
  <main>
    <${Banners} />
    <${Cards} />
    <div class="panels"><${StatusChart} /><${TaskChart} /><${Workers} /><${Security} /></div>
    <div class="lower"><${JobLog} /><${SubmitForm} /></div>
    <${Vitals} />
  </main>
  <${Drawer} />
  <${Announcer} />`;

document.addEventListener("keydown", onKey);
const root = document.getElementById("app");
root.replaceChildren();
render(html`<${Page} />`, root);
startLive();
