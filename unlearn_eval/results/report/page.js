"use strict";
// Data becomes text nodes and attributes that we name here; nothing of it is ever read as HTML.

const data = bare(JSON.parse(document.getElementById("summary").textContent));
const ARROWS = new Map([[true, "↑"], [false, "↓"], [null, ""]]);
const NO_EDIT = "no edit";
const COSTS = {
  edit_seconds: "seconds of the edit",
  peak_memory_bytes: "peak memory of the edit, GB",
  evaluation_seconds: "seconds of the evaluation",
};
const state = { task: "", model: "", method: "", set: "", name: "", sort: null, ascending: false, all: false, question: null };

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
/** A row: a method with its recipe, on one model and forget set. It has a run for each seed, and numbers over all of them. */
const rows = data.groups.map((group, index) => {
  const own = group.runs.map((i) => runs[i]), row = { ...group, index, runs: own, first: own[0], name: group.label, base: own[0].base, isUnedited: group.hue === null };
  row.cells = own.length === 1 ? own[0].cells : new Map();
  own.forEach((run) => { run.row = row; });
  for (const key of Object.keys(COSTS)) row[key] = mean(own.map((run) => run[key]));
  return row;
});
data.means.group.forEach((group, i) => {
  const mean = Object.fromEntries(Object.entries(data.means).map(([key, values]) => [key, values[i]])), own = rows[group];
  const cells = own.runs.map((run) => run.cells.get(mean.column)).filter(Boolean), [least, most] = columns[mean.column].bounds ?? [-Infinity, Infinity];
  const ends = mean.value === null || mean.deviation === null ? [null, null] : [Math.max(least, mean.value - mean.deviation), Math.min(most, mean.value + mean.deviation)];
  const apart = mean.change_deviation === null || mean.change === null ? [null, null] : [mean.change - mean.change_deviation, mean.change + mean.change_deviation];
  own.cells.set(mean.column, { ...mean, low: ends[0], high: ends[1], stderr: null, unscored: 0, seeds: cells.length, change_low: apart[0], change_high: apart[1],
    reason: cells[0].reason, test: "the largest of the seeds", why: "of several seeds" });
});
/** What searches for settings have tried: `{row, values}`, values by column. */
const trials = data.trials.trial.reduce((found, trial, i) => {
  const own = found[trial] ??= { row: rows[data.trials.group[i]], values: new Map() };
  own.values.set(data.trials.column[i], data.trials.value[i]);
  return found;
}, []).filter(Boolean);
const isShownRow = (row) => row.runs.some(isShown);
/** The rows of the task, from the best; those without an edit first. */
const shownRows = () => taskNow().order.map((i) => rows[i]).filter(isShownRow);

function mean(values) {
  const known = values.filter((value) => value !== null && value !== undefined);
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
}

const columnsOf = (task) => columns.filter((column) => column.task === task);
const columnNamed = (name) => columnsOf(state.task).find((column) => column.name === name);
const taskNow = () => tasks.find((task) => task.name === state.task);
const valueOf = (row, column) => row.cells.get(column.index)?.value ?? null;

/** Whether `a` is better than `b`; without a direction, the larger one comes first. */
const isBetter = (column, a, b) => (column.higher === false ? a < b : a > b);

function isShown(run) {
  if (!columnsOf(state.task).some((column) => run.cells.has(column.index))) return false;
  return matches(run) || runs.some((other) => other.base === run.index && matches(other));
}

function matches(run) {
  return (!state.model || run.model === state.model) && (!state.method || run.method === state.method)
    && (!state.set || run.forget_set === state.set) && `${run.label} ${run.name}`.toLowerCase().includes(state.name);
}

const shownRuns = () => runs.filter(isShown);

function meaningOf(column) {
  const end = { true: "Higher is better.", false: "Lower is better.", null: "Neither end is better by itself." };
  return `${column.name}\n${column.meaning}\n${end[column.higher]}`;
}

/** A metric in plain words; what it is of is said where no heading says it. */
/** What the metric was measured to be worth, if it was. */
const worthOf = (column) => (column.badge ? ` (${column.badge})` : "");
const plainly = (column, isUnderHeading = false) => `${column.of && !isUnderHeading ? `${column.of}: ` : ""}${column.plain}`;

function cellHelp(run, column, cell) {
  if (cell.value === null) return `${column.name}: no value, because ${cell.reason}`;
  const lines = [`${run.label}, ${column.name}: ${cell.value}`];
  if (cell.seeds) {
    lines.push(`mean of ${plural(cell.n, "seed")}${cell.deviation === null ? "" : `, standard deviation ${number(cell.deviation)}`}`);
    if (run.base !== null) lines.push(changeHelp(run, cell));
    return lines.join("\n");
  }
  if (cell.stderr !== null) lines.push(`standard error ${number(cell.stderr)}, 95 % interval ${range(cell.low, cell.high)}`);
  lines.push(`${cell.n === null ? "number of items not known" : `over ${cell.n} items`}${cell.unscored ? `, ${cell.unscored} more could not be scored` : ""}`);
  if (run.base !== null) lines.push(changeHelp(run, cell));
  return lines.join("\n");
}

