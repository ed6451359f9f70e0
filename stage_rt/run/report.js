// The page of a run: what is shown of its pairs, and a person's marks on them. The pairs come from `pairs-<n>.js`.
"use strict";

// The order of a row, as `report.py` writes it.
const COLUMNS = ["index", "fill", "leak", "contrast", "pixels", "attempts", "weak", "photograph", "label", "box", "digest", "repainted"];
const PAGE_SIZE = 60;
const BARS = 20;
const MOST_ZOOM = 40;

const parts = window.stageRT ?? [];
const $ = (selector, root = document) => root.querySelector(selector);
const bar = $(".bar").elements, pager = $(".pager").elements;
const grid = $(".grid"), viewer = $("#viewer"), stage = $(".stage");

const pairs = parts.flatMap((part) =>
  part.rows.map((row) => Object.assign({ part }, Object.fromEntries(COLUMNS.map((name, n) => [name, row[n]]))))
);
for (const part of parts) part.rows = null;

let found = pairs; // those that pass the filter, in order
let page = 0;
let at = -1; // the place in `found` of the pair in the viewer or under the keyboard
let seen = -1; // and of the last one in the viewer

// ---- where things are

const number = (pair) => String(pair.index).padStart(6, "0");
const kind = (pair) => encodeURIComponent(pair.part.type);
const path = (text) => "../" + text.split("/").map(encodeURIComponent).join("/");
const image = (pair) => `../test/${kind(pair)}/${number(pair)}.png`;
const mask = (pair) => `../ground_truth/${kind(pair)}/${number(pair)}_mask.png`;
const photograph = (pair) => pair.part.photographs[pair.photograph];
const thumbnail = (pair) =>
  `thumbnails/${kind(pair)}/${String(Math.floor(pair.index / 1000)).padStart(3, "0")}/${number(pair)}-${pair.digest.slice(0, 8)}.jpg`;

const percent = (share) => (share === null ? "not measured" : `${Math.round(100 * share)} %`);
const signed = (value) => (value > 0 ? "+" : "") + Math.round(value);

// ---- marks: of each pair that was judged the verdict. Each is kept by itself, under the image it was passed on: pages of
// all runs share what a browser keeps, and so do two tabs of one

const VERDICTS = ["accepted", "rejected"];
const key = (pair) => `stage-rt ${pair.part.type} ${pair.index} ${pair.digest}`;
const marks = new Map(kept());

function kept() {
  try {
    return Object.entries(localStorage);
  } catch {
    return [];
  }
}

const verdict = (pair) => marks.get(key(pair)) ?? "";

function judge(pair, said) {
  const name = key(pair), taken = verdict(pair) === said;
  if (taken) marks.delete(name);
  else marks.set(name, said);
  try {
    if (taken) localStorage.removeItem(name);
    else localStorage.setItem(name, said);
  } catch {
    // A browser that keeps nothing still makes the list.
  }
  const card = grid.querySelector(`[data-place="${found.indexOf(pair)}"]`);
  if (card) mark(card, pair);
  count();
}

const rejected = () => pairs.filter((pair) => verdict(pair) === "rejected");

