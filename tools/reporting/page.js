// What the page of tools/report.py does beyond showing: texts of marks, search, switch, sorting.
"use strict";
const root = document.documentElement;
window.addEventListener("error", (event) => { root.dataset.error = event.message; });

const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const tip = document.getElementById("tip");

function showTip(name, lines, x, y) {
  tip.replaceChildren();
  const title = document.createElement("b");
  title.textContent = name;
  tip.append(title);
  for (const line of lines) {
    const row = document.createElement("div");
    row.textContent = line;
    tip.append(row);
  }
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = Math.min(Math.max(8, x + 14), window.innerWidth - box.width - 8);
  const top = y - box.height - 14 < 8 ? y + 18 : y - box.height - 14;
  tip.style.left = `${left}px`;
  tip.style.top = `${top}px`;
}

function hideTip() {
  tip.hidden = true;
  if (!root.classList.contains("searching")) light(null);
  all(".cursor").forEach((line) => line.remove());
}

// All marks of one class.
function light(key) {
  all(".lit").forEach((mark) => mark.classList.remove("lit"));
  if (key === null || key === undefined) return;
  all(`[data-key="${key}"]`).forEach((mark) => mark.classList.add("lit"));
}

function showMark(mark) {
  if (!root.classList.contains("searching")) {
    light(mark.dataset.key);
    if (mark.dataset.key === undefined) mark.classList.add("lit");
  }
  const box = mark.getBoundingClientRect();
  showTip(mark.dataset.name, [mark.dataset.text], box.x + box.width / 2, box.y + box.height / 2);
}

// A chart is followed by the pointer, and its steps (marks or iterations) by the arrow keys.
function follow(chart, steps, point, show) {
  let at = -1;
  chart.addEventListener("pointermove", point);
  chart.addEventListener("pointerdown", point);
  chart.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") hideTip(); });
  chart.addEventListener("blur", hideTip);
  chart.addEventListener("keydown", (event) => {
    const last = steps - 1;
    const to = {
      ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: last,
    }[event.key];
    if (event.key === "Escape") hideTip();
    if (to === undefined || last < 0) return;
    event.preventDefault();
    at = Math.min(Math.max(to, 0), last);
    show(at);
  });
}

// ---- points ----

function nearestMark(marks, x, y, reach) {
  let best = null, least = reach;
  for (const mark of marks) {
    const box = mark.getBoundingClientRect();
    const dx = Math.max(box.left - x, 0, x - box.right), dy = Math.max(box.top - y, 0, y - box.bottom);
    const distance = Math.hypot(dx, dy);
    if (distance < least) { least = distance; best = mark; }
  }
  return best;
}

function followPoints(chart) {
  const marks = all("[data-text]", chart);
  const point = (event) => {
    const reach = event.pointerType === "touch" ? 40 : 16;
    const mark = nearestMark(marks, event.clientX, event.clientY, reach);
    if (mark) showMark(mark); else hideTip();
  };
  follow(chart, marks.length, point, (k) => showMark(marks[k]));
}

// ---- lines: all values at one iteration; the thin line of a class says its name ----

function nearestIndex(values, wanted) {
  const closer = (best, v, i) => (Math.abs(v - wanted) < Math.abs(values[best] - wanted) ? i : best);
  return values.reduce(closer, 0);
}

function followLines(chart) {
  const lines = all("path.line:not(.thin)", chart).map((path) => ({
    name: path.dataset.name,
    x: path.dataset.x.split(",").map(Number),
    y: path.dataset.y.split(",").map(Number),
  }));
  if (!lines.length) return;
  const frame = chart.querySelector(".axis");
  const left = Number(frame.getAttribute("x1")), right = Number(frame.getAttribute("x2"));
  const xs = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  const low = xs[0], high = xs[xs.length - 1];

  function show(k, clientY, more = []) {
    const part = high > low ? (xs[k] - low) / (high - low) : 0.5;
    const pixel = left + part * (right - left);
    const place = { class: "cursor", x1: pixel, x2: pixel, y1: 24, y2: frame.getAttribute("y1") };
    all(".cursor").forEach((line) => line.remove());
    const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
    Object.entries(place).forEach(([name, value]) => cursor.setAttribute(name, value));
    chart.append(cursor);
    const rows = lines.map((line) => `${line.name}: ${line.y[nearestIndex(line.x, xs[k])]}`);
    const box = cursor.getBoundingClientRect();
    const title = `iteration ${Math.round(xs[k]).toLocaleString("en")}`;
    showTip(title, [...rows, ...more], box.x, clientY ?? box.y + 40);
  }

  const point = (event) => {
    const under = document.elementsFromPoint(event.clientX, event.clientY);
    const thin = under.find((mark) => mark.matches("path.thin"));
    if (!root.classList.contains("searching")) light(thin?.dataset.key);
    const box = chart.getBoundingClientRect();
    const x = ((event.clientX - box.x) / box.width) * chart.viewBox.baseVal.width;
    const wanted = low + ((x - left) / (right - left)) * (high - low);
    show(nearestIndex(xs, wanted), event.clientY, thin ? [thin.dataset.name] : []);
  };
  follow(chart, xs.length, point, show);
}

all(".chart").forEach((chart) => (chart.matches(".lines") ? followLines : followPoints)(chart));
document.addEventListener("scroll", hideTip, { passive: true });

// ---- boxes or masks ----

function choose(column) {
  all("[data-shown]").forEach((part) => { part.hidden = part.dataset.shown !== column; });
  all("[data-part]").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.part === column)));
}
all("[data-part]").forEach((button) => button.addEventListener("click", () => choose(button.dataset.part)));
const first = document.querySelector("[data-part]");
if (first) choose(first.dataset.part);

// ---- find a class ----

const finder = document.getElementById("finder");
if (finder) {
  const keys = new Map(all("[data-key]").map((mark) => [mark.dataset.name, mark.dataset.key]));
  finder.addEventListener("input", () => {
    const key = keys.get(finder.value);
    root.classList.toggle("searching", key !== undefined);
    light(key);
  });
}

// ---- sort the table of classes ----

function sortBy(table, column) {
  const title = table.tHead.rows[0].cells[column];
  const up = title.getAttribute("aria-sort") === "descending";
  const value = (row) => {
    const text = row.cells[column].textContent;
    const number = Number(text.replace(/,/g, "").replace("−", "-"));
    return Number.isNaN(number) ? text : number;
  };
  const sign = up ? 1 : -1;
  const order = (a, b) => {
    const x = value(a), y = value(b);
    if (typeof x === typeof y) return sign * (typeof x === "number" ? x - y : x.localeCompare(y));
    return typeof x === "number" ? -1 : 1;
  };
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
  all("th", table).forEach((cell) => cell.removeAttribute("aria-sort"));
  title.setAttribute("aria-sort", up ? "ascending" : "descending");
}
all("table.sortable").forEach((table) => {
  all("th", table).forEach((cell, column) => {
    cell.tabIndex = 0;
    cell.addEventListener("click", () => sortBy(table, column));
    cell.addEventListener("keydown", (event) => { if (event.key === "Enter") sortBy(table, column); });
  });
});

// ---- where the reader is ----

const links = new Map(all("nav a").map((link) => [link.hash.slice(1), link]));
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    links.forEach((link, key) => link.toggleAttribute("aria-current", key === entry.target.id));
  }
}, { rootMargin: "-10% 0px -75% 0px" });
all("main > section").forEach((section) => seen.observe(section));

root.dataset.ready = "true";
