"use strict";
const $ = (selector, within = document) => within.querySelector(selector);
// Attacks and localizations: what comes back, after which step, at which layer, and where edits were made. This file
// stands before the others in one script: what it uses of it is called later.

const FIRST_ROWS = 12, MOST_LINES = 24, MOST_BANDS = 4, FIRST_MAPS = 12;
const MEASURES = bare({ accuracy: "accuracy", probability: "probability of the true answer" });
/** Short for the choice, long for the axis. */
const LAYERED = bare({ above_control: "above shuffled labels", probe_accuracy: "accuracy", gap: "gap", share: "share of the depth", drop: "drop" });
const BY_LAYER = {
  above_control: "probe's accuracy above that of shuffled labels", probe_accuracy: "probe's accuracy",
  gap: "log-probability read from the layer, below the model before unlearning (nats)",
  share: "what the layer adds to the depth", drop: "loss of log-probability by the layer's states (nats)",
};
const OTHER_LINES = {
  full: "before unlearning", reference: "never knew", random_labels: "shuffled labels", format: "after unrelated facts",
};
const KINDS = bare({ attention: "attention", mlp: "MLP" });

// The data ---------------------------------------------------------------------------------------------------

const shownAttacks = () => data.attacks.filter((one) => matches(runs[one.run]));
const isDepth = (one) => one.axis === "layer";

/** One metric of an attack as a cell of the table of results; null where the attack has none of this name. */
function attackCell(one, name) {
  const column = columns.find((own) => own.task === one.task && own.name === name);
  return (column && runs[one.run].cells.get(column.index)) ?? null;
}

const curveOf = (one, model, value, condition = "attack") =>
  one.curves.find((curve) => curve.model === model && curve.value === value && curve.condition === condition);

function at(one, level) {
  if (level === null) return "before the attack";
  if (typeof level !== "number") return String(level);
  return one.axis === "bits" ? `${level} bits` : `${one.axis} ${level}`;
}

/** The method where it tells the attacked runs apart, else the run; with where its edit was made if that is not said yet. */
function attackName(one) {
  const run = runs[one.run], isAlone = data.attacks.every((other) => other.run === one.run || runs[other.run].method !== run.method);
  const name = isAlone ? run.method : run.label;
  return one.where && !`${name} ${isAlone ? "" : run.method}`.includes(one.where) ? `${name} (${one.where})` : name;
}

/** One colour everywhere: of the method, as in the other charts; of method and place, or of the run, where that tells more apart. */
function hue(one) {
  const ways = [(own) => runs[own.run].method, (own) => `${runs[own.run].method} ${own.where ?? ""}`, (own) => String(own.run)];
  const [byMethod, byPlace, byRun] = ways.map((way) => [...new Set(data.attacks.map(way))]);
  if (byPlace.length > byMethod.length) return byPlace.indexOf(ways[1](one)) % HUES;
  return (byMethod.length > 1 ? runs[one.run].row.hue ?? 0 : byRun.indexOf(ways[2](one))) % HUES;
}

// What comes back --------------------------------------------------------------------------------------------

const OF_ATTACK = [
  ["before", "before", (m) => [`forget_${m}`]],
  ["after", "after", (m) => [`forget_attacked_${m}`]],
  ["full", "unedited", (m) => [`forget_unedited_attacked_${m}`, `forget_unedited_${m}`]],
  ["reference", "never knew", (m) => [`forget_reference_attacked_${m}`, `forget_reference_${m}`]],
  ["format", "unrelated facts", (m) => [`forget_format_${m}`]],
  ["chance", "chance", (m) => (m === "accuracy" ? ["forget_attacked_guessing"] : [])],
];
/** What has a column; a control has its mark, and its number on hover. */
const inColumn = ([key]) => key !== "format";
const SCORES = [
  ["recovery", "recovery", (m) => `forget_${m}_recovery`],
  ["durability", "durability", (m) => `forget_${m}_durability`],
  ["stability", "stability", (m) => `forget_${m}_stability`],
  ["alike", "learns alike", (m) => `forget_${m}_symmetric_relearning`],
];

function robustness() {
  const all = shownAttacks(), section = $("#robustness");
  section.hidden = !data.attacks.length;
  $("nav [href='#robustness']").hidden = section.hidden;
  if (section.hidden) return;
  const measured = all.filter((one) => one.reason === null);
  comebacks(measured.filter((one) => !isDepth(one)));
  notMeasured(all);
  recoveryCurves();
  depthByLayer();
}

