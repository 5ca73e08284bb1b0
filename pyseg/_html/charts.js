// Charts of curves and points: hover, zoom, a legend that hides series, and a search for points.
//
// A chart's data: {kind: "lines" | "points", x, y: labels, series: [{name, color, x, y, names?, pale?,
// step?, marks?, low?, high?}], log: [x, y], domain?: [[x0, x1], [y0, y1]], borders?: [{x, color}], search?}.

const MARGIN = { left: 52, right: 14, top: 10, bottom: 42 };

class Scale {
  constructor(domain, range, log) {
    this.domain = domain;
    this.range = range;
    this.log = log;
    this.low = log ? Math.log(domain[0]) : domain[0];
    this.high = log ? Math.log(domain[1]) : domain[1];
  }

  at(value) {
    const place = ((this.log ? Math.log(value) : value) - this.low) / (this.high - this.low || 1);
    return this.range[0] + place * (this.range[1] - this.range[0]);
  }

  invert(pixel) {
    const value = this.low + ((pixel - this.range[0]) / (this.range[1] - this.range[0])) * (this.high - this.low);
    return this.log ? Math.exp(value) : value;
  }

  ticks(count) {
    const [low, high] = this.domain;
    if (this.log && high / low >= 3) {
      const found = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
        for (const factor of [1, 2, 5]) {
          const tick = Number((factor * 10 ** power).toPrecision(3));
          if (tick >= low && tick <= high) found.push(tick);
        }
      }
      const whole = found.filter((tick) => Number.isInteger(Number(Math.log10(tick).toFixed(9))));
      return found.length > 1.5 * count && whole.length > 1 ? whole : found;
    }
    const rough = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
    return found;
  }
}

