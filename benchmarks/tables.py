"""Writes what was measured, results.json, as tables: RESULTS.md, and quotes in README.md and docs/.

    python benchmarks/tables.py               # write RESULTS.md and the quotes
    python benchmarks/tables.py --check       # exit status 1 if one of them is not what would be written
    python benchmarks/tables.py --add FILE    # put the tables of FILE into results.json, then write

results.json and FILE hold a list of tables. A table replaces the one of the same title. Its fields:

    title     one line
    about     one sentence: what is compared
    machine   processor or GPU, vector instructions, number of cores
    versions  {package: version}, empty where they were not recorded
    date      YYYY-MM-DD or YYYY-MM
    command   what was run
    columns   names, with units
    rows      lists of cells: number, text, null (no value), or a list of repeated measurements
    notes     optional, sentences below the table

A benchmark writes FILE by `add(FILE, title, ...)`, which fills in machine, versions, date and command.

A page quotes a table, or a part of it, between two comments; what stands between them is written by this
program. All lines but the first and the last of the opening comment may be left out, and an indented line
continues the one before:

    <!-- results: One EM step, one core of a 2-core machine
    columns: N; covariance; jaxgmm, CPU ms as jaxgmm, ms; scikit-learn / jaxgmm
    rows: N=10,000;
      N=100,000 & covariance=full & run=2 as 10⁵ rows
    with: facts; notes
    -->
    <!-- end of results -->

    columns   in this order, separated by semicolons; "as" gives the heading to show
    rows      those whose cells, as RESULTS.md shows them, have all these values; "as" replaces the first cell
    with      below the table: facts (machine, versions, date, command), notes
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
PREFACE = """# Benchmark results

Written by `python benchmarks/tables.py` from `benchmarks/results.json`: change that file, not this one.

* N samples, D features, K components. The data are float32 unless a table says otherwise.
* A column "A / B" is the time of A divided by the time of B: above 1, B is faster. Ratios can be compared
  within a table. Milliseconds of different tables cannot.
* "One EM step": all libraries take the same data, the same start and the same number of plain EM steps. There
  is one process for each library, pinned to the same cores, and the processes are run alternately. The time
  of a step is the difference between two fits of different length, divided by the difference in steps: the
  median of the repeats.
* "PyTorch" is the hand-written EM in `benchmarks/peers.py`.
* "Bound" is an estimate of the least time of a step on one core: the products, exponentials and bytes read by
  the quadratic form of EM, divided by the rates of NumPy on that core, measured between the repeats. NumPy's
  rates are not the highest that a core reaches, so a step can take less than the bound.
* A dash: the library does not offer it, or it was not measured. Several numbers in a cell: repeated
  measurements.
* Where the day of a measurement was not recorded, the date is that of the commit which added it.
"""


def processor() -> tuple[str, list[str]]:
    """Its name, and its vector instructions."""
    file = pathlib.Path("/proc/cpuinfo")
    info = file.read_text() if file.exists() else ""
    name, flags = (re.search(rf"^{field}\s*:\s*(.+)$", info, re.M) for field in ("model name", "flags"))
    known = {"avx2": "AVX2", "avx512f": "AVX-512"}
    found = [known[f] for f in known if flags and f in flags[1].split()]
    return name[1] if name else "unknown processor", found


def machine() -> str:
    """Processor, vector instructions and number of cores."""
    name, vectors = processor()
    return ", ".join([name, *vectors, f"{os.cpu_count()} cores"])


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of jaxgmm and of those packages that are installed."""
    found = {}
    for package in ("jaxgmm", *packages):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def significant(value: float | None, digits: int = 3) -> Decimal | None:
    """A measured number, rounded for a table."""
    if value is None or value != value:
        return None
    return Decimal(f"{Decimal(f'{value:.{digits - 1}e}'):f}")


def load(path: str | pathlib.Path) -> list[dict[str, Any]]:
    """The tables of a file; a Decimal keeps the digits of a number, 5.20 for one."""
    path = pathlib.Path(path)
    return json.loads(path.read_text(), parse_float=Decimal) if path.exists() else []


