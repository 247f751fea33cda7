"""The HTML report of a search: what is in it, what must never be, and how it behaves."""

from __future__ import annotations

import hashlib
import html
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spglib
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.analysis.diffraction.xrd import XRDCalculator

from langevin_xtal.cli.report import report
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.crystal.elements import atomic_number
from langevin_xtal.crystal.entry import Entry, Value
from langevin_xtal.crystal.pymatgen import to_structure
from langevin_xtal.errors import InputError
from langevin_xtal.report import search as report_module
from langevin_xtal.report.diagram import agree, make_diagram
from langevin_xtal.report.limits import limits
from langevin_xtal.report.rows import (
    PATTERN_RANGE,
    pack_cell,
    page_rows,
    pattern,
    shared_provenance,
    shortest_distance,
)
from langevin_xtal.report.search import as_script, report_html, write_report
from langevin_xtal.screen.hull import HullReferences
from langevin_xtal.search.store import Row, Store

FOLDER = Path(report_module.__file__).parent
CHROMIUM = next(
    filter(
        None,
        map(
            shutil.which,
            ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell"),
        ),
    ),
    None,
)
HOSTILE = '</script><script>throw "in"</script><img src=x onerror=alert(1)>{{data}}"\'\u2028'


def cubic(a: float, *sites: tuple[str, tuple[float, float, float]]) -> Cell:
    numbers = np.array([atomic_number(symbol) for symbol, _ in sites])
    return np.eye(3) * a, np.array([frac for _, frac in sites], dtype=float), numbers


FACES = [(0.0, 0.0, 0.0), (0.0, 0.5, 0.5), (0.5, 0.0, 0.5), (0.5, 0.5, 0.0)]
SALT = cubic(
    5.64, *(("Na", f) for f in FACES), *(("Cl", tuple((np.array(f) + 0.5) % 1)) for f in FACES)
)
CAESIUM = cubic(3.4, ("Na", (0, 0, 0)), ("Cl", (0.5, 0.5, 0.5)))
RICH = cubic(
    4.2, ("Na", (0, 0, 0)), ("Cl", (0.5, 0.5, 0)), ("Cl", (0.5, 0, 0.5)), ("Cl", (0, 0.5, 0.5))
)


def references(**energies: float) -> HullReferences:
    """Of ``NaCl3=-1.0`` and the like."""
    parts = {f: re.findall(r"([A-Z][a-z]?)(\d*)", f) for f in energies}
    names = [" ".join(sorted(f"{s}{n or 1}" for s, n in parts[f])) for f in energies]
    return HullReferences(
        tuple(names), np.array(list(energies.values())), tuple(energies), "toy", "toy 1"
    )


TOY = references(Na=-1.0, Cl=-2.0, NaCl=-3.0, NaCl3=-2.0)


def entry(cell: Cell, energy: float | None = None, *, uid: str = "000000", **more: Any) -> Entry:
    numbers = cell[2]
    above = TOY.energy_above_hull(numbers, energy).e_above_hull if energy is not None else None
    given = {
        "uid": uid,
        "cell": cell,
        "formula": to_structure(cell).composition.reduced_formula,
        "space_group": 221,
        "found_group": 221,
        "energy": energy,
        "e_above_hull": above,
        "potential": "toy 1" if energy is not None else "",
        "provenance": {"model": "small", "weights": "abc123", "version": "0.1.0", "seed": 3},
    }
    return Entry(**{**given, **more})


def three() -> list[Entry]:
    """Energies above the hull: −0.01, 0.05 and unknown."""
    moved = (SALT[0] * 1.03, (SALT[1] + 0.013) % 1.0, SALT[2])
    return [
        entry(SALT, -3.01, uid="a", space_group=225, found_group=225, sampled=moved),
        entry(CAESIUM, -2.95, uid="b", properties={"converged": False, "note": "ran out"}),
        entry(RICH, uid="c", found_group=None),
    ]


