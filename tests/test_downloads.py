"""Data files: whatever the disk, the server or the process does, the file is complete or absent.

The server is on this machine and misbehaves on purpose; no test opens another connection.
"""

import contextlib
import errno
import gzip
import hashlib
import io
import itertools
import json
import os
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lvmlib import downloads
from lvmlib.downloads import Archive, DataIntegrityError, DownloadError, Expected, Limits, load, parse_idx, read

QUICK = Limits(connect=0.2, read=0.3, total=0.6)
PATIENT = Limits(connect=5.0, read=5.0, total=20.0)
SHAPES = {"train_images": (240, 28, 28), "train_labels": (240,), "test_images": (3, 28, 28), "test_labels": (3,)}
FILES = {name: f"{name}.gz" for name in SHAPES}
needs_locks = pytest.mark.skipif(downloads.fcntl is None, reason="this system has no file locks")


def make_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: random.integers(0, 256, shape, dtype=np.uint8) for name, shape in SHAPES.items()}


def expected(array: np.ndarray) -> Expected:
    return Expected(array.shape, hashlib.sha256(array.tobytes()).hexdigest())


def idx(array: np.ndarray, shape: tuple | None = None) -> bytes:
    shape = shape or array.shape
    return struct.pack(f">{1 + len(shape)}I", 0x0800 + len(shape), *shape) + array.tobytes()


def npz(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


ARRAYS = make_arrays()
EXPECTED = {name: expected(array) for name, array in ARRAYS.items()}
GOOD = {f"{name}.gz": gzip.compress(idx(array), mtime=0) for name, array in ARRAYS.items()}
BODY = GOOD["train_images.gz"]


class Server:
    """An HTTP server that does as told: `answers` maps a path to a function that yields bytes to send and waits."""

    def __init__(self, encryption: ssl.SSLContext | None = None):
        self.encryption = encryption
        self.answers, self.asked, self.stopped = {}, [], threading.Event()
        self.reached = threading.Event()  # set when an answer yields "reached"
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http{'s' if encryption else ''}://127.0.0.1:{self.listener.getsockname()[1]}/"
        self.threads = [threading.Thread(target=self.accept, daemon=True)]
        self.threads[0].start()

    def accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.threads.append(threading.Thread(target=self.serve, args=(connection,), daemon=True))
            self.threads[-1].start()

    def serve(self, connection):
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.suppress(OSError))
            stack.enter_context(connection)
            connection.settimeout(10)
            if self.encryption:
                connection = stack.enter_context(self.encryption.wrap_socket(connection, server_side=True))
            request = b""
            while b"\r\n\r\n" not in request:
                if not (received := connection.recv(4096)):
                    return
                request += received
                if request[:1] == b"\x16":  # it speaks TLS, and this server does not
                    connection.sendall(head(0, "400 Bad Request"))
                    return
            path = request.split()[1].decode().lstrip("/")
            self.asked.append(path)
            for item in self.answers.get(path, status(404))():
                if item == "reached":
                    self.reached.set()
                elif isinstance(item, bytes):
                    connection.sendall(item)
                elif self.stopped.wait(item):
                    return
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):  # until the other side has closed
                pass

    def close(self):
        self.stopped.set()
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(5)

    def mirror(self, name: str, **answers) -> str:
        """Serve all files rightly below a name, save those that have another answer."""
        self.answers |= {f"{name}/{file}": send(body) for file, body in GOOD.items()}
        self.answers |= {f"{name}/{array}.gz": answer for array, answer in answers.items()}
        return f"{self.url}{name}/"


def head(length: int | None, line: str = "200 OK", more: str = "") -> bytes:
    size = "" if length is None else f"Content-Length: {length}\r\n"
    return f"HTTP/1.1 {line}\r\nContent-Type: application/x-gzip\r\nConnection: close\r\n{size}{more}\r\n".encode()


def send(body: bytes, told: bool = True):
    return lambda: [head(len(body) if told else None), body]


