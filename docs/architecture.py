"""Reads the imports of elang/ and draws its packages: ``python docs/architecture.py`` writes images/architecture.svg.

``tests/test_structure.py`` checks the same imports, and that the picture is up to date.
"""

import ast
from collections.abc import Iterator
from functools import cache
from html import escape
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
# Each row imports only from rows below it, and nothing from its own row.
FLOORS = (
    ("cli",),
    ("models", "inference"),
    ("backends", "evaluation"),
    ("data", "records"),
    ("metrics", "tasks"),
    ("method",),
    ("locks", "tables"),
    ("notices",),
    ("json_files", "files", "terminal"),
    ("errors",),
    ("_version",),
)
PACKAGES = {
    "cli": "elang VERB: one file a verb",
    "models": "--model X: training, scoring, evaluation",
    "inference": "a cascade at work: predict and serve",
    "backends": "the models that answer, and their costs",
    "evaluation": "curves, thresholds, promises, reports",
    "data": "--data X: examples, tokens, batches",
    "records": "answers and thresholds on disk",
    "tasks": "kinds of task, and what an answer is worth",
    "method": "the paper: scores, losses, curves, certificates",
    "ground": "errors, files, tables, locks, notices",
}
BOX, GAP, ROW, LEFT, WIDTH = (330, 52), 60, 92, 20, 760


class Import(NamedTuple):
    """One module of elang that another one imports; ``typed``: only for the type checker."""

    module: str
    typed: bool


@cache
def modules() -> dict[str, Path]:
    """The files of elang/ by module, such as ``elang.method.scores``."""
    paths = sorted((ROOT / "elang").rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


@cache
def tree(module: str) -> ast.Module:
    """The syntax tree of a module's source."""
    return ast.parse(modules()[module].read_text("utf-8"))


def _statements(node: ast.AST, typed: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes below this one, and whether each is only for the type checker."""
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        parts = [(child, True) for child in node.body] + [(child, typed) for child in node.orelse]
    else:
        parts = [(child, typed) for child in ast.iter_child_nodes(node)]
    for child, only_types in parts:
        yield child, only_types
        yield from _statements(child, only_types)


@cache
def imports(module: str) -> frozenset[Import]:
    """What a module imports of elang, at its top or inside a function."""
    found = set()
    for node, typed in _statements(tree(module)):
        if isinstance(node, ast.Import):
            found |= {Import(name.name, typed) for name in node.names if name.name.partition(".")[0] == "elang"}
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise SyntaxError(f"{module} imports relatively, which is not read here; write the full name.")
        elif isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "elang":
            names = [f"{node.module}.{name.name}" for name in node.names]
            found |= {Import(name if name in modules() else str(node.module), typed) for name in names}
    return frozenset(found)


def unit(module: str) -> str:
    """The package, or module at the top of elang/, that a module belongs to; empty for elang itself."""
    return module.partition(".")[2].partition(".")[0]


def _box(module: str) -> str | None:
    """Where a module is drawn: elang's own two files and metrics.py, a shell of method for torchmetrics, are not."""
    name = unit(module)
    return None if name in ("", "__main__", "metrics") else name if name in PACKAGES else "ground"


def arrows() -> list[tuple[str, str]]:
    """Pairs of boxes of which the first imports the second, without those that follow from the others."""
    below: dict[str, set[str]] = {name: set() for name in PACKAGES}
    for module in modules():
        for each in imports(module):
            name, other = _box(module), _box(each.module)
            if name and other and name != other and not each.typed:
                below[name].add(other)
    order = list(PACKAGES)
    reached: dict[str, set[str]] = {}
    for name in reversed(order):
        reached[name] = below[name].union(*(reached[other] for other in below[name]))
    return [
        (name, other)
        for name in order
        for other in sorted(below[name], key=order.index)
        if not any(other in reached[between] for between in below[name])
    ]


def _places() -> dict[str, tuple[int, int]]:
    """The upper left corner of each box: a row for each floor, and one for all below method."""
    ground = FLOORS.index(("method",)) + 1
    rows = [[name for name in row if name in PACKAGES] for row in FLOORS[:ground]] + [["ground"]]
    places = {}
    for i, row in enumerate(rows):
        left = (WIDTH - len(row) * BOX[0] - (len(row) - 1) * GAP) // 2
        places |= {name: (left + k * (BOX[0] + GAP), LEFT + i * ROW) for k, name in enumerate(row)}
    return places


def picture() -> str:
    """The drawing, as SVG: an arrow from each package to those that it imports."""
    places, (width, height) = _places(), BOX
    total = max(top for _, top in places.values()) + height + LEFT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {total}" font-family="sans-serif">',
        "<title>The packages of elang and their imports</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#5c6bc0"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{total}" fill="#fff"/>',
    ]
    for name, other in arrows():
        (x, y), (to_x, to_y) = places[name], places[other]
        # Towards each other, so that arrows that leave or reach one box do not meet in one point.
        lean = (to_x > x) - (to_x < x)
        start, end = x + width // 2 + lean * 60, to_x + width // 2 - lean * 60
        lines.append(
            f'<path d="M{start} {y + height} {end} {to_y}" stroke="#5c6bc0" stroke-width="1.5" '
            'fill="none" marker-end="url(#tip)"/>'
        )
    for name, (x, y) in places.items():
        middle = x + width // 2
        lines += [
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="#e8eaf6" stroke="#3f51b5"/>',
            f'<text x="{middle}" y="{y + 21}" font-size="15" font-weight="bold" text-anchor="middle">{name}</text>',
            f'<text x="{middle}" y="{y + 40}" font-size="12" text-anchor="middle">{escape(PACKAGES[name])}</text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(picture(), "utf-8")