function comebacks(entries) {
  const measure = $("#measure").value, place = $("#comebacks");
  const names = [...new Set(entries.map((one) => one.task))];
  const parts = OF_ATTACK.filter(([, , of]) => entries.some((one) => of(measure).some((name) => attackCell(one, name))));
  const scores = SCORES.filter(([, , of]) => entries.some((one) => attackCell(one, of(measure))));
  const own = place.closest(".card");
  $(".marks", own).replaceChildren(...markLegend(parts.map(([key]) => key)));
  own.hidden = !entries.length;
  if (!entries.length) return;
  const numbers = entries.flatMap((one) => parts.flatMap(([, , of]) => of(measure).map((name) => attackCell(one, name)?.value ?? 0)));
  const reach = measure === "accuracy" ? 1 : REACHES.find((own) => own >= Math.max(...numbers)) ?? 1;
  const help = (name) => { const column = columns.find((own) => own.name === name); return column ? meaningOf(column) : null; };
  const head = element("tr", {}, element("th", { scope: "col" }, "run"), element("th", { scope: "col", class: "plot" }, scaleOf(reach)),
    ...parts.filter(inColumn).map(([, text, of]) => element("th", { scope: "col", tabindex: 0, help: help(of(measure)[0]) }, text)),
    ...scores.map(([, text, of]) => {
      const column = columns.find((own) => own.name === of(measure));
      return element("th", { scope: "col", tabindex: 0, help: help(of(measure)) }, `${text}\u00a0${ARROWS.get(column.higher)}`);
    }));
  place.replaceChildren(element("thead", {}, head),
    ...names.map((name) => comebackRows(entries.filter((one) => one.task === name), { parts, scores, measure, reach }, FIRST_ROWS)));
}

/** The rows of one attack, under its name. */
function comebackRows(entries, shape, limit) {
  const { parts, scores, measure } = shape;
  const value = (one) => attackCell(one, `forget_attacked_${measure}`)?.value ?? Infinity;
  const rows = entries.length > limit ? [...entries].sort((a, b) => value(a) - value(b)).slice(0, limit) : entries;
  const width = 2 + parts.filter(inColumn).length + scores.length, first = entries[0];
  const levels = [...new Set(entries.map((one) => at(one, one.level)))];
  const title = element("tr", { class: "attack" }, element("th", { scope: "rowgroup", colspan: width },
    element("div", {}, element("b", {}, first.task.replace("attack_", "")), element("span", { class: "muted" },
      [first.does, levels.length === 1 && first.level !== null ? `shown at ${levels[0]}` : ""].filter(Boolean).map((text) => ` · ${text}`).join("")))));
  const body = element("tbody", {}, title, ...rows.map((one) => comebackRow(one, shape)));
  $("td.value", body).setAttribute("tabindex", 0);
  if (rows.length < entries.length) {
    const all = () => { body.replaceWith(comebackRows(entries, shape, Infinity)); };
    body.append(element("tr", {}, element("td", { colspan: width, class: "text" }, element("button", { type: "button", on: { click: all } },
      `All ${entries.length} runs`), element("span", { class: "muted" }, ` the ${limit} that tell least are shown`))));
  }
  return body;
}

function comebackRow(one, { parts, scores, measure, reach }) {
  const cells = Object.fromEntries(parts.map(([key, , of]) => [key, of(measure).map((name) => attackCell(one, name)).find(Boolean) ?? null]));
  const what = `${runs[one.run].label}, ${one.attack} at ${at(one, one.level)}`;
  const lines = parts.map(([key, text]) => cells[key] && `${text}: ${number(cells[key].value)} ${range(cells[key].low, cells[key].high)}`);
  const cell = (own, name) => (own === null ? element("td", { class: "value", tabindex: -1, help: `${what}\nnot measured` }, "")
    : element("td", { class: "value", tabindex: -1, help: `${what}\n${cellHelp({ ...runs[one.run], base: null }, name, own)}`, ...numbersOf(own) }, number(own.value),
      own.low === null ? null : element("small", {}, range(own.low, own.high))));
  return element("tr", {}, element("td", { class: "run" }, element("a", { href: `#run-${one.run}`, on: { click: () => openProvenance(runs[one.run]) } },
    ...breakable(attackName(one)))),
    element("td", { class: "value plot", tabindex: -1, help: [what, ...lines.filter(Boolean)].join("\n") }, comebackPlot(cells, hue(one), reach)),
    ...parts.filter(inColumn).map(([key, , of]) => cell(cells[key], { name: of(measure)[0] })),
    ...scores.map(([, , of]) => cell(attackCell(one, of(measure)), { name: of(measure) })));
}

