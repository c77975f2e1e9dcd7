// Fills Bokeh's figures with the rows that pass the filters. Python made the figures; their sources come empty.
"use strict";

const dark = matchMedia("(prefers-color-scheme: dark)");
const figures = [];
const quantities = {
  latency: (row) => [row.t, row.low, row.high],
  memory: (row) => [row.memory, row.memory, row.memory],
};

// --- Marks, whiskers and lines ---

function placeOf(row) {
  return data.axes.map((axis) => `${axis.label}=${row.at[axis.name]}`).join(" ");
}

function dodge(name) {
  const names = Object.keys(data.styles);
  return ((names.indexOf(name) + 0.5) / names.length - 0.5) * 0.7;
}

function mark(row, x, y, low, high, told) {
  const style = data.styles[row.name];
  return { x, y, low, high, told, name: row.name, place: placeOf(row), marker: style.marker, color: style.color, fill: style.filled ? 0.85 : 0 };
}

function columns(records, names) {
  return Object.fromEntries(names.map((name) => [name, records.map((record) => record[name])]));
}

const MARKS = ["x", "y", "low", "high", "told", "name", "place", "marker", "color", "fill"];

// Ticks of a logarithmic axis: powers of ten over many decades, ever more between them over few. Bokeh's own ones stand
// too close over one or two decades.
function ticksBetween(low, high) {
  const decades = Math.log10(high / low);
  const steps = decades > 3.5 ? [1] : decades > 2 ? [1, 3] : decades > 1 ? [1, 2, 5] : decades > 0.5 ? [1, 1.5, 2, 3, 5, 7] : [1, 1.2, 1.5, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9];
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)) - 1; power <= Math.log10(high) + 1; power += 1) {
    ticks.push(...steps.map((step) => Number(`${step}e${power}`)));
  }
  return ticks;
}

function setTicks(axis, values) {
  if (axis.ticker.name === "by-data" && values.length) axis.ticker.ticks = ticksBetween(Math.min(...values), Math.max(...values));
}

function setMarks(figure, marks) {
  const across = figure.spec.kind === "names";
  setTicks(figure.model.below[0], marks.flatMap((each) => (across ? [each.low, each.high] : [each.x])));
  setTicks(figure.model.left[0], marks.flatMap((each) => [each.low, each.high]));
  figure.source("marks").data = columns(marks, MARKS);
}

function chosen(kind, name) {
  return document.querySelector(`[data-${kind}="${name}"]`)?.value ?? "";
}

function distinct(rows, axis) {
  return new Set(rows.map((row) => row.at[axis])).size;
}

// The rows of a plot against one axis: the others are held at their chosen values, the one that costs fewest places
// first, as long as two places are left to compare. Cases that are listed, and no product, have axes that go together.
function heldRows(axis, all) {
  const free = [axis, ...data.linked[axis]];
  const others = data.axes.map((other) => other.name).filter((name) => !free.includes(name) && !chosen("filter", name));
  let waiting = others.map((name) => [name, chosen("state", `hold-${name}`)]).filter(([, value]) => value);
  let rows = all;
  while (waiting.length) {
    const tried = waiting.map(([name, value]) => ({ name, left: rows.filter((row) => row.at[name] === value) }));
    const best = tried.reduce((a, b) => (distinct(b.left, axis) > distinct(a.left, axis) ? b : a));
    if (distinct(best.left, axis) < Math.min(2, distinct(rows, axis))) break;
    rows = best.left;
    waiting = waiting.filter(([name]) => name !== best.name);
  }
  return rows;
}