// Ticks of a linear axis have equally many decimals.
function tickText(tick, ticks, scale) {
  if (scale.log) return number(tick);
  const digits = Math.max(...ticks.map((other) => (String(other).split(".")[1] ?? "").length));
  return tick.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

class Chart {
  constructor(figure, data) {
    this.figure = figure;
    this.data = data;
    this.hidden = new Set();
    this.log = [...data.log];
    this.found = "";
    this.zoomed = null;
    this.current = null;
    this.plot = figure.querySelector(".plot");
    this.svg = draw("svg", { tabindex: 0, role: "application", "aria-label": `${figure.getAttribute("aria-label")}. Arrow keys read the values.` });
    this.plot.replaceChildren(this.svg);
    this.buildTools();
    this.listen();
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }

  get visible() {
    return this.data.series.filter((_, place) => !this.hidden.has(place));
  }

  buildTools() {
    const { data } = this;
    const tools = make("div", { class: "tools" });
    if (data.search) {
      const input = make("input", { type: "search", placeholder: "find a class", "aria-label": "Find a class in the chart", size: 14 });
      input.addEventListener("input", () => {
        this.found = input.value.trim().toLowerCase();
        this.draw();
      });
      tools.append(input);
    }
    if (data.kind === "lines" && data.series.every((s) => s.y.every((y) => y === null || y > 0)) && !data.domain) {
      const toggle = toolButton("log", "Logarithmic values", () => {
        this.log[1] = !this.log[1];
        this.zoomed = null;
        toggle.setAttribute("aria-pressed", this.log[1]);
        this.draw();
      });
      toggle.setAttribute("aria-pressed", this.log[1]);
      tools.append(toggle);
    }
    this.reset = toolButton("reset", "Show everything", () => this.zoomTo(null));
    tools.append(toolButton("+", "Zoom in", () => this.zoomBy(0.5)), toolButton("−", "Zoom out", () => this.zoomBy(2)), this.reset);
    this.figure.querySelector(".figure-head").append(tools);
    const named = data.series.map((series, place) => [series, place]).filter(([series]) => series.name && !series.pale);
    if (named.length < 2 && !data.legend) return;
    const legend = make("div", { class: "legend" });
    for (const [series, place] of named) {
      const key = make("button", { type: "button", "aria-pressed": "true", title: "Show or hide" }, swatch(`var(--c${series.color})`), series.name);
      key.addEventListener("click", () => {
        for (const [other, index] of data.series.map((s, i) => [s, i])) {
          if (index !== place && !(other.pale && other.name === series.name)) continue;
          if (this.hidden.has(index)) this.hidden.delete(index);
          else this.hidden.add(index);
        }
        key.setAttribute("aria-pressed", !this.hidden.has(place));
        this.draw();
      });
      legend.append(key);
    }
    this.plot.before(legend);
  }

  listen() {
    const { svg } = this;
    let begin = null;
    svg.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      begin = this.place(event);
      svg.setPointerCapture(event.pointerId);
    });
    svg.addEventListener("pointermove", (event) => {
      const at = this.place(event);
      if (begin) this.showBox(begin, at);
      else this.hover(at, event);
    });
    svg.addEventListener("pointerup", (event) => {
      const at = this.place(event);
      if (begin && Math.hypot(at[0] - begin[0], at[1] - begin[1]) > 6) this.zoomToBox(begin, at);
      else this.hover(at, event);
      begin = null;
      this.box?.remove();
    });
    svg.addEventListener("pointercancel", () => {
      begin = null;
      this.box?.remove();
    });
    svg.addEventListener("pointerleave", () => this.clearHover());
    svg.addEventListener("blur", () => this.clearHover());
    svg.addEventListener("dblclick", () => this.zoomTo(null));
    svg.addEventListener("keydown", (event) => this.key(event));
  }

  place(event) {
    const box = this.svg.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  bounds(axis) {
    const { data } = this;
    if (data.domain?.[axis]) return data.domain[axis];
    let [low, high] = [Infinity, -Infinity];
    for (const series of this.visible) {
      for (const value of axis ? series.y : series.x) {
        if (value === null || (this.log[axis] && value <= 0)) continue;
        low = Math.min(low, value);
        high = Math.max(high, value);
      }
    }
    if (low > high) return this.log[axis] ? [1, 10] : [0, 1];
    if (this.log[axis]) return low === high ? [low / 2, high * 2] : [low * (low / high) ** 0.05, high * (high / low) ** 0.05];
    if (data.fromZero?.[axis]) low = Math.min(0, low);
    const room = (high - low || Math.abs(high) || 1) * 0.06;
    return [data.fromZero?.[axis] && low === 0 ? 0 : low - room, high + room];
  }

  draw() {
    const width = Math.floor(this.plot.clientWidth);
    if (!width) return;
    const height = Math.round(clamp(width * 0.6, 240, 380));
    const inner = [MARGIN.left, width - MARGIN.right, MARGIN.top, height - MARGIN.bottom];
    const [xDomain, yDomain] = this.zoomed ?? [this.bounds(0), this.bounds(1)];
    this.x = new Scale(xDomain, [inner[0], inner[1]], this.log[0]);
    this.y = new Scale(yDomain, [inner[3], inner[2]], this.log[1]);
    this.inner = inner;
    this.reset.disabled = !this.zoomed;
    const id = `clip-${this.figure.id}`;
    const clip = draw("clipPath", { id }, draw("rect", { x: inner[0] - 4, y: inner[2] - 4, width: inner[1] - inner[0] + 8, height: inner[3] - inner[2] + 8 }));
    const marks = draw("g", { "clip-path": `url(#${id})` });
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.setAttribute("height", height);
    this.svg.replaceChildren(clip, this.axes(width, height), marks);
    for (const border of this.data.borders ?? []) {
      const x = this.x.at(border.x);
      marks.append(draw("line", { class: "border", x1: x, x2: x, y1: inner[2], y2: inner[3], stroke: `var(--c${border.color})` }));
    }
    for (const series of this.visible) marks.append(...this.shapes(series));
    this.cursor = draw("g");
    this.svg.append(this.cursor);
  }

  axes(width, height) {
    const [left, right, top, bottom] = this.inner;
    const group = draw("g");
    const columns = this.x.ticks(clamp(width / 90, 3, 8));
    const rows = this.y.ticks(clamp(height / 50, 3, 7));
    for (const tick of columns) {
      const x = this.x.at(tick);
      group.append(draw("line", { class: "grid", x1: x, x2: x, y1: top, y2: bottom }));
      group.append(draw("text", { x, y: bottom + 17, "text-anchor": "middle" }, tickText(tick, columns, this.x)));
    }
    for (const tick of rows) {
      const y = this.y.at(tick);
      group.append(draw("line", { class: "grid", x1: left, x2: right, y1: y, y2: y }));
      group.append(draw("text", { x: left - 7, y: y + 4, "text-anchor": "end" }, tickText(tick, rows, this.y)));
    }
    group.append(draw("path", { class: "axis", d: `M${left} ${top}V${bottom}H${right}`, fill: "none" }));
    group.append(draw("text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, this.data.x));
    return group;
  }

  shapes(series) {
    const color = `var(--c${series.color})`;
    const points = series.x.map((x, i) => [this.x.at(x), series.y[i] === null || (this.log[1] && series.y[i] <= 0) ? null : this.y.at(series.y[i])]);
    if (this.data.kind === "points") return this.dots(series, points, color);
    let path = "";
    let down = false;
    for (const [x, y] of points) {
      if (y === null) down = false;
      else {
        path += !down ? `M${x.toFixed(1)} ${y.toFixed(1)}` : series.step ? `V${y.toFixed(1)}H${x.toFixed(1)}` : `L${x.toFixed(1)} ${y.toFixed(1)}`;
        down = true;
      }
    }
    const shapes = [draw("path", { d: path, fill: "none", stroke: color, "stroke-width": series.pale ? 1 : 2, "stroke-opacity": series.pale ? 0.35 : 1, "stroke-linejoin": "round" })];
    for (const [i, low] of (series.low ?? []).entries()) {
      const x = points[i][0];
      shapes.push(draw("path", { class: "interval", d: `M${x.toFixed(1)} ${this.y.at(low).toFixed(1)}V${this.y.at(series.high[i]).toFixed(1)}`, stroke: color, "stroke-opacity": 0.6 }));
    }
    if (series.marks || points.length === 1) {
      for (const [x, y] of points) if (y !== null) shapes.push(draw("circle", { cx: x, cy: y, r: 4, fill: color }));
    }
    return shapes;
  }

  dots(series, points, color) {
    const dots = points.map(([x, y]) => (y === null ? "" : `M${x.toFixed(1)} ${y.toFixed(1)}h0`)).join("");
    const shapes = [draw("path", { d: dots, stroke: color, "stroke-width": 8, "stroke-linecap": "round", "stroke-opacity": this.found ? 0.25 : 0.65 })];
    if (!this.found) return shapes;
    const labels = []; // where there is room
    points.forEach(([x, y], i) => {
      if (y === null || !series.names[i].toLowerCase().includes(this.found)) return;
      shapes.push(draw("circle", { cx: x, cy: y, r: 5, fill: color, stroke: "var(--text)" }));
      if (!labels.some(([a, b]) => Math.abs(a - x) < 130 && Math.abs(b - y) < 14)) {
        labels.push([x, y]);
        const left = x < (this.inner[0] + this.inner[1]) / 2;
        shapes.push(draw("text", { class: "note", x: x + (left ? 9 : -9), y: y + 4, "text-anchor": left ? "start" : "end" }, series.names[i].slice(0, 40)));
      }
    });
    return shapes;
  }

  showBox(a, b) {
    const [left, right, top, bottom] = this.inner;
    this.clearHover();
    this.box?.remove();
    const flat = Math.abs(a[1] - b[1]) < 16;
    const x = [a[0], b[0]].map((v) => clamp(v, left, right)).sort((p, q) => p - q);
    const y = flat ? [top, bottom] : [a[1], b[1]].map((v) => clamp(v, top, bottom)).sort((p, q) => p - q);
    this.box = draw("rect", { class: "box", x: x[0], y: y[0], width: x[1] - x[0], height: y[1] - y[0] });
    this.svg.append(this.box);
    return [x, y];
  }

  zoomToBox(a, b) {
    const [x, y] = this.showBox(a, b);
    if (x[1] - x[0] < 4 || y[1] - y[0] < 4) return;
    this.zoomTo([x.map((v) => this.x.invert(v)), [this.y.invert(y[1]), this.y.invert(y[0])]]);
  }

  zoomTo(domain) {
    this.zoomed = domain;
    this.figure.dataset.zoomed = domain ? "true" : "false";
    this.clearHover();
    this.draw();
  }

  zoomBy(factor) {
    const around = (scale) => {
      const [a, b] = scale.range;
      const middle = (a + b) / 2;
      return [scale.invert(middle + (a - middle) * factor), scale.invert(middle + (b - middle) * factor)];
    };
    this.zoomTo([around(this.x), around(this.y)]);
  }

  // The index of the point of a series that is nearest to a pixel, by x.
  nearest(series, pixel) {
    let best = -1;
    let least = Infinity;
    for (let i = 0; i < series.x.length; i++) {
      const distance = Math.abs(this.x.at(series.x[i]) - pixel);
      if (distance < least && series.y[i] !== null) [best, least] = [i, distance];
    }
    return best;
  }

  hover([px, py], event) {
    const [left, right, top, bottom] = this.inner;
    if (px < left - 8 || px > right + 8 || py < top - 8 || py > bottom + 8) return this.clearHover();
    if (this.data.kind === "points") {
      let [best, least] = [null, 28];
      for (const series of this.visible) {
        for (let i = 0; i < series.x.length; i++) {
          const distance = Math.hypot(this.x.at(series.x[i]) - px, this.y.at(series.y[i]) - py);
          if (distance < least) [best, least] = [[series, i], distance];
        }
      }
      return best ? this.showPoint(...best, event) : this.clearHover();
    }
    const series = this.visible.find((s) => !s.pale && s.x.length);
    if (series) this.showColumn(series.x[this.nearest(series, px)], event);
  }

  showPoint(series, i, event) {
    this.current = [series, i];
    const [x, y] = [this.x.at(series.x[i]), this.y.at(series.y[i])];
    this.cursor.replaceChildren(draw("circle", { class: "ring", cx: x, cy: y, r: 7 }));
    const values = `${this.data.y}: ${number(series.y[i])}\n${this.data.x}: ${number(series.x[i])}`;
    this.tipAt(x, y, event, make("b", {}, series.names[i]), series.notes ? `${values}\n${series.notes[i]}` : values, ...(this.visible.length > 1 ? ["\n", series.name] : []));
  }

  showColumn(value, event) {
    const x = this.x.at(value);
    if (!Number.isFinite(x)) return;
    this.current = value;
    this.cursor.replaceChildren(draw("line", { class: "cursor", x1: x, x2: x, y1: this.inner[2], y2: this.inner[3] }));
    const lines = [make("b", {}, `${this.data.x} ${number(value)}`)];
    let height = this.inner[3];
    for (const series of this.visible) {
      const i = this.nearest(series, x);
      if (i < 0 || series.pale) continue;
      const y = this.y.at(series.y[i]);
      height = Math.min(height, y);
      this.cursor.append(draw("circle", { class: "ring", cx: this.x.at(series.x[i]), cy: y, r: 5 }));
      const where = series.x[i] === value ? "" : ` at ${number(series.x[i])}`;
      const text = `${series.name || this.data.y}: ${number(series.y[i])}${where}${series.names ? ` (${series.names[i]})` : ""}`;
      lines.push(make("div", {}, swatch(`var(--c${series.color})`), text));
    }
    this.tipAt(x, height, event, ...lines);
  }

  tipAt(x, y, event, ...content) {
    const box = this.svg.getBoundingClientRect();
    showTip(event?.clientX ?? box.left + x, event?.clientY ?? box.top + y, ...content);
  }

  clearHover() {
    this.current = null;
    this.cursor?.replaceChildren();
    hideTip();
  }

  key(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) this.stepBy(step);
    else if (event.key === "+" || event.key === "=") this.zoomBy(0.5);
    else if (event.key === "-") this.zoomBy(2);
    else if (event.key === "0" || event.key === "Escape") this.zoomTo(null);
    else return;
    event.preventDefault();
  }

  stepBy(step) {
    const series = Array.isArray(this.current) ? this.current[0] : this.visible.find((s) => !s.pale && s.x.length);
    if (!series) return;
    const order = series.x.map((_, i) => i).filter((i) => series.y[i] !== null).sort((a, b) => series.x[a] - series.x[b]);
    const value = Array.isArray(this.current) ? this.current[1] : order.find((i) => series.x[i] === this.current);
    const at = value === undefined ? (step > 0 ? 0 : order.length - 1) : clamp(order.indexOf(value) + step, 0, order.length - 1);
    if (this.data.kind === "points") this.showPoint(series, order[at]);
    else this.showColumn(series.x[order[at]]);
  }
}