def encode(value: Any) -> str:
    """JSON on one line; a Decimal with all its digits."""
    if isinstance(value, list):
        return "[" + ", ".join(map(encode, value)) + "]"
    return str(value) if isinstance(value, Decimal) else json.dumps(value, ensure_ascii=False)


def dump(tables: Iterable[dict[str, Any]]) -> str:
    """JSON with a line for each field, row and note."""

    def field(key: str, value: Any) -> str:
        if key in ("rows", "notes") and value:
            return f'    "{key}": [\n      ' + ",\n      ".join(map(encode, value)) + "\n    ]"
        return f'    "{key}": {encode(value)}'

    texts = (",\n".join(field(*item) for item in table.items()) for table in tables)
    return "[\n" + ",\n".join(f"  {{\n{text}\n  }}" for text in texts) + "\n]\n"


def merge(path: str | pathlib.Path, new: list[dict[str, Any]]) -> None:
    """Put tables into a file, each in the place of the one of the same title."""
    by_title = {table["title"]: table for table in [*load(path), *new]}
    pathlib.Path(path).write_text(dump(by_title.values()))


def add(
    path: str, title: str, about: str, columns: list[str], rows: list[list[Any]], packages: Iterable[str],
    notes: Sequence[str] = (), on: str | None = None,
) -> None:  # fmt: skip
    """Put what this process has measured into a file of tables; `on` is a machine that is not the CPU."""
    arguments = sys.argv[1:]
    if "--json" in arguments:
        i = arguments.index("--json")
        del arguments[i : i + 2]
    table = {
        "title": title, "about": about, "machine": on or machine(), "versions": versions(packages),
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", f"benchmarks/{pathlib.Path(sys.argv[0]).name}", *arguments]),
        "columns": columns, "rows": rows, "notes": list(notes),
    }  # fmt: skip
    markdown(table)
    merge(path, [table])


def shown(cell: Any) -> str:
    """A cell of RESULTS.md."""
    if cell is None:
        return "–"
    if isinstance(cell, list):
        return "; ".join(map(shown, cell))
    if isinstance(cell, int):
        text = f"{cell:,}" if abs(cell) >= 10_000 else str(cell)
    elif isinstance(cell, float | Decimal):
        number = Decimal(str(cell))
        text = f"{number:e}" if 0 < abs(number) < Decimal("0.01") else f"{number:f}"
    else:
        return str(cell)
    return text.replace("-", "−")