function changeHelp(run, cell) {
  const from = `change from ${runs[run.base].label}`;
  if (cell.change === null) return `${from}: none${cell.why ? ` (${cell.why})` : ""}`;
  if (cell.p === null) return `${from}: ${number(cell.change, true)}; no test: ${cell.why}`;
  return `${from}: ${number(cell.change, true)} ${range(cell.change_low, cell.change_high)}, p = ${number(cell.p)} (${cell.test})`;
}

/** "better" or "worse" for a change with p < 0.05 in a metric with a direction, else "". */
function verdict(column, cell) {
  if (!cell.change || cell.p === null || cell.p >= 0.05 || column.higher === null) return "";
  return (cell.change > 0) === column.higher ? "better" : "worse";
}

// Colours ----------------------------------------------------------------------------------------------------

const HUES = 9;

/** One hue for a method, grey for what is unedited; beyond those that were chosen, hues are spread over the circle. */
function paint(made, row) {
  if (row.isUnedited) made.classList.add("unedited");
  else if (row.hue < HUES) made.classList.add(`c${row.hue}`);
  else {
    const angle = Math.round((row.hue - HUES) * 137.5 + 20) % 360;
    made.style.setProperty("color", `light-dark(hsl(${angle} 65% 38%), hsl(${angle} 65% 70%))`);
  }
  return made;
}

function swatch(row) {
  return paint(drawn("svg", { class: "swatch", viewBox: "0 0 14 14", width: 14, height: 14, "aria-hidden": "true" }, shape(row, 7, 7, 5.5)), row);
}

// Outcome ----------------------------------------------------------------------------------------------------

const FIRST_OUTCOMES = 12;

function outcome() {
  const { outcomes } = taskNow(), list = shownRows().filter((row) => outcomes[row.index]);
  const lines = list.map((row) => element("li", {}, swatch(row), element("b", {}, row.label), " ",
    element("span", { class: row.faults.length ? "worse" : null }, outcomes[row.index])));
  const rest = lines.slice(FIRST_OUTCOMES);
  $("#outcome ol").replaceChildren(...lines.slice(0, FIRST_OUTCOMES),
    ...(rest.length ? [element("li", {}, element("details", {}, element("summary", {}, `${rest.length} more`), element("ol", {}, ...rest)))] : []));
  $("#outcome").hidden = !list.length;
  $("nav [href='#outcome']").hidden = !list.length;
}

// Leaderboard ------------------------------------------------------------------------------------------------

const TEXTS = { label: "method", model: "model", forget_set: "forget set" };
const COST_COLUMNS = { edit_seconds: ["edit", seconds], peak_memory_bytes: ["memory", gigabytes] };
const opened = new Set();

function leaderboard() {
  const task = taskNow(), list = sorted(shownRows());
  const headings = state.all ? [...new Set(columnsOf(state.task).map((column) => column.group))].map((group) => [group, columnsOf(state.task).filter((column) => column.group === group)])
    : [["Forgetting", task.forget_columns.map(columnNamed)], ["Keeping", task.keep_columns.map(columnNamed)]].filter(([, own]) => own.length);
  const chosen = headings.flatMap(([, own]) => own), isRanked = Object.keys(task.scores).length > 0;
  const best = new Map(chosen.map((column) => [column, bestOf(column, list)]));
  const costs = Object.keys(COST_COLUMNS).filter((key) => list.some((row) => row[key] !== null));
  const texts = Object.keys(TEXTS).filter((key) => key === "label" || new Set(runs.map((run) => run[key]).filter(Boolean)).size > 1);
  const [y, x] = [task.forgets, task.keeps].map((name) => (name ? plainly(columnNamed(name)) : ""));
  $("#leaderboard .ranked").textContent = isRanked ? `Ranked by the harmonic mean of forgetting (${y}) and keeping (${x}).` : "";
  const over = element("tr", { class: "over" }, element("th", { colspan: texts.length }), ...headings.map(([text, own]) =>
    element("th", { scope: "colgroup", colspan: own.length }, text)), ...(isRanked || costs.length ? [element("th", { colspan: isRanked + costs.length })] : []));
  const head = element("tr", {},
    ...texts.map((key) => heading(key, TEXTS[key], textClass(key), null)),
    ...chosen.map((column) => heading(column.index, `${plainly(column, state.all)}\u00a0${ARROWS.get(column.higher)}${worthOf(column)}`, "", meaningOf(column), column.name)),
    ...(isRanked ? [heading("score", "both\u00a0↑", "", `Harmonic mean of forgetting and keeping, from 0 to 1\nforgetting: ${y}\nkeeping: ${x}`)] : []),
    ...costs.map((key) => heading(key, COST_COLUMNS[key][0], "", COSTS[key])));
  const shape = { texts, chosen, best, costs, isRanked };
  $("#leaderboard table").replaceChildren(element("thead", {}, over, head), element("tbody", {}, ...list.flatMap((row) => boardRows(row, shape))));
  $("#leaderboard td.value")?.setAttribute("tabindex", 0);
  if (!list.length) $("#leaderboard tbody").append(element("tr", {}, element("td", {}, "no run fits the filters")));
}

