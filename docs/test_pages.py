"""Every Python block of every page runs and prints what the page says: `pytest docs/test_pages.py`.

Apart from the other tests, for pages show searches, restarts and gradients at their real size.
"""

import contextlib
import io

import matplotlib as mpl
import pytest

from tests.test_documentation import PAGES, ROOT, blocks, same


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.stem)
def test_every_block_runs_and_prints_what_the_page_says(page, monkeypatch):
    mpl.use("agg")
    monkeypatch.chdir(ROOT)
    namespace = {"__name__": "__main__"}
    for line, code, promised in blocks(page):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)
        if promised is not None:
            assert same(out.getvalue(), promised), f"{page.name}, line {line} prints:\n{out.getvalue()}"
