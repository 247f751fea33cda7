"""Files as people have them: each is something that a real file does to a real reader."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import sqlite3
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import numpy as np
import pytest
import spglib
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms, FixedPlane
from pymatgen.core import Lattice, Structure

import langevin_xtal as lx
from langevin_xtal.cli import run as command
from langevin_xtal.cli import types
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.dataset.prepare import prepare
from langevin_xtal.errors import DataError, InputError, RejectError
from langevin_xtal.evaluation.structures import StructureSet
from langevin_xtal.structures.operations import group_of, parse_operation
from langevin_xtal.structures.record import ReadStructure
from langevin_xtal.symmetry import SpaceGroup

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def formula(found: ReadStructure) -> str:
    counts = Counter(SYMBOLS[z] for z in found.cell[2].tolist())
    return " ".join(f"{symbol}{n}" for symbol, n in sorted(counts.items()))


def group(found: ReadStructure) -> int:
    cell: Any = found.cell
    return int(spglib.get_symmetry_dataset(cell, symprec=0.01).number)


def one(path: Path) -> ReadStructure:
    found = lx.read_structures(path)
    assert not found.left_out, found.left_out
    (structure,) = found
    return structure


def why_not(path: Path) -> str:
    """The one reason why a file's only structure cannot be used."""
    found = lx.read_structures(path)
    assert not len(found)
    (reason,) = found.left_out.values()
    assert "\n" not in reason
    assert "unexpected" not in reason
    return reason


# --- CIF ----------------------------------------------------------------------------------------


def cif(
    cell: tuple[float, ...],
    sites: list[str],
    *lines: str,
    columns: str = "label type_symbol fract_x fract_y fract_z",
) -> str:
    cell = cell if len(cell) == 6 else (*cell, 90, 90, 90)
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    return "\n".join(
        [
            "data_x",
            *lines,
            *(f"_cell_{name} {value}" for name, value in zip(names, cell, strict=True)),
            "loop_",
            *(f"_atom_site_{name}" for name in columns.split()),
            *sites,
            "",
        ]
    )


def operations(number: int, tag: str = "_symmetry_equiv_pos_as_xyz") -> str:
    from langevin_xtal.crystal.cif import operation_text

    own = SpaceGroup(number)
    texts = (operation_text(w, t) for w, t in zip(own.rotations, own.translations24, strict=True))
    return "loop_\n" + tag + "\n" + "\n".join(f"'{text}'" for text in texts)


SALT = (5.64, 5.64, 5.64)
SALT_SITES = ["Na1 Na 0 0 0", "Cl1 Cl 0.5 0.5 0.5"]
SPINEL_1 = ["Mg1 Mg 0 0 0", "Al1 Al 0.625 0.625 0.625", "O1 O 0.387 0.387 0.387"]
SPINEL_2 = ["Mg1 Mg 0.125 0.125 0.125", "Al1 Al 0.5 0.5 0.5", "O1 O 0.262 0.262 0.262"]
ANATASE_2 = ["Ti1 Ti 0 0.25 0.375", "O1 O 0 0.25 0.167"]
PEROVSKITE = ["Mg1 Mg 0.514 0.556 0.25", "Si1 Si 0.5 0 0.5", "O1 O 0.103 0.466 0.25",
              "O2 O 0.196 0.201 0.553"]  # fmt: skip
PBNM = (4.78, 4.93, 6.9)
ZIRCONIA_N = ["Zr1 Zr 0.7917 0.0395 0.0671", "O1 O 0.6553 0.3317 0.7253",
              "O2 O 0.5208 0.7569 0.9704"]  # fmt: skip
CELL_N = (6.78349, 5.2116, 5.1505, 90, 129.311, 90)
HM, HALL = "_symmetry_space_group_name_H-M", "_symmetry_space_group_name_Hall"
NUMBER, SUM = "_symmetry_Int_Tables_number", "_chemical_formula_sum"

