"""Show the source of a library function in a notebook, without its docstring: the docstring is on the API page."""

import ast
import inspect
import textwrap
from collections.abc import Callable

from IPython.display import Markdown


def source_without_docstring(function: Callable) -> str:
    """Return the source of a function or class, with decorators and docstrings removed.

    >>> from lvmlib import prior_proposal
    >>> print(source_without_docstring(prior_proposal).splitlines()[-1])
        return lambda x: model.prior().expand((len(x),))
    """
    text = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
    lines = text.splitlines()
    tree = ast.parse(text).body[0]
    drop: set[int] = set(range(1, tree.lineno))  # decorators stand above the definition's own line
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            drop |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    kept = [line for number, line in enumerate(lines, start=1) if number not in drop]
    return "\n".join(kept).rstrip()


def show_source(*functions: Callable) -> Markdown:
    """Return the sources as highlighted code; works in Colab, in Jupyter and on the page."""
    sources = "\n\n\n".join(source_without_docstring(function) for function in functions)
    return Markdown(f"```python\n{sources}\n```")
