// Table, filters, selection and downloads; the state of the page is kept in the address.

const COLUMNS = [
  { name: "rank", head: "#", right: true, value: (row) => row.rank, cell: (row) => [String(row.rank)] },
  { name: "formula", head: "formula", value: (row) => row.name, cell: openButton },
  { name: "all", head: "above hull", unit: "of all, meV", right: true, value: (row) => row.all, cell: (row) => [fixed(row.all, 0)], csv: "e_above_all_mev_per_atom" },
  { name: "above", head: "above hull", unit: "of known, meV", right: true, value: (row) => row.above, cell: aboveCell, csv: "e_above_hull_mev_per_atom" },
  { name: "energy", head: "energy", unit: "eV/atom", right: true, value: (row) => row.energy, cell: (row) => [fixed(row.energy, 3)], csv: "energy_ev_per_atom" },
  { name: "asked", head: "group asked", value: (row) => row.asked, cell: (row) => groupCell(row.asked) },
  { name: "found", head: "group found", unit: "at 0.01 Å", value: (row) => row.found, cell: (row) => groupCell(row.found), same: (row) => row.found === row.asked },
  { name: "distance", head: "shortest", unit: "distance, Å", right: true, value: (row) => row.distance, cell: (row) => [fixed(row.distance, 2)], csv: "shortest_distance_angstrom" },
  { name: "volume", head: "volume", unit: "Å³/atom", right: true, value: (row) => row.volume, cell: (row) => [fixed(row.volume, 1)], csv: "volume_per_atom_angstrom3" },
  { name: "atoms", head: "atoms", unit: "in the cell", right: true, value: (row) => row.atoms, cell: (row) => [String(row.atoms)], csv: "atoms_in_cell" },
  { name: "notes", head: "flags and notes", words: true, value: (row) => [...row.flags, ...row.notes].join("; ") || null, cell: noteCell },
].filter((column) => ["rank", "formula", "asked", "found"].includes(column.name) || ROWS.some((row) => column.value(row) !== null));

const state = { sort: "rank", down: false, formula: "", group: "", above: "", uid: ROWS[0].uid };
let shown = new Set(ROWS);
let order = ROWS;
let picked = ROWS[0];
let kind = "relaxed";
const lines = new Map();
const CHUNK = 150; // rows made at a time: browsers are slow at laying out thousands

// -- cells of the table

function openButton(row) {
  const label = `Show ${row.name}, rank ${row.rank}`;
  return [make("button", { type: "button", class: "open", tabindex: "-1", "aria-label": label }, ...formulaNodes(row.formula))];
}

function groupCell(group) {
  return group ? [...groupNodes(group), ` (${group})`] : ["none"];
}

function aboveCell(row) {
  if (row.above === null) return ["–"];
  return [make("span", { class: "dot", style: `background:${energyColour(row.above)}`, "aria-hidden": "true" }), make("span", { class: "number" }, fixed(row.above, 0))];
}

function noteCell(row) {
  const text = row.notes.join("; ");
  const short = text.length > 90 ? `${text.slice(0, 88)}…` : text;
  return [...row.flags.map((flag) => make("span", { class: "flag" }, flag)), make("span", { title: text }, short)];
}

// -- the table

function makeHead() {
  const cells = COLUMNS.map((column) => {
    const button = make("button", { type: "button", onclick: () => sortBy(column.name) }, column.head, " ", make("i", { "aria-hidden": "true" }, "↕"), column.unit ? make("small", {}, column.unit) : null);
    return make("th", { scope: "col", class: column.right ? "right" : null, "data-name": column.name }, button);
  });
  at("table").tHead.append(make("tr", {}, ...cells));
}

function lineOf(row) {
  return lines.get(row) || makeLine(row);
}

function makeLine(row) {
  const cells = COLUMNS.map((column) => {
    const classes = [column.right && "right", column.words && "words", column.same?.(row) && "same"].filter(Boolean).join(" ");
    return make("td", { class: classes || null }, ...column.cell(row));
  });
  const line = make("tr", { "data-uid": row.uid, onclick: () => pick(row, true) }, ...cells);
  lines.set(row, line);
  return line;
}

function sortBy(name) {
  state.down = state.sort === name ? !state.down : false;
  state.sort = name;
  update();
}

