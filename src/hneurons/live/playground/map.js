// The card's neurons at their places: layers upwards, position in the layer to the right. They light up and fade.

import { announce, el, neuronKey, neuronName, neuronWords, signed } from "./dom.js";
import { closeTip, closeTipSoon, showTip, tipOwner } from "./tip.js";

const FADE = 900; // milliseconds to a third
const REACH = 14; // pixels from a neuron at which the pointer still means it
const still = matchMedia("(prefers-reduced-motion: reduce)");
const dark = matchMedia("(prefers-color-scheme: dark)");

/** `element` shows the map of a card. */
export class NeuronMap {
  #card;
  #compact;
  #canvas;
  #neurons; // in reading order: up the layers, along each
  #byKey;
  #levels; // 0 at rest, 1 for what counts most
  #values; // what each counted when it was last lit
  #most = 0; // the largest value of this response
  #held = null; // neurons shown for a token that is pointed at
  #settled = true; // no fading
  #chosen = -1;
  #frame = 0;
  #time = 0;

  /** `compact`: without axis labels. */
  constructor(card, { compact = false } = {}) {
    this.#card = card;
    this.#compact = compact;
    const heaviest = Math.max(...card.neurons.map((neuron) => Math.abs(neuron.weight)), 1e-9);
    this.#neurons = card.neurons
      .map((neuron) => ({ ...neuron, at: place(neuron, card), strength: Math.sqrt(Math.abs(neuron.weight) / heaviest) }))
      .sort((a, b) => a.layer - b.layer || a.at - b.at);
    this.#byKey = new Map(this.#neurons.map((neuron, i) => [neuronKey(neuron), i]));
    this.#levels = new Float32Array(this.#neurons.length);
    this.#values = new Float32Array(this.#neurons.length);
    this.#canvas = el("canvas", {
      tabindex: "0", role: "application",
      "aria-label": `Map of ${this.#neurons.length} neurons by layer and place in it. Arrow keys move from neuron to neuron.`,
    });
    this.element = el("div", { class: compact ? "map-frame compact" : "map-frame" }, this.#canvas);
    new ResizeObserver(() => this.#draw()).observe(this.element);
    dark.addEventListener("change", () => this.#draw());
    this.#listen();
  }

  /** Lights the neurons of one risk; with `stay` they don't fade: the response is over. */
  light(top, stay = false) {
    if (stay || still.matches) this.#levels.fill(0);
    if (stay) this.#most = 0;
    this.#most = Math.max(this.#most, ...top.map((neuron) => Math.abs(neuron.value)), 1e-9);
    for (const neuron of top) {
      const i = this.#byKey.get(neuronKey(neuron));
      if (i === undefined) continue;
      this.#levels[i] = Math.max(this.#levels[i], Math.sqrt(Math.abs(neuron.value) / this.#most));
      this.#values[i] = neuron.value;
    }
    this.#settled = stay || still.matches;
    this.#draw();
  }

  /** Shows only these neurons, until it is called with null. */
  hold(top) {
    const most = Math.max(...(top ?? []).map((neuron) => Math.abs(neuron.value)), 1e-9);
    this.#held = top && new Map(top.map((neuron) => [this.#byKey.get(neuronKey(neuron)), Math.sqrt(Math.abs(neuron.value) / most)]));
    this.#draw();
  }

  /** All neurons at rest. */
  clear() {
    this.#levels.fill(0);
    this.#values.fill(0);
    this.#most = 0;
    this.#held = null;
    this.#draw();
  }

  #place(neuron) {
    const { left, bottom, width, rows, height } = this.#box;
    return { x: left + neuron.at * width, y: height - bottom - (neuron.layer + 0.5) * rows };
  }

  get #box() {
    const [wide, height] = [this.#canvas.clientWidth, this.#canvas.clientHeight];
    const [left, right, top, bottom] = this.#compact ? [6, 6, 4, 4] : [30, 8, 20, 20];
    return { left, bottom, top, right, wide, height, width: wide - left - right, rows: (height - top - bottom) / this.#card.layers };
  }

  #draw() {
    if (this.#frame) return;
    this.#time = performance.now();
    this.#frame = requestAnimationFrame((now) => this.#paint(now));
  }

  #paint(now) {
    this.#frame = 0;
    let fading = false;
    if (!this.#settled) {
      const factor = Math.exp(-Math.max(now - this.#time, 0) / FADE);
      for (let i = 0; i < this.#levels.length; i += 1) {
        this.#levels[i] = this.#levels[i] > 0.02 ? this.#levels[i] * factor : 0;
        fading ||= this.#levels[i] > 0;
      }
    }
    const ratio = window.devicePixelRatio || 1;
    const box = this.#box;
    if (box.wide === 0) return; // not on show
    if (this.#canvas.width !== Math.round(box.wide * ratio) || this.#canvas.height !== Math.round(box.height * ratio)) {
      this.#canvas.width = Math.round(box.wide * ratio);
      this.#canvas.height = Math.round(box.height * ratio);
    }
    const style = getComputedStyle(this.#canvas);
    const ink = Object.fromEntries(["--line", "--muted", "--ink", "--hallucinated", "--faithful", "--accent"].map((name) => [name.slice(2), style.getPropertyValue(name).trim()]));
    const context = this.#canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, box.wide, box.height);
    this.#axes(context, box, ink, style.fontFamily);
    const level = (i) => (this.#held ? this.#held.get(i) ?? 0 : this.#levels[i]);
    const order = [...this.#neurons.keys()].sort((a, b) => level(a) - level(b));
    for (const i of order) this.#dot(context, i, level(i), ink);
    if (this.#chosen >= 0) {
      const { x, y } = this.#place(this.#neurons[this.#chosen]);
      context.strokeStyle = ink.accent;
      context.lineWidth = 2;
      context.beginPath();
      context.arc(x, y, 9, 0, 2 * Math.PI);
      context.stroke();
    }
    const lit = String(this.#levels.filter((value) => value > 0.02).length);
    if (this.#canvas.dataset.lit !== lit) this.#canvas.dataset.lit = lit;
    if (fading) this.#draw();
  }

  #axes(context, { left, right, top, bottom, wide, height, rows }, ink, font) {
    context.strokeStyle = ink.line;
    context.fillStyle = ink.muted;
    context.lineWidth = 1;
    context.font = `11px ${font}`;
    context.textAlign = "right";
    context.textBaseline = "middle";
    const step = [5, 10, 20, 50].find((each) => this.#card.layers / each <= 8) ?? 100;
    for (let layer = 0; layer < this.#card.layers; layer += step) {
      const y = Math.round(height - bottom - (layer + 0.5) * rows) + 0.5;
      context.beginPath();
      context.moveTo(left, y);
      context.lineTo(wide - right, y);
      context.stroke();
      if (!this.#compact) context.fillText(String(layer), left - 8, y);
    }
    if (this.#compact) return;
    context.textBaseline = "alphabetic";
    context.textAlign = "left";
    context.fillText("layer", 0, 11);
    context.fillText("first of its layer", left, height - 4);
    context.textAlign = "right";
    context.fillText("last", wide - right, height - 4);
  }

  #dot(context, i, level, ink) {
    const neuron = this.#neurons[i];
    const { x, y } = this.#place(neuron);
    const raises = neuron.weight > 0;
    const radius = (this.#compact ? 1.3 : 1.7) + 1.5 * neuron.strength + (this.#compact ? 2 : 3) * level;
    context.fillStyle = raises ? ink.hallucinated : ink.faithful;
    if (level > 0.05) {
      context.globalAlpha = 0.22 * level;
      context.beginPath();
      context.arc(x, y, radius + 7 * level, 0, 2 * Math.PI);
      context.fill();
    }
    context.globalAlpha = Math.min(1, 0.28 + 0.3 * neuron.strength + level) * (this.#held && !level ? 0.5 : 1);
    context.beginPath();
    if (raises) {
      context.arc(x, y, radius, 0, 2 * Math.PI);
    } else {
      for (const [dx, dy] of [[0, -1.25], [1.25, 0], [0, 1.25], [-1.25, 0]]) context.lineTo(x + dx * radius, y + dy * radius);
      context.closePath();
    }
    context.fill();
    context.globalAlpha = 1;
  }

  #listen() {
    this.#canvas.addEventListener("pointermove", (event) => this.#choose(this.#nearest(event)));
    this.#canvas.addEventListener("pointerdown", (event) => this.#choose(this.#nearest(event)));
    this.#canvas.addEventListener("pointerleave", () => {
      if (document.activeElement !== this.#canvas) this.#choose(-1);
    });
    this.#canvas.addEventListener("focus", () => {
      if (this.#canvas.matches(":focus-visible") && this.#chosen < 0) this.#step(0);
    });
    this.#canvas.addEventListener("blur", () => this.#choose(-1));
    this.#canvas.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      const move = { ArrowRight: () => this.#step(1), ArrowLeft: () => this.#step(-1), ArrowUp: () => this.#climb(1), ArrowDown: () => this.#climb(-1) }[event.key];
      if (!move) return;
      event.preventDefault();
      move();
    });
  }

  #nearest(event) {
    const frame = this.#canvas.getBoundingClientRect();
    let [best, least] = [-1, REACH];
    this.#neurons.forEach((neuron, i) => {
      const { x, y } = this.#place(neuron);
      const distance = Math.hypot(x - (event.clientX - frame.left), y - (event.clientY - frame.top));
      if (distance < least) [best, least] = [i, distance];
    });
    return best;
  }

  #step(by) {
    if (!this.#neurons.length) return;
    this.#choose(Math.min(Math.max(this.#chosen + by, 0), this.#neurons.length - 1), true);
  }

  /** To the nearest neuron of the next layer, up or down, that has one. */
  #climb(by) {
    const from = this.#neurons[Math.max(this.#chosen, 0)];
    const beyond = this.#neurons.filter((neuron) => by * (neuron.layer - from.layer) > 0);
    if (!beyond.length) return;
    const layer = by * Math.min(...beyond.map((neuron) => by * neuron.layer));
    const [nearest] = beyond.filter((neuron) => neuron.layer === layer).sort((a, b) => Math.abs(a.at - from.at) - Math.abs(b.at - from.at));
    this.#choose(this.#neurons.indexOf(nearest), true);
  }

  #choose(i, aloud = false) {
    if (i === this.#chosen) return;
    this.#chosen = i;
    this.#draw();
    if (i < 0) {
      if (tipOwner() === this.#canvas) closeTipSoon();
      return;
    }
    const neuron = this.#neurons[i];
    const { x, y } = this.#place(neuron);
    const frame = this.#canvas.getBoundingClientRect();
    const lit = this.#levels[i] > 0.02 ? `counted ${signed(this.#values[i])} ${this.#settled ? "in this response" : "just now"}` : null;
    showTip(this.#canvas, new DOMRect(frame.left + x - 8, frame.top + y - 8, 16, 16), [
      el("p", { class: "said" }, neuronName(neuron)),
      el("p", {}, neuron.weight > 0 ? "H-Neuron: raises the risk" : "lowers the risk"),
      el("p", { class: "muted" }, [`weight ${signed(neuron.weight)}`, lit].filter(Boolean).join(", ")),
    ]);
    if (aloud) announce(`${neuronWords(neuron)}, weight ${signed(neuron.weight)}${lit ? `, ${lit}` : ""}`);
  }
}

/** From 0, the first neuron of the layer, to 1, the last. */
function place({ layer, index, column = index }, { widths }) {
  return Math.min((column + 0.5) / Math.max(widths[layer] ?? 1, 1), 1);
}
