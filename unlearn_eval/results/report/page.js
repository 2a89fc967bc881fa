"use strict";
// Data becomes text nodes and attributes that we name here; nothing of it is ever read as HTML.

const data = bare(JSON.parse(document.getElementById("summary").textContent));
const $ = (selector, within = document) => within.querySelector(selector);
const ARROWS = new Map([[true, "↑"], [false, "↓"], [null, ""]]);
const NO_EDIT = "no edit";
const COSTS = {
  edit_seconds: "seconds of the edit",
  peak_memory_bytes: "peak memory of the edit, GB",
  evaluation_seconds: "seconds of the evaluation",
};
const state = { task: "", model: "", method: "", set: "", name: "", sort: null, ascending: false, all: false };

// Elements ---------------------------------------------------------------------------------------------------

function element(kind, attributes = {}, ...children) {
  const made = document.createElement(kind);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, handler] of Object.entries(value)) made.addEventListener(event, handler);
    else if (name === "help") { if (value) made.dataset.help = value; }
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function drawn(kind, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "help") made.dataset.help = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** A long name that may break after its underscores. */
function breakable(name) {
  const parts = name.split(/(?<=[_/])/);
  return parts.flatMap((part, i) => (i ? [document.createElement("wbr"), part] : [part]));
}

function options(select, pairs, chosen) {
  select.replaceChildren(...pairs.map(([value, text]) => element("option", { value, selected: value === chosen }, text)));
}

// Numbers ----------------------------------------------------------------------------------------------------

function number(value, signed = false) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  const text = size !== 0 && size < 5e-4 ? size.toExponential(1) : size >= 1e4 ? size.toExponential(2) : size.toFixed(3);
  return (value < 0 ? "−" : signed ? "+" : "") + text;
}

const range = (low, high) => (low === null || low === undefined ? "" : `[${number(low)}, ${number(high)}]`);

function seconds(value) {
  if (value === null) return "–";
  return value < 120 ? `${value.toFixed(value < 10 ? 1 : 0)} s` : `${(value / 60).toFixed(value < 6000 ? 1 : 0)} min`;
}

const plural = (n, one) => `${n} ${one}${n === 1 ? "" : "s"}`;
const gigabytes = (value) => (value === null ? "–" : `${(value / 1e9).toFixed(2)} GB`);

// A task may be called `constructor`: what is looked up by names from files inherits nothing.
function bare(value) {
  if (Array.isArray(value)) { if (typeof value[0] === "object") value.forEach(bare); }
  else if (value !== null && typeof value === "object") Object.values(Object.setPrototypeOf(value, null)).forEach(bare);
  return value;
}

// The data ---------------------------------------------------------------------------------------------------

const { runs, columns, tasks } = data;
runs.forEach((run, i) => { run.index = i; run.cells = new Map(); });
data.cells.run.forEach((run, i) => {
  const cell = Object.fromEntries(Object.entries(data.cells).map(([key, values]) => [key, values[i]]));
  runs[run].cells.set(cell.column, cell);
});
columns.forEach((column, i) => { column.index = i; });
const methods = [...new Set(runs.map((run) => run.method))].sort((a, b) => (b === NO_EDIT) - (a === NO_EDIT) || a.localeCompare(b));

const columnsOf = (task) => columns.filter((column) => column.task === task);
const columnNamed = (name) => columnsOf(state.task).find((column) => column.name === name);
const taskNow = () => tasks.find((task) => task.name === state.task);
const valueOf = (run, column) => run.cells.get(column.index)?.value ?? null;

/** Whether `a` is better than `b`; without a direction, the larger one comes first. */
const isBetter = (column, a, b) => (column.higher === false ? a < b : a > b);

function isShown(run) {
  if (!columnsOf(state.task).some((column) => run.cells.has(column.index))) return false;
  return matches(run) || runs.some((other) => other.base === run.index && matches(other));
}

function matches(run) {
  return (!state.model || run.model === state.model) && (!state.method || run.method === state.method)
    && (!state.set || run.forget_set === state.set) && run.name.toLowerCase().includes(state.name);
}

const shownRuns = () => runs.filter(isShown);

function meaningOf(column) {
  const end = { true: "Higher is better.", false: "Lower is better.", null: "Neither end is better by itself." };
  return `${column.name}\n${column.meaning}\n${end[column.higher]}`;
}

