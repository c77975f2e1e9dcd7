// Training curves: the mean over seeds with a band from the lowest to the highest, for each network that is shown.
"use strict";

function fillCurves(figure, rows) {
  const { panel, quantity } = figure.spec;
  const log = quantity === "loss";
  const drawn = rows.filter((row) => row.point === panel && row[quantity].length);
  const marks = [];
  const lines = { xs: [], ys: [], color: [], dash: [] };
  const bands = { xs: [], ys: [], color: [] };
  for (const row of drawn) {
    const { style } = row;
    const epochs = row[quantity].map((each, n) => ({ ...each, epoch: n + 1 })).filter((each) => !log || each.low > 0);
    for (const each of epochs) {
      marks.push({ x: each.epoch, y: each.mean, low: each.mean, high: each.mean, told: each.told, name: row.name, place: `epoch ${each.epoch}`, marker: style.marker, color: style.color, fill: style.filled ? 0.85 : 0 });
    }
    const xs = epochs.map((each) => each.epoch);
    lines.xs.push(xs);
    lines.ys.push(epochs.map((each) => each.mean));
    lines.color.push(style.color);
    lines.dash.push(style.filled ? "solid" : "dashed");
    bands.xs.push([...xs, ...xs.toReversed()]);
    bands.ys.push([...epochs.map((each) => each.high), ...epochs.map((each) => each.low).toReversed()]);
    bands.color.push(style.color);
  }
  figure.source("lines").data = lines;
  figure.source("bands").data = bands;
  setMarks(figure, marks);
}