/** A row, and where it was opened one for each of its seeds. */
function boardRows(row, shape) {
  const { texts, chosen, best, costs, isRanked } = shape, score = taskNow().scores[row.index] ?? null;
  const place = taskNow().order.filter((i) => !rows[i].isUnedited).indexOf(row.index) + 1;
  const made = element("tr", { class: row.isUnedited ? "unedited" : null, "data-row": row.label, "data-run": row.runs.length === 1 ? row.first.name : null },
    element("td", { class: "run", "data-text": row.label }, nameOf(row, score === null || row.faults.length ? null : place)),
    ...texts.slice(1).map((key) => element("td", { class: textClass(key) }, ...breakable((row.first[key] ?? "–").replace(" (", "\u00a0(")))),
    ...chosen.map((column) => valueCell(row, column, best.get(column))),
    ...(isRanked ? [element("td", score === null ? {} : { "data-value": score }, number(score))] : []),
    ...costs.map((key) => element("td", row[key] === null ? {} : { "data-value": row[key] }, COST_COLUMNS[key][1](row[key]))));
  if (!opened.has(row.index)) return [made];
  return [made, ...row.runs.map((run) => element("tr", { class: "seed" },
    element("td", { class: "run", help: run.name }, linkOf(run)), ...texts.slice(1).map(() => element("td", {})),
    ...chosen.map((column) => valueCell(run, column, null)), ...(isRanked ? [element("td", {})] : []),
    ...costs.map((key) => element("td", {}, COST_COLUMNS[key][1](run[key])))))];
}

/** A phone has no room for model and forget set. */
const textClass = (key) => (key === "model" || key === "forget_set" ? "text wide" : "text");

const linkOf = (run, ...text) => element("a", { href: `#run-${run.index}`, on: { click: (event) => { event.preventDefault(); openProvenance(run); } } }, ...(text.length ? text : breakable(run.label)));

function nameOf(row, place) {
  const parts = [element("span", { class: "rank" }, place === null ? "" : String(place)), swatch(row),
    row.runs.length > 1 ? element("span", {}, ...breakable(row.label)) : linkOf(row.first, ...breakable(row.label))];
  if (row.runs.length > 1) {
    const toggle = () => { if (!opened.delete(row.index)) opened.add(row.index); leaderboard(); $(`tr[data-row="${CSS.escape(row.label)}"] td.run button`)?.focus(); };
    parts.push(" ", element("button", { type: "button", "aria-expanded": String(opened.has(row.index)), on: { click: toggle } }, `${row.runs.length} seeds`));
  }
  const states = [...new Set(row.runs.map((run) => run.status).filter((status) => status !== "complete"))];
  parts.push(...states.map((status) => element("small", { class: "worse" }, status)));
  // Shown, not hidden in a tooltip: a failed edit's numbers say nothing of its method.
  for (const fault of row.faults) parts.push(element("small", { class: "worse fault" }, `⚠ ${fault}`));
  return element("div", {}, ...parts);
}

function heading(key, text, kind, help, name = null) {
  const isSorted = state.sort === key;
  const button = element("button", { type: "button", help, "data-key": key, on: { click: () => sortBy(key) } }, text);
  if (isSorted) button.append(state.ascending ? " ▲" : " ▼");
  return element("th", { scope: "col", class: kind, "data-name": name ?? key, "data-text": name ?? text.replace("\u00a0", " "), "aria-sort": isSorted ? (state.ascending ? "ascending" : "descending") : null }, button);
}

/** The numbers of a cell, for the table's text. */
function numbersOf(cell) {
  if (cell.value === null) return {};
  const own = { "data-value": cell.value };
  if (cell.seeds) return cell.deviation === null ? own : { ...own, "data-pm": cell.deviation };
  return cell.low === null ? own : { ...own, "data-low": cell.low, "data-high": cell.high };
}

function spreadOf(cell) {
  if (cell.seeds) return cell.deviation === null ? "" : `± ${number(cell.deviation)}`;
  return range(cell.low, cell.high);
}

function valueCell(row, column, best) {
  const cell = row.cells.get(column.index);
  if (!cell) return element("td", { class: "value", tabindex: -1, help: `${row.name} was not measured by ${column.name}` }, "");
  const parts = [number(cell.value)], apart = spreadOf(cell);
  if (apart) parts.push(element("small", {}, apart));
  return element("td", { class: row === best ? "value best" : "value", tabindex: -1, help: cellHelp(row, column, cell), ...numbersOf(cell) }, ...parts);
}