// Unknown values come last in either direction; equal ones keep their rank.
function sorted(rows) {
  const column = COLUMNS.find((c) => c.name === state.sort) || COLUMNS[0];
  const sign = state.down ? -1 : 1;
  return [...rows].sort((a, b) => {
    const [p, q] = [column.value(a), column.value(b)];
    if (p === null || q === null) return p === q ? a.rank - b.rank : p === null ? 1 : -1;
    const difference = typeof p === "string" ? (p < q ? -1 : p > q ? 1 : 0) : p - q;
    return sign * difference || a.rank - b.rank;
  });
}

// Words that are symbols of elements ask for them; others are looked for in formula and name.
function matches(row) {
  const words = state.formula.split(/[\s,]+/).filter(Boolean);
  const right = words.every((word) => {
    if (DATA.elements[word]) return row.symbols.has(word);
    const low = word.toLowerCase();
    return row.name.toLowerCase().includes(low) || row.uid.toLowerCase().includes(low);
  });
  if (!right) return false;
  if (state.group && ![row.asked, row.found].includes(Number(state.group))) return false;
  return state.above === "" || (row.above !== null && row.above <= Number(state.above));
}

function showTable() {
  const body = at("table").tBodies[0];
  order = sorted(ROWS.filter(matches));
  shown = new Set(order);
  body.replaceChildren();
  at("table-box").scrollTop = 0;
  extend(CHUNK);
  if (!order.length) body.append(make("tr", { class: "empty" }, make("td", { colspan: COLUMNS.length }, "No candidate passes these filters.")));
  for (const cell of at("table").tHead.rows[0].cells) {
    const here = cell.dataset.name === state.sort;
    if (here) cell.setAttribute("aria-sort", state.down ? "descending" : "ascending");
    else cell.removeAttribute("aria-sort");
    cell.querySelector("i").textContent = here ? (state.down ? "↓" : "↑") : "↕";
  }
  at("count").textContent = order.length === ROWS.length ? `${ROWS.length} candidate${ROWS.length === 1 ? "" : "s"}` : `${order.length} of ${ROWS.length} shown`;
  for (const id of ["save-csv", "save-cif"]) at(id).disabled = !order.length;
}

// Add rows until there are so many.
function extend(count) {
  const body = at("table").tBodies[0];
  const have = order.length && body.rows.length;
  if (count > have) body.append(...order.slice(have, count).map(lineOf));
}

function extendWhenNear() {
  const box = at("table-box");
  if (box.scrollTop + box.clientHeight > box.scrollHeight - 600) extend(at("table").tBodies[0].rows.length + CHUNK);
}

function reveal(row) {
  const place = order.indexOf(row);
  if (place < 0) return;
  extend(place + 20);
  // only the table scrolls, not the page
  const [box, line] = [at("table-box"), lineOf(row)];
  const head = at("table").tHead.offsetHeight;
  const [top, bottom] = [line.offsetTop, line.offsetTop + line.offsetHeight];
  if (top - head < box.scrollTop) box.scrollTop = top - head;
  else if (bottom > box.scrollTop + box.clientHeight) box.scrollTop = bottom - box.clientHeight;
}

function markPicked() {
  for (const line of document.querySelectorAll("#table tr.picked")) line.classList.remove("picked");
  lineOf(picked).classList.add("picked");
  // one stop of the tab key for the whole table: the picked row, or the first one shown
  const stop = shown.has(picked) ? picked : order[0];
  for (const button of document.querySelectorAll("#table .open[tabindex='0']")) button.tabIndex = -1;
  if (stop) lineOf(stop).querySelector(".open").tabIndex = 0;
  for (const button of document.querySelectorAll("#table .open[aria-pressed]")) button.removeAttribute("aria-pressed");
  lineOf(picked).querySelector(".open").setAttribute("aria-pressed", "true");
}

function moveBy(event) {
  const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
  const step = steps[event.key];
  if (step === undefined || !event.target.closest("tbody") || !order.length) return;
  event.preventDefault();
  const next = Math.min(order.length - 1, Math.max(0, order.indexOf(picked) + step));
  pick(order[next], false);
  lineOf(order[next]).querySelector(".open").focus({ preventScroll: true });
}

// -- the structure that is picked

function pick(row, fromTable) {
  picked = row;
  state.uid = row.uid;
  kind = "relaxed";
  keepAddress();
  markPicked();
  drawPlots();
  showStructure(false);
  if (fromTable && window.innerWidth <= 1080) at("structure").scrollIntoView({ block: "start", behavior: "smooth" });
  if (!fromTable) reveal(row);
}

function cellShown() {
  return kind === "sampled" ? picked.sampled : picked.cell;
}

