"""Data files too large for the package: checked before use, fetched when missing, whole or absent at every moment.

They lie in the folder that the environment variable ``LVMLIB_DATA`` names, else in the user's cache folder
(``pooch.os_cache("lvmlib")``). What lies there is used if the SHA-256 of its arrays is the expected one, and no
connection is opened. With ``LVMLIB_OFFLINE=1`` none is opened at all.
"""

import contextlib
import gzip
import hashlib
import io
import math
import os
import struct
import tempfile
import threading
import time
import urllib.parse
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

MAX_REDIRECTS = 5
CHUNK = 2**16


class DataIntegrityError(OSError):
    """A data file is missing, unreadable, or not the file that the library was released with."""


class DownloadError(DataIntegrityError):
    """A data file is missing and cannot be fetched or stored; the message has the reason of each mirror."""


class Expected(NamedTuple):
    """The shape of an array of bytes, and the SHA-256 of those bytes."""

    shape: tuple[int, ...]
    sha256: str


class Archive(NamedTuple):
    """What an ``.npz`` file holds, and where its arrays come from.

    `files` names the gzipped IDX file of each array below each of the `mirrors`; an archive without mirrors is never
    fetched. `advice` says what to do where it is missing.
    """

    name: str
    arrays: Mapping[str, Expected]
    mirrors: tuple[str, ...] = ()
    files: Mapping[str, str] = {}
    advice: str = ""


class Limits(NamedTuple):
    """Seconds: to connect, without a byte, and for all files from one mirror."""

    connect: float = 5.0
    read: float = 10.0
    total: float = 180.0


LIMITS = Limits()


def data_folder() -> Path:
    """Return the folder of the data files: ``LVMLIB_DATA``, else the user's cache folder. It need not exist.

    Raises:
        DownloadError: the user has no home folder, or pooch is not installed.
    """
    try:
        if given := os.environ.get("LVMLIB_DATA"):
            return Path(given).expanduser()
        import pooch

        return Path(pooch.os_cache("lvmlib")).expanduser()
    except (ImportError, RuntimeError) as error:
        raise DownloadError(f"no folder for data ({error}); set LVMLIB_DATA to one") from error


