// The state as the server tells it, and what follows from each word of it.

const HISTORY = 1400, STALE_SECONDS = 12, KEYS = {jobs: "handle", models: "name", instances: "id", nodes: "name", maps: "id"};
const state = {time: 0, problems: [], errors: []};
for (const name in KEYS) state[name] = new Map();
let offset = 0; // of the server's clock to ours, seconds
let heard = 0, connected = false, started = false;
const now = () => Date.now() / 1e3 + offset;
const remembered = (store, name, value) => {
  try { return value === undefined ? store.getItem(name) : value === null ? store.removeItem(name) : store.setItem(name, value); }
  catch { return null; } // storage may be forbidden
};

// ---- what is said

const waiting = new Map(); // id -> status, of changes that are to be spoken
function speak() {
  if (!waiting.size) return;
  const each = [...waiting].map(([id, status]) => `${id} is ${status}`);
  const counts = {};
  for (const status of waiting.values()) counts[status] = (counts[status] || 0) + 1;
  const text = each.length <= 3 ? each.join(", ") : "Instances: " + Object.entries(counts).map(([status, n]) => `${n} now ${status}`).join(", ");
  $("#said").textContent = text;
  waiting.clear();
}

// ---- what comes

const dirty = new Set(), changed = new Set();
let frame = 0;
const touch = name => { dirty.add(name); frame ||= requestAnimationFrame(render); };

function takeState(full) {
  for (const name in KEYS) state[name].clear();
  for (const name in KEYS) for (const each of full[name] || []) state[name].set(each[KEYS[name]], each);
  for (const model of state.models.values()) model.history ||= [];
  Object.assign(state, {errors: full.errors || [], problems: full.problems || [], version: full.version});
  [...Object.keys(KEYS), "errors", "order"].forEach(touch);
  for (const id of state.instances.keys()) changed.add(id);
}

function takeChange(change) {
  for (const name in KEYS) for (const [key, fields] of Object.entries(change[name] || {})) {
    const known = state[name].get(key);
    if (name === "instances") {
      changed.add(key);
      if (!fields || !known || Object.keys(fields).some(field => field !== "load" && field !== "seen")) { touch("order"); touch("nodes"); }
      if (fields?.status && known) { waiting.set(key, fields.status); flashing.add(key); }
    }
    if (!fields) state[name].delete(key);
    else if (known) Object.assign(known, fields);
    else state[name].set(key, name === "models" ? {history: [], ...fields} : fields);
    touch(name);
  }
  for (const [name, points] of Object.entries(change.points || {})) {
    const model = state.models.get(name);
    if (!model) continue;
    model.history.push(...points);
    // As the server does: an hour ago, one point a minute is enough.
    if (model.history.length > HISTORY) model.history = model.history.filter((_, index) => index >= HISTORY / 2 || index % 12 === 0);
    touch("models");
  }
  if (change.errors?.length) { state.errors = [...state.errors, ...change.errors].slice(-50); touch("errors"); }
  if (change.problems) { state.problems = change.problems; touch("jobs"); }
}

function take(name, text) {
  const data = JSON.parse(text);
  offset = data.time - Date.now() / 1e3;
  if (name === "state") takeState(data); else if (name === "change") takeChange(data);
}

// ---- what is shown

const flashing = new Set();
const table = new Table($("#instances"), state.instances, now, open);
const range = () => Number($("#range").value);
const jobs = jobList(now), models = modelList(range), maps = mapList(), errors = errorList();
const nodes = nodeList(now, state.instances, name => {
  $("#find").value = name; $("#state").value = $("#model").value = "";
  filter();
  $("#instances").scrollIntoView(); $("#find").focus({preventScroll: true});
});
const alerts = new List($("#alerts ul"), () => ({element: make("li")}), (part, text) => write(part.element, text));

function render() {
  frame = 0;
  if (dirty.has("jobs")) showJobs();
  if (dirty.has("models")) {
    models.show([...state.models.values()], each => each.name);
    $("#models .empty").hidden = state.models.size > 0;
    choices();
  }
  if (dirty.has("maps")) { maps.show([...state.maps.values()], each => each.id); $("#maps").hidden = !state.maps.size; }
  if (dirty.has("errors")) { errors.show(alike(state.errors), each => each.key); $("#errors").hidden = !state.errors.length; }
  if (dirty.has("nodes")) showNodes();
  if (dirty.has("order") || (dirty.has("instances") && table.sort.column.number)) { table.arrange(); count(); }
  else if (dirty.has("instances")) table.refresh(changed);
  if (dirty.has("order")) total();
  if (dirty.size) attention();
  table.flash(flashing);
  if (detail.open && changed.has(detail.dataset.id)) facts();
  for (const set of [dirty, changed, flashing]) set.clear();
  write($("#version"), state.version ? `Aegis ${state.version}` : "");
}

