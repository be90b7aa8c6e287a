"""Writes RESULTS.md, the tables of what was measured, from results.json.

    python benchmarks/tables.py               # write RESULTS.md
    python benchmarks/tables.py --check       # exit status 1 if RESULTS.md is not what would be written
    python benchmarks/tables.py --add FILE    # put the tables of FILE into results.json, write RESULTS.md

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


def machine() -> str:
    """Processor, vector instructions and number of cores."""
    file = pathlib.Path("/proc/cpuinfo")
    info = file.read_text() if file.exists() else ""
    name, flags = (re.search(rf"^{field}\s*:\s*(.+)$", info, re.M) for field in ("model name", "flags"))
    known = {"avx2": "AVX2", "avx512f": "AVX-512"}
    vectors = [known[f] for f in known if flags and f in flags[1].split()]
    return ", ".join([name[1] if name else "unknown processor", *vectors, f"{os.cpu_count()} cores"])


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
    return text.replace("-", "−", 1) if text.startswith("-") else text


def markdown(table: dict[str, Any]) -> str:
    columns, rows = table["columns"], table["rows"]
    if any(len(row) != len(columns) for row in rows):
        raise ValueError(f"{table['title']}: a row has not as many cells as there are columns")
    numbers = [any(not isinstance(row[i], str | None) for row in rows) for i in range(len(columns))]
    lines = [columns, [" ---: " if right else " --- " for right in numbers], *rows]
    used = ", ".join(f"{package} {version}" for package, version in table["versions"].items())
    facts = (
        table["machine"],
        used or "versions not recorded",
        table["date"],
        f"`{table['command']}`" if table["command"] else "no script",
    )
    body = ["| " + " | ".join(shown(cell).strip() for cell in line) + " |" for line in lines]
    notes = [f"* {note}" for note in table.get("notes", ())]
    parts = [f"## {table['title']}", table["about"], " · ".join(facts), "\n".join(body), "\n".join(notes)]
    return "\n\n".join(part for part in parts if part) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if RESULTS.md differs")
    parser.add_argument("--add", metavar="FILE", action="append", default=[], help="tables to take in")
    given = parser.parse_args()
    data, page = HERE / "results.json", HERE / "RESULTS.md"
    for file in given.add:
        merge(data, load(file))
    text = "\n".join([PREFACE, *map(markdown, load(data))])
    if not given.check:
        page.write_text(text)
    elif not page.exists() or page.read_text() != text:
        sys.exit("RESULTS.md is not what results.json gives: run python benchmarks/tables.py")


if __name__ == "__main__":
    main()