function cellHelp(run, column, cell) {
  if (cell.value === null) return `${column.name}: no value, because ${cell.reason}`;
  const lines = [`${run.name}, ${column.name}: ${cell.value}`];
  if (cell.stderr !== null) lines.push(`standard error ${number(cell.stderr)}, 95 % interval ${range(cell.low, cell.high)}`);
  lines.push(`${cell.n === null ? "number of items not known" : `over ${cell.n} items`}${cell.unscored ? `, ${cell.unscored} more could not be scored` : ""}`);
  if (run.base !== null) lines.push(changeHelp(run, cell));
  return lines.join("\n");
}

function changeHelp(run, cell) {
  const from = `change from ${runs[run.base].name}`;
  if (cell.change === null) return `${from}: none${cell.why ? ` (${cell.why})` : ""}`;
  if (cell.p === null) return `${from}: ${number(cell.change, true)}; no test: ${cell.why}`;
  return `${from}: ${number(cell.change, true)} ${range(cell.change_low, cell.change_high)}, p = ${number(cell.p)} (${cell.test})`;
}

/** "better" or "worse" for a change with p < 0.05 in a metric with a direction, else "". */
function verdict(column, cell) {
  if (!cell.change || cell.p === null || cell.p >= 0.05 || column.higher === null) return "";
  return (cell.change > 0) === column.higher ? "better" : "worse";
}

// Leaderboard ------------------------------------------------------------------------------------------------

const TEXTS = { name: "run", model: "model", method: "method", forget_set: "forget set" };
const COST_COLUMNS = { edit_seconds: ["edit", seconds], peak_memory_bytes: ["memory", gigabytes] };

function leaderboard() {
  const chosen = state.all ? columnsOf(state.task) : taskNow().headline.map(columnNamed);
  const rows = sorted(shownRuns());
  const best = new Map(chosen.map((column) => [column, bestOf(column, rows)]));
  const costs = Object.keys(COST_COLUMNS).filter((key) => rows.some((run) => run[key] !== null));
  const texts = Object.keys(TEXTS).filter((key) => key !== "model" || new Set(runs.map((run) => run.model)).size > 1);
  const head = element("tr", {},
    ...texts.map((key) => heading(key, TEXTS[key], textClass(key), null)),
    ...chosen.map((column) => heading(column.index, `${column.name}\u00a0${ARROWS.get(column.higher)}`, "", meaningOf(column))),
    ...costs.map((key) => heading(key, COST_COLUMNS[key][0], "", COSTS[key])));
  $("#leaderboard table").replaceChildren(
    element("thead", {}, head),
    element("tbody", {}, ...rows.map((run) => element("tr", {},
      element("td", { class: "run" }, nameOf(run)),
      ...texts.slice(1).map((key) => element("td", { class: textClass(key) }, ...breakable((run[key] ?? "–").replace(" (", "\u00a0(")))),
      ...chosen.map((column) => valueCell(run, column, best.get(column))),
      ...costs.map((key) => element("td", {}, COST_COLUMNS[key][1](run[key])))))));
  $("#leaderboard td.value")?.setAttribute("tabindex", 0);
  if (!rows.length) $("#leaderboard tbody").append(element("tr", {}, element("td", {}, "no run fits the filters")));
}

/** A phone has no room for model and forget set. */
const textClass = (key) => (key === "model" || key === "forget_set" ? "text wide" : "text");

function nameOf(run) {
  const link = element("a", { href: `#run-${run.index}`, on: { click: () => openProvenance(run) } }, ...breakable(run.name));
  const parts = [link];
  if (run.status !== "complete") parts.push(element("small", { class: "worse" }, run.status));
  // Shown, not hidden in a tooltip: a failed edit's numbers say nothing of its method.
  for (const fault of run.faults) parts.push(element("small", { class: "worse fault" }, `⚠ ${fault}`));
  return element("div", {}, ...parts);
}

function heading(key, text, kind, help) {
  const isSorted = state.sort === key;
  const button = element("button", { type: "button", help, "data-key": key, on: { click: () => sortBy(key) } }, ...breakable(text));
  if (isSorted) button.append(state.ascending ? " ▲" : " ▼");
  return element("th", { scope: "col", class: kind, "aria-sort": isSorted ? (state.ascending ? "ascending" : "descending") : null }, button);
}

function valueCell(run, column, best) {
  const cell = run.cells.get(column.index);
  if (!cell) return element("td", { class: "value", tabindex: -1, help: `${run.name} was not measured by ${column.name}` }, "");
  const parts = [number(cell.value)];
  if (cell.low !== null) parts.push(element("small", {}, range(cell.low, cell.high)));
  const isBest = best !== null && cell.value === best && run.method !== NO_EDIT && !run.faults.length;
  return element("td", { class: isBest ? "value best" : "value", tabindex: -1, help: cellHelp(run, column, cell) }, ...parts);
}