function fillAxis(figure, all) {
  const { axis, numeric, quantity } = figure.spec;
  const rows = heldRows(axis, all);
  const places = rows.map((row) => JSON.stringify([row.name, row.at[axis]]));
  const alone = new Set(places).size === places.length; // then one line may follow whatever changes with the axis
  const others = data.axes.map((other) => other.name).filter((name) => name !== axis && !data.linked[axis].includes(name));
  const apart = alone ? [] : others;
  const unit = data.units[quantity];
  const series = new Map();
  const marks = [];
  for (const row of rows) {
    const [value, low, high] = quantities[quantity](row);
    const place = row.at[axis];
    if (!(value > 0) || place === "-") continue; // the scale is logarithmic
    const x = numeric ? Number(place) : [place, dodge(row.name)];
    const told = quantity === "latency" ? row.told : row.toldMemory;
    marks.push(mark(row, x, value * unit.scale, low * unit.scale, high * unit.scale, told));
    const key = JSON.stringify([row.name, row.class, ...apart.map((name) => row.at[name])]);
    if (!series.has(key)) series.set(key, { style: data.styles[row.name], points: [] });
    series.get(key).points.push([x, value * unit.scale]);
  }
  setMarks(figure, marks);
  if (!numeric) return;
  const several = [...series.values()].filter((line) => line.points.length > 1);
  for (const line of several) line.points.sort((a, b) => a[0] - b[0]);
  figure.source("lines").data = {
    xs: several.map((line) => line.points.map(([x]) => x)),
    ys: several.map((line) => line.points.map(([, y]) => y)),
    color: several.map((line) => line.style.color),
    dash: several.map((line) => (line.style.filled ? "solid" : "dashed")),
  };
}

function fillNames(figure, rows) {
  const unit = data.units[figure.spec.quantity];
  const marks = [];
  for (const row of rows) {
    const [value, low, high] = quantities[figure.spec.quantity](row);
    const told = figure.spec.quantity === "latency" ? row.told : row.toldMemory;
    if (value > 0) marks.push({ ...mark(row, value * unit.scale, row.name, low * unit.scale, high * unit.scale, told) });
  }
  setMarks(figure, marks);
}

function fillRoofline(figure, rows) {
  const timed = rows.filter((row) => row.rate > 0 && row.intensity > 0);
  setMarks(figure, timed.map((row) => mark(row, row.intensity, row.rate / 1e9, row.flop / row.high / 1e9, row.flop / row.low / 1e9, row.toldRate)));
}

// --- The map: geometric mean of the fastest involution's ratio over the points in a cell, of one class only ---

function fastest(rows) {
  const best = new Map();
  for (const row of rows) {
    if (row.subject !== "involution" || row.t === null || String(row.class) !== chosen("state", "map-class")) continue;
    if (!best.has(row.point) || row.t < best.get(row.point).t) best.set(row.point, row);
  }
  return best.values();
}

function cellsOf(rows, subject, xAxis, yAxis) {
  const cells = new Map();
  for (const row of fastest(rows)) {
    const ratio = row.ratios[subject];
    if (!ratio) continue;
    const x = xAxis ? row.at[xAxis] : "all";
    const y = yAxis ? row.at[yAxis] : "all";
    const key = JSON.stringify([x, y]);
    if (!cells.has(key)) cells.set(key, { x, y, ratios: [], backends: new Set() });
    cells.get(key).ratios.push(ratio);
    cells.get(key).backends.add(row.name);
  }
  return [...cells.values()];
}

function threeDigits(value) {
  return value.toFixed(value >= 100 ? 0 : value >= 10 ? 1 : value >= 0.1 ? 2 : 3);
}

function labelOf(axis) {
  return data.axes.find((each) => each.name === axis)?.label ?? "";
}