function showStructure(keepView) {
  const row = picked;
  const group = row.found || row.asked;
  const unsure = row.found ? "  " : "  asked for in ";
  at("picked").replaceChildren(`#${row.rank} `, ...formulaNodes(row.formula), unsure, ...groupNodes(group), " ", make("small", {}, row.uid));
  showGeometries();
  at("canvas").setAttribute("aria-label", `Unit cell of ${row.name}, ${groupSymbol(group)}, ${row.atoms} atoms, ${row.sampled ? kind : ""}`);
  Viewer.show(cellShown(), keepView);
  at("legend").replaceChildren(...[...row.symbols].map((symbol) => make("span", {}, make("i", { class: "ball", style: `background:${DATA.elements[symbol][0]}` }), symbol)));
  at("details").replaceChildren(...details(row));
}

function showGeometries() {
  const box = at("geometries");
  if (!picked.sampled) return box.replaceChildren();
  const choose = (name) => make("button", { type: "button", "aria-pressed": String(kind === name), onclick: () => { kind = name; showStructure(true); } }, name);
  box.replaceChildren(choose("relaxed"), choose("sampled"), make("span", {}, "the view is kept, to compare"));
}

function makeViews() {
  const button = (words, label, action) => make("button", { type: "button", "aria-label": label, onclick: action }, words);
  const toggle = (name, words, on, off) => {
    const node = make("button", { type: "button", "aria-pressed": String(Viewer.options[name] === on) }, words);
    node.addEventListener("click", () => {
      const next = Viewer.options[name] === on ? off : on;
      Viewer.set(name, next);
      node.setAttribute("aria-pressed", String(next === on));
    });
    return node;
  };
  at("views").append(
    "along",
    ...["a", "b", "c"].map((name, axis) => button(name, `Look along ${name}`, () => Viewer.look(axis))),
    toggle("cells", "2×2×2", 2, 1),
    toggle("bonds", "bonds", true, false),
    toggle("labels", "symbols", true, false),
  );
}

function details(row) {
  const save = (cell, words, suffix) => make("button", { type: "button", onclick: () => download(fileName(row, `${suffix}.cif`), cifText(row, cell, words), "chemical/x-cif") }, row.sampled ? `CIF, ${words}` : "CIF");
  const state = row.sampled ? "relaxed" : "as listed";
  const found = [make("p", {}, save(row.cell, state, ""), " ", row.sampled ? save(row.sampled, "as sampled", "-sampled") : null)];
  found.push(comparison(row));
  if (row.xrd?.length) found.push(Plots.pattern(row));
  const more = Object.entries({ ...(row.potential ? { potential: row.potential } : {}), ...row.more });
  if (row.flags.length || row.notes.length) found.push(make("p", {}, ...row.flags.map((flag) => make("span", { class: "flag" }, flag)), row.notes.join("; ")));
  if (more.length) found.push(make("details", {}, make("summary", {}, "Properties"), pairs(more)));
  const from = Object.entries(row.from);
  if (from.length) found.push(make("details", {}, make("summary", {}, "Provenance"), pairs(from)));
  return found;
}

function comparison(row) {
  const cells = row.sampled ? [["relaxed", row.cell], ["sampled", row.sampled]] : [["", row.cell]];
  const names = ["a [Å]", "b [Å]", "c [Å]", "α [°]", "β [°]", "γ [°]"];
  const values = cells.map(([, cell]) => parameters(cell));
  const line = (name, texts) => make("tr", {}, make("th", { scope: "row" }, name), ...texts.map((text) => make("td", {}, text)));
  const lines = names.map((name, k) => line(name, values.map((v) => fixed(v[k], k < 3 ? 3 : 2))));
  lines.push(line("volume [Å³/atom]", cells.map(([, cell]) => fixed(volume(cell) / atomCount(cell), 2))));
  lines.push(line("shortest distance [Å]", cells.map(([, cell]) => fixed(cell.d, 3))));
  const head = row.sampled ? make("thead", {}, make("tr", {}, make("th", {}), ...cells.map(([name]) => make("th", { scope: "col" }, name)))) : null;
  return make("table", {}, head, make("tbody", {}, ...lines));
}

function pairs(entries) {
  const lines = entries.map(([name, value]) => make("div", {}, make("dt", {}, name.replaceAll("_", " ")), make("dd", {}, String(value))));
  return make("dl", { class: "pairs" }, ...lines);
}

// -- files