/** How far the line reaches: probabilities of answers that a model would put into a sentence are all small. */
const REACHES = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1];

/** Before and after on one line from 0 to `reach`, with the models between which they lie. */
function comebackPlot(cells, color, reach) {
  const percent = (value) => share(value / reach);
  const svg = drawn("svg", { class: `track-plot c${color}`, "aria-hidden": "true" },
    drawn("line", { class: "grid", x1: share(0), x2: share(1), y1: 13, y2: 13 }));
  for (const key of ["chance", "reference", "full", "format"]) if ((cells[key]?.value ?? null) !== null) svg.append(...tick(key, percent(cells[key].value)));
  const [before, after] = [cells.before?.value ?? null, cells.after?.value ?? null];
  if (before !== null && after !== null) svg.append(drawn("line", { class: "moved", x1: percent(before), x2: percent(after), y1: 13, y2: 13 }));
  if (cells.after && cells.after.low !== null) svg.append(drawn("line", { class: "whisker", x1: percent(cells.after.low), x2: percent(cells.after.high), y1: 13, y2: 13, "stroke-width": 5 }));
  if (before !== null) svg.append(drawn("circle", { class: "hollow", cx: percent(before), cy: 13, r: 4.5 }));
  if (after !== null) svg.append(drawn("circle", { class: "mark", cx: percent(after), cy: 13, r: 5 }));
  return svg;
}

/** The mark of another model, or of chance, at a place of a line. */
function tick(key, x) {
  if (key === "format") return [drawn("line", { class: "other format", x1: x, x2: x, y1: 9, y2: 17 })];
  return [drawn("line", { class: `other ${key}`, x1: x, x2: x, y1: 3, y2: 23 })];
}

const share = (value) => `${2 + 96 * Math.max(0, Math.min(1, value))}%`;

function scaleOf(reach) {
  return drawn("svg", { class: "track-plot", role: "img", "aria-label": `from 0 to ${reach}` }, ...[0, 0.5, 1].map((value) => drawn("text",
    { x: share(value), y: 18, "text-anchor": ["start", "middle", "end"][2 * value] }, String(value * reach))));
}

const MARKS = { before: "edited", after: "edited, attacked", full: "unedited", reference: "never knew", format: "trained on unrelated facts", chance: "chance" };

function markLegend(keys) {
  return Object.keys(MARKS).filter((key) => keys.includes(key)).map((key) => {
    const mark = key === "before" ? [drawn("circle", { class: "hollow", cx: 10, cy: 13, r: 4.5 })]
      : key === "after" ? [drawn("circle", { class: "mark", cx: 10, cy: 13, r: 5 })] : tick(key, 10);
    return element("li", {}, drawn("svg", { width: 20, height: 26, "aria-hidden": "true" }, ...mark), element("span", {}, MARKS[key]));
  });
}

/** Attacks without any number, and parts of attacks that were left out, each with its reason. */
function notMeasured(entries) {
  const lines = entries.flatMap((one) => (one.reason !== null ? [[one, "", one.reason]] : one.skipped.map((own) => [one, own.what, own.reason])));
  const place = $("#unmeasured");
  place.hidden = !lines.length;
  $("summary", place).textContent = `Not measured, with reasons: ${lines.length}`;
  $("ul", place).replaceChildren(...lines.map(([one, what, reason]) => element("li", {},
    `${one.attack}, ${attackName(one)}${what ? `, ${what}` : ""}: ${reason}`)));
}

// Curves -----------------------------------------------------------------------------------------------------

/** Attacks whose levels are numbers, which a curve can join. */
const withCurve = (one) => !isDepth(one) && one.curves.some((curve) => curve.at.length > 1 && curve.at.every((level) => level === null || typeof level === "number"));