class Page(HTMLParser):
    """Elements of a page, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            if self.tags[-1][0] == "script" and len(self.scripts) < self.count("script"):
                self.scripts.append("")
            self.scripts[-1] += data

    def count(self, name: str) -> int:
        return sum(tag == name for tag, _ in self.tags)

    @property
    def data(self) -> Any:
        return json.loads(self.scripts[0])


class TestCells:
    def test_packed_cells_are_the_cells(self) -> None:
        packed = pack_cell(SALT)
        assert packed["z"] == [["Na", 4], ["Cl", 4]]
        np.testing.assert_allclose(np.reshape(packed["l"], (3, 3)), SALT[0], atol=1e-6)
        np.testing.assert_allclose(np.reshape(packed["f"], (-1, 3)), SALT[1], atol=1e-6)
        assert packed["d"] == pytest.approx(2.82)

    def test_coordinates_just_below_one_are_zero(self) -> None:
        lattice, _, numbers = CAESIUM
        frac = np.array([[1 - 1e-9, -1e-9, 0.25], [0.5, 0.5, 1 + 1e-9]])
        assert pack_cell((lattice, frac, numbers))["f"] == [0, 0, 0.25, 0.5, 0.5, 0]

    def test_an_atom_alone_is_as_far_as_its_copies(self) -> None:
        face = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) * 3.0
        assert shortest_distance((face, np.zeros((1, 3)), np.array([29]))) == pytest.approx(
            3 * math.sqrt(2)
        )
        long = np.diag([50.0, 60.0, 70.0])
        assert shortest_distance((long, np.zeros((1, 3)), np.array([29]))) == pytest.approx(50)

    @settings(max_examples=25, deadline=None)
    @given(seed=st.integers(0, 10**6))
    def test_shortest_distance_against_all_images(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        lattice = np.diag(rng.uniform(2, 12, 3)) @ (np.eye(3) + rng.uniform(-0.4, 0.4, (3, 3)))
        frac = rng.uniform(0, 1, (3, 3))
        steps = np.array(list(product(range(-5, 6), repeat=3)))
        places = (frac[:, None, None] - frac[None, :, None] + steps) @ lattice
        distances = np.linalg.norm(places, axis=-1)
        expected = distances[distances > 1e-9].min()
        cell = (lattice, frac, np.array([11, 17, 17]))
        assert shortest_distance(cell) == pytest.approx(expected)

    def test_a_cell_without_a_volume_has_no_distance(self) -> None:
        flat = (np.diag([3.0, 3.0, 0.0]), SALT[1], SALT[2])
        assert math.isnan(shortest_distance(flat))


class TestDiagram:
    def test_a_binary_by_hand(self) -> None:
        diagram, why = make_diagram(three(), TOY)
        assert diagram is not None
        assert why == ""
        assert diagram.elements == ("Cl", "Na")
        by_name = {phase.formula: phase for phase in diagram.phases}
        # NaCl: −3 against (−1 − 2)/2; NaCl3: −2 against −1.75, while the tie line is at −2.5
        assert by_name["Cl1 Na1"].formation == pytest.approx(-1.5)
        assert by_name["Cl3 Na1"].formation == pytest.approx(-0.25)
        assert by_name["Cl3 Na1"].above_hull == pytest.approx(0.5)
        assert by_name["Cl3 Na1"].fractions == pytest.approx((0.75, 0.25))
        lines = [{diagram.phases[k].formula for k in pair} for pair in diagram.lines]
        assert sorted(map(sorted, lines)) == [["Cl1", "Cl1 Na1"], ["Cl1 Na1", "Na1"]]
        assert diagram.formation_energy(SALT[2], -3.01) == pytest.approx(-1.51)

    @settings(max_examples=20, deadline=None)
    @given(seed=st.integers(0, 10**6))
    def test_ternaries_against_the_linear_programme(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        energies = {"Cu": -1.0, "Si": -2.0, "K": -0.5}
        for counts in rng.integers(0, 5, (8, 3)).tolist():
            if math.gcd(*counts) == 1 and sum(n > 0 for n in counts) > 1:
                parts = zip(("Cu", "Si", "K"), counts, strict=True)
                name = "".join(f"{symbol}{n}" for symbol, n in parts if n)
                energies[name] = float(rng.uniform(-3, 0))
        table = references(**energies)
        cell = cubic(5, ("Cu", (0, 0, 0)), ("Si", (0.5, 0, 0)), ("K", (0, 0.5, 0)))
        above = table.energy_above_hull(cell[2], -1.0).e_above_hull
        diagram, why = make_diagram([entry(cell, -1.0, e_above_hull=above)], table)
        assert diagram is not None, why
        z = [atomic_number(s) for s in diagram.elements]
        _check_phases(table, diagram)
        for a, b in diagram.lines:  # an edge of the hull is where the mixture of its ends lies
            middle = (np.array(diagram.phases[a].fractions) + diagram.phases[b].fractions) / 2
            mean = (diagram.phases[a].formation + diagram.phases[b].formation) / 2
            shares = np.round(2520 * middle).astype(int)
            if np.allclose(shares / 2520, middle, atol=1e-9):
                numbers = np.repeat(z, shares)
                hull = table.hull_energy(numbers)[0]
                assert diagram.formation_energy(numbers, hull) == pytest.approx(mean, abs=1e-6)

    def test_other_references_are_not_drawn(self) -> None:
        other = references(Na=-1.0, Cl=-2.0, NaCl=-3.5)
        assert agree(three(), TOY)
        assert not agree(three(), other)
        page = Page(report_html(three(), references=other)).data
        assert page["diagram"] is None
        assert "not at hand" in page["why"]
        assert "formation" not in page["rows"][0]

    @pytest.mark.parametrize(
        ("entries", "table", "words"),
        [
            ([entry(SALT)], TOY, "No candidate has an energy above the hull"),
            ([entry(SALT, -3.0)], None, "not at hand"),
            ([entry(SALT, -3.0)], references(Na=-1.0, NaCl=-3.0), "pure Cl"),
            ([entry(cubic(4, ("Na", (0, 0, 0))), -1.0)], TOY, "1 element is not drawn"),
        ],
    )
    def test_says_why_there_is_none(
        self, entries: list[Entry], table: HullReferences | None, words: str
    ) -> None:
        diagram, why = make_diagram(entries, table)
        assert diagram is None
        assert words in why

    def test_the_shipped_references_of_a_real_system(self) -> None:
        table = HullReferences.shipped()
        cell = cubic(5, ("Cu", (0, 0, 0)), ("Si", (0.5, 0, 0)), ("K", (0, 0.5, 0)))
        hull = table.hull_energy(cell[2])[0]
        diagram, _ = make_diagram([entry(cell, hull + 0.1, e_above_hull=0.1)], table)
        assert diagram is not None
        stable = {phase.formula for phase in diagram.phases if phase.above_hull == 0}
        assert {"Cu1", "K1", "Si1"} <= stable
        _check_phases(table, diagram)


def _check_phases(table: HullReferences, diagram: Any) -> None:
    """Energies above the hull are those of the linear programme."""
    for phase in diagram.phases:
        parts = re.findall(r"([A-Z][a-z]?)(\d+)", phase.formula)
        numbers = np.concatenate([[atomic_number(s)] * int(n) for s, n in parts])
        energy = float(table.energy[table.formulas.index(phase.formula)])
        expected = energy - table.hull_energy(numbers)[0]
        assert phase.above_hull == pytest.approx(expected, abs=1e-6)


class TestRows:
    def test_units_and_what_is_unknown(self) -> None:
        first, second, third = page_rows(three(), {}, None)
        assert first["above"] == pytest.approx(-10.0)
        assert second["above"] == pytest.approx(50.0)
        assert third["above"] is None
        assert third["energy"] is None
        assert third["found"] is None
        assert third["all"] is None
        (ranked,) = page_rows([entry(SALT, properties={"e_above_all": 0.0125})], {}, None)
        assert ranked["all"] == pytest.approx(12.5)
        assert first["sampled"]["l"][0] == pytest.approx(5.64 * 1.03)

    def test_flags_and_notes(self) -> None:
        facts = {
            "converged": False,
            "symmetry_broke": True,
            "ranked": True,
            "known": "mp-1",
            "hull_reason": "no reference",
            "steps": 4,
            "note": "",
        }
        (row,) = page_rows([entry(SALT, properties=facts)], {}, None)
        assert row["flags"] == ["known: mp-1", "not converged", "symmetry broke"]
        assert row["notes"] == ["no reference"]
        assert row["more"]["steps"] == 4

    def test_powder_patterns_against_pymatgen(self) -> None:
        theirs = XRDCalculator("CuKa1", symprec=0).get_pattern(
            to_structure(SALT), two_theta_range=PATTERN_RANGE
        )
        strong = theirs.y >= 1.0
        (row,) = page_rows([entry(SALT)], {}, None)
        angles, heights = np.array(row["xrd"]).T
        np.testing.assert_allclose(angles, theirs.x[strong], atol=0.02)
        np.testing.assert_allclose(heights, theirs.y[strong], rtol=0.01, atol=0.06)

    def test_a_crystal_without_a_pattern_has_none(self) -> None:
        far = (50.0 * np.eye(3), np.zeros((1, 3)), np.array([110]))  # no scattering factor
        assert pattern(far) == []

    def test_what_is_not_finite_is_unknown(self) -> None:
        odd = entry(SALT, math.nan, e_above_hull=math.inf, properties={"x": math.nan, "y": 1 / 3})
        text = report_html([odd])
        (row,) = Page(text).data["rows"]
        assert row["energy"] is None
        assert row["above"] is None
        assert row["more"] == {"x": "nan", "y": 0.333333}

    def test_common_provenance_is_kept_once(self) -> None:
        entries = [entry(SALT, uid=str(k), provenance={"model": "m", "index": k}) for k in (1, 2)]
        assert shared_provenance(entries) == {"model": "m"}
        assert [row["from"] for row in page_rows(entries, {"model": "m"}, None)] == [
            {"index": 1},
            {"index": 2},
        ]


class TestPage:
    def test_nothing_comes_from_outside(self) -> None:
        text = report_html(three(), references=TOY)
        assert not re.search(r"""(src|href|action)\s*=\s*["']?\s*(https?:)?//""", text, re.I)
        assert not re.search(r"url\(|@import", (FOLDER / "search.css").read_text("utf-8"))
        page = Page(text)
        for _, attributes in page.tags:
            for name in ("src", "href", "srcset", "data", "action"):
                assert (attributes.get(name) or "#").startswith("#")
        policy = next(a for _, a in page.tags if a.get("http-equiv"))["content"] or ""
        assert policy.startswith("default-src 'none'")
        assert "connect-src" not in policy
        assert "http" not in policy

    def test_hostile_text_stays_text(self) -> None:
        odd = entry(
            SALT,
            uid="x",
            formula=HOSTILE,
            potential=HOSTILE,
            properties={"note": HOSTILE, HOSTILE: True},
            provenance={"model": HOSTILE, HOSTILE: HOSTILE},
        )
        plain, page = (
            Page(report_html([e], title=t, date=t, about={t: t}, stages={t: 1}))
            for e, t in ((entry(SALT), "t"), (odd, HOSTILE))
        )
        assert page.count("script") == plain.count("script") == 3
        assert page.count("img") == 0
        (row,) = page.data["rows"]
        assert row["formula"] == HOSTILE
        assert row["notes"] == [HOSTILE]
        assert page.data["title"] == HOSTILE.strip()

    @given(st.recursive(st.text() | st.floats(allow_nan=False, allow_infinity=False), st.lists))
    def test_json_comes_back_and_opens_nothing(self, data: Any) -> None:
        text = as_script(data)
        assert not set("<>&\u2028\u2029") & set(text)
        assert json.loads(text) == data

    def test_the_same_page_again(self) -> None:
        pages = {report_html(three(), date="2026-01-02", references=TOY) for _ in range(2)}
        assert len(pages) == 1
        assert "2026-01-02" in pages.pop()

    def test_heads_and_counts(self) -> None:
        text = report_html(three(), title="A & B", stages={"sampled": 1234, "ranked": 3})
        assert "<h1>A &amp; B</h1>" in text
        assert "<b>1,234</b> <span>sampled</span>" in text
        assert "<dd>abc123</dd>" in text
        counted = report_html(three())
        assert "<b>2</b> <span>placed against the hull</span>" in counted
        assert "<b>1</b> <span>on or below the hull</span>" in counted

    def test_the_size_of_two_hundred(self) -> None:
        rng = np.random.default_rng(0)
        numbers = np.repeat([11, 17, 8], [10, 10, 20])
        cells = [(np.eye(3) * 9.0, rng.uniform(0, 1, (40, 3)), numbers) for _ in range(200)]
        entries = [entry(c, uid=f"{k:06d}", sampled=c) for k, c in enumerate(cells)]
        text = report_html(entries)
        assert len(text) < 2_000_000
        assert len(Page(text).data["rows"]) == 200

    def test_the_vendored_viewer_is_the_published_one(self) -> None:
        viewer = (FOLDER / "vendor/3Dmol-min.js").read_bytes()
        readme = (FOLDER / "vendor/README.txt").read_text("utf-8")
        assert hashlib.sha256(viewer).hexdigest() in readme
        assert not re.search(rb"</?script|<!--", viewer, re.I)
        assert "University of Pittsburgh" in html.unescape(report_html(three()))


