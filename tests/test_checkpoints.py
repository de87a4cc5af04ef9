"""Checkpoint files: whole or not there, and refused with the cause when they are not what was written."""

import errno
import io
import json
import os
import re

import pytest
import torch

from lvmlib.experiments import checkpoints
from lvmlib.experiments.checkpoints import CheckpointError, load, load_or_previous, previous, probe, save, sweep


def content(number=1.0):
    return {
        "step": 3,
        "names": ["a", "b"],
        "nothing": None,
        "tensors": {"weight": torch.full((3, 2), number), "bits": torch.arange(4, dtype=torch.uint8)},
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.lvm"


@pytest.fixture
def saved(path):
    """A checkpoint and the one before it."""
    save(path, content(1.0))
    save(path, content(2.0))
    return path


def weight(found):
    return found["tensors"]["weight"][0, 0].item()


def test_what_is_loaded_is_what_was_saved(path):
    save(path, content())
    found = load(path)
    assert {name: found[name] for name in ("step", "names", "nothing")} == {
        "step": 3,
        "names": ["a", "b"],
        "nothing": None,
    }
    for (name, tensor), (other, expected) in zip(checkpoints.tensors(found), checkpoints.tensors(content())):
        assert name == other and tensor.dtype == expected.dtype and torch.equal(tensor, expected)


def test_the_folder_holds_the_last_two_and_nothing_else(path):
    for number in (1.0, 2.0, 3.0):
        save(path, content(number))
    assert sorted(file.name for file in path.parent.iterdir()) == ["checkpoint.lvm", "checkpoint.previous.lvm"]
    assert weight(load(path)) == 3.0 and weight(load(previous(path))) == 2.0


def test_a_checkpoint_may_be_read_by_others(path):
    save(path, content())
    assert path.stat().st_mode & 0o777 == 0o644


def test_what_is_saved_later_does_not_change_what_was_saved(path):
    tensors = content()
    save(path, tensors)
    tensors["tensors"]["weight"].fill_(9.0)
    assert weight(load(path)) == 1.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_neither_saved_nor_loaded(saved, value, monkeypatch):
    with pytest.raises(
        CheckpointError, match=r"checkpoint\.lvm: not saved, because tensors\.weight is NaN or infinite"
    ):
        save(saved, content(value))
    assert weight(load(saved)) == 2.0
    monkeypatch.setattr(checkpoints, "_not_finite", lambda content: [])
    save(saved, content(value))
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"tensors\.weight is NaN or infinite"):
        load(saved)


# damage

HTML = b"<html><body>404 Not Found</body></html>"


