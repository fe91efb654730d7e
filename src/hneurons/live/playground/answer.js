// One response: asked for, shown while it comes, summed up when it is there.

import { ApiError, chat } from "./api.js";
import { announce, bars, el, percent } from "./dom.js";
import { TokenText } from "./tokens.js";

const TRIES = 3; // without being told to, when the server is busy
const HELD_BACK = ["abstain", "regenerate"]; // until the risk is known
const DID = {
  warn: () => "The policy warns: the risk reached the threshold.",
  stop: () => "The policy ended the response here, where the running risk reached the threshold.",
  abstain: () => "The policy put this text in the place of an answer whose risk reached the threshold. The figure is that answer’s.",
  regenerate: (alpha, coloured) => `The policy had this answered again at alpha ${alpha}, because the first answer’s risk reached the threshold. `
    + `The figure is the first answer’s${coloured ? "; the colours are this one’s, and nothing calibrates them at another alpha" : ""}.`,
};

/** Waits, or less if `tick` calls what it is given; `tick` sees the seconds left. */
const pause = (seconds, signal, tick) => new Promise((resolve, reject) => {
  let left = seconds;
  let timer = 0;
  const now = () => {
    clearInterval(timer);
    resolve();
  };
  timer = setInterval(() => {
    left -= 1;
    if (left > 0) tick(left, now);
    else now();
  }, 1000);
  tick(left, now);
  signal.addEventListener("abort", () => {
    clearInterval(timer);
    reject(new DOMException("stopped", "AbortError"));
  }, { once: true });
});

/** `element` shows the response; `run` asks for it. */
export class Answer {
  #abort = new AbortController();
  #body;
  #coloured = false; // whether any risk came
  #headline = el("div", { class: "headline" });
  #more = el("div", { class: "more" });
  #speak;
  #spoken = 0; // characters that screen readers were given
  #status = el("p", { class: "status muted" });
  #tokens = new TokenText();
  #top;

  /** `top`: called with the neurons of each risk; `speak`: whether sentences are read out as they come. */
  constructor(body, { top, speak = false, label = null }) {
    this.#body = body;
    this.#top = top;
    this.#speak = speak;
    this.element = el("article", { class: "reply", "aria-label": "Response" }, label, this.#status, this.#tokens.element,
      this.#headline, this.#more);
  }

  get text() {
    return this.#tokens.text;
  }

  stop() {
    this.#abort.abort();
  }

  /** Asks, and shows what comes; resolves to "done", "stopped" or "failed". `retry`: called to ask once more. */
  async run(retry) {
    this.element.setAttribute("aria-busy", "true");
    this.element.classList.add("streaming");
    this.#wait();
    let state = "done";
    try {
      await this.#ask();
    } catch (error) {
      state = error.name === "AbortError" ? "stopped" : "failed";
      this.#tokens.finish();
      if (state === "stopped") this.#stopped();
      else this.#failed(error, retry);
    }
    this.element.classList.remove("streaming");
    this.element.removeAttribute("aria-busy");
    return state;
  }

  async #ask() {
    for (let tries = 1; ; tries += 1) {
      try {
        for await (const choice of chat(this.#body, this.#abort.signal)) this.#take(choice);
        return;
      } catch (error) {
        if (!(error instanceof ApiError) || error.status !== 429 || this.text) throw error;
        if (tries > TRIES) throw new ApiError("The server is still busy. Try again when it has less to do.", 429);
        await this.#busy(error.retryAfter ?? 2);
      }
    }
  }

  #busy(seconds) {
    announce(`The server is busy. Trying again in ${seconds} seconds.`);
    let tryNow = () => {};
    const left = el("span", { class: "num" });
    this.#status.replaceChildren("The server is busy. Trying again in ", left, " ",
      el("button", { type: "button", onclick: () => tryNow() }, "Try now"));
    return pause(seconds, this.#abort.signal, (remaining, now) => {
      tryNow = now;
      left.textContent = `${remaining} s.`;
    }).then(() => this.#wait());
  }

