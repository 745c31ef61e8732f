"use strict";

const model = JSON.parse(document.getElementById("model").textContent);
const TOP = 5;
const AT_ONCE = 3; // requests under way: enough to keep a worker busy, few enough for the others in its queue
const TRIES = 6; // of one request while the server is busy, 0.5, 1, 2, 4 and 8 seconds apart
const PATIENCE_MS = 90_000; // longer than the server gives a worker
const BUSY = [429, 502, 503, 504];

const byId = (id) => document.getElementById(id);
const items = [];
const waiting = [];
let running = 0;

/** What went wrong, in words for people; `said`: in the server's; `lasting`: trying again can't help. */
class Failure extends Error {
  constructor(message, { said = "", lasting = false } = {}) {
    super(message);
    this.said = said;
    this.lasting = lasting;
  }
}

// --- words ------------------------------------------------------------------------------------------

const whole = (number) => number.toLocaleString("en");
const percent = (share) => (share > 0 && share < 0.0005 ? "<\u00a00.1\u00a0%" : `${(100 * share).toFixed(1)}\u00a0%`);
const size = (bytes) => (bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))}\u00a0kB` : `${(bytes / 1e6).toFixed(1)}\u00a0MB`);
const time = (ms) => (ms < 1000 ? `${Math.round(ms)}\u00a0ms` : `${(ms / 1000).toFixed(1)}\u00a0s`);
const count = (number, word) => `${whole(number)} ${word}${number === 1 ? "" : "s"}`;

/** For screen readers: a log, so that answers that come at the same moment are all read. */
function say(text) {
  const news = byId("news");
  add(news, "p", text);
  if (news.childElementCount > 20) news.firstElementChild.remove();
}

function add(parent, tag, text, className) {
  const element = parent.appendChild(document.createElement(tag));
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

// --- requests ---------------------------------------------------------------------------------------

function enqueue(job) {
  waiting.push(job);
  next();
}

function next() {
  while (running < AT_ONCE && waiting.length) {
    running += 1;
    waiting.shift()().finally(() => {
      running -= 1;
      next();
    });
  }
}

/** POSTs a picture with `fields`; the parsed answer and its time in ms, or a Failure in words for people. */
async function send(path, item, fields) {
  try {
    await item.file.slice(0, 1).arrayBuffer();
  } catch {
    throw new Failure("This can’t be read. Is it a folder, or was the file moved or changed?");
  }
  for (let attempt = 1; ; attempt += 1) {
    const form = new FormData();
    form.append("file", item.file, item.file.name);
    for (const [name, value] of Object.entries(fields)) form.append(name, value);
    const start = performance.now();
    let response;
    let text;
    try {
      const signal = AbortSignal.timeout(PATIENCE_MS);
      response = await fetch(path, { method: "POST", body: form, headers: { Accept: "application/json" }, signal });
      text = await response.text();
    } catch (error) {
      throw await broken(item, error);
    }
    const ms = performance.now() - start;
    const answer = parsed(text);
    if (response.ok && answer) return { answer, ms };
    if (!BUSY.includes(response.status) || attempt === TRIES) throw refused(response.status, answer, item);
    item.note.textContent = `The server is busy. Trying again, ${attempt} of ${TRIES - 1} …`;
    const asked = Number(response.headers.get("Retry-After")) * 1000;
    const pause = Math.max(asked || 0, 250 * 2 ** attempt) * (1 + Math.random() / 4); // not all at the same moment
    await new Promise((done) => setTimeout(done, pause));
    if (!item.element.isConnected) throw new Failure("Cleared.");
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** Why no answer came: a server that hangs up on a large file looks, from here, like one that is gone. */
async function broken(item, error) {
  if (error.name === "TimeoutError") {
    return new Failure(`The server took longer than ${PATIENCE_MS / 1000} seconds. Try again later.`);
  }
  try {
    await fetch(model.predictions, { headers: { Accept: "application/json" }, cache: "no-store" });
  } catch {
    return new Failure("The server doesn’t answer. Is it still running? The picture stays here: try again when it is back.");
  }
  if (item.file.size > 1e6) return tooLarge(item);
  return new Failure("The connection broke while the picture was being sent. Try again.");
}

function tooLarge(item) {
  const message = `This file is too large for the server: ${size(item.file.size)}. Send a smaller one.`;
  return new Failure(message, { lasting: true });
}

function refused(status, answer, item) {
  const said = answer?.message ?? "";
  if (answer?.type === "ImageTooLarge") return new Failure("This picture has too many pixels.", { said, lasting: true });
  if (status === 413) return tooLarge(item);
  if (answer?.type === "InvalidImage") {
    return new Failure("This file can’t be read as a picture.", { said, lasting: true });
  }
  if (answer?.type === "InvalidKeyException" || status === 401 || status === 403) {
    return new Failure("The server asks for a token, which this page can’t send.", { said });
  }
  if (status === 404) return new Failure("The server no longer serves this model. Reload the page.", { said });
  if (BUSY.includes(status)) {
    return new Failure("The server is busy, or no worker is ready. Try again in a moment.", { said });
  }
  return new Failure(`The server couldn’t do it (${status}).`, { said });
}

// --- pictures ---------------------------------------------------------------------------------------

function take(files) {
  const fresh = [...files];
  if (!fresh.length) return;
  for (const file of fresh) show(file);
  document.body.classList.add("filled");
  byId("answers").hidden = false;
  byId("drop-title").textContent = "Drop or paste more pictures";
  byId("answers-title").textContent = count(items.length, "picture");
  say(`${count(fresh.length, "picture")} sent.`);
}

function show(file) {
  const element = byId("result").content.cloneNode(true).firstElementChild;
  const part = (selector) => element.querySelector(selector);
  const item = { file, element, url: URL.createObjectURL(file), explanations: new Map(), target: null, top: null };
  item.note = part(".note");
  part(".file").textContent = file.name;
  const image = part("img");
  image.alt = file.name;
  image.addEventListener("load", () => {
    ratio(item, image.naturalWidth, image.naturalHeight);
    item.pixels = `${image.naturalWidth} × ${image.naturalHeight} px`.replaceAll(" ", "\u00a0");
    figures(item);
  });
  image.addEventListener("error", () => {
    image.hidden = true;
    const placeholder = part(".placeholder");
    placeholder.textContent = (/\.([a-z0-9]{1,5})$/i.exec(file.name)?.[1] ?? "file").toUpperCase();
    placeholder.hidden = false;
  });
  image.src = item.url;
  part(".again").addEventListener("click", () => {
    predict(item);
    part(".label").tabIndex = -1; // the button goes, the focus stays
    part(".label").focus();
  });
  part(".copy").addEventListener("click", (event) => copy(part("code"), event.currentTarget));
  byId("results").append(element);
  items.push(item);
  predict(item);
}

function ratio(item, width, height) {
  item.element.querySelector(".picture").style.setProperty("--ratio", String(width / height));
}

function figures(item) {
  const parts = [item.ms === undefined ? "" : `answered in ${time(item.ms)}`, size(item.file.size), item.pixels];
  const map = byId("look").checked && item.explanations.get(item.target);
  if (map && !map.heat_map.some((row) => row.some(Boolean))) parts.push(`nothing speaks for ${map.label}`);
  item.element.querySelector(".figures").textContent = parts.filter(Boolean).join(" · ");
}

function predict(item) {
  const part = (selector) => item.element.querySelector(selector);
  item.element.classList.add("busy");
  item.element.setAttribute("aria-busy", "true");
  part(".label").textContent = " ";
  item.note.textContent = "";
  part(".failure").hidden = true;
  enqueue(async () => {
    if (!item.element.isConnected) return;
    try {
      const { answer, ms } = await send(model.predictions, item, { topk: Math.min(TOP, model.labels.length) });
      item.top = answer.top;
      item.target = answer.index;
      item.ms = ms;
      part(".label").textContent = answer.label;
      item.note.textContent = `${answer.probability < 0.5 ? "only " : ""}${percent(answer.probability)} sure`;
      bars(item);
      say(`${item.file.name}: ${answer.label}, ${percent(answer.probability)}`);
      look(item);
    } catch (error) {
      fail(item, error);
    }
    item.element.classList.remove("busy");
    item.element.removeAttribute("aria-busy");
  });
}

function fail(item, error) {
  const part = (selector) => item.element.querySelector(selector);
  if (!item.top) part(".label").textContent = "";
  item.note.textContent = "";
  part(".message").textContent = error instanceof Failure ? error.message : `This page failed: ${error.message}`;
  part(".said").textContent = error.said ? `The server said: ${error.said}` : "";
  part(".again").hidden = Boolean(error.lasting);
  part(".failure").hidden = false;
  figures(item);
  say(`${item.file.name}: ${error.message}`);
}

function bars(item) {
  const list = item.element.querySelector(".top");
  list.replaceChildren();
  for (const { label, index, probability } of item.top) {
    const button = add(add(list, "li"), "button");
    button.type = "button";
    button.dataset.index = index;
    button.title = `Show what speaks for ${label}`;
    add(button, "span", label);
    add(button, "span", percent(probability), "share");
    add(button, "span", undefined, "bar").style.setProperty("--share", String(probability));
    button.addEventListener("click", () => {
      item.target = index;
      if (byId("look").checked) look(item);
      else byId("look").click();
    });
  }
  list.hidden = false;
}

// --- the command line -------------------------------------------------------------------------------

function command(item) {
  const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
  const name = item.file.name;
  // in curl's -F, a name with these needs quotes of its own
  const file = /[;,"\\]/.test(name) ? `file=@"${name.replace(/[\\"]/g, "\\$&")}"` : `file=@${name}`;
  const begin = `curl -F ${quoted(file)}`;
  const lines = [`${begin} -F topk=${item.top.length} ${quoted(location.origin + model.predictions)}`];
  if (byId("look").checked && item.explanations.has(item.target)) {
    const address = quoted(location.origin + model.explanations);
    lines.push(`${begin} -F target=${item.target} -H 'Accept: image/png' -o looked.png ${address}`);
  }
  item.element.querySelector("code").textContent = lines.join("\n");
  item.element.querySelector(".command").hidden = false;
}

