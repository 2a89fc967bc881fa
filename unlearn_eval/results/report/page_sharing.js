// What a reader takes along: tables as CSV, Markdown and LaTeX, the filters in the address, links to questions, and
// sections that fold. Stands before page.js in one script.

// Tables as text ---------------------------------------------------------------------------------------------

/** A table on the page as `{head, rows}` of cells `{text, value, low, high}`; plots are left out. */
function readTable(table) {
  const isText = (cell) => !cell.classList.contains("plot");
  const head = [...table.tHead.rows].pop();
  const read = (cell) => ({
    text: (cell.dataset.text ?? (cell.dataset.value === undefined ? cell.textContent : number(Number(cell.dataset.value)))).trim(),
    ...(cell.dataset.value === undefined ? {} : { value: cell.dataset.value, low: cell.dataset.low, high: cell.dataset.high, pm: cell.dataset.pm }),
  });
  const rows = [...table.tBodies].flatMap((body) => {
    const attack = $("tr.attack b", body)?.textContent;
    return [...body.rows].filter((row) => !row.classList.contains("attack") && $("td.value, td.run", row))
      .map((row) => [...(attack ? [{ text: attack }] : []), ...[...row.cells].filter(isText).map(read)]);
  });
  const isSplit = $("tr.attack", table) !== null;
  return { head: [...(isSplit ? ["attack"] : []), ...[...head.cells].filter(isText).map((cell) => cell.dataset.text ?? cell.textContent.trim())], rows };
}

