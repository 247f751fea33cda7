"""How good a set of structures is, by the field's protocols and with their controls."""
