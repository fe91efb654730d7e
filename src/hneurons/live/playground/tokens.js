// A response as coloured tokens: one tab stop, arrow keys from token to token, a tip for each.

import { Alignment, codeUnits } from "./align.js";
import { bars, el, percent } from "./dom.js";
import { tipOwner, tips } from "./tip.js";

const SHOWN = 5; // neurons in a tip

/** What the tip of a piece says. `marks`: those of the tokens it is made of. */
function describe(text, marks) {
  const said = el("p", { class: "said" }, el("bdi", {}, text.replaceAll("\n", "↵")));
  const known = marks.filter(Boolean);
  if (!known.length) return { nodes: [said, el("p", { class: "muted" }, "Its risk is not known.")], neurons: null };
  const mark = known.reduce((most, next) => (next.risk > most.risk ? next : most));
  const nodes = [
    said,
    el("dl", { class: "risks" },
      el("div", {}, el("dt", {}, marks.length > 1 ? "highest risk" : "risk"), el("dd", {}, percent(mark.risk))),
      el("div", {}, el("dt", {}, "running risk"), el("dd", {}, percent(known.at(-1).running)))),
    marks.length > 1 ? el("p", { class: "muted" }, `${marks.length} tokens write this together.`) : null,
    mark.top?.length ? bars(mark.top.slice(0, SHOWN)) : null,
  ].filter(Boolean);
  return { nodes, neurons: mark.top ?? null };
}

/** Arrow keys move the focus through the elements `selector` of `root`, of which one is the tab stop. */
function rove(root, selector) {
  const focus = (target) => {
    if (!target) return;
    root.querySelector(`${selector}[tabindex="0"]`)?.setAttribute("tabindex", "-1");
    target.setAttribute("tabindex", "0");
    target.focus();
    target.scrollIntoView({ block: "nearest" });
  };
  root.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || !event.target.matches(selector)) return;
    const all = [...root.querySelectorAll(selector)];
    const at = all.indexOf(event.target);
    const forward = getComputedStyle(root).direction === "rtl" ? -1 : 1;
    const to = { ArrowRight: at + forward, ArrowLeft: at - forward, Home: 0, End: all.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    focus(all[to]);
  });
  root.addEventListener("focusin", (event) => {
    if (!event.target.matches(selector) || event.target.tabIndex === 0) return;
    root.querySelector(`${selector}[tabindex="0"]`)?.setAttribute("tabindex", "-1");
    event.target.setAttribute("tabindex", "0");
  });
}

/** The text of one response. `element` shows it. */
export class TokenText {
  #alignment = new Alignment();
  #marks = new Map();
  #pieces = new Map(); // span -> piece
  #spans = new Map(); // token -> span
  #rest = document.createTextNode("");
  #open;

  constructor() {
    this.element = el("div", { class: "tokens", dir: "auto", role: "group", "aria-label": "Response; arrow keys move from token to token" });
    this.element.append(this.#rest);
    rove(this.element, ".t");
    this.#open = tips(this.element, ".t", (span) => {
      const piece = this.#pieces.get(span);
      return describe(piece.text, piece.tokens.map((index) => this.#marks.get(index)));
    });
  }

  get text() {
    return this.#alignment.text;
  }

  /** Adds what one event of the stream brought. */
  add(text, tokens, marks) {
    this.#alignment.add(text, tokens);
    for (const mark of marks) this.#marks.set(mark.index, mark);
    this.#write(false);
    for (const mark of marks) this.#paint(this.#spans.get(mark.index));
  }

  /** All that is left becomes text. */
  finish() {
    this.#write(true);
  }

  #write(final) {
    for (const piece of this.#alignment.advance(final)) {
      // Spaces before a word stay outside its colour.
      const bare = piece.text.trimStart() || piece.text;
      const space = piece.text.slice(0, piece.text.length - bare.length);
      if (space) this.#rest.before(space);
      if (!piece.tokens.length) {
        this.#rest.before(bare);
        continue;
      }
      const span = el("span", { class: bare.trim() ? "t" : "t blank", tabindex: this.#pieces.size ? "-1" : "0" }, bare);
      this.#pieces.set(span, { text: bare, tokens: piece.tokens });
      for (const index of piece.tokens) this.#spans.set(index, span);
      this.#rest.before(span);
      this.#paint(span);
    }
    this.#rest.data = this.#alignment.rest;
  }

  #paint(span) {
    const risks = this.#pieces.get(span)?.tokens.map((index) => this.#marks.get(index)?.risk).filter((risk) => risk !== undefined);
    if (!risks?.length) return;
    span.style.setProperty("--r", Math.min(1, Math.max(0, ...risks)).toFixed(3)); // the stronger and the thicker, the riskier
    span.classList.add("known");
    if (tipOwner() === span) this.#open(span);
  }

  /** Underlines the answer, {start, end, text} in code points; whether it was found. */
  underline(answer) {
    let [start, end] = [answer.start, answer.end].map((points) => codeUnits(this.text, points));
    if (this.text.slice(start, end) !== answer.text) {
      start = answer.text ? this.text.indexOf(answer.text) : -1;
      if (start < 0) return false;
      end = start + answer.text.length;
    }
    const walker = document.createTreeWalker(this.element, NodeFilter.SHOW_TEXT);
    const nodes = [];
    for (let node = walker.nextNode(), at = 0; node; at += node.data.length, node = walker.nextNode()) {
      const [from, to] = [Math.max(start - at, 0), Math.min(end - at, node.data.length)];
      if (from < to) nodes.push([node, from, to]);
    }
    for (const [node, from, to] of nodes) {
      const range = document.createRange();
      range.setStart(node, from);
      range.setEnd(node, to);
      range.surroundContents(el("span", { class: "u" }));
    }
    return nodes.length > 0;
  }
}