/** The row that is better than every other edited one, beyond both intervals; null where none is, as where all are alike. */
function bestOf(column, list) {
  if (column.higher === null) return null;
  const able = list.filter((row) => !row.isUnedited && !row.faults.length && valueOf(row, column) !== null);
  if (able.length < 2) return null;
  const [first, ...rest] = able.sort((a, b) => (isBetter(column, valueOf(a, column), valueOf(b, column)) ? -1 : 1));
  const end = (row, isGood) => { const cell = row.cells.get(column.index); return (isGood === column.higher ? cell.high : cell.low) ?? cell.value; };
  return rest.every((row) => isBetter(column, end(first, false), end(row, true))) ? first : null;
}

/** Sorting a metric shows the best first; again, the worst. Rows without a value come last either way. */
function sortBy(key) {
  if (state.sort === key) state.ascending = !state.ascending;
  else { state.sort = key; state.ascending = typeof key === "number" ? columns[key].higher === false : key !== "score"; }
  leaderboard();
  writeAddress();
  $(`th button[data-key="${key}"]`)?.focus();
}

function sorted(list) {
  if (state.sort === null) return list;
  const key = state.sort, { scores } = taskNow();
  const value = (row) => (typeof key === "number" ? valueOf(row, columns[key]) : key === "score" ? scores[row.index] ?? null : row[key] ?? row.first[key] ?? null);
  const order = (a, b) => (typeof a === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true }));
  return [...list].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === null || y === null) return (x === null) - (y === null);
    return state.ascending ? order(x, y) : order(y, x);
  });
}

// Scatter charts ---------------------------------------------------------------------------------------------

/**
 * A scatter of rows. An axis has `text`, `value(row)`, `ends(row)` (its interval) and `flipped`, so that better is right and up;
 * `shows` are numbers that have to be on it. Every mark has its name beside it where there is room. Marks at one place are drawn
 * beside each other. The line joins the edited rows that none beats.
 */
function scatter(place, x, y, withLine) {
  const shown = shownRows(), points = shown.map((row) => ({ row, x: x.value(row), y: y.value(row) })).filter((p) => p.x !== null && p.y !== null);
  if (!points.length) return place.replaceChildren(element("p", { class: "muted" }, shown.length ? "No run here has both numbers." : $("#nothing span").textContent));
  const width = Math.max(300, printWidth ?? (place.clientWidth || Math.min(640, innerWidth - 60))), height = printWidth ? 360 : Math.min(430, Math.max(280, width * 0.55));
  const box = { left: 52, right: width - 16, top: 14, bottom: height - 46 };
  const tried = withLine ? trials.filter((one) => shown.includes(one.row)).map((one) => ({ ...one, x: x.of(one.values), y: y.of(one.values) })).filter((one) => one.x !== null && one.y !== null) : [];
  const spread = (axis) => [...(axis.shows ?? []), ...points.flatMap(({ row }) => [axis.value(row), ...axis.ends(row)]), ...tried.map((one) => (axis === x ? one.x : one.y))];
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
    const line = pareto(points.filter((p) => !p.row.isUnedited && !p.row.faults.length), x.flipped, y.flipped).map((p) => `${sx.at(p.x)},${sy.at(p.y)}`).join(" ");
    svg.append(drawn("polyline", { class: "pareto", points: line }));
  }
  const places = clusters(points, sx, sy);
  svg.append(...tried.map((one) => paint(drawn("circle", { class: "trial-point", cx: sx.at(one.x), cy: sy.at(one.y), r: 2.5 }), one.row)));
  if (withLine) svg.append(...tuning(points));
  for (const point of points) svg.append(...seedPoints(point.row, x, y, sx, sy));
  svg.append(...points.map((point) => mark(point, points, sx, sy, x, y)));
  const missed = label(svg, places, box);
  $(".point", svg).setAttribute("tabindex", 0);
  const missing = shown.filter((row) => withLine || !row.isUnedited).length - points.length;
  place.replaceChildren(svg, ...(missed ? [legend(points)] : []),
    ...(tried.length ? [element("p", { class: "muted" }, `Faint dots: ${plural(tried.length, "trial")} by which settings were chosen, on documents that no result is of. Dashed: from untuned to tuned.`)] : []),
    ...(missing > 0 ? [element("p", { class: "muted" }, `Not drawn for want of one of the two numbers: ${plural(missing, "row")}.`)] : []));
}

/** Points whose marks would hide each other, as `{x, y, points}`; each point gets the place `px`, `py` of its own mark, side by side. */
function clusters(points, sx, sy) {
  const found = [], apart = 13;
  for (const point of points) {
    const [px, py] = [sx.at(point.x), sy.at(point.y)], same = found.find((one) => Math.hypot(one.x - px, one.y - py) < 4);
    if (same) same.points.push(point); else found.push({ x: px, y: py, points: [point] });
  }
  for (const one of found) one.points.forEach((point, i) => { point.px = one.x + (i - (one.points.length - 1) / 2) * apart; point.py = one.y; });
  return found;
}

