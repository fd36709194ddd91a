// Answers of the API that a page shows: asked for at once, and again when news come, but not all the time.

import { useEffect, useRef, useState } from "../vendor/preact-hooks.js";
import { api } from "./live.js";
import { beat } from "./state.js";

const EVERY_MS = 2000;

/**
 * Asks for a path, null: for nothing. Returns {answer?, refusal?, again}; after a refusal the last answer stays.
 * `everyMs`: not sooner again. `isHeld`: not again by itself. `ask`: how to ask, api() by default.
 */
export function useAnswer(path, { everyMs = EVERY_MS, isHeld = false, ask = api } = {}) {
  const [known, setKnown] = useState({ path: null });
  const [turn, setTurn] = useState(0);
  const last = useRef({ path: null, turn: 0, at: 0, number: 0 });
  useEffect(() => {
    const before = last.current;
    const isNew = before.path !== path || before.turn !== turn;
    if (path === null) { last.current = { ...before, path }; return; }
    if (!isNew && (isHeld || performance.now() - before.at < everyMs)) return;
    const number = before.number + 1; // only the newest question's answer counts
    last.current = { path, turn, at: performance.now(), number };
    const take = (news) => { if (last.current.number === number) setKnown((old) => ({ ...(old.path === path ? old : {}), refusal: null, path, ...news })); };
    ask(path).then((answer) => take({ answer }), (refusal) => take({ refusal }));
  }, [path, turn, isHeld, everyMs, beat.value]);
  return { ...(known.path === path ? known : {}), again: () => setTurn((old) => old + 1) };
}
