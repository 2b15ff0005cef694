// Jobs, models, nodes, runs, errors: each keeps its elements by key, and touches what changed.

const $ = selector => document.querySelector(selector);
const SILENT_SECONDS = 35, SOON_SECONDS = 900, SHORTEST_SECONDS = 120;

// Keeps the children of a list in step with items: `build` makes one, `fill` brings it up to date.
class List {
  constructor(element, build, fill) {
    this.element = element; this.build = build; this.fill = fill;
    this.parts = new Map();
  }
  show(items, key) {
    const wanted = new Set(items.map(key));
    for (const [name, part] of this.parts) if (!wanted.has(name)) { part.element.remove(); this.parts.delete(name); }
    let place = this.element.firstChild;
    for (const item of items) {
      let part = this.parts.get(key(item));
      if (!part) this.parts.set(key(item), part = this.build(item));
      if (part.element === place) place = place.nextSibling;
      else this.element.insertBefore(part.element, place);
      this.fill(part, item);
    }
  }
}

const jobList = now => new List($("#jobs ul"), () => {
  const part = {name: make("span", "name"), left: make("span", "left"), about: make("p"), more: make("p", "soft")};
  part.left.setAttribute("role", "timer");
  part.element = make("li", "", make("div", "line", part.name, part.left), part.about, part.more);
  return part;
}, (part, job) => {
  const left = job.walltime_end == null ? null : job.walltime_end - now();
  write(part.name, job.service || job.name || job.handle);
  write(part.left, left == null ? "" : left > 0 ? `${countdown(left)} left` : "time is up");
  part.left.classList.toggle("soon", left != null && left < SOON_SECONDS);
  const nodes = job.nodes ? `${job.nodes} node${job.nodes === 1 ? "" : "s"}` : "";
  write(part.about, [job.state && job.state.toLowerCase(), job.handle, nodes].filter(Boolean).join(" · "));
  const gateways = job.gateways || [];
  write(part.more, [
    gateways.length && `gateway ${gateways.join(", ")}`,
    job.predecessor && `took over from ${job.predecessor}`,
    job.successor && `hands over to ${job.successor}`, job.reason].filter(Boolean).join(" · "));
});

const countdown = total => {
  const s = Math.floor(total), pad = value => String(value).padStart(2, "0");
  const d = Math.floor(s / 86400), h = Math.floor(s / 3600) % 24;
  return `${d ? d + "d " : ""}${d ? pad(h) : h}:${pad(Math.floor(s / 60) % 60)}:${pad(s % 60)}`;
};

const seen = new IntersectionObserver(entries => {
  for (const entry of entries) {
    entry.target.inSight = entry.isIntersecting;
    if (entry.isIntersecting) entry.target.drawNow?.();
  }
}, {rootMargin: "200px"});

const modelList = range => new List($("#models .cards"), model => {
  const part = {name: make("h3"), states: make("span"), span: make("span", "span"), charts: CHARTS.map(kind => new Chart(kind)), shown: {}};
  part.element = make("article", "card", make("div", "line", part.name, part.states, part.span),
    make("div", "charts", ...part.charts.map(chart => chart.element)));
  part.element.setAttribute("aria-label", model.name);
  part.element.drawNow = () => {
    const {history, now: latest} = part.model, last = history[history.length - 1];
    const points = last && last.time >= latest.time ? history : [...history, latest];
    const to = points[points.length - 1].time, key = `${to} ${range()}`;
    if (part.drawn === key) return;
    part.drawn = key;
    const from = Math.max(to - range(), Math.min(points[0].time, to - SHORTEST_SECONDS)); // a young fleet fills its charts
    const minutes = Math.round((to - from) / 60);
    write(part.span, `last ${minutes < 120 ? minutes + " min" : Math.round(minutes / 60) + " h"}`);
    for (const chart of part.charts) chart.draw(points, from, to);
  };
  seen.observe(part.element);
  return part;
}, (part, model) => {
  part.model = model;
  write(part.name, model.name);
  const told = JSON.stringify(model.statuses);
  if (part.told !== told) {
    part.told = told;
    const states = Object.keys(model.statuses).sort((a, b) => severity(b) - severity(a));
    part.states.replaceChildren(...states.flatMap(state =>
      [make("span", `state ${STATES.includes(state) ? state : ""}`, `${model.statuses[state]} ${state}`), " "]));
    if (!states.length) part.states.textContent = "no instance";
  }
  if (part.element.inSight) part.element.drawNow();
});