def cut(body: bytes, at: int, told: bool):
    """Answer with the first `at` bytes, whether or not the whole length was told before."""
    return lambda: [head(len(body) if told else None), body[:at]]


def status(code: int, more: str = "", body: bytes = b"<html>sorry</html>"):
    return lambda: [head(len(body), f"{code} Sorry", more), body]


def redirect(target: str):
    return status(302, f"Location: {target}\r\n", b"")


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder for data, which does not exist yet, and an environment without other settings."""
    for name in ("LVMLIB_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("LVMLIB_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def cache(folder, monkeypatch):
    """The user's cache folder, with LVMLIB_DATA unset."""
    import pooch

    monkeypatch.delenv("LVMLIB_DATA")
    monkeypatch.setattr(pooch, "os_cache", lambda project: folder.parent / "cache" / project)
    return folder.parent / "cache" / "lvmlib"


@pytest.fixture
def no_sockets(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)


def archive(*mirrors: str) -> Archive:
    return Archive("mnist.npz", EXPECTED, mirrors, FILES)


def fetch(server: Server, *mirrors: str, limits: Limits = PATIENT) -> dict[str, np.ndarray]:
    return load(archive(*mirrors), limits, (server.url,))


def same(arrays: dict[str, np.ndarray]) -> bool:
    return arrays.keys() == ARRAYS.keys() and all(np.array_equal(arrays[name], ARRAYS[name]) for name in ARRAYS)