function recoveryCurves() {
  const able = shownAttacks().filter(withCurve), tasks = [...new Set(able.map((one) => one.task))];
  const select = $("#curve"), chosen = tasks.includes(select.value) ? select.value : tasks.find((task) => task === "attack_relearn") ?? tasks[0];
  $("#curves").hidden = !tasks.length;
  if (!tasks.length) return;
  options(select, tasks.map((task) => [task, task.replace("attack_", "")]), chosen);
  const measure = $("#measure").value, entries = able.filter((one) => one.task === chosen), shown = entries.slice(0, MOST_LINES);
  const { axis } = entries[0];
  const lines = [...otherLines(shown, "full", measure), ...otherLines(shown, "reference", measure)];
  for (const one of shown) {
    for (const condition of [...new Set(one.curves.map((curve) => curve.condition))].filter((own) => own !== "attack")) {
      const control = curveOf(one, "unlearned", measure, condition);
      if (control) lines.push({ ...control, name: `${attackName(one)}, ${OTHER_LINES[condition] ?? condition}`, style: `c${hue(one)} control` });
    }
    const curve = curveOf(one, "unlearned", measure);
    if (curve) lines.push({ ...curve, name: attackName(one), style: `c${hue(one)}`, isMain: true });
  }
  const guesses = measure === "accuracy" ? shown.map((one) => attackCell(one, "forget_attacked_guessing")?.value ?? null).filter((value) => value !== null) : [];
  const chance = guesses.length ? guesses.reduce((sum, value) => sum + value, 0) / guesses.length : null;
  const isSmall = measure === "probability" && Math.max(...lines.flatMap((line) => line.mean)) < 0.25;
  lineChart($("#curves .chart"), lines, { x: axis, y: MEASURES[measure], levels: chance === null ? [] : [[chance, "chance", `answers dealt to the questions at random: ${number(Math.min(...guesses))} to ${number(Math.max(...guesses))} over runs`]], bounds: isSmall ? null : [0, 1], left: entries.length - shown.length });
}

/** The curve of another model, once where several runs share it, as those on the same facts do. */
function otherLines(entries, model, value, condition = "attack") {
  const found = new Map();
  for (const one of entries) {
    const curve = curveOf(one, model, value, condition), key = curve && JSON.stringify([curve.at, curve.mean]);
    if (curve && found.has(key)) found.get(key).of.push(attackName(one));
    else if (curve) found.set(key, { ...curve, of: [attackName(one)], style: condition === "attack" ? model : "shuffled", isOther: true });
  }
  const all = [...found.values()], text = OTHER_LINES[condition === "attack" ? model : condition] ?? condition;
  return all.slice(0, 4).map((curve) => ({ ...curve, name: all.length === 1 ? text : `${text} (${curve.of[0]}${curve.of.length > 1 ? ", ..." : ""})` }));
}

function depthByLayer() {
  const able = shownAttacks().filter((one) => isDepth(one) && one.reason === null && one.curves.length);
  const pairs = [...new Set(able.map((one) => one.task))].flatMap((task) => Object.keys(BY_LAYER)
    .filter((value) => able.some((one) => one.task === task && curveOf(one, "unlearned", value))).map((value) => `${task}/${value}`));
  $("#depth").hidden = !pairs.length;
  if (!pairs.length) return;
  const select = $("#layered"), chosen = pairs.includes(select.value) ? select.value : pairs[0], [task, value] = chosen.split("/");
  options(select, pairs.map((pair) => [pair, `${pair.split("/")[0].replace("attack_", "")}: ${LAYERED[pair.split("/")[1]]}`]), chosen);
  const entries = able.filter((one) => one.task === task), shown = entries.slice(0, MOST_LINES);
  const lines = [...(value === "gap" ? [] : otherLines(shown, "full", value)), ...otherLines(shown, "reference", value),
    ...(value === "probe_accuracy" ? otherLines(shown, "unlearned", value, "random_labels") : []),
    ...shown.map((one) => ({ curve: curveOf(one, "unlearned", value), one })).filter(({ curve }) => curve)
      .map(({ curve, one }) => ({ ...curve, name: attackName(one), style: `c${hue(one)}`, isMain: true }))];
  const bounds = value === "probe_accuracy" ? [0, 1] : null;
  lineChart($("#depth .chart"), lines, { x: "layer", y: BY_LAYER[value], levels: bounds ? [] : [[0, ""]], bounds, left: entries.length - shown.length });
  depthTable(entries, task);
}

/** Every number of a measure of depth. */
function depthTable(entries, task) {
  const own = columnsOf(task), limit = FIRST_ROWS;
  const draw = (rows) => {
    $("#depth table").replaceChildren(
      element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "run"), ...own.map((column) => element("th",
        { scope: "col", tabindex: 0, help: meaningOf(column) }, ...breakable(`${column.name.replace("forget_", "")}\u00a0${ARROWS.get(column.higher)}`))))),
      element("tbody", {}, ...rows.map((one) => element("tr", {}, element("td", { class: "run" }, ...breakable(attackName(one))),
        ...own.map((column) => valueCell(runs[one.run], column, null))))));
    if (rows.length < entries.length) $("#depth tbody").append(element("tr", {}, element("td", { colspan: own.length + 1, class: "text" },
      element("button", { type: "button", on: { click: () => draw(entries) } }, `All ${entries.length} runs`))));
    $("#depth td.value")?.setAttribute("tabindex", 0);
  };
  draw(entries.slice(0, limit));
}

