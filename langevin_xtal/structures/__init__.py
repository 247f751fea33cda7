"""Reading of structures: one reader for every file format, which says what it leaves out."""
