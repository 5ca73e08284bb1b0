// Elements, the color mode, tooltips, and tables that can be sorted and searched.

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value == null) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

// A button with a short text or a sign, and a label that says what it does.
function toolButton(text, label, onclick) {
  return make("button", { type: "button", title: label, "aria-label": label, onclick }, text);
}

// Returns whether a text has all words of a search.
function matcher(query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  return (text) => words.every((word) => text.toLowerCase().includes(word));
}

function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

function swatch(color) {
  const element = make("span", { class: "swatch" });
  element.style.setProperty("--color", color);
  return element;
}

function clock(seconds, decimals = 0, withHours = false) {
  const unit = 10 ** decimals;
  const total = Math.floor(Math.max(0, seconds) * unit + 1e-6);
  const whole = Math.floor(total / unit);
  const minutes = Math.floor(whole / 60) % 60;
  const hours = Math.floor(whole / 3600);
  const pad = (number, width = 2) => String(number).padStart(width, "0");
  const fraction = decimals ? "." + pad(total % unit, decimals) : "";
  return (hours || withHours ? `${hours}:${pad(minutes)}` : `${minutes}`) + `:${pad(whole % 60)}${fraction}`;
}

function number(value) {
  if (value === null || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return size && size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

const onThemeChange = [];
const darkQuery = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : darkQuery.matches;
}

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  for (const button of document.querySelectorAll("button.theme")) {
    button.textContent = isDark() ? "☀ Light" : "☾ Dark";
    button.setAttribute("aria-label", isDark() ? "Use light colors" : "Use dark colors");
  }
  for (const redraw of onThemeChange) redraw();
}

function toggleTheme() {
  const theme = isDark() ? "light" : "dark";
  setTheme(theme);
  try {
    localStorage.setItem("pyseg-theme", theme);
  } catch {
    // Pages from files may have no storage: the choice then lasts as long as the page.
  }
}

function startTheme() {
  let stored = null;
  try {
    stored = localStorage.getItem("pyseg-theme");
  } catch {
    // As above.
  }
  for (const button of document.querySelectorAll("button.theme")) {
    button.hidden = false;
    button.addEventListener("click", toggleTheme);
  }
  darkQuery.addEventListener("change", () => setTheme(null));
  setTheme(stored === "dark" || stored === "light" ? stored : null);
}

// The color of a custom property, as a canvas understands it.
function colorOf(name) {
  const probe = make("i", { style: `color: var(${name})` });
  document.body.append(probe);
  const color = getComputedStyle(probe).color;
  probe.remove();
  return color;
}

const tip = document.getElementById("tip");

function showTip(x, y, ...content) {
  tip.replaceChildren(...content);
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const right = x + 14 + width <= innerWidth - 4;
  tip.style.left = `${clamp(right ? x + 14 : x - 14 - width, 4, Math.max(4, innerWidth - width - 4))}px`;
  tip.style.top = `${clamp(y - height - 12 >= 4 ? y - height - 12 : y + 18, 4, Math.max(4, innerHeight - height - 4))}px`;
}

function hideTip() {
  tip.hidden = true;
}

// Elements with data-tip show it while hovered or focused.
function startTips() {
  const show = (event) => {
    const element = event.target.closest?.("[data-tip]");
    if (!element) return;
    const box = element.getBoundingClientRect();
    const [title, ...lines] = element.dataset.tip.split("\n");
    showTip(event.clientX ?? box.left + box.width / 2, event.clientY ?? box.top, make("b", {}, title), lines.join("\n"));
  };
  const hide = (event) => {
    if (event.target.closest?.("[data-tip]")) hideTip();
  };
  document.addEventListener("pointermove", show);
  document.addEventListener("focusin", show);
  document.addEventListener("pointerout", hide);
  document.addEventListener("focusout", hide);
  document.addEventListener("scroll", hideTip, { passive: true, capture: true });
}

function cellValue(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.value ?? cell.textContent.trim();
  const value = Number(text.replaceAll(",", ""));
  return text !== "" && Number.isFinite(value) ? value : text;
}

function compareValues(a, b) {
  if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
  return typeof a === "number" ? -1 : 1;
}

function startTable(table) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = make("button", { type: "button" });
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const numeric = head.classList.contains("number");
      const before = head.getAttribute("aria-sort");
      const descending = before ? before === "ascending" : numeric;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [cellValue(row, column), row]);
      rows.sort((a, b) => compareValues(a[0], b[0]) * (descending ? -1 : 1));
      body.append(...rows.map(([, row]) => row));
    });
  });
  const search = document.querySelector(`input[data-table="${table.id}"]`);
  if (!search) return;
  const count = make("span", { class: "soft", role: "status" });
  search.after(count);
  const texts = new Map([...body.rows].map((row) => [row, row.textContent]));
  const filter = () => {
    const matches = matcher(search.value);
    let shown = 0;
    for (const [row, text] of texts) {
      row.hidden = !matches(text);
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${texts.size}`;
  };
  search.closest("[hidden]")?.removeAttribute("hidden");
  search.addEventListener("input", filter);
  filter();
}

// A graph fades all but the neighbors of the name under the pointer.
function startGraph(svg) {
  const nodes = [...svg.querySelectorAll("g[data-node]")];
  const edges = [...svg.querySelectorAll("path[data-from]")];
  const focus = (chosen) => {
    const near = new Set([chosen]);
    for (const edge of edges) {
      const { from, to } = edge.dataset;
      const touches = chosen === null || from === chosen || to === chosen;
      if (touches) near.add(from).add(to);
      edge.classList.toggle("away", !touches);
    }
    for (const node of nodes) node.classList.toggle("away", chosen !== null && !near.has(node.dataset.node));
  };
  for (const node of nodes) {
    for (const event of ["pointerenter", "focus"]) node.addEventListener(event, () => focus(node.dataset.node));
    for (const event of ["pointerleave", "blur"]) node.addEventListener(event, () => focus(null));
  }
}
