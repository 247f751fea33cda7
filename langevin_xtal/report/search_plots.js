// Hull diagram and distributions, drawn as SVG for the width at hand.

const Plots = (() => {
  const MANY = 30; // values from which on stray ones are left off
  const CU_KALPHA1 = 1.54056; // Å
  const TOP = 12; // groups with a bar of their own

  // -- scales

  function scale(from, to) {
    const [a, b] = from;
    const [c, d] = to;
    return (x) => c + ((x - a) / (b - a || 1)) * (d - c);
  }

  function ticks(low, high, about) {
    const rough = (high - low) / about || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * ([1, 2, 5, 10].find((m) => m * power >= rough) || 10);
    const found = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(k * step);
    return { values: found, step, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
  }

  function text(x, y, words, attributes) {
    return draw("text", { x, y, ...attributes }, words);
  }

  function canvas(box, height, label) {
    box.replaceChildren();
    const width = Math.max(240, box.clientWidth);
    const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
    box.append(svg);
    return { svg, width };
  }

  function empty(box, words) {
    box.replaceChildren(make("p", { class: "empty" }, words));
  }

  function leftAxis(svg, y, values, frame, title) {
    const { left, right, top, bottom } = frame;
    for (const value of values.values) {
      svg.append(
        draw("line", { x1: left, x2: right, y1: y(value), y2: y(value), class: "grid" }),
        text(left - 7, y(value) + 4, fixed(value, values.digits), { "text-anchor": "end", class: "soft" }),
      );
    }
    const middle = (top + bottom) / 2;
    svg.append(text(0, 0, title, { "text-anchor": "middle", transform: `translate(13 ${middle}) rotate(-90)`, class: "soft" }));
  }

  // -- tips

  function tip(node, words) {
    node.addEventListener("pointermove", (event) => {
      const box = at("tip");
      box.textContent = words;
      box.hidden = false;
      const left = Math.min(event.clientX + 14, window.innerWidth - box.offsetWidth - 8);
      const below = event.clientY + 16;
      const over = event.clientY - box.offsetHeight - 10;
      box.style.left = `${Math.max(4, left)}px`;
      box.style.top = `${below + box.offsetHeight > window.innerHeight ? over : below}px`;
    });
    node.addEventListener("pointerleave", () => {
      at("tip").hidden = true;
    });
    return node;
  }

  function candidateWords(row) {
    const above = row.above === null ? "" : `\n${fixed(row.above, 0)} meV/atom above the hull`;
    return `#${row.rank}  ${formulaLabel(row.formula)}  ${groupLabel(row.found || row.asked)}${above}`;
  }

  function clickable(node, row, pick) {
    node.classList.add("click");
    node.addEventListener("click", () => pick(row));
    return node;
  }

  // -- labels that keep off each other

  function labeller(svg) {
    const taken = [];
    const overlaps = (a, b) => a.x0 < b.x1 && b.x0 < a.x1 && a.y0 < b.y1 && b.y0 < a.y1;
    return {
      keepOff(x, y, radius) {
        taken.push({ x0: x - radius, x1: x + radius, y0: y - radius, y1: y + radius });
      },
      place(x, y, words, spots) {
        const wide = 7.2 * words.length;
        for (const [dx, dy, anchor] of spots) {
          const from = x + dx - { start: 0, middle: wide / 2, end: wide }[anchor];
          const box = { x0: from, x1: from + wide, y0: y + dy - 11, y1: y + dy + 3 };
          if (box.x0 < 0 || taken.some((other) => overlaps(box, other))) continue;
          taken.push(box);
          svg.append(text(x + dx, y + dy, words, { "text-anchor": anchor }));
          return;
        }
      },
    };
  }

  const BELOW_FIRST = [[0, 19, "middle"], [9, 16, "start"], [-9, 16, "end"], [0, -10, "middle"], [10, 4, "start"], [-10, 4, "end"]];

  // -- the hull

  function hull(box, shown, picked, pick) {
    const diagram = DATA.diagram;
    if (!ABOVE.length) return empty(box, DATA.why);
    if (diagram && diagram.elements.length === 2) return binary(box, diagram, shown, picked, pick);
    if (diagram && diagram.elements.length === 3) return ternary(box, diagram, shown, picked, pick);
    return strip(box, shown, picked, pick);
  }

  // Values far above the others would flatten the rest: the limit, and what it leaves out.
  function ceiling(values, least) {
    const sorted = [...values].sort((a, b) => a - b);
    const most = sorted[sorted.length - 1];
    const usual = Math.max(least, sorted[Math.floor(0.9 * (sorted.length - 1))] * 1.25);
    return most <= 1.3 * usual ? most : usual;
  }

  function outside(svg, frame, count) {
    if (!count) return;
    const words = `${count} candidate${count > 1 ? "s" : ""} above this range at the upper edge`;
    svg.append(text(frame.right, frame.top - 8, words, { "text-anchor": "end", class: "soft" }));
  }

  function binary(box, diagram, shown, picked, pick) {
    const rows = ROWS.filter((row) => row.formation !== undefined && row.formation !== null);
    const height = box.clientWidth > 600 ? 520 : 400;
    const label = `Formation energy against composition, ${diagram.elements.join("–")}: ${rows.length} candidates and ${diagram.phases.length} reference phases`;
    const { svg, width } = canvas(box, height, label);
    const frame = { left: 62, right: width - 18, top: 26, bottom: height - 48 };
    const formation = rows.map((row) => row.formation);
    const known = diagram.phases.map((phase) => phase.formation);
    const low = Math.min(0, ...formation, ...known);
    const high = Math.max(0.02, ceiling([...formation, ...known], 0.1));
    const pad = 0.09 * (high - low);
    const x = scale([0, 1], [frame.left + 12, frame.right - 12]);
    const y = scale([low - pad, high + 0.5 * pad], [frame.bottom, frame.top]);
    const share = (item) => (item.fractions || item.x)[1];
    leftAxis(svg, y, ticks(low - pad, high + 0.5 * pad, 6), frame, "formation energy [eV/atom]");
    for (const value of [0, 0.25, 0.5, 0.75, 1]) {
      svg.append(
        draw("line", { x1: x(value), x2: x(value), y1: frame.bottom, y2: frame.bottom + 5, class: "axis" }),
        text(x(value), frame.bottom + 19, String(value), { "text-anchor": "middle", class: "soft" }),
      );
    }
    svg.append(
      draw("line", { x1: frame.left, x2: frame.right, y1: frame.bottom, y2: frame.bottom, class: "axis" }),
      text((frame.left + frame.right) / 2, height - 8, `share of ${diagram.elements[1]} atoms`, { "text-anchor": "middle", class: "soft" }),
    );
    const edge = (row) => Math.max(frame.top, y(row.formation));
    const over = rows.filter((row) => y(row.formation) < frame.top);
    outside(svg, frame, over.length);
    for (const [a, b] of diagram.lines) {
      const [p, q] = [diagram.phases[a], diagram.phases[b]];
      svg.append(draw("line", { x1: x(share(p)), x2: x(share(q)), y1: y(p.formation), y2: y(q.formation), class: "hull" }));
    }
    const labels = labeller(svg);
    for (const phase of diagram.phases) square(svg, x(share(phase)), y(phase.formation), phase);
    candidates(svg, rows, shown, picked, pick, (row) => [x(share(row)), edge(row)], 5);
    const stable = diagram.phases.filter((phase) => phase.above_hull === 0);
    for (const phase of stable) labels.keepOff(x(share(phase)), y(phase.formation), 5);
    for (const row of rows) labels.keepOff(x(share(row)), edge(row), 5);
    for (const phase of stable) labels.place(x(share(phase)), y(phase.formation), formulaLabel(phase.formula), BELOW_FIRST);
  }

  function square(svg, x, y, phase) {
    const stable = phase.above_hull === 0;
    const half = stable ? 4.5 : 3.5;
    const mark = draw("rect", { x: x - half, y: y - half, width: 2 * half, height: 2 * half, class: stable ? "stable" : "other" });
    const where = stable ? "on the hull" : `${fixed(1000 * phase.above_hull, 0)} meV/atom above the hull`;
    svg.append(tip(mark, `${formulaLabel(phase.formula)}  (reference: ${phase.source})\n${where}, formation energy ${fixed(phase.formation, 3)} eV/atom`));
  }

  // Worst first, so that the best lie on top; the picked one is ringed.
  function candidates(svg, rows, shown, picked, pick, place, radius) {
    const order = [...rows].sort((a, b) => (shown.has(a) === shown.has(b) ? b.rank - a.rank : shown.has(a) ? 1 : -1));
    for (const row of order) {
      const [cx, cy] = place(row);
      const mark = draw("circle", { cx, cy, r: radius, fill: energyColour(row.above), class: shown.has(row) ? "candidate" : "candidate off" });
      svg.append(clickable(tip(mark, candidateWords(row)), row, pick));
    }
    if (rows.includes(picked)) {
      const [cx, cy] = place(picked);
      svg.append(draw("circle", { cx, cy, r: radius + 3.5, class: "ring" }));
    }
  }

  function ternary(box, diagram, shown, picked, pick) {
    const side = Math.min(640, Math.max(200, Math.max(240, box.clientWidth) - 90));
    const high = (side * Math.sqrt(3)) / 2;
    const rows = ROWS.filter((row) => row.x && row.above !== null);
    const best = lowestByComposition(rows, shown);
    const label = `Compositions of ${diagram.elements.join("–")}: ${best.length} compositions of candidates and ${diagram.phases.length} reference phases`;
    const { svg, width } = canvas(box, high + 76, label);
    const left = (width - side) / 2;
    const corners = [[left, high + 38], [left + side, high + 38], [left + side / 2, 38]];
    const place = (fractions) => [0, 1].map((k) => corners.reduce((sum, corner, i) => sum + fractions[i] * corner[k], 0));
    for (const share of [0.25, 0.5, 0.75]) {
      for (const k of [0, 1, 2]) {
        const [i, j] = [(k + 1) % 3, (k + 2) % 3];
        const end = (m) => place([0, 1, 2].map((n) => (n === k ? share : n === m ? 1 - share : 0)));
        const [[x1, y1], [x2, y2]] = [end(i), end(j)];
        svg.append(draw("line", { x1, y1, x2, y2, class: "grid" }));
      }
    }
    svg.append(draw("polygon", { points: corners.map((c) => c.join(",")).join(" "), fill: "none", class: "axis" }));
    for (const [a, b] of diagram.lines) {
      const [[x1, y1], [x2, y2]] = [diagram.phases[a], diagram.phases[b]].map((phase) => place(phase.fractions));
      svg.append(draw("line", { x1, y1, x2, y2, class: "tie" }));
    }
    const labels = labeller(svg);
    for (const phase of diagram.phases) square(svg, ...place(phase.fractions), phase);
    const at2 = (row) => place(row.x);
    const marked = rows.includes(picked) ? [...best.filter((b) => key(b.row) !== key(picked)).map((b) => b.row), picked] : best.map((b) => b.row);
    candidates(svg, marked, shown, picked, pick, at2, 6.5);
    diagram.elements.forEach((symbol, k) => {
      const [cx, cy] = corners[k];
      svg.append(text(cx, cy + (k === 2 ? -14 : 26), symbol, { "text-anchor": "middle", "font-size": 15, "font-weight": 650 }));
      labels.keepOff(cx, cy + (k === 2 ? -18 : 22), 9);
    });
    for (const row of marked) labels.keepOff(...at2(row), 7);
    for (const phase of diagram.phases) {
      if (phase.above_hull !== 0 || phase.fractions.some((share) => share === 1)) continue;
      labels.place(...place(phase.fractions), formulaLabel(phase.formula), [[-11, 4, "end"], [11, 4, "start"], ...BELOW_FIRST]);
    }
  }

  const key = (row) => row.x.join();

  // The lowest shown candidate of each composition, or the lowest of all where none is shown.
  function lowestByComposition(rows, shown) {
    const best = new Map();
    for (const row of rows) {
      const now = best.get(key(row));
      const better = !now || (shown.has(row) !== shown.has(now) ? shown.has(row) : row.above < now.above);
      if (better) best.set(key(row), row);
    }
    return [...best.values()].map((row) => ({ row }));
  }

  function strip(box, shown, picked, pick) {
    const rows = ROWS.filter((row) => row.above !== null);
    const names = [...new Set([...rows].sort((a, b) => a.above - b.above).map((row) => row.name))];
    const height = box.clientWidth > 600 ? 520 : 400;
    const { svg, width } = canvas(box, height, `Energy above the hull by formula: ${rows.length} candidates of ${names.length} formulas`);
    const longest = Math.min(110, 14 + 5.4 * Math.max(...names.map((name) => name.length)));
    const frame = { left: 62, right: width - 18, top: 26, bottom: height - longest };
    const kept = names.slice(0, Math.max(1, Math.floor((frame.right - frame.left) / 24)));
    const inside = rows.filter((row) => kept.includes(row.name));
    const values = inside.map((row) => row.above);
    const low = Math.min(0, ...values);
    const high = Math.max(20, ceiling(values, 50));
    const pad = 0.05 * (high - low);
    const y = scale([low - pad, high + pad], [frame.bottom, frame.top]);
    const step = Math.min(90, (frame.right - frame.left) / kept.length);
    const x = (name) => frame.left + step * (kept.indexOf(name) + 0.5);
    leftAxis(svg, y, ticks(low - pad, high + pad, 6), frame, "energy above the hull [meV/atom]");
    svg.append(draw("line", { x1: frame.left, x2: frame.right, y1: y(0), y2: y(0), class: "axis" }));
    for (const name of kept) {
      svg.append(text(0, 0, formulaLabel(name), { "text-anchor": "end", transform: `translate(${x(name) + 4} ${frame.bottom + 12}) rotate(-50)` }));
    }
    const edge = (row) => [x(row.name), Math.max(frame.top, y(row.above))];
    outside(svg, frame, inside.filter((row) => y(row.above) < frame.top).length);
    candidates(svg, inside, shown, picked, pick, edge, 5);
    if (kept.length < names.length) {
      box.append(make("p", { class: "hint" }, `The ${kept.length} formulas lowest in energy, of ${names.length}.`));
    }
  }

  // What the marks mean, and the scale of the colours.
  function legend(box) {
    box.replaceChildren();
    if (!ABOVE.length) return;
    const mark = (shape) => draw("svg", { width: 14, height: 14, class: "mark-sample", "aria-hidden": "true" }, shape);
    const item = (shape, words) => make("span", {}, mark(shape), words);
    if (DATA.diagram) {
      box.append(
        item(draw("rect", { x: 2.5, y: 2.5, width: 9, height: 9, fill: "#3b4650" }), "reference phase on the hull"),
        item(draw("rect", { x: 3.5, y: 3.5, width: 7, height: 7, fill: "#fff", stroke: "#6b7782" }), "other reference phase"),
      );
    }
    const ternary = DATA.diagram && DATA.diagram.elements.length === 3;
    box.append(
      item(draw("circle", { cx: 7, cy: 7, r: 5, fill: energyColour(0), stroke: "#777" }), ternary ? "candidate, the lowest of its composition" : "candidate"),
      item(draw("circle", { cx: 7, cy: 7, r: 5, fill: "none", stroke: "#d55e00", "stroke-width": 2.2 }), "selected"),
    );
    const wide = 150;
    const stops = VIRIDIS.map((colour, k) => draw("stop", { offset: k / (VIRIDIS.length - 1), "stop-color": colour }));
    const bar = draw(
      "svg",
      { width: wide + 2, height: 14, role: "img", "aria-label": `Colours from 0 to ${PALE} meV/atom` },
      draw("linearGradient", { id: "viridis" }, ...stops),
      draw("rect", { x: 1, y: 1, width: wide, height: 12, fill: "url(#viridis)", stroke: "#b9c3cd" }),
    );
    const most = ABOVE[ABOVE.length - 1] > PALE ? `≥ ${PALE}` : `${PALE}`;
    box.append(make("span", {}, "above the hull: 0", bar, `${most} meV/atom`));
  }

  // -- powder pattern

  // The peaks of the picked structure, as they are listed; a tip has angle, height and distance.
  function pattern(row) {
    const [width, height] = [400, 130];
    const frame = { left: 8, right: width - 8, top: 8, bottom: height - 34 };
    const words = `Powder pattern of ${row.name}, Cu Kα1: ${row.xrd.length} peaks between 10 and 80 degrees`;
    const svg = draw("svg", { width: "100%", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": words });
    const x = scale([10, 80], [frame.left, frame.right]);
    const y = scale([0, 100], [frame.bottom, frame.top]);
    svg.append(draw("line", { x1: frame.left, x2: frame.right, y1: frame.bottom, y2: frame.bottom, class: "axis" }));
    for (let angle = 10; angle <= 80; angle += 10) {
      svg.append(
        draw("line", { x1: x(angle), x2: x(angle), y1: frame.bottom, y2: frame.bottom + 4, class: "axis" }),
        text(x(angle), frame.bottom + 16, String(angle), { "text-anchor": "middle", class: "soft" }),
      );
    }
    svg.append(text((frame.left + frame.right) / 2, height - 4, "2θ [degrees], Cu Kα1", { "text-anchor": "middle", class: "soft" }));
    for (const [angle, high] of row.xrd) {
      const spacing = CU_KALPHA1 / 2 / Math.sin((angle * Math.PI) / 360);
      const line = draw("line", { x1: x(angle), x2: x(angle), y1: frame.bottom, y2: y(high), class: "peak" });
      const wide = draw("line", { x1: x(angle), x2: x(angle), y1: frame.bottom, y2: frame.top, stroke: "transparent", "stroke-width": 5 });
      svg.append(line, tip(wide, `${fixed(angle, 2)}°  ${fixed(high, 0)} %\nd = ${fixed(spacing, 3)} Å`));
    }
    return make("figure", { class: "pattern" }, make("figcaption", {}, "Powder pattern"), svg);
  }

  // -- distributions

  function histogram(box, field, title, shown, picked, without) {
    const values = ROWS.map((row) => row[field]).filter((value) => value !== null);
    if (!values.length) return empty(box, without);
    const sorted = [...values].sort((a, b) => a - b);
    const [low, most] = [sorted[0], sorted[sorted.length - 1]];
    const usual = sorted[Math.floor(0.97 * (sorted.length - 1))];
    const stray = values.length >= MANY && usual > low && most - low > 1.6 * (usual - low);
    const high = stray ? usual : most;
    const { step, digits } = ticks(low, high > low ? high : low + 14, values.length >= 10 * MANY ? 28 : 14);
    const first = Math.floor(low / step + 1e-9) * step;
    const bins = Math.max(3, Math.floor((high - first) / step + 1e-9) + 1);
    const height = 210;
    const { svg, width } = canvas(box, height, `Histogram of ${title}, ${values.length} candidates`);
    const frame = { left: 50, right: width - 18, top: 10, bottom: height - 40 };
    const last = first + bins * step;
    const count = (rows) => {
      const counts = Array(bins).fill(0);
      for (const row of rows) {
        const bin = row[field] === null ? -1 : Math.floor((row[field] - first) / step + 1e-9);
        if (bin >= 0 && bin < bins) counts[bin]++;
      }
      return counts;
    };
    const all = count(ROWS);
    const now = count(shown);
    const x = scale([first, last], [frame.left, frame.right]);
    const top = Math.max(1, ...all);
    const y = scale([0, top], [frame.bottom, frame.top]);
    const marks = ticks(0, top, 4);
    leftAxis(svg, y, { ...marks, values: marks.values.filter(Number.isInteger), digits: 0 }, frame, "candidates");
    all.forEach((number, k) => {
      const [from, to] = [first + k * step, first + (k + 1) * step];
      const bar = { x: x(from) + 0.5, width: Math.max(1, x(to) - x(from) - 1) };
      const words = `${fixed(from, digits)} to ${fixed(to, digits)}: ${now[k]} shown of ${number}`;
      if (number) svg.append(tip(draw("rect", { ...bar, y: y(number), height: frame.bottom - y(number), class: "all" }), words));
      if (now[k]) svg.append(tip(draw("rect", { ...bar, y: y(now[k]), height: frame.bottom - y(now[k]), class: "shown" }), words));
    });
    const below = ticks(first, last, Math.max(3, Math.floor((frame.right - frame.left) / 55)));
    for (const value of below.values) {
      svg.append(
        draw("line", { x1: x(value), x2: x(value), y1: frame.bottom, y2: frame.bottom + 4, class: "axis" }),
        text(x(value), frame.bottom + 17, fixed(value, below.digits), { "text-anchor": "middle", class: "soft" }),
      );
    }
    svg.append(
      draw("line", { x1: frame.left, x2: frame.right, y1: frame.bottom, y2: frame.bottom, class: "axis" }),
      text((frame.left + frame.right) / 2, height - 6, title, { "text-anchor": "middle", class: "soft" }),
    );
    const here = picked?.[field];
    if (typeof here === "number" && here <= last) {
      svg.append(draw("line", { x1: x(here), x2: x(here), y1: frame.top, y2: frame.bottom, class: "mark" }));
    }
    const beyond = values.filter((value) => value >= last).length;
    if (beyond) box.append(make("p", { class: "hint" }, `${beyond} beyond ${fixed(last, digits)}, up to ${fixed(most, digits)}`));
    const unknown = ROWS.length - values.length;
    if (unknown) box.append(make("p", { class: "hint" }, `${unknown} unknown`));
  }

  function groups(box, shown, choose) {
    const counts = new Map();
    for (const row of ROWS) {
      const group = row.found || 0;
      const now = counts.get(group) || { all: 0, shown: 0 };
      now.all++;
      if (shown.has(row)) now.shown++;
      counts.set(group, now);
    }
    const order = [...counts].sort((a, b) => b[1].all - a[1].all || a[0] - b[0]);
    const rest = order.slice(TOP);
    const height = 14 + 19 * (Math.min(TOP, order.length) + (rest.length ? 1 : 0));
    const { svg, width } = canvas(box, Math.max(60, height), `Space groups found, ${order.length} different`);
    const frame = { left: 108, right: width - 38 };
    const x = scale([0, Math.max(...order.map(([, n]) => n.all))], [frame.left, frame.right]);
    order.slice(0, TOP).forEach(([group, n], k) => {
      const y = 6 + 19 * k;
      const name = group ? groupLabel(group) : "none";
      const words = `${name}: ${n.shown} shown of ${n.all}`;
      const bar = (count, kind) => draw("rect", { x: frame.left, y, width: Math.max(0, x(count) - frame.left), height: 13, class: kind });
      const line = draw("g", {}, text(frame.left - 8, y + 11, name, { "text-anchor": "end" }), bar(n.all, "all"), bar(n.shown, "shown"), text(x(n.all) + 6, y + 11, String(n.all), { class: "soft" }));
      if (group) {
        line.classList.add("click");
        line.addEventListener("click", () => choose(group));
      }
      svg.append(tip(line, words));
    });
    if (rest.length) {
      const left = rest.reduce((sum, [, n]) => sum + n.all, 0);
      svg.append(text(frame.left - 8, 6 + 19 * TOP + 11, "others", { "text-anchor": "end", class: "soft" }), text(frame.left + 2, 6 + 19 * TOP + 11, `${left} in ${rest.length} groups`, { class: "soft" }));
    }
  }

  return { hull, legend, histogram, groups, pattern };
})();