/**
 * Curves with their bands. A line has `at` (null is before), `mean`, `low`, `high`, `n`, `name`, `style` (its class); `isMain` is of
 * a run, the others are what it is read against.
 */
function lineChart(place, lines, { x, y, levels, bounds, left }) {
  const all = [...new Set(lines.flatMap((line) => line.at))].filter((level) => level !== null);
  const rising = x === "step" || x === "layer", counted = rising || x === "request", before = lines.some((line) => line.at.includes(null));
  const stops = [...(before ? [null] : []), ...(counted ? all.sort((a, b) => a - b) : all)];
  const width = Math.max(300, place.clientWidth || 640), height = Math.min(380, Math.max(260, width * 0.42));
  const box = { left: 52, right: width - 16, top: 14, bottom: height - 46 };
  const value = (level) => (rising ? level ?? 0 : stops.indexOf(level));
  const ends = [Math.min(...stops.map(value)), Math.max(...stops.map(value))];
  const px = (level) => box.left + ((box.right - box.left) * (ends[0] === ends[1] ? 0.5 : (value(level) - ends[0]) / (ends[1] - ends[0])));
  const mains = lines.filter((line) => line.isMain), hasBands = mains.length <= MOST_BANDS;
  const spread = lines.flatMap((line) => [...line.mean, ...(hasBands && line.isMain ? [...line.low, ...line.high] : [])]).filter((own) => own !== null);
  const inside = (own) => (bounds ? Math.max(bounds[0], Math.min(bounds[1], own)) : own);
  const sy = bounds ? unit(box) : scale([...spread, ...levels.map(([level]) => level)], box.bottom, box.top, false);
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `${y} by ${x}` });
  for (const own of sy.ticks) {
    svg.append(drawn("line", { class: "grid", x1: box.left, x2: box.right, y1: sy.at(own), y2: sy.at(own) }),
      drawn("text", { x: box.left - 7, y: sy.at(own) + 4, "text-anchor": "end" }, sy.label(own)));
  }
  let last = -Infinity;
  for (const level of stops) {
    const text = level === null ? (rising ? "0" : "before") : String(level), room = 7 * text.length + 10;
    if (px(level) - last < room) continue;
    last = px(level);
    svg.append(drawn("text", { x: px(level), y: box.bottom + 17, "text-anchor": "middle" }, text));
  }
  svg.append(drawn("text", { class: "name", x: box.right, y: height - 8, "text-anchor": "end" }, `${x} →`),
    drawn("text", { class: "name", x: 14, y: box.top, "text-anchor": "end", transform: `rotate(-90 14 ${box.top})` }, fitted(`${y} →`, box.bottom - box.top)));
  for (const [level, text] of levels) {
    svg.append(drawn("line", { class: text ? "other chance" : "axis", x1: box.left, x2: box.right, y1: sy.at(level), y2: sy.at(level) }));
  }
  if (hasBands) svg.append(...mains.filter((line) => line.low.every((own) => own !== null)).map((line) => drawn("polygon", { class: `band ${line.style}`,
    points: [...line.at.map((level, i) => `${px(level)},${sy.at(inside(line.high[i]))}`), ...line.at.map((level, i) => `${px(level)},${sy.at(inside(line.low[i]))}`).reverse()].join(" ") })));
  svg.append(...lines.map((line) => drawn("polyline", { class: `curve ${line.style}`, points: line.at.map((level, i) => `${px(level)},${sy.at(line.mean[i])}`).join(" ") })));
  svg.append(...lines.flatMap((line) => line.at.map((level, i) => curvePoint(line, i, px(level), sy.at(line.mean[i]), x, y))));
  $(".point", svg)?.setAttribute("tabindex", 0);
  place.replaceChildren(svg, lineLegend(lines, levels.filter(([, text]) => text)),
    ...(left > 0 ? [element("p", { class: "muted" }, `${plural(left, "more run")} not drawn: the filters at the top choose.`)] : []),
    ...(hasBands || !mains.length ? [] : [element("p", { class: "muted" }, `With more than ${MOST_BANDS} runs their 95 % intervals are on the points.`)]));
}

