// The conversation.

import { Answer } from "./answer.js";
import { byId, el } from "./dom.js";
import { EXAMPLES } from "./examples.js";
import { enterSends, keepFocus, replyLabel, setDisabled } from "./forms.js";

export class Chat {
  #turns = []; // {ask, answer, element}
  #running = null;
  #follow = false; // the view keeps to the end while it grows
  #queue = []; // what an example says next
  #y = 0;

  /** `request`: () -> the choices of a request; `top`, `started`: see app.js. */
  constructor({ name, request, top, started }) {
    Object.assign(this, { name, request, top, started });
    const form = byId("chat-form");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const text = byId("prompt").value.trim();
      if (!text || this.#running) return;
      byId("prompt").value = "";
      this.send(text);
    });
    enterSends(byId("prompt"), form);
    byId("stop").addEventListener("click", () => this.stop());
    byId("retry").addEventListener("click", () => this.retry());
    byId("clear").addEventListener("click", () => this.clear());
    byId("chat-examples").append(...EXAMPLES.map((example) => el("section", { class: "example" },
      el("h3", {}, example.kind), el("p", { class: "muted" }, example.look),
      ...example.prompts.map((prompt) => el("button", { type: "button", onclick: () => this.#example(prompt) },
        prompt.ask, prompt.then ? el("span", { class: "then" }, prompt.then) : null)))));
    byId("chat-chips").append(...EXAMPLES.map(({ kind, prompts: [first] }) =>
      el("button", { type: "button", onclick: () => this.#example(first) }, kind)));
    new ResizeObserver(() => this.#keepUp()).observe(byId("log"));
    window.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    // These come before the scrolling, which the next token would otherwise undo.
    window.addEventListener("wheel", (event) => { if (event.deltaY < 0) this.#follow = false; }, { passive: true });
    window.addEventListener("touchmove", () => { this.#follow = false; }, { passive: true });
  }

  get running() {
    return this.#running !== null;
  }

  async #example({ ask, then }) {
    if (this.#running) return;
    this.#queue = then ? [then] : [];
    await this.send(ask);
  }

  async send(ask) {
    const messages = this.#turns.filter((turn) => turn.answer.text).flatMap((turn) => [
      { role: "user", content: turn.ask }, { role: "assistant", content: turn.answer.text }]);
    const choices = this.request();
    const answer = new Answer({ model: this.name, messages: [...messages, { role: "user", content: ask }], ...choices },
      { top: this.top, speak: true, label: replyLabel(this.name, choices) });
    const element = el("div", { class: "turn" }, el("div", { class: "asked" }, el("p", { class: "by" }, "You"), el("p", { class: "ask", dir: "auto" }, ask)), answer.element);
    const turn = { ask, answer, element };
    this.#turns.push(turn);
    byId("log").append(element);
    this.#busy(answer);
    this.#show(element);
    this.started();
    const state = await answer.run(() => this.retry());
    if (!this.#turns.includes(turn)) return; // cleared meanwhile
    this.#busy(null);
    requestAnimationFrame(() => { // after what came last has its place
      this.#keepUp();
      this.#follow = this.running;
    });
    const next = state === "done" ? this.#queue.shift() : undefined;
    if (next) await this.send(next);
    else this.#queue = [];
  }

  stop() {
    this.#queue = [];
    this.#running?.stop();
  }

  /** Asks the last question once more, with the choices as they are now. */
  retry() {
    if (this.#running || !this.#turns.length) return;
    const last = this.#turns.pop();
    keepFocus(byId("chat"), byId("prompt"), () => last.element.remove());
    this.send(last.ask);
  }

  clear() {
    this.stop();
    this.#turns = [];
    this.#follow = false;
    byId("log").replaceChildren();
    this.#busy(null);
    this.started();
  }

  #busy(answer) {
    this.#running = answer;
    keepFocus(byId("chat"), byId("prompt"), () => this.#buttons(answer));
  }

  #buttons(answer) {
    const begun = this.#turns.length > 0;
    byId("send").hidden = answer !== null;
    byId("stop").hidden = answer === null;
    byId("retry").disabled = answer !== null || !begun;
    byId("clear").disabled = !begun;
    byId("chat-intro").hidden = begun;
    byId("chat-examples").hidden = begun;
    byId("legend").hidden = !begun;
    byId("prompt-hint").hidden = begun && !answer;
    byId("chat-chips").hidden = !begun;
    setDisabled(byId("chat-chips"), answer !== null);
    byId("chat").classList.toggle("begun", begun);
  }

  get #beyond() {
    return byId("chat").getBoundingClientRect().bottom + 8 - window.innerHeight;
  }

  #show(turn) {
    if (this.#beyond > 0 || turn.getBoundingClientRect().top < 0) this.#toEnd();
    this.#follow = true;
  }

  #keepUp() {
    if (!this.#follow || byId("log").contains(document.activeElement)) return;
    if (this.#beyond > 0) this.#toEnd();
  }

  #toEnd() {
    window.scrollBy(0, this.#beyond);
    this.#y = window.scrollY;
  }

  #scrolled() {
    if (window.scrollY < this.#y - 2) this.#follow = false;
    else if (window.scrollY > this.#y + 2 && this.#beyond < 48 && this.running) this.#follow = true;
    this.#y = window.scrollY;
  }
}