function download(name, text, type) {
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// Text that a spreadsheet could take for a formula is kept from being one.
function csvField(value) {
  if (value === null || value === undefined) return "";
  const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function csvText(rows) {
  const columns = [...COLUMNS];
  columns.splice(1, 0, { name: "uid", value: (row) => row.uid });
  const table = [columns.map((column) => column.csv || column.name), ...rows.map((row) => columns.map((column) => column.value(row)))];
  return table.map((line) => line.map(csvField).join(",")).join("\r\n") + "\r\n";
}

// -- all together

function drawPlots() {
  Plots.hull(at("hull"), shown, picked, (row) => pick(row, false));
  Plots.histogram(at("histogram-above"), "above", "energy above the hull [meV/atom]", shown, picked, "No energy above the hull is known.");
  Plots.histogram(at("histogram-volume"), "volume", "volume per atom [Å³]", shown, picked, "");
  Plots.groups(at("histogram-group"), shown, chooseGroup);
}

function chooseGroup(group) {
  state.group = state.group === String(group) ? "" : String(group);
  update();
}

function keepAddress() {
  const parts = new URLSearchParams();
  if (state.sort !== "rank" || state.down) parts.set("sort", state.sort + (state.down ? "-down" : ""));
  for (const name of ["formula", "group", "above"]) if (state[name] !== "") parts.set(name, state[name]);
  if (picked !== ROWS[0]) parts.set("uid", picked.uid);
  history.replaceState(null, "", `#${parts}`);
}

function readAddress() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const [sort, down] = (parts.get("sort") || "rank").split("-");
  state.sort = COLUMNS.some((column) => column.name === sort) ? sort : "rank";
  state.down = down === "down";
  state.formula = parts.get("formula") || "";
  state.group = DATA.groups[parts.get("group")] ? parts.get("group") : "";
  state.above = parts.get("above") && Number.isFinite(Number(parts.get("above"))) ? parts.get("above") : "";
  picked = ROWS.find((row) => row.uid === parts.get("uid")) || sorted(ROWS.filter(matches))[0] || ROWS[0];
}

function makeFilters() {
  const counts = {};
  for (const row of ROWS) for (const group of new Set([row.asked, row.found])) if (group) counts[group] = (counts[group] || 0) + 1;
  const choices = Object.keys(counts).map((group) => make("option", { value: group }, `${groupLabel(group)}: ${counts[group]}`));
  at("filter-group").append(make("option", { value: "" }, "all"), ...choices);
  at("filter-above-label").hidden = !ABOVE.length;
  for (const name of ["formula", "group", "above"]) {
    at(`filter-${name}`).addEventListener("input", (event) => {
      state[name] = event.target.value.trim();
      update();
    });
  }
  at("filter-clear").addEventListener("click", () => {
    Object.assign(state, { formula: "", group: "", above: "" });
    update();
  });
  at("filters").addEventListener("submit", (event) => event.preventDefault());
}

function update() {
  for (const name of ["formula", "group", "above"]) if (at(`filter-${name}`).value.trim() !== state[name]) at(`filter-${name}`).value = state[name];
  showTable();
  markPicked();
  drawPlots();
  keepAddress();
}

function start() {
  makeHead();
  makeFilters();
  makeViews();
  readAddress();
  at("beside").classList.toggle("flat", !ABOVE.length);
  at("hull-note").textContent = ABOVE.length ? DATA.why : "";
  Plots.legend(at("hull-legend"));
  Viewer.start();
  update();
  reveal(picked);
  setTimeout(() => showStructure(false)); // the table first: without a graphics card this takes seconds
  at("table-box").addEventListener("scroll", extendWhenNear, { passive: true });
  window.addEventListener("beforeprint", () => extend(ROWS.length));
  at("table").addEventListener("keydown", moveBy);
  at("save-csv").addEventListener("click", () => download("candidates.csv", csvText(order), "text/csv"));
  at("save-cif").addEventListener("click", () => download("candidates.cif", order.map((row) => cifText(row, row.cell, row.sampled ? "relaxed" : "as listed")).join("\n"), "chemical/x-cif"));
  window.addEventListener("hashchange", () => {
    readAddress();
    update();
    reveal(picked);
    showStructure(false);
  });
  let waiting = 0;
  window.addEventListener("resize", () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(drawPlots);
  });
  document.body.dataset.ready = String(ROWS.length);
}

window.addEventListener("error", (event) => {
  at("failure").textContent = `This page could not be drawn completely: ${event.message}`;
  at("failure").hidden = false;
});

start();