function bestOf(column, rows) {
  const values = rows.filter((run) => run.method !== NO_EDIT && !run.faults.length).map((run) => valueOf(run, column)).filter((v) => v !== null);
  if (new Set(values).size < 2) return null;
  return values.reduce((best, value) => (isBetter(column, value, best) ? value : best));
}

/** Sorting a metric shows the best first; again, the worst. Runs without a value come last either way. */
function sortBy(key) {
  if (state.sort === key) state.ascending = !state.ascending;
  else { state.sort = key; state.ascending = typeof key === "number" ? columns[key].higher === false : true; }
  leaderboard();
  $(`th button[data-key="${key}"]`)?.focus();
}

function sorted(rows) {
  if (state.sort === null) return rows;
  const key = state.sort;
  const value = (run) => (typeof key === "number" ? valueOf(run, columns[key]) : run[key]);
  const order = (a, b) => (typeof a === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true }));
  return [...rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === null || y === null) return (x === null) - (y === null);
    return state.ascending ? order(x, y) : order(y, x);
  });
}

// Scatter charts ---------------------------------------------------------------------------------------------

/**
 * A scatter of runs. An axis has `text`, `value(run)`, `ends(run)` (its interval) and `flipped`, so that better is right and up;
 * `shows` are numbers that have to be on it.
 * The mark's colour and shape say the method.
 */
function scatter(place, x, y, withLine) {
  const points = shownRuns().map((run) => ({ run, x: x.value(run), y: y.value(run) })).filter((p) => p.x !== null && p.y !== null);
  if (!points.length) return place.replaceChildren(element("p", { class: "muted" }, "No run here has both numbers."));
  const width = Math.max(300, place.clientWidth || 640), height = Math.min(430, Math.max(280, width * 0.55));
  const box = { left: 52, right: width - 16, top: 14, bottom: height - 46 };
  const spread = (axis) => [...(axis.shows ?? []), ...points.flatMap(({ run }) => [axis.value(run), ...axis.ends(run)])];
  const sx = scale(spread(x), box.left, box.right, x.flipped), sy = scale(spread(y), box.bottom, box.top, y.flipped);
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `${y.text} against ${x.text}` });
  for (const tick of sx.ticks) {
    svg.append(drawn("line", { class: "grid", x1: sx.at(tick), x2: sx.at(tick), y1: box.top, y2: box.bottom }),
      drawn("text", { x: sx.at(tick), y: box.bottom + 17, "text-anchor": "middle" }, sx.label(tick)));
  }
  for (const tick of sy.ticks) {
    svg.append(drawn("line", { class: "grid", x1: box.left, x2: box.right, y1: sy.at(tick), y2: sy.at(tick) }),
      drawn("text", { x: box.left - 7, y: sy.at(tick) + 4, "text-anchor": "end" }, sy.label(tick)));
  }
  svg.append(drawn("text", { class: "name", x: box.right, y: height - 8, "text-anchor": "end" }, `${x.text} →`),
    drawn("text", { class: "name", x: 14, y: box.top, "text-anchor": "end", transform: `rotate(-90 14 ${box.top})` }, `${y.text} →`));
  if (withLine) {
    const line = pareto(points, x.flipped, y.flipped).map((p) => `${sx.at(p.x)},${sy.at(p.y)}`).join(" ");
    svg.append(drawn("polyline", { class: "pareto", points: line }));
  }
  svg.append(...points.map((point) => mark(point, points, sx, sy, x, y)));
  $(".point", svg).setAttribute("tabindex", 0);
  const missing = shownRuns().filter((run) => withLine || run.method !== NO_EDIT).length - points.length;
  place.replaceChildren(svg, legend(points),
    ...(missing > 0 ? [element("p", { class: "muted" }, `Not drawn for want of one of the two numbers: ${plural(missing, "run")}.`)] : []));
}

