// The structure of one candidate in 3D.

const Viewer = (() => {
  const BOND = 1.12; // atoms this many times the sum of their covalent radii apart are joined
  const LARGE = 1.7; // two atoms of at least this radius [Å], cations of alkali metals and the like, are not
  const ZOOM = 1.5; // 3Dmol leaves much room around what it fits
  const EDGE = 1e-4; // fractional distance from a face at which an atom lies on it
  const MOST_ATOMS = 4000; // beyond, a block of cells is not drawn
  const options = { cells: 1, bonds: true, labels: false };
  let view = null;
  let failed = "";
  let current = null;

  function start() {
    try {
      view = $3Dmol.createViewer(at("canvas"), { backgroundColor: "white", antialias: true, orthographic: true, disableFog: true });
      if (!view) throw new Error("WebGL is not available");
      new ResizeObserver(() => view.resize()).observe(at("canvas"));
    } catch (error) {
      view = null;
      failed = "This browser cannot draw in 3D (no WebGL). Structures can still be downloaded as CIF.";
      at("no-viewer").textContent = failed;
      at("no-viewer").hidden = false;
      at("canvas").hidden = true;
    }
  }

  // Atoms of a block of cells, those on its faces on every face they belong to.
  function atomsOf(cell, cells) {
    const found = [];
    symbols(cell).forEach((symbol, k) => {
      const frac = cell.f.slice(3 * k, 3 * k + 3).map((x) => (x > 1 - EDGE ? x - 1 : x));
      const places = frac.map((x) => Array.from({ length: cells + 1 }, (_, n) => x + n).filter((y) => y < cells + EDGE));
      for (const x of places[0]) for (const y of places[1]) for (const z of places[2]) found.push({ symbol, frac: [x, y, z] });
    });
    return found.map((atom) => ({ ...atom, place: toCartesian(cell, atom.frac) }));
  }

  function bondsOf(atoms) {
    const bonds = atoms.map(() => []);
    for (let i = 0; i < atoms.length; i++) {
      for (let j = i + 1; j < atoms.length; j++) {
        const radii = [atoms[i], atoms[j]].map((atom) => DATA.elements[atom.symbol][1]);
        if (Math.min(...radii) >= LARGE) continue;
        const limit = BOND * (radii[0] + radii[1]);
        const apart = [0, 1, 2].map((k) => atoms[i].place[k] - atoms[j].place[k]);
        if (dot(apart, apart) < limit * limit) {
          bonds[i].push(j);
          bonds[j].push(i);
        }
      }
    }
    return bonds;
  }

  function addAtoms(cell) {
    const cells = atomCount(cell) * options.cells ** 3 > MOST_ATOMS ? 1 : options.cells;
    const atoms = atomsOf(cell, cells);
    const bonds = options.bonds ? bondsOf(atoms) : atoms.map(() => []);
    const model = view.addModel();
    model.addAtoms(
      atoms.map((atom, k) => ({
        elem: atom.symbol,
        x: atom.place[0],
        y: atom.place[1],
        z: atom.place[2],
        serial: k,
        bonds: bonds[k],
        bondOrder: bonds[k].map(() => 1),
        properties: { frac: atom.frac },
      })),
    );
    for (const [symbol, [colour, radius]] of Object.entries(DATA.elements)) {
      const style = { sphere: { color: colour, radius: Math.max(0.24, 0.42 * radius) } };
      if (options.bonds) style.stick = { color: colour, radius: 0.09 };
      model.setStyle({ elem: symbol }, style);
    }
    if (options.labels) for (const atom of atoms) label(atom.symbol, atom.place, 12);
    model.setHoverable({}, true, hover, leave);
    return cells;
  }

  function label(text, place, size) {
    const [x, y, z] = place;
    return view.addLabel(text, { position: { x, y, z }, fontSize: size, fontColor: "#1c2530", backgroundColor: "white", backgroundOpacity: 0.75, alignment: "center", inFront: true });
  }

  let hovered = null;

  function hover(atom) {
    if (hovered) return;
    const frac = atom.properties.frac.map((x) => fixed(x, 3)).join(", ");
    hovered = label(`${atom.elem}  ${frac}`, [atom.x, atom.y, atom.z], 13);
  }

  function leave() {
    if (hovered) view.removeLabel(hovered);
    hovered = null;
  }

  function addBox(cell) {
    const corners = [0, 1].flatMap((x) => [0, 1].flatMap((y) => [0, 1].map((z) => [x, y, z])));
    const point = (frac) => {
      const [x, y, z] = toCartesian(cell, frac);
      return { x, y, z };
    };
    for (const from of corners) {
      for (const axis of [0, 1, 2]) {
        if (from[axis]) continue;
        const to = from.map((x, k) => (k === axis ? 1 : x));
        view.addCylinder({ start: point(from), end: point(to), radius: 0.025, color: "#4a5560" });
      }
    }
    ["a", "b", "c"].forEach((name, axis) => {
      const end = [0, 0, 0].map((_, k) => (k === axis ? 1.0 : 0));
      const tip = toCartesian(cell, end);
      const away = 1 + 0.7 / length(tip);
      view.addLabel(name, { position: { x: away * tip[0], y: away * tip[1], z: away * tip[2] }, fontSize: 14, fontColor: "#1c2530", showBackground: false, alignment: "center", inFront: false });
    });
  }

  function fit() {
    const { clientWidth, clientHeight } = at("canvas");
    view.zoomTo(); // fits the width alone
    view.zoom(ZOOM * Math.min(1, clientHeight / Math.max(1, clientWidth)));
    view.render();
  }

  // Look along a lattice vector, another one up; turned to the side and down by angles [degrees].
  function look(axis, side = 0, down = 0) {
    if (!view || !current) return;
    const all = vectors(current);
    const towards = unit(all[axis]);
    const upwards = all[axis === 2 ? 1 : 2];
    const right = unit(cross(upwards, towards));
    const [s, d] = [side, down].map((angle) => (angle * Math.PI) / 180);
    const aside = [[Math.cos(s), 0, Math.sin(s)], [0, 1, 0], [-Math.sin(s), 0, Math.cos(s)]];
    const nod = [[1, 0, 0], [0, Math.cos(d), -Math.sin(d)], [0, Math.sin(d), Math.cos(d)]];
    turn(times(nod, times(aside, [right, cross(towards, right), towards])));
    fit();
  }

  function times(p, q) {
    return p.map((row) => [0, 1, 2].map((k) => row[0] * q[0][k] + row[1] * q[1][k] + row[2] * q[2][k]));
  }

  // Rows of a rotation to the quaternion that 3Dmol keeps (Shepperd 1978).
  function turn(m) {
    const trace = m[0][0] + m[1][1] + m[2][2];
    const q = [0, 0, 0, 0];
    if (trace > 0) {
      const s = 2 * Math.sqrt(trace + 1);
      q.splice(0, 4, (m[2][1] - m[1][2]) / s, (m[0][2] - m[2][0]) / s, (m[1][0] - m[0][1]) / s, s / 4);
    } else {
      const i = [0, 1, 2].reduce((best, k) => (m[k][k] > m[best][best] ? k : best), 0);
      const [j, k] = [(i + 1) % 3, (i + 2) % 3];
      const s = 2 * Math.sqrt(1 + m[i][i] - m[j][j] - m[k][k]);
      q[i] = s / 4;
      q[j] = (m[j][i] + m[i][j]) / s;
      q[k] = (m[k][i] + m[i][k]) / s;
      q[3] = (m[k][j] - m[j][k]) / s;
    }
    const now = view.getView();
    view.setView([...now.slice(0, 4), ...q]);
  }

  function show(cell, keepView) {
    current = cell;
    if (!view) return;
    const before = keepView ? view.getView() : null;
    hovered = null;
    view.removeAllModels();
    view.removeAllShapes();
    view.removeAllLabels();
    addAtoms(cell);
    addBox(cell);
    if (before) {
      view.setView(before);
      view.render();
      return;
    }
    look(0, -24, 14);
  }

  function set(name, value) {
    options[name] = value;
    if (!current) return;
    show(current, true);
    if (name === "cells" && view) fit();
  }

  return { start, show, look, set, options, atomsOf };
})();
