// What both modes' forms and replies share.

import { el } from "./dom.js";

/** Enter submits `form`, Shift+Enter begins a line. An input method that is composing keeps its Enter. */
export function enterSends(textarea, form) {
  textarea.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
}

/** Who answers, and what was chosen. */
export function replyLabel(name, { temperature, hneurons }) {
  const chosen = [`alpha ${hneurons.alpha}`, `temperature ${temperature}`, hneurons.policy ? `policy: ${hneurons.policy.action}` : null];
  return el("p", { class: "by" }, el("bdi", {}, name), el("span", {}, chosen.filter(Boolean).join(" · ")));
}

/** Switches the buttons inside `group` off or on. */
export function setDisabled(group, disabled) {
  for (const button of group.querySelectorAll("button")) button.disabled = disabled;
}

/** Does `change`; if what had the focus in `panel` went away, its stop button or its text field has it then. */
export function keepFocus(panel, field, change) {
  const had = document.activeElement;
  const inside = panel.contains(had);
  change();
  if (!inside || (had.isConnected && had.getClientRects().length && !had.disabled)) return;
  const stop = panel.querySelector(".stop:not([hidden])");
  // On a touch screen the text field would bring up the keyboard.
  const next = stop ?? (matchMedia("(hover: hover)").matches ? field : panel.querySelector("button.main:not([hidden])"));
  next.focus({ preventScroll: true });
}
