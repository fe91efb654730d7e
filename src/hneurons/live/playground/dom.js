// Elements without HTML: whatever a server says goes in as text.

/** An element. `on…` keys of `props` are listeners, the others attributes; null, undefined and false are left out. */
export function el(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** "83 %", and never a certainty that rounding made up. */
export function percent(risk) {
  if (typeof risk !== "number" || Number.isNaN(risk)) return "–";
  if (risk > 0.995 && risk < 1) return "> 99\u202f%";
  if (risk < 0.005 && risk > 0) return "< 1\u202f%";
  return `${Math.round(100 * risk)}\u202f%`;
}

/** A number with its sign and three significant digits: "+0.412", "−12.3". */
export function signed(value) {
  const size = Math.abs(value);
  const digits = size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3;
  return (value < 0 ? "−" : "+") + size.toFixed(digits);
}

/** "L12 · 345", with the expert in a mixture of experts. */
export const neuronName = ({ layer, expert, index }) =>
  expert === null || expert === undefined ? `L${layer} · ${index}` : `L${layer} · E${expert} · ${index}`;

/** The same for a screen reader. */
export const neuronWords = ({ layer, expert, index }) =>
  `layer ${layer}${expert === null || expert === undefined ? "" : `, expert ${expert}`}, neuron ${index}`;

export const neuronKey = ({ layer, expert, index }) => `${layer}/${expert ?? ""}/${index}`;

/** Neurons with their values as bars to both sides of a middle line. */
export function bars(top) {
  const most = Math.max(...top.map((neuron) => Math.abs(neuron.value)), 1e-9);
  const list = el("ul", { class: "bars" });
  for (const neuron of top) {
    const bar = el("i", { class: neuron.value < 0 ? "lowers" : "raises" });
    bar.style.setProperty("--w", (Math.abs(neuron.value) / most).toFixed(3));
    list.append(el("li", {}, el("span", {}, neuronName(neuron)), el("span", { class: "track", "aria-hidden": "true" }, bar),
      el("span", { class: "n" }, signed(neuron.value))));
  }
  return list;
}

/** Has screen readers say `text` after what they are saying. */
export function announce(text) {
  const live = byId("live");
  live.append(el("span", {}, `${text} `));
  while (live.childElementCount > 8) live.firstElementChild.remove();
}