/** A dashed line from each method as it is to itself with the settings that were chosen. */
function tuning(points) {
  const at = new Map(points.map((point) => [point.row, point]));
  return data.tuned.map((pair) => pair.map((g) => at.get(rows[g]))).filter((pair) => pair.every(Boolean))
    .map(([before, after]) => paint(drawn("line", { class: "tuning", x1: before.px, y1: before.py, x2: after.px, y2: after.py }), after.row));
}

/** The numbers of each seed, faint. */
function seedPoints(row, x, y, sx, sy) {
  if (row.runs.length < 2) return [];
  return row.runs.map((run) => [x.value(run), y.value(run)]).filter(([vx, vy]) => vx !== null && vy !== null)
    .map(([vx, vy]) => paint(drawn("circle", { class: "seed-point", cx: sx.at(vx), cy: sy.at(vy), r: 3 }), row));
}

const MOST_LABELS = 30;

/** Names beside the marks, where they hide neither a mark nor each other; how many found no room. */
function label(svg, places, box) {
  const taken = places.map((one) => ({ l: one.points[0].px - 8, r: one.points[one.points.length - 1].px + 8, t: one.y - 8, b: one.y + 8 }));
  const hits = (a) => taken.some((b) => a.l < b.r && b.l < a.r && a.t < b.b && b.t < a.b) || a.l < box.left - 46 || a.r > box.right + 14 || a.t < 0 || a.b > box.bottom + 2;
  let missed = 0;
  places.forEach((one, i) => {
    const text = one.points.map((point) => point.row.label).join(" · "), wide = text.length * 6.6 + 2, mine = taken[i];
    const spots = [0, 16, -16, 30, -30, 46, -46, 62, -62, 80].flatMap((dy) => [["start", mine.r + 3, one.y + dy], ["end", mine.l - 3, one.y + dy], ...(dy ? [["middle", one.x, one.y + dy]] : [])]);
    const boxed = ([anchor, lx, ly]) => ({ l: lx - { start: 0, middle: wide / 2, end: wide }[anchor], r: lx + { start: wide, middle: wide / 2, end: 0 }[anchor], t: ly - 8, b: ly + 7 });
    const spot = i < MOST_LABELS ? spots.find((own) => !hits(boxed(own))) : null;
    if (!spot) { missed += 1; return; }
    const [anchor, lx, ly] = spot;
    taken.push(boxed(spot));
    if (Math.abs(ly - one.y) > 18) svg.append(drawn("line", { class: "lead", x1: one.x, y1: one.y + 8 * Math.sign(ly - one.y), x2: lx, y2: ly - 9 * Math.sign(ly - one.y) }));
    svg.append(drawn("text", { class: "tag-label", x: lx, y: ly + 4, "text-anchor": anchor }, text));
  });
  return missed;
}

function mark({ row, x: vx, y: vy, px, py }, points, sx, sy, x, y) {
  const same = points.filter((point) => point.row !== row && point.x === vx && point.y === vy).map((point) => point.row.label), { first } = row;
  const help = `${row.label}\n${row.runs.length > 1 ? `mean of ${row.runs.length} seeds` : first.name}${first.forget_set ? `, forgets ${first.forget_set}` : ""}, ${first.model}\n`
    + `${y.plain}: ${number(vy)} ${range(...pair(y.ends(row)))}\n${x.plain}: ${number(vx)} ${range(...pair(x.ends(row)))}`
    + row.faults.map((fault) => `\n⚠ ${fault}`).join("")
    + (same.length ? `\nat the same place: ${same.slice(0, 8).join(", ")}${same.length > 8 ? ", ..." : ""}` : "");
  const group = paint(drawn("g", { class: "point", tabindex: -1, role: "img", "aria-label": help, help }), row);
  const [ex, ey] = [x.ends(row), y.ends(row)];
  if (ex.length) group.append(drawn("line", { class: "whisker", x1: sx.at(ex[0]), x2: sx.at(ex[1]), y1: py, y2: py }));
  if (ey.length) group.append(drawn("line", { class: "whisker", x1: px, x2: px, y1: sy.at(ey[0]), y2: sy.at(ey[1]) }));
  group.append(shape(row, px, py));
  return group;
}

const pair = (ends) => (ends.length ? ends : [null, null]);

/** A recipe's shape: circle, square, diamond, triangle; hollow where the edit is no result of its method. */
function shape(row, x, y, r = 6.5) {
  const kind = row.mark % 4, name = row.faults.length ? "mark hollow" : "mark";
  if (kind === 0) return drawn("circle", { class: name, cx: x, cy: y, r });
  if (kind === 1) return drawn("rect", { class: name, x: x - r + 1, y: y - r + 1, width: 2 * r - 2, height: 2 * r - 2 });
  const points = kind === 2 ? [[0, -r], [r, 0], [0, r], [-r, 0]] : [[0, -r], [r, r - 1], [-r, r - 1]];
  return drawn("polygon", { class: name, points: points.map(([dx, dy]) => `${x + dx},${y + dy}`).join(" ") });
}

