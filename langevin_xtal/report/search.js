"use strict";
// Shared by the other scripts of the page: the data, small ways to make elements, crystallography.

const DATA = JSON.parse(document.getElementById("data").textContent);
const ROWS = DATA.rows;

// -- elements

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

// Text only ever enters as text nodes and attributes, never as markup.
function make(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function draw(tag, attributes, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function at(id) {
  return document.getElementById(id);
}

// -- numbers and names

function fixed(value, digits) {
  if (value === null || value === undefined) return "–";
  const text = value.toFixed(digits);
  return (Number(text) === 0 ? text.replace("-", "") : text).replace("-", "−");
}

function formulaParts(formula) {
  const plain = formula.replace(/\s+/g, "");
  if (!/^([A-Z][a-z]?\d*|\(|\)\d*)+$/.test(plain)) return null;
  return [...plain.matchAll(/([A-Z][a-z]?|[()])(\d*)/g)].map((m) => [m[1], m[2] === "1" ? "" : m[2]]);
}

function formulaText(formula) {
  const parts = formulaParts(formula);
  return parts ? parts.map((part) => part.join("")).join("") : formula;
}

// For pictures and lists, where there is no markup: subscripts as letters.
function formulaLabel(formula) {
  return formulaText(formula).replace(/\d/g, (digit) => "₀₁₂₃₄₅₆₇₈₉"[digit]);
}

function formulaNodes(formula) {
  const parts = formulaParts(formula);
  if (!parts) return [formula];
  return parts.flatMap(([symbol, count]) => (count ? [symbol, make("sub", {}, count)] : [symbol]));
}

function groupSymbol(group) {
  return DATA.groups[group] || "none";
}

function groupLabel(group) {
  return `${groupSymbol(group).replace(/_(\d)/g, (_, digit) => "₀₁₂₃₄₅₆₇₈₉"[digit])} (${group})`;
}

// P6_3/mmc and Fm-3m as crystallographers write them
function groupNodes(group) {
  const parts = [...groupSymbol(group).matchAll(/_(\d)|-(\d)|[^_-]+/g)];
  return parts.map((part) => {
    if (part[1]) return make("sub", {}, part[1]);
    return part[2] ? make("span", { class: "over" }, part[2]) : part[0];
  });
}

function fileName(row, ending) {
  return `${formulaText(row.formula)}-${row.found || row.asked}-${row.uid}`.replace(/[^A-Za-z0-9._-]+/g, "_") + ending;
}

// -- cells

const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const length = (a) => Math.sqrt(dot(a, a));
const unit = (a) => a.map((x) => x / length(a));

function vectors(cell) {
  return [cell.l.slice(0, 3), cell.l.slice(3, 6), cell.l.slice(6, 9)];
}

function symbols(cell) {
  return cell.z.flatMap(([symbol, count]) => Array(count).fill(symbol));
}

function atomCount(cell) {
  return cell.f.length / 3;
}

function volume(cell) {
  const [a, b, c] = vectors(cell);
  return Math.abs(dot(a, cross(b, c)));
}

// a, b, c [Å], α, β, γ [degrees]
function parameters(cell) {
  const [a, b, c] = vectors(cell);
  const angle = (u, v) => (Math.acos(Math.min(1, Math.max(-1, dot(unit(u), unit(v))))) * 180) / Math.PI;
  return [length(a), length(b), length(c), angle(b, c), angle(a, c), angle(a, b)];
}

function toCartesian(cell, frac) {
  const [a, b, c] = vectors(cell);
  return [0, 1, 2].map((k) => frac[0] * a[k] + frac[1] * b[k] + frac[2] * c[k]);
}

// All atoms as P1, with what the page knows about them in comments.
function cifText(row, cell, kind) {
  const names = ["length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"];
  const says = (text) => `# ${text}`.replace(/[^\x20-\x7e]+/g, " ");
  const total = {};
  for (const [symbol, count] of cell.z) total[symbol] = (total[symbol] || 0) + count;
  const lines = [
    says(`${formulaText(row.formula)}, ${kind}, from ${DATA.title}`),
    says(`space group asked for: ${groupSymbol(row.asked)} (${row.asked})`),
  ];
  if (kind !== "as sampled") {
    lines.push(says(row.found ? `found at 0.01 A: ${groupSymbol(row.found)} (${row.found})` : "no space group found at 0.01 A"));
    if (row.energy !== null) lines.push(says(`energy ${row.energy} eV/atom, ${row.potential}`));
    if (row.above !== null) lines.push(says(`energy above hull ${row.above} meV/atom`));
  }
  lines.push(
    `data_${fileName(row, "")}`,
    `_chemical_formula_sum '${Object.keys(total).sort().map((s) => s + total[s]).join(" ")}'`,
    ...parameters(cell).map((value, k) => `_cell_${names[k]} ${value.toFixed(6)}`),
    `_cell_volume ${volume(cell).toFixed(6)}`,
    "_space_group_name_H-M_alt 'P 1'",
    "_space_group_IT_number 1",
    "loop_",
    "_space_group_symop_operation_xyz",
    "'x, y, z'",
    "loop_",
    ...["label", "type_symbol", "fract_x", "fract_y", "fract_z", "occupancy"].map((n) => `_atom_site_${n}`),
    ...symbols(cell).map((symbol, k) => {
      const frac = cell.f.slice(3 * k, 3 * k + 3).map((x) => x.toFixed(6));
      return `${symbol}${k + 1} ${symbol} ${frac.join(" ")} 1`;
    }),
  );
  return lines.join("\n") + "\n";
}

// -- colours of energies above the hull: viridis, which colour-blind readers can order too

const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];

const ABOVE = ROWS.map((row) => row.above).filter((above) => above !== null).sort((a, b) => a - b);

// Energies from here on share the last colour [meV/atom].
const PALE = (() => {
  const most = ABOVE[Math.floor(0.75 * ABOVE.length)] || 0;
  return [50, 100, 150].find((limit) => limit >= most) || 200;
})();

function energyColour(above) {
  if (above === null) return "#ffffff";
  const place = Math.min(1, Math.max(0, above / PALE)) * (VIRIDIS.length - 1);
  const low = Math.min(VIRIDIS.length - 2, Math.floor(place));
  const mix = [1, 3, 5].map((k) => {
    const [from, to] = [low, low + 1].map((i) => parseInt(VIRIDIS[i].slice(k, k + 2), 16));
    return Math.round(from + (to - from) * (place - low));
  });
  return `rgb(${mix.join(",")})`;
}

// -- what every row is asked for again and again

ROWS.forEach((row, k) => {
  row.rank = k + 1;
  row.name = formulaText(row.formula);
  row.symbols = new Set(row.cell.z.map(([symbol]) => symbol));
  row.atoms = atomCount(row.cell);
  row.volume = volume(row.cell) / row.atoms;
  row.distance = row.cell.d;
});
