// Popularity and leaks, item by item. This file stands before page.js in one script: what it uses of it is called later.

const POPULAR = bare({ certainty: "certainty of the unedited model", popularity: "popularity, as the set gives it" });

function popularity() {
  const section = $("#popularity"), own = data.popularity.filter((one) => one.task === state.task);
  section.hidden = !own.length;
  $("nav [href='#popularity']").hidden = section.hidden;
  if (section.hidden) return;
  const able = own.filter((one) => matches(runs[one.run])), source = able[0]?.source, place = $(".chart", section);
  const shown = able.filter((one) => one.source === source);
  $(".legend", section).replaceChildren(...shown.map((one) => element("li", {}, swatch(runs[one.run].row), element("span", {}, `${runs[one.run].label}: ${rho(one)}`))));
  if (!shown.length) return place.replaceChildren(element("p", { class: "muted" }, $("#nothing span").textContent));
  const width = Math.max(300, printWidth ?? (place.clientWidth || Math.min(640, innerWidth - 60))), height = Math.min(360, Math.max(240, width * 0.45));
  const box = { left: 52, right: width - 16, top: 14, bottom: height - 46 }, points = shown.flatMap((one) => one.points.map((point) => ({ one, point })));
  const sx = scale(points.map(({ point }) => point[1]), box.left, box.right), sy = scale([0, 1, ...points.map(({ point }) => point[2])], box.bottom, box.top);
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `leak against ${POPULAR[source]}` });
  for (const tick of sx.ticks) svg.append(drawn("line", { class: "grid", x1: sx.at(tick), x2: sx.at(tick), y1: box.top, y2: box.bottom }), drawn("text", { x: sx.at(tick), y: box.bottom + 17, "text-anchor": "middle" }, sx.label(tick)));
  for (const tick of sy.ticks) svg.append(drawn("line", { class: "grid", x1: box.left, x2: box.right, y1: sy.at(tick), y2: sy.at(tick) }), drawn("text", { x: box.left - 7, y: sy.at(tick) + 4, "text-anchor": "end" }, sy.label(tick)));
  svg.append(drawn("text", { class: "name", x: box.right, y: height - 8, "text-anchor": "end" }, `${POPULAR[source]} →`),
    drawn("text", { class: "name", x: 14, y: box.top, "text-anchor": "end", transform: `rotate(-90 14 ${box.top})` }, "leaks →"));
  svg.append(...points.map(({ one, point: [id, x, y] }) => {
    const help = `${id}\n${runs[one.run].label}\n${POPULAR[source]}: ${number(x)}\nleaks: ${number(y)}`;
    const dot = paint(drawn("g", { class: "point", tabindex: -1, role: "img", "aria-label": help, help }), runs[one.run].row);
    dot.append(drawn("circle", { class: "mark", cx: sx.at(x), cy: sy.at(y), r: 4 }));
    return dot;
  }));
  $(".point", svg)?.setAttribute("tabindex", 0);
  place.replaceChildren(svg);
}

/** A rank correlation in words, or why there is none. */
const rho = (one) => (one.value === null ? one.reason : `ρ ${number(one.value)} ${range(one.low, one.high)}, p ${number(one.p)}, ${plural(one.n, "item")}`);

function popularityTable() {
  const shown = data.popularity.filter((one) => one.task === state.task && matches(runs[one.run]));
  return { head: ["method", "of", "rank correlation", "low", "high", "p", "n"], rows: shown.map((one) => [runs[one.run].label, one.source, one.value, one.low, one.high, one.p, one.n].map((text) => ({ text: text === null ? "" : String(text) }))) };
}
