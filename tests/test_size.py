"""Promises about the library's source: its size, the order of its modules, and what it never contains."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

LIBRARY = Path(__file__).resolve().parent.parent / "lvmlib"
MATHEMATICS = 1500  # lines of code that can be read in an evening
# Each module may import those before it. `laws` holds the distributions that models and proposals share.
ORDER = (
    "contracts",
    "progress",
    "weights",
    "laws",
    "models",
    "mixtures",
    "autoregressive",
    "proposals",
    "quadrature",
    "exact",
    "importance",
    "ais",
    "bounds",
    "gradients",
    "training",
    "downloads",
    "datasets",
    "teaching",
    "experiments",
    "__main__",
)
COUNTED = (
    "weights",
    "laws",
    "models",
    "mixtures",
    "autoregressive",
    "proposals",
    "quadrature",
    "exact",
    "importance",
    "ais",
    "bounds",
    "gradients",
    "training",
)
SOURCES = sorted(LIBRARY.rglob("*.py"))
IDS = [path.relative_to(LIBRARY).as_posix() for path in SOURCES]


def docstring_lines(tree):
    """Return the line numbers that docstrings take."""
    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            lines |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def code_lines(source):
    """Count lines that hold code: no blank lines, comments and docstrings."""
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in skipped:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstring_lines(ast.parse(source)))


def place(name):
    """Return the place of a module in the order, by its name below lvmlib."""
    return ORDER.index(name)


def imported(tree):
    """Return the names of lvmlib's modules that a module imports."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("lvmlib.")}
        elif isinstance(node, ast.ImportFrom) and node.module == "lvmlib":
            names |= {alias.name for alias in node.names if alias.name in ORDER}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lvmlib."):
            names.add(node.module.split(".")[1])
    return names


def test_code_lines_counts_code_only():
    source = (
        '"""Doc.\n\nMore."""\n\n# comment\nx = 1  # why\n\n\ndef f():\n    """Doc."""\n    return (\n        x\n    )\n'
    )
    assert code_lines(source) == 5


def test_the_mathematics_can_be_read_in_an_evening():
    paths = [path for name in COUNTED if (path := LIBRARY / f"{name}.py").exists()]
    counts = {path.stem: code_lines(path.read_text(encoding="utf-8")) for path in paths}
    assert sum(counts.values()) <= MATHEMATICS, counts
    assert "weights" in counts


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_a_module_imports_only_those_before_it(path):
    own = path.relative_to(LIBRARY).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    assert own in ORDER, f"{own} has no place in the order: {', '.join(ORDER)}"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level], (
        "use absolute imports"
    )
    below = {name for name in imported(tree) if place(name) > place(own)}
    assert not below, f"{path.name} imports {sorted(below)}, which come after it"


def test_the_order_is_checked_by_name():
    assert imported(ast.parse("from lvmlib.exact import f\nimport lvmlib.models\nfrom lvmlib import weights")) == {
        "exact",
        "models",
        "weights",
    }


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_a_module_has_no_assert_and_loads_no_pickle(path):
    text = path.read_text(encoding="utf-8")
    asserts = [node.lineno for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Assert)]
    assert not asserts, f"assert in lines {asserts}; python -O removes it, raise an error instead"
    assert not re.search(r"weights_only\s*=\s*False|allow_pickle\s*=\s*True|\bpickle\.loads?\b", text)


def test_every_public_function_has_a_doctest():
    import inspect

    import lvmlib

    missing = [
        name
        for name in lvmlib.__all__
        if inspect.isfunction(getattr(lvmlib, name)) and ">>>" not in (getattr(lvmlib, name).__doc__ or "")
    ]
    assert missing == []