def truncated(data):
    return data[: len(data) // 2]


def header_of(data, **changes):
    line, _, payload = data.partition(b"\n")
    return json.dumps(json.loads(line) | changes).encode() + b"\n" + payload


DAMAGE = {
    "empty": (lambda data: b"", "is empty"),
    "a page": (lambda data: HTML, r"is not a checkpoint of lvmlib; it starts with b'<html><body>"),
    "truncated": (truncated, r"is not complete, or has something after its end: \d+ bytes follow"),
    "the header alone": (lambda data: data.partition(b"\n")[0], "is not complete"),
    "half a header": (lambda data: data[:30], "is not a checkpoint of lvmlib"),
    "something after its end": (lambda data: data + b"\0", "is not complete, or has something after its end"),
    "another version": (lambda data: header_of(data, version=2), "has version 2 of the format, .* reads version 1"),
    "another format": (lambda data: header_of(data, format="zip"), "is not a checkpoint of lvmlib"),
    "a list as header": (lambda data: b"[1]\n" + data, "is not a checkpoint of lvmlib"),
    "a file of torch": (lambda data: data.partition(b"\n")[2], "is not a checkpoint of lvmlib; it starts with b'PK"),
    "zeros": (lambda data: bytes(len(data)), "is not a checkpoint of lvmlib"),
    "a flipped bit": (
        lambda data: data[:-500] + bytes([data[-500] ^ 4]) + data[-499:],
        "was changed after it was written: SHA-256 [0-9a-f]{64}, expected [0-9a-f]{64}",
    ),
}


@pytest.mark.parametrize("damage, message", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_refused_with_its_name_and_the_cause(saved, damage, message):
    saved.write_bytes(damage(saved.read_bytes()))
    with pytest.raises(CheckpointError, match=rf"checkpoint\.lvm: {message}") as caught:
        load(saved)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("damage", [damage for damage, _ in DAMAGE.values()], ids=DAMAGE)
def test_the_one_before_is_used_only_if_asked(saved, damage):
    saved.write_bytes(damage(saved.read_bytes()))
    with pytest.raises(CheckpointError, match=r"--fall-back uses the one before it, .*checkpoint\.previous\.lvm"):
        load_or_previous(saved, fall_back=False)
    found, used = load_or_previous(saved, fall_back=True)
    assert weight(found) == 1.0 and used == previous(saved)


def test_a_good_file_is_used_also_where_falling_back_is_allowed(saved):
    found, used = load_or_previous(saved, fall_back=True)
    assert weight(found) == 2.0 and used == saved


def test_two_damaged_files_are_both_named(saved):
    saved.write_bytes(b"")
    previous(saved).write_bytes(HTML)
    with pytest.raises(
        CheckpointError, match=r"checkpoint\.lvm: is empty; nor can .*previous\.lvm: is not a checkpoint"
    ):
        load_or_previous(saved, fall_back=True)


def test_a_missing_file_and_a_folder_are_refused(path):
    with pytest.raises(CheckpointError, match=r"checkpoint\.lvm: there is no such file$"):
        load_or_previous(path, fall_back=False)
    path.mkdir()
    with pytest.raises(CheckpointError, match=r"checkpoint\.lvm: cannot be read \(Is a directory\)"):
        load(path)


def test_every_flipped_bit_and_every_length_is_noticed(path):
    save(path, content())
    data = path.read_bytes()
    for position in range(0, len(data), 7):
        path.write_bytes(data[:position] + bytes([data[position] ^ (1 << position % 8)]) + data[position + 1 :])
        with pytest.raises(CheckpointError):
            load(path)
        path.write_bytes(data[:position])
        with pytest.raises(CheckpointError):
            load(path)


class Evil:
    """A pickle that would leave a trace if it ran."""

    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("value", [{"a": Evil()}, [1, 2]], ids=["a program", "a list"])
def test_what_is_no_dictionary_of_tensors_is_not_loaded(path, value, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save(value, buffer)
    payload = buffer.getvalue()
    header = {
        "format": "lvmlib checkpoint",
        "version": 1,
        "bytes": len(payload),
        "sha256": checkpoints._sha256(payload),
    }
    path.write_bytes(json.dumps(header).encode() + b"\n" + payload)
    with pytest.raises(CheckpointError, match="holds what this torch does not load|must hold a dictionary") as caught:
        load(path)
    assert "weights_only" not in str(caught.value) and not (tmp_path / "evil").exists()


# writing fails


@pytest.mark.parametrize("name", ["mkstemp", "fsync", "replace", "link and copy"])
def test_a_failed_write_says_where_and_how_much_is_free_and_leaves_the_old_one(saved, monkeypatch, name):
    def fails(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    if name == "mkstemp":
        monkeypatch.setattr(checkpoints.tempfile, name, fails)
    elif name == "link and copy":
        monkeypatch.setattr(checkpoints.os, "link", fails)
        monkeypatch.setattr(checkpoints.shutil, "copyfile", fails)
    else:
        monkeypatch.setattr(checkpoints.os, name, fails)
    message = (
        r"checkpoint\.lvm: [\d,]+ bytes cannot be written \(No space left on device\); [\d,]+ bytes are free there"
    )
    with pytest.raises(CheckpointError, match=message):
        save(saved, content(3.0))
    monkeypatch.undo()
    assert weight(load(saved)) == 2.0 and weight(load(previous(saved))) == 1.0
    assert not list(saved.parent.glob("*.part"))


def test_a_file_system_without_hard_links_gets_a_copy(saved, monkeypatch):
    monkeypatch.setattr(checkpoints.os, "link", lambda *args: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    save(saved, content(3.0))
    assert weight(load(saved)) == 3.0 and weight(load(previous(saved))) == 2.0


def test_the_disk_is_told_to_keep_the_file_before_it_gets_its_name_and_the_folder_after(path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(handle):
        order.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        fsync(handle)

    def noted_replace(source, target):
        order.append("rename")
        replace(source, target)

    monkeypatch.setattr(checkpoints.os, "fsync", noted_fsync)
    monkeypatch.setattr(checkpoints.os, "replace", noted_replace)
    save(path, content())
    assert order == ["file", "rename", "folder"]


def test_a_folder_that_cannot_be_written_to_is_noticed_by_the_probe(path, monkeypatch):
    probe(path, 1000)
    assert not list(path.parent.iterdir())

    def fails(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(checkpoints.tempfile, "mkstemp", fails)
    with pytest.raises(CheckpointError, match=r"1,000 bytes cannot be written \(Read-only file system\)"):
        probe(path, 1000)


def test_what_a_killed_process_left_is_swept_and_nothing_else(saved):
    for name in ("checkpoint.lvm.abc123.part", "checkpoint.lvm.previous.part", "notes.part", "checkpoint.lvm.txt"):
        (saved.parent / name).write_text("x")
    sweep(saved)
    names = ["checkpoint.lvm", "checkpoint.lvm.txt", "checkpoint.previous.lvm", "notes.part"]
    assert sorted(file.name for file in saved.parent.iterdir()) == names


def test_the_one_before_can_be_made_the_last_and_the_damaged_one_is_kept(saved):
    saved.write_bytes(HTML)
    checkpoints.put_previous_back(saved)
    assert weight(load(saved)) == 1.0 and not previous(saved).exists()
    assert (saved.parent / "checkpoint.damaged.lvm").read_bytes() == HTML
    save(saved, content(4.0))
    assert weight(load(previous(saved))) == 1.0


def test_the_error_is_an_error_of_the_operating_system():
    assert issubclass(CheckpointError, OSError)
    assert re.match("a: b", str(CheckpointError("a: b")))