/** The axis from 0 to 1. */
function unit(box) {
  return { ticks: [0, 0.25, 0.5, 0.75, 1], at: (own) => box.bottom + own * (box.top - box.bottom), label: String };
}

/** A text that is cut where an axis has no room for it. */
const fitted = (text, room) => (text.length * 6.4 <= room ? text : `${text.slice(0, Math.max(8, Math.floor(room / 6.4) - 3)).trim()}… →`);

function curvePoint(line, i, px, py, x, y) {
  const level = line.at[i] === null ? (x === "step" ? "before training" : x === "request" ? "unedited" : "before the attack") : `${x} ${line.at[i]}`;
  const help = `${line.name}\n${level}: ${number(line.mean[i])} ${range(line.low[i], line.high[i])}\n${y}, over ${plural(line.n, "item")}`;
  return drawn("g", { class: `point ${line.style}`, tabindex: -1, role: "img", "aria-label": help, help },
    drawn("circle", { class: "target", cx: px, cy: py, r: 9 }), drawn("circle", { class: "mark", cx: px, cy: py, r: line.isMain ? 4 : 2.5 }));
}

function lineLegend(lines, levels) {
  const entries = [], seen = new Set();
  for (const line of [...lines].sort((a, b) => Boolean(b.isMain) - Boolean(a.isMain))) {
    const isControl = line.style.includes("control"), name = isControl ? OTHER_LINES.format : line.name, key = isControl ? name : `${name} ${line.style}`;
    if (seen.has(key)) continue;
    seen.add(key);
    entries.push(element("li", { class: isControl ? "" : line.style.split(" ")[0] }, drawn("svg", { width: 26, height: 16, "aria-hidden": "true" },
      drawn("line", { class: `curve ${isControl ? "control full" : line.style}`, x1: 1, x2: 25, y1: 8, y2: 8 })), element("span", {}, name)));
  }
  for (const [, text, help] of levels) entries.push(element("li", { help, tabindex: 0 }, drawn("svg", { width: 26, height: 16, "aria-hidden": "true" }, drawn("line", { class: "other chance", x1: 1, x2: 25, y1: 8, y2: 8 })), element("span", {}, text)));
  return element("ul", { class: "legend" }, ...entries);
}

// Where edits were made --------------------------------------------------------------------------------------

function localizations() {
  const section = $("#places"), fits = (one) => one.file !== null || one.runs.some((run) => matches(runs[run]));
  const wanted = new Set(data.maps.filter(fits).map((one) => one.model)), all = data.maps.filter((one) => fits(one) || (one.is_control && wanted.has(one.model)));
  section.hidden = !data.maps.length;
  $("nav [href='#places']").hidden = section.hidden;
  if (section.hidden) return;
  const groups = new Map();
  for (const one of all) {
    const key = `${one.model}\u0000${one.n_layers}`;
    groups.has(key) ? groups.get(key).push(one) : groups.set(key, [one]);
  }
  $("#places .maps").replaceChildren(...[...groups.values()].map((own) => mapGroup(own, FIRST_MAPS)));
  if (!all.length) $("#places .maps").append(element("p", { class: "muted" }, "No localization of the runs that the filters leave."));
}

/** The localizations of one model, layer above layer; the random control is among the first. */
function mapGroup(maps, limit) {
  const [scored, random] = [maps.filter((one) => !one.is_control), maps.filter((one) => one.is_control)];
  const first = [...scored, ...random].length > limit ? [...scored.slice(0, limit - Math.min(2, random.length)), ...random.slice(0, 2)] : [...scored, ...random];
  const name = maps[0].model.split("/").pop();
  const group = element("div", { class: "group" }, element("h3", {}, ...breakable(name), element("span", { class: "muted" }, `  ·  ${plural(maps[0].n_layers, "layer")}`)),
    ...first.map((one) => mapRow(one)));
  if (first.length < maps.length) {
    group.append(element("button", { type: "button", on: { click: () => { group.replaceWith(mapGroup(maps, Infinity)); } } }, `All ${maps.length} localizations`));
  }
  return group;
}

