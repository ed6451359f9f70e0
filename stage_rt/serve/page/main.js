// The page: what is chosen, what is painted, and what stays of both when it is loaded again.

import { ask, follow, picture, read, send } from "./api.js";
import { Board } from "./board.js";
import { Runs } from "./runs.js";
import { fill, words } from "./words.js";

const KEPT = "stage-rt";
const DEFAULT_STEPS = 50;
const $ = (name) => document.getElementById(name);
const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "{}");

let engines = [];
let leave = null;
const board = new Board($("canvas"), keep);
const runs = new Runs($("runs"), failed);

fill(document.body);
start();

async function start() {
  try {
    engines = await read("/v1/engines");
    const photographs = await read("/v1/photographs");
    $("session").hidden = true;
    $("work").hidden = false;
    offer(photographs);
    runs.look();
    await restore(photographs);
  } catch (error) {
    if (error.status === 401) $("session").hidden = false;
    failed(error);
  }
}

function tell(text, bad = false) {
  $("told").textContent = text;
  $("told").classList.toggle("bad", bad);
}

function failed(error) {
  tell(error.message, true);
}

function engine() {
  return engines.find((one) => one.name === $("engine").value) ?? engines[0];
}

function choice(name, value, text) {
  const label = document.createElement("label");
  const input = Object.assign(document.createElement("input"), { type: "radio", name, value });
  label.append(input, text);
  return label;
}

const chosen = (name) => document.querySelector(`input[name=${name}]:checked`)?.value;

function choose(name, value) {
  const inputs = [...document.querySelectorAll(`input[name=${name}]`)];
  const input = inputs.find((one) => one.value === value) ?? inputs[0];
  if (input) input.checked = true;
}

function offer(photographs) {
  $("engine").replaceChildren(...engines.map((one) => new Option(one.name, one.name)));
  $("engines").hidden = engines.length < 2;
  $("shapes").replaceChildren(...Object.entries(words.shapes).map(([name, text]) => choice("shape", name, text)));
  choose("shape", "brush");
  $("gallery").replaceChildren(...photographs.map(({ name }) => {
    const label = choice("photograph", name, "");
    label.firstChild.ariaLabel = label.title = name;
    label.append(Object.assign(new Image(), {
      src: `/v1/photographs/${encodeURIComponent(name)}/thumbnail`, alt: "", loading: "lazy", draggable: false,
    }));
    return label;
  }));
  if (!photographs.length) tell(words.noPhotographs, true);
}

function ofEngine() {
  const { prompts, steps, own_steps: own } = engine();
  const before = chosen("prompt") ?? kept.prompt;
  $("types").replaceChildren(...prompts.map(({ name, type }) => choice("prompt", name, type)));
  choose("prompt", before);
  [$("steps").min, $("steps").max] = steps;
  $("steps").value ||= kept.steps ?? Math.min(Math.max(DEFAULT_STEPS, steps[0]), own);
  ofType();
}

const type = () => engine().prompts.find(({ name }) => name === chosen("prompt"))?.type;

function ofType() {
  $("alike").hidden = !engine().masks.includes(type());
  keep();
}

async function restore(photographs) {
  $("engine").value = engines.some(({ name }) => name === kept.engine) ? kept.engine : engines[0].name;
  ofEngine();
  $("seed").value = kept.seed ?? 0;
  if (!photographs.length) return;
  choose("photograph", kept.photograph);
  const same = chosen("photograph") === kept.photograph;
  const { mask, pair } = kept;
  await open();
  if (same && mask) board.take(await picture(`data:image/png;base64,${mask}`));
  if (same && pair) watch(pair);
}

async function open() {
  forget();
  board.open(await picture(`/v1/photographs/${encodeURIComponent(chosen("photograph"))}`));
  $("stage").style.setProperty("--ratio", $("canvas").width / $("canvas").height);
  $("size").value = board.size = Math.max(Math.round($("canvas").width / 40), 2);
  keep();
}

function keep() {
  if (!board.photo) return;
  Object.assign(kept, {
    engine: $("engine").value, photograph: chosen("photograph"), prompt: chosen("prompt"),
    seed: Number($("seed").value), steps: Number($("steps").value), mask: board.empty ? null : board.png(),
  });
  try {
    sessionStorage.setItem(KEPT, JSON.stringify(kept));
  } catch {
    // A mask too large to be kept is drawn again.
  }
}

function order() {
  return {
    engine: engine().name, prompt: chosen("prompt"), seed: Number($("seed").value), steps: Number($("steps").value),
  };
}

async function paint() {
  if ($("paint").disabled || !board.photo) return;
  board.close();
  if (board.empty) return tell(words.draw, true);
  forget();
  $("paint").disabled = true;
  tell("");
  try {
    const pair = await send("/v1/pairs", {
      ...order(), photograph: chosen("photograph"), mask: board.png(), wait: false,
    });
    watch(pair.id);
  } catch (error) {
    $("paint").disabled = false;
    failed(error);
  }
}