function legend(points) {
  return element("ul", { class: "legend" }, ...points.map(({ row }) => element("li", {}, swatch(row), element("span", {}, row.label))));
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
    text: `${plainly(column)}${column.higher === false ? " (lower is better)" : ""}`, plain: name, flipped: column.higher === false,
    value: (run) => valueOf(run, column), of: (values) => values.get(column.index) ?? null,
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
const barred = () => ($("#metric").value ? [$("#metric").value] : taskNow().headline).map(columnNamed);

function bars() {
  const chosen = barred(), limit = $("#metric").value ? 40 : FIRST_BARS;
  const groups = [...new Set(chosen.map((column) => column.group))];
  $("#metrics .bars").replaceChildren(...(shownRows().length ? groups.flatMap((group) => [element("p", { class: "heading" }, group),
    ...chosen.filter((column) => column.group === group).map((column) => barGroup(column, limit))])
    : [element("p", { class: "muted" }, $("#nothing span").textContent)]));
}

/** Where values and changes of a metric lie: between its bounds if it has them, so that metrics can be compared. */
function scalesOf(column, list) {
  const cells = list.map((row) => row.cells.get(column.index));
  if (column.bounds) {
    const [least, most] = column.bounds, from = Math.min(0, least), to = Math.max(0, most);
    return { low: from, high: to, reach: to - from };
  }
  const numbers = cells.flatMap((cell) => [cell.value, cell.low, cell.high]).filter((v) => v !== null);
  const low = Math.min(0, ...numbers), high = Math.max(0, ...numbers);
  const reach = Math.max(1e-9, ...cells.flatMap((cell) => [cell.change, cell.change_low, cell.change_high].map((v) => Math.abs(v ?? 0))));
  return { low, high: high === low ? low + 1 : high, reach };
}

function barGroup(column, limit) {
  const measured = shownRows().filter((row) => row.cells.has(column.index));
  const list = measured.length > limit ? bestFirst(measured, column) : measured;
  const scales = scalesOf(column, list);
  const group = element("div", { class: "group" },
    element("h3", { tabindex: 0, help: meaningOf(column) }, `${plainly(column, true)} ${ARROWS.get(column.higher)}${worthOf(column)}`, element("code", {}, ...breakable(column.name))),
    scaleRow(scales, list.some((row) => row.base !== null)),
    ...list.slice(0, limit).map((row) => barRow(row, column, scales)));
  $(".bar", group)?.setAttribute("tabindex", 0);
  if (list.length > limit) {
    const all = () => { group.replaceWith(barGroup(column, Infinity)); };
    group.append(element("button", { type: "button", on: { click: all } }, `All ${list.length} runs`),
      element("span", { class: "muted" }, `the best ${limit} are shown, after what is unedited`));
  }
  return group;
}

/** The numbers at both axes: of values, and of changes on the same scale around 0. */
function scaleRow({ low, high, reach }, withChanges) {
  const text = (value) => (Math.abs(value) >= 1e4 || (value !== 0 && Math.abs(value) < 1e-2) ? value.toExponential(0) : String(Number(value.toPrecision(2)))).replace("-", "−");
  const numbers = (values, at) => drawn("svg", { "aria-hidden": "true" }, ...values.map((value, i) => drawn("text",
    { x: at(value), y: 11, "text-anchor": i === 0 ? "start" : i === values.length - 1 ? "end" : "middle" }, `${at === changeAt ? (value > 0 ? "+" : "") : ""}${text(value)}`)));
  const changeAt = (value) => `${50 + (48 * value) / reach}%`;
  return element("div", { class: "scale" }, element("span", {}), numbers([low, (low + high) / 2, high], (value) => `${(100 * (value - low)) / (high - low)}%`), element("span", {}),
    ...(withChanges ? [numbers([-reach, 0, reach], changeAt), element("span", {})] : []));
}

/** Unedited rows, then the others from the best to the worst; those without a value come last. */
function bestFirst(list, column) {
  const order = (row) => {
    const value = valueOf(row, column);
    return value === null ? Infinity : column.higher === false ? value : -value;
  };
  return [...list].sort((a, b) => b.isUnedited - a.isUnedited || (order(a) === order(b) ? 0 : order(a) - order(b)));
}

function barRow(row, column, { low, high, reach }) {
  const cell = row.cells.get(column.index), better = verdict(column, cell);
  const at = (value) => `${(100 * (value - low)) / (high - low)}%`;
  const value = paint(drawn("svg", { "aria-hidden": "true" }, drawn("rect", { class: "track", x: 0, y: 2, width: "100%", height: 14, rx: 3 })), row);
  if (cell.value !== null) {
    const [a, b] = [Math.min(0, cell.value), Math.max(0, cell.value)];
    value.append(drawn("rect", { class: "fill", x: at(a), y: 2, width: `${(100 * (b - a)) / (high - low)}%`, height: 14, rx: 2 }));
    if (cell.low !== null) value.append(...whiskers(at(cell.low), at(cell.high)));
  }
  return element("div", { class: "bar", tabindex: -1, help: cellHelp(row, column, cell) },
    element("span", { class: "label" }, row.label), value,
    element("span", { class: "number" }, number(cell.value), " ", element("small", {}, spreadOf(cell))),
    ...(row.base === null ? [] : [changeBar(row, cell, reach), element("span", { class: `change ${better}` },
      cell.change === null ? "" : `${number(cell.change, true)} ${better}`)]));
}

/** What the bars show, as a table. */
function metricsTable() {
  const list = barred().flatMap((column) => shownRows().filter((row) => row.cells.has(column.index)).map((row) => [column, row, row.cells.get(column.index)]));
  const of = (value, low, high) => (value === null || value === undefined ? { text: "–" }
    : { text: number(value), value: String(value), ...(low === null || low === undefined ? {} : { low: String(low), high: String(high) }) });
  return { head: ["metric", "method", "value", "change", "p", "n"], rows: list.map(([column, row, cell]) => [{ text: column.name }, { text: row.label },
    of(cell.value, cell.low, cell.high), of(cell.change, cell.change_low, cell.change_high), of(cell.p), of(cell.n)]) };
}

function changeBar(row, cell, reach) {
  const at = (value) => `${50 + (48 * value) / reach}%`;
  const svg = paint(drawn("svg", { "aria-hidden": "true" }), row);
  svg.append(drawn("line", { class: "zero", x1: "50%", x2: "50%", y1: 0, y2: 18 }),
    drawn("line", { class: "grid", x1: "2%", x2: "98%", y1: 9, y2: 9 }));
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

/** The run before the edit and the three best after it, until the reader chooses others. */
function comparedRuns() {
  const able = shownRows().flatMap((row) => row.runs).filter((run) => isShown(run) && hasAnswers(run));
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
  options($("#order"), [["", "most leaks first"], ["file", "as in the files"]], "");
  rememberDefaults(["find", "split", "way", "class", "attacked", "order"]);
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
    run.label)));
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
  const edited = shownRuns().filter((run) => run.base !== null && hasAnswers(run)).map((run) => browser.content.runs[run.name][state.task]);
  const leaks = (texts) => edited.reduce((n, one) => n + texts.filter((i) => one.said[i] >= 0 && one.classes[i] === "l").length, 0);
  browser.rows = [...items].filter(([item]) => !state.question || strings[rows[item][0]] === state.question).filter(([item, texts]) => (state.question || !split || strings[rows[item][1]] === split) && texts.some(fits))
    .map(([item, texts]) => ({ item, fitting: way || kind || needle ? texts.filter(fits) : texts, n: texts.length, leaks: leaks(texts) }));
  if (!$("#order").value) browser.rows.sort((a, b) => b.leaks - a.leaks);
  $("#unlink").hidden = !state.question;
  $("#found").textContent = !rows.length ? "These runs have no samples of this task."
    : `${browser.rows.length} of ${items.size} questions${browser.rows.length ? "" : ": none fits the search and the choices above"}`;
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
function card({ item, fitting, n, leaks }, compared) {
  const { strings } = browser.content, [id, split, question, truth] = browser.content.questions[state.task][item];
  const asked = fitting.map((i) => askedBy(i, item, compared));
  const rest = asked.slice(FIRST_TEXTS), left = n - fitting.length;
  return element("li", {},
    element("h3", {}, ...marked(strings[question]), element("a", { class: "link", href: addressOf("answers", strings[id]), "aria-label": "link to this question", on: { click: (event) => { event.preventDefault(); onlyQuestion(strings[id]); } } }, "#")),
    element("p", { class: "truth" }, "true answer: ", element("b", {}, ...marked(strings[truth] || "–")),
      `  ·  ${strings[split] ? `${strings[split]}  ·  ` : ""}${strings[id]}${leaks ? `  ·  ${plural(leaks, "leak")} after edits` : ""}${left ? `  ·  ${plural(left, "way")} of asking not shown` : ""}`),
    ...asked.slice(0, FIRST_TEXTS),
    rest.length ? element("details", { class: "ways" }, element("summary", {}, `${rest.length} more ways of asking`), ...rest) : null);
}