/** Values in full, each with the ends of its interval where one of its column has them. */
function asCsv({ head, rows }) {
  const has = (i, key) => rows.some((row) => row[i]?.[key] !== undefined);
  const quoted = (text) => {
    const safe = /^[=+@\t\r-]/.test(text) && !Number.isFinite(Number(text)) ? `'${text}` : text; // no formula of a spreadsheet
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const names = head.flatMap((name, i) => [name, ...(has(i, "low") ? [`${name} low`, `${name} high`] : []), ...(has(i, "pm") ? [`${name} deviation`] : [])]);
  const lines = rows.map((row) => head.flatMap((_, i) => {
    const cell = row[i] ?? { text: "" };
    return [cell.value ?? (cell.text === "–" ? "" : cell.text), ...(has(i, "low") ? [cell.low ?? "", cell.high ?? ""] : []), ...(has(i, "pm") ? [cell.pm ?? ""] : [])];
  }));
  return [names, ...lines].map((line) => line.map((text) => quoted(String(text))).join(",")).join("\n") + "\n";
}

function shownText(cell) {
  if (!cell || cell.value === undefined) return cell?.text ?? "";
  if (cell.pm !== undefined) return `${cell.text} ± ${number(Number(cell.pm))}`;
  return cell.low === undefined ? cell.text : `${cell.text} ${range(Number(cell.low), Number(cell.high))}`;
}

const LATEX = new Map([["\\", "\\textbackslash{}"], ["~", "\\textasciitilde{}"], ["^", "\\textasciicircum{}"], ["<", "\\textless{}"],
  [">", "\\textgreater{}"], ["|", "\\textbar{}"], ["–", "--"], ["−", "$-$"], ["±", "$\\pm$"], ["↑", "$\\uparrow$"], ["↓", "$\\downarrow$"],
  ["⚠", "!"], ...[..."&%$#_{}"].map((c) => [c, `\\${c}`])]);
const latexText = (text) => [...text.replace(/\s+/g, " ")].map((c) => LATEX.get(c) ?? c).join("");
const markdownText = (text) => text.replace(/\s+/g, " ").replace(/[\\`*_{}[\]<>()#+!|~&$]/g, "\\$&");
const isNumeric = (rows, i) => rows.some((row) => row[i]?.value !== undefined);

function asMarkdown({ head, rows }) {
  const line = (cells) => `| ${cells.join(" | ")} |`;
  // Brackets of intervals are no links: nothing in round ones follows them.
  const text = (cell) => (cell?.value === undefined ? markdownText(shownText(cell)) : shownText(cell));
  return [line(head.map(markdownText)), line(head.map((_, i) => (isNumeric(rows, i) ? "---:" : "---"))),
    ...rows.map((row) => line(head.map((_, i) => text(row[i]))))].join("\n") + "\n";
}

/** With booktabs' rules: the document needs \usepackage{booktabs}. */
function asLatex({ head, rows }) {
  const line = (cells) => `${cells.join(" & ")} \\\\`;
  return ["\\begin{tabular}{" + head.map((_, i) => (isNumeric(rows, i) ? "r" : "l")).join("") + "}", "\\toprule", line(head.map(latexText)),
    "\\midrule", ...rows.map((row) => line(head.map((_, i) => latexText(shownText(row[i]))))), "\\bottomrule", "\\end{tabular}"].join("\n") + "\n";
}

const KINDS_OF_TEXT = bare({ CSV: [asCsv, "csv"], Markdown: [asMarkdown, "md"], LaTeX: [asLatex, "tex"] });

/** Where a table says "as CSV, Markdown, LaTeX": a press saves the file, and copies it where the browser allows that. */
function exports() {
  const tables = { leaderboard: () => readTable($("#leaderboard table")), comebacks: () => readTable($("#comebacks")),
    depth: () => readTable($("#depth table")), metrics: metricsTable, popularity: popularityTable, sequence: sequenceTable };
  for (const place of document.querySelectorAll(".export")) {
    const name = place.dataset.table;
    place.append("This table as", ...Object.entries(KINDS_OF_TEXT).map(([kind, [write, ending]]) =>
      element("button", { type: "button", on: { click: () => save(`${name}.${ending}`, write(tables[name]())) } }, kind)),
      element("span", { role: "status" }));
  }
}

function save(name, text) {
  const address = URL.createObjectURL(new Blob([text], { type: "text/plain;charset=utf-8" }));
  const link = element("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
  const said = $(`.export[data-table="${name.split(".")[0]}"] span`);
  said.textContent = `saved as ${name}`;
  navigator.clipboard?.writeText(text).then(() => { said.textContent = `saved as ${name}, and copied`; }, () => {});
}

// The address ------------------------------------------------------------------------------------------------

/** What the address holds, each with the control that it is the value of. `task` comes first: others depend on it. */
const CONTROLS = [["task", "#task"], ["model", "#model"], ["method", "#method"], ["set", "#set"], ["name", "#name"], ["all", "#all"],
  ["y", "#frontier [data-axis=y]"], ["x", "#frontier [data-axis=x]"], ["metric", "#metric"], ["measure", "#measure"],
  ["find", "#search"], ["split", "#split"], ["way", "#way"], ["class", "#class"], ["attacked", "#attacked"], ["order", "#order"]];
const valueOfControl = (control) => (control.type === "checkbox" ? (control.checked ? "yes" : "") : control.value);

/** Remember what controls say by themselves: only what differs from that stands in the address. */
function rememberDefaults(keys) {
  for (const [key, selector] of CONTROLS) if (keys.includes(key)) { const control = $(selector); control.dataset.byItself = valueOfControl(control); }
}

function addressOf(section, question) {
  const parts = CONTROLS.map(([key, selector]) => [key, $(selector)])
    .filter(([, control]) => control.dataset.byItself !== undefined && valueOfControl(control) !== control.dataset.byItself)
    .map(([key, control]) => [key, valueOfControl(control)]);
  if (state.sort !== null) parts.push(["sort", `${typeof state.sort === "number" ? columns[state.sort].name : state.sort}${state.ascending ? " up" : ""}`]);
  if (question) parts.push(["q", question]);
  const query = new URLSearchParams(parts).toString();
  return `#${section ?? ""}${query ? `?${query}` : ""}`;
}

function writeAddress() {
  if (address.isReading) return;
  address.written = addressOf(address.section, state.question);
  history.replaceState(null, "", address.written === "#" ? location.pathname + location.search : address.written);
}

const address = { section: "", written: "", isReading: false };

/** The section and the values that the address names. */
function parsedAddress() {
  const [section, query] = location.hash.slice(1).split("?");
  return { section, values: new URLSearchParams(query ?? "") };
}

/** Sets the controls as the address says; what it names and is not there stays as it is. */
function readAddress() {
  const { section, values } = parsedAddress();
  address.isReading = true;
  const set = ([key, selector], value) => {
    const control = $(selector);
    if (control.type === "checkbox") control.checked = value === "yes";
    else if (control.tagName !== "SELECT" || [...control.options].some((option) => option.value === value)) control.value = value;
  };
  const ofTask = CONTROLS[0];
  if (values.has("task") && $("#task").value !== values.get("task")) { set(ofTask, values.get("task")); changeTask(); }
  for (const control of CONTROLS.slice(1)) if (values.has(control[0])) set(control, values.get(control[0]));
  for (const key of ["model", "method", "set"]) state[key] = $(`#${key}`).value;
  state.name = $("#name").value.toLowerCase();
  state.all = $("#all").checked;
  const sort = values.get("sort");
  if (sort) {
    const name = sort.replace(/ up$/, "");
    state.sort = columnNamed(name)?.index ?? (name in TEXTS ? name : null);
    state.ascending = name !== sort;
  }
  state.question = values.get("q");
  address.section = section;
  address.isReading = false;
  draw();
  if (section) goTo(section);
}

function goTo(section) {
  const place = section ? document.getElementById(section) : null;
  if (!place) return;
  unfold(place.closest("section"));
  place.scrollIntoView();
}

/** Says what the filters are, where nothing fits them. */
function sayWhatFits() {
  const place = $("#nothing"), words = [["model", "model"], ["method", "method"], ["set", "forget set"]].filter(([key]) => state[key]).map(([key, word]) => `${word} ${state[key]}`);
  if (state.name) words.push(`“${$("#name").value}” in its name`);
  place.hidden = shownRuns().length > 0;
  $("span", place).textContent = `No run fits the filters: ${[`task ${state.task}`, ...words].join(", ")}.`;
}

function clearFilters() {
  for (const key of ["model", "method", "set"]) { $(`#${key}`).value = ""; state[key] = ""; }
  $("#name").value = "";
  state.name = "";
  draw();
}

// Sections that fold -----------------------------------------------------------------------------------------

const NEVER_FOLDED = ["outcome", "leaderboard"], PHONE = "(max-width: 46rem)";

/** Every heading folds its section; on a phone all but the first sections begin folded. */
function folding() {
  const isPhone = matchMedia(PHONE).matches;
  for (const section of document.querySelectorAll("main > section")) {
    const title = $("h2", section), button = element("button", { type: "button", class: "fold", "aria-expanded": "true", on: { click: () => {
      if (section.classList.contains("folded")) unfold(section); else fold(section);
    } } }, ...title.childNodes);
    title.replaceChildren(button);
    if (isPhone && !NEVER_FOLDED.includes(section.id)) fold(section);
  }
}

function fold(section) {
  section.classList.add("folded");
  $("button.fold", section).setAttribute("aria-expanded", "false");
}

function unfold(section) {
  if (!section?.classList.contains("folded")) return;
  section.classList.remove("folded");
  $("button.fold", section).setAttribute("aria-expanded", "true");
  drawCharts(); // what is drawn where nothing is shown has no width
}

function startSharing() {
  exports();
  folding();
  $("#nothing button").addEventListener("click", clearFilters);
  document.addEventListener("click", (event) => {
    const link = event.target instanceof Element ? event.target.closest("nav a, a.skip") : null;
    if (!link) return;
    event.preventDefault();
    address.section = link.getAttribute("href").slice(1);
    goTo(address.section);
    writeAddress();
  });
  addEventListener("hashchange", () => { if (location.hash !== address.written) readAddress(); });
  document.addEventListener("change", writeAddress);
  document.addEventListener("input", writeAddress);
}