READ: dict[str, tuple[str, str, int]] = {
    # without operations: by Hall symbol
    "Hall": (cif(SALT, SALT_SITES, f"{HALL} '-F 4 2 3'"), "Cl4 Na4", 225),
    "Hall, origin 2": (cif((8.08,) * 3, SPINEL_2, f"{HALL} '-F 4vw 2vw 3'", f"{NUMBER} 227"),
                       "Al16 Mg8 O32", 227),
    "Hall with a shift": (cif((8.08,) * 3, SPINEL_2, f"{HALL} 'F 4d 2 3 -1d (x-1/8,y-1/8,z-1/8)'"),
                          "Al16 Mg8 O32", 227),
    # by H-M symbol with its setting
    "full symbol": (cif(SALT, SALT_SITES, f"{HM} 'F 4/m -3 2/m'"), "Cl4 Na4", 225),
    "full symbol, rutile": (
        cif((4.59, 4.59, 2.96), ["Ti1 Ti 0 0 0", "O1 O 0.305 0.305 0"],
            f"{HM} 'P 42/m 21/n 2/m'"), "O4 Ti2", 136),
    "old symbol": (cif((3.31, 10.48, 4.38), ["P1 P 0 0.1017 0.0806"], f"{HM} 'C m c a'"),
                   "P8", 64),
    "underscores for blanks": (
        cif((4.9896, 4.9896, 17.061, 90, 90, 120),
            ["Ca1 Ca 0 0 0", "C1 C 0 0 .25", "O1 O .2568 0 .25"], f"{HM} 'R_-3_c'",
            f"{NUMBER} 167"), "C6 Ca6 O18", 167),
    "no minus": (cif(SALT, SALT_SITES, f"{HM} Fm3m"), "Cl4 Na4", 225),
    "origin 2": (cif((8.08,) * 3, SPINEL_2, f"{HM} 'F d -3 m :2'"), "Al16 Mg8 O32", 227),
    "origin 2, Z": (cif((8.08,) * 3, SPINEL_2, f"{HM} 'F d -3 m Z'"), "Al16 Mg8 O32", 227),
    "origin 1, S": (cif((8.08,) * 3, SPINEL_1, f"{HM} 'F d -3 m S'"), "Al16 Mg8 O32", 227),
    "origin 1 by formula": (
        cif((8.08,) * 3, SPINEL_1, f"{HM} 'F d -3 m'", f"{SUM} 'Al2 Mg O4'"), "Al16 Mg8 O32", 227),
    "origin 2 by formula": (
        cif((8.08,) * 3, SPINEL_2, f"{NUMBER} 227", f"{SUM} 'Al2 Mg O4'"), "Al16 Mg8 O32", 227),
    "origin by distances": (cif((3.78, 3.78, 9.51), ANATASE_2, f"{HM} 'I 41/a m d'"), "O8 Ti4",
                            141),
    "another monoclinic cell": (cif(CELL_N, ZIRCONIA_N, f"{HM} 'P 21/n'"), "O8 Zr4", 14),
    "unique axis c": (
        cif((5.3173, 5.1505, 5.2116, 90, 90, 99.23),
            ["Zr1 Zr 0.2083 0.2754 0.0395", "O1 O 0.3447 0.07 0.3317",
             "O2 O 0.4792 0.4496 0.7569"], f"{HM} 'P 1 1 21/a'"), "O8 Zr4", 14),
    "unique axis c of an almost right angle": (
        cif((5.0, 6.0, 7.0, 90, 90, 91), ["Zr1 Zr 0.1 0.2 0.3", "O1 O .3 .45 .1"],
            f"{HM} 'P 21/n'"), "O4 Zr4", 14),
    "body-centred monoclinic": (
        cif((5.1288, 3.4226, 6.34658, 90, 132.16, 90),
            ["Cu1 Cu 0.25 0.25 0.25", "O1 O 0.75 0.4184 0"], f"{HM} 'I 1 2/a 1'"), "Cu4 O4", 15),
    "other axes": (cif(PBNM, PEROVSKITE, f"{HM} 'P b n m'", f"{NUMBER} 62"), "Mg4 O12 Si4", 62),
    "rhombohedral axes": (
        cif((6.375, 6.375, 6.375, 46.08, 46.08, 46.08),
            ["Ca1 Ca 0 0 0", "C1 C .25 .25 .25", "O1 O 0.5068 -0.0068 .25"], f"{HM} 'R -3 c'"),
        "C2 Ca2 O6", 167),
    "hexagonal axes": (
        cif((4.99, 4.99, 17.06, 90, 90, 120),
            ["Ca1 Ca 0 0 0", "C1 C 0 0 .25", "O1 O 0.257 0 .25"], f"{HM} 'R -3 c'"),
        "C6 Ca6 O18", 167),
    "rhombohedral, said": (
        cif((4.0718, 4.0718, 4.0718, 90.6, 90.6, 90.6),
            ["Ni1 Ni 0.5 0.2449 -0.2449", "S1 S .2521 .2521 .2521"], f"{HM} 'R 3 2 :R'"),
        "Ni3 S2", 155),
    "no symmetry, but the formula is complete": (
        cif((4.1,) * 3, ["Cs1 Cs 0 0 0", "Cl1 Cl .5 .5 .5"], f"{SUM} 'Cs Cl'"), "Cl1 Cs1", 221),
    # few digits
    "three digits": (
        cif((3.16, 3.16, 12.29, 90, 90, 120), ["Mo1 Mo .333 .667 .25", "S1 S .333 .667 .621"],
            f"{HM} 'P 63/m m c'"), "Mo2 S4", 194),
    "two digits": (cif((3.21, 3.21, 5.21, 90, 90, 120), ["Mg1 Mg .33 .67 .25"],
                       f"{HM} 'P 63/m m c'"), "Mg2", 194),
    "three digits, quartz": (
        cif((4.913, 4.913, 5.405, 90, 90, 120), ["Si1 Si .47 0 .667", "O1 O .413 .267 .786"],
            f"{HM} 'P 32 2 1'", f"{SUM} 'Si O2'", "_cell_formula_units_Z 3"), "O6 Si3", 154),
    # operations
    "operations": (cif(SALT, SALT_SITES, operations(225)), "Cl4 Na4", 225),
    "operations in capitals, x last": (
        cif(SALT, SALT_SITES, operations(225).replace("x", "X").replace("y", "Y")),
        "Cl4 Na4", 225),
    "decimal translations": (
        cif((4.99, 4.99, 17.06, 90, 90, 120),
            ["Ca1 Ca 0 0 0", "C1 C 0 0 .25", "O1 O 0.257 0 .25"],
            operations(167).replace("1/3", ".3333").replace("2/3", ".6667")
            .replace("5/6", "0.8333").replace("1/6", ".1667").replace("1/2", ".5")),
        "C6 Ca6 O18", 167),
    "one operation without a loop": (
        cif((4.1,) * 3, ["Cs1 Cs 0 0 0", "Cl1 Cl .5 .5 .5"], "_symmetry_equiv_pos_as_xyz x,y,z"),
        "Cl1 Cs1", 221),
    # syntax
    "capitals in tags": (cif(SALT, SALT_SITES, operations(225)).replace("_cell_", "_CELL_")
                         .replace("data_", "DATA_").replace("loop_", "LOOP_"), "Cl4 Na4", 225),
    "dotted names": (cif(SALT, SALT_SITES, operations(225, "_space_group_symop.operation_xyz"))
                     .replace("_cell_", "_cell.").replace("_atom_site_", "_atom_site."),
                     "Cl4 Na4", 225),
    "byte-order mark": ("\ufeff" + cif(SALT, SALT_SITES, operations(225)), "Cl4 Na4", 225),
    "carriage returns": (cif(SALT, SALT_SITES, operations(225)).replace("\n", "\r"), "Cl4 Na4",
                         225),
    "a block within a text field": (
        cif(SALT, SALT_SITES, operations(225),
            "_refine_details\n;\ndata_foo\n_atom_site_label X\n;"),
        "Cl4 Na4", 225),
    "triple quotes": ("#\\#CIF_2.0\n" + cif(SALT, SALT_SITES, operations(225),
                                            '_publ_section_title """two\nlines"""'),
                      "Cl4 Na4", 225),
    "values without quotes": (cif(SALT, SALT_SITES, operations(225), f"{SUM} Na Cl"), "Cl4 Na4",
                              225),
    "no newline at the end": (cif(SALT, SALT_SITES, operations(225)).rstrip(), "Cl4 Na4", 225),
    # sites
    "uncertainties": (cif(SALT, ["Na1 Na 0.0000(1) 0 0", "Cl1 Cl 0.5(2) .5 .5"], operations(225)),
                      "Cl4 Na4", 225),
    "capital symbols": (cif(SALT, ["NA1 NA 0 0 0", "CL1 CL .5 .5 .5"], operations(225)), "Cl4 Na4",
                        225),
    "charges": (cif((4.33,) * 3, ["Fe1 Fe2+ 0 0 0", "O1 O-2 .5 .5 .5"], operations(225)),
                "Fe4 O4", 225),
    "deuterium": (cif((4.07,) * 3, ["Li1 Li 0 0 0", "D1 D .5 .5 .5"], operations(225)), "H4 Li4",
                  225),
    "deuterium by its label": (cif((4.07,) * 3, ["Li1 0 0 0", "D1 .5 .5 .5"], operations(225),
                                   columns="label fract_x fract_y fract_z"), "H4 Li4", 225),
    "tritium": (cif((4.07,) * 3, ["Li1 Li 0 0 0", "T1 T .5 .5 .5"], operations(225)), "H4 Li4",
                225),
    "charges in labels": (cif((4.33,) * 3, ["Fe2+ 0 0 0", "O2- .5 .5 .5"], operations(225),
                              columns="label fract_x fract_y fract_z"), "Fe4 O4", 225),
    "an element for the label": (
        cif((4.1,) * 3, ["Cs Cs 0 0 0", "Cl Cl .5 .5 .5"], operations(1)), "Cl1 Cs1", 221),
    "signs and points": (cif(SALT, ["Na1 Na -.0000(1) 0. 0.", "Cl1 Cl .5 .5 -.5"],
                             operations(225)), "Cl4 Na4", 225),
    "letters beyond ASCII": (cif(SALT, SALT_SITES, operations(225), "_publ_author 'Gödel'"),
                             "Cl4 Na4", 225),
    "tags in mixed capitals": (cif(SALT, SALT_SITES, operations(225)).replace(
        "_cell_length_a", "_Cell_Length_A"), "Cl4 Na4", 225),
    "plus signs": (cif(SALT, SALT_SITES, operations(225).replace(",x", ",+x").replace(
        "'y", "'+y")), "Cl4 Na4", 225),
    "translations in front": (
        cif((3.82, 3.82, 6.26, 90, 90, 120), ["Zn1 Zn .333 .667 0", "S1 S .333 .667 .375"],
            operations(186).replace("z+1/2", "1/2+z"), f"{SUM} 'Zn S'"), "S2 Zn2", 186),
    "four digits, quartz": (
        cif((4.913, 4.913, 5.405, 90, 90, 120),
            ["Si1 Si .4697 0 .6667", "O1 O .4135 .2669 .7858"], operations(154), f"{SUM} 'O2 Si'"),
        "O6 Si3", 154),
    "type before label": (cif(SALT, ["Ca1 Na 0 0 0", "C1 Cl .5 .5 .5"], operations(225)),
                          "Cl4 Na4", 225),
    "all atoms listed": (
        cif(SALT, [f"{e} {e} {x} {y} {z}" for e, s in (("Na", 0), ("Cl", 0.5)) for x, y, z in
                   ((s, s, s), (s, s + .5, s + .5), (s + .5, s, s + .5), (s + .5, s + .5, s))],
            operations(225)), "Cl4 Na4", 225),
    "a site listed twice": (cif(SALT, [*SALT_SITES, "Na2 Na .5 .5 0"], operations(225)),
                            "Cl4 Na4", 225),
    "one element on one site in two parts": (
        cif(SALT, ["Na1 Na 0 0 0 1", "Cl1 Cl .5 .5 .5 .6", "Cl2 Cl .5 .5 .5 .4"], operations(225),
            columns="label type_symbol fract_x fract_y fract_z occupancy"), "Cl4 Na4", 225),
    "dummy": (
        cif(SALT, ["Na1 Na 0 0 0 d", "Cl1 Cl .5 .5 .5 d", "Ar1 Ar .25 .25 .25 dum"],
            operations(225), columns="label type_symbol fract_x fract_y fract_z calc_flag"),
        "Cl4 Na4", 225),
    "vacancy": (cif(SALT, [*SALT_SITES, "Va1 Va .25 .25 .25"], operations(225)), "Cl4 Na4", 225),
    "unknown occupancy": (
        cif(SALT, ["Na1 Na 0 0 0 .", "Cl1 Cl .5 .5 .5 ?"], operations(225),
            columns="label type_symbol fract_x fract_y fract_z occupancy"), "Cl4 Na4", 225),
    "labels of a mineral": (
        cif((9.746, 8.899, 5.251, 90, 105.6, 90),
            ["CaM2 0 .3015 .25", "MgM1 0 .9082 .25", "SiT .2862 .0933 .2293",
             "O1 .1156 .0873 .1422", "O2 .3611 .25 .318", "O3 .3505 .0176 .9953"],
            f"{HM} 'C 1 2/c 1'", f"{SUM} 'Ca Mg Si2 O6'", columns="label fract_x fract_y fract_z"),
        "Ca4 Mg4 O24 Si8", 15),
    "hydroxide by its parts": (
        cif((3.142, 3.142, 4.766, 90, 90, 120),
            ["Mg 0 0 0", "Oh .333333 .666667 .22", "H .333333 .666667 .413"], f"{HM} 'P -3 m 1'",
            f"{SUM} 'Mg (O H)2'", columns="label fract_x fract_y fract_z"), "H2 Mg1 O2", 164),
}  # fmt: skip