class TestLimits:
    def text(self, entries: list[Entry], table: HullReferences | None = None) -> dict[str, str]:
        return dict(limits(entries, table))

    def test_without_energies(self) -> None:
        said = self.text([entry(SALT)])
        assert "says nothing about stability" in said["Energies"]
        assert "Hull" not in said
        assert "No geometry here was relaxed" in said["Geometry"]
        assert "Phonons were not computed" in said["Temperature"]

    def test_with_energies(self) -> None:
        said = self.text(three(), TOY)
        assert "toy 1" in said["Energies"]
        assert "1 of 3 candidates have no energy" in said["Energies"]
        assert "hull of 4 phases" in said["Hull"]
        assert "1 of 3 geometries were relaxed" in said["Geometry"]

    def test_missing_subsystems_are_named(self) -> None:
        cell = cubic(5, ("Cu", (0, 0, 0)), ("Si", (0.5, 0, 0)), ("K", (0, 0.5, 0)))
        table = references(Cu=-1.0, Si=-2.0, K=-0.5, CuSi=-3.0)
        said = self.text([entry(cell, -1.0, e_above_hull=0.5)], table)["Hull"]
        assert re.search(r"none of .*Cu-K", said)
        assert "more stable than they are" in said

    def test_mixed_and_unknown(self) -> None:
        mixed = [entry(SALT, -3.0), entry(SALT, -3.0, potential="other 2")]
        assert "must not be compared" in self.text(mixed)["Energies"]
        assert "is not recorded" in self.text(mixed)["Hull"]
        alone = [entry(SALT, -3.0, e_above_hull=None)]
        assert "No energy above the hull is known" in self.text(alone)["Hull"]


