"use strict";
// Small line charts over time. A series is {label, of: point -> number or null}.

const WIDTH = 300, HEIGHT = 64, GAP_SECONDS = 150;

const number = value => value == null ? "–" : value >= 1e6 ? (value / 1e6).toFixed(1) + "M"
  : value >= 1e4 ? (value / 1e3).toFixed(0) + "k" : value >= 100 || Number.isInteger(value) ? value.toFixed(0) : value.toFixed(1);
const percent = value => value == null ? "–" : (value * 100).toFixed(value < .1 ? 1 : 0) + " %";
const seconds = value => value == null ? "–" : value < .001 ? (value * 1e6).toFixed(0) + " µs" : value < 1
  ? (value * 1e3).toFixed(value < .01 ? 1 : 0) + " ms" : value.toFixed(value < 10 ? 2 : 1) + " s";

const quantiles = of => ["p50", "p90", "p99"].map(share => ({label: share, of: point => of(point)?.[share]}));
const CHARTS = [
  {title: "Tokens/s", format: number, series: [
    {label: "generated", of: p => p.generation_rate}, {label: "prompt", of: p => p.prompt_rate}]},
  {title: "Requests", format: number, series: [
    {label: "running", of: p => p.running}, {label: "waiting", of: p => p.waiting}]},
  {title: "KV cache in use", format: percent, least: 1, series: [{label: "mean", of: p => p.kv_cache}]},
  {title: "Time to first token", format: seconds, series: quantiles(p => p.first_token)},
  {title: "Time between tokens", format: seconds, series: quantiles(p => p.inter_token)},
];

const make = (tag, className, ...children) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
};
const drawn = (tag, attributes) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const name in attributes) element.setAttribute(name, attributes[name]);
  return element;
};
// Touches the page only where something changed.
const write = (element, text) => { if (element.textContent !== text) element.textContent = text; };

class Chart {
  constructor(kind) {
    this.kind = kind;
    this.points = [];
    this.when = make("b");
    this.values = kind.series.map((_, index) => make("span", `value s${index}`));
    this.most = make("span", "most");
    this.paths = kind.series.map((_, index) => drawn("path", {class: `s${index}`}));
    this.cursor = drawn("line", {y1: 0, y2: HEIGHT, visibility: "hidden"});
    this.svg = drawn("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true"});
    this.svg.append(...this.paths, this.cursor);
    const plot = make("div", "plot", this.svg, this.most);
    this.element = make("figure", "", make("figcaption", "", make("span", "what", this.when, kind.title), ...this.values), plot);
    this.element.tabIndex = 0;
    this.element.setAttribute("role", "img");
    this.at = null; // index of the point that is looked at
    plot.addEventListener("pointermove", event => this.lookAt(event.offsetX / (plot.clientWidth || 1)));
    plot.addEventListener("pointerleave", () => this.look(null));
    this.element.addEventListener("blur", () => this.look(null));
    this.element.addEventListener("keydown", event => this.key(event));
  }

  draw(points, from, to) {
    const first = points.findIndex(point => point.time >= from);
    this.points = first < 0 ? [] : points.slice(first);
    this.from = from; this.to = to;
    const columns = this.kind.series.map(series => this.points.map(series.of));
    let most = 0;
    for (const column of columns) for (const value of column) if (value > most) most = value;
    const top = Math.max(most, this.kind.least || 0) || 1;
    columns.forEach((column, index) => this.paths[index].setAttribute("d", this.path(column, top)));
    write(this.most, most || this.kind.least ? this.kind.format(top) : "");
    const ranges = columns.map((column, index) => {
      const known = column.filter(value => value != null);
      if (!known.length) return `${this.kind.series[index].label}: nothing known`;
      const format = this.kind.format;
      return `${this.kind.series[index].label} now ${format(column[column.length - 1])}, ` +
        `${format(Math.min(...known))} to ${format(Math.max(...known))}`;
    });
    this.summary = `${this.kind.title}, last ${Math.round((to - from) / 60)} minutes: ${ranges.join("; ")}`;
    this.look(this.at);
  }

  x(time) { return (time - this.from) / (this.to - this.from) * WIDTH; }

  path(column, top) {
    let path = "", last = null;
    column.forEach((value, index) => {
      if (value == null) { last = null; return; }
      const time = this.points[index].time;
      const joined = last != null && time - last < GAP_SECONDS;
      path += `${joined ? "L" : "M"}${this.x(time).toFixed(1)} ${(HEIGHT - 1 - value / top * (HEIGHT - 4)).toFixed(1)}`;
      if (!joined) path += "h.01"; // a point alone is seen too
      last = time;
    });
    return path;
  }

  lookAt(share) {
    const wanted = this.from + share * (this.to - this.from);
    let best = null;
    this.points.forEach((point, index) => {
      if (best == null || Math.abs(point.time - wanted) < Math.abs(this.points[best].time - wanted)) best = index;
    });
    this.look(best);
  }

  key(event) {
    const step = {ArrowLeft: -1, ArrowRight: 1, PageUp: -12, PageDown: 12}[event.key];
    if (event.key === "Escape") return this.look(null);
    if (!step || !this.points.length) return;
    event.preventDefault();
    const at = this.at == null ? this.points.length : this.at;
    this.look(Math.max(0, Math.min(this.points.length - 1, at + step)));
  }

  look(at) {
    if (at != null && at >= this.points.length) at = null;
    this.at = at;
    const point = at == null ? this.points[this.points.length - 1] : this.points[at];
    const told = this.kind.series.map(series => `${series.label} ${this.kind.format(point && series.of(point))}`);
    told.forEach((text, index) => write(this.values[index], text));
    const when = at == null ? "" : new Date(point.time * 1e3).toLocaleTimeString();
    write(this.when, when);
    this.cursor.setAttribute("visibility", at == null ? "hidden" : "visible");
    if (at != null) for (const end of ["x1", "x2"]) this.cursor.setAttribute(end, this.x(point.time));
    this.element.setAttribute("aria-label", at == null ? this.summary || this.kind.title : `${when}: ${told.join(", ")}`);
  }
}