def grid(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; numbers are aligned to the right."""
    numbers = [any(not isinstance(row[i], str | None) for row in rows) for i in range(len(columns))]
    lines = [columns, [" ---: " if right else " --- " for right in numbers], *rows]
    return "\n".join("| " + " | ".join(shown(cell).strip() for cell in line) + " |" for line in lines)


def facts(table: dict[str, Any]) -> str:
    """Machine, versions, date and command on one line."""
    used = ", ".join(f"{package} {version}" for package, version in table["versions"].items())
    command = f"`{table['command']}`" if table["command"] else "no script"
    return " · ".join((table["machine"], used or "versions not recorded", table["date"], command))


def notes(table: dict[str, Any]) -> str:
    return "\n".join(f"* {note}" for note in table.get("notes", ()))


def markdown(table: dict[str, Any]) -> str:
    columns, rows = table["columns"], table["rows"]
    if any(len(row) != len(columns) for row in rows):
        raise ValueError(f"{table['title']}: a row has not as many cells as there are columns")
    parts = [f"## {table['title']}", table["about"], facts(table), grid(columns, rows), notes(table)]
    return "\n\n".join(part for part in parts if part) + "\n"


_QUOTE = re.compile(
    r"^<!-- results: (?P<title>[^\n]+?)(?P<fields>\n.*?)??(?:\n| )-->\n"
    r"(?P<body>.*?)^<!-- end of results -->$",
    re.MULTILINE | re.DOTALL,
)


def renamed(item: str) -> tuple[str, str | None]:
    """What stands before " as ", and what after it."""
    name, _, heading = item.strip().partition(" as ")
    return name.strip(), heading.strip() or None


def quote(table: dict[str, Any], fields: dict[str, str]) -> str:
    """The part of a table that the fields of a comment ask for."""
    known = table["columns"]

    def place(column: str) -> int:
        if column not in known:
            raise ValueError(f"no column {column!r}; there are: {'; '.join(known)}")
        return known.index(column)

    asked = [renamed(item) for item in fields.get("columns", "; ".join(known)).split(";")]
    places = [place(name) for name, _ in asked]
    rows = []
    for item in fields["rows"].split(";") if "rows" in fields else [""]:
        which, label = renamed(item)
        wanted = [part.partition("=")[::2] for part in which.split("&")] if which else []
        values = {place(column.strip()): value.strip() for column, value in wanted}
        found = [row for row in table["rows"] if all(shown(row[i]) == value for i, value in values.items())]
        if not found:
            raise ValueError(f"no row has {which}")
        for row in found:
            cells = [row[i] for i in places]
            rows.append([label, *cells[1:]] if label else cells)
    parts = {"facts": facts, "notes": notes}
    below = [part.strip() for part in fields.get("with", "").split(";") if part.strip()]
    if unknown := (set(fields) - {"columns", "rows", "with"}) | (set(below) - set(parts)):
        raise ValueError(f"{', '.join(sorted(unknown))}: not known here")
    texts = [
        grid([heading or name for name, heading in asked], rows),
        *(parts[part](table) for part in below),
    ]
    return "\n\n".join(text for text in texts if text) + "\n"


def quoted(text: str, tables: Iterable[dict[str, Any]]) -> str:
    """A page with its quotes written anew."""
    by_title = {table["title"]: table for table in tables}

    def write(match: re.Match[str]) -> str:
        title = match["title"].strip()
        # An indented line goes on with the one before.
        text = re.sub(r"\n[ \t]+", " ", match["fields"] or "")
        lines = [line.partition(":") for line in text.splitlines() if line.strip()]
        try:
            if title not in by_title:
                raise ValueError("results.json has no such table")
            body = quote(by_title[title], {key.strip(): value.strip() for key, _, value in lines})
        except ValueError as error:
            raise ValueError(f"{title!r}: {error}") from error
        return f"{match[0][: match.start('body') - match.start()]}{body}<!-- end of results -->"

    if text.count("<!-- results: ") != len(_QUOTE.findall(text)) or text.count(
        "<!-- end of results -->"
    ) != text.count("<!-- results: "):
        raise ValueError("a comment 'results:' without its 'end of results', or the other way round")
    return _QUOTE.sub(write, text)


def written() -> dict[pathlib.Path, str]:
    """What RESULTS.md and every page with quotes should hold."""
    tables = load(HERE / "results.json")
    pages = {HERE / "RESULTS.md": "\n".join([PREFACE, *map(markdown, tables)])}
    for page in (HERE.parent / "README.md", *sorted((HERE.parent / "docs").glob("*.md"))):
        text = page.read_text()
        try:
            new = quoted(text, tables)
        except ValueError as error:
            raise ValueError(f"{page.name}: {error}") from error
        if "<!-- results: " in text:
            pages[page] = new
    return pages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page differs")
    parser.add_argument("--add", metavar="FILE", action="append", default=[], help="tables to take in")
    given = parser.parse_args()
    for file in given.add:
        merge(HERE / "results.json", load(file))
    stale = {page: text for page, text in written().items() if not page.exists() or page.read_text() != text}
    if given.check and stale:
        names = ", ".join(page.name for page in stale)
        sys.exit(f"not what results.json gives: {names}; run python benchmarks/tables.py")
    for page, text in stale.items():
        page.write_text(text)


if __name__ == "__main__":
    main()