function mark({ run, x: vx, y: vy }, points, sx, sy, x, y) {
  const [px, py] = [sx.at(vx), sy.at(vy)], style = methods.indexOf(run.method);
  const same = points.filter((point) => point.run !== run && point.x === vx && point.y === vy).map((point) => point.run.name);
  const help = `${run.name}\n${run.method}${run.forget_set ? `, forgets ${run.forget_set}` : ""}, ${run.model}\n`
    + `${y.plain}: ${number(vy)} ${range(...pair(y.ends(run)))}\n${x.plain}: ${number(vx)} ${range(...pair(x.ends(run)))}`
    + run.faults.map((fault) => `\n⚠ ${fault}`).join("")
    + (same.length ? `\nat the same place: ${same.slice(0, 8).join(", ")}${same.length > 8 ? ", ..." : ""}` : "");
  const group = drawn("g", { class: `point c${style % 8}`, tabindex: -1, role: "img", "aria-label": help, help });
  const [ex, ey] = [x.ends(run), y.ends(run)];
  if (ex.length) group.append(drawn("line", { class: "whisker", x1: sx.at(ex[0]), x2: sx.at(ex[1]), y1: py, y2: py }));
  if (ey.length) group.append(drawn("line", { class: "whisker", x1: px, x2: px, y1: sy.at(ey[0]), y2: sy.at(ey[1]) }));
  group.append(shape(style, px, py));
  return group;
}

const pair = (ends) => (ends.length ? ends : [null, null]);

/** Eight colours and, beyond eight methods, another shape: circle, square, diamond, triangle. */
function shape(style, x, y) {
  const r = 6.5, kind = Math.floor(style / 8) % 4;
  if (kind === 0) return drawn("circle", { class: "mark", cx: x, cy: y, r });
  if (kind === 1) return drawn("rect", { class: "mark", x: x - r + 1, y: y - r + 1, width: 2 * r - 2, height: 2 * r - 2 });
  const points = kind === 2 ? [[0, -r], [r, 0], [0, r], [-r, 0]] : [[0, -r], [r, r - 1], [-r, r - 1]];
  return drawn("polygon", { class: "mark", points: points.map(([dx, dy]) => `${x + dx},${y + dy}`).join(" ") });
}

function legend(points) {
  const present = methods.filter((method) => points.some((point) => point.run.method === method));
  return element("ul", { class: "legend" }, ...present.map((method) => {
    const style = methods.indexOf(method);
    return element("li", { class: `c${style % 8}` },
      drawn("svg", { width: 16, height: 16, "aria-hidden": "true" }, shape(style, 8, 8)), element("span", {}, method));
  }));
}

function scale(values, from, to, flipped) {
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  const margin = (high - low) * 0.05;
  const step = niceStep((high - low) / 5);
  const ticks = [];
  for (let i = Math.ceil((low - margin) / step); i * step <= high + margin; i++) ticks.push(i * step);
  const [start, end] = flipped ? [high + margin, low - margin] : [low - margin, high + margin];
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return { ticks, at: (value) => from + ((value - start) / (end - start)) * (to - from), label: (tick) => tick.toFixed(Math.min(digits, 6)) };
}

function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
}

/** The points that no other one beats in one axis without losing in the other, along the first. */
function pareto(points, xFlipped, yFlipped) {
  const [gx, gy] = [xFlipped ? -1 : 1, yFlipped ? -1 : 1];
  const ordered = [...points].sort((a, b) => gx * (b.x - a.x) || gy * (b.y - a.y));
  const kept = [];
  for (const point of ordered) if (!kept.length || gy * point.y > gy * kept[kept.length - 1].y) kept.push(point);
  return kept;
}

function metricAxis(name) {
  const column = columnNamed(name);
  if (!column) return null;
  return {
    text: `${name}${column.higher === false ? " (lower is better)" : ""}`, plain: name, flipped: column.higher === false,
    value: (run) => valueOf(run, column),
    ends: (run) => { const cell = run.cells.get(column.index); return cell && cell.low !== null ? [cell.low, cell.high] : []; },
  };
}

function costAxis(key) {
  const unit = key === "peak_memory_bytes" ? 1e9 : 1;
  return { text: COSTS[key], plain: COSTS[key], flipped: false, shows: [0], ends: () => [], value: (run) => (run[key] === null ? null : run[key] / unit) };
}

function frontier() {
  const [x, y] = ["x", "y"].map((axis) => metricAxis($(`#frontier [data-axis=${axis}]`).value));
  if (x && y) scatter($("#frontier .chart"), x, y, true);
  else $("#frontier .chart").replaceChildren(element("p", { class: "muted" }, "This task does not measure both."));
}

function costs() {
  const y = metricAxis($("#cost [data-axis=y]").value);
  if (y) scatter($("#cost .chart"), costAxis($("#cost [data-axis=x]").value), y, false);
}

// Bars -------------------------------------------------------------------------------------------------------

const FIRST_BARS = 12;

function bars() {
  const chosen = $("#metric").value;
  const names = chosen ? [chosen] : taskNow().headline;
  const limit = chosen ? 40 : FIRST_BARS;
  $("#metrics .bars").replaceChildren(...names.map((name) => barGroup(columnNamed(name), limit)));
}

