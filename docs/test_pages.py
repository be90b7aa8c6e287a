"""Every Python block of every page runs and prints what the page says: `pytest docs/test_pages.py`.

A page runs in a process of its own, as a reader's does, with programs on disk that the pages share. This is
apart from the other tests, for pages show searches, restarts and gradients at their real size.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.test_documentation import PAGES, ROOT, blocks, same

RUN = """
import contextlib, io, json, sys
namespace, printed = {"__name__": "__main__"}, []
for line, code in json.load(sys.stdin):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile("\\n" * (line - 1) + code, sys.argv[1], "exec"), namespace)
    printed.append(out.getvalue())
print(json.dumps(printed))
"""


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """The folder of the programs of this run, one for all of its workers."""
    folder = tmp_path_factory.getbasetemp()
    return (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "programs"


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.stem)
def test_every_block_runs_and_prints_what_the_page_says(page, programs):
    given = blocks(page)
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(page)], cwd=ROOT, capture_output=True, text=True, timeout=280,
        input=json.dumps([[line, code] for line, code, _ in given]),
        env={**os.environ, "JAXGMM_CACHE": str(programs), "MPLBACKEND": "agg", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for (line, _, promised), printed in zip(given, json.loads(done.stdout), strict=True):
        if promised is not None:
            assert same(printed, promised), f"{page.name}, line {line} prints:\n{printed}"
