"""How the site is built: `sphinx-build -W docs OUTPUT`. Nothing is executed and nothing fetched."""

import importlib.util
import pathlib
import re
import shutil

from jaxgmm._version import __version__

# Sphinx reads what lies below this folder, and follows links in notebooks from where these really are.
_HERE = pathlib.Path(__file__).parent
shutil.rmtree(_HERE / "notebooks", ignore_errors=True)
shutil.copytree(_HERE.parent / "notebooks", _HERE / "notebooks", ignore=shutil.ignore_patterns(".*"))

project = "jaxgmm"
author = "The jaxgmm authors"
copyright = "the jaxgmm authors"  # noqa: A001
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
if importlib.util.find_spec("sphinx-mathjax-offline"):
    # Puts MathJax into the site, so that formulas are shown without a network; otherwise it is fetched.
    extensions.append("sphinx-mathjax-offline")
html_theme = "furo"
pygments_style, pygments_dark_style = "default", "github-dark"
html_title = f"jaxgmm {__version__}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
exclude_patterns = ["notebooks/data"]

# Notebooks and pages are executed by the tests; here they are shown as they are stored.
nb_execution_mode = "off"
nb_merge_streams = True  # what a cell has printed at several moments is one block
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# Docstrings quote code in single backticks.
default_role = "code"
# Types in docstrings are words; every other reference has to be found.
nitpicky = True
nitpick_ignore_regex = [("py:class", ".*")]
autosummary_generate = False  # the tables are of entries on the same page
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # the attributes of a record as one list, without their types
napoleon_attr_annotations = False
napoleon_custom_sections = [
    ("Example", "notes_style"),
    ("References", "notes_style"),
    ("Fields", "params_style"),
]

_CODE = re.compile(r"(``[^`]*``|`[^`]*`)")


def _escape(text: str) -> str:
    """Mathematics is written plainly in a docstring: |Σ|, x*, weights_ are no markup."""
    parts = _CODE.split(text)
    plain = [re.sub(r"([*|\\])|(?<=\w)_(?!\w)", lambda m: "\\" + m[0], part) for part in parts[::2]]
    parts[::2] = plain
    return "".join(parts)


def _prepare(app, what, name, obj, options, lines):
    for i, line in enumerate(lines):
        field = re.match(r"(\s*[\w*, ]+)(:.*)", line)  # napoleon escapes the names of arguments itself
        if re.match(r"\s*(>>>|\.\.\.)", line):
            continue
        lines[i] = field[1] + _escape(field[2]) if field else _escape(line)


def _skip(app, what, name, obj, skip, options):
    """Leaves out what an estimator inherits from scikit-learn, whose own manual has it."""
    return skip or str(getattr(obj, "__module__", "")).startswith("sklearn") or name.endswith("_request")


def setup(app):
    """`_prepare` runs before napoleon, which makes markup of the sections."""
    app.connect("autodoc-skip-member", _skip)
    app.connect("autodoc-process-docstring", _prepare, priority=400)
