"""Draws the pictures of the pages: `python docs/pictures.py`, from the root of the clone.

A picture that stands right below a Python block of gallery.md or index.md is what the block has drawn: the
blocks of a page are run in order, and the current figure is written to the file that the page shows.
"""

import pathlib
import re

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
from PIL import Image

HERE = pathlib.Path(__file__).parent
# A block, perhaps the text that it prints, and a picture right below.
BLOCK = re.compile(
    r"^```python\n(.*?)^```\n(?:\n```text\n.*?^```\n)?(?:\n!\[[^\]]*\]\(([^)]+\.png)\)\n)?",
    re.MULTILINE | re.DOTALL,
)


def draw(page: pathlib.Path) -> None:
    """Runs the blocks of a page in one namespace and writes its pictures."""
    namespace: dict = {}
    for code, picture in BLOCK.findall(page.read_text()):
        plt.close("all")
        exec(compile(code, str(page), "exec"), namespace)
        if picture:
            save(page.parent / picture)


def save(file: pathlib.Path) -> None:
    """Writes the current figure with a palette, which takes a third of the bytes."""
    plt.gcf().savefig(file, dpi=120, facecolor="white")
    with Image.open(file) as image:
        palette = image.convert("RGB").quantize(
            128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE
        )
    palette.save(file, optimize=True)
    print(f"{file.resolve().relative_to(HERE.parent.resolve())}: {file.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    for name in ("gallery.md", "index.md"):
        draw(HERE / name)