REFUSED: dict[str, tuple[str, tuple[str, ...]]] = {
    "which of six settings": (
        cif(PBNM, PEROVSKITE, f"{NUMBER} 62", f"{SUM} 'Mg O3 Si'", "_cell_formula_units_Z 4"),
        ("setting", "P b n m", "P n a m")),
    "which origin": (cif((5.43,) * 3, ["Si1 Si .125 .125 .125"], f"{HM} 'F d -3 m'"),
                     ("setting", ":1", ":2")),
    "no symmetry": (cif(SALT, SALT_SITES), ("symmetry is not given",)),
    "unknown symbol": (cif(SALT, SALT_SITES, f"{HM} 'F m -3 q'"), ("not known", "Fm-3")),
    "symbol against number": (cif(SALT, SALT_SITES, f"{HM} Pnma", f"{NUMBER} 225"),
                              ("Pnma", "62", "225")),
    "Hall against number": (cif(SALT, SALT_SITES, f"{HALL} '-F 4 2 3'", f"{NUMBER} 62"),
                            ("-F 4 2 3", "62")),
    "cell against symbol": (cif((5, 6, 7), SALT_SITES, f"{HM} Fm-3m"), ("cell", "symmetry")),
    "formula": (
        cif((3.142, 3.142, 4.766, 90, 90, 120), ["Mg1 Mg 0 0 0", "O1 O .3333 .6667 .22"],
            operations(164), f"{SUM} 'H2 Mg O2'"), ("H2 Mg O2", "Mg1 O2")),
    "formula units": (cif((4.1,) * 3, ["Cs1 Cs 0 0 0", "Cl1 Cl .5 .5 .5"], operations(1),
                          f"{SUM} 'Cl Cs'", "_cell_formula_units_Z 4"),
                      ("Z = 4", "8 atoms", "Cl1 Cs1")),
    "multiplicity": (
        cif(SALT, ["Na1 Na 0 0 0 4", "Cl1 Cl .5 .5 .5 8"], operations(225),
            columns="label type_symbol fract_x fract_y fract_z site_symmetry_multiplicity"),
        ("Cl1", "8", "4 images")),
    "no group": (cif(SALT, SALT_SITES, "loop_\n_symmetry_equiv_pos_as_xyz\nx,y,z\n-x,y+1/2,-z\n"
                     "y,x,z"), ("form no group",)),
    "an operation": (cif(SALT, SALT_SITES, "loop_\n_symmetry_equiv_pos_as_xyz\nx,y,z\nx,y,q"),
                     ("'x,y,q'",)),
    "half an atom": (
        cif(SALT, ["Na1 Na 0 0 0 0.998(3)", "Cl1 Cl .5 .5 .5 1"], operations(225),
            columns="label type_symbol fract_x fract_y fract_z occupancy"),
        ("partial occupancy", "Na1", "0.998")),
    "more than an atom": (
        cif(SALT, ["Na1 Na 0 0 0 1.02", "Cl1 Cl .5 .5 .5 1"], operations(225),
            columns="label type_symbol fract_x fract_y fract_z occupancy"), ("Na1", "1.02")),
    "two elements on one site": (
        cif((4.7,) * 3, ["Na1 Na 0 0 0 1", "H1 H .5 .5 .5 .8", "F1 F .5 .5 .5 .2"],
            operations(225), columns="label type_symbol fract_x fract_y fract_z occupancy"),
        ("partial occupancy", "H1", "F1")),
    "no coordinates": (cif(SALT, [*SALT_SITES, "H1 H ? ? ?"], operations(225)),
                       ("H1", "no coordinates")),
    "attached hydrogen": (
        cif(SALT, ["Na1 Na 0 0 0 0", "O1 O .5 .5 .5 1"], operations(225),
            columns="label type_symbol fract_x fract_y fract_z attached_hydrogens"),
        ("hydrogen", "O1")),
    "operations of P1 under the symbol of another group": (
        cif(SALT, SALT_SITES, operations(1), f"{HM} 'F m -3 m'", f"{SUM} 'Cl Na'",
            "_cell_formula_units_Z 4"),
        ("8 atoms", "Cl1 Na1 = 2", "operations listed (1)", "F m -3 m")),
    "half of the elements": (
        cif((13, 13, 10, 90, 90, 120), ["Si1 Si .2165 .4331 .1012"], operations(166),
            f"{SUM} 'O2 Si'"), ("O2 Si", "Si18")),
    "a coordinate without its point": (
        cif(SALT, ["Na1 Na 0 0 30000", "Cl1 Cl .5 .5 .5"], operations(225)),
        ("Na1", "far outside")),
    "labels without elements": (
        cif(SALT, ["M1 0 0 0", "O1 .5 .5 .5"], operations(225), f"{SUM} 'Mg2 Si O4'",
            columns="label fract_x fract_y fract_z"), ("M1",)),
    "a label that fits two": (
        cif(SALT, ["NA1 0 0 0", "Cl1 .5 .5 .5"], operations(225),
            columns="label fract_x fract_y fract_z"), ("NA1", "Na or N")),
    "images too close": (cif(SALT, ["Na1 Na 0.01500 0 0", "Cl1 Cl .5 .5 .5"], operations(225)),
                         ("Na1", "too close")),
    "no atoms": ("data_x\n_cell_length_a 4\n", ("no atoms",)),
    "a truncated loop": (cif(SALT, SALT_SITES, operations(225)).rstrip()[:-3], ("parsed", "line")),
    "no length": (cif(SALT, SALT_SITES, operations(225)).replace("_cell_length_b", "_cell_x"),
                  ("_cell_length_b",)),
    "no cell": (cif((5, 5, 5, 20, 20, 120), SALT_SITES, operations(1)), ("form no cell",)),
    "a flat cell": (cif((1e-7, 1e5, 1e5), SALT_SITES, operations(1)), ("longer than",)),
    "Cartesian only": (
        cif(SALT, SALT_SITES, operations(1),
            columns="label type_symbol cartn_x cartn_y cartn_z"), ("Cartesian",)),
}  # fmt: skip


