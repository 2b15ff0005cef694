// The table of instances: only the rows in sight are in the page, and of these only what changed is touched.

const STATES = ["failed", "unhealthy", "draining", "starting", "pending", "stopped", "healthy"]; // worst first
const ROW = 33, SPARE_ROWS = 6;
const severity = status => { const at = STATES.indexOf(status); return at < 0 ? 4 : at; };
const duration = total => {
  if (total == null) return "–";
  const s = Math.max(0, Math.round(total)), m = Math.floor(s / 60), h = Math.floor(m / 60), d = Math.floor(h / 24);
  return d ? `${d}d ${h % 24}h` : h ? `${h}h ${String(m % 60).padStart(2, "0")}m`
    : m ? `${m}m ${String(s % 60).padStart(2, "0")}s` : `${s}s`;
};
const load = each => each.load || {};
const collator = new Intl.Collator("en", {numeric: true});

const COLUMNS = [
  {key: "status", title: "State", width: "7.5rem", of: i => severity(i.status), text: i => i.status},
  {key: "id", title: "Instance", width: "28%", text: i => i.id},
  {key: "model", title: "Model", width: "20%", hide: "middle", text: i => i.model},
  {key: "node", title: "Node", width: "14%", hide: "middle", text: i => i.node},
  {key: "since", title: "For", width: "6.2rem", number: true, of: i => -(i.since ?? 0), text: (i, now) => i.since ? duration(now - i.since) : "–"},
  {key: "running", title: "Running", width: "5.4rem", number: true, hide: "middle", of: i => load(i).running, text: i => number(load(i).running)},
  {key: "waiting", title: "Waiting", width: "5.4rem", number: true, hide: "wide", of: i => load(i).waiting, text: i => number(load(i).waiting)},
  {key: "kv", title: "KV", width: "4.6rem", number: true, hide: "wide", of: i => load(i).kv_cache, text: i => percent(load(i).kv_cache)},
  {key: "rate", title: "Tokens/s", width: "5.6rem", number: true, hide: "middle", of: i => load(i).generation_rate, text: i => number(load(i).generation_rate)},
  {key: "restarts", title: "Restarts", width: "5.4rem", number: true, hide: "wide", of: i => i.restarts, text: i => String(i.restarts || 0)},
  {key: "reason", title: "Reason", width: "32%", hide: "wide", text: i => i.reason || ""},
];

class Table {
  constructor(section, instances, now, open) {
    this.instances = instances; // Map by id
    this.now = now;
    this.scroll = section.querySelector(".scroll");
    this.body = section.querySelector("tbody");
    this.table = section.querySelector("table");
    this.sort = {column: COLUMNS[0], down: false};
    this.filter = {text: "", state: "", model: ""};
    this.rows = new Map(); // id -> tr
    this.order = []; // ids that pass the filter, sorted
    this.ranks = new Map(); // id -> place by name
    this.above = this.space(); this.below = this.space();
    this.body.append(this.above, this.below);
    this.heads(section.querySelector("thead tr"));
    this.scroll.addEventListener("scroll", () => requestAnimationFrame(() => this.show()), {passive: true});
    new ResizeObserver(() => this.show()).observe(this.scroll);
    this.body.addEventListener("click", event => {
      const row = event.target.closest("tr[data-id]");
      if (row) open(row.dataset.id);
    });
  }

  space() {
    const row = make("tr", "space", make("td"));
    row.setAttribute("aria-hidden", "true");
    return row;
  }

  heads(row) {
    for (const column of COLUMNS) {
      const button = make("button", "", column.title);
      button.type = "button";
      const head = make("th", [column.hide, column.number && "number"].filter(Boolean).join(" "), button);
      head.scope = "col";
      head.style.width = column.width;
      column.head = head;
      button.addEventListener("click", () => {
        this.sort = {column, down: this.sort.column === column ? !this.sort.down : Boolean(column.number)};
        this.arrange();
      });
      row.append(head);
    }
  }

