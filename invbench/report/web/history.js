// Latencies over the runs of a history: a picture for each row, hidden with its row, its unit as chosen.
"use strict";

function fillHistory(figure, rows) {
  const row = data.rows[figure.spec.row];
  document.getElementById(figure.spec.id).parentElement.hidden = !rows.includes(row);
  const value = row.control && chosen("state", "value") === "relative" ? "relative" : "latency";
  const drawn = row.readings.filter((each) => each[value] > 0); // the scale is logarithmic
  const levels = row.levels.filter((each) => each[value] > 0);
  figure.model.left[0].axis_label = value === "latency" ? `latency (${row.unit})` : `latency over ${row.control}'s`;
  figure.model.below[0].major_label_overrides = new Map(["", ...data.dates, ""].entries()); // by number, from 1
  figure.source("lines").data = { xs: [drawn.map((each) => each.x)], ys: [drawn.map((each) => each[value])] };
  figure.source("levels").data = {
    xs: levels.map((each) => [each.x0 - 0.5, each.x1 + 0.5]),
    ys: levels.map((each) => [each[value], each[value]]),
  };
  figure.source("changes").data = columns(row.changes, ["x", "told"]);
  setMarks(figure, drawn.map((each) => ({ ...each, y: each[value], low: each[value], high: each[value], place: "", fill: each.filled ? 0.85 : 0 })));
}
