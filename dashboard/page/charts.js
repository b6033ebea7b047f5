"use strict";
// Draws the charts of a page from the JSON inside it. Text goes in as text nodes only, never as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 190;
const COLORS = 7;
const state = { smoothing: 0 };
const plots = [];

// --- elements

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function shape(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function short(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size && (size < 1e-4 || size >= 1e6)) return value.toExponential(2);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return value.toLocaleString("en", { maximumSignificantDigits: 4 });
}

// Three decimals, so that the values of a column line up; whole numbers as they are.
function fixed(value, signed = false) {
  if (value === null || value === undefined) return "–";
  const text = Number.isInteger(value) && !signed ? String(value) : value.toFixed(3);
  return (signed && value > 0 ? "+" : "") + text.replace("-", "\u2212");
}

// --- scales

function ticks(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(i * step);
  return found.map((value) => Number(value.toPrecision(12)));
}

function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value === null || value === undefined) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low > high || (low === 0 && high === 0)) return [0, 1];
  if (low === high) return [low - (Math.abs(low) * 0.1 || 0.5), high + (Math.abs(high) * 0.1 || 0.5)];
  return [low, high];
}

function smoothed(values, weight) {
  if (!weight) return values;
  let last = null;
  return values.map((value) => {
    if (value === null) return null;
    last = last === null ? value : weight * last + (1 - weight) * value;
    return last;
  });
}

// --- one chart

class Plot {
  constructor(figure) {
    this.figure = figure;
    this.group = figure.dataset.group;
    this.chart = data.charts[figure.dataset.chart];
    this.hidden = new Set();
    this.box = figure.querySelector(".plot");
    this.tip = element("div", { class: "tip", hidden: "" });
    figure.append(this.tip);
    this.at = null;
    this.makeLegend();
    new ResizeObserver(() => this.draw()).observe(this.box);
  }

  get series() { return this.chart.series.filter((_, i) => !this.hidden.has(i)); }

  makeLegend() {
    const legend = this.figure.querySelector(".legend");
    if (this.chart.series.length < 2) return;
    this.chart.series.forEach((series, i) => {
      const mark = shape("svg", { viewBox: "0 0 18 8", "aria-hidden": "true" },
        shape("line", { x1: 0, x2: 18, y1: 4, y2: 4, "stroke-width": 3, stroke: "currentColor",
          class: this.colorOf(series) + (series.dashed ? " dashed" : "") }));
      const button = element("button", { type: "button", "aria-pressed": "true" }, mark, series.name);
      button.addEventListener("click", () => {
        this.hidden.has(i) ? this.hidden.delete(i) : this.hidden.add(i);
        button.setAttribute("aria-pressed", String(!this.hidden.has(i)));
        this.draw();
      });
      legend.append(button);
    });
  }

  colorOf(series) { return "c" + (series.color % COLORS); }

  // Stacked charts: each series lies on the sum of those before it.
  stacked() {
    const base = {};
    return this.series.map((series) => {
      const low = series.y.map((_, i) => base[i] || 0);
      const high = series.y.map((value, i) => (base[i] = (base[i] || 0) + (value || 0)));
      return { low, high };
    });
  }

