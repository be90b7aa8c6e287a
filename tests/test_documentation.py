"""The README and the pages of the site: every Python block runs and prints what the page says."""

import ast
import contextlib
import importlib
import inspect
import io
import pathlib
import re

import jax
import pytest

from tests.test_package import PUBLIC

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# The blocks of the others compile for one to two minutes: searches, restarts and gradients, which are tested
# as functions. What they print is checked by running them before a release.
EXECUTED = {"from_scikit_learn", "incomplete"}

# A block, and the text block right below it, if there is one: what it prints.
_BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"-?\d+\.?\d*(?:e[+-]?\d+)?")


def blocks(page):
    """(line, code, what it prints or None) of every Python block."""
    text = page.read_text()
    return [(text.count("\n", 0, m.start()) + 2, m[1], m[2]) for m in _BLOCK.finditer(text)]


def same(printed, promised):
    """Whether two texts agree, up to white space and the last digits of their numbers."""
    words = [[re.split(r"\s+", t) for t in _NUMBER.split(text.strip())] for text in (printed, promised)]
    numbers = [_NUMBER.findall(text) for text in (printed, promised)]
    if words[0] != words[1]:
        return False
    return all(abs(float(a) - float(b)) <= _last_digits(b) for a, b in zip(*numbers, strict=True))


def _last_digits(number):
    """Two units of the last decimal; a whole number has to be the same."""
    decimals = number.partition(".")[2]
    return 2.001 * 10.0 ** -len(decimals) if decimals else 0.0


def named(code):
    """(the object, its name, the keywords it is called with) of everything of jaxgmm that a code names."""
    places, tree = {}, ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            places |= {
                a.asname or a.name: importlib.import_module(a.name) for a in node.names if a.name == "jaxgmm"
            }
        elif isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "jaxgmm":
            module = importlib.import_module(node.module)
            places |= {a.asname or a.name: getattr(module, a.name) for a in node.names}
    calls = {
        id(n.func): [k.arg for k in n.keywords if k.arg] for n in ast.walk(tree) if isinstance(n, ast.Call)
    }
    for node in ast.walk(tree):
        path, inner = [], node
        while isinstance(inner, ast.Attribute):
            path.insert(0, inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name) and inner.id in places:
            found = places[inner.id]
            for part in path:
                # A number of a result has no attributes of jaxgmm's.
                found = getattr(found, part)
            yield found, ".".join([inner.id, *path]), calls.get(id(node), [])


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.stem)
def test_every_block_names_what_there_is_and_gives_it_arguments_that_it_has(page):
    text = "import jaxgmm\n" + "\n".join(code for _, code, _ in blocks(page))
    seen = list(named(text))
    assert len(seen) > 1
    for function, name, keywords in seen:
        if keywords and callable(function):
            parameters = inspect.signature(function).parameters
            if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                assert set(keywords) <= set(parameters), f"{page.name}: {name}"


@pytest.mark.parametrize("page", [p for p in PAGES if p.stem in EXECUTED], ids=lambda p: p.stem)
def test_every_block_runs_and_prints_what_the_page_says(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    namespace = {"__name__": "__main__"}
    # A reader has JAX's defaults, not the strict ones of these tests.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for line, code, promised in blocks(page):
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)
            if promised is not None:
                assert same(out.getvalue(), promised), f"{page.name}, line {line} prints:\n{out.getvalue()}"


def test_texts_agree_up_to_rounding_and_no_further():
    assert same("BIC  2314.31\n* best", "BIC 2314.3 * best\n")
    assert not same("BIC 2315.3", "BIC 2314.3")
    assert not same("K = 3", "K = 2")
    assert not same("ICL 2.0", "BIC 2.0")


def test_the_reference_has_every_export():
    reference = (ROOT / "docs" / "api.md").read_text()
    listed = re.findall(r"^\.\. auto(?:class|function):: (?:[\w.]+\.)?(\w+)$", reference, re.MULTILINE)
    assert not {name for name, value in PUBLIC.items() if callable(value)} - set(listed)
    assert len(listed) == len(set(listed))


def test_every_page_is_in_the_table_of_contents():
    index = (ROOT / "docs" / "index.md").read_text()
    for page in PAGES[1:]:
        assert page.stem == "index" or re.search(rf"^{page.stem}$", index, re.MULTILINE), page


def test_links_between_pages_lead_somewhere():
    if not (ROOT / "notebooks" / "01_quickstart.ipynb").exists():
        pytest.skip("no clone: a source distribution has no notebooks to link to")
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            # The site has the notebooks beside its pages.
            assert any((base / target).exists() for base in (page.parent, ROOT)), f"{page.name}: {target}"
