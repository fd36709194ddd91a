// Values that the page shows: when one changes, the page is drawn anew. News come once a second, and Preact touches what differs.

let draw = () => {};

/** Sets what is done when a value has changed. */
export function onChange(act) { draw = act; }

export function signal(value) {
  return {
    get value() { return value; },
    set value(next) {
      if (next === value) return;
      value = next;
      draw();
    },
  };
}