function mapRow(one) {
  const share = one.n_weights && one.n_weights_in_blocks ? ` (${((100 * one.n_weights) / one.n_weights_in_blocks).toFixed(1)} %)` : "";
  const settings = Object.entries(one.settings).map(([key, value]) => `${key}=${value}`).join(", ");
  const help = [one.method, one.budget ? `budget: ${one.budget}` : "", settings ? `settings: ${settings}` : "", `seed ${one.seed ?? "–"}`, one.facts ? `facts: ${one.facts}` : "",
    ...Object.entries(one.notes).map(([key, value]) => `${key.replaceAll("_", " ")}: ${typeof value === "number" ? number(value) : value}`),
    one.runs.length ? `used by ${one.runs.slice(0, 6).map((run) => runs[run].label).join(", ")}${one.runs.length > 6 ? ", ..." : ""}` : one.file ?? ""].filter(Boolean).join("\n");
  const label = element("div", { class: "label", tabindex: 0, help }, element("b", {}, ...breakable(one.method)),
    element("small", {}, one.n_weights ? `${compact(one.n_weights)} weights${share}` : "", one.facts ? ` · ${one.facts}` : "", one.seed === null ? "" : ` · seed ${one.seed}`));
  const kinds = Object.keys(KINDS).filter((kind) => one.scores[kind] || one.chosen.some(([own]) => own === kind));
  const drawRows = kinds.map((kind) => ({ name: KINDS[kind], values: one.scores[kind] ?? Array(one.n_layers).fill(null), chosen: new Map(one.chosen.filter(([own]) => own === kind).map(([, layer, n]) => [layer, n])) }));
  const map = element("div", { class: "heat" });
  const row = element("div", { class: "place" }, label, map);
  requestAnimationFrame(() => map.replaceChildren(heat(drawRows, one, map.clientWidth), ...(one.effects ? [byToken(one)] : [])));
  return row;
}

const compact = (value) => (value >= 1e9 ? `${(value / 1e9).toFixed(2)} B` : value >= 1e6 ? `${(value / 1e6).toFixed(1)} M` : value >= 1e3 ? `${(value / 1e3).toFixed(1)} k` : String(value));

/** Rows of cells, a column for each layer; the strongest score of all `compared` rows is the full colour, a quarter of it half of that. */
function heat(rows, one, width, gutter = 66, compared = rows) {
  const known = compared.flatMap((row) => row.values).filter((value) => value !== null && value !== undefined).map(Math.abs);
  const most = Math.max(1e-12, ...known), ranks = [...known].sort((a, b) => b - a), cell = Math.max(3, ((width || 640) - gutter - 2) / one.n_layers), high = 17;
  const svg = drawn("svg", { viewBox: `0 0 ${gutter + 2 + cell * one.n_layers} ${rows.length * (high + 3) + 18}`, role: "group", "aria-label": `${one.method}: scores by layer` });
  rows.forEach((row, y) => {
    svg.append(drawn("text", { x: gutter - 8, y: y * (high + 3) + 13, "text-anchor": "end" }, row.name));
    row.values.forEach((value, layer) => svg.append(heatCell(row, value, layer, { x: gutter + layer * cell, y: y * (high + 3) + 1, width: cell, height: high, most, ranks })));
  });
  const step = [1, 2, 5, 10, 20].find((own) => own * cell >= 24) ?? 50;
  for (let layer = 0; layer < one.n_layers; layer += step) svg.append(drawn("text", { class: "layer", x: gutter + (layer + 0.5) * cell, y: rows.length * (high + 3) + 13, "text-anchor": "middle" }, String(layer)));
  $(".point", svg)?.setAttribute("tabindex", 0);
  return svg;
}

function heatCell(row, value, layer, { x, y, width, height, most, ranks }) {
  const maps = row.chosen?.get(layer) ?? 0, isScored = value !== null && value !== undefined;
  const help = `layer ${layer}, ${row.name}: ${isScored ? `${number(value)}, ${ranks.indexOf(Math.abs(value)) + 1}. of ${ranks.length} by size` : "no score"}`
    + (maps ? `\ntrained or edited here: ${plural(maps, "linear map")}` : row.chosen ? "\nleft as it was" : "");
  const gap = width > 8 ? 1 : 0.4;
  const inside = { x: x + gap, y, width: Math.max(1, width - 2 * gap), height, rx: Math.min(2.5, width / 5) };
  const group = drawn("g", { class: "point", tabindex: -1, role: "img", "aria-label": help, help }, drawn("rect", { class: "track", ...inside }));
  if (isScored) group.append(drawn("rect", { class: value < 0 ? "hot c1" : "hot c0", ...inside, "fill-opacity": (0.04 + 0.92 * Math.sqrt(Math.abs(value) / most)).toFixed(3) }));
  if (maps && width > 6) group.append(drawn("rect", { class: "chosen", ...inside, x: inside.x + 0.75, y: y + 0.75, width: Math.max(1, inside.width - 1.5), height: height - 1.5 }));
  else if (maps) group.append(drawn("rect", { class: "under", x: inside.x, y: y + height - 3, width: inside.width, height: 3 }));
  return group;
}

