"""Space groups, lattice degrees of freedom, orbits and site symmetry."""

from langevin_xtal.symmetry.groups import CRYSTAL_SYSTEMS, SpaceGroup, operation_table
from langevin_xtal.symmetry.lattice import (
    cell_directions,
    cell_lengths,
    coordinate_from_length,
    has_fixed_angles,
    lattice_coordinates,
    lattice_driver,
    lattice_freedom,
    length_from_coordinate,
)
from langevin_xtal.symmetry.settings import (
    Setting,
    setting_note,
    setting_of_group,
    settings_of,
)
from langevin_xtal.symmetry.sites import orbit, site_projector, snap_site, stabiliser, wrap

__all__ = [
    "CRYSTAL_SYSTEMS",
    "Setting",
    "SpaceGroup",
    "cell_directions",
    "cell_lengths",
    "coordinate_from_length",
    "has_fixed_angles",
    "lattice_coordinates",
    "lattice_driver",
    "lattice_freedom",
    "length_from_coordinate",
    "operation_table",
    "orbit",
    "setting_note",
    "setting_of_group",
    "settings_of",
    "site_projector",
    "snap_site",
    "stabiliser",
    "wrap",
]