function barGroup(column, limit) {
  const measured = shownRuns().filter((run) => run.cells.has(column.index));
  const rows = measured.length > limit ? bestFirst(measured, column) : measured;
  const cells = rows.map((run) => run.cells.get(column.index));
  const numbers = cells.flatMap((cell) => [cell.value, cell.low, cell.high]).filter((v) => v !== null);
  const low = Math.min(0, ...numbers), high = Math.max(low === 0 && numbers.every((v) => v <= 1) ? 1 : 0, ...numbers);
  const reach = Math.max(1e-9, ...cells.flatMap((cell) => [cell.change, cell.change_low, cell.change_high].map((v) => Math.abs(v ?? 0))));
  const group = element("div", { class: "group" },
    element("h3", { tabindex: 0, help: meaningOf(column) }, ...breakable(`${column.name} ${ARROWS.get(column.higher)}`)),
    ...rows.slice(0, limit).map((run) => barRow(run, column, low, high || 1, reach)));
  $(".bar", group)?.setAttribute("tabindex", 0);
  if (rows.length > limit) {
    const all = () => { group.replaceWith(barGroup(column, Infinity)); };
    group.append(element("button", { type: "button", on: { click: all } }, `All ${rows.length} runs`),
      element("span", { class: "muted" }, `the best ${limit} are shown, after what is unedited`));
  }
  return group;
}

/** Unedited runs, then the others from the best to the worst; those without a value come last. */
function bestFirst(rows, column) {
  const order = (run) => {
    const value = valueOf(run, column);
    return value === null ? Infinity : column.higher === false ? value : -value;
  };
  return [...rows].sort((a, b) => (b.method === NO_EDIT) - (a.method === NO_EDIT) || (order(a) === order(b) ? 0 : order(a) - order(b)));
}

function barRow(run, column, low, high, reach) {
  const cell = run.cells.get(column.index), better = verdict(column, cell);
  const at = (value) => `${(100 * (value - low)) / (high - low)}%`;
  const value = drawn("svg", { "aria-hidden": "true" }, drawn("rect", { class: "track", x: 0, y: 2, width: "100%", height: 14, rx: 3 }));
  if (cell.value !== null) {
    const [a, b] = [Math.min(0, cell.value), Math.max(0, cell.value)];
    value.append(drawn("rect", { class: "fill", x: at(a), y: 2, width: `${(100 * (b - a)) / (high - low)}%`, height: 14, rx: 2 }));
    if (cell.low !== null) value.append(...whiskers(at(cell.low), at(cell.high)));
  }
  value.classList.add(`c${methods.indexOf(run.method) % 8}`);
  return element("div", { class: "bar", tabindex: -1, help: cellHelp(run, column, cell) },
    element("span", { class: "label" }, run.name), value,
    element("span", { class: "number" }, number(cell.value), " ", element("small", {}, range(cell.low, cell.high))),
    ...(run.base === null ? [] : [changeBar(cell, reach), element("span", { class: `change ${better}` },
      cell.change === null ? "" : `${number(cell.change, true)} ${better}`)]));
}

function changeBar(cell, reach) {
  const at = (value) => `${50 + (48 * value) / reach}%`;
  const svg = drawn("svg", { "aria-hidden": "true" }, drawn("line", { class: "zero", x1: "50%", x2: "50%", y1: 0, y2: 18 }));
  if (cell.change === null) return svg;
  if (cell.change_low !== null) svg.append(...whiskers(at(cell.change_low), at(cell.change_high)));
  svg.append(drawn("circle", { class: "mark", cx: at(cell.change), cy: 9, r: 4.5 }));
  return svg;
}

function whiskers(a, b) {
  return [drawn("line", { class: "end", x1: a, x2: b, y1: 9, y2: 9 }),
    ...[a, b].map((x) => drawn("line", { class: "end", x1: x, x2: x, y1: 5, y2: 13 }))];
}

// Answers ----------------------------------------------------------------------------------------------------

const CARDS = 20;
const browser = { content: null, rows: [], drawn: 0, chosen: null };

/** Base64 as bytes, by the browser's own decoder where it has one. */
function unpacked(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const characters = atob(text), bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  return bytes;
}

async function decode() {
  const bytes = unpacked($("#answers-data").textContent);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  browser.content = bare(JSON.parse(await new Response(stream).text()));
  browser.items = new Map(Object.entries(browser.content.questions).map(([task, rows]) => [task, itemsOf(rows)]));
}