async function copy(code, button) {
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch {
    // over plain HTTP from another machine there is no such clipboard
    getSelection().selectAllChildren(code);
    document.execCommand("copy");
  }
  button.textContent = "Copied";
  say("Copied");
  setTimeout(() => {
    button.textContent = "Copy";
  }, 2000);
}

// --- where it looked --------------------------------------------------------------------------------

/** Brings an item's heat map in line with the switch and its chosen class. */
function look(item) {
  if (!item.top) return;
  const on = byId("look").checked;
  for (const button of item.element.querySelectorAll(".top button")) {
    button.setAttribute("aria-pressed", String(on && Number(button.dataset.index) === item.target));
  }
  const canvas = item.element.querySelector(".heat");
  const map = item.explanations.get(item.target);
  canvas.hidden = !(on && map);
  figures(item);
  command(item);
  if (!on) return;
  if (map) {
    draw(canvas, map);
    ratio(item, ...map.picture);
    say(`${item.file.name}: showing what speaks for ${map.label}`);
    return;
  }
  const target = item.target;
  enqueue(async () => {
    if (!item.element.isConnected || !byId("look").checked) return;
    const note = item.note.textContent;
    try {
      const { answer } = await send(model.explanations, item, { target });
      item.explanations.set(target, answer);
      item.note.textContent = note;
      item.element.querySelector(".failure").hidden = true;
      if (item.target === target) look(item);
    } catch (error) {
      fail(item, error);
      item.note.textContent = note;
    }
  });
}

