// Forms whose fields are a table, and the question before something that nothing brings back. What is wrong is told at its field.

import { useLayoutEffect, useRef, useState } from "../vendor/preact-hooks.js";
import { html } from "./ui.js";

/** A payload as the API shows it -> JSON to edit, or "" if what is shown is not exactly the payload. */
export const editable = (shown) => (shown && "preview" in shown && !shown.cut && !shown.inexact ? JSON.stringify(shown.preview, null, 1) : "");

/** What is wrong with a text that must be JSON, or nothing. */
export function payloadProblem(text) {
  try {
    JSON.parse(text);
    return "";
  } catch (error) {
    return `Not JSON yet: ${error.message}`;
  }
}

/** What was typed where a number belongs; nothing is no number. */
export const numberOf = (text) => (String(text).trim() === "" ? "" : Number(text));

/** Fields as JSON, with a payload, if there is one, as it was typed: JavaScript would round large integers. */
export function bodyText(rest, payload) {
  const text = JSON.stringify(rest).slice(0, -1);
  return `${text}${payload ? `${text === "{" ? "" : ","}"payload":${payload}` : ""}}`;
}

/** The focus goes in when this is shown, and back to where it was when it goes. */
function useFocusInside(selector) {
  const box = useRef(null);
  useLayoutEffect(() => {
    const inside = box.current;
    const before = document.activeElement;
    inside.querySelector(selector).focus();
    return () => { if (inside.contains(document.activeElement)) before.focus(); };
  }, []);
  return box;
}

const onEscape = (act) => (event) => {
  if (event.key !== "Escape") return;
  event.preventDefault(); // a dialog around it stays open
  act();
};

/**
 * Fields: [{name, label, kind?, known?, also?, isFixed?, mayBeEmpty?}]; kind: "text", another type of input, "json", or a list of words or [value, words];
 * known: texts to choose from; also: other names that the API has for it. `at`: begins the ids. `send(values, first)` throws what api() throws.
 */
export function Form({ at = "in", label, fields, first: given, word, send, onCancel, more }) {
  const [first] = useState(given);
  const [values, setValues] = useState(first);
  const [refusal, setRefusal] = useState(null);
  const [isSending, setSending] = useState(false);
  const box = useFocusInside(":is(input, textarea):not(:disabled)");
  useLayoutEffect(() => { if (refusal && !isSending) (box.current.querySelector("[aria-invalid=true]") || box.current).focus(); }, [refusal, isSending]);
  const shown = fields(values);
  const isOf = (field) => refusal && [field.name, ...(field.also || [])].includes(refusal.field);
  const problem = (field) => (field.kind === "json" && !(field.mayBeEmpty && !values[field.name].trim()) ? payloadProblem(values[field.name]) : "");
  const submit = async (event) => {
    event.preventDefault();
    if (isSending || shown.some(problem)) return;
    setSending(true);
    setRefusal(null);
    try {
      await send(values, first);
    } catch (error) {
      setRefusal(error);
    }
    setSending(false);
  };
  return html`<form class="fields" aria-label=${label} tabindex="-1" noValidate autocomplete="off" ref=${box} onSubmit=${submit} onKeyDown=${onEscape(onCancel)}>
    ${shown.map((field) => html`<${Field} key=${field.name} id="${at}-${field.name}" field=${field} value=${values[field.name]} said=${problem(field) || (isOf(field) ? refusal.message : "")}
      set=${(value) => { setValues((old) => ({ ...old, [field.name]: value })); if (isOf(field)) setRefusal(null); }} />`)}
    ${more && more(values)}
    <p class="whole tone-text-bad" role="status">${refusal && !shown.some(isOf) ? refusal.message : ""}</p>
    <p class="whole"><button type="submit" class="go" disabled=${isSending || shown.some(problem)}>${word}</button> <button onClick=${onCancel}>Not now</button></p>
  </form>`;
}

/** One field of a form, with what is `said` about it. */
export function Field({ id, field, value, said, set }) {
  const { label, kind = "text", known } = field;
  const common = { id, name: field.name, value, disabled: field.isFixed, onInput: (event) => set(event.target.value), "aria-invalid": Boolean(said), "aria-describedby": `${id}-said` };
  return html`<div class="field ${kind === "json" ? "whole json" : ""}"><label for=${id}>${label}</label>
    ${Array.isArray(kind) ? html`<select ...${common}>${kind.map((one) => html`<option value=${[one].flat()[0]}>${[one].flat().at(-1)}</option>`)}</select>`
      : kind === "json" ? html`<textarea ...${common} class="mono" rows="3" spellcheck=${false}></textarea>`
        : html`<input ...${common} type=${kind} step="1" spellcheck=${false} list=${known ? `${id}-known` : null} />`}
    ${known && html`<datalist id="${id}-known">${known.map((one) => html`<option value=${one} />`)}</datalist>`}
    <p class="said tone-text-bad" id="${id}-said" role="status">${said}</p></div>`;
}

/** Asks before it is done. */
export function Confirm({ question, word, onYes, onNo }) {
  const box = useFocusInside("button:last-child");
  return html`<p class="confirm" role="group" aria-label=${question} ref=${box} onKeyDown=${onEscape(onNo)}><span>${question}</span>
    <button class="danger" onClick=${onYes}>${word}</button><button onClick=${onNo}>Not now</button></p>`;
}