def held(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def refused(server: Server, folder: Path, *mirrors: str, limits: Limits = PATIENT) -> str:
    """Return the message of the refusal, after a look at what it left: nothing."""
    with pytest.raises(DownloadError) as caught:
        fetch(server, *mirrors, limits=limits)
    assert held(folder) == []
    return str(caught.value)


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# what works


def test_a_missing_file_is_fetched_once_and_kept(server, folder):
    mirror = server.mirror("one")
    assert same(fetch(server, mirror))
    assert held(folder) == ["mnist.npz"]
    assert same(fetch(server, mirror))
    assert sorted(server.asked) == sorted(f"one/{file}" for file in GOOD)


def test_a_present_file_opens_no_socket(folder, no_sockets):
    put(folder / "mnist.npz", npz(ARRAYS))
    assert same(load(archive("https://example.org/")))


def test_without_lvmlib_data_the_file_goes_to_the_users_cache_folder(server, cache):
    assert same(fetch(server, server.mirror("one")))
    assert held(cache) == ["mnist.npz"]


def test_an_empty_lvmlib_data_is_no_folder(cache, monkeypatch):
    monkeypatch.setenv("LVMLIB_DATA", "")
    assert downloads.data_folder() == cache


def test_the_arrays_can_be_written_to(server, folder):
    for arrays in (fetch(server, server.mirror("one")), fetch(server)):
        arrays["train_labels"][0] = 1


def test_a_server_that_tells_no_length_is_understood(server, folder):
    assert same(fetch(server, server.mirror("one", train_images=send(BODY, told=False))))


def test_a_redirect_within_the_allowed_addresses_is_followed(server, folder):
    server.answers["elsewhere"] = send(BODY)
    assert same(fetch(server, server.mirror("one", train_images=redirect("/elsewhere"))))


def test_importing_the_library_imports_no_package_for_downloads():
    script = "import sys, lvmlib.datasets; print({'pooch', 'requests', 'urllib3'} & set(sys.modules))"
    environment = os.environ | {"PYTHONPATH": str(Path(downloads.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "set()", done.stderr


# C: files


DAMAGES = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "last byte missing": lambda content: content[:-1],
    "html page": lambda content: b"<html><body>404 Not Found</body></html>",
    "one flipped bit": lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
    "junk in front of half": lambda content: b"junk" + content[len(content) // 2 :],
}
OTHERS = {
    "other numbers": make_arrays(1),
    "one flipped pixel": ARRAYS | {"test_images": ARRAYS["test_images"] ^ np.eye(28, dtype=np.uint8)},
    "train in place of test": ARRAYS | {"test_images": ARRAYS["train_images"], "test_labels": ARRAYS["train_labels"]},
    "first training images in place of test": ARRAYS | {"test_images": ARRAYS["train_images"][:3]},
    "other names": {name.replace("images", "x"): array for name, array in ARRAYS.items()},
    "one array less": {name: array for name, array in ARRAYS.items() if name != "test_labels"},
    "one array more": ARRAYS | {"version": np.zeros(1, np.uint8)},
    "int64": ARRAYS | {"train_labels": ARRAYS["train_labels"].astype(np.int64)},
    "Fortran order": ARRAYS | {"train_images": np.asfortranarray(ARRAYS["train_images"])},
    "flat": ARRAYS | {"train_images": ARRAYS["train_images"].reshape(240, 784)},
    "floats": ARRAYS | {"train_images": ARRAYS["train_images"] / 255},
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_in_the_readers_folder_is_refused_and_kept(damage, folder, no_sockets):
    path = put(folder / "mnist.npz", damage(npz(ARRAYS)))
    content = path.read_bytes()
    with pytest.raises(DataIntegrityError, match=r"mnist\.npz is not the expected file: .*LVMLIB_DATA"):
        load(archive("https://example.org/"))
    assert path.read_bytes() == content


@pytest.mark.parametrize("arrays", OTHERS.values(), ids=OTHERS)
def test_a_file_with_other_arrays_is_refused(arrays, folder):
    path = put(folder / "mnist.npz", npz(arrays))
    with pytest.raises(DataIntegrityError, match="expected"):
        read(path, EXPECTED)


def test_any_flipped_byte_is_refused_or_harmless(tmp_path):
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    content = npz({"a": array})
    wrong = []
    for place in range(len(content)):
        path = put(tmp_path / "a.npz", content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :])
        with contextlib.suppress(DataIntegrityError):
            if not np.array_equal(read(path, {"a": expected(array)})["a"], array):
                wrong.append(place)
    assert wrong == []


def test_a_file_cut_anywhere_is_refused(tmp_path):
    array = np.arange(12, dtype=np.uint8)
    content = npz({"a": array})
    for size in range(len(content)):
        with pytest.raises(DataIntegrityError):
            read(put(tmp_path / "a.npz", content[:size]), {"a": expected(array)})


def test_the_message_has_both_checksums(folder):
    with pytest.raises(DataIntegrityError, match=f"test_labels has SHA-256 .*, expected {EXPECTED['test_labels'][1]}"):
        read(put(folder / "mnist.npz", npz(ARRAYS | {"test_labels": ARRAYS["test_labels"] ^ 1})), EXPECTED)


def test_a_header_that_claims_gigabytes_costs_no_memory(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (60_000, 10_000_000)}
    )
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", header.getvalue() + bytes(50_000_000))
    tracemalloc.start()
    with pytest.raises(DataIntegrityError, match="expected uint8 of shape"):
        read(path, {"a": expected(np.zeros(12, np.uint8))})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_a_folder_in_place_of_the_file_is_refused(folder):
    (folder / "mnist.npz").mkdir(parents=True)
    with pytest.raises(DataIntegrityError, match="LVMLIB_DATA"):
        load(archive("https://example.org/"))


@pytest.mark.parametrize("content", [b"", b"<html>", npz(OTHERS["one array more"])], ids=["empty", "html", "version"])
def test_a_damaged_file_in_the_cache_folder_is_replaced(content, server, cache):
    path = put(cache / "mnist.npz", content)
    assert same(fetch(server, server.mirror("one")))
    assert same(read(path, EXPECTED)) and held(cache) == ["mnist.npz"]


def test_a_damaged_file_in_the_cache_folder_is_named_when_offline(cache, monkeypatch, no_sockets):
    put(cache / "mnist.npz", b"")
    monkeypatch.setenv("LVMLIB_OFFLINE", "1")
    with pytest.raises(DownloadError, match=r"mnist\.npz is damaged .*LVMLIB_OFFLINE"):
        load(archive("https://example.org/"))


SMALL = np.arange(6, dtype=np.uint8).reshape(2, 3)
SMALL_IDX = idx(SMALL)
WRONG_IDX = {
    "empty": b"",
    "html page": b"<html><body>404 Not Found</body></html>",
    "not compressed": SMALL_IDX,
    "trailing junk": gzip.compress(SMALL_IDX) + b"junk",
    "junk inside": gzip.compress(SMALL_IDX + b"junk"),
    "more images than it holds": gzip.compress(idx(SMALL, (60_000, 3))),
    "4 GB of images": gzip.compress(idx(SMALL, (2**32 - 1, 3))),
    "train in place of test": gzip.compress(idx(np.zeros((5, 3), np.uint8))),
    "labels in place of images": gzip.compress(idx(np.arange(6, dtype=np.uint8))),
    "floats": gzip.compress(b"\0\0\x0d\2" + SMALL_IDX[4:]),
    "other numbers": gzip.compress(idx(SMALL + 1)),
    "one byte too few": gzip.compress(SMALL_IDX[:-1]),
}


def test_an_idx_file_is_read():
    assert np.array_equal(parse_idx(gzip.compress(SMALL_IDX), "x", expected(SMALL)), SMALL)


@pytest.mark.parametrize("content", WRONG_IDX.values(), ids=WRONG_IDX)
def test_a_wrong_idx_file_is_refused(content):
    with pytest.raises(ValueError, match=r"not a whole gzip file|header of x is|than its header says|SHA-256"):
        parse_idx(content, "x", expected(SMALL))


def test_an_idx_file_cut_anywhere_is_refused():
    content = gzip.compress(SMALL_IDX)
    for size in range(len(content)):
        with pytest.raises(ValueError, match="not a whole gzip file"):
            parse_idx(content[:size], "x", expected(SMALL))


def test_any_flipped_byte_of_an_idx_file_is_refused_or_harmless():
    content = gzip.compress(SMALL_IDX)
    for place, bit in itertools.product(range(len(content)), range(8)):
        with contextlib.suppress(ValueError):
            flipped = content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]
            assert np.array_equal(parse_idx(flipped, "x", expected(SMALL)), SMALL)


def test_a_gzip_bomb_is_not_unpacked():
    bomb = gzip.compress(SMALL_IDX + bytes(100_000_000), compresslevel=1)
    tracemalloc.start()
    with pytest.raises(ValueError, match="more bytes than its header says"):
        parse_idx(bomb, "x", expected(SMALL))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_train_in_place_of_test_on_the_mirror_is_refused(server, folder):
    mirror = server.mirror("one", test_images=send(BODY), test_labels=send(GOOD["train_labels.gz"]))
    message = refused(server, folder, mirror)
    assert "test_images.gz: more than" in message and "the header of test_labels is 00000801000000f0" in message


# C11: folders


def test_a_path_with_spaces_and_unicode_is_used(server, folder, monkeypatch):
    odd = folder / "Zwei Wörter [1] 数字"
    monkeypatch.setenv("LVMLIB_DATA", str(odd))
    assert same(fetch(server, server.mirror("one"))) and same(fetch(server))
    assert held(odd) == ["mnist.npz"]


def test_a_home_folder_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    monkeypatch.setenv("LVMLIB_DATA", "~/mine")
    assert downloads.data_folder() == folder / "mine"


def test_a_user_without_a_home_folder_is_told_what_to_set(folder, monkeypatch):
    monkeypatch.setenv("LVMLIB_DATA", "~nobody-has-this-name/data")
    with pytest.raises(DownloadError, match="set LVMLIB_DATA"):
        load(archive("https://example.org/"))


def test_without_pooch_the_message_says_what_to_set(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(DownloadError, match="pooch.*set LVMLIB_DATA"):
        load(archive("https://example.org/"))


def test_a_file_in_place_of_the_folder_is_named(server, cache):
    put(cache, b"")
    with pytest.raises(DownloadError, match=r"lvmlib.* cannot be written .*LVMLIB_DATA"):
        fetch(server, server.mirror("one"))
    assert cache.read_bytes() == b"" and server.asked == []


def test_a_read_only_folder_costs_no_download(server, folder, monkeypatch):
    folder.mkdir()
    if os.name != "posix" or os.geteuid() == 0:  # root may write anywhere

        def mkstemp(**options):
            raise PermissionError(errno.EACCES, "Permission denied", str(options["dir"]))

        monkeypatch.setattr(downloads.tempfile, "mkstemp", mkstemp)
    else:
        folder.chmod(0o500)
    message = refused(server, folder, server.mirror("one"))
    folder.chmod(0o700)
    assert f"{folder / 'mnist.npz'} cannot be written" in message and "LVMLIB_DATA" in message
    assert server.asked == []


def test_a_full_disk_leaves_nothing(server, folder):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        assert "cannot be written" in refused(server, folder, server.mirror("one"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
def test_a_failure_while_storing_leaves_what_was_there(step, server, cache, monkeypatch):
    path = put(cache / "mnist.npz", b"old")

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(downloads.os, step, fail)
    with pytest.raises(DownloadError, match="cannot be written"):
        fetch(server, server.mirror("one"))
    assert path.read_bytes() == b"old" and held(cache) == ["mnist.npz"]


# D: the network


@pytest.mark.parametrize("value", ["1", "yes"])
def test_offline_opens_no_socket(value, folder, monkeypatch, no_sockets):
    monkeypatch.setenv("LVMLIB_OFFLINE", value)
    with pytest.raises(DownloadError, match=r"mnist\.npz is missing, and LVMLIB_OFFLINE forbids .* LVMLIB_DATA"):
        load(archive("https://example.org/"))
    assert held(folder) == []


@pytest.mark.parametrize("value", ["", "0"])
def test_offline_0_is_online(value, server, folder, monkeypatch):
    monkeypatch.setenv("LVMLIB_OFFLINE", value)
    assert same(fetch(server, server.mirror("one")))


def test_an_archive_without_mirrors_says_how_to_get_it(folder, no_sockets):
    with pytest.raises(DownloadError, match=r"mnist\.npz is missing. Ask a friend."):
        load(Archive("mnist.npz", EXPECTED, advice="Ask a friend."))


def test_without_a_server_the_refusal_is_quick_and_lists_all_mirrors(server, folder):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    start = time.monotonic()
    with pytest.raises(DownloadError) as caught:
        load(archive(closed + "one/", closed + "two/"), Limits(), (closed,))
    assert time.monotonic() - start < 5
    for part in (
        "/one/train_images.gz: no connection",
        "/two/train_images.gz: no conn",
        "LVMLIB_DATA",
        "LVMLIB_OFFLINE=1",
    ):
        assert part in str(caught.value)
    assert held(folder) == []


def drip(content: bytes, every: float = 0.1):
    for byte in content:
        yield bytes([byte])
        yield every


STALLS = {
    "before the answer": lambda: [30],
    "in the header": lambda: [head(len(BODY))[:20], 30],
    "header byte by byte": lambda: drip(head(len(BODY)) + BODY),
    "before the body": lambda: [head(len(BODY)), 30],
    "in the body": lambda: [head(len(BODY)), BODY[: len(BODY) // 2], 30],
    "before the last byte": lambda: [head(len(BODY)), BODY[:-1], 30],
    "body byte by byte": lambda: itertools.chain([head(len(BODY))], drip(BODY)),
}


@pytest.mark.parametrize("answer", STALLS.values(), ids=STALLS)
def test_a_server_that_stalls_is_left_within_the_limits(answer, server, folder):
    start = time.monotonic()
    message = refused(server, folder, server.mirror("one", train_images=answer), limits=QUICK)
    assert time.monotonic() - start < 5
    assert any(words in message for words in ("nothing came for 0.3 s", "no answer within", "not complete within"))


@pytest.mark.parametrize("name", [name for name in STALLS if name != "body byte by byte"])
def test_silence_is_noticed_long_before_the_total_limit(name, server, folder):
    start = time.monotonic()
    refused(server, folder, server.mirror("one", train_images=STALLS[name]), limits=QUICK._replace(total=60.0))
    assert time.monotonic() - start < 8  # a header byte by byte takes longer


def test_a_server_that_accepts_no_connection_is_left(folder):
    """Linux drops what comes after the queue is full, like a firewall."""
    if sys.platform != "linux":
        pytest.skip("other systems answer when the queue is full")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        with pytest.raises(DownloadError, match=r"train_images.gz: no connection within 0.2 s"):
            load(archive(url), QUICK._replace(total=60.0), (url,))


def test_a_mirror_that_does_not_answer_is_asked_for_one_file(server, folder):
    refused(server, folder, server.mirror("one", train_images=STALLS["before the answer"]), limits=QUICK)
    assert server.asked == ["one/train_images.gz"]


def test_after_a_stall_the_next_mirror_is_asked(server, folder):
    one, two = server.mirror("one", test_images=STALLS["in the body"]), server.mirror("two")
    assert same(fetch(server, one, two, limits=Limits(connect=0.2, read=0.2, total=2.0)))
    assert held(folder) == ["mnist.npz"]


def test_a_transfer_past_its_deadline_ends(server, folder):
    before = set(threading.enumerate())
    refused(server, folder, server.mirror("one", train_images=STALLS["body byte by byte"]), limits=QUICK)
    left = [thread for thread in threading.enumerate() if isinstance(thread, downloads._Transfer)]
    for thread in left:
        thread.join(5)
    assert not [thread for thread in left if thread.is_alive() and thread not in before]


PLACES = {"0": 0, "1": 1, "half": len(BODY) // 2, "last - 1": len(BODY) - 1}


@pytest.mark.parametrize("told", [True, False], ids=["length told", "length not told"])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_cut_connection_leaves_nothing_and_the_next_mirror_is_asked(place, told, server, folder):
    one = server.mirror("one", train_images=cut(BODY, place, told))
    assert "one/train_images.gz: " in refused(server, folder, one)
    assert same(fetch(server, one, server.mirror("two")))
    assert held(folder) == ["mnist.npz"]


def test_a_connection_cut_before_the_answer_leaves_nothing(server, folder):
    assert "no connection" in refused(server, folder, server.mirror("one", train_images=lambda: []))


STATUSES = (204, 304, 403, 404, 429, 500, 503)


@pytest.mark.parametrize("code", STATUSES)
def test_another_status_is_refused_and_the_next_mirror_is_asked(code, server, folder):
    one = server.mirror("one", train_images=status(code, body=b"" if code in (204, 304) else b"<html>sorry</html>"))
    message = refused(server, folder, one)
    assert f"{code} " in message if code >= 400 else "not a whole gzip file" in message
    assert same(fetch(server, one, server.mirror("two")))


def test_a_redirect_loop_is_left(server, folder):
    one = server.mirror("one", train_images=redirect("/one/train_images.gz"))
    assert "more than 5 redirects" in refused(server, folder, one)
    assert server.asked.count("one/train_images.gz") == 6


def test_a_redirect_to_plain_http_is_not_followed(server, folder):
    other = Server()
    other.answers["train_images.gz"] = send(BODY)
    one = server.mirror("one", train_images=redirect(f"{other.url}train_images.gz"))
    message = refused(server, folder, one)
    other.close()
    assert "is not https" in message and other.asked == []


def test_a_mirror_with_plain_http_is_not_asked(server, folder):
    with pytest.raises(DownloadError, match="is not https"):
        load(archive(server.mirror("one")), PATIENT)
    assert server.asked == []


def test_wrong_bytes_of_the_right_length_are_refused_and_the_next_mirror_is_asked(server, folder):
    wrong = gzip.compress(idx(make_arrays(1)["train_images"]), mtime=0)
    one = server.mirror("one", train_images=send(wrong))
    assert f"expected {EXPECTED['train_images'].sha256}" in refused(server, folder, one)
    assert same(fetch(server, one, server.mirror("two")))


@pytest.mark.parametrize("content", [b"", b"<html>sign in</html>", BODY + b"junk"], ids=["empty", "html", "junk"])
def test_wrong_content_with_status_200_is_refused(content, server, folder):
    assert "not a whole gzip file" in refused(server, folder, server.mirror("one", train_images=send(content)))


def test_mirrors_that_lack_one_file_each_give_the_others(server, folder):
    one, two = server.mirror("one", train_images=status(404)), server.mirror("two", test_images=status(404))
    assert same(fetch(server, one, two))
    assert server.asked.count("two/train_images.gz") == 1 and "two/test_images.gz" not in server.asked


def test_an_endless_answer_is_left(server, folder):
    endless = lambda: itertools.chain([head(None)], itertools.repeat(bytes(10_000)))  # noqa: E731
    assert "bytes came" in refused(server, folder, server.mirror("one", test_labels=endless))


def test_a_length_that_is_no_number_is_refused(server, folder):
    odd = lambda: [head(None, more="Content-Length: many\r\n"), BODY]  # noqa: E731
    assert "one/train_images.gz: " in refused(server, folder, server.mirror("one", train_images=odd))


def test_a_server_without_encryption_is_not_asked_in_plain(server, folder):
    encrypted = server.mirror("one").replace("http://", "https://")
    assert "the encrypted connection failed" in refused(server, folder, encrypted)
    assert server.asked == []


@pytest.fixture
def certificate(tmp_path):
    """A certificate for this machine that nobody has signed."""
    if not (openssl := shutil.which("openssl")):
        pytest.skip("there is no openssl to make a certificate")
    path = tmp_path / "certificate.pem"
    command = (
        f"{openssl} req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(
        [*command.split(), "-keyout", path, "-out", tmp_path / "public.pem"], check=True, capture_output=True
    )
    path.write_bytes(path.read_bytes() + (tmp_path / "public.pem").read_bytes())
    return path


@pytest.fixture
def encrypted(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = Server(context)
    yield server
    server.close()


def test_a_certificate_that_nobody_signed_is_refused(encrypted, folder):
    with pytest.raises(DownloadError, match=r"the encrypted connection failed, perhaps a certificate.*VERIFY_FAILED"):
        load(archive(encrypted.mirror("one")), PATIENT)
    assert encrypted.asked == [] and held(folder) == []


def test_https_works_and_is_never_left_by_a_redirect(encrypted, server, folder, certificate, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    server.answers["train_images.gz"] = send(BODY)
    leaving = encrypted.mirror("one", train_images=redirect(f"{server.url}train_images.gz"))
    with pytest.raises(DownloadError, match=r"http://.*train_images.gz is not https"):
        load(archive(leaving), PATIENT)
    assert server.asked == [] and held(folder) == []
    assert same(load(archive(leaving, encrypted.mirror("two")), PATIENT))


def test_a_failed_proxy_is_named(server, folder, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = f"http://127.0.0.1:{listener.getsockname()[1]}"
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("HTTPS_PROXY", closed)
    assert "the proxy failed, see the environment variable HTTPS_PROXY" in refused(server, folder, "https://localhost/")


# D6, D7: several at once, and killed ones


SCRIPT = """
import json, os, sys, time, types
sys.modules["lvmlib"] = package = types.ModuleType("lvmlib")  # spares the import of torch
package.__path__ = [sys.argv[1]]
from lvmlib import downloads
import pooch, requests

job = json.loads(sys.argv[2])
arrays = {name: downloads.Expected(tuple(shape), sha256) for name, (shape, sha256) in job["arrays"].items()}
archive = downloads.Archive("mnist.npz", arrays, tuple(job["mirrors"]), job["files"])
exec(job["first"])


def work():
    found = downloads.load(archive, downloads.Limits(*job["limits"]), (job["plain"],))
    return all(downloads._verified(name, array.tobytes(), arrays[name]) is not None for name, array in found.items())


if job["processes"] == 1:
    work()
else:
    children = []
    for _ in range(job["processes"]):
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if work() else 2)
            except BaseException as error:
                print(error, file=sys.stderr, flush=True)
                os._exit(1)
        children.append(child)
    print(sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 for child in children))
"""


def process(server: Server, mirror: str, processes: int = 1, first: str = "") -> subprocess.Popen:
    job = {
        "arrays": EXPECTED,
        "mirrors": [mirror],
        "files": FILES,
        "plain": server.url,
        "limits": PATIENT,
        "processes": processes,
        "first": first,
    }
    command = [sys.executable, "-c", SCRIPT, str(Path(downloads.__file__).parent), json.dumps(job)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


@needs_fork
@needs_locks
def test_of_eight_processes_one_fetches_and_all_get_the_file(server, folder):
    slow = lambda: [head(len(BODY)), BODY[:1000], 0.3, BODY[1000:]]  # noqa: E731
    output, errors = process(server, server.mirror("one", train_images=slow), 8).communicate(timeout=60)
    assert output.strip() == "8", errors
    assert len(server.asked) == len(GOOD)
    assert held(folder) == ["mnist.npz"] and same(fetch(server))


@needs_fork
def test_eight_processes_without_locks_all_get_the_file(server, folder):
    slow = lambda: [head(len(BODY)), BODY[:1000], 0.3, BODY[1000:]]  # noqa: E731
    mirror = server.mirror("one", train_images=slow)
    output, errors = process(server, mirror, 8, "downloads.fcntl = None").communicate(timeout=60)
    assert output.strip() == "8", errors
    assert len(server.asked) == 8 * len(GOOD)
    assert held(folder) == ["mnist.npz"] and same(fetch(server))


@needs_locks
def test_of_eight_threads_one_fetches_and_all_get_the_file(server, folder):
    mirror, results = server.mirror("one"), []
    threads = [threading.Thread(target=lambda: results.append(same(fetch(server, mirror)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 8 and len(server.asked) == len(GOOD)
    assert held(folder) == ["mnist.npz"]


@needs_locks
def test_a_process_that_never_ends_does_not_hold_the_others_for_ever(server, folder):
    folder.mkdir()
    with downloads._turn(folder, 0.0):
        assert same(fetch(server, server.mirror("one"), limits=Limits(connect=1.0, read=1.0, total=0.5)))


@needs_locks
def test_a_process_killed_in_a_download_leaves_nothing_to_the_next(server, folder):
    half = lambda: [head(len(BODY)), BODY[: len(BODY) // 2], "reached", 60]  # noqa: E731
    killed = process(server, server.mirror("one", train_images=half))
    assert server.reached.wait(30)
    killed.kill()
    killed.communicate(timeout=10)
    assert "mnist.npz" not in held(folder) and len(held(folder)) == 1
    assert same(fetch(server, server.mirror("two")))
    assert held(folder) == ["mnist.npz"]


@needs_locks
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_process_killed_while_storing_leaves_nothing_to_the_next(step, server, folder):
    first = f"downloads.os.{step} = lambda *_: (print('here', flush=True), time.sleep(60))"
    killed = process(server, server.mirror("one"), first=first)
    assert killed.stdout.readline().strip() == "here"
    killed.kill()
    killed.communicate(timeout=10)
    assert "mnist.npz" not in held(folder) and len(held(folder)) == 1
    assert same(fetch(server, server.mirror("two")))
    assert held(folder) == ["mnist.npz"]


@needs_locks
def test_a_file_that_somebody_is_writing_is_not_swept(folder):
    stale = put(folder / "mnist.npz.stale.part", b"")
    other = put(folder / "notes.part", b"")
    with downloads.whole_file(folder / "mnist.npz") as file:
        downloads._sweep(folder / "mnist.npz")
        assert not stale.exists() and other.exists()
        file.write(b"whole")
    assert (folder / "mnist.npz").read_bytes() == b"whole"


def test_an_interrupted_download_leaves_nothing(server, folder, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(downloads, "_from_mirrors", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch(server, server.mirror("one"))
    assert held(folder) == []