/** Item -> the rows of all texts by which it was asked, its own question first. */
function itemsOf(rows) {
  const items = new Map();
  rows.forEach((row, i) => { items.has(row[5]) ? items.get(row[5]).push(i) : items.set(row[5], [i]); });
  return items;
}

const hasAnswers = (run) => browser.content.runs[run.name]?.[state.task] !== undefined;

/** The run before the edit and the first three after it, until the reader chooses others. */
function comparedRuns() {
  const able = shownRuns().filter(hasAnswers);
  if (browser.chosen) return able.filter((run) => browser.chosen.has(run.index));
  const edited = able.filter((run) => run.base !== null).slice(0, 3);
  const before = [...new Set(edited.map((run) => runs[run.base]))].filter(hasAnswers);
  return edited.length ? [...before, ...edited.filter((run) => !before.includes(run))] : able.slice(0, 4);
}

function answersControls() {
  const rows = browser.content.questions[state.task] ?? [];
  const splits = [...new Set(rows.map((row) => browser.content.strings[row[1]]))].filter(Boolean);
  options($("#split"), [["", "all"], ...splits.map((split) => [split, split])], splits.includes("forget") ? "forget" : "");
  const ways = [...new Set(rows.map((row) => browser.content.strings[row[4]]))];
  options($("#way"), [["", "all ways"], ...ways.map((way) => [way, way])], "");
  $("#way").parentNode.hidden = ways.length < 2;
  options($("#class"), [["", "all"], ...Object.entries(browser.content.classes).map(([key, text]) => [key, `any ${text}`])], "");
  const tried = [...new Set(data.attacks.map((one) => one.task))].filter((task) => runs.some((run) => browser.content.tried[run.name]?.[task]));
  options($("#attacked"), [["", "each attack"], ...tried.map((task) => [task, task.replace("attack_", "")]), ["none", "none"]], "");
  $("#attacked").parentNode.hidden = !tried.length;
  runChooser();
}

function runChooser() {
  const compared = new Set(comparedRuns());
  const able = shownRuns().filter(hasAnswers);
  $("#shown summary").textContent = `Runs: ${compared.size} of ${able.length}`;
  const choose = (run, isOn) => {
    browser.chosen ??= new Set([...compared].map((one) => one.index));
    browser.chosen[isOn ? "add" : "delete"](run.index);
    $("#shown summary").textContent = `Runs: ${comparedRuns().length} of ${able.length}`;
    answers();
  };
  $("#shown div").replaceChildren(...able.map((run) => element("label", {},
    element("input", { type: "checkbox", checked: compared.has(run), on: { change: (event) => choose(run, event.target.checked) } }),
    `${run.name} (${run.method})`)));
}

function answers() {
  if (!browser.content) return;
  const { questions, strings } = browser.content, rows = questions[state.task] ?? [];
  const compared = comparedRuns(), said = compared.map((run) => browser.content.runs[run.name][state.task]);
  const needle = $("#search").value.trim().toLowerCase(), split = $("#split").value, kind = $("#class").value;
  const after = said.filter((_, i) => compared[i].method !== NO_EDIT);
  const way = $("#way").value, items = browser.items.get(state.task) ?? new Map();
  if (needle) browser.lower ??= strings.map((text) => text.toLowerCase());
  const holds = (index) => index >= 0 && browser.lower[index].includes(needle);
  const tried = (i) => compared.flatMap((run) => triedAt(run, i));
  const fits = (i) => (!way || strings[rows[i][4]] === way)
    && (!kind || (after.length ? after : said).some((one) => one.said[i] >= 0 && one.classes[i] === kind)
      || tried(i).some(({ column, row }) => column.said[row] >= 0 && column.classes[row] === kind))
    && (!needle || holds(rows[i][2]) || holds(rows[i][3]) || said.some((one) => holds(one.said[i] ?? -1)) || tried(i).some((one) => holds(triedText(one))));
  browser.rows = [...items].filter(([item, texts]) => (!split || strings[rows[item][1]] === split) && texts.some(fits))
    .map(([item, texts]) => ({ item, fitting: way || kind || needle ? texts.filter(fits) : texts, n: texts.length }));
  $("#found").textContent = rows.length ? `${browser.rows.length} of ${items.size} questions` : "These runs have no samples of this task.";
  browser.drawn = 0;
  $("#questions").replaceChildren();
  moreQuestions();
}

function moreQuestions() {
  const compared = comparedRuns(), next = browser.rows.slice(browser.drawn, browser.drawn + CARDS);
  $("#questions").append(...next.map((one) => card(one, compared)));
  browser.drawn += next.length;
  $("#more").hidden = browser.drawn >= browser.rows.length;
}

