// The page of events: what happens to jobs and pauses, newest first, as the broker tells it.

import { useEffect, useRef, useState } from "../vendor/preact-hooks.js";
import { clock, share, visible } from "./format.js";
import { NameFilter } from "./jobs.js";
import { go, route, showJob } from "./route.js";
import { isHidden, knownTasks } from "./state.js";
import { Badge, When, html } from "./ui.js";

const KEPT = 200;
const SHOW_MS = 250; // at most so often: a busy broker tells of thousands a second
const AGAIN_MS = 2000;
const KINDS = [["", "all but progress"], ["completed,failed,cancelled,expired", "what ended"], ["failed,expired,requeued,scheduled", "what went wrong"],
  ["changed,retried,cancelled,paused,resumed,limited,unlimited", "what people did"], ["progress", "progress"]];
const LOOKS = { submitted: "queued", started: "running", progress: "running", changed: "cancelled", retried: "requeued", resumed: "idle", limited: "paused", unlimited: "idle" };

/** Listens while it is on: {events, isOpen}. When it is on again it goes on where it was. */
function useEvents(query, isOn) {
  const [events, setEvents] = useState([]);
  const [isOpen, setOpen] = useState(false);
  const [turn, setTurn] = useState(0);
  const place = useRef({ number: 0 }).current;
  useEffect(() => {
    if (place.query !== query) {
      Object.assign(place, { query, position: "" });
      setEvents([]);
    }
    if (!isOn) return undefined;
    let fresh = []; // not shown yet, newest first
    let timer = 0;
    const show = () => {
      const news = fresh;
      [fresh, timer] = [[], 0];
      setEvents((old) => [...news, ...old].slice(0, KEPT));
    };
    const source = new EventSource(`/api/events/jobs?${query}${place.position ? `&after=${place.position}` : ""}`);
    source.onopen = () => setOpen(true);
    source.onmessage = ({ data, lastEventId }) => {
      place.position = lastEventId;
      fresh = [{ ...JSON.parse(data), number: place.number += 1 }, ...fresh].slice(0, KEPT);
      timer = timer || setTimeout(show, SHOW_MS);
    };
    source.onerror = () => {
      setOpen(false);
      if (source.readyState === EventSource.CLOSED) timer = setTimeout(() => setTurn(turn + 1), AGAIN_MS); // refused: it does not try again by itself
    };
    return () => {
      source.close();
      setOpen(false);
      clearTimeout(timer);
      show();
    };
  }, [query, isOn, turn]);
  return { events, isOpen };
}

export function Events() {
  const { queue = "", task = "", kinds = "" } = route.value.params;
  const [isPaused, setPaused] = useState(false);
  const query = new URLSearchParams(Object.entries({ queue, task, kinds }).filter(([, value]) => value)).toString();
  const { events, isOpen } = useEvents(query, !isPaused && !isHidden.value);
  const set = (changes) => go("events", { queue, task, kinds, ...changes });
  return html`<section class="panel page" id="events" aria-labelledby="h-events">
    <div class="head"><h2 id="h-events">Events</h2><form class="filters" onSubmit=${(event) => event.preventDefault()}>
        <select id="filter" aria-label="Kinds" value=${kinds} onChange=${(e) => set({ kinds: e.target.value })}>${KINDS.map(([value, text]) => html`<option value=${value}>${text}</option>`)}</select>
        <${NameFilter} name="queue" value=${queue} known=${["default"]} set=${set} /><${NameFilter} name="task" value=${task} known=${knownTasks()} set=${set} /></form>
      <button onClick=${() => setPaused(!isPaused)}>${isPaused ? "Go on" : "Pause"}</button></div>
    <p class="note muted" role="status">${isPaused ? "Paused. It goes on with what happens meanwhile." : isOpen ? `The latest ${KEPT} since the page was opened.` : "Connecting …"}</p>
    <div class="rows" tabindex="0" role="group" aria-labelledby="h-events">
      <ul class="events">${events.map((event) => html`<${Event} key=${event.number} event=${event} />`)}</ul>
      ${!events.length && html`<p class="empty">Nothing has happened since.</p>`}
    </div>
  </section>`;
}

function Event({ event }) {
  const { kind, job, task, queue, worker, reason, error, by, fraction, text } = event;
  if (kind === "gap") return html`<li class="tone-text-warn">Events before this place were missed.</li>`;
  const more = [typeof fraction === "number" && share(fraction, 1), text, error, reason, by && `by ${by}`].filter(Boolean).map(visible).join(" · ");
  return html`<li data-event=${kind}><time class="mono muted">${clock(event.at)}</time><${Badge} state=${kind} look=${LOOKS[kind]} />
    ${job && html`<button class="link" onClick=${() => showJob(job)}>#${job}</button>`}
    ${task && html`<bdi class="mono">${task}</bdi>`}${queue && html`<span class="muted">in <bdi>${queue}</bdi></span>`}
    ${worker && html`<span class="muted">on <bdi>${worker}</bdi></span>`}${more && html`<bdi class=${error ? "tone-text-bad" : ""}>${more}</bdi>`}
    ${event.run_at && html`<span class="muted">due <${When} at=${event.run_at} /></span>`}</li>`;
}
