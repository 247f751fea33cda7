"""Sphinx directive ``results``: a table of numbers read from a committed result file.

.. code-block:: rst

    .. results:: known_polymorphs.json
       :rows: rows
       :columns: formula = formula; polymorph = polymorph; first sample = at
       :missing: not found

makes one row of every entry of the list (or mapping, whose keys are ``@key``) at ``rows``.
Without ``rows`` each line of the content is a row, its cells separated by ``|``: the first is
text, the others are paths in the file, or text in double quotes. Parts of a path are separated
by ``/``. ``format`` is Python's, for all numbers, or one for each column after the first,
separated by ``;``. Below the table stand the file's command, version and machine; other places
for them are given by the options of these names. A path that leads nowhere is an error.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

RESULTS = Path(__file__).parents[1] / "results"


def look_up(data: Any, path: str) -> Any:
    """The value at ``a/b/c``; KeyError, naming the part, where there is none."""
    for part in filter(None, path.split("/")):
        if isinstance(data, list):
            data = data[int(part)]
        elif isinstance(data, dict) and part in data:
            data = data[part]
        else:
            raise KeyError(f"there is no {part!r} in {path!r}")
    return data


def shown(value: Any, form: str, missing: str) -> str:
    """A cell's text."""
    if value is None:
        return missing
    if isinstance(value, float | int) and not isinstance(value, bool) and form:
        return format(value, form)
    if isinstance(value, dict):
        return ", ".join(f"{key} {shown(v, form, missing)}" for key, v in value.items())
    if isinstance(value, list):
        return ", ".join(shown(v, form, missing) for v in value)
    return str(value)


class Results(SphinxDirective):
    """See the module's head."""

    required_arguments = 1
    has_content = True
    option_spec = dict.fromkeys(
        ("rows", "columns", "format", "missing", "command", "version", "machine"),
        directives.unchanged_required,
    )

    def run(self) -> list[nodes.Node]:
        """The table and its source."""
        path = RESULTS / self.arguments[0]
        self.env.note_dependency(str(path))
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            heads, rows = self._listed(data) if "rows" in self.options else self._written(data)
            return [self._table(heads, rows), self._source(data)]
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise self.error(f"docs/results/{self.arguments[0]}: {error}") from None

    def _forms(self, columns: int) -> list[str]:
        forms = [form.strip() for form in self.options.get("format", "").split(";")]
        return forms * columns if len(forms) == 1 else forms

    def _listed(self, data: Any) -> tuple[list[str], list[list[str]]]:
        columns = [
            [part.strip() for part in column.split("=", 1)]
            for column in self.options["columns"].split(";")
        ]
        entries = look_up(data, self.options["rows"])
        pairs = entries.items() if isinstance(entries, dict) else enumerate(entries)
        forms = ["", *self._forms(len(columns) - 1)]
        rows = [
            [
                str(key)
                if path == "@key"
                else shown(look_up(entry, path), form, self.options.get("missing", ".."))
                for (_, path), form in zip(columns, forms, strict=True)
            ]
            for key, entry in pairs
        ]
        return [head for head, _ in columns], rows

    def _written(self, data: Any) -> tuple[list[str], list[list[str]]]:
        heads = [head.strip() for head in self.options["columns"].split(";")]
        forms = self._forms(len(heads) - 1)
        rows = []
        for line in filter(str.strip, self.content):
            label, *cells = (cell.strip() for cell in line.split("|"))
            rows.append([label])
            for cell, form in zip(cells, forms, strict=True):
                quoted = re.fullmatch(r'"(.*)"', cell)
                rows[-1].append(
                    quoted[1]
                    if quoted
                    else shown(look_up(data, cell), form, self.options.get("missing", ".."))
                )
        return heads, rows

    def _table(self, heads: list[str], rows: list[list[str]]) -> nodes.table:
        table, group = nodes.table(), nodes.tgroup(cols=len(heads))
        table["classes"] += ["colwidths-auto"]
        table += group
        group += [nodes.colspec(colwidth=1) for _ in heads]
        for part, lines in ((nodes.thead(), [heads]), (nodes.tbody(), rows)):
            group += part
            for line in lines:
                row = nodes.row()
                part += row
                for cell in line:
                    entry = nodes.entry()
                    paragraph = nodes.paragraph()
                    paragraph += self.parse_inline(cell)[0]
                    entry += paragraph
                    row += entry
        return table

    def _source(self, data: Any) -> nodes.paragraph:
        facts = []
        for name in ("version", "machine", "command"):
            if name in self.options:
                found = look_up(data, self.options[name])
            else:
                found = data.get(name)
            if found:
                facts.append((name, shown(found, "", "..")))
        paragraph = nodes.paragraph(classes=["source-of-results"])
        paragraph += nodes.Text(f"docs/results/{self.arguments[0]}")
        for name, value in facts:
            paragraph += nodes.Text(f"; {name} ")
            paragraph += nodes.literal(text=value) if name == "command" else nodes.Text(value)
        return paragraph


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_directive("results", Results)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
