// The same prompt at three alphas at once.

import { Answer } from "./answer.js";
import { announce, byId, el } from "./dom.js";
import { EXAMPLES } from "./examples.js";
import { enterSends, keepFocus, setDisabled } from "./forms.js";
import { NeuronMap } from "./map.js";
import { alphaMeans, numberField } from "./settings.js";

const ALPHAS = [0, 1, 3];

class Column {
  #place = el("div", { class: "place" });
  #means = el("span", { class: "muted" });
  #map;
  answer = null;

  constructor(card, alpha, number) {
    const id = `alpha-${number}`;
    const input = el("input", { type: "number", id, min: 0, max: 3, step: 0.1, value: alpha, inputmode: "decimal" });
    this.field = numberField(input, (value) => { this.#means.textContent = alphaMeans(value); });
    this.#means.textContent = alphaMeans(alpha);
    this.#map = new NeuronMap(card, { compact: true });
    this.element = el("section", { class: "column", "aria-label": `Column ${number}` },
      el("div", { class: "column-head" }, el("label", { for: id }, "Alpha"), input, this.#means), this.#place, this.#map.element);
    this.element.addEventListener("neurons", (event) => {
      event.stopPropagation();
      this.#map.hold(event.detail);
    });
  }

  async ask(body, retry) {
    this.#map.clear();
    this.answer = new Answer(body, { top: (top, stay) => this.#map.light(top, stay) });
    keepFocus(byId("side"), byId("side-prompt"), () => this.#place.replaceChildren(this.answer.element));
    const state = await this.answer.run(retry);
    this.answer = null;
    return state;
  }
}

export class Side {
  #columns;
  #asked = 0;

  /** `request`: alpha -> the choices of a request. */
  constructor({ card, request }) {
    Object.assign(this, { name: card.name, request });
    this.#columns = ALPHAS.map((alpha, i) => new Column(card, alpha, i + 1));
    byId("columns").append(...this.#columns.map((column) => column.element));
    const form = byId("side-form");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const text = byId("side-prompt").value.trim();
      if (text && !this.running) this.ask([{ role: "user", content: text }]);
    });
    enterSends(byId("side-prompt"), form);
    byId("side-stop").addEventListener("click", () => this.stop());
    byId("side-examples").append(...EXAMPLES.map(({ kind, prompts: [{ ask, answer, then }] }) => el("button", { type: "button", onclick: () => {
      if (this.running) return;
      byId("side-prompt").value = then ?? ask;
      this.ask(then ? [{ role: "user", content: ask }, { role: "assistant", content: answer }, { role: "user", content: then }] : [{ role: "user", content: ask }]);
    } }, kind)));
  }

  get running() {
    return this.#asked > 0;
  }

  async ask(messages) {
    const who = { user: "You", assistant: "Model" };
    byId("side-asked").replaceChildren(...messages.map(({ role, content }) => el("p", {},
      messages.length > 1 ? el("span", { class: "by" }, who[role]) : null, el("span", { dir: "auto" }, content))));
    byId("side-asked").hidden = false;
    await Promise.all(this.#columns.map((column) => this.#askOne(column, messages)));
  }

  async #askOne(column, messages) {
    this.#busy(1);
    const alpha = column.field.value;
    const state = await column.ask({ model: this.name, messages, ...this.request(alpha) }, () => this.#askOne(column, messages));
    if (state === "done") announce(`The answer at alpha ${alpha} is there.`);
    this.#busy(-1);
  }

  stop() {
    for (const column of this.#columns) column.answer?.stop();
  }

  #busy(by) {
    this.#asked += by;
    keepFocus(byId("side"), byId("side-prompt"), () => {
      byId("side-send").hidden = this.running;
      byId("side-stop").hidden = !this.running;
      setDisabled(byId("side-examples"), this.running);
    });
  }
}
