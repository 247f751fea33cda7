"""Writing candidates for other programs: VASP, Quantum ESPRESSO, phonopy, CIF, extended XYZ."""
