"""langevin-xtal: candidate crystals from elements and a space group."""