const nodeList = (now, instances, choose) => new List($("#nodes ul"), () => {
  const part = {state: make("span", "state"), name: make("span", "name"), count: make("span")};
  part.button = make("button", "", part.state, part.name, part.count);
  part.button.type = "button";
  part.element = make("li", "", part.button);
  return part;
}, (part, node) => {
  const states = (node.instances || []).map(id => instances.get(id)?.status).filter(Boolean);
  const healthy = states.filter(state => state === "healthy").length;
  const worst = [...states].sort((a, b) => severity(a) - severity(b))[0] || "";
  const silent = now() - node.seen > SILENT_SECONDS;
  const told = `${worst} ${healthy} ${states.length} ${silent}`;
  if (part.told === told) return;
  part.told = told;
  part.state.className = `state ${STATES.includes(worst) ? worst : ""}`;
  write(part.name, node.name.replace(/^([A-Za-z][^.]*)\..*/, "$1"));
  write(part.count, `${healthy}/${states.length}`);
  part.button.classList.toggle("silent", silent);
  part.button.title = `${node.name}: ${healthy} of ${states.length} healthy` + (silent ? ", silent" : "") + (worst && worst !== "healthy" ? `, worst: ${worst}` : "");
  part.button.setAttribute("aria-label", `${part.button.title}; show its instances`);
  part.button.onclick = () => choose(node.name);
});

const mapList = () => new List($("#maps ul"), () => {
  const part = {text: make("p"), bar: make("progress"), failed: make("p")};
  part.element = make("li", "", part.text, part.bar, part.failed);
  return part;
}, (part, run) => {
  write(part.text, run.text || `${run.done} of ${run.total}`);
  part.bar.max = run.total || 1; part.bar.value = run.done;
  part.bar.setAttribute("aria-label", `${run.done} of ${run.total} done`);
  write(part.failed, [`on ${run.host}`, run.failed && `${number(run.failed)} failed`,
    run.rate && `${number(run.rate)} a second`, run.eta != null && `${duration(run.eta)} to go`].filter(Boolean).join(" · "));
});

// Errors that are alike are told once, with how many there are.
const alike = errors => {
  const groups = new Map();
  for (const error of errors) {
    const key = `${error.status} ${error.model} ${error.text.replace(/\d+/g, "#")}`;
    const group = groups.get(key) || {key, names: new Set()};
    groups.delete(key); // the newest last
    group.names.add(error.instance);
    groups.set(key, Object.assign(group, {error}));
  }
  return [...groups.values()].reverse();
};

const errorList = () => new List($("#errors ul"), () => {
  const part = {line: make("summary"), tail: make("pre"), plain: make("p")};
  part.tail.tabIndex = 0;
  part.details = make("details", "", part.line, part.tail);
  part.element = make("li", "", part.details, part.plain);
  return part;
}, (part, {error, names}) => {
  const others = names.size > 1 ? ` and ${names.size - 1} more` : "";
  const time = new Date(error.time * 1e3).toLocaleTimeString();
  const said = [make("span", "soft", time + "  "), make("span", `state ${STATES.includes(error.status) ? error.status : ""}`, error.status + "  "),
    make("b", "", error.instance + others), `: ${error.text}`];
  const told = `${error.number}${others}`, tail = (error.tail || []).join("\n");
  if (part.told === told) return;
  part.told = told;
  part.details.hidden = !tail; part.plain.hidden = Boolean(tail);
  (tail ? part.line : part.plain).replaceChildren(...said);
  write(part.tail, tail);
});

const some = names => names.slice(0, 3).join(", ") + (names.length > 3 ? ` and ${names.length - 3} more` : "");
const alertTexts = (state, now) => {
  const texts = [...(state.problems || [])];
  for (const status of ["failed", "unhealthy"]) {
    const names = [];
    for (const each of state.instances.values()) if (each.status === status) names.push(each.id);
    if (names.length) texts.push(`${status}: ${some(names)}`);
  }
  for (const model of state.models.values())
    if (model.instances && !model.statuses.healthy) texts.push(`${model.name} has no healthy instance`);
  for (const job of state.jobs.values()) {
    const left = job.walltime_end == null ? Infinity : job.walltime_end - now;
    if (left < SOON_SECONDS && !job.successor) texts.push(`${job.handle} ends in ${Math.max(0, Math.ceil(left / 60))} min, and nothing takes over`);
  }
  const silent = [...state.nodes.values()].filter(node => now - node.seen > SILENT_SECONDS).map(node => node.name);
  if (silent.length) texts.push(`no word from ${some(silent)}`);
  return texts;
};
