// Scores of classes over time, one strip a class, with a playhead, events, ratings and thumbnails.
//
// The data: {duration, starts, ends: base64 of uint32 (S), milliseconds, scores: base64 of uint8 (C, S),
// names: C texts, ratings: [[class, start, end, positive]], events: [[class, start, end, peak]], by time,
// thumbnails: [[time, source, width]]}. Times without a unit are seconds.

const FIRST_ROWS = 60;

function bytesOf(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

function secondsOf(text) {
  const view = new DataView(bytesOf(text).buffer);
  return Float64Array.from({ length: view.byteLength / 4 }, (_, i) => view.getUint32(4 * i, true) / 1000);
}

class Strips {
  constructor(root, data, video = null) {
    this.root = root;
    this.video = video;
    this.names = data.names;
    this.duration = Math.max(data.duration, 0.001);
    this.starts = secondsOf(data.starts);
    this.ends = secondsOf(data.ends);
    const scores = bytesOf(data.scores);
    const count = this.starts.length;
    this.scores = data.names.map((_, row) => scores.subarray(row * count, (row + 1) * count));
    this.peaks = this.scores.map((row) => row.reduce((a, b) => Math.max(a, b), 0) / 255);
    const byClass = (items) => data.names.map((_, row) => items.filter((item) => item[0] === row));
    this.events = byClass(data.events);
    this.ratings = byClass(data.ratings);
    this.thumbnails = data.thumbnails;
    this.time = 0;
    this.view = [0, this.duration];
    this.shown = FIRST_ROWS;
    this.listeners = [];
    this.firsts = data.names.map((_, row) => this.events[row][0]?.[1] ?? this.duration + 1);
    this.build();
    this.arrange();
    new ResizeObserver(() => this.refresh()).observe(root);
    onThemeChange.push(() => {
      this.colors = null;
      this.refresh();
    });
    if (video) this.follow();
  }

  build() {
    const count = this.names.length;
    this.search = make("input", { type: "search", class: "grow", placeholder: "Search classes", "aria-label": "Search classes", oninput: () => this.arrange() });
    this.order = make("select", { "aria-label": "Order of the classes", onchange: () => this.arrange() },
      make("option", { value: "peak" }, "highest score first"), make("option", { value: "first" }, "first event first"),
      make("option", { value: "name" }, "by name"), make("option", { value: "given" }, "as given"));
    this.status = make("span", { class: "soft", role: "status" });
    this.fit = toolButton("fit", "Show the whole video", () => this.show(0, this.duration));
    const tools = make("div", { class: "bar-row" }, ...(count > 1 ? [this.search, this.order, this.status] : []),
      make("div", { class: "tools" }, toolButton("+", "Zoom in", () => this.zoom(0.5)), toolButton("−", "Zoom out", () => this.zoom(2)), this.fit));
    this.axis = make("canvas", { "aria-hidden": "true" });
    this.range = make("i");
    this.overview = make("div", { class: "overview", title: "Drag to move the part that is shown" }, this.range);
    this.thumbs = make("div", { class: "thumbs", "aria-hidden": "true" });
    this.head = make("div", { class: "strip-head" }, ...(this.thumbnails.length ? [this.thumbs] : []), this.overview, this.axis,
      make("span", { class: "values" }, make("span", {}, "now"), make("span", {}, "peak")));
    this.body = make("div");
    this.rows = this.names.map((name, row) => this.buildRow(name, row));
    this.more = make("button", { type: "button", onclick: () => { this.shown = Infinity; this.arrange(); } });
    this.playhead = make("div", { class: "playhead" });
    this.area = make("div", { class: "strips" }, this.head, this.body, this.playhead);
    this.root.replaceChildren(tools, this.area, this.more);
    this.watch = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        const row = this.rows[entry.target.dataset.row];
        row.near = entry.isIntersecting;
        if (row.near && row.stale) this.paint(row);
        if (row.near) this.tellNow(row);
      }
    }, { rootMargin: "300px" });
    for (const row of this.rows) this.watch.observe(row.element);
    for (const canvas of [this.axis, this.thumbs]) this.listen(canvas, null);
    this.listenToOverview();
  }

  buildRow(name, row) {
    const canvas = make("canvas", { role: "slider", tabindex: -1, "aria-label": `Time in ${name}`, "aria-valuemin": 0, "aria-valuemax": Math.round(this.duration) });
    const now = make("span", { class: "now" });
    const element = make("div", { class: "strip-row", "data-row": row }, make("span", { class: "name", title: name }, name), canvas,
      make("span", { class: "values" }, now, make("span", { title: "highest score" }, this.peaks[row].toFixed(2))));
    const made = { row, name, element, canvas, now, near: false, stale: true };
    this.listen(canvas, made);
    return made;
  }

  listen(canvas, row) {
    let dragging = false;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      dragging = true;
      canvas.setPointerCapture(event.pointerId);
      this.seek(this.timeAt(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      if (dragging) this.seek(this.timeAt(event));
      this.tell(row, this.timeAt(event), event.clientX, event.clientY);
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { dragging = false; });
    canvas.addEventListener("pointerleave", hideTip);
    canvas.addEventListener("wheel", (event) => {
      const across = event.shiftKey ? event.deltaY : event.deltaX;
      if (event.ctrlKey) this.zoom(event.deltaY > 0 ? 1.25 : 0.8, this.timeAt(event));
      else if (across && this.view[1] - this.view[0] < this.duration) this.pan((across / canvas.clientWidth) * (this.view[1] - this.view[0]));
      else return;
      event.preventDefault();
    }, { passive: false });
    if (row) canvas.addEventListener("keydown", (event) => {
      const arrow = event.shiftKey ? 1 : 5;
      const step = { Home: -this.duration, End: this.duration, PageUp: -30, PageDown: 30, ArrowLeft: -arrow, ArrowRight: arrow }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      event.stopPropagation();
      this.seek(this.time + step);
    });
  }

  listenToOverview() {
    const move = (event) => {
      const box = this.overview.getBoundingClientRect();
      const width = this.view[1] - this.view[0];
      const middle = clamp((event.clientX - box.left) / box.width, 0, 1) * this.duration;
      this.show(middle - width / 2, middle + width / 2);
    };
    this.overview.addEventListener("pointerdown", (event) => {
      this.overview.setPointerCapture(event.pointerId);
      move(event);
    });
    this.overview.addEventListener("pointermove", (event) => {
      if (event.buttons) move(event);
    });
  }

  timeAt(event) {
    const box = this.axis.getBoundingClientRect();
    return this.view[0] + clamp((event.clientX - box.left) / box.width, 0, 1) * (this.view[1] - this.view[0]);
  }

  // The window that covers a time, or -1.
  windowAt(time) {
    let [low, high] = [0, this.starts.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.starts[middle] <= time + 1e-6) low = middle + 1;
      else high = middle;
    }
    return low && (this.ends[low - 1] > time || low === this.starts.length) ? low - 1 : -1;
  }

  scoreAt(row, time) {
    const window = this.windowAt(time);
    return window < 0 ? null : this.scores[row][window] / 255;
  }

  thumbnailAt(time) {
    return this.thumbnails.findLast((thumbnail) => thumbnail[0] <= time + 1e-3) ?? this.thumbnails[0];
  }

  tell(row, time, x, y) {
    const content = [make("b", {}, clock(time, 1, this.duration >= 3600))];
    const thumbnail = this.thumbnailAt(time);
    if (thumbnail) content.unshift(make("img", { src: thumbnail[1], alt: "" }));
    if (row) {
      const score = this.scoreAt(row.row, time);
      content.push(`${row.name}: ${score === null ? "not scored" : score.toFixed(2)}`);
      for (const [, start, end, positive] of this.ratings[row.row].filter((r) => r[1] <= time && time < r[2])) {
        content.push(`\nrated ${positive ? "positive" : "negative"}, ${clock(start)} to ${clock(end)}`);
      }
    } else {
      const best = this.names.map((name, index) => [this.scoreAt(index, time) ?? 0, name]).sort((a, b) => b[0] - a[0]).slice(0, 3);
      content.push(best.map(([score, name]) => `${score.toFixed(2)} ${name}`).join("\n"));
    }
    showTip(x, y, ...content);
  }

  matching() {
    const matches = matcher(this.search.value);
    return this.rows.filter(({ name }) => matches(name));
  }

  arrange() {
    const found = this.matching();
    const key = {
      peak: (a, b) => this.peaks[b.row] - this.peaks[a.row],
      first: (a, b) => this.firsts[a.row] - this.firsts[b.row] || this.peaks[b.row] - this.peaks[a.row],
      name: (a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }),
      given: (a, b) => a.row - b.row,
    }[this.order.value];
    found.sort((a, b) => key(a, b) || a.row - b.row);
    const shown = found.slice(0, this.shown);
    const empty = make("p", { class: "empty" }, "No class has this name.");
    this.body.replaceChildren(...(shown.length ? shown.map((row) => row.element) : [empty]));
    for (const row of this.rows) row.canvas.tabIndex = row === shown[0] ? 0 : -1; // one stop for the tab key
    this.status.textContent = `${found.length} of ${this.names.length}`;
    this.more.hidden = shown.length === found.length;
    this.more.textContent = `Show ${found.length - shown.length} more classes`;
    for (const listener of this.listeners) listener();
    this.refresh();
  }

  refresh() {
    this.queued ??= requestAnimationFrame(() => this.paintAll());
  }

  paintAll() {
    this.queued = null;
    this.colors ??= Object.fromEntries(["bar", "soft", "good", "bad", "head"].map((name) => [name, colorOf(`--${name}`)]));
    for (const row of this.rows) {
      row.stale = true;
      if (row.near) this.paint(row);
    }
    this.paintAxis();
    this.paintThumbnails();
    const [low, high] = this.view;
    this.range.style.left = `${(100 * low) / this.duration}%`;
    this.range.style.width = `${(100 * (high - low)) / this.duration}%`;
    this.overview.hidden = this.fit.disabled = high - low >= this.duration;
    this.movePlayhead();
  }

  context(canvas) {
    const ratio = devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    return [context, width, height];
  }

  x(time, width) {
    return ((time - this.view[0]) / (this.view[1] - this.view[0])) * width;
  }

  paint(row) {
    const { canvas } = row;
    if (!canvas.clientWidth || !this.colors) return;
    row.stale = false;
    const [context, width, height] = this.context(canvas);
    const full = height - 6;
    const heights = new Uint8Array(Math.ceil(width));
    const scores = this.scores[row.row];
    const first = Math.max(0, this.windowAt(this.view[0]));
    for (let i = first; i < scores.length && this.starts[i] < this.view[1]; i++) {
      const left = Math.max(0, Math.floor(this.x(this.starts[i], width)));
      const right = Math.max(left + 1, Math.min(heights.length, Math.round(this.x(this.ends[i], width))));
      for (let pixel = left; pixel < right; pixel++) heights[pixel] = Math.max(heights[pixel], scores[i]);
    }
    context.fillStyle = this.colors.bar;
    for (let pixel = 0; pixel < heights.length; ) {
      let end = pixel + 1;
      while (end < heights.length && heights[end] === heights[pixel]) end++;
      const score = heights[pixel] / 255;
      context.globalAlpha = 0.35 + 0.65 * score;
      context.fillRect(pixel, height - 4 - full * score, end - pixel, full * score);
      pixel = end;
    }
    context.globalAlpha = 1;
    context.fillStyle = this.colors.head;
    for (const [, start, end] of this.events[row.row]) {
      context.fillRect(this.x(start, width), height - 3, Math.max(2, this.x(end, width) - this.x(start, width)), 3);
    }
    for (const [, start, end, positive] of this.ratings[row.row]) {
      context.strokeStyle = positive ? this.colors.good : this.colors.bad;
      context.lineWidth = 2;
      context.setLineDash(positive ? [] : [2, 2]);
      context.strokeRect(this.x(start, width) + 1, 1, Math.max(2, this.x(end, width) - this.x(start, width) - 2), height - 6);
    }
  }

  paintAxis() {
    if (!this.axis.clientWidth) return;
    const [context, width, height] = this.context(this.axis);
    const [low, high] = this.view;
    const rough = (high - low) / clamp(width / 80, 2, 12);
    const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200].find((s) => s >= rough) ?? 14400;
    context.font = "12px system-ui, sans-serif";
    context.textBaseline = "top";
    context.fillStyle = this.colors.soft;
    for (let i = Math.ceil(low / step); i * step <= high; i++) {
      const x = this.x(i * step, width);
      const text = clock(i * step, step < 1 ? 1 : 0, this.duration >= 3600);
      const wide = context.measureText(text).width;
      context.fillRect(clamp(x, 0, width - 1), height - 5, 1, 5);
      context.fillText(text, clamp(x - wide / 2, 0, width - wide), 2);
    }
  }

  paintThumbnails() {
    const width = this.thumbs.clientWidth;
    const images = [];
    let free = 0;
    for (const [time, source, wide] of this.thumbnails) {
      const x = this.x(time, width);
      if (x < free - 1 || x + wide > width + 1) continue;
      const image = make("img", { src: source, alt: "", draggable: "false" });
      image.style.left = `${x}px`;
      images.push(image);
      free = x + wide + 2;
    }
    this.thumbs.replaceChildren(...images);
  }

  show(low, high) {
    const width = clamp(high - low, Math.min(2, this.duration), this.duration);
    const start = clamp(low, 0, this.duration - width);
    this.view = [start, start + width];
    this.refresh();
  }

  zoom(factor, around = this.time) {
    const [low, high] = this.view;
    const center = around >= low && around <= high ? around : (low + high) / 2;
    const width = clamp((high - low) * factor, Math.min(2, this.duration), this.duration);
    const low2 = center - ((center - low) / (high - low)) * width;
    this.show(low2, low2 + width);
  }

  pan(seconds) {
    this.show(this.view[0] + seconds, this.view[1] + seconds);
  }

  seek(time) {
    const at = clamp(time, 0, this.duration);
    if (this.video) {
      if (this.video.readyState) this.video.currentTime = at;
      else this.pending = at;
    }
    this.setTime(at);
  }

  setTime(time) {
    this.time = time;
    const [low, high] = this.view;
    if (high - low < this.duration && (time < low || time > high)) this.show(time - 0.1 * (high - low), time + 0.9 * (high - low));
    else this.movePlayhead();
    for (const listener of this.listeners) listener();
  }

  movePlayhead() {
    const area = this.area.getBoundingClientRect();
    const axis = this.axis.getBoundingClientRect();
    const x = this.x(this.time, axis.width);
    this.playhead.hidden = x < -1 || x > axis.width + 1;
    this.playhead.style.left = `${axis.left - area.left + x}px`;
    for (const row of this.rows) if (row.near) this.tellNow(row);
  }

  tellNow(row) {
    const score = this.scoreAt(row.row, this.time);
    row.now.textContent = score === null ? "" : score.toFixed(2);
    row.canvas.setAttribute("aria-valuenow", Math.round(this.time));
    row.canvas.setAttribute("aria-valuetext", `${clock(this.time, 1)}, score ${row.now.textContent || "none"}`);
  }

  // The playhead follows the video, smoothly while it plays.
  follow() {
    const { video } = this;
    const frame = () => {
      this.setTime(video.currentTime);
      if (!video.paused && !video.ended) requestAnimationFrame(frame);
    };
    video.addEventListener("play", frame);
    video.addEventListener("seeking", () => this.setTime(video.currentTime));
    video.addEventListener("seeked", () => this.setTime(video.currentTime));
    video.addEventListener("loadedmetadata", () => {
      if (this.pending !== undefined) video.currentTime = this.pending;
      this.pending = undefined;
    });
  }
}
