"""The tables that RESULTS.md, README.md and the pages quote are those of benchmarks/results.json."""

import importlib.util
import pathlib
import sys

import pytest

from tests.conftest import case

FILE = pathlib.Path(__file__).parents[1] / "benchmarks" / "tables.py"
if not FILE.exists():
    pytest.skip("no clone: a source distribution has no benchmarks", allow_module_level=True)
spec = importlib.util.spec_from_file_location("jaxgmm_benchmark_tables", FILE)
tables = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tables)

TABLE = {
    "title": "Steps, one core",
    "about": "Time of a step.",
    "machine": "a machine",
    "versions": {"jax": "1.0"},
    "date": "2026-01-02",
    "command": "python steps.py",
    "columns": ["N", "kind", "ours, ms", "theirs / ours"],
    "rows": [[10000, "full", 0.5, 2.0], [10000, "diag", -0.25, None], [100, "full", 0.001, 3]],
    "notes": ["A note."],
}
PAGE = """Before.

<!-- results: Steps, one core
columns: N; ours, ms as time, ms; theirs / ours
rows: kind=full & N=10,000 as many;
  kind=diag
with: facts; notes
-->
| old |
<!-- end of results -->

After.
"""


def test_every_table_and_quote_is_what_results_json_gives():
    for page, text in tables.written().items():
        assert page.read_text() == text, f"{page.name} differs: run python benchmarks/tables.py"


def test_a_quote_has_the_columns_and_rows_that_its_comment_asks_for():
    page = tables.quoted(PAGE, [TABLE])
    assert page.splitlines()[8:16] == [
        "| N | time, ms | theirs / ours |",
        "| ---: | ---: | ---: |",
        "| many | 0.5 | 2.0 |",
        "| 10,000 | −0.25 | – |",
        "",
        "a machine · jax 1.0 · 2026-01-02 · `python steps.py`",
        "",
        "* A note.",
    ]
    assert tables.quoted(page, [TABLE]) == page
    assert page.startswith(PAGE[: PAGE.index("| old |")])
    assert page.endswith("<!-- end of results -->\n\nAfter.\n")


def test_a_quote_without_fields_is_the_whole_table():
    page = tables.quoted("<!-- results: Steps, one core -->\n<!-- end of results -->\n", [TABLE])
    assert page.splitlines()[1:-1] == tables.markdown(TABLE).splitlines()[6:11]


def test_a_quote_of_what_is_not_there_is_an_error():
    for old, new, message in [
        ("Steps, one core", "Steps", "no such table"),
        ("theirs / ours", "theirs", "no column 'theirs'"),
        ("kind=diag", "kind=tied", "no row has kind=tied"),
        ("with: facts", "with: pictures", "pictures: not known"),
        ("rows:", "lines:", "lines: not known"),
        ("<!-- end of results -->", "", "without its 'end of results'"),
    ]:
        with case(message), pytest.raises(ValueError, match=message):
            tables.quoted(PAGE.replace(old, new), [TABLE])