class TestCif:
    @pytest.mark.parametrize("name", READ)
    def test_read(self, name: str, tmp_path: Path) -> None:
        text, wanted, number = READ[name]
        (tmp_path / "a.cif").write_text(text, encoding="utf-8", newline="")
        found = one(tmp_path / "a.cif")
        assert (formula(found), group(found)) == (wanted, number)
        assert found.id == "a"

    @pytest.mark.parametrize("name", REFUSED)
    def test_refused(self, name: str, tmp_path: Path) -> None:
        text, words = REFUSED[name]
        (tmp_path / "a.cif").write_text(text)
        reason = why_not(tmp_path / "a.cif")
        assert all(word in reason for word in words), reason

    def test_settings_are_one_crystal(self, tmp_path: Path) -> None:
        """The same baddeleyite in two cells."""
        from pymatgen.analysis.structure_matcher import StructureMatcher

        other = ["Zr1 Zr 0.2754 0.0395 0.2083", "O1 O 0.07 0.3317 0.3447",
                 "O2 O 0.4496 0.7569 0.4792"]  # fmt: skip
        (tmp_path / "n.cif").write_text(cif(CELL_N, ZIRCONIA_N, f"{HM} 'P 21/n'"))
        (tmp_path / "c.cif").write_text(
            cif((5.1505, 5.2116, 5.3173, 90, 99.23, 90), other, f"{HM} 'P 21/c'")
        )
        first, second = (s.structure for s in lx.read_structures(tmp_path))
        assert StructureMatcher(ltol=0.01, stol=0.01, angle_tol=1).fit(first, second)

    def test_notes(self, tmp_path: Path) -> None:
        text, _, _ = READ["dummy"]
        (tmp_path / "a.cif").write_text(text)
        assert "Ar1" in one(tmp_path / "a.cif").notes[0]
        (tmp_path / "a.cif").write_text(READ["origin 2 by formula"][0])
        assert ":2" in one(tmp_path / "a.cif").notes[0]
        (tmp_path / "a.cif").write_text(cif(SALT, SALT_SITES, operations(221), f"{HM} Fm-3m"))
        assert "operations" in one(tmp_path / "a.cif").notes[0]

    def test_latin_1(self, tmp_path: Path) -> None:
        text = READ["letters beyond ASCII"][0]
        (tmp_path / "a.cif").write_bytes(text.encode("latin-1"))
        assert formula(one(tmp_path / "a.cif")) == "Cl4 Na4"

    def test_blocks_without_atoms_are_passed_by(self, tmp_path: Path) -> None:
        first, second = READ["operations"][0], READ["charges"][0]
        head = "# comment\ndata_global\n_publ_section_title\n;\n 'NaCl' and \"more\" # here\n;\n"
        text = head + first.replace("data_x", "data_I") + second.replace("data_x", "data_II")
        (tmp_path / "a.cif").write_text(text)
        found = lx.read_structures(tmp_path / "a.cif")
        assert [(s.id, formula(s)) for s in found] == [("a#I", "Cl4 Na4"), ("a#II", "Fe4 O4")]

    def test_special_positions_are_exact(self, tmp_path: Path) -> None:
        (tmp_path / "a.cif").write_text(READ["two digits"][0])
        frac = np.sort(one(tmp_path / "a.cif").cell[1], axis=0)
        np.testing.assert_allclose(frac, [[1 / 3, 1 / 3, 0.25], [2 / 3, 2 / 3, 0.75]], atol=1e-9)

    def test_magnetic(self, tmp_path: Path) -> None:
        text = cif(
            (5, 5, 5),
            ["Fe1 Fe 0 0 0", "O1 O 0.5 0 0"],
            "loop_\n_space_group_symop_magn_operation.xyz\nx,y,z,+1\n-x,-y,-z,+1",
            "loop_\n_space_group_symop_magn_centering.xyz\nx,y,z,+1\nx+1/2,y+1/2,z+1/2,-1",
        )
        text += "loop_\n_atom_site_moment.label\n" + "".join(
            f"_atom_site_moment.crystalaxis_{axis}\n" for axis in "xyz"
        )
        (tmp_path / "a.mcif").write_text(text + "Fe1 0 0 2.5\n")
        found = one(tmp_path / "a.mcif")
        assert formula(found) == "Fe2 O2"
        assert found.moments is not None
        np.testing.assert_allclose(found.moments[:, 2], [2.5, -2.5, 0, 0])
        assert found.structure.site_properties["magmom"] == [2.5, -2.5, 0, 0]

    def test_oxidation_states(self, tmp_path: Path) -> None:
        (tmp_path / "a.cif").write_text(READ["charges"][0])
        found = one(tmp_path / "a.cif").oxidation
        assert found is not None
        assert found.tolist() == [2] * 4 + [-2] * 4

    def test_cells_larger_than_the_limit_are_reduced(self, tmp_path: Path) -> None:
        ase.io.write(tmp_path / "big.vasp", bulk("NaCl", "rocksalt", 5.64, cubic=True) * (5, 5, 5))
        packed = prepare(tmp_path / "big.vasp", tmp_path / "o.lxd", workers=1)
        assert packed.dataset.atom_counts.tolist() == [8]
        assert len(StructureSet.read(tmp_path / "big.vasp").cell(0)[2]) == 2


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("x,y,z", "xyz 0 0 0"),
        ("-Y, X-Y, Z+1/3", "-y x-y z 0 0 1/3"),
        ("1/2+x,.5-y,z-0.5", "x -y z 1/2 1/2 1/2"),
        ("+x,-y+ 3/4,+z", "x -y z 0 3/4 0"),
    ],
)
def test_operations(text: str, wanted: str) -> None:
    import gemmi

    rotation, shift, _ = parse_operation(text)
    op = gemmi.Op(text.replace(" ", "").lower())
    assert rotation.tolist() == (np.array(op.rot) // 24).tolist()
    assert (shift * 24 // 4200).tolist() == (np.array(op.tran) % 24).tolist()


@pytest.mark.parametrize("text", ["", "x,y", "x,y,y", "x,y,z,w", "x,y,2z", "x,y,z/0", "x,y,z+1/0"])
def test_no_operations(text: str) -> None:
    with pytest.raises(RejectError):
        group_of(("x,y,z", text))


# --- POSCAR -------------------------------------------------------------------------------------

FCC = "0 .5 .5\n.5 0 .5\n.5 .5 0\n"
POSCARS: dict[str, tuple[str, str, int]] = {
    "version 5": (f"x\n5.64\n{FCC}Na Cl\n1 1\nDirect\n0 0 0\n.5 .5 .5\n", "Cl1 Na1", 225),
    "K for Cartesian": (f"x\n5.43\n{FCC}Si\n2\nK\n0 0 0\n.25 .25 .25\n", "Si2", 227),
    "symbols behind": (f"x\n5.64\n{FCC}1 1\nDirect\n0 0 0 Na\n.5 .5 .5 Cl\n", "Cl1 Na1", 225),
    "symbols in the first line": (f"Na Cl\n5.64\n{FCC}1 1\nDirect\n0 0 0\n.5 .5 .5\n",
                                  "Cl1 Na1", 225),
    "hashes of version 6": (f"x\n4.33\n{FCC}Fe/0a1b2c3d O_s/ffee0011\n1 1\nDirect\n0 0 0\n"
                            ".5 .5 .5\n", "Fe1 O1", 225),
    "charges": (f"x\n4.33\n{FCC}Fe2+ O2-\n1 1\nDirect\n0 0 0\n.5 .5 .5\n", "Fe1 O1", 225),
    "an element without atoms": (f"x\n5.64\n{FCC}Na K Cl\n1 0 1\nDirect\n0 0 0\n.5 .5 .5\n",
                                 "Cl1 Na1", 225),
    "an element twice": ("x\n3.9\n1 0 0\n0 1 0\n0 0 1\nO Ca O Ti\n1 1 2 1\nDirect\n.5 .5 0\n"
                         "0 0 0\n.5 0 .5\n0 .5 .5\n.5 .5 .5\n", "Ca1 O3 Ti1", 221),
    "volume and Cartesian": (
        "x\n-179.406144\n1 0 0\n0 1 0\n0 0 1\nNa Cl\n4 4\nCartesian\n0 0 0\n0 .5 .5\n.5 0 .5\n"
        ".5 .5 0\n.5 .5 .5\n.5 0 0\n0 .5 0\n0 0 .5\n", "Cl4 Na4", 225),
    "three factors": (
        "x\n4.5937 4.5937 2.9587\n1 0 0\n0 1 0\n0 0 1\nTi O\n2 4\nDirect\n0 0 0\n.5 .5 .5\n"
        ".305 .305 0\n.695 .695 0\n.195 .805 .5\n.805 .195 .5\n", "O4 Ti2", 136),
    "three factors, Cartesian": (
        "x\n4.5937 4.5937 2.9587\n1 0 0\n0 1 0\n0 0 1\nTi O\n2 4\nCartesian\n0 0 0\n.5 .5 .5\n"
        ".305 .305 0\n.695 .695 0\n.195 .805 .5\n.805 .195 .5\n", "O4 Ti2", 136),
    "velocities": (f"x\n5.64\n{FCC}Na Cl\n1 1\nDirect\n0 0 0\n.5 .5 .5\n\n0 0 0\n.001 0 0\n\n1\n"
                   ".5\n0 0 0\n", "Cl1 Na1", 225),
    "line ends of Windows": (f"x\n5.64\n{FCC}Na Cl\n1 1\nDirect\n0 0 0\n.5 .5 .5\n"
                             .replace("\n", "\r\n"), "Cl1 Na1", 225),
    "comments": (f"x\n5.64 ! scale\n{FCC}Na Cl ! the salt\n1 1 # both\nDirect\n0 0 0\n.5 .5 .5\n",
                 "Cl1 Na1", 225),
    "exponents of Fortran": (f"x\n0.564D+01\n{FCC}Na Cl\n1 1\nDirect\n0 0 0\n.5d0 .5d0 .5d0\n",
                             "Cl1 Na1", 225),
}  # fmt: skip
NO_POSCARS = {
    "lower case": (f"x\n5.64\n{FCC}na cl\n1 1\nDirect\n0 0 0\n.5 .5 .5\n", ("na", "Na?")),
    "no elements": (f"x\n5.64\n{FCC}1 1\nDirect\n0 0 0\n.5 .5 .5\n", ("name its elements",)),
    "positions missing": (
        f"x\n5.64\n{FCC}Na Cl\n1 2\nDirect\n0 0 0\n.5 .5 .5\n",
        ("3 atoms are announced", "2 positions"),
    ),
    "more positions than atoms": (
        f"x\n5.64\n{FCC}Na\n1\nDirect\n0 0 0\n.5 .5 .5\n",
        ("1 atoms are announced", "2 positions"),
    ),
    "a symbol that is none": (f"x\n5.64\n{FCC}Na 1/0\n1 1\nDirect\n0 0 0\n", ("line 6", "'1/0'")),
    "a count that is none": (
        f"x\n5.64\n{FCC}Na Cl\n1 null\nDirect\n0 0 0\n",
        ("line 7", "'null'"),
    ),
    "far outside": (f"x\n5.64\n{FCC}Na\n1\nDirect\n0 5000 0\n", ("atom 1", "far outside")),
    "counts missing": (f"x\n5.64\n{FCC}Na Cl\n1\nDirect\n0 0 0\n.5 .5 .5\n", ("Na Cl",)),
    "very many atoms": (f"x\n5.64\n{FCC}Na Cl\n1 999999999\nDirect\n0 0 0\n", ("more than",)),
    "a word for a number": (f"x\n5.64\n{FCC}Na\n1\nDirect\n0 zero 0\n", ("1 atoms",)),
    "two rows": ("x\n1\n1 0 0\n0 1 0\nNa\n1\nDirect\n0 0 0\n", ("row of the cell",)),
    "scale of zero": (f"x\n0\n{FCC}Na\n1\nDirect\n0 0 0\n", ("scale",)),
    "flat": ("x\n1\n4 0 0\n0 4 0\n0 4 0\nNa\n1\nDirect\n0 0 0\n", ("flat",)),
}


class TestPoscar:
    @pytest.mark.parametrize("name", POSCARS)
    def test_read(self, name: str, tmp_path: Path) -> None:
        text, wanted, number = POSCARS[name]
        (tmp_path / "CONTCAR_of_mine").write_text(text, newline="")
        found = one(tmp_path / "CONTCAR_of_mine")
        assert (formula(found), group(found)) == (wanted, number)

    @pytest.mark.parametrize("name", NO_POSCARS)
    def test_refused(self, name: str, tmp_path: Path) -> None:
        text, words = NO_POSCARS[name]
        (tmp_path / "a.vasp").write_text(text)
        reason = why_not(tmp_path / "a.vasp")
        assert all(word in reason for word in words), reason

    @pytest.mark.parametrize("name", ["POSCAR", "Si.cif", "x", "Si_POSCAR", "a.poscar", "b.txt"])
    def test_any_name(self, name: str, tmp_path: Path) -> None:
        (tmp_path / name).write_text(POSCARS["K for Cartesian"][0])
        assert formula(one(tmp_path / name)) == "Si2"

    def test_selective_dynamics_to_vasp_and_back(self, tmp_path: Path) -> None:
        text = f"x\n5.64\n{FCC}Na Cl\n1 1\nSelective\nDirect\n0 0 0 F F T\n.5 .5 .5 T T T\n"
        (tmp_path / "POSCAR").write_text(text)
        found = one(tmp_path / "POSCAR")
        assert found.fixed is not None
        assert found.fixed.tolist() == [[True, True, False], [False] * 3]
        assert len(found.atoms.constraints) == 1
        lx.export_vasp(lx.read_entries(tmp_path / "POSCAR"), tmp_path / "vasp")
        (written,) = (tmp_path / "vasp").glob("*/POSCAR")
        lines = written.read_text().splitlines()
        assert lines[7].lower().startswith("selective")
        assert lines[9].split()[3:6] == ["F", "F", "T"]
        assert one(written).fixed is not None


# --- extended XYZ, JSON, databases --------------------------------------------------------------

NACL = bulk("NaCl", "rocksalt", 5.64)
LATTICE = 'Lattice="0 2.82 2.82 2.82 0 2.82 2.82 2.82 0" Properties=species:S:1:pos:R:3'


class TestXyz:
    def test_frames(self, tmp_path: Path) -> None:
        """Deuterium, one identifier thrice, a frame that is no crystal: all others are read."""
        good = f"2\n{LATTICE} material_id=a energy=-6.8\nNa 0 0 0\nCl 2.82 2.82 2.82\n"
        heavy = good.replace("Na 0", "D 0")
        molecule = "2\nH2\nH 0 0 0\nH 0 0 .74\n"
        odd = good.replace("Na 0", "Qq 0")
        (tmp_path / "a.xyz").write_text(good + heavy + molecule + odd + good)
        found = lx.read_structures(tmp_path / "a.xyz")
        assert [s.id for s in found] == ["a", "a-2", "a-4"]
        assert [formula(s) for s in found] == ["Cl1 Na1", "Cl1 H1", "Cl1 Na1"]
        assert "deuterium" in found[1].notes[0]
        assert len(found.left_out) == 2
        assert found[0].energy == -6.8

    @pytest.mark.parametrize("count", ["3", "1000000000", "999999999999"])
    def test_counts_that_are_not_there(self, count: str, tmp_path: Path) -> None:
        (tmp_path / "a.xyz").write_text(f"{count}\n{LATTICE}\nNa 0 0 0\nCl 2.82 2.82 2.82\n")
        reason = why_not(tmp_path / "a.xyz")
        assert f"announces {count} atoms, 2 lines follow" in reason

    def test_names_with_an_at_sign(self, tmp_path: Path) -> None:
        ase.io.write(tmp_path / "a", NACL, format="extxyz")
        ase.io.write(tmp_path / "b", [NACL, NACL], format="extxyz")
        (tmp_path / "b").rename(tmp_path / "a@0.extxyz")
        assert len(lx.read_structures(tmp_path / "a@0.extxyz")) == 2

    def test_atomic_numbers_and_moments(self, tmp_path: Path) -> None:
        text = LATTICE.replace("species:S:1", "Z:I:1") + ':magmoms:R:1 pbc="T T T"'
        (tmp_path / "a.extxyz").write_text(f"2\n{text}\n11 0 0 0 1.5\n17 2.82 2.82 2.82 -.5\n")
        found = one(tmp_path / "a.extxyz")
        assert formula(found) == "Cl1 Na1"
        assert found.moments is not None
        assert found.moments[:, 2].tolist() == [1.5, -0.5]

    def test_slabs_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.xyz").write_text(f'2\n{LATTICE} pbc="T T F"\nNa 0 0 0\nCl 2.82 2.82 2.82\n')
        assert "not periodic" in why_not(tmp_path / "a.xyz")


NIO = Structure(
    Lattice([[2.0885, 2.0885, 4.177], [2.0885, 4.177, 2.0885], [4.177, 2.0885, 2.0885]]),
    ["Ni", "Ni", "O", "O"],
    [[0, 0, 0], [0.5, 0.5, 0.5], [0.25, 0.25, 0.25], [0.75, 0.75, 0.75]],
    site_properties={"magmom": [5, -5, 0.6, 0.6]},
)


class TestJson:
    def test_moments_of_a_supercell_reach_vasp(self, tmp_path: Path) -> None:
        """The magnetic primitive cell has four atoms, the other one two."""
        (tmp_path / "a.json").write_text(json.dumps((NIO * (1, 1, 2)).as_dict()))
        entries = lx.read_entries(tmp_path / "a.json")
        lx.export_vasp(entries, tmp_path / "vasp")
        (incar,) = (tmp_path / "vasp").glob("*/INCAR")
        assert "MAGMOM = 1*5.0 1*-5.0 2*0.6" in incar.read_text()
        assert len(one(incar.with_name("POSCAR")).cell[2]) == 4

    def test_spins_of_species(self, tmp_path: Path) -> None:
        iron = Structure(Lattice.cubic(4), ["Fe2+", "Fe2+"], [[0, 0, 0], [0.5, 0.5, 0.5]])
        iron.add_spin_by_site([4, -4])
        (tmp_path / "a.json").write_text(json.dumps(iron.as_dict()))
        found = one(tmp_path / "a.json")
        assert found.moments is not None
        assert found.moments[:, 2].tolist() == [4, -4]
        assert found.oxidation is not None
        assert found.oxidation.tolist() == [2, 2]

    def test_entries(self, tmp_path: Path) -> None:
        from pymatgen.entries.computed_entries import ComputedStructureEntry

        entry = ComputedStructureEntry(NIO, -20.0, correction=-2.0, entry_id="mp-1")
        (tmp_path / "a.json").write_text(json.dumps([entry.as_dict()]))
        found = one(tmp_path / "a.json")
        assert (found.id, found.energy) == ("mp-1", -22.0)
        assert lx.read_entries(tmp_path / "a.json")[0].energy == pytest.approx(-5.5)

    @pytest.mark.parametrize(
        "text", ["[1, 2]", '{"a": {"b": 1}}', '{"data": [{"id": 1}]}', "[null]"]
    )
    def test_other_json(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text(text)
        found = lx.read_structures(tmp_path / "a.json")
        assert not len(found)
        assert len(found.left_out) >= 1


class TestDatabases:
    def test_reading_never_writes(self, tmp_path: Path) -> None:
        sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE mine (x)").connection.commit()
        (tmp_path / "short.db").write_bytes(b"S")
        (tmp_path / "empty.db").write_bytes(b"")
        before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
        for name in list(before):
            with pytest.raises(DataError, match=name):
                lx.read_structures(tmp_path / name)
            with pytest.raises(DataError):
                lx.read_entries(tmp_path / name)
            with pytest.raises(InputError):
                prepare(tmp_path / name, tmp_path / "o.lxd", workers=1)
            for name_of in ("report", "relax", "hull"):
                code, printed = run([name_of, str(tmp_path / name)])
                assert code == 2
                assert printed.startswith("Error: ")
                assert "Traceback" not in printed
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before

    def test_a_view_without_end(self, tmp_path: Path) -> None:
        connection = sqlite3.connect(tmp_path / "a.db")
        endless = (
            "WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n) SELECT * FROM n"
        )
        for name in ("systems", "information"):
            connection.execute(f"CREATE VIEW {name} AS {endless}")
        connection.commit()
        with pytest.raises(DataError, match="without ASE's table"):
            lx.read_structures(tmp_path / "a.db")

    def test_a_row_without_atoms(self, tmp_path: Path) -> None:
        with ase.db.connect(tmp_path / "a.db") as rows:
            rows.write(NACL)
            rows.write(NACL)
        with sqlite3.connect(tmp_path / "a.db") as connection:
            connection.execute("UPDATE systems SET numbers = NULL WHERE id = 1")
        found = lx.read_structures(tmp_path / "a.db")
        assert len(found) == 1
        assert "no atomic numbers" in next(iter(found.left_out.values()))

    def test_names_that_cannot_be_decoded(self, tmp_path: Path) -> None:
        with ase.db.connect(tmp_path / "a.db") as rows:
            rows.write(NACL)
        data = (tmp_path / "a.db").read_bytes()
        (tmp_path / "a.db").write_bytes(
            data.replace(b"CREATE TABLE systems", b"CREATE TABLE sys\xf7\xffms")
        )
        with pytest.raises(DataError, match=r"a\.db"):
            lx.read_structures(tmp_path / "a.db")

    def test_what_comes_along(self, tmp_path: Path) -> None:
        from ase.calculators.singlepoint import SinglePointCalculator

        atoms = NACL.copy()
        atoms.set_constraint(FixAtoms([1]))
        atoms.set_initial_magnetic_moments([1.0, -1.0])
        atoms.calc = SinglePointCalculator(atoms, energy=-6.8)
        plane = NACL.copy()
        plane.set_constraint(FixedPlane(0, (0, 0, 1)))
        with ase.db.connect(tmp_path / "a.db") as rows:
            rows.write(atoms, material_id="salt", gap=5.0)
            rows.write(plane)
        found = lx.read_structures(tmp_path / "a.db")
        assert (found[0].id, found[0].energy) == ("salt", -6.8)
        assert found[0].properties["gap"] == 5.0
        assert found[0].fixed is not None
        assert found[0].fixed.tolist() == [[False] * 3, [True] * 3]
        assert found[0].moments is not None
        assert "FixedPlane" in found[1].notes[0]


# --- folders, archives, tables ------------------------------------------------------------------


def run(arguments: list[str]) -> tuple[int, str]:
    """Exit code of a command, and all it prints."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = command(arguments)
    return code, output.getvalue()


class TestFolders:
    @pytest.fixture
    def mixed(self, tmp_path: Path) -> Path:
        folder = tmp_path / "mixed"
        (folder / "deep").mkdir(parents=True)
        (folder / "a.cif").write_text(READ["Hall"][0])
        (folder / "deep" / "POSCAR").write_text(POSCARS["version 5"][0])
        (folder / "deep" / "INCAR").write_text("ENCUT = 500\n")
        (folder / "b.extxyz").write_text(f"2\n{LATTICE} id=salt\nNa 0 0 0\nCl 2.82 2.82 2.82\n")
        (folder / "c.vasp.gz").write_bytes(gzip.compress(POSCARS["version 5"][0].encode()))
        (folder / "d.mcif").write_text(READ["operations"][0])
        (folder / "notes.txt").write_text("nothing to see")
        (folder / "table.csv").write_text("x,y\n1,2\n")
        (folder / "broken.cif").write_text("data_x\n_atom_site_label\n")
        return folder

    def test_all_are_read_or_named(self, mixed: Path) -> None:
        found = lx.read_structures(mixed)
        assert [s.id for s in found] == ["a", "salt", "c", "d", "deep/POSCAR"]
        assert list(found.left_out) == ["broken"]
        assert set(found.passed_over) == {"notes.txt", "table.csv", "deep/INCAR"}
        assert {formula(s) for s in found} == {"Cl4 Na4", "Cl1 Na1"}

    def test_archives_are_folders(self, mixed: Path, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as made:
            for path in sorted(mixed.rglob("*")):
                if path.is_file():
                    made.write(path, path.relative_to(mixed))
        found = lx.read_structures(tmp_path / "all.zip")
        assert [s.id for s in found] == [s.id for s in lx.read_structures(mixed)]
        assert list(found.left_out) == ["broken"]

    def test_commands_say_what_they_pass_over(self, mixed: Path, tmp_path: Path) -> None:
        for arguments in (
            ["export", "cif", str(mixed), "--out", str(tmp_path / "cif")],
            ["report", str(mixed), "--out", str(tmp_path / "r.html")],
            ["data", "prepare", str(mixed), "--out", str(tmp_path / "o.lxd"), "--workers", "1"],
        ):
            code, printed = run(arguments)
            assert code == 0, printed
            assert "notes.txt" in printed
            assert "INCAR" in printed

    def test_evaluation_counts_structures_only(self, mixed: Path) -> None:
        found = StructureSet.read(mixed)
        assert len(found) == 5
        assert [m.id for m in found.missing] == ["broken"]

    def test_a_folder_without_any(self, tmp_path: Path) -> None:
        (tmp_path / "INCAR").write_text("x")
        with pytest.raises(DataError, match="holds no structure file"):
            lx.read_structures(tmp_path)


def test_commands_say_what_they_do_not_use(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(NIO.as_dict()))
    code, printed = run(["export", "cif", str(tmp_path / "a.json"), "--out", str(tmp_path / "c")])
    assert code == 0
    assert "magnetic moments of a-0 are not used" in printed


def test_energies_of_files_reach_the_hull(tmp_path: Path) -> None:
    """Without a potential being run; Yb has a note."""
    oxide = f"2\n{LATTICE} id=oxide\nYb 0 0 0\nO 2.82 2.82 2.82\n"
    frames = f"2\n{LATTICE} id=salt energy=-7.0\nNa 0 0 0\nCl 2.82 2.82 2.82\n" + oxide
    (tmp_path / "a.xyz").write_text(frames + oxide.replace("oxide", "oxide energy=-12"))
    table = tmp_path / "hull.csv"
    code, printed = run(
        ["hull", str(tmp_path / "a.xyz"), "--energies", "file", "--out", str(table)]
    )
    assert code == 0, printed
    with table.open(newline="") as stream:
        rows = {row["name"]: row for row in csv.DictReader(stream)}
    assert float(rows["salt"]["energy"]) == pytest.approx(-3.5)
    assert rows["salt"]["e_above_hull"]
    assert "no energy" in rows["oxide"]["note"]
    assert "Yb_2" in rows["oxide-2"]["note"]


class TestLists:
    @pytest.mark.parametrize("text", ["Cu,Si,K", "Cu Si K", "Cu, Si; K", "Cu-Si-K", " Cu  Si,K "])
    def test_elements(self, text: str) -> None:
        assert types.Elements().convert(text, None, None) == ("Cu", "Si", "K")

    @pytest.mark.parametrize("text", ["Cu:2,Si:1", "Cu:2 Si:1", "Cu: 2, Si:1", "Cu:2; Si:1"])
    def test_sites(self, text: str) -> None:
        assert types.Sites().convert(text, None, None) == {"Cu": 2, "Si": 1}


class TestNamedFormats:
    """``--format`` where neither name nor content tells."""

    @pytest.fixture
    def cell(self, tmp_path: Path) -> Path:
        """A file of CASTEP under a name that tells nothing, and beyond what is looked at."""
        ase.io.write(tmp_path / "a.cell", NACL, format="castep-cell")
        text = (tmp_path / "a.cell").read_text()
        (tmp_path / "a.cell").unlink()
        folder = tmp_path / "f"
        folder.mkdir()
        (folder / "a").write_text("# a note\n" * 8000 + text)
        return folder / "a"

    def test_of_a_file(self, cell: Path) -> None:
        with pytest.raises(DataError, match="name its format"):
            lx.read_structures(cell)
        (found,) = lx.read_structures(cell, file_format="castep-cell")
        assert formula(found) == "Cl1 Na1"
        with pytest.raises(DataError, match="cannot be read"):
            lx.read_structures(cell, file_format="xsf")
        with pytest.raises(InputError, match="'castep' is not known"):
            lx.read_structures(cell, file_format="castep")

    def test_of_a_folder_it_is_for_those_which_tell_nothing(self, cell: Path) -> None:
        (cell.parent / "b.cif").write_text(READ["operations"][0])
        (cell.parent / "README.md").write_text("notes")
        found = lx.read_structures(cell.parent, file_format="castep-cell")
        assert [s.id for s in found] == ["a", "b"]
        assert list(found.passed_over) == ["README.md"]
        assert list(lx.read_structures(cell.parent).passed_over) == ["README.md", "a"]

    @pytest.mark.parametrize("kind", ["cif", "poscar", "extxyz", "csv", "json", "npz"])
    def test_each_of_our_own(self, kind: str, tmp_path: Path) -> None:
        structure = Structure(*(NACL.cell.array, NACL.numbers, NACL.get_scaled_positions()))
        text = READ["operations"][0]
        path = tmp_path / "file"
        if kind == "npz":
            lattice = structure.lattice
            arrays = {"id": np.array(["x"]), "na": [2], "lat": [[*lattice.abc, *lattice.angles]],
                      "Z": NACL.numbers, "F": structure.frac_coords}  # fmt: skip
            with path.open("wb") as stream:
                np.savez(stream, **arrays)
        else:
            ase.io.write(tmp_path / "x", NACL, format="extxyz")
            path.write_text(
                {"cif": text, "poscar": POSCARS["version 5"][0], "json": structure.to_json(),
                 "csv": 'id,cif\n1,"' + text.replace('"', '""') + '"\n',
                 "extxyz": (tmp_path / "x").read_text()}[kind]
            )  # fmt: skip
        (found,) = lx.read_structures(path, file_format=kind)
        assert set(found.cell[2]) == {11, 17}

    def test_commands(self, cell: Path, tmp_path: Path) -> None:
        given = ["--format", "castep-cell"]
        out = str(tmp_path / "o")
        assert run(["export", "cif", str(cell), "--out", out])[0] == 2
        assert run(["export", "cif", str(cell), "--out", out, *given])[0] == 0
        assert run(["data", "prepare", str(cell), "--out", out + ".lxd", *given])[0] == 0
        assert run(["report", str(cell), "--out", out + ".html", *given])[0] == 0
        code, printed = run(["relax", str(cell), "--format", "castep"])
        assert code == 2
        assert "castep-cell" in printed


class TestVacuum:
    """A slab or a molecule in a box is no bulk crystal, and said to be taken for one."""

    @pytest.mark.parametrize(
        ("name", "wanted"),
        [
            ("bulk", ""),
            ("layers", ""),
            ("slab", "across c, as of a slab"),
            ("slab of a tilted cell", "across c, as of a slab"),
            ("wire", "across a, b, as of a chain"),
            ("molecule", "across a, b, c, as of a molecule in a box"),
        ],
    )
    def test_said(self, name: str, wanted: str, tmp_path: Path) -> None:
        from ase.build import bulk, fcc111, graphene, molecule, nanotube

        atoms = {
            "bulk": lambda: bulk("Cs", cubic=True) * (2, 1, 1),
            "layers": lambda: graphene(vacuum=1.7),  # 3.4 Å apart, as in graphite
            "slab": lambda: fcc111("Pt", (1, 1, 4), vacuum=6, orthogonal=False),
            "slab of a tilted cell": lambda: bulk("Si") * (1, 1, 1),
            "wire": lambda: nanotube(3, 3, length=1, vacuum=5),
            "molecule": lambda: molecule("H2O", vacuum=4, pbc=True),
        }[name]()
        if name == "slab of a tilted cell":
            scaled = atoms.cell.array.copy()
            scaled[2] *= 6
            atoms.set_cell(scaled)
        atoms.pbc = True
        ase.io.write(tmp_path / "a.vasp", atoms, format="vasp")
        notes = " ".join(one(tmp_path / "a.vasp").notes)
        assert wanted in notes
        assert ("bulk crystal" in notes) == bool(wanted)

    def test_every_command(self, tmp_path: Path) -> None:
        from ase.build import molecule

        ase.io.write(tmp_path / "a.vasp", molecule("H2O", vacuum=4, pbc=True), format="vasp")
        printed = run(["export", "cif", str(tmp_path / "a.vasp"), "--out", str(tmp_path / "o")])[1]
        assert "molecule in a box" in printed
        printed = run(
            ["data", "prepare", str(tmp_path / "a.vasp"), "--out", str(tmp_path / "o.lxd")]
        )[1]
        assert "molecule in a box" in printed


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_of_a_spreadsheet(delimiter: str, tmp_path: Path) -> None:
    text = READ["Hall"][0]
    rows = [["id", "cif", "gap"], ["one", f'"{text}"', "1.5"], ["two", f'"{text}"', ""]]
    content = "\ufeff" + "\n".join(delimiter.join(row) for row in rows) + "\n"
    (tmp_path / "a.csv").write_text(content, encoding="utf-8")
    found = lx.read_structures(tmp_path / "a.csv")
    assert [(s.id, formula(s)) for s in found] == [("one", "Cl4 Na4"), ("two", "Cl4 Na4")]
    assert [s.properties for s in found] == [{"gap": 1.5}, {}]


class TestSizes:
    def test_an_archive_that_unpacks_to_too_much(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as made:
            for k in range(3):
                made.writestr(f"{k}.cif", b"\0" * 2**26)
        with pytest.raises(DataError, match="unpacks to 192 MiB"):
            lx.read_structures(tmp_path / "a.zip")

    def test_a_file_that_unpacks_to_too_much(self, tmp_path: Path) -> None:
        with gzip.open(tmp_path / "a.cif.gz", "wb", compresslevel=9) as made:
            for _ in range(5):
                made.write(b"\0" * 2**26)
        with pytest.raises(DataError, match="more than 256 MiB"):
            lx.read_structures(tmp_path / "a.cif.gz")

    def test_packed_data_that_unpack_to_too_much(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "a.lxd", "w", zipfile.ZIP_DEFLATED) as made:
            for name in ("group.npy", "frac.npy"):
                made.writestr(name, b"\0" * 2**26)
        with pytest.raises(DataError, match="unpacks to 128 MiB"):
            lx.read_structures(tmp_path / "a.lxd")

    def test_an_array_that_only_declares(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", id=np.array(["x"]), na=[1], lat=[[4.0, 4, 4, 90, 90, 90]],
                 Z=[11], F=np.zeros((1, 3)))  # fmt: skip
        data = (tmp_path / "a.npz").read_bytes()
        with zipfile.ZipFile(tmp_path / "a.npz") as made:
            members = {name: made.read(name) for name in made.namelist()}
        members["F.npy"] = (
            members["F.npy"]
            .replace(b"(1, 3), ", b"(9999999999, 3), ")
            .replace(b" " * 12 + b"\n", b"\n")
        )
        with zipfile.ZipFile(tmp_path / "b.npz", "w") as made:
            for name, content in members.items():
                made.writestr(name, content)
        assert len(lx.read_structures(tmp_path / "a.npz")) == 1
        assert data
        with pytest.raises(DataError, match=r"b\.npz"):
            lx.read_structures(tmp_path / "b.npz")

    def test_text_in_an_array(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", id=np.array(["x"]), na=[1], lat=np.array([["a"] * 6]),
                 Z=[11], F=np.zeros((1, 3)))  # fmt: skip
        with pytest.raises(DataError, match="not numbers"):
            lx.read_structures(tmp_path / "a.npz")

    @pytest.mark.parametrize("cell", [(1e-7, 1e5, 1e5), (0.1, 5, 5), (5, 5, 1e6)])
    def test_cells_that_would_take_all_memory(
        self, cell: tuple[float, ...], tmp_path: Path
    ) -> None:
        atoms = Atoms("NaCl", scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.5]], cell=cell, pbc=True)
        ase.io.write(tmp_path / "a.extxyz", [atoms, NACL], format="extxyz")
        found = lx.read_structures(tmp_path / "a.extxyz")
        assert len(found) == 1
        assert "Å" in next(iter(found.left_out.values()))