function download() {
  const list = rejected().map((pair) => ({ type: pair.part.type, index: pair.index, image: pair.digest }));
  const text = JSON.stringify({ format: 1, rejected: list }, null, 1) + "\n";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "reject.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// ---- the grid

const SHOWN = {
  all: () => true,
  open: (pair) => !verdict(pair),
  accepted: (pair) => verdict(pair) === "accepted",
  rejected: (pair) => verdict(pair) === "rejected",
  weak: (pair) => pair.weak,
  again: (pair) => pair.attempts > 1,
  repainted: (pair) => pair.repainted,
};
// What was not measured comes last.
const by = (value) => (a, b) => (value(a) ?? Infinity) - (value(b) ?? Infinity);
const less = (value) => (pair) => (value(pair) === null ? null : -value(pair));
const change = (pair) => (pair.contrast === null ? null : Math.abs(pair.contrast));
const ORDERS = {
  fill: by((pair) => pair.fill),
  leak: by(less((pair) => pair.leak)),
  faint: by(change),
  strong: by(less(change)),
  small: by((pair) => pair.pixels),
  large: by(less((pair) => pair.pixels)),
  index: () => 0,
};

function select() {
  const type = bar.type.value, passes = SHOWN[bar.show.value];
  found = pairs.filter((pair) => (type === "" || pair.part === parts[type]) && passes(pair));
  // Sorting is stable, so that equals stay in the order of type and number.
  if (bar.order.value !== "index") found.sort(ORDERS[bar.order.value]);
  for (const card of document.querySelectorAll(".type")) card.classList.toggle("chosen", card.dataset.part === type);
  at = -1;
  turn(0);
}

const pages = () => Math.max(Math.ceil(found.length / PAGE_SIZE), 1);

function turn(to) {
  page = Math.min(Math.max(to, 0), pages() - 1);
  const first = page * PAGE_SIZE;
  grid.replaceChildren(...found.slice(first, first + PAGE_SIZE).map((pair, n) => card(pair, first + n)));
  $(".pager").hidden = pages() === 1;
  pager.page.value = page + 1;
  $(".pages").textContent = pages();
  for (const name of ["first", "previous"]) pager[name].disabled = page === 0;
  for (const name of ["next", "last"]) pager[name].disabled = page === pages() - 1;
  count();
}

function count() {
  const first = page * PAGE_SIZE, listed = rejected().length;
  const range = found.length > PAGE_SIZE ? `${first + 1} to ${Math.min(first + PAGE_SIZE, found.length)} of ` : "";
  const judged = pairs.filter(verdict).length;
  $("#found").textContent =
    `${range}${found.length} ${found.length === 1 ? "pair" : "pairs"}` + (judged ? ` · ${judged} judged, ${listed} rejected` : "");
  bar.download.disabled = !listed;
  bar.download.textContent = listed ? `Download list (${listed})` : "Download list";
}

function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function card(pair, place) {
  const button = element("button", pair.weak ? "weak" : "");
  button.type = "button";
  button.dataset.place = place;
  const shown = element("span", "shown");
  for (const name of ["new", "mask"]) {
    const tile = element("span", `tile ${name}`);
    tile.style.backgroundImage = `url("${thumbnail(pair)}")`;
    shown.append(tile);
  }
  shown.append(element("span", "mark"));
  const fill = element("span", "fill", element("i"));
  fill.firstChild.style.width = `${100 * (pair.fill ?? 0)}%`;
  const told = [pair.weak ? "weak" : "", pair.attempts > 1 ? `${pair.attempts} attempts` : "", pair.repainted ? "painted anew" : ""];
  const text = element(
    "span", "text",
    element("span", "", `${pair.part.type} ${pair.index}`), fill,
    element("span", "faint", [percent(pair.fill), ...told.filter(Boolean)].join(" · "))
  );
  button.append(shown, text);
  mark(button, pair);
  return element("li", "", button);
}

function mark(button, pair) {
  const said = verdict(pair);
  for (const name of VERDICTS) button.classList.toggle(name, said === name);
  $(".mark", button).textContent = said;
}

// ---- the viewer: three pictures one on the other, of which `view` says what part is seen

const layers = { old: $(".layer .old"), new: $(".layer .new"), mask: $(".layer .mask") };
let view = { x: 0, y: 0, scale: 1 }; // the picture's pixel in the corner of the stage, and how large a pixel is
let whole = false;

function open(place) {
  at = seen = place;
  const pair = found[at], [name, good] = photograph(pair);
  if (!viewer.open) viewer.showModal();
  layers.new.src = image(pair);
  layers.mask.src = mask(pair);
  // Where the photograph is not in the run's folder its surroundings of the label are in the thumbnail.
  layers.old.src = good === null ? "" : path(good);
  stage.classList.toggle("alone", good === null);
  layers.new.onload = fit;
  if (layers.new.complete) fit();
  $(".facts h2").textContent = `${pair.part.type} ${pair.index}`;
  const facts = {
    photograph: name, mask: pair.part.labels[pair.label], painted: percent(pair.fill), leak: percent(pair.leak),
    change: pair.contrast === null ? "not measured" : `${signed(pair.contrast)} grey levels`,
    label: pair.pixels === null ? "" : `${pair.pixels} px`,
    attempts: pair.attempts > 1 ? pair.attempts : "", "rejected before": pair.repainted || "",
  };
  $(".facts dl").replaceChildren(
    ...Object.entries(facts).filter(([, value]) => value !== "")
      .map(([name, value]) => element("div", "", element("dt", "", name), element("dd", "", String(value))))
  );
  $(".links .image").href = image(pair);
  $(".links .label").href = mask(pair);
  $(".links .good").hidden = good === null;
  if (good !== null) $(".links .good").href = path(good);
  show();
}

function show() {
  const said = verdict(found[at]);
  for (const name of VERDICTS) viewer.classList.toggle(name, said === name);
  $(".verdict").textContent = said;
  $('[name="back"]', viewer).disabled = at === 0;
  $('[name="forward"]', viewer).disabled = at === found.length - 1;
}

function fit() {
  if (at < 0) return;
  const { naturalWidth: width, naturalHeight: height } = layers.new, box = found[at].box;
  const [left, top, right, bottom] = whole || !box ? [0, 0, width, height] : box;
  const { clientWidth, clientHeight } = stage;
  const scale = Math.min(clientWidth / (right - left), clientHeight / (bottom - top));
  view = { scale, x: (left + right - clientWidth / scale) / 2, y: (top + bottom - clientHeight / scale) / 2 };
  $('[name="zoom"]', viewer).textContent = whole ? "Label" : "Whole picture";
  place();
}

function place() {
  const { naturalWidth, naturalHeight } = layers.new;
  for (const layer of Object.values(layers)) {
    layer.style.width = `${naturalWidth * view.scale}px`;
    layer.style.height = `${naturalHeight * view.scale}px`;
    layer.style.left = `${-view.x * view.scale}px`;
    layer.style.top = `${-view.y * view.scale}px`;
    layer.parentElement.classList.toggle("near", view.scale >= 2);
  }
}

function zoom(factor, x, y) {
  const scale = Math.min(Math.max(view.scale * factor, 0.05), MOST_ZOOM);
  view = { scale, x: view.x + x / view.scale - x / scale, y: view.y + y / view.scale - y / scale };
  place();
}

function cut(share) {
  stage.style.setProperty("--cut", `${share}%`);
  $('[name="cut"]').value = share;
}

function step(by) {
  const next = at + by;
  if (next < 0 || next >= found.length) return;
  if (Math.floor(next / PAGE_SIZE) !== page) turn(Math.floor(next / PAGE_SIZE));
  if (viewer.open) open(next);
  else $(`[data-place="${next}"]`, grid).focus();
}

function pass(said) {
  if (at < 0) return;
  const taken = verdict(found[at]) === said;
  judge(found[at], said);
  if (viewer.open) show();
  if (!taken) step(1);
}

function outline(on) {
  document.body.classList.toggle("outlined", on);
  bar.outline.checked = $('[name="outlined"]').checked = on;
}

function before(on) {
  document.body.classList.toggle("before", on);
  bar.before.checked = on;
  cut(on ? 100 : 50);
}

// ---- histograms

function bars(svg, values, low, high) {
  const counts = new Array(BARS).fill(0);
  for (const value of values) counts[Math.min(Math.floor(((value - low) / (high - low)) * BARS), BARS - 1)]++;
  const most = Math.max(...counts);
  svg.setAttribute("viewBox", `0 0 ${BARS} 1`);
  svg.setAttribute("preserveAspectRatio", "none");
  counts.forEach((count, n) => {
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    // Few are not none.
    const height = count ? Math.max(count / most, 0.04) : 0;
    for (const [name, value] of Object.entries({ x: n + 0.05, y: 1 - height, width: 0.9, height })) rect.setAttribute(name, value);
    svg.append(rect);
  });
}

function histograms() {
  parts.forEach((part, n) => {
    const article = $(`.type[data-part="${n}"]`), own = pairs.filter((pair) => pair.part === part && pair.fill !== null);
    for (const svg of article.querySelectorAll(".bars")) {
      if (svg.dataset.of === "fill") {
        bars(svg, own.map((pair) => pair.fill), 0, 1);
        continue;
      }
      const values = own.map((pair) => pair.contrast);
      const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b), low + 1);
      bars(svg, values, low, high);
      $(".least", article).textContent = signed(low);
      $(".most", article).textContent = signed(high);
    }
  });
}

