// Numbers, times and task values as text. Pure; must not know the page.

const numberFormat = new Intl.NumberFormat("en-US");

/** 98112 -> "98,112"; anything that is not a number -> "–". */
export const count = (n) => (typeof n === "number" ? numberFormat.format(n) : "–");

/** Milliseconds -> "0.3 ms", "12 ms", "1.5 s"; anything that is not a number -> "–". */
export function milliseconds(ms) {
  if (typeof ms !== "number") return "–";
  if (ms >= 1000) return `${(ms / 1000).toFixed(1)} s`;
  return `${ms < 9.95 ? ms.toFixed(1) : Math.round(ms)} ms`;
}

/** Bytes -> "512 B", "52 MiB", "74.6 GiB"; anything that is not a number -> "–". */
export function bytes(n) {
  if (typeof n !== "number") return "–";
  const unit = n < 1024 ? 0 : Math.min(4, Math.floor(Math.log2(n) / 10));
  const value = n / 1024 ** unit;
  return `${unit && value < 99.95 ? value.toFixed(1).replace(".0", "") : Math.round(value)} ${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`;
}

/** Seconds -> a short length such as "0.4 s", "12 s", "3 min", "2 h", "5 d". */
export function length(seconds) {
  const s = Math.max(0, seconds);
  if (s < 9.95) return `${s.toFixed(1)} s`;
  if (s < 90) return `${Math.round(s)} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  if (s < 129600) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} d`;
}

/** Seconds since -> "now", "12 s ago", "3 min ago"; before it -> "in 12 s". */
export function ago(seconds) {
  if (seconds < -1) return `in ${length(Math.ceil(-seconds))}`;
  return seconds < 2 ? "now" : `${length(Math.floor(seconds))} ago`.replace(".0 s", " s");
}

/** Seconds since 1970 -> local and UTC time, exact. */
export function exact(at) {
  const date = new Date(at * 1000);
  return `${date.toLocaleString()} · ${date.toISOString()}`;
}

/** Seconds since 1970 -> local time of day, "09:31:07.250". */
export function clock(at) {
  const date = new Date(at * 1000);
  return [date.getHours(), date.getMinutes(), date.getSeconds()].map((n) => String(n).padStart(2, "0")).join(":") + `.${String(date.getMilliseconds()).padStart(3, "0")}`;
}

/** Seconds since 1970 -> "2027-11-22". */
export const day = (at) => new Date(at * 1000).toISOString().slice(0, 10);

/** Share of a whole -> "61 %", "<1 %", "0 %". */
export function share(part, whole) {
  if (!part || !whole) return "0 %";
  const percent = (100 * part) / whole;
  if (percent < 1) return "<1 %";
  return percent > 99 && part < whole ? ">99 %" : `${Math.round(percent)} %`;
}

// Control characters, and those that turn the direction of text around: shown as escapes, or a text could pass for another.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

/** Foreign text with everything in it visible. */
export const visible = (text) => text.replace(HIDDEN, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`);

/** A payload or result as the API shows it ({preview} or {text}, or null) -> one line of text. */
export function shownLine(shown) {
  if (!shown) return "";
  if ("text" in shown) return visible(shown.text) + (shown.cut ? " …" : "");
  return visible(typeof shown.preview === "string" ? shown.preview : JSON.stringify(shown.preview));
}

/** The same -> indented text. */
export function shownBlock(shown) {
  if ("text" in shown) return visible(shown.text) + (shown.cut ? "\n… (the rest is not shown)" : "");
  return visible(JSON.stringify(shown.preview, null, 2)) + (shown.cut ? "\n… (parts are left out)" : "");
}
