"""A progress bar that leaves one line behind: in a terminal, in a notebook and on a page made from a notebook."""

import sys
from collections.abc import Iterable

from tqdm import tqdm


class NotebookLine:
    r"""A text stream whose last line stands in one output of the cell, replaced in place.

    A notebook's standard error keeps every state of a bar that a carriage return should have overwritten, once it is
    saved or turned into a page; an updated output keeps the last one, and needs no JavaScript.
    """

    def __init__(self):
        from IPython.display import display

        self.handle = display({"text/plain": ""}, raw=True, display_id=True)

    def write(self, text: str) -> None:
        """Show what stands after the last carriage return."""
        line = text.rpartition("\r")[2].strip()
        if line:
            self.handle.update({"text/plain": line}, raw=True)

    def flush(self) -> None:
        """Do nothing: each line is shown as it is written."""


def in_notebook() -> bool:
    """Return whether this code runs in a notebook's kernel.

    >>> in_notebook()
    False
    """
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return hasattr(get_ipython(), "kernel")


def bar(steps: Iterable, description: str, unit: str, *, show: bool) -> tqdm:
    """Return the steps wrapped in a progress bar, on standard error or in the notebook's cell.

    >>> [step for step in bar(range(3), "fit", "epoch", show=False)]
    [0, 1, 2]
    """
    file = NotebookLine() if show and in_notebook() else sys.stderr
    return tqdm(steps, disable=not show, desc=description, unit=unit, file=file, ascii=" -", mininterval=0.2, ncols=80)