function draw(canvas, { heat_map: rows, width, height, region, picture }) {
  const side = Math.max(160, width);
  canvas.width = side;
  canvas.height = side;
  const pixels = new ImageData(side, side);
  for (let y = 0; y < side; y += 1) {
    const [top, bottom, down] = between(((y + 0.5) / side) * height - 0.5, height);
    for (let x = 0; x < side; x += 1) {
      const [left, right, across] = between(((x + 0.5) / side) * width - 0.5, width);
      const upper = rows[top][left] * (1 - across) + rows[top][right] * across;
      const lower = rows[bottom][left] * (1 - across) + rows[bottom][right] * across;
      pixels.data.set(colour(upper * (1 - down) + lower * down), 4 * (y * side + x));
    }
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  const [left, top, right, bottom] = region;
  canvas.style.left = `${(100 * left) / picture[0]}%`;
  canvas.style.top = `${(100 * top) / picture[1]}%`;
  canvas.style.width = `${(100 * (right - left)) / picture[0]}%`;
  canvas.style.height = `${(100 * (bottom - top)) / picture[1]}%`;
}

/** The two neighbours of a place on a line of `length` cells, and how far it is from the first, 0 to 1. */
function between(place, length) {
  const inside = Math.min(Math.max(place, 0), length - 1);
  const first = Math.floor(inside);
  return [first, Math.min(first + 1, length - 1), inside - first];
}

/** Red, green, blue and opacity, 0 to 255, of a heat from 0 to 1. */
function colour(heat) {
  const [first, second, share] = between(heat * (model.palette.length - 1), model.palette.length);
  const channels = model.palette[first].map((value, i) => value * (1 - share) + model.palette[second][i] * share);
  const [cold, hot] = model.opacity;
  return [...channels, 255 * (cold * (1 - heat) + hot * heat)];
}

// --- the model --------------------------------------------------------------------------------------

function describe({ card, labels }) {
  byId("name").textContent = card.name;
  document.title = `What is in the picture? · ${card.name}`;
  const tests = Object.entries(card.accuracy).filter(([name, test]) => test?.top1 !== undefined && name !== "served");
  const [, main] = tests[0] ?? [];
  const pictures = (test) => (test.pictures ? `of ${whole(test.pictures)} test pictures` : "of the test pictures");
  byId("lead").textContent =
    `A DenseNet tells which of ${whole(labels.length)} classes it is.` +
    (main ? ` It was right on ${percent(main.top1)} ${pictures(main)}.` : "");

  const tile = (term, value, more) => {
    const group = add(byId("tiles"), "div");
    add(group, "dt", term);
    add(group, "dd", value);
    if (more) add(group, "dd", more);
  };
  if (main) {
    const range = main.top1_95 ? `, 95 %: ${main.top1_95.map(percent).join(" to ")}` : "";
    tile("Right", percent(main.top1), pictures(main) + range);
    if (main.top5 !== undefined) tile("Right within five", percent(main.top5), pictures(main));
  } else {
    tile("Right", "not measured", "The model’s card has no accuracy.");
  }
  tile("Classes", whole(labels.length), "listed below");
  if (card.training.parameters) {
    tile("Parameters", `${(card.training.parameters / 1e6).toFixed(1)} million`, `DenseNet “${card.architecture.name}”`);
  }

  const fact = (term, value) => {
    if (!value) return;
    add(byId("facts"), "dt", term);
    add(byId("facts"), "dd", value);
  };
  const { architecture } = card;
  const blocks = architecture.block_config.join("-");
  fact("Network", `DenseNet “${architecture.name}”, growth rate ${architecture.growth_rate}, blocks ${blocks}`);
  fact("Sees", `the middle ${card.crop} × ${card.crop} px of a picture whose shorter side is made ${card.resize} px`);
  fact("Computes", `with ${card.runtime}, ${card.precision}`);
  for (const [name, test] of tests.slice(1)) fact(`Right, ${name}`, `${percent(test.top1)} ${pictures(test)}`);
  fact("Trained on", card.dataset);
  fact("Terms", card.licence);
  fact("Weights", card.weights_sha256 && `SHA-256 ${card.weights_sha256.slice(0, 16)}…`);

  const classes = labels.map((label) => {
    const entry = add(byId("classes"), "li", label);
    const test = main?.per_class?.[label];
    if (test) add(entry, "span", `${Math.round(100 * test.top1)}\u00a0% right`);
    return { label: label.toLowerCase(), entry };
  });
  const search = () => {
    const wanted = byId("search").value.trim().toLowerCase();
    for (const { label, entry } of classes) entry.hidden = !label.includes(wanted);
    const found = classes.filter(({ entry }) => !entry.hidden);
    const all = `${whole(labels.length)} classes`;
    byId("found").textContent = wanted ? `${whole(found.length)} of ${all}` : all;
    byId("classes").hidden = !found.length;
  };
  byId("search").addEventListener("input", search);
  search();
}

// --- what people do ---------------------------------------------------------------------------------

for (const id of ["files", "camera"]) {
  byId(id).addEventListener("change", ({ target }) => {
    take(target.files);
    target.value = ""; // the same file again is a change again
  });
}

byId("photograph").hidden = navigator.maxTouchPoints === 0; // elsewhere it would be a second "choose"

const carriesFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
let depth = 0; // of the elements that the pointer has entered and not left
const veil = (change) => {
  depth = Math.max(0, change === 0 ? 0 : depth + change);
  byId("veil").hidden = depth === 0;
};
addEventListener("dragenter", (event) => carriesFiles(event) && veil(1));
addEventListener("dragleave", (event) => carriesFiles(event) && veil(-1));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  veil(0);
  take(event.dataTransfer.files);
});
addEventListener("paste", (event) => {
  if (!event.clipboardData?.files.length) return;
  event.preventDefault();
  take(event.clipboardData.files);
});

byId("look").addEventListener("change", () => {
  byId("legend").hidden = !byId("look").checked;
  for (const item of items) {
    if (!byId("look").checked && item.top) item.target = item.top[0].index;
    look(item);
  }
});

byId("clear").addEventListener("click", () => {
  for (const item of items) URL.revokeObjectURL(item.url);
  items.length = 0;
  waiting.length = 0;
  byId("results").replaceChildren();
  byId("answers").hidden = true;
  document.body.classList.remove("filled");
  byId("drop-title").textContent = "Drop pictures here";
  say("Cleared.");
  byId("files").focus();
});

byId("scale").style.background = `linear-gradient(to right, ${model.palette.map((c) => `rgb(${c})`).join(", ")})`;
describe(model);
