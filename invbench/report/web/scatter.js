// Pictures of whole networks: accuracy and latency against what a network counts, each network's name at its mark.
"use strict";

const LABEL_FONT = "12px system-ui, sans-serif";
const measuring = document.createElement("canvas").getContext("2d");

// --- What is drawn: of accuracy one mark for each network, of latency one for each row ---

function scatterRows(spec, rows) {
  const { x, y } = spec;
  const able = rows.filter((row) => !row.free && row[x] > 0 && (y === "t" ? row.t !== null : y in row.scores));
  if (y === "t") return able.filter((row) => spec.panel === null || row.point === spec.panel);
  const fitting = able.filter((row) => row.dataSet === spec.dataSet && (x === "params" || row.alike));
  return [...new Map(fitting.map((row) => [row.subject, row])).values()];
}

function scatterMark(spec, row) {
  const accuracy = spec.y !== "t";
  const value = accuracy ? row.scores[spec.y] : row.t;
  const style = accuracy ? row.familyStyle : row.style;
  const counted = spec.x === "params" ? row.toldParams : row.toldMacs;
  const told = accuracy ? row.toldScores[spec.y] : row.told;
  return {
    x: row[spec.x] * spec.scale, y: value, low: accuracy ? value : row.low, high: accuracy ? value : row.high,
    told, name: accuracy ? row.subject : row.name, place: [counted, accuracy ? "" : row.place].filter(Boolean).join(", "),
    marker: style.marker, color: style.color, fill: style.filled ? 0.85 : 0,
    subject: row.subject, series: accuracy ? row.family : `${row.way} ${row.point}`, filled: style.filled,
  };
}

function fillScatter(figure, rows) {
  const { spec, model } = figure;
  const marks = scatterRows(spec, rows).map((row) => scatterMark(spec, row));
  marks.sort((a, b) => b.filled - a.filled); // hollow marks last, which cover nothing
  document.getElementById(spec.id).parentNode.hidden = marks.length === 0;
  const lines = Map.groupBy(marks.toSorted((a, b) => a.x - b.x), (mark) => mark.series);
  const several = [...lines.values()].filter((line) => line.length > 1);
  figure.source("lines").data = {
    xs: several.map((line) => line.map((mark) => mark.x)),
    ys: several.map((line) => line.map((mark) => mark.y)),
    color: several.map((line) => line[0].color),
    dash: several.map((line) => (line[0].filled ? "solid" : "dashed")),
  };
  setMarks(figure, marks);
  if (marks.length) {
    setRange(model.x_range, marks.map((mark) => mark.x), true, 0.14);
    setRange(model.y_range, marks.flatMap((mark) => [mark.low, mark.high]), spec.y === "t", 0.12);
    setTicks(model.below[0], [model.x_range.start, model.x_range.end]);
    setTicks(model.left[0], [model.y_range.start, model.y_range.end]);
  }
  figure.source("labels").data = columns(labelsOf(figure, marks), ["x", "y", "text", "dx", "dy", "align", "baseline"]);
}

function setRange(range, values, log, padding) {
  const scaled = values.map((value) => (log ? Math.log10(value) : value));
  const [low, high] = [Math.min(...scaled), Math.max(...scaled)];
  const least = log ? 0.25 : 2; // so that a few ticks are in it
  const pad = Math.max(padding * (high - low), (least - (high - low)) / 2);
  const [start, end] = [low - pad, high + pad].map((value) => (log ? 10 ** value : value));
  Object.assign(range, { start, end, reset_start: start, reset_end: end });
}

// --- Labels: beside a network's mark where that covers nothing, else none: the mouse tells the name, too ---

const PLACES = [
  { dx: 9, dy: 0, align: "left", baseline: "middle" },
  { dx: -9, dy: 0, align: "right", baseline: "middle" },
  { dx: 0, dy: -8, align: "center", baseline: "bottom" },
  { dx: 0, dy: 8, align: "center", baseline: "top" },
  { dx: 8, dy: -6, align: "left", baseline: "bottom" },
  { dx: 8, dy: 6, align: "left", baseline: "top" },
  { dx: -8, dy: -6, align: "right", baseline: "bottom" },
  { dx: -8, dy: 6, align: "right", baseline: "top" },
];

function pixels(range, value, log, length) {
  const [start, end, at] = [range.start, range.end, value].map((each) => (log ? Math.log10(each) : each));
  return ((at - start) / (end - start)) * length;
}

function boxOf(x, y, width, place) {
  const left = x + place.dx - { left: 0, center: width / 2, right: width }[place.align];
  const top = y + place.dy - { top: 0, middle: 7, bottom: 14 }[place.baseline];
  return { left, top, right: left + width, bottom: top + 14 };
}

function overlap(a, b) {
  return a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
}

function segmentBoxes(line) {
  const boxes = [];
  for (let n = 1; n < line.length; n += 1) {
    for (let step = 1; step < 12; step += 1) {
      const x = line[n - 1].px + ((line[n].px - line[n - 1].px) * step) / 12;
      const y = line[n - 1].py + ((line[n].py - line[n - 1].py) * step) / 12;
      boxes.push({ left: x - 1, top: y - 1, right: x + 1, bottom: y + 1 });
    }
  }
  return boxes;
}

function labelsOf(figure, marks) {
  const width = document.getElementById(figure.spec.id).clientWidth - 75;
  const height = figure.model.height - 75;
  const log = figure.spec.y === "t";
  const placed = marks.map((mark) => ({
    ...mark,
    px: pixels(figure.model.x_range, mark.x, true, width),
    py: height - pixels(figure.model.y_range, mark.y, log, height),
  }));
  const solid = placed.map(({ px, py }) => ({ left: px - 5, top: py - 5, right: px + 5, bottom: py + 5 }));
  const lines = Map.groupBy(placed.toSorted((a, b) => a.x - b.x), (mark) => mark.series);
  const thin = [...lines.values()].flatMap(segmentBoxes);
  const found = [];
  measuring.font = LABEL_FONT;
  const named = new Set();
  for (const mark of placed.toSorted((a, b) => a.py - b.py)) {
    if (named.has(mark.subject)) continue; // of several rows of a network the slowest
    const text = measuring.measureText(mark.subject).width + 4;
    const free = PLACES.map((place) => ({ place, box: boxOf(mark.px, mark.py, text, place) })).filter(
      ({ box }) => box.left >= 0 && box.right <= width && box.top >= 0 && box.bottom <= height && !solid.some((other) => overlap(box, other)),
    );
    const best = free.find(({ box }) => !thin.some((other) => overlap(box, other))) ?? free[0];
    if (!best) continue;
    named.add(mark.subject);
    solid.push(best.box);
    found.push({ x: mark.x, y: mark.y, text: mark.subject, ...best.place });
  }
  return found;
}
