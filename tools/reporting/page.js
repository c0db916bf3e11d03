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

// ---- points: the nearest one to the pointer, or the next one by arrow keys ----

function nearest(marks, x, y, reach) {
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
  let at = -1;
  const point = (event) => {
    const mark = nearest(marks, event.clientX, event.clientY, event.pointerType === "touch" ? 40 : 16);
    if (mark) showMark(mark); else hideTip();
  };
  chart.addEventListener("pointermove", point);
  chart.addEventListener("pointerdown", point);
  chart.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") hideTip(); });
  chart.addEventListener("blur", hideTip);
  chart.addEventListener("keydown", (event) => {
    const last = marks.length - 1;
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: last }[event.key];
    if (event.key === "Escape") hideTip();
    if (to === undefined || last < 0) return;
    event.preventDefault();
    at = Math.min(Math.max(to, 0), last);
    showMark(marks[at]);
  });
}

// ---- lines: all values at one iteration; thin lines show their own name ----

function followLines(chart) {
  const main = all("path.line:not(.thin)", chart).map((path) => ({
    name: path.dataset.name,
    x: path.dataset.x.split(",").map(Number),
    y: path.dataset.y.split(",").map(Number),
  }));
  const frame = chart.querySelector(".axis");
  const left = Number(frame.getAttribute("x1")), right = Number(frame.getAttribute("x2"));
  const axis = chart.querySelectorAll(".tickmark");
  if (!main.length || !axis.length) return;
  const xs = [...new Set(main.flatMap((line) => line.x))].sort((a, b) => a - b);
  const low = xs[0], high = xs[xs.length - 1];
  let at = xs.length - 1;

  function show(index, clientY) {
    at = Math.min(Math.max(index, 0), xs.length - 1);
    const value = xs[at];
    const pixel = high > low ? left + ((value - low) / (high - low)) * (right - left) : (left + right) / 2;
    all(".cursor").forEach((line) => line.remove());
    const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
    for (const [name, v] of [["class", "cursor"], ["x1", pixel], ["x2", pixel], ["y1", 24], ["y2", frame.getAttribute("y1")]]) {
      cursor.setAttribute(name, v);
    }
    chart.append(cursor);
    const rows = main.map((line) => {
      const k = line.x.reduce((best, v, i) => Math.abs(v - value) < Math.abs(line.x[best] - value) ? i : best, 0);
      return `${line.name}: ${line.y[k]}`;
    });
    const box = cursor.getBoundingClientRect();
    showTip(`iteration ${Math.round(value).toLocaleString("en")}`, rows, box.x, clientY ?? box.y + 40);
  }
  const point = (event) => {
    const thin = document.elementsFromPoint(event.clientX, event.clientY).find((e) => e.matches("path.thin"));
    light(thin ? thin.dataset.key : null);
    const box = chart.getBoundingClientRect();
    const x = ((event.clientX - box.x) / box.width) * chart.viewBox.baseVal.width;
    const value = low + ((x - left) / (right - left)) * (high - low);
    show(xs.reduce((best, v, i) => Math.abs(v - value) < Math.abs(xs[best] - value) ? i : best, 0), event.clientY);
    if (thin) {
      const row = document.createElement("div");
      row.textContent = thin.dataset.name;
      tip.append(row);
    }
  };
  chart.addEventListener("pointermove", point);
  chart.addEventListener("pointerdown", point);
  chart.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") hideTip(); });
  chart.addEventListener("blur", hideTip);
  chart.addEventListener("keydown", (event) => {
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: xs.length - 1 }[event.key];
    if (event.key === "Escape") hideTip();
    if (to === undefined) return;
    event.preventDefault();
    show(to);
  });
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
  const keys = new Map(all("[data-key]").map((mark) => [mark.dataset.class ?? mark.dataset.name, mark.dataset.key]));
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