  #wait() {
    this.#say(HELD_BACK.includes(this.#body.hneurons.policy?.action) ? "Held back until its risk is known …" : "Waiting for the model …");
  }

  #say(text) {
    this.#status.textContent = text;
    this.#status.hidden = !text;
  }

  #stopped() {
    this.#say("");
    this.#headline.replaceChildren();
    const sentence = this.text ? "Stopped by you. Only a whole response gets a risk." : "Stopped by you before it began.";
    this.#more.append(el("p", { class: "muted" }, sentence));
    announce("Stopped.");
  }

  #failed(error, retry) {
    const sentence = error instanceof ApiError ? error.message
      : "The server’s answer could not be read. Try again; if it happens again, look at the server’s log.";
    this.#say("");
    this.#headline.replaceChildren();
    this.#more.append(el("p", { class: "note" }, sentence, " ", el("button", { type: "button", onclick: retry }, "Try again")));
    announce(sentence);
  }

  #take(choice) {
    const { tokens = [], risks = [] } = choice.hneurons ?? {};
    const known = risks.filter((mark) => typeof mark.risk === "number");
    const text = choice.delta?.content ?? "";
    if (text) this.#say("");
    this.#tokens.add(text, choice.finish_reason ? [] : tokens, known);
    for (const mark of known) this.#top(mark.top ?? []);
    if (known.length) {
      this.#coloured = true;
      this.#running(known.at(-1).running);
    }
    if (choice.finish_reason) this.#finish(choice.finish_reason, choice.hneurons ?? {});
    this.#read(Boolean(choice.finish_reason));
  }

  #running(risk) {
    if (typeof risk === "number") this.#headline.replaceChildren(figure(risk, "running risk"), meter(risk));
  }

  #finish(reason, summary) {
    const { action, alpha, answer, top } = summary;
    this.#say(this.text ? "" : "The model said nothing.");
    this.#tokens.finish();
    const found = Boolean(answer && this.#tokens.underline(answer));
    this.#sumUp(summary, found);
    if (action) this.#more.append(el("p", { class: "acted" }, DID[action]?.(alpha, this.#coloured) ?? `Policy: ${action}.`));
    if (reason === "length") this.#more.append(el("p", { class: "muted" }, `Cut after ${this.#body.max_tokens} tokens.`));
    if (top?.length) {
      this.#top(top, true);
      this.#more.append(el("details", {}, el("summary", {}, "Why: the neurons that count most"), bars(top)));
    }
  }

  #sumUp({ risk, flagged, threshold, response_risk: whole, action, answer }, found) {
    if (typeof risk !== "number") {
      this.#headline.replaceChildren(el("span", { class: "muted" }, "No risk: there was nothing to judge."));
      return;
    }
    const at = typeof threshold === "number" ? ` at ${percent(threshold)}` : "";
    this.#headline.replaceChildren(figure(risk, "risk"), meter(risk, threshold),
      el("span", { class: flagged ? "badge flagged" : "badge" }, `${flagged ? "⚑ Flagged" : "Not flagged"}${at}`));
    if (HELD_BACK.includes(action)) return; // of a text that isn't shown
    this.#more.append(el("p", { class: "muted" }, ...(found
      ? ["Answer, underlined: “", el("bdi", {}, answer.text), `”. Risk of the whole response: ${percent(whole)}.`]
      : ["No answer was found in it: the risk is the whole response’s."])));
  }

  /** Sentences go to screen readers when they are whole; single tokens would stutter. */
  #read(last) {
    if (!this.#speak) return;
    const fresh = this.text.slice(this.#spoken);
    const ends = [...fresh.matchAll(/[.!?…。！？](?=\s)|\n/g)].map((match) => match.index + 1);
    const end = last ? fresh.length : ends.at(-1) ?? 0;
    if (fresh.slice(0, end).trim()) announce(fresh.slice(0, end).trim());
    this.#spoken += end;
    if (last) announce(this.#headline.textContent);
  }
}

function figure(risk, name) {
  return el("span", { class: "risk" }, el("b", { class: "num" }, percent(risk)), " ", el("span", { class: "muted" }, name));
}

function meter(risk, threshold) {
  const known = typeof threshold === "number";
  const bar = el("span", { class: "meter", "aria-hidden": "true" }, el("i"), known ? el("s") : null);
  bar.style.setProperty("--risk", risk.toFixed(3));
  if (known) bar.style.setProperty("--at", threshold.toFixed(3));
  return bar;
}
