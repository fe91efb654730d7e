// One box that floats beside what is pointed at or focused. It stays while the pointer is on it, and Esc closes it.

import { byId } from "./dom.js";

const GAP = 8;
let owner = null;
let timer = 0;

/** Shows `nodes` beside the rectangle; `target` is what they describe. */
export function showTip(target, rect, nodes) {
  const tip = byId("tip");
  clearTimeout(timer);
  if (owner !== target) closeTip();
  owner = target;
  tip.replaceChildren(...nodes);
  tip.hidden = false;
  target.setAttribute("aria-describedby", "tip");
  const width = document.documentElement.clientWidth;
  const left = Math.max(GAP, Math.min(rect.left + rect.width / 2 - tip.offsetWidth / 2, width - tip.offsetWidth - GAP));
  const below = rect.bottom + GAP + tip.offsetHeight < window.innerHeight || rect.top < tip.offsetHeight + GAP;
  tip.style.left = `${left + window.scrollX}px`;
  tip.style.top = `${(below ? rect.bottom + GAP : rect.top - GAP - tip.offsetHeight) + window.scrollY}px`;
}

/** Closes the tip; whether it was open. */
export function closeTip() {
  if (!owner) return false;
  clearTimeout(timer);
  byId("tip").hidden = true;
  owner.removeAttribute("aria-describedby");
  owner.dispatchEvent(new CustomEvent("neurons", { bubbles: true, detail: null }));
  owner = null;
  return true;
}

/** Closes it soon, unless the pointer reaches it before. */
export function closeTipSoon() {
  clearTimeout(timer);
  timer = setTimeout(closeTip, 160);
}

/** What the tip describes now. */
export const tipOwner = () => owner;

/** Gives the elements `selector` inside `root` tips. `describe`: element -> {nodes, neurons}, or null for no tip. */
export function tips(root, selector, describe) {
  const open = (target) => {
    const found = describe(target);
    if (!found) return;
    const rects = target.getClientRects();
    if (!rects.length) return;
    showTip(target, rects[0], found.nodes);
    target.dispatchEvent(new CustomEvent("neurons", { bubbles: true, detail: found.neurons }));
  };
  const wanted = (event) => event.target.closest?.(selector);
  root.addEventListener("pointerover", (event) => {
    if (event.pointerType !== "touch" && wanted(event)) open(wanted(event));
  });
  root.addEventListener("pointerout", (event) => {
    if (event.pointerType !== "touch" && wanted(event) && document.activeElement !== wanted(event)) closeTipSoon();
  });
  root.addEventListener("focusin", (event) => wanted(event) && open(wanted(event)));
  root.addEventListener("focusout", closeTip);
  return open;
}

/** Keeps the tip open under the pointer. */
export function initTip() {
  const tip = byId("tip");
  tip.addEventListener("pointerenter", () => clearTimeout(timer));
  tip.addEventListener("pointerleave", closeTipSoon);
}
