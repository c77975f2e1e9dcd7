// Sorting, filters and the URL's fragment. Tables come as HTML; only what is hidden and the order of lines change.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const controls = [...document.querySelectorAll("[data-filter]")];
const listeners = []; // called with the rows that pass the filters

function lines(kind) {
  return [...document.querySelectorAll(`tr[data-${kind}]`)];
}

const rowLines = lines("row");
const pointLines = lines("point");
const placeLines = lines("place");
const rowTexts = new Map(rowLines.map((line) => [line, line.textContent.toLowerCase()]));

function passes(row, wanted) {
  return wanted.every(([name, value]) => String(row.at[name]) === value);
}

function update() {
  const wanted = controls.filter((c) => c.value && c.dataset.filter !== "text").map((c) => [c.dataset.filter, c.value]);
  const text = (controls.find((c) => c.dataset.filter === "text")?.value ?? "").toLowerCase();
  const shown = [];
  const points = new Set();
  for (const line of rowLines) {
    const row = data.rows[line.dataset.row];
    line.hidden = !(passes(row, wanted) && rowTexts.get(line).includes(text));
    if (!line.hidden) {
      shown.push(row);
      points.add(String(row.point));
    }
  }
  for (const line of pointLines) line.hidden = !points.has(line.dataset.point);
  for (const line of placeLines) line.hidden = !line.dataset.place.split(" ").some((point) => points.has(point));
  // A mean over lines of which some are hidden would be taken for that of the others.
  for (const foot of document.querySelectorAll("tfoot")) foot.hidden = placeLines.some((line) => line.hidden);
  document.getElementById("shown").textContent = `${shown.length} of ${rowLines.length} rows`;
  for (const listener of listeners) listener(shown);
}

// --- The state of all controls as #backend=numba&K=7 ---

const stateful = [...document.querySelectorAll("[data-filter], [data-state]")];
const nameOf = (control) => control.dataset.filter ?? control.dataset.state;
const initial = new Map(stateful.map((control) => [control, control.value]));

function readFragment() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const control of stateful) {
    const value = given.get(nameOf(control)) ?? initial.get(control);
    const known = control.tagName !== "SELECT" || [...control.options].some((option) => option.value === value);
    control.value = known ? value : initial.get(control);
  }
  update();
}

function writeFragment() {
  const state = new URLSearchParams();
  for (const control of stateful) {
    if (control.value !== initial.get(control)) state.set(nameOf(control), control.value);
  }
  history.replaceState(null, "", `#${state}`);
  update();
}

for (const control of stateful) control.addEventListener("input", writeFragment);
window.addEventListener("hashchange", readFragment);
document.getElementById("reset")?.addEventListener("click", () => {
  for (const control of controls) control.value = "";
  writeFragment();
});

// --- Sorting: a click on a heading, a second click the other way round; what has no value stays last ---

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), undefined, { numeric: true });
}

function valueOf(line, column) {
  const text = line.cells[column].dataset.v;
  return text === undefined ? null : text === "" || Number.isNaN(Number(text)) ? text : Number(text);
}

function sortBy(heading) {
  const column = heading.cellIndex;
  const ascending = heading.getAttribute("aria-sort") !== "ascending";
  for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const body = heading.closest("table").tBodies[0];
  const keyed = [...body.rows].map((line) => [valueOf(line, column), line]);
  keyed.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return ascending ? compare(a, b) : compare(b, a);
  });
  body.append(...keyed.map(([, line]) => line));
}

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => sortBy(button.closest("th")));
}

readFragment();