function times() {
  // One in which nothing was left to do says nothing.
  const sittings = (window.stageTimes ?? []).filter((one) => one.samples);
  const seconds = sittings.reduce((sum, one) => sum + one.seconds, 0), samples = sittings.reduce((sum, one) => sum + one.samples, 0);
  if (!samples) return;
  const end = new Date(new Date(sittings.at(-1).started).getTime() + 1000 * sittings.at(-1).seconds);
  const often = sittings.length > 1 ? ` at ${sittings.length} times` : "";
  const each = seconds < samples ? `${Math.round(samples / seconds)} pairs a second` : `${(seconds / samples).toPrecision(2)} s a pair`;
  $("#times").textContent = ` · painted in ${duration(seconds)}${often}, ${each}, until ${end.toLocaleString()}`;
}

function duration(seconds) {
  const minutes = Math.round(seconds / 60);
  if (seconds < 60) return `${Math.round(seconds)} s`;
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

// ---- what a person does

const KEYS = {
  ArrowLeft: () => step(-1), ArrowRight: () => step(1), PageUp: () => turn(page - 1), PageDown: () => turn(page + 1),
  a: () => pass("accepted"), r: () => pass("rejected"),
  o: () => outline(!bar.outline.checked), b: () => before(!bar.before.checked),
  z: () => { whole = !whole; fit(); },
  "?": () => $("#keys").showModal(),
};

document.addEventListener("keydown", (event) => {
  const key = event.key;
  // Letters choose an entry of a list, and arrows move a slider.
  const typing = event.target.matches(key.length === 1 ? "select, [name=page]" : "select, [name=page], [type=range]");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || $("#keys").open) return;
  const act = KEYS[key.length === 1 ? key.toLowerCase() : key];
  if (!act) return;
  if (key.startsWith("Page") && viewer.open) return;
  event.preventDefault();
  act();
});

