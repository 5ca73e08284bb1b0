// Turns a page's elements into charts, tables and strips.

function readData(element) {
  return JSON.parse(element.querySelector(":scope > script[type='application/json']").textContent);
}

// The page of one timeline: its player, its list of events, and keys.
class Player {
  constructor(root) {
    this.video = root.querySelector("video");
    this.strips = new Strips(root.querySelector(".timeline"), readData(root), this.video);
    this.buttons = [...root.querySelectorAll(".events li button")];
    this.count = root.querySelector(".events .count");
    this.help = root.querySelector("dialog");
    this.note = root.querySelector(".unplayable");
    for (const button of this.buttons) button.addEventListener("click", () => this.goTo(button));
    this.strips.listeners.push(() => this.update());
    this.video?.addEventListener("error", () => { this.note.hidden = false; });
    document.addEventListener("keydown", (event) => this.key(event));
    const open = root.querySelector(".help");
    open.hidden = false;
    open.addEventListener("click", () => this.help.showModal());
    this.update();
    const start = /^#t=(\d+(\.\d+)?)$/.exec(location.hash);
    if (start) this.strips.seek(Number(start[1]));
  }

  goTo(button) {
    this.strips.seek(Number(button.dataset.start));
    for (const row of this.strips.rows) row.element.classList.toggle("chosen", row.row === Number(button.dataset.class));
  }

  update() {
    const query = this.strips.search.value;
    if (query !== this.query) {
      const shown = new Set(this.strips.matching().map((row) => row.row));
      for (const button of this.buttons) button.parentElement.hidden = !shown.has(Number(button.dataset.class));
      const left = this.buttons.filter((button) => !button.parentElement.hidden).length;
      if (this.count) this.count.textContent = query ? `${left} of ${this.buttons.length}` : String(this.buttons.length);
      this.query = query;
    }
    for (const button of this.buttons) {
      const current = Number(button.dataset.start) <= this.strips.time + 1e-3 && this.strips.time < Number(button.dataset.end);
      if (current) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
  }

  step(direction) {
    const now = this.strips.time;
    const open = this.buttons.filter((button) => !button.parentElement.hidden);
    const next = direction > 0
      ? open.find((button) => Number(button.dataset.start) > now + 0.01)
      : open.findLast((button) => Number(button.dataset.start) < now - 0.01);
    if (!next) return;
    this.goTo(next);
    next.scrollIntoView({ block: "nearest" });
  }

  togglePlay() {
    if (!this.video) return;
    if (this.video.paused) this.video.play().catch(() => {});
    else this.video.pause();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || this.help.open) return;
    const { target } = event;
    if (event.key === "Escape" && target === this.strips.search) {
      target.value = "";
      target.blur();
      return this.strips.arrange();
    }
    if (target.matches("input, select, textarea")) return;
    if (event.key === " " && target.matches("button, summary, a")) return;
    const seconds = event.shiftKey ? 1 : 5;
    const actions = {
      " ": () => this.togglePlay(),
      ArrowLeft: () => this.strips.seek(this.strips.time - seconds),
      ArrowRight: () => this.strips.seek(this.strips.time + seconds),
      j: () => this.step(1),
      k: () => this.step(-1),
      "/": () => this.strips.search.focus(),
      "+": () => this.strips.zoom(0.5),
      "=": () => this.strips.zoom(0.5),
      "-": () => this.strips.zoom(2),
      0: () => this.strips.show(0, this.strips.duration),
      d: toggleTheme,
      m: () => { if (this.video) this.video.muted = !this.video.muted; },
      "?": () => this.help.showModal(),
    };
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }
}

startTheme();
startTips();
for (const table of document.querySelectorAll("table.sortable")) startTable(table);
for (const figure of document.querySelectorAll("figure.chart")) new Chart(figure, readData(figure));
for (const figure of document.querySelectorAll("figure.strip-chart")) new Strips(figure.querySelector(".timeline"), readData(figure));
for (const svg of document.querySelectorAll(".graph svg")) startGraph(svg);
for (const root of document.querySelectorAll(".timeline-page")) new Player(root);
