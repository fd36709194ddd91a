// What is paused, in words, and the form that asks why before something is.

import { useLayoutEffect, useRef, useState } from "../vendor/preact-hooks.js";
import { visible } from "./format.js";
import { Icon, When, html } from "./ui.js";

const LENGTHS = [["", "until resumed"], ["900", "for 15 min"], ["3600", "for 1 h"], ["28800", "for 8 h"], ["86400", "for a day"]];

/** When, until when, by whom and why: {paused_at, until?, by?, reason}. */
export const Paused = ({ pause }) => html`<p class="tone-text-warn"><span class="badge s-paused"><${Icon} name="paused" />paused</span>
  <${When} at=${pause.paused_at} />${pause.by ? html` by <bdi>${visible(pause.by)}</bdi>` : ""}${pause.until ? html`, goes on <${When} at=${pause.until} />` : ""}${pause.reason ? html`: <bdi>${visible(pause.reason)}</bdi>` : ""}</p>`;

/** Asks for the reason and, `hasLength`, for how long: onPause({reason, for?}). */
export function PauseForm({ name, hasLength = false, onPause, onCancel }) {
  const [reason, setReason] = useState("");
  const [seconds, setSeconds] = useState("");
  const first = useRef(null);
  useLayoutEffect(() => first.current.focus(), []); // before the next key comes
  const submit = (event) => {
    event.preventDefault();
    onPause({ reason: reason.trim(), ...(seconds && { for: Number(seconds) }) });
  };
  return html`<form class="pause" onSubmit=${submit} onKeyDown=${(event) => { if (event.key === "Escape") onCancel(); }}>
    <label>Why? <input type="text" class="reason" maxlength="256" placeholder="shown to everybody" aria-label="Reason to pause ${name}" ref=${first} value=${reason} onInput=${(e) => setReason(e.target.value)} /></label>
    ${hasLength && html`<select aria-label="How long" value=${seconds} onChange=${(e) => setSeconds(e.target.value)}>${LENGTHS.map(([value, text]) => html`<option value=${value}>${text}</option>`)}</select>`}
    <button type="submit" class="go">Pause</button><button type="button" onClick=${onCancel}>Not now</button></form>`;
}