/** One question alone, and the address says so: that is the link to it. */
function onlyQuestion(id) {
  state.question = id;
  address.section = "answers";
  answers();
  writeAddress();
}

/** One text of an item and its answers; the item's own question stands above all of them already. */
function askedBy(i, item, compared) {
  const { strings } = browser.content, [, , question, , label, , chain] = browser.content.questions[state.task][i];
  return element("div", { class: "asked" },
    i === item ? null : element("p", { class: "way" }, element("span", { class: "tag" }, strings[label]), " ", ...marked(strings[question]),
      strings[chain] ? element("span", { class: "chain muted" }, ` (${strings[chain]})`) : null),
    element("div", { class: "said" }, ...compared.map((run) => answerColumn(run, i))));
}

function answer(run, i) {
  const { strings, classes, runs: all } = browser.content, one = all[run.name][state.task];
  const index = one.said[i] ?? -1, kind = index < 0 ? "not asked" : classes[one.classes[i]];
  return element("div", { class: `answer ${kind}` },
    element("header", {}, element("span", { help: run.name }, run.label),
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
  $("#provenance .list").replaceChildren(...(shownRuns().length ? [] : [element("p", { class: "muted" }, $("#nothing span").textContent)]), ...shownRuns().map((run) => {
    const facts = new Map(run.provenance);
    const summary = ["unlearn-eval", "commit", "seed", "weights (SHA-256)"].filter((key) => facts.has(key))
      .map((key) => `${key.replace(" (SHA-256)", "")} ${facts.get(key).slice(0, 12)}`).join(", ");
    const details = element("details", { id: `run-${run.index}` },
      element("summary", {}, run.label, " ", element("span", { class: "muted" }, `${run.name}, ${summary}`)));
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
  unfold($("#provenance"));
  details.scrollIntoView();
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
  sayWhatFits();
  outcome();
  leaderboard();
  bars();
  drawCharts();
  provenance();
  if (browser.content) { runChooser(); answers(); }
  writeAddress();
}

/** What has to be drawn for a width. */
function drawCharts() {
  frontier();
  costs();
  popularity();
  requestSequences();
  robustness();
  localizations();
}

let printWidth = null;

/** What depends on the task: which metrics and questions there are. */
function changeTask() {
  state.task = $("#task").value;
  state.sort = null;
  const own = columnsOf(state.task), task = taskNow(), list = own.map((column) => [column.name, plainly(column)]);
  state.question = null;
  const first = own[0]?.name ?? "";
  options($("#frontier [data-axis=y]"), list, task.forgets ?? first);
  options($("#frontier [data-axis=x]"), list, task.keeps ?? own[1]?.name ?? first);
  options($("#cost [data-axis=y]"), list, task.forgets ?? first);
  options($("#cost [data-axis=x]"), Object.entries(COSTS), "edit_seconds");
  const groups = [...new Set(own.map((column) => column.group))];
  $("#metric").replaceChildren(element("option", { value: "", selected: true }, "the leaderboard's"), ...groups.map((group) => element("optgroup", { label: group },
    ...own.filter((column) => column.group === group).map((column) => element("option", { value: column.name }, column.plain)))));
  browser.chosen = null;
  rememberDefaults(["y", "x", "metric"]);
  if (browser.content) answersControls();
  draw();
}

function start() {
  const names = (key) => [["", "all"], ...[...new Set(runs.map((run) => run[key]).filter(Boolean))].sort().map((v) => [v, v])];
  const models = [...new Set(runs.map((run) => run.model))];
  $("#overview").textContent = [data.dates.join(" to "), models.length <= 3 ? models.join(", ") : plural(models.length, "model"),
    plural(new Set(rows.map((row) => row.hue).filter((hue) => hue !== null)).size, "method"), plural(runs.length, "run"), plural(tasks.length, "task"),
    `unlearn-eval ${data.version}`].join(" · ");
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
  startSharing();
  address.isReading = true;
  rememberDefaults(["task", "model", "method", "set", "name", "all", "measure"]);
  changeTask();
  address.isReading = false;
  readAddress();
  $("#task").addEventListener("change", () => { changeTask(); writeAddress(); });
  for (const key of ["model", "method", "set"]) $(`#${key}`).addEventListener("change", (event) => { state[key] = event.target.value; draw(); });
  $("#name").addEventListener("input", (event) => { state.name = event.target.value.toLowerCase(); draw(); });
  $("#filters").addEventListener("submit", (event) => event.preventDefault());
  $("#all").addEventListener("change", (event) => { state.all = event.target.checked; leaderboard(); });
  for (const select of document.querySelectorAll("#frontier select")) select.addEventListener("change", frontier);
  for (const select of document.querySelectorAll("#cost select")) select.addEventListener("change", costs);
  $("#metric").addEventListener("change", bars);
  for (const id of ["measure", "curve", "layered"]) $(`#${id}`).addEventListener("change", robustness);
  for (const id of ["search", "split", "way", "class", "attacked", "order"]) $(`#${id}`).addEventListener("input", () => { state.question = null; answers(); });
  $("#unlink").addEventListener("click", () => { state.question = null; answers(); writeAddress(); });
  $("#more").addEventListener("click", () => {
    const next = browser.drawn;
    moreQuestions();
    const first = $("#questions").children[next];
    if (first) { first.tabIndex = -1; first.focus({ preventScroll: true }); }
  });
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; drawCharts(); } });
  addEventListener("beforeprint", () => { printWidth = 960; drawCharts(); });
  addEventListener("afterprint", () => { printWidth = null; drawCharts(); });
  decode().then(() => { answersControls(); readAddress(); document.body.dataset.ready = "yes"; })
    .catch((error) => { $("#found").textContent = `The answers could not be unpacked by this browser: ${error}`; });
}

start();
