"""The README and the pages of the site: what their Python blocks name, their links and pictures.

That the blocks run, and print what the pages say, is tested by docs/test_pages.py.
"""

import ast
import fnmatch
import importlib
import inspect
import json
import pathlib
import re
import urllib.parse

import pytest

from tests.conftest import case
from tests.test_package import PUBLIC

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
SITE = sorted([*DOCS.glob("*.md"), *(DOCS / "api").glob("*.md")])
PAGES = [ROOT / "README.md", *SITE]
STEP = "One EM step, one core of a 16-core machine"
AVX512 = "One EM step, one core with AVX-512"
OUTLIERS = "Clusters among 10 % uniform outliers"
RESTARTS = "50 restarts, 50 plain EM steps each"
# A source distribution has the pages but neither notebooks nor pictures.
CLONE = (ROOT / "notebooks" / "01_quickstart.ipynb").exists()

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


def test_every_block_names_what_there_is_and_gives_it_arguments_that_it_has():
    for page in [p for p in PAGES if blocks(p)]:
        with case(page):
            text = "import jaxgmm\n" + "\n".join(code for _, code, _ in blocks(page))
            seen = list(named(text))
            assert len(seen) > 1
            for function, name, keywords in seen:
                if keywords and callable(function):
                    parameters = inspect.signature(function).parameters
                    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                        assert set(keywords) <= set(parameters), f"{page.name}: {name}"


def test_texts_agree_up_to_rounding_and_no_further():
    assert same("BIC  2314.31\n* best", "BIC 2314.3 * best\n")
    assert not same("BIC 2315.3", "BIC 2314.3")
    assert not same("K = 3", "K = 2")
    assert not same("ICL 2.0", "BIC 2.0")


_FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1`*\s*$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
# ![alt](target), [text](target); a picture may itself be the text of a link.
_IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
_LINK = re.compile(r"(?<!!)\[(?:!\[[^\]]*\]\([^)]*\)|[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")


def prose(page):
    """A page without its blocks of code; directives keep what stands in them."""
    text = page.read_text()
    text = re.sub(r"^```\{container\}[^\n]*\n(.*?)^```\s*$", r"\1", text, flags=re.MULTILINE | re.DOTALL)
    return _COMMENT.sub("", re.sub(r"`[^`\n]+`", "", _FENCE.sub("", text)))


def anchors(page):
    """The anchors of a page's headings, as myst_heading_anchors and GitHub make them."""
    found = set()
    for heading in re.findall(r"^#{1,3} +(.+?) *$", _FENCE.sub("", page.read_text()), re.MULTILINE):
        plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


def found_at(page, target):
    """The file that a relative link of a page leads to."""
    file = (page.parent / target).resolve()
    if file.is_relative_to(DOCS / "notebooks"):  # the site has the notebooks beside its pages
        file = ROOT / file.relative_to(DOCS)
    return file if file.exists() else None


def listed(text):
    """The entries of all toctrees of a page."""
    blocks = re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines() if line and line[0] != ":"]


def test_the_reference_has_every_export():
    entries = []
    for page in sorted((DOCS / "api").glob("*.md")):
        place, tables, here = "", [], []
        for line in page.read_text().splitlines():
            if m := re.match(r"\.\. currentmodule:: (\S+)", line):
                place = m[1]
            elif m := re.match(r"\.\. auto(?:class|function):: (\S+)", line):
                here.append(f"{place}.{m[1]}")
            elif m := re.match(r"   (\w+)$", line):
                tables.append(f"{place}.{m[1]}")
        assert tables == here, f"{page.name}: the summary table and the details have different entries"
        entries += here
    assert len(entries) == len(set(entries))
    names = {entry.rpartition(".")[2] for entry in entries}
    assert not {name for name, value in PUBLIC.items() if callable(value)} - names
    for module in ("cache", "em", "interchange", "mixture", "plot", "sklearn"):
        public = importlib.import_module(f"jaxgmm.{module}")
        for entry in entries:
            if entry.startswith(f"{public.__name__}."):
                assert hasattr(public, entry.rpartition(".")[2]), entry
        if module in ("cache", "interchange", "plot", "sklearn"):
            own = getattr(public, "__all__", None) or [
                name
                for name, value in vars(public).items()
                if name[0] != "_" and getattr(value, "__module__", "").startswith(public.__name__ + ".")
            ]
            assert not set(own) - names, module