function showJobs() {
  jobs.show([...state.jobs.values()].sort((a, b) => (b.started ?? 0) - (a.started ?? 0)), each => each.handle);
  $("#jobs").hidden = !state.jobs.size;
}
function showNodes() {
  nodes.show([...state.nodes.values()].sort((a, b) => collator.compare(a.name, b.name)), each => each.name);
  $("#nodes").hidden = !state.nodes.size;
}
function total() {
  const heads = [...state.instances.values()].filter(each => !each.rank && each.type !== "gateway");
  const healthy = heads.filter(each => each.status === "healthy").length;
  const text = `${healthy} of ${heads.length} healthy`;
  write($("#total"), text);
  document.title = heads.length ? `${healthy}/${heads.length} · Aegis` : "Aegis";
}
function attention() {
  const texts = alertTexts(state, now());
  alerts.show(texts, text => text);
  $("#alerts").hidden = !texts.length;
}
function choices() {
  const select = $("#model"), names = [...state.models.keys()];
  if (names.join("\n") === select.dataset.names) return;
  select.dataset.names = names.join("\n");
  const chosen = select.value;
  select.replaceChildren(select.options[0], ...names.map(name => new Option(name, name)));
  select.value = names.includes(chosen) ? chosen : "";
}
function count() {
  const shown = table.order.length, all = state.instances.size;
  write($("#shown"), shown === all ? `${all} shown` : `${shown} of ${all} shown`);
}
function filter() {
  table.filter = {text: $("#find").value, state: $("#state").value, model: $("#model").value};
  table.scroll.scrollTop = 0;
  table.arrange();
  count();
}

// ---- one instance

const detail = $("#detail");
let following = 0;

function open(id) {
  detail.dataset.id = id;
  write($("#detail-title"), id);
  write($("#log"), "");
  facts();
  detail.showModal();
  log();
}

function facts() {
  const each = state.instances.get(detail.dataset.id) || {status: "gone"}, of = load(each);
  const rows = [
    ["State", each.status + (each.since ? `, for ${duration(now() - each.since)}` : "")], ["Reason", each.reason],
    ["Model", each.model], ["Job", each.job], ["Node", each.node], ["Address", each.port ? `${each.host}:${each.port}` : each.host],
    ["Engine", each.type], ["Devices", (each.devices || []).join(", ")], ["Restarts", each.restarts],
    ["Requests", of.running == null ? "" : `${number(of.running)} running, ${number(of.waiting)} waiting`],
    ["Tokens/s", of.generation_rate == null ? "" : `${number(of.generation_rate)} generated, ${number(of.prompt_rate)} prompt`],
    ["KV cache", of.kv_cache == null ? "" : percent(of.kv_cache)]];
  const last = state.errors.filter(error => error.instance === detail.dataset.id).pop();
  if (last) rows.push(["Last error", `${new Date(last.time * 1e3).toLocaleTimeString()}: ${last.text}`]);
  const told = rows.filter(([, value]) => value || value === 0);
  detail.querySelector("dl").replaceChildren(...told.flatMap(([name, value]) => [make("dt", "", name), make("dd", "", String(value))]));
}

async function log(mayAsk = true) {
  clearTimeout(following);
  const id = detail.dataset.id, box = $("#log");
  try {
    const answer = await fetch(`ui/log?${new URLSearchParams({service: id, lines: $("#lines").value})}`, {headers: headers()});
    const text = await answer.text();
    if (!detail.open || detail.dataset.id !== id) return;
    if (answer.status === 401) {
      write($("#log-said"), "The log is shown to who has the registry's token, or a key of the gateway.");
      if (mayAsk && await ask()) return log(false);
      return;
    }
    let said = "";
    if (answer.ok) {
      const atEnd = box.scrollTop + box.clientHeight >= box.scrollHeight - 4;
      if (box.textContent !== text) { box.textContent = text; if (atEnd) box.scrollTop = box.scrollHeight; }
      said = text ? "" : "It has written nothing yet.";
    } else try { const {error} = JSON.parse(text); said = error?.message ?? error; } catch { said = `no log (HTTP ${answer.status})`; }
    write($("#log-said"), said);
  } catch { write($("#log-said"), "The log cannot be read now."); }
  if (detail.open && $("#follow").checked) following = setTimeout(log, 2000);
}