// Follow a pair to its end; a page that is loaded again goes on here.
function watch(pair) {
  kept.pair = pair;
  keep();
  $("paint").disabled = true;
  $("stop").hidden = $("progress").hidden = false;
  leave = follow(pair, async (state) => {
    if (kept.pair !== pair) return;
    $("progress").value = state.share ?? 0;
    if (state.preview) board.show(await picture(state.preview));
    if (["waiting", "painting"].includes(state.state)) return;
    $("paint").disabled = false;
    $("stop").hidden = $("progress").hidden = true;
    if (state.state === "done") return finished(state);
    forget();
    if (state.state === "cancelled") tell(words.stopped);
    else tell(state.error ? [state.error.problem, state.error.remedy].filter(Boolean).join(": ") : words.gone, true);
  });
}

async function finished(state) {
  board.share = 1;
  $("compare").value = 100;
  board.show(await picture(state.image), false);
  const rows = [
    [words.fill, `${Math.round(100 * state.fill)} %${state.weak ? ` (${words.weak})` : ""}`],
    [words.leak, `${(100 * state.leak).toFixed(1)} %`],
    [words.attempts, state.attempts],
  ];
  $("figures").replaceChildren(...rows.map(([name, value]) => {
    const row = document.createElement("div");
    row.append(Object.assign(document.createElement("dt"), { textContent: name }));
    row.append(Object.assign(document.createElement("dd"), { textContent: value }));
    return row;
  }));
  $("result").hidden = $("comparing").hidden = false;
  judged(state.verdict);
}

function judged(verdict) {
  $("accept").disabled = $("reject").disabled = Boolean(verdict);
  if (verdict) tell(words[verdict]);
}

async function judge(verdict) {
  if ($("result").hidden || $("accept").disabled) return;
  try {
    judged((await send(`/v1/pairs/${kept.pair}/verdict`, { verdict })).verdict);
  } catch (error) {
    failed(error);
  }
}

// Nothing is painted or shown any more.
function forget() {
  leave?.();
  leave = kept.pair = null;
  $("result").hidden = $("comparing").hidden = $("stop").hidden = $("progress").hidden = true;
  $("paint").disabled = false;
  board.show(null);
  keep();
}

function dice() {
  $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
  keep();
}

async function alike() {
  try {
    const { seed } = order();
    const answer = await ask("POST", "/v1/masks", { photograph: chosen("photograph"), type: type(), seed });
    const file = URL.createObjectURL(await answer.blob());
    forget();
    board.take(await picture(file));
    URL.revokeObjectURL(file);
    dice();
  } catch (error) {
    failed(error);
  }
}

async function orderRun() {
  if (board.empty) return tell(words.draw, true);
  try {
    const job = await send("/v1/jobs", { ...order(), masks: [board.png()], count: Number($("count").value) });
    tell(words.ordered(job.count));
    runs.look();
  } catch (error) {
    failed(error);
  }
}

const on = (name, event, act) => $(name).addEventListener(event, act);
on("engine", "change", () => { $("steps").value = ""; ofEngine(); });
on("types", "change", () => { forget(); ofType(); });
on("gallery", "change", () => open().catch(failed));
on("shapes", "change", () => board.choose(chosen("shape")));
on("size", "input", () => { board.size = Number($("size").value); board.draw(); });
on("undo", "click", () => board.undo());
on("clear", "click", () => { forget(); board.clear(); });
on("alike", "click", alike);
on("seed", "change", keep);
on("steps", "change", keep);
on("dice", "click", dice);
on("paint", "click", paint);
on("stop", "click", () => kept.pair && ask("DELETE", `/v1/pairs/${kept.pair}`).catch(failed));
on("compare", "input", () => { board.share = $("compare").value / 100; board.draw(); });
on("accept", "click", () => judge("accepted"));
on("reject", "click", () => judge("rejected"));
on("again", "click", () => { dice(); paint(); });
on("order", "click", orderRun);
on("session", "submit", async (event) => {
  event.preventDefault();
  try {
    await ask("POST", "/v1/session", { token: $("token").value });
    tell("");
    start();
  } catch (error) {
    tell(error.status === 401 ? words.wrongToken : error.message, true);
  }
});

const shape = (name) => () => { choose("shape", name); board.choose(name); };
const grown = (by) => () => {
  $("size").value = Number($("size").value) + by;
  board.size = Number($("size").value);
  board.draw();
};
const KEYS = {
  b: shape("brush"), e: shape("eraser"), p: shape("polygon"), o: shape("ellipse"), "[": grown(-2), "]": grown(2),
  d: dice, a: () => judge("accepted"), r: () => judge("rejected"),
  Enter: () => (board.points.length ? board.close() : paint()),
  Escape: () => { board.points = []; board.draw(); },
};

document.addEventListener("keydown", (event) => {
  if ($("work").hidden || event.altKey) return;
  if ((event.ctrlKey || event.metaKey) && event.key === "z") { event.preventDefault(); return board.undo(); }
  const typing = event.target.matches("input:not([type=radio]):not([type=range]), select");
  const pressing = event.key === "Enter" && event.target.matches("button, a");
  if (event.ctrlKey || event.metaKey || typing || pressing || !KEYS[event.key]) return;
  event.preventDefault();
  KEYS[event.key]();
});
