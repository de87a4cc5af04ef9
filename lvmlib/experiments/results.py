"""Results of long runs: small JSON files in the package, each with the command and the versions that made it."""

import importlib.resources
import json
import os
import platform
import re
import tempfile
from pathlib import Path

import torch

import lvmlib


class ResultError(ValueError):
    """A file of results is missing or is not what its name says."""


def provenance(command: str) -> dict[str, str]:
    """Return what a result file says of its origin: command and versions.

    >>> provenance("python -m lvmlib.experiments.closing_table")["command"]
    'python -m lvmlib.experiments.closing_table'
    """
    return {
        "command": command,
        "lvmlib": lvmlib.__version__,
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def write_result(path: Path, content: dict, rows: bool = False) -> None:
    """Write a result file as a whole or not at all.

    Args:
        path: the file.
        content: what it shall hold, with the items of `provenance`.
        rows: whether a list without lists in it stands on one line; otherwise each number has a line.

    Raises:
        OSError: the folder cannot be written to.
    """
    path, text = Path(path), json.dumps(content, indent=1)
    if rows:
        text = re.sub(r'\[\n\s*([^\[\]{}"]*?)\s*\n\s*\]', lambda match: f"[{' '.join(match[1].split())}]", text)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        os.chmod(part, 0o644)  # mkstemp made it readable for its owner only
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


def read_result(name: str) -> dict:
    """Return the committed results of an experiment.

    Args:
        name: such as ``"closing_table"``.

    Raises:
        ResultError: there is no such file, or it is damaged.

    >>> read_result("closing_table")["command"]
    'python -m lvmlib.experiments.closing_table'
    """
    folder = importlib.resources.files("lvmlib") / "data"
    path = folder / f"{name}.json"
    if not path.is_file():
        known = sorted(file.name.removesuffix(".json") for file in folder.iterdir() if file.name.endswith(".json"))
        raise ResultError(f"name must be one of {known}, got {name!r}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ResultError(f"{path}: not a result file ({error}); reinstall lvmlib") from error
    if not isinstance(content, dict) or "command" not in content:
        raise ResultError(f"{path}: not a result file (it does not say which command made it); reinstall lvmlib")
    return content
