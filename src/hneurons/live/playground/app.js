// The playground of a served model: reads its card, then wires up the modes, the dial, the map and the keyboard.

import { getCard, setTokenPrompt } from "./api.js";
import { Chat } from "./chat.js";
import { announce, byId, el } from "./dom.js";
import { NeuronMap } from "./map.js";
import { Settings, alphaMeans } from "./settings.js";
import { Side } from "./side.js";
import { fillTable } from "./table.js";
import { closeTip, initTip } from "./tip.js";

const MODES = ["chat", "side"];
const settings = new Settings();
let modes = {};

function show(mode) {
  for (const each of MODES) {
    byId(each).hidden = each !== mode;
    byId(`tab-${each}`).setAttribute("aria-selected", String(each === mode));
    byId(`tab-${each}`).tabIndex = each === mode ? 0 : -1;
  }
  byId("main").dataset.mode = mode;
  closeTip();
}

function tabs() {
  MODES.forEach((mode, i) => {
    const tab = byId(`tab-${mode}`);
    tab.addEventListener("click", () => show(mode));
    tab.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!by) return;
      const to = MODES[(i + by + MODES.length) % MODES.length];
      show(to);
      byId(`tab-${to}`).focus();
    });
  });
}

function keyboard() {
  byId("keys-open").addEventListener("click", () => byId("keys").showModal());
  byId("keys-close").addEventListener("click", () => byId("keys").close());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !document.querySelector("dialog[open]") && !closeTip()) {
      for (const mode of Object.values(modes)) mode.stop();
    }
    const turn = { ArrowUp: 0.1, ArrowDown: -0.1 }[event.key];
    if (event.altKey && turn && event.target.tagName !== "SELECT" && byId("main").dataset.mode === "chat") {
      event.preventDefault();
      settings.alpha += turn;
      announce(`Alpha ${settings.alpha}, ${alphaMeans(settings.alpha)}`);
    }
  });
}

/** Asks for the server's token; null if the user gives none. */
function askToken(refused) {
  const [dialog, form, field] = [byId("token-dialog"), byId("token-form"), byId("token")];
  byId("token-why").hidden = refused;
  byId("token-refused").hidden = !refused;
  field.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const done = new AbortController();
    const end = (value) => {
      done.abort();
      dialog.close();
      resolve(value);
    };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (field.value.trim()) end(field.value.trim());
    }, { signal: done.signal });
    byId("token-cancel").addEventListener("click", () => end(null), { signal: done.signal });
    dialog.addEventListener("cancel", () => end(null), { signal: done.signal });
  });
}

function introduce(card) {
  document.title = `${card.name} · hneurons playground`;
  const count = (number, thing) => `${number.toLocaleString("en")} ${thing}${number === 1 ? "" : "s"}`;
  byId("model").replaceChildren(el("bdi", {}, card.name), ` · ${count(card.h_neurons, "H-Neuron")} in ${count(card.layers, "layer")}`);
  if (card.verdict) {
    byId("verdict").textContent = card.verdict;
    byId("verdict").classList.remove("muted");
  }
  if (card.guarantee) {
    byId("guarantee").textContent = card.guarantee;
    byId("guarantee").hidden = false;
  }
}

function play(card) {
  introduce(card);
  settings.limit(card.limits.max_output_tokens);
  settings.alpha = card.alpha;
  const map = new NeuronMap(card);
  byId("map").replaceChildren(map.element);
  fillTable(byId("neurons"), card);
  document.addEventListener("neurons", (event) => map.hold(event.detail));
  modes = {
    chat: new Chat({
      name: card.name,
      request: () => settings.request(),
      top: (top, stay) => {
        map.light(top, stay);
        if (stay) fillTable(byId("neurons"), card, top);
      },
      started: () => map.clear(),
    }),
    side: new Side({ card, request: (alpha) => settings.request(alpha) }),
  };
  byId("main").removeAttribute("aria-busy");
  byId("main").classList.add("ready");
}

async function load() {
  const problem = byId("problem");
  problem.hidden = true;
  try {
    play(await getCard());
  } catch (error) {
    byId("model").textContent = "The model’s card could not be read.";
    problem.hidden = false;
    problem.replaceChildren(error.message, " ", el("button", { type: "button", onclick: load }, "Try again"));
  }
}

tabs();
keyboard();
initTip();
setTokenPrompt(askToken);
load();