$(".bar").addEventListener("change", (event) => {
  if (event.target.name === "outline") outline(event.target.checked);
  else if (event.target.name === "before") before(event.target.checked);
  else select();
});
bar.download.addEventListener("click", download);
bar.help.addEventListener("click", () => $("#keys").showModal());
grid.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) open(Number(button.dataset.place));
});
grid.addEventListener("focusin", (event) => { at = Number(event.target.dataset.place); });

const BUTTONS = {
  back: () => step(-1), forward: () => step(1), accept: () => pass("accepted"), reject: () => pass("rejected"),
  zoom: KEYS.z, close: () => viewer.close(),
};
viewer.addEventListener("click", (event) => BUTTONS[event.target.name]?.());
viewer.addEventListener("input", (event) => {
  if (event.target.name === "cut") cut(event.target.value);
  if (event.target.name === "outlined") outline(event.target.checked);
});
// The browser gives the keyboard back to the pair that was opened first.
viewer.addEventListener("close", () => $(`[data-place="${seen}"]`, grid)?.focus());

stage.addEventListener("wheel", (event) => {
  event.preventDefault();
  const { left, top } = stage.getBoundingClientRect();
  zoom(1.0015 ** -event.deltaY, event.clientX - left, event.clientY - top);
}, { passive: false });
stage.addEventListener("pointerdown", (event) => {
  stage.setPointerCapture(event.pointerId);
  const { left, width } = stage.getBoundingClientRect(), dividing = event.target.matches(".divider");
  const move = (event) => {
    if (dividing) {
      cut(Math.min(Math.max((100 * (event.clientX - left)) / width, 0), 100));
    } else {
      view = { ...view, x: view.x - event.movementX / view.scale, y: view.y - event.movementY / view.scale };
      place();
    }
  };
  stage.addEventListener("pointermove", move);
  stage.addEventListener("lostpointercapture", () => stage.removeEventListener("pointermove", move), { once: true });
});
// Another tab judged a pair.
window.addEventListener("storage", ({ key, newValue }) => {
  marks.set(key, newValue);
  for (const button of grid.querySelectorAll("button")) mark(button, found[button.dataset.place]);
  if (viewer.open) show();
  count();
});
window.addEventListener("resize", () => { if (viewer.open) fit(); });

for (const [name, to] of Object.entries({ first: () => 0, previous: () => page - 1, next: () => page + 1, last: () => pages() - 1 })) {
  pager[name].addEventListener("click", () => turn(to()));
}
$(".pager").addEventListener("submit", (event) => event.preventDefault());
pager.page.addEventListener("change", () => turn((Number(pager.page.value) || 1) - 1));

for (const card of document.querySelectorAll(".type h2 button")) {
  card.addEventListener("click", () => {
    const part = card.closest(".type").dataset.part;
    bar.type.value = bar.type.value === part ? "" : part;
    select();
  });
}

// A browser may remember what was chosen when the page is loaded again.
outline(bar.outline.checked);
before(bar.before.checked);
$(".bar").hidden = false;
times();
histograms();
select();