def load(archive: Archive, limits: Limits = LIMITS, plain: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Return the checked arrays of an archive; where its file is missing, fetch it once and keep it.

    Processes and threads may ask at the same time: one fetches, the others wait for it. A damaged file is replaced
    in the cache folder; in ``LVMLIB_DATA``, which is the reader's, it is refused.

    Args:
        archive: what is expected.
        limits: for each mirror.
        plain: beginnings of addresses that need no https; for tests with a server on the same machine.

    Raises:
        DataIntegrityError: the file in ``LVMLIB_DATA`` is not the expected one.
        DownloadError: the file is missing and no mirror gave it, ``LVMLIB_OFFLINE`` is set, or the folder cannot be
            written to. The final file is then absent, or what it was before.
    """
    path = data_folder() / archive.name
    state = "is missing"
    try:
        return read(path, archive.arrays)
    except FileNotFoundError:
        pass
    except DataIntegrityError as error:
        if os.environ.get("LVMLIB_DATA") or not archive.mirrors:
            raise
        state = f"is damaged ({error})"
    if not archive.mirrors:
        raise DownloadError(f"{path} is missing. {archive.advice}")
    if os.environ.get("LVMLIB_OFFLINE", "0") not in ("", "0"):
        raise DownloadError(
            f"{path} {state}, and LVMLIB_OFFLINE forbids to fetch it; unset LVMLIB_OFFLINE, "
            "or set LVMLIB_DATA to a folder that has the file"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _turn(path.parent, limits.total * len(archive.mirrors)):
            with contextlib.suppress(FileNotFoundError, DataIntegrityError):
                return read(path, archive.arrays)  # another process was faster
            _sweep(path)
            with whole_file(path) as file:  # opened first: a folder that cannot be written to costs no download
                arrays = _from_mirrors(path, archive, limits, plain)
                buffer = io.BytesIO()
                np.savez_compressed(buffer, **arrays)
                file.write(buffer.getbuffer())
            return arrays
    except DataIntegrityError:
        raise
    except OSError as error:
        raise DownloadError(
            f"{path} cannot be written ({error}); set LVMLIB_DATA to a folder that can, or to one that has the file"
        ) from error


def read(path: Path, arrays: Mapping[str, Expected]) -> dict[str, np.ndarray]:
    """Return the arrays of an ``.npz`` file if they are exactly those expected; memory is bounded by what is expected.

    Raises:
        FileNotFoundError: there is no such file.
        DataIntegrityError: the file cannot be read or holds anything else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(name.removesuffix(".npy") for name in archive.namelist())
            if names != sorted(arrays):
                raise ValueError(f"it holds {names}, expected {sorted(arrays)}")
            return {name: _read_member(archive, name, expected) for name, expected in arrays.items()}
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataIntegrityError(
            f"{path} is not the expected file: {error}; move it away, or set LVMLIB_DATA to a folder that has the "
            "right one"
        ) from error


def _read_member(archive: zipfile.ZipFile, name: str, expected: Expected) -> np.ndarray:
    with archive.open(f"{name}.npy") as member:
        content = member.read(math.prod(expected.shape) + CHUNK)  # reading to the end checks the CRC
    stream = io.BytesIO(content)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError(f"{name} is in another version of the npy format")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    if (shape, fortran_order, dtype) != (expected.shape, False, np.dtype(np.uint8)):
        raise ValueError(f"{name} is {dtype} of shape {shape}, expected uint8 of shape {expected.shape}")
    return _verified(name, content[stream.tell() :], expected)


def _verified(name: str, content: bytes, expected: Expected) -> np.ndarray:
    """Return the bytes as an array if they are the expected ones."""
    found = hashlib.sha256(content).hexdigest()
    if found != expected.sha256:
        raise ValueError(f"{name} has SHA-256 {found}, expected {expected.sha256}")
    return np.frombuffer(content, np.uint8).reshape(expected.shape).copy()  # the bytes themselves cannot be written to


def parse_idx(compressed: bytes, name: str, expected: Expected) -> np.ndarray:
    """Return the array in a gzipped IDX file of bytes; no more is unpacked than `expected` allows.

    Raises:
        ValueError: the bytes are no gzip file, or the file holds another array.
    """
    header = struct.pack(f">{1 + len(expected.shape)}I", 0x0800 + len(expected.shape), *expected.shape)
    size = len(header) + math.prod(expected.shape)
    try:
        if not compressed:
            raise EOFError("nothing came")
        with gzip.GzipFile(fileobj=io.BytesIO(compressed)) as file:
            content = file.read(size + 1)  # reading past the end checks the CRC and what follows
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{len(compressed)} bytes that are not a whole gzip file: {error}") from error
    if content[: len(header)] != header:
        raise ValueError(f"the header of {name} is {content[: len(header)].hex()}, expected {header.hex()}")
    if len(content) != size:
        raise ValueError(f"{name} holds {'more' if len(content) > size else 'fewer'} bytes than its header says")
    return _verified(name, content[len(header) :], expected)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside `path` that takes its name when the block ends without an error, and else vanishes."""
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            with contextlib.suppress(OSError):
                _locked(file.fileno())  # tells `_sweep` that somebody is writing
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o644)  # mkstemp made it readable for its owner only
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise


def _locked(handle: int) -> bool:
    """Try to lock an open file or folder; raise an ``OSError`` where the file system has no locks."""
    if fcntl is None:
        raise OSError("no locks on this system")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _turn(folder: Path, patience: float) -> Iterator[None]:
    """Let one process at a time into the block, or any after `patience` seconds, or where there are no locks.

    This saves downloads. That files are whole does not depend on it. The lock is on the folder itself, so that no file
    is left behind, and ends with the process.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            until = time.monotonic() + patience
            while not _locked(handle) and time.monotonic() < until:
                time.sleep(0.05)
        yield


def _sweep(path: Path) -> None:
    """Remove what killed processes have left: files that nobody holds a lock on."""
    for part in path.parent.glob(f"{path.name}.*.part"):
        with contextlib.suppress(OSError), open(part, "rb") as file:
            if _locked(file.fileno()):
                os.unlink(part)


def _from_mirrors(path: Path, archive: Archive, limits: Limits, plain: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return all arrays, each from the first mirror that gives the right one."""
    arrays, reasons = {}, []
    for mirror in archive.mirrors:
        deadline = time.monotonic() + limits.total
        for name in [name for name in archive.arrays if name not in arrays]:
            expected, url = archive.arrays[name], mirror + archive.files[name]
            try:
                content = _get(url, math.prod(expected.shape) + CHUNK, deadline, limits, plain)
                arrays[name] = parse_idx(content, name, expected)
            except ValueError as error:
                reasons.append(f"{url}: {error}")
            except (TimeoutError, ConnectionError) as error:
                reasons.append(f"{url}: {error}")
                break  # this mirror will not answer for the other files either
    if len(arrays) < len(archive.arrays):
        raise DownloadError(
            f"{path} is missing and could not be fetched:\n  "
            + "\n  ".join(reasons)
            + "\nTry again later, or set LVMLIB_DATA to a folder that has the file; LVMLIB_OFFLINE=1 asks nobody."
        )
    return arrays


def _get(url: str, most: int, deadline: float, limits: Limits, plain: tuple[str, ...]) -> bytes:
    """Return the content of an address: at most `most` bytes, before the deadline.

    Raises:
        ValueError: the address answers with something else than the file.
        ConnectionError, TimeoutError: it does not answer, or too slowly.
    """
    transfer = _Transfer(url, most, limits, plain)
    transfer.start()
    patience = max(0.0, min(limits.connect + limits.read, deadline - time.monotonic()))
    if not transfer.answered.wait(patience):
        transfer.abandon()
        raise TimeoutError(f"no answer within {patience:.3g} s")
    transfer.join(max(0.0, deadline - time.monotonic()))
    if transfer.is_alive():
        transfer.abandon()
        raise TimeoutError(
            f"not complete within the {limits.total:.3g} s for a mirror, {len(transfer.content)} bytes came"
        )
    if transfer.error is not None:
        raise transfer.error
    return bytes(transfer.content)


class _Transfer(threading.Thread):
    """One download by pooch in a thread of its own.

    The limits of a socket are per packet. Only a thread can be left behind when a name server is silent, or when a
    server sends a byte every few seconds. To pooch it is also the file to write into.
    """

    def __init__(self, url: str, most: int, limits: Limits, plain: tuple[str, ...]):
        super().__init__(daemon=True)
        self.url, self.most, self.limits, self.plain = url, most, limits, plain
        self.answered = threading.Event()
        self.content = bytearray()
        self.error: Exception | None = None
        self.abandoned = False
        self.response = None
        self.redirects = 0

    def run(self) -> None:
        try:
            self.check(self.url)
            import pooch

            download = pooch.HTTPDownloader(
                chunk_size=CHUNK, timeout=(self.limits.connect, self.limits.read), hooks={"response": self.inspect}
            )
            download(self.url, self, None)
        except Exception as error:  # whatever the packages below raise, it is this mirror's reason
            self.error = _reason(error, self.limits)
        finally:
            if self.response is not None:
                self.response.close()
            self.answered.set()

    def check(self, url: str) -> None:
        if not url.startswith(("https://", *self.plain)):
            raise ValueError(f"{url} is not https")

    def inspect(self, response, **_) -> None:
        """See each response before a redirect is followed."""
        self.response = response
        self.answered.set()
        if response.is_redirect:
            self.redirects += 1
            if self.redirects > MAX_REDIRECTS:
                raise ValueError(f"more than {MAX_REDIRECTS} redirects")
            self.check(urllib.parse.urljoin(response.url, response.headers["location"]))

    def write(self, chunk: bytes) -> None:
        if self.abandoned:
            raise TimeoutError("abandoned")
        self.content += chunk
        if len(self.content) > self.most:
            raise ValueError(f"more than {self.most} bytes came")

    def flush(self) -> None:
        """Do nothing: the content is in memory."""

    def abandon(self) -> None:
        """Let the thread end as soon as it notices."""
        self.abandoned = True
        with contextlib.suppress(Exception):
            self.response.raw.shutdown()  # urllib3 2.3 and later


def _reason(error: Exception, limits: Limits) -> Exception:
    """Return what went wrong as one of three types, in one line."""
    import requests

    if type(error) is ValueError:
        return error
    inner: BaseException = error
    while (cause := inner.__cause__ or inner.__context__) is not None:
        inner = cause
    text = " ".join(f"{type(inner).__name__}: {inner}".split())[:300]
    if isinstance(error, requests.exceptions.SSLError):
        return ConnectionError(f"the encrypted connection failed, perhaps a certificate; it stays required ({text})")
    if isinstance(error, requests.exceptions.ProxyError):
        return ConnectionError(f"the proxy failed, see the environment variable HTTPS_PROXY ({text})")
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return TimeoutError(f"no connection within {limits.connect:.3g} s")
    if isinstance(error, requests.exceptions.ReadTimeout) or isinstance(inner, TimeoutError):
        return TimeoutError(f"nothing came for {limits.read:.3g} s")
    if isinstance(error, requests.exceptions.ConnectionError):
        return ConnectionError(f"no connection ({text})")
    return ValueError(text)