/** Effects of one position at a time, which a causal trace has. */
function byToken(one) {
  const kinds = Object.keys(KINDS).filter((kind) => one.effects[kind]);
  const details = element("details", {}, element("summary", {}, "by position in the prompt"));
  details.addEventListener("toggle", () => {
    if (details.childElementCount > 1) return;
    const tables = kinds.map((kind) => one.effects.roles.map((name, i) => ({ name, values: one.effects[kind].map((layer) => layer[i]) }))
      .filter((row) => row.values.some((value) => value !== null)));
    tables.forEach((rows, i) => details.append(element("p", { class: "muted" }, KINDS[kinds[i]]), heat(rows, one, details.clientWidth, 142, tables.flat())));
  });
  return details;
}

// Answers under attack ---------------------------------------------------------------------------------------

/** What was answered to a text under the attacks on a run's edit, and, of an attack's own samples, what else it holds. */
function triedAt(run, i) {
  if (run.edit === null) return [];
  const question = browser.content.questions[state.task][i][2], wanted = $("#attacked").value;
  return attacksOn(run.edit).filter((one) => !wanted || one.task === wanted).flatMap((one) => {
    const isOwn = one.task === state.task && one.run === run.index;
    if (one.task === state.task && !isOwn) return [];
    const row = isOwn ? i : rowAsked(one.task, question);
    const found = row === undefined ? [] : browser.content.tried[runs[one.run].name]?.[one.task] ?? [];
    return found.map((column) => ({ one, column, row, isOwn }))
      .filter(({ column }) => (column.said[row] ?? -1) >= 0 || (column.numbers[row] ?? null) !== null)
      .filter(({ column }) => isOwn ? column.model !== "unlearned" || column.at !== null || column.name !== "probability" : column.model === "unlearned" && (column.at !== null || column.name !== "probability"));
  });
}

/** The attacks on an edit, whichever files they are in. */
function attacksOn(edit) {
  if (!browser.byEdit) {
    browser.byEdit = new Map();
    for (const one of data.attacks) browser.byEdit.set(one.edit, [...(browser.byEdit.get(one.edit) ?? []), one]);
  }
  return browser.byEdit.get(edit) ?? [];
}

/** The row of an attack's questions that has this text. */
function rowAsked(task, question) {
  browser.asked ??= new Map();
  if (!browser.asked.has(task)) browser.asked.set(task, new Map((browser.content.questions[task] ?? []).map((row, i) => [row[2], i])));
  return browser.asked.get(task).get(question);
}

const triedText = ({ column, row }) => column.said[row] ?? -1;

function triedBox(tried) {
  const { one, column, row } = tried, { strings, classes } = browser.content, text = triedText(tried), kind = classes[column.classes[row]];
  const title = column.model === "full" ? "without the edit" : column.at === null ? one.attack : `${one.attack}, ${at(one, column.at)}`;
  const value = column.numbers[row] ?? null, isTold = text >= 0;
  const share = value === null ? null : `${column.name.replace("forget_", "").replaceAll("_", " ")} ${number(value)}`;
  if (!isTold) return element("div", { class: "answer tried" }, element("header", {}, element("span", {}, title), element("span", {}, share)));
  return element("div", { class: `answer tried ${column.model} ${kind}` },
    element("header", {}, element("span", {}, column.model === "full" ? title : `after ${title}`), element("span", { class: "tag" }, kind)),
    element("p", {}, ...marked(strings[text] || "(nothing)")), share && element("small", {}, share));
}

/** The answer of a run, between what the model said without the edit and what it says under attack. */
function answerColumn(run, i) {
  const tried = triedAt(run, i), before = tried.filter(({ column }) => column.model === "full");
  if (!tried.length) return answer(run, i);
  const own = browser.content.tried[run.name]?.[state.task]?.find((column) => column.model === "unlearned" && column.at === null && column.name === "probability");
  const box = answer(run, i), isRead = (browser.content.runs[run.name][state.task].said[i] ?? -1) < 0;
  if (own && (own.numbers[i] ?? null) !== null) box.append(element("small", {}, `probability ${number(own.numbers[i])}`));
  return element("div", { class: "column" }, ...before.map(triedBox), ...(isRead ? [element("div", { class: "answer" }, element("header", { help: run.name }, run.label))] : [box]),
    ...tried.filter((one) => !before.includes(one)).map(triedBox));
}
