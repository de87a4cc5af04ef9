"""Checkpoints: files that are there as a whole or not at all, and that say so when they are damaged.

A file is one line of JSON, which has the version of the format and the length and SHA-256 of the rest, and the rest,
which is what ``torch.save`` writes: numbers, texts, lists, dictionaries and tensors, nothing that could run. The
checkpoint before the last is kept beside it.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

FORMAT = "lvmlib checkpoint"
VERSION = 1
LONGEST_HEADER = 300


class CheckpointError(OSError):
    """A checkpoint is missing, damaged, of another kind than asked for, or cannot be written."""


def previous(path: Path) -> Path:
    """Return where the checkpoint before the last one is kept.

    >>> previous(Path("runs/a/checkpoint.lvm")).name
    'checkpoint.previous.lvm'
    """
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def save(path: Path, content: dict) -> None:
    """Write a checkpoint; whatever happens, a good one remains: the new one, or the one before.

    Args:
        path: the file. The one that it replaces is kept as `previous`.
        content: numbers, texts, lists, dictionaries and tensors.

    Raises:
        CheckpointError: a number in it is NaN or infinite, or the file cannot be written; names the path and, where
            writing failed, the bytes that are free. The file is then as it was before.
    """
    if broken := _not_finite(content):
        raise CheckpointError(f"{path}: not saved, because {', '.join(broken[:3])} is NaN or infinite")
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = buffer.getvalue()
    header = {"format": FORMAT, "version": VERSION, "bytes": len(payload), "sha256": _sha256(payload)}
    with explained(path, len(payload)):
        part = _write(path, json.dumps(header).encode() + b"\n" + payload)
        with _removed_if_it_fails(part):
            _keep(path)
            os.replace(part, path)
        _flush(path.parent)


def load(path: Path) -> dict:
    """Read a checkpoint, with its tensors on the CPU.

    Raises:
        CheckpointError: names the file and what is wrong with it.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    header, payload = _split(path, data)
    if header["version"] != VERSION:
        raise CheckpointError(
            f"{path}: has version {header['version']} of the format, and this lvmlib reads version {VERSION}"
        )
    if len(payload) != header["bytes"]:
        raise CheckpointError(
            f"{path}: is not complete, or has something after its end: {len(payload)} bytes follow "
            f"the first line, which says {header['bytes']}"
        )
    if (found := _sha256(payload)) != header["sha256"]:
        raise CheckpointError(f"{path}: was changed after it was written: SHA-256 {found}, expected {header['sha256']}")
    try:
        content = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, with advice that must not be passed on
        raise CheckpointError(f"{path}: holds what this torch does not load ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: must hold a dictionary, got {type(content).__name__}")
    if broken := _not_finite(content):
        raise CheckpointError(f"{path}: {', '.join(broken[:3])} is NaN or infinite")
    return content


def load_or_previous(path: Path, fall_back: bool) -> tuple[dict, Path]:
    """Read a checkpoint, or, only if `fall_back`, the one before it where the last is damaged or missing.

    Returns:
        The content, and the file that it came from.

    Raises:
        CheckpointError: the last is not usable and the one before is not wanted, or is not usable either.
    """
    try:
        return load(path), path
    except CheckpointError as error:
        if not fall_back:
            hint = f"; --fall-back uses the one before it, {previous(path)}" if previous(path).exists() else ""
            raise CheckpointError(f"{error}{hint}") from error
        try:
            return load(previous(path)), previous(path)
        except CheckpointError as second:
            raise CheckpointError(f"{error}; nor can the one before it be used: {second}") from error


def put_previous_back(path: Path) -> None:
    """Make the checkpoint before the last one the last, and keep a damaged last one under another name."""
    with explained(path, 0):
        if path.exists():
            os.replace(path, path.with_name(f"{path.stem}.damaged{path.suffix}"))
        os.replace(previous(path), path)
        _flush(path.parent)


def probe(path: Path, num_bytes: int) -> None:
    """See whether a checkpoint of this size could be written.

    Raises:
        CheckpointError: it could not.
    """
    with explained(path, num_bytes):
        os.unlink(_write(path, bytes(num_bytes)))


def sweep(path: Path) -> None:
    """Remove what a killed process left of a file that it was writing."""
    for part in path.parent.glob(f"{path.name}*.part"):
        part.unlink(missing_ok=True)


def tensors(content: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Return the tensors in dictionaries and lists, with the names that lead to them.

    >>> [name for name, tensor in tensors({"a": {"b": torch.ones(2)}, "c": [1, torch.ones(3)]})]
    ['a.b', 'c.1']
    """
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from tensors(value, f"{name}.{key}" if name else str(key))


def _not_finite(content: dict) -> list[str]:
    """Return the names of tensors with NaN or infinite entries."""
    return [name for name, tensor in tensors(content) if tensor.is_floating_point() and not tensor.isfinite().all()]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _split(path: Path, data: bytes) -> tuple[dict, bytes]:
    """Return the first line, as what it says, and the rest."""
    if not data:
        raise CheckpointError(f"{path}: is empty")
    line, _, payload = data.partition(b"\n")
    try:
        header = json.loads(line[:LONGEST_HEADER])
        if header["format"] == FORMAT and {"version", "bytes", "sha256"} <= header.keys():
            return header, payload
    except (ValueError, TypeError, KeyError):
        pass
    raise CheckpointError(f"{path}: is not a checkpoint of lvmlib; it starts with {data[:20]!r}")


def _write(path: Path, data: bytes) -> str:
    """Write a new file in the folder of `path`, down to the disk, and return its name."""
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=".part")
    with _removed_if_it_fails(part):
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o644)  # mkstemp made it readable for its owner only
    return part


@contextlib.contextmanager
def _removed_if_it_fails(part: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise


def _keep(path: Path) -> None:
    """Give the present checkpoint its second name, without a moment at which it has none."""
    if not path.exists() or (previous(path).exists() and os.path.samefile(path, previous(path))):
        return  # the second case: killed between the two renamings
    part = f"{path}.previous.part"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(part)
    with _removed_if_it_fails(part):
        try:
            os.link(path, part)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, part)
        os.replace(part, previous(path))


def _flush(folder: Path) -> None:
    """Bring the folder's list of names to the disk, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def explained(path: Path, num_bytes: int) -> Iterator[None]:
    """Turn a failure to write into a `CheckpointError` that has the path and the free space."""
    try:
        yield
    except CheckpointError:
        raise
    except OSError as error:
        free = "an unknown number of"
        with contextlib.suppress(OSError):
            free = f"{shutil.disk_usage(path.parent).free:,}"
        raise CheckpointError(
            f"{path}: {num_bytes:,} bytes cannot be written ({error.strerror or error}); {free} bytes are free there, "
            "and a checkpoint that was there before is as it was"
        ) from error
