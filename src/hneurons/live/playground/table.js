// The neurons that count most, for those who can't see the map or want the numbers.

import { el, neuronKey, signed } from "./dom.js";

const ROWS = 15;

/** Fills `table` with the largest weights and the neurons of the last response, `top`. */
export function fillTable(table, card, top = []) {
  const counted = new Map(top.map((neuron) => [neuronKey(neuron), neuron.value]));
  const weights = new Map(card.neurons.map((neuron) => [neuronKey(neuron), neuron]));
  const heaviest = [...card.neurons].sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight)).slice(0, ROWS);
  const rows = new Map([...top.map((neuron) => weights.get(neuronKey(neuron))).filter(Boolean), ...heaviest].map((neuron) => [neuronKey(neuron), neuron]));
  const experts = card.neurons.some((neuron) => neuron.expert !== null && neuron.expert !== undefined);
  const head = (text) => el("th", { scope: "col", class: "n" }, text);
  table.replaceChildren(
    el("caption", {}, top.length ? "First what counted most in the last response, weight times contribution; then the largest weights."
      : "The largest weights. Positive ones, the H-Neurons, raise the risk."),
    el("thead", {}, el("tr", {}, head("Layer"), experts ? head("Expert") : null, head("Index"), head("Weight"), head("Last response"))),
    el("tbody", {}, ...[...rows.values()].map((neuron) => el("tr", {},
      el("td", { class: "n" }, String(neuron.layer)),
      experts ? el("td", { class: "n" }, String(neuron.expert ?? "–")) : null,
      el("td", { class: "n" }, String(neuron.index)),
      el("td", { class: neuron.weight > 0 ? "n raises" : "n lowers" }, signed(neuron.weight)),
      el("td", { class: "n" }, counted.has(neuronKey(neuron)) ? signed(counted.get(neuronKey(neuron))) : "")))),
  );
}