  // After ids, states or figures changed: who is shown, in which order.
  arrange() {
    if (this.ranks.size !== this.instances.size || [...this.instances.keys()].some(id => !this.ranks.has(id)))
      this.ranks = new Map([...this.instances.keys()].sort(collator.compare).map((id, rank) => [id, rank]));
    const {text, state, model} = this.filter, words = text.toLowerCase().split(/\s+/).filter(Boolean);
    const passes = each => (!state || each.status === state) && (!model || each.model === model) && words.every(word =>
      `${each.id} ${each.model} ${each.node} ${each.host} ${each.job} ${each.type} ${each.status} ${each.reason}`.toLowerCase().includes(word));
    const {column, down} = this.sort, sign = down ? -1 : 1;
    const found = [];
    for (const each of this.instances.values()) if (passes(each)) found.push({
      id: each.id, rank: this.ranks.get(each.id),
      value: column.key === "id" ? 0 : column.of ? column.of(each) ?? -Infinity : (column.text(each) || "￿")});
    const compare = column.of || column.key === "id" ? (a, b) => a - b : collator.compare;
    found.sort((a, b) => sign * (compare(a.value, b.value) || 0) || (column.key === "id" ? sign : 1) * (a.rank - b.rank));
    this.order = found.map(each => each.id);
    for (const each of COLUMNS) {
      if (each === column) each.head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else each.head.removeAttribute("aria-sort");
    }
    this.table.setAttribute("aria-rowcount", this.order.length + 1);
    this.show();
  }

  // Brings the rows in sight into the page.
  show() {
    const height = this.scroll.clientHeight || 600;
    const first = Math.max(0, Math.min(Math.floor(this.scroll.scrollTop / ROW) - SPARE_ROWS, this.order.length));
    const ids = this.order.slice(first, first + Math.ceil(height / ROW) + 2 * SPARE_ROWS);
    const focused = document.activeElement?.closest?.("tr[data-id]")?.dataset.id;
    const wanted = new Set(ids);
    for (const [id, row] of this.rows) if (!wanted.has(id)) { row.remove(); this.rows.delete(id); }
    this.stretch(this.above, first * ROW);
    this.stretch(this.below, Math.max(0, this.order.length - first - ids.length) * ROW);
    let place = this.above.nextSibling;
    ids.forEach((id, index) => {
      let row = this.rows.get(id);
      if (!row) this.rows.set(id, row = this.row(id));
      if (row === place) place = place.nextSibling;
      else this.body.insertBefore(row, place);
      if (row.ariaRowIndex !== String(first + index + 2)) row.ariaRowIndex = String(first + index + 2);
      this.fill(row);
    });
    if (focused && this.rows.has(focused)) {
      const button = this.rows.get(focused).querySelector("button");
      if (document.activeElement !== button) button.focus({preventScroll: true});
    }
  }

  stretch(space, height) {
    const text = `${height}px`;
    if (space.firstChild.style.height !== text) space.firstChild.style.height = text;
  }

  row(id) {
    const row = make("tr");
    row.dataset.id = id;
    row.cells_ = COLUMNS.map(column => {
      const cell = make(column.key === "id" ? "th" : "td", [column.hide, column.number && "number"].filter(Boolean).join(" "));
      if (column.key === "id") { cell.scope = "row"; cell.append(make("button")); cell.firstChild.type = "button"; }
      row.append(cell);
      return {cell, target: column.key === "id" ? cell.firstChild : cell, text: null};
    });
    return row;
  }

  fill(row) {
    const each = this.instances.get(row.dataset.id), now = this.now();
    if (!each) return;
    COLUMNS.forEach((column, index) => {
      const text = column.text(each, now), known = row.cells_[index];
      if (known.text === text) return;
      known.text = known.target.textContent = text;
      if (column.key === "status") known.cell.className = `state ${STATES.includes(text) ? text : ""}`;
      if (!column.number && column.key !== "status") known.cell.title = text;
    });
  }

  // Of those in sight: what changed, and how long it has been so.
  refresh(changed) {
    for (const [id, row] of this.rows) if (!changed || changed.has(id)) this.fill(row);
  }

  flash(ids) {
    for (const id of ids) {
      const row = this.rows.get(id);
      if (!row) continue;
      row.classList.remove("flash");
      requestAnimationFrame(() => row.classList.add("flash"));
    }
  }
}