class TestFile:
    def test_is_whole_or_not_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_report(three(), tmp_path / "r.html", date="d")
        assert path.read_text("utf-8") == report_html(three(), date="d")
        with pytest.raises(InputError, match=r"exists already.*--force"):
            write_report(three(), path)
        write_report(three(), path, force=True, title="new")
        assert "<h1>new</h1>" in path.read_text("utf-8")

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(report_module.os, "replace", full)
        with pytest.raises(InputError, match="No space left"):
            write_report(three(), path, force=True)
        assert [p.name for p in tmp_path.iterdir()] == ["r.html"]
        assert "<h1>new</h1>" in path.read_text("utf-8")

    def test_bad_input(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no candidates"):
            report_html([])
        with pytest.raises(InputError, match="is a folder"):
            write_report(three(), tmp_path)
        with pytest.raises(InputError, match="does not exist"):
            write_report(three(), tmp_path / "no" / "r.html")

    def test_a_title_that_is_no_text(self, tmp_path: Path) -> None:
        path = write_report(three(), tmp_path / "r.html", title="a\udc80b")
        assert "<h1>a?b</h1>" in path.read_text("utf-8")

    def test_command(self, tmp_path: Path) -> None:
        for k, cell in enumerate((SALT, CAESIUM, RICH)):
            to_structure(cell).to(filename=str(tmp_path / f"{k}.cif"))
        out = tmp_path / "report.html"
        arguments = [str(tmp_path), "--out", str(out), "--title", "Salt"]
        done = CliRunner().invoke(report, [*arguments, "--top", "2"], catch_exceptions=False)
        assert done.exit_code == 0
        assert "2 candidates" in done.output
        page = Page(out.read_text("utf-8"))
        assert [row["uid"] for row in page.data["rows"]] == ["0", "1"]
        assert page.data["rows"][0]["found"] == 225
        again = CliRunner().invoke(report, arguments)
        assert isinstance(again.exception, InputError)
        assert "--force" in str(again.exception)
        forced = CliRunner().invoke(report, [*arguments, "--force"], catch_exceptions=False)
        assert "3 candidates" in forced.output

    def test_command_on_a_store(self, tmp_path: Path) -> None:
        source, out = tmp_path / "campaign.db", tmp_path / "report.html"
        facts: list[dict[str, Value]] = [
            {"filtered": True, "energy": -3.0, "e_above_hull": 0.01, "found_group": 225},
            {"filtered": True, "energy": -2.9, "e_above_hull": -0.02, "found_group": 221},
            {"reason": "overlap: 0.30 Å"},
            {"filtered": True, "duplicate_of": 0},
        ]
        for k in (0, 1):
            facts[k] |= {"ranked": True, "potential": "toy 1", "converged": True, "note": ""}
        cells = (SALT, CAESIUM, RICH, SALT)
        rows = [
            Row(k, "Na:1,Cl:1 in 225", 225, cell, fact, kept=cell if "energy" in fact else None)
            for k, (cell, fact) in enumerate(zip(cells, facts, strict=True))
        ]
        with Store(source, {"elements": ["Na", "Cl"], "seed": 5}) as store:
            store.claim("sample", range(4), 4)
            assert store.add(rows, 2.0) == 4
        done = CliRunner().invoke(report, [str(source), "--out", str(out)], catch_exceptions=False)
        assert "2 candidates" in done.output
        text = out.read_text("utf-8")
        page = Page(text)
        assert [row["uid"] for row in page.data["rows"]] == ["000001", "000000"]
        assert page.data["rows"][0]["flags"] == []
        for count, state in ((4, "sampled"), (1, "rejected"), (1, "duplicate"), (2, "ranked")):
            assert f"<b>{count}</b> <span>{state}</span>" in text
        assert "overlap: … Å: 1" in text
        assert "<dt>seed</dt><dd>5</dd>" in text


PROBE = """
<script>
const names = () => [...document.querySelectorAll("#table tbody .open")].map((b) => b.textContent);
const press = (key) =>
  document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
function ink() {
  const from = document.querySelector("#canvas canvas");
  if (!from || !from.width) return 0;
  const to = document.createElement("canvas");
  [to.width, to.height] = [from.width, from.height];
  const pen = to.getContext("2d");
  pen.drawImage(from, 0, 0);
  const values = pen.getImageData(0, 0, to.width, to.height).data;
  let found = 0;
  for (let k = 0; k < values.length; k += 4) {
    found += values[k + 3] > 0 && values[k] + values[k + 1] + values[k + 2] < 700;
  }
  return found;
}
setTimeout(() => {
  const said = { start: names(), sort: state.sort, picked: picked.uid };
  said.title = at("picked").textContent;
  said.names = ["K(Cu2Si)2", "Cu2 K1 Si1", "<b>Cu</b>"].map((formula) => {
    const box = document.createElement("p");
    box.append(...formulaNodes(formula));
    return [formulaText(formula), box.innerHTML];
  });
  said.groups = ["225", "221"].map((group) => groupNodes(group).map((n) => n.outerHTML || n));
  said.cifs = ROWS.map((row) => cifText(row, row.cell, "relaxed"));
  const both = ROWS.filter((row) => row.sampled);
  said.sampled = both.map((row) => cifText(row, row.sampled, "as sampled"));
  said.drawn = ROWS.map((row) => Viewer.atomsOf(row.cell, 1).length);
  said.block = ROWS.map((row) => Viewer.atomsOf(row.cell, 2).length);
  Viewer.show(picked.cell, false);
  said.ink = ink();
  const headButton = (name) => document.querySelector(`th[data-name="${name}"] button`);
  headButton("above")?.click();
  said.up = names();
  headButton("above")?.click();
  said.down = names();
  said.aria = headButton("above")?.parentNode.getAttribute("aria-sort");
  said.address = location.hash;
  headButton("rank").click();
  document.querySelector("#table .open[tabindex='0']").focus();
  press("Home"); press("ArrowDown");
  said.second = [picked.uid, document.activeElement.textContent];
  said.stops = document.querySelectorAll("#table .open[tabindex='0']").length;
  state.formula = "Na Cs"; update();
  said.nothing = at("table").tBodies[0].textContent;
  state.formula = "cl3"; update();
  said.part = names();
  state.formula = ""; state.group = "225"; update();
  said.group = names();
  state.group = ""; state.above = "0"; update();
  said.limit = names();
  state.above = ""; update();
  said.csv = csvText(order);
  said.hull = document.querySelectorAll("#hull .candidate").length;
  said.stable = document.querySelectorAll("#hull .stable").length;
  const plots = [...document.querySelectorAll(".plot svg")];
  said.plots = plots.map((svg) => svg.getAttribute("aria-label"));
  said.empty = [...document.querySelectorAll(".plot .empty")].map((p) => p.textContent);
  said.noViewer = at("no-viewer").hidden ? "" : at("no-viewer").textContent;
  said.fetched = performance.getEntriesByType("resource").length;
  said.failure = at("failure").hidden ? "" : at("failure").textContent;
  const fields = [...document.querySelectorAll("input, select")];
  said.unlabelled = fields.filter((field) => !field.labels.length).length;
  const pre = document.createElement("pre");
  pre.id = "probe";
  pre.textContent = JSON.stringify(said);
  document.body.append(pre);
}, 50);
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
class TestBrowser:
    """The page in a real browser, from a file, driven by a script put at its end."""

    @staticmethod
    def open(folder: Path, entries: list[Entry], address: str = "", *flags: str) -> dict[str, Any]:
        text = report_html(entries, references=TOY, title=HOSTILE)
        path = folder / "page.html"
        path.write_text(text.replace("</body>", PROBE), "utf-8")
        command = [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1300,900",
            "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}",
            "--virtual-time-budget=8000", *flags, "--dump-dom", f"file://{path}#{address}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.S)
        assert found, done.stderr[-2000:]
        said: dict[str, Any] = json.loads(html.unescape(found[1]))
        # what software rendering says of itself is no fault of the page
        lines = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        said["console"] = [line for line in lines if "WebGL" not in line]
        said["dom"] = done.stdout
        return said

    @pytest.fixture(scope="class")
    def said(self, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
        odd = entry(
            RICH, -2.0, uid="odd", formula=HOSTILE, properties={"note": "=1+1, " + HOSTILE}
        )
        return self.open(
            tmp_path_factory.mktemp("page"), [*three(), odd], "sort=volume-down&uid=b"
        )

    def test_no_errors_and_nothing_fetched(self, said: dict[str, Any]) -> None:
        assert said["console"] == []
        assert said["failure"] == ""
        assert said["fetched"] == 0
        assert said["unlabelled"] == 0
        assert "<img" not in said["dom"].split('id="data"')[0]

    def test_the_address_says_what_is_shown(self, said: dict[str, Any]) -> None:
        # volumes per atom: NaCl 22.43, CsCl type 19.65, the other two 18.52
        assert said["start"] == ["NaCl", "NaCl", "NaCl3", HOSTILE]
        assert said["sort"] == "volume"
        assert said["picked"] == "b"
        assert said["title"].startswith("#2 NaCl")
        assert said["address"] == "#sort=above-down&uid=b"

    def test_formulas_and_groups_as_chemists_write_them(self, said: dict[str, Any]) -> None:
        assert said["names"] == [
            ["K(Cu2Si)2", "K(Cu<sub>2</sub>Si)<sub>2</sub>"],
            ["Cu2KSi", "Cu<sub>2</sub>KSi"],
            ["<b>Cu</b>", "&lt;b&gt;Cu&lt;/b&gt;"],
        ]
        assert said["groups"][0] == ["Fm", '<span class="over">3</span>', "m"]

    def test_sorting(self, said: dict[str, Any]) -> None:
        assert said["up"] == ["NaCl", "NaCl", HOSTILE, "NaCl3"]
        assert said["down"] == [HOSTILE, "NaCl", "NaCl", "NaCl3"], "unknown stays last"
        assert said["aria"] == "descending"

    def test_keys(self, said: dict[str, Any]) -> None:
        assert said["second"] == ["b", "NaCl"]
        assert said["stops"] == 1

    def test_filters(self, said: dict[str, Any]) -> None:
        assert said["nothing"] == "No candidate passes these filters."
        assert said["part"] == ["NaCl3"]
        assert said["group"] == ["NaCl"]
        assert said["limit"] == ["NaCl"]

    def test_structures_are_drawn(self, said: dict[str, Any]) -> None:
        # 4 Na become 14 with those on faces, 4 Cl become 13; one corner atom becomes 8
        assert said["drawn"] == [27, 9, 14, 14]
        # 2×2×2 cells of sodium chloride: a 5×5×5 grid; of the caesium chloride type: 27 + 8
        assert said["block"][:2] == [125, 35]
        assert said["ink"] > 2000

    def test_cifs_are_the_structures(self, said: dict[str, Any]) -> None:
        from pymatgen.io.cif import CifParser

        relaxed = [(e.cell, text) for e, text in zip(three(), said["cifs"], strict=False)]
        sampled = [(three()[0].sampled, said["sampled"][0])]
        assert len(said["sampled"]) == 1
        for cell, text in relaxed + sampled:
            assert cell is not None
            (found,) = CifParser.from_str(text).parse_structures(primitive=False)
            np.testing.assert_allclose(
                found.lattice.abc, np.linalg.norm(cell[0], axis=1), atol=1e-5
            )
            assert [site.specie.Z for site in found] == cell[2].tolist()
            shift = found.frac_coords - cell[1]
            np.testing.assert_allclose(shift - np.rint(shift), 0, atol=2e-6)
            for symprec in (1e-2, 1e-4):
                assert _group(found, symprec) == _group(to_structure(cell), symprec)
        assert "as sampled" in sampled[0][1]

    def test_a_hostile_name_makes_one_sound_cif(self, said: dict[str, Any]) -> None:
        from pymatgen.io.cif import CifParser

        text = said["cifs"][3]
        assert text.count("\ndata_") == 1
        assert all(ord(letter) < 128 for letter in text)
        assert len(CifParser.from_str(text).parse_structures(primitive=False)[0]) == 4

    def test_tables_come_out(self, said: dict[str, Any]) -> None:
        import csv

        head, *lines = csv.reader(said["csv"].splitlines())
        assert head[:2] == ["rank", "uid"]
        assert [line[1] for line in lines] == ["a", "b", "c", "odd"]
        above = head.index("e_above_hull_mev_per_atom")
        assert [float(line[above] or "nan") for line in lines[:2]] == pytest.approx([-10, 50])
        assert lines[3][-1].startswith("'=1+1"), "no spreadsheet may compute a note"

    def test_plots(self, said: dict[str, Any]) -> None:
        assert said["hull"] == 3
        assert said["stable"] == 3
        assert said["empty"] == []
        assert len(said["plots"]) == 4
        assert all(said["plots"])

    def test_without_energies_and_without_webgl(self, tmp_path: Path) -> None:
        said = self.open(tmp_path, [entry(SALT, uid="only")], "", "--disable-software-rasterizer")
        assert said["start"] == ["NaCl"]
        assert "no WebGL" in said["noViewer"]
        assert said["failure"] == ""
        assert said["hull"] == 0
        assert any("No candidate has an energy above the hull" in text for text in said["empty"])
        assert said["csv"].count("\r\n") == 2


def _group(structure: Any, symprec: float) -> int:
    cell = (structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers)
    dataset = spglib.get_symmetry_dataset(cell, symprec=symprec)
    assert dataset is not None
    return int(dataset.number)