  draw() {
    const width = this.box.clientWidth;
    if (!width) return;
    const { chart } = this;
    this.layers = chart.kind === "lines" ? null : this.stacked();
    const values = this.layers
      ? this.layers.flatMap((layer) => [0, ...layer.high])
      : this.series.flatMap((series) => [...series.y, ...(series.low || []), ...(series.high || [])]);
    let [low, high] = extent(values);
    if (low > 0 && low < 0.4 * high) low = 0;
    const yTicks = ticks(low, high, 4);
    const names = yTicks.map(short);
    const left = 10 + 6.4 * Math.max(...names.map((name) => name.length), 2);
    const area = { left, right: width - 10, top: 10, bottom: HEIGHT - 34 };
    const [first, last] = extent(chart.series.flatMap((s) => [...s.x, ...(s.band_x || [])]).concat(chart.rules.map((r) => r[0])));
    this.x = (value) => area.left + ((value - first) / (last - first)) * (area.right - area.left);
    this.y = (value) => area.bottom - ((value - low) / (high - low)) * (area.bottom - area.top);
    this.area = area;
    const svg = shape("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, tabindex: "0", role: "img", "aria-label": this.summary() });
    this.axes(svg, yTicks, names, ticks(first, last, Math.max(2, Math.min(6, width / 80))));
    if (chart.kind === "bars") this.bars(svg);
    else if (chart.kind === "area") this.areas(svg);
    else this.lines(svg);
    this.rules(svg);
    this.cross = shape("line", { class: "cross", y1: area.top, y2: area.bottom, visibility: "hidden" });
    svg.append(this.cross);
    this.listen(svg);
    this.box.replaceChildren(svg);
  }

  summary() {
    const said = this.chart.series.map((series) => {
      const known = series.y.filter((value) => value !== null);
      return `${series.name} from ${short(known[0])} to ${short(known.at(-1))}`;
    });
    return `${this.chart.title}, ${this.chart.unit} against ${this.chart.x_label}: ${said.join("; ")}`;
  }

  axes(svg, yTicks, names, xTicks) {
    const { left, right, bottom } = this.area;
    yTicks.forEach((value, i) => {
      const y = this.y(value);
      svg.append(shape("line", { class: "grid", x1: left, x2: right, y1: y, y2: y }),
        shape("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, names[i]));
    });
    svg.append(shape("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }));
    for (const value of xTicks) {
      if (this.chart.x_label === "step" && !Number.isInteger(value)) continue;
      svg.append(shape("text", { x: this.x(value), y: bottom + 15, "text-anchor": "middle" }, short(value)));
    }
    svg.append(shape("text", { x: (left + right) / 2, y: bottom + 30, "text-anchor": "middle" }, this.chart.x_label));
  }

  path(xs, ys) {
    let text = "", pen = false;
    xs.forEach((x, i) => {
      if (ys[i] === null || ys[i] === undefined) { pen = false; return; }
      text += `${pen ? "L" : "M"}${this.x(x).toFixed(1)} ${this.y(ys[i]).toFixed(1)}`;
      pen = true;
    });
    return text;
  }

  between(xs, lows, highs) {
    const known = xs.map((x, i) => [x, lows[i], highs[i]]).filter(([, low, high]) => low !== null && high !== null);
    const point = (x, value) => `${this.x(x).toFixed(1)} ${this.y(value).toFixed(1)}`;
    if (!known.length) return "";
    const up = known.map(([x, low]) => point(x, low)), down = known.map(([x, , high]) => point(x, high)).reverse();
    return `M${[...up, ...down].join("L")}Z`;
  }

  lines(svg) {
    for (const series of this.series) {
      const color = this.colorOf(series), dashed = series.dashed ? " dashed" : "";
      if (series.low) svg.append(shape("path", { class: "band " + color, d: this.between(series.band_x || series.x, series.low, series.high) }));
      const line = smoothed(series.y, state.smoothing);
      if (state.smoothing) svg.append(shape("path", { class: "line raw " + color, d: this.path(series.x, series.y) }));
      svg.append(shape("path", { class: `line ${color}${dashed}`, d: this.path(series.x, line) }));
      series.y.forEach((value, i) => {  // a point between two gaps has no line to be seen by
        if (value === null || (series.y[i - 1] ?? null) !== null || (series.y[i + 1] ?? null) !== null) return;
        svg.append(shape("circle", { class: "dot " + color, cx: this.x(series.x[i]), cy: this.y(value), r: 2.5 }));
      });
    }
  }

  areas(svg) {
    this.series.forEach((series, n) => svg.append(shape("path", {
      class: "area " + this.colorOf(series), d: this.between(series.x, this.layers[n].low, this.layers[n].high) })));
  }

  bars(svg) {
    this.series.forEach((series, n) => series.y.forEach((value, i) => {
      if (!value) return;
      const { low, high } = this.layers[n], x = this.x(series.x[i]);
      svg.append(shape("rect", { class: "bar " + this.colorOf(series), x: x + 0.5, y: this.y(high[i]),
        width: Math.max(1, this.x(series.x[i + 1]) - x - 1), height: this.y(low[i]) - this.y(high[i]) }));
    }));
  }

  rules(svg) {
    for (const [value, name] of this.chart.rules) {
      const x = this.x(value), right = x > (this.area.left + this.area.right) / 2;
      svg.append(shape("line", { class: "rule", x1: x, x2: x, y1: this.area.top, y2: this.area.bottom }),
        shape("text", { class: "rule-text", x: x + (right ? -6 : 6), y: this.area.top + 8, "text-anchor": right ? "end" : "start" }, name));
    }
  }

  listen(svg) {
    svg.addEventListener("pointermove", (event) => this.show(this.nearest(event.clientX - svg.getBoundingClientRect().left)));
    svg.addEventListener("pointerleave", () => this.hide());
    svg.addEventListener("blur", () => this.hide());
    svg.addEventListener("keydown", (event) => {
      const count = this.steps().length, moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20 };
      let next = this.at ?? count - 1;
      if (event.key in moves) next += moves[event.key];
      else if (event.key === "Home") next = 0;
      else if (event.key === "End") next = count - 1;
      else { if (event.key === "Escape") this.hide(); return; }
      event.preventDefault();
      this.show(Math.min(count - 1, Math.max(0, next)));
    });
  }

  // The longest series says where values can be read.
  steps() {
    const longest = this.series.reduce((best, s) => (s.x.length > best.length ? s.x : best), []);
    return this.chart.kind === "bars" ? longest.slice(0, -1) : longest;
  }

  nearest(pixel) {
    const steps = this.steps();
    let best = 0;
    const shift = this.chart.kind === "bars" && steps.length > 1 ? (this.x(steps[1]) - this.x(steps[0])) / 2 : 0;
    steps.forEach((x, i) => { if (Math.abs(this.x(x) + shift - pixel) < Math.abs(this.x(steps[best]) + shift - pixel)) best = i; });
    return best;
  }

  show(index) {
    const steps = this.steps();
    if (!steps.length) return;
    this.at = index;
    const step = steps[index];
    const head = this.chart.kind === "bars" ? `${short(step)} to ${short(this.series[0].x[index + 1])}` : `${this.chart.x_label} ${short(step)}`;
    this.tip.replaceChildren(element("b", {}, head));
    for (const series of this.series) this.tip.append(element("div", {}, this.reading(series, step)));
    this.tip.hidden = false;
    const x = this.x(step), half = this.figure.clientWidth / 2;
    this.tip.style.top = `${this.box.offsetTop + 8}px`;
    this.tip.style.left = x < half ? `${x + 24}px` : "auto";
    this.tip.style.right = x < half ? "auto" : `${this.figure.clientWidth - x}px`;
    for (const other of plots) if (other.group === this.group) other.mark(step);
  }

  reading(series, step) {
    const i = series.x.indexOf(step), value = i < 0 ? null : series.y[i];
    let text = `${series.name}: ${short(value)}`;
    const b = series.low ? (series.band_x || series.x).indexOf(step) : -1;
    if (b >= 0 && series.low[b] !== null) text += ` (${short(series.low[b])} to ${short(series.high[b])})`;
    return text;
  }

  mark(step) {
    if (!this.cross) return;
    const x = this.x(step), inside = x >= this.area.left - 1 && x <= this.area.right + 1;
    this.cross.setAttribute("visibility", inside ? "visible" : "hidden");
    if (inside) { this.cross.setAttribute("x1", x); this.cross.setAttribute("x2", x); }
  }

  hide() {
    this.at = null;
    this.tip.hidden = true;
    for (const other of plots) if (other.group === this.group && other.cross) other.cross.setAttribute("visibility", "hidden");
  }
}