const FIRST_TEXTS = 3;

/** An item with the texts that fit what is looked for; beyond a few, those that are left fold away. */
function card({ item, fitting, n }, compared) {
  const { strings } = browser.content, [id, split, question, truth] = browser.content.questions[state.task][item];
  const asked = fitting.map((i) => askedBy(i, item, compared));
  const rest = asked.slice(FIRST_TEXTS), left = n - fitting.length;
  return element("li", {},
    element("h3", {}, ...marked(strings[question])),
    element("p", { class: "truth" }, "true answer: ", element("b", {}, ...marked(strings[truth] || "–")),
      `  ·  ${strings[split] ? `${strings[split]}  ·  ` : ""}${strings[id]}${left ? `  ·  ${plural(left, "way")} of asking not shown` : ""}`),
    ...asked.slice(0, FIRST_TEXTS),
    rest.length ? element("details", { class: "ways" }, element("summary", {}, `${rest.length} more ways of asking`), ...rest) : null);
}

/** One text of an item and its answers; the item's own question stands above all of them already. */
function askedBy(i, item, compared) {
  const { strings } = browser.content, [, , question, , label] = browser.content.questions[state.task][i];
  return element("div", { class: "asked" },
    i === item ? null : element("p", { class: "way" }, element("span", { class: "tag" }, strings[label]), " ", ...marked(strings[question])),
    element("div", { class: "said" }, ...compared.map((run) => answerColumn(run, i))));
}

function answer(run, i) {
  const { strings, classes, runs: all } = browser.content, one = all[run.name][state.task];
  const index = one.said[i] ?? -1, kind = index < 0 ? "not asked" : classes[one.classes[i]];
  return element("div", { class: `answer ${kind}` },
    element("header", {}, element("span", {}, `${run.method} · ${run.name}`),
      element("span", { class: "tag" }, kind)),
    element("p", {}, ...(index < 0 ? ["–"] : marked(strings[index] || "(nothing)"))));
}

/** A text with what is searched for marked. */
function marked(text) {
  const needle = $("#search").value.trim().toLowerCase(), lower = text.toLowerCase();
  if (!needle || lower.length !== text.length) return [text];
  const parts = [];
  let from = 0;
  for (let at = lower.indexOf(needle); at >= 0; at = lower.indexOf(needle, from)) {
    parts.push(text.slice(from, at), element("mark", {}, text.slice(at, at + needle.length)));
    from = at + needle.length;
  }
  return [...parts, text.slice(from)];
}

// Provenance -------------------------------------------------------------------------------------------------

function provenance() {
  $("#provenance .list").replaceChildren(...shownRuns().map((run) => {
    const facts = new Map(run.provenance);
    const summary = ["unlearn-eval", "commit", "seed", "weights (SHA-256)"].filter((key) => facts.has(key))
      .map((key) => `${key.replace(" (SHA-256)", "")} ${facts.get(key).slice(0, 12)}`).join(", ");
    const details = element("details", { id: `run-${run.index}` },
      element("summary", {}, run.name, " ", element("span", { class: "muted" }, summary)));
    details.addEventListener("toggle", () => fill(details, run), { once: true });
    return details;
  }));
}

function fill(details, run) {
  if ($("dl", details)) return;
  details.append(element("dl", {}, ...run.provenance.flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, text)])));
}

function openProvenance(run) {
  const details = $(`#run-${run.index}`);
  fill(details, run);
  details.open = true;
}

// Help -------------------------------------------------------------------------------------------------------

const help = $("#help");

function showHelp(event) {
  const owner = event.target instanceof Element ? event.target.closest("[data-help]") : null;
  if (!owner) return hideHelp();
  help.textContent = owner.dataset.help;
  help.hidden = false;
  owner.setAttribute("aria-describedby", "help");
  const at = owner.getBoundingClientRect(), own = help.getBoundingClientRect();
  const below = at.bottom + 8 + own.height < innerHeight;
  help.style.left = `${Math.max(8, Math.min(at.left, innerWidth - own.width - 12))}px`;
  help.style.top = `${below ? at.bottom + 8 : Math.max(8, at.top - own.height - 8)}px`;
}

function hideHelp() { help.hidden = true; }