def test_the_reference_of_the_command_line_has_every_option():
    commands = pytest.importorskip("jaxgmm.cli.commands").cli.commands
    page = DOCS / "api" / "command_line.md"
    sections = re.compile(r"^## jaxgmm (\w+)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    parts = dict(sections.findall(page.read_text()))
    assert set(parts) == set(commands)
    for name, command in commands.items():
        described = set(re.findall(r"(?<!\S)--?[a-z][\w-]*", parts[name].partition("Options:")[2]))
        options = {o for p in command.params for o in (*p.opts, *p.secondary_opts) if o[0] == "-"}
        assert options <= described, name


def test_every_page_is_in_the_table_of_contents_once():
    entries = listed((DOCS / "index.md").read_text())
    if (DOCS / "api").exists():
        entries += [f"api/{name}" for name in listed((DOCS / "api" / "index.md").read_text())]
    pages = [page.relative_to(DOCS).with_suffix("").as_posix() for page in SITE]
    found = [page for page in pages for entry in entries if fnmatch.fnmatch(page, entry)]
    assert sorted(found) == sorted(set(pages) - {"index"})


def test_links_lead_somewhere():
    for page in PAGES:
        with case(page):
            if not CLONE:
                pytest.skip("no clone: a source distribution has no notebooks and pictures to link to")
            for target in _LINK.findall(prose(page)):
                if re.match(r"\w+:", target):
                    # Nothing is fetched: an address must only be one.
                    address = urllib.parse.urlsplit(target)
                    assert address.scheme == "https", target
                    assert re.fullmatch(r"[\w-]+(\.[\w-]+)+", address.netloc), target
                    continue
                path, _, anchor = target.partition("#")
                file = found_at(page, path) if path else page
                assert file is not None, target
                if anchor:
                    assert anchor in anchors(file), target


def test_pictures_exist_are_small_and_say_what_they_show():
    for page in PAGES:
        with case(page):
            if not CLONE:
                pytest.skip("no clone: a source distribution has no pictures")
            for alt, target in _IMAGE.findall(prose(page)):
                file = found_at(page, target)
                assert file is not None, target
                assert len(alt.split()) >= 3, f"{target}: {alt!r} does not say what the picture shows"
                assert file.stat().st_size < 200_000, target


def test_the_figures_of_the_front_page_are_those_that_were_measured():
    for title, row, column, words in [
        (STEP, [100000, 16, 16, "full"], "scikit-learn / jaxgmm", "{} times"),
        (STEP, [100000, 16, 16, "full"], "gmmx / jaxgmm", "{} times"),
        (AVX512, [100000, 16, 16, "full", "separated"], "scikit-learn / jaxgmm", "{} times and"),
        (AVX512, [100000, 16, 16, "full", "separated"], "gmmx / jaxgmm", "{} times on another"),
        ("Many fits: restarts, 2-core machine", [RESTARTS, "scikit-learn"], "library / jaxgmm", "{} times"),
        ("Many fits, 16-core machine", ["50 restarts"], "scikit-learn / jaxgmm", "{} times"),
        ("Coverage of 95 % intervals with 30 % of the entries missing", ["means"], "mean, %", "{} %"),
        (OUTLIERS, ["contaminated(full)"], "D=2, mean", "index of {}"),
        (OUTLIERS, ["full"], "D=2, mean", "give {}"),
        (OUTLIERS, ["scikit-learn GaussianMixture"], "D=2, mean", "{} in scikit-learn"),
    ]:
        with case(words):
            if not CLONE:
                pytest.skip("no clone: a source distribution has no benchmarks")
            tables = json.loads((ROOT / "benchmarks" / "results.json").read_text())
            (table,) = (t for t in tables if t["title"] == title)
            (found,) = (r for r in table["rows"] if r[: len(row)] == row)
            text = " ".join((DOCS / "index.md").read_text().split())
            assert words.format(found[table["columns"].index(column)]) in text
