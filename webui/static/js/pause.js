// What is paused, in words, and the form that asks why before something is.

import { Form } from "./form.js";
import { visible } from "./format.js";
import { Icon, When, html } from "./ui.js";

const LENGTHS = [["", "until resumed"], ["900", "for 15 min"], ["3600", "for 1 h"], ["28800", "for 8 h"], ["86400", "for a day"]];

/** When, until when, by whom and why: {paused_at, until?, by?, reason}. */
export const Paused = ({ pause }) => html`<p class="tone-text-warn"><span class="badge s-paused"><${Icon} name="paused" />paused</span>
  <${When} at=${pause.paused_at} />${pause.by ? html` by <bdi>${visible(pause.by)}</bdi>` : ""}${pause.until ? html`, goes on <${When} at=${pause.until} />` : ""}${pause.reason ? html`: <bdi>${visible(pause.reason)}</bdi>` : ""}</p>`;

/** Asks for the reason and, `hasLength`, for how long: onPause({reason, for?}). */
export function PauseForm({ name, hasLength = false, onPause, onCancel }) {
  const fields = () => [{ name: "reason", label: "Why? It is shown to everybody" }, ...(hasLength ? [{ name: "length", label: "How long?", kind: LENGTHS, also: ["for"] }] : [])];
  const send = ({ reason, length }) => onPause({ reason: reason.trim(), ...(length && { for: Number(length) }) });
  return html`<${Form} label="Pause ${name}" fields=${fields} first=${{ reason: "", length: "" }} word="Pause" send=${send} onCancel=${onCancel} />`;
}
