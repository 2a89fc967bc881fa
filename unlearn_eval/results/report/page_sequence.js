// Requests one after another: what is still told of the first ones, what stays, and what each costs. This file stands
// before page.js in one script: what it uses of it is called later.

const MIB = 2 ** 20;

function requestSequences() {
  const section = $("#sequence"), shown = shownSequences();
  section.hidden = !data.sequences.length;
  $("nav [href='#sequence']").hidden = section.hidden;
  if (section.hidden) return;
  const task = taskNow(), costs = { seconds: ["seconds per request", 1], edit_bytes: ["edit, MiB on disk", MIB] };
  for (const place of section.querySelectorAll(".chart")) {
    const of = place.dataset.of, column = columns.find((own) => own.task === state.task && own.name === task[of]);
    const lines = of in costs ? shown.map((own, i) => costLine(own, i, own[of].map((value) => (value === null ? null : value / costs[of][1]))))
      : column ? shown.map((own, i) => askedLine(own, i, column)) : [];
    const drawable = lines.filter((line) => line.at.length);
    place.hidden = !drawable.length;
    if (drawable.length) lineChart(place, drawable, { x: "request", y: of in costs ? costs[of][0] : plainly(column), levels: [], bounds: null, left: 0 });
  }
}

const shownSequences = () => data.sequences.filter((own) => own.runs.some((run) => matches(runs[run])));

/** One metric of a sequence, from the unedited model on. */
function askedLine(own, i, column) {
  const places = [...(own.base === null ? [] : [[null, own.base]]), ...own.marks.map((mark, j) => [mark, own.runs[j]])];
  const known = places.map(([at, run]) => ({ at, cell: runs[run].cells.get(column.index) })).filter(({ cell }) => cell && cell.value !== null);
  return { name: own.name, style: `c${i % HUES}`, isMain: true, at: known.map(({ at }) => at), mean: known.map(({ cell }) => cell.value),
    low: known.map(({ cell }) => cell.low), high: known.map(({ cell }) => cell.high), n: Math.max(0, ...known.map(({ cell }) => cell.n ?? 0)) };
}

function costLine(own, i, values) {
  const known = own.marks.map((at, j) => [at, values[j]]).filter(([, value]) => value !== null), none = known.map(() => null);
  return { name: own.name, style: `c${i % HUES}`, isMain: true, at: known.map(([at]) => at), mean: known.map(([, value]) => value), low: none, high: none, n: 1 };
}

function sequenceTable() {
  const task = taskNow(), of = [task.forgets, task.keeps].map((name) => columns.find((own) => own.task === state.task && own.name === name)).filter(Boolean);
  const rows = shownSequences().flatMap((own) => own.runs.map((run, j) => [own.name, own.marks[j], ...of.map((column) => runs[run].cells.get(column.index)?.value ?? null),
    own.seconds[j], own.peak_bytes[j], own.edit_bytes[j]]));
  return { head: ["sequence", "requests", ...of.map((column) => column.name), "seconds per request", "peak memory, bytes", "edit, bytes"],
    rows: rows.map((row) => row.map((text) => ({ text: text === null ? "" : String(text) }))) };
}
