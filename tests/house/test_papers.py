"""Each numbered item of what PAPERS says that a test must show has a test that names it.

A test names items in the comment above it: `# PAPERS 1.4.3, 2.4.2: what it shows`.
"""

import ast
import re
from itertools import takewhile
from pathlib import Path

# Of EcoServe (1.4), CacheOPT (2.4) and AccelGen (3.4).
NUM_ITEMS = {"1.4": 10, "2.4": 5, "3.4": 5}
_ITEM = re.compile(r"\b[1-3]\.4\.\d+\b")


def items_named_in(source: str) -> set[str]:
    """By comments right above tests, or above machines of states."""
    lines, items = source.splitlines(), set[str]()
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if not isinstance(node, ast.ClassDef) and not node.name.startswith("test_"):
            continue
        first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
        above = takewhile(lambda line: line.startswith("#"), reversed(lines[: first - 1]))
        comment = "\n".join(above)
        if "PAPERS" in comment:
            items |= set(_ITEM.findall(comment))
    return items


def test_every_numbered_item_is_named_by_a_test(root: Path) -> None:
    named: set[str] = set()
    for path in (root / "tests").rglob("test_*.py"):
        if path != Path(__file__):
            named |= items_named_in(path.read_text("utf-8"))
    wanted = {f"{part}.{n}" for part, most in NUM_ITEMS.items() for n in range(1, most + 1)}
    assert named == wanted


def test_only_what_stands_above_a_test_counts() -> None:
    above = "# PAPERS 1.4.1: one\n# 2.4.2 too.\n@given(\n    1,\n)\nasync def test_x(): ...\n"
    assert items_named_in(above) == {"1.4.1", "2.4.2"}
    assert items_named_in("# PAPERS 1.4.3\nclass Machine: ...\n") == {"1.4.3"}
    assert items_named_in("# PAPERS 1.4.4\nx = 1\n\ndef test_y(): ...\n") == set()