for (const event of ["mouseover", "focusin"]) document.addEventListener(event, showHelp);
for (const event of ["mouseleave", "focusout", "scroll"]) document.addEventListener(event, hideHelp, { capture: event === "scroll", passive: true });
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hideHelp();
  const next = neighbour(document.activeElement, event.key);
  if (!next) return;
  event.preventDefault();
  document.activeElement.setAttribute("tabindex", -1);
  next.setAttribute("tabindex", 0);
  next.focus();
});

/** Points, bars and values are one stop of the Tab key for each chart or table; arrows go from one to the next. */
function neighbour(owner, key) {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[key];
  if (!step) return null;
  if (owner.matches(".point, .bar")) {
    const all = [...owner.parentNode.children].filter((one) => one.matches(".point, .bar"));
    return all[all.indexOf(owner) + step];
  }
  if (!owner.matches("td.value")) return null;
  const [forward, back] = ["nextElementSibling", "previousElementSibling"];
  const to = step > 0 ? forward : back;
  const cell = key === "ArrowUp" || key === "ArrowDown" ? owner.parentNode[to]?.children[owner.cellIndex] : owner[to];
  return cell?.matches("td.value") ? cell : null;
}

// The page ---------------------------------------------------------------------------------------------------

function draw() {
  leaderboard();
  frontier();
  bars();
  costs();
  robustness();
  localizations();
  provenance();
  if (browser.content) { runChooser(); answers(); }
}

/** What depends on the task: which metrics and questions there are. */
function changeTask() {
  state.task = $("#task").value;
  state.sort = null;
  const own = columnsOf(state.task), task = taskNow(), list = own.map((column) => [column.name, column.name]);
  const first = own[0]?.name ?? "";
  options($("#frontier [data-axis=y]"), list, task.forgets ?? first);
  options($("#frontier [data-axis=x]"), list, task.keeps ?? own[1]?.name ?? first);
  options($("#cost [data-axis=y]"), list, task.forgets ?? first);
  options($("#cost [data-axis=x]"), Object.entries(COSTS), "edit_seconds");
  options($("#metric"), [["", "those looked at first"], ...list], "");
  browser.chosen = null;
  if (browser.content) answersControls();
  draw();
}

function start() {
  const names = (key) => [["", "all"], ...[...new Set(runs.map((run) => run[key]).filter(Boolean))].sort().map((v) => [v, v])];
  const models = [...new Set(runs.map((run) => run.model))];
  $("#overview").textContent = [plural(runs.length, "run"), models.length === 1 ? models[0] : plural(models.length, "model"),
    plural(methods.filter((method) => method !== NO_EDIT).length, "method"), plural(tasks.length, "task")].join(" · ");
  if (data.notes.length) {
    $("#notes").hidden = false;
    $("#notes summary").textContent = data.skipped ? `${plural(data.skipped, "file")} skipped` : plural(data.notes.length, "note");
    $("#notes ul").append(...data.notes.map((line) => element("li", {}, line)));
  }
  options($("#task"), tasks.map((task) => [task.name, task.name]), tasks[0]?.name);
  options($("#model"), names("model"), "");
  options($("#method"), names("method"), "");
  options($("#set"), names("forget_set"), "");
  options($("#measure"), Object.entries(MEASURES), "accuracy");
  if (!tasks.length) return;
  changeTask();
  $("#task").addEventListener("change", changeTask);
  for (const key of ["model", "method", "set"]) $(`#${key}`).addEventListener("change", (event) => { state[key] = event.target.value; draw(); });
  $("#name").addEventListener("input", (event) => { state.name = event.target.value.toLowerCase(); draw(); });
  $("#filters").addEventListener("submit", (event) => event.preventDefault());
  $("#all").addEventListener("change", (event) => { state.all = event.target.checked; leaderboard(); });
  for (const select of document.querySelectorAll("#frontier select")) select.addEventListener("change", frontier);
  for (const select of document.querySelectorAll("#cost select")) select.addEventListener("change", costs);
  $("#metric").addEventListener("change", bars);
  for (const id of ["measure", "curve", "layered"]) $(`#${id}`).addEventListener("change", robustness);
  for (const id of ["search", "split", "way", "class", "attacked"]) $(`#${id}`).addEventListener("input", answers);
  $("#more").addEventListener("click", () => {
    const next = browser.drawn;
    moreQuestions();
    const first = $("#questions").children[next];
    if (first) { first.tabIndex = -1; first.focus({ preventScroll: true }); }
  });
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; frontier(); costs(); robustness(); localizations(); } });
  decode().then(() => { answersControls(); answers(); document.body.dataset.ready = "yes"; })
    .catch((error) => { $("#found").textContent = `The answers could not be unpacked by this browser: ${error}`; });
}

start();