function fillMap(figure, rows) {
  const xAxis = chosen("state", "map-x");
  const yAxis = chosen("state", "map-y");
  const cells = cellsOf(rows, figure.spec.subject, xAxis, xAxis === yAxis ? "" : yAxis).map((cell) => {
    const log2 = cell.ratios.reduce((sum, [median]) => sum + Math.log2(median), 0) / cell.ratios.length;
    const undecided = cell.ratios.length === 1 && cell.ratios[0][1] <= 1 && cell.ratios[0][2] >= 1;
    const count = cell.ratios.length;
    const text = `${undecided ? "~" : ""}${threeDigits(2 ** log2)}${count > 1 ? `\n${count} points` : ""}`;
    const words = log2 < 0 ? `${threeDigits(2 ** -log2)}x faster` : `${threeDigits(2 ** log2)}x slower`;
    const told = `${words}${undecided ? ", not distinguishable" : ""}; ${[...cell.backends].join(", ")}`;
    return { ...cell, log2, text, told, count, ink: Math.abs(log2) > 1.7 ? "#ffffff" : "#1b1f24" };
  });
  const order = (axis) => data.axes.find((each) => each.name === axis)?.values ?? ["all"];
  const used = (axis, name) => order(axis).filter((value) => cells.some((cell) => cell[name] === value));
  const xs = used(xAxis, "x");
  const ys = used(xAxis === yAxis ? "" : yAxis, "y");
  figure.model.x_range.factors = xs;
  figure.model.y_range.factors = ys;
  figure.model.below[0].axis_label = labelOf(xAxis);
  figure.model.left[0].axis_label = xAxis === yAxis ? "" : labelOf(yAxis);
  figure.model.height = 90 + 42 * Math.min(Math.max(ys.length, 2), 16);
  const size = ys.length > 16 ? 0 : xs.length <= 6 ? 13 : xs.length <= 9 ? 11 : xs.length <= 13 ? 9 : 0;
  figure.named("numbers").visible = size > 0; // no room: hovering tells
  figure.named("numbers").glyph.text_font_size = `${size || 9}px`;
  figure.source("cells").data = columns(cells, ["x", "y", "log2", "text", "told", "count", "ink"]);
}

// --- The launches of a check: figures come with their dots, of which those of hidden rows are left out ---

function fillLaunches(figure, rows) {
  const names = rows.filter((row) => row.check === figure.spec.check && row.label !== null).map((row) => row.label);
  figure.model.y_range.factors = [...new Set(names)].reverse();
  figure.model.height = 90 + 26 * Math.max(names.length, 1);
  document.getElementById(figure.spec.id).parentNode.hidden = names.length === 0;
}

const fillers = { axis: fillAxis, names: fillNames, roofline: fillRoofline, map: fillMap, scatter: fillScatter, curves: fillCurves, history: fillHistory, launches: fillLaunches };

// --- Colours of axes by the colour scheme ---

function paint(model) {
  const ink = dark.matches ? "#e6edf3" : "#1b1f24";
  const soft = dark.matches ? "#9aa4af" : "#57606a";
  const grid = dark.matches ? "#2b333c" : "#e4e8ec";
  for (const part of [...model.below, ...model.left, ...model.right]) {
    if (part.type === "ColorBar") {
      Object.assign(part, { major_label_text_color: soft, title_text_color: ink, major_tick_line_color: soft });
    } else {
      Object.assign(part, { axis_label_text_color: ink, major_label_text_color: soft, axis_line_color: soft, major_tick_line_color: soft, minor_tick_line_color: soft });
    }
  }
  for (const part of model.center) {
    if (part.type === "Grid") part.grid_line_color = grid;
  }
  for (const drawn of model.renderers) {
    if (drawn.name === "roof") drawn.glyph.line_color = soft;
    if (drawn.name === "label-text") drawn.glyph.text_color = ink;
  }
}

async function draw() {
  for (const spec of data.figures) {
    const views = await Bokeh.embed.embed_item(spec.item, spec.id);
    const model = (Array.isArray(views) ? views : [...views])[0].model;
    const named = (name) => model.document.get_model_by_name(name);
    figures.push({ spec, model, named, source: (name) => named(name) });
    paint(model);
  }
  listeners.push((rows) => {
    // Rows of another kind than those that are filtered are all shown.
    for (const figure of figures) fillers[figure.spec.kind](figure, figure.spec.rows ? data.others[figure.spec.rows] : rows);
  });
  update();
  document.documentElement.dataset.drawn = "yes";
}

let resized = 0;
window.addEventListener("resize", () => {
  clearTimeout(resized);
  resized = setTimeout(update, 200); // labels keep their distance in pixels
});
dark.addEventListener("change", () => figures.forEach((figure) => paint(figure.model)));
draw();
