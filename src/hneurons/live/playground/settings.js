// The dial and the other choices of a request.

import { byId, el } from "./dom.js";

const POLICIES = {
  "": "Risks are shown, nothing else happens.",
  warn: "The response says that it is risky.",
  abstain: "“I don’t know.” takes the place of a risky answer. The text is held back until its risk is known.",
  stop: "The response ends at the token that makes the running risk high.",
  regenerate: "A risky answer is made again at alpha 0. The text is held back until its risk is known.",
};

/** What alpha does, in words. */
export function alphaMeans(alpha) {
  if (alpha === 0) return "H-Neurons silenced";
  if (alpha === 1) return "unchanged";
  return alpha < 1 ? "H-Neurons turned down" : "H-Neurons turned up";
}

/** Makes a number field give a number within its limits. `changed` is called with it. */
export function numberField(input, changed = () => {}) {
  const places = input.step.split(".")[1]?.length ?? 0;
  const digits = 10 ** places;
  let good = Number(input.value);
  input.value = good.toFixed(places);
  const read = () => {
    const value = input.value.trim() === "" ? NaN : Number(input.value);
    if (Number.isFinite(value)) good = Math.round(Math.min(Math.max(value, Number(input.min)), Number(input.max)) * digits) / digits;
    changed(good);
  };
  input.addEventListener("input", read);
  input.addEventListener("change", () => {
    read();
    input.value = good.toFixed(places);
  });
  return {
    get value() {
      return good;
    },
    set value(value) {
      input.value = String(value);
      read();
      input.value = good.toFixed(places);
    },
  };
}

export class Settings {
  #alpha;
  #maxTokens;
  #temperature;
  #policy = byId("policy");

  constructor() {
    this.#alpha = numberField(byId("alpha"), () => this.#show());
    this.#maxTokens = numberField(byId("max-tokens"), () => this.#show());
    this.#temperature = numberField(byId("temperature"), () => this.#show());
    byId("alpha-range").addEventListener("input", (event) => { this.#alpha.value = event.target.value; });
    this.#policy.addEventListener("change", () => this.#show());
    // Folded where it would push the conversation off the screen.
    const narrow = matchMedia("(max-width: 860px)");
    const fold = () => { byId("settings").open = !narrow.matches; };
    narrow.addEventListener("change", fold);
    fold();
    this.#show();
  }

  get alpha() {
    return this.#alpha.value;
  }

  set alpha(value) {
    this.#alpha.value = value;
  }

  /** The server's own limit. */
  limit(maxTokens) {
    if (!(maxTokens >= 1)) return;
    byId("max-tokens").max = String(maxTokens);
    this.#maxTokens.value = Math.min(this.#maxTokens.value, maxTokens);
  }

  /** A request's choices, with the dial at `alpha`. */
  request(alpha = this.alpha) {
    const action = this.#policy.value;
    return {
      max_tokens: this.#maxTokens.value,
      temperature: this.#temperature.value,
      hneurons: { alpha, monitor: true, ...(action ? { policy: { action } } : {}) },
    };
  }

  #show() {
    const alpha = this.#alpha.value;
    const range = byId("alpha-range");
    if (Number(range.value) !== alpha) range.value = String(alpha);
    range.style.setProperty("--from", (Math.min(alpha, 1) / 3).toFixed(4));
    range.style.setProperty("--to", (Math.max(alpha, 1) / 3).toFixed(4));
    byId("alpha-means").textContent = alphaMeans(alpha);
    byId("policy-means").textContent = POLICIES[this.#policy.value];
    const policy = this.#policy.value ? `, ${this.#policy.value}` : "";
    byId("settings-now").replaceChildren(el("span", { class: "dial-now" }, `alpha ${alpha}, `),
      `${this.#maxTokens.value} tokens, temperature ${this.#temperature.value}${policy}`);
  }
}