// ---- the token

const headers = () => {
  const token = remembered(sessionStorage, "aegis-token");
  return token ? {Authorization: `Bearer ${token}`} : {};
};
let asking = null;
function ask() {
  return asking ||= new Promise(resolve => {
    const dialog = $("#ask");
    remembered(sessionStorage, "aegis-token", null);
    $("#token").value = "";
    dialog.returnValue = "";
    dialog.onclose = () => {
      asking = null;
      const token = $("#token").value.trim(), given = dialog.returnValue === "ok" && /^[\x21-\x7e]+$/.test(token);
      if (given) remembered(sessionStorage, "aegis-token", token);
      resolve(given);
    };
    dialog.querySelector(".no").onclick = () => dialog.close();
    dialog.showModal();
  });
}

// ---- the stream

async function follow() {
  for (let pause = 1; ; pause = Math.min(pause * 1.7, 10)) {
    try {
      const answer = await fetch("ui/events", {headers: headers(), cache: "no-store"});
      if (answer.status === 401) { refused(); await ask(); continue; }
      if (!answer.ok) throw new Error(answer.status);
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      watchdog = () => reader.cancel().catch(() => {});
      for (let rest = ""; ;) {
        const {value, done} = await reader.read();
        if (done) break;
        pause = 1; heard = Date.now(); connected = true;
        const parts = (rest + value).split("\n\n");
        rest = parts.pop();
        for (const part of parts) {
          const [, name, data] = /^event: (\w+)\ndata: (.*)$/s.exec(part) || [];
          if (name) take(name, data);
        }
        started = true;
        live();
      }
    } catch { /* told as stale */ }
    connected = false;
    live();
    await new Promise(resolve => setTimeout(resolve, pause * (800 + Math.random() * 400)));
  }
}
let watchdog = () => {};
const refused = () => { connected = false; live(); write($("#live"), "needs a token"); };

function live() {
  const silent = heard ? (Date.now() - heard) / 1e3 : 0;
  const stale = started && (!connected || silent > STALE_SECONDS);
  document.body.classList.toggle("stale", stale);
  write($("#live"), !started ? "connecting …" : stale ? `stale since ${new Date(heard).toLocaleTimeString()}, reconnecting …` : "live");
  if (silent > 3 * STALE_SECONDS) watchdog(); // a connection that died without a word
}

// ---- begin

function theme(name) {
  document.documentElement.dataset.theme = name;
  write($("#theme"), name === "dark" ? "Light" : "Dark");
  $("#theme").setAttribute("aria-label", `Switch to ${name === "dark" ? "light" : "dark"} colours`);
}
const dark = matchMedia("(prefers-color-scheme: dark)");
theme(remembered(localStorage, "aegis-theme") || (dark.matches ? "dark" : "light"));
dark.addEventListener("change", () => remembered(localStorage, "aegis-theme") || theme(dark.matches ? "dark" : "light"));
$("#theme").addEventListener("click", () => {
  theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  remembered(localStorage, "aegis-theme", document.documentElement.dataset.theme);
});
$("#state").append(...[...STATES].reverse().map(name => new Option(name, name)));
for (const id of ["#find", "#state", "#model"]) $(id).addEventListener("input", filter);
$("#find").addEventListener("keydown", event => { if (event.key === "Escape") { event.target.value = ""; filter(); } });
document.querySelector(".filter").addEventListener("submit", event => event.preventDefault());
$("#range").addEventListener("input", () => touch("models"));
detail.querySelector(".close").addEventListener("click", () => detail.close());
detail.addEventListener("close", () => clearTimeout(following));
$("#lines").addEventListener("input", () => log());
$("#follow").addEventListener("input", () => log());
// A link may bring the token behind `#`, which no server is told.
const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  remembered(sessionStorage, "aegis-token", given);
  history.replaceState(null, "", location.pathname + location.search);
}
setInterval(() => {
  live();
  if (document.hidden) return;
  if (state.jobs.size) showJobs();
  table.refresh();
  if (detail.open) facts();
}, 1000);
setInterval(() => { speak(); if (!document.hidden && started) { attention(); showNodes(); } }, 3000);
follow();
