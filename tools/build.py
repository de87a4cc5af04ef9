"""Build the book: check the equations, execute the chapters, write the pages, say what it took. `make book` calls this.

What is still valid is used again. What is older than the sources it was made from is removed first.
"""

import argparse
import concurrent.futures
import fcntl
import gzip
import hashlib
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "_build"
HTML = BUILD / "html"
CACHE = BUILD / ".jupyter_cache"
DOCTREES = BUILD / ".doctrees"
EQUATIONS = BUILD / "equations.json"
PROFILE = BUILD / "ipython"
STATE = BUILD / "state.json"
WORKERS = 2
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# MathJax fonts that a page with ordinary formulas loads.
FONTS = ("Main-Regular", "Main-Bold", "Math-Italic", "AMS-Regular", "Calligraphic-Regular", "Size1-Regular",
         "Size2-Regular", "Size3-Regular", "Size4-Regular", "Zero")  # fmt: skip


class BuildError(Exception):
    """A step failed; the message says which and why."""


def say(text: str = "") -> None:
    print(text, flush=True)


# What may be used again


def digest(*patterns: str) -> str:
    """Hash names and contents of the files that match, without notebooks' by-products."""
    value = hashlib.sha256(sys.version.encode())
    for path in sorted({path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}):
        if "__pycache__" not in path.parts and path.suffix != ".pyc":
            value.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return value.hexdigest()


def keys() -> dict[str, str]:
    """Return a key per kind of output: outputs made under another key are stale."""
    library = ("lvmlib/**/*", "requirements.txt", "pyproject.toml")
    data = ("book/data/**/*", "book/*.csv", "book/*.json", "book/*.npz", "book/*.pt", "book/*.py")
    chapters = (*library, *data, "tools/ipython_startup.py")
    equations = (*library, "tests/*.py")
    pages = (*chapters, *equations, "book/_ext/*", "book/_static/**/*", "_config.yml", "_toc.yml")
    return {"chapters": digest(*chapters), "equations": digest(*equations), "pages": digest(*pages)}


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1), "utf-8")
    part.replace(path)


def remove(*paths: Path) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def remove_stale(cold: bool) -> None:
    """Remove outputs that were made from other sources than those at hand, then note the sources."""
    old, new = read_json(STATE).get("keys", {}), keys()
    outputs = {
        "chapters": (CACHE, DOCTREES, HTML, BUILD / "jupyter_execute"),
        "equations": (EQUATIONS, DOCTREES, HTML),
        "pages": (DOCTREES, HTML),
    }
    for kind, paths in outputs.items():
        if cold or old.get(kind) != new[kind]:
            if any(path.exists() for path in paths):
                say(f"{kind}: {'cold build' if cold else 'sources changed'}, earlier outputs removed")
            remove(*paths)
    state = {"keys": new, "times": {} if cold or old.get("chapters") != new["chapters"] else times()}
    write_json(STATE, state)


def times() -> dict:
    return read_json(STATE).get("times", {})


# Equations


def check_equations() -> None:
    if EQUATIONS.exists():
        say(f"equations: {len(read_json(EQUATIONS))} verified earlier, nothing changed since")
        return
    say("equations: checking …")
    command = [sys.executable, "-m", "tests.equations", "--write", str(EQUATIONS)]
    if subprocess.run(command, cwd=ROOT, env=environment()).returncode:
        EQUATIONS.unlink(missing_ok=True)
        raise BuildError("a check of an equation failed (python -m tests.equations)")
    say(f"equations: {len(read_json(EQUATIONS))} verified")


# Chapters


def environment() -> dict[str, str]:
    """Return the environment of kernels and tools: one thread, this tree's library, nobody's own IPython settings.

    LVMBOOK_PAGE makes a figure with sliders leave in its cell what a page needs (`lvmlib.teaching.widgets`).
    """
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {
        **os.environ,
        **threads,
        "PYTHONPATH": paths,
        "IPYTHONDIR": str(PROFILE),
        "LVMBOOK_PAGE": "1",
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def table_of_contents() -> list[str]:
    """Return the pages of `_toc.yml`; complain about those that do not exist."""
    names = re.findall(r"^[\s-]*(?:root|file):\s*[\"']?([^\s\"'#]+)", (ROOT / "_toc.yml").read_text("utf-8"), re.M)
    missing = [name for name in names if not any((ROOT / f"{name}{end}").exists() for end in (".ipynb", ".md"))]
    if missing:
        raise BuildError("_toc.yml names pages that do not exist: " + ", ".join(missing))
    return names


def chapters() -> list[Path]:
    return [path for name in table_of_contents() if (path := ROOT / f"{name}.ipynb").exists()]


def open_cache():
    from jupyter_cache import get_cache

    return get_cache(CACHE)


def read_notebook(path: Path):
    import nbformat

    return nbformat.read(path, as_version=4)


def fingerprint(notebook) -> str:
    return open_cache().create_hashed_notebook(notebook)[1]


def execute_chapters() -> None:
    """Execute what the cache does not hold, two chapters at a time."""
    import nbformat
    from jupyter_cache.base import CacheBundleIn

    remove(PROFILE)
    (PROFILE / "profile_default" / "startup").mkdir(parents=True)
    shutil.copy(ROOT / "tools" / "ipython_startup.py", PROFILE / "profile_default" / "startup" / "00-lvmbook.py")
    cache, waiting, known = open_cache(), [], times()
    for path in chapters():
        notebook = read_notebook(path)
        try:
            cache.match_cache_notebook(notebook)
        except KeyError:
            waiting.append((path, notebook))
    say(f"chapters: {len(chapters()) - len(waiting)} in the cache, {len(waiting)} to execute")
    failures = []
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        jobs = {pool.submit(execute, path, notebook): (path, notebook) for path, notebook in waiting}
        for job in concurrent.futures.as_completed(jobs):
            path, notebook = jobs[job]
            took, failure = job.result()
            if failure:
                failures.append(path.name)
                say(f"\nFAILED {path.relative_to(ROOT)}: {failure}\n")
                continue
            say(f"  {path.relative_to(ROOT)}: {line_of_times(took)}")
            bundle = CacheBundleIn(nbformat.from_dict(notebook), str(path), data={"execution_seconds": took["wall"]})
            cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
            known[fingerprint(notebook)] = took
            write_json(STATE, read_json(STATE) | {"times": known})
    if failures:
        raise BuildError("these chapters did not run to their end: " + ", ".join(sorted(failures)))


def execute(path: Path, notebook) -> tuple[dict, str]:
    """Execute one chapter in place; return what it took and what went wrong, if anything."""
    from nbclient import NotebookClient

    limit = int(re.search(r"^\s+timeout:\s*(\d+)", (ROOT / "_config.yml").read_text("utf-8"), re.M).group(1))
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=limit,
            kernel_name="python3",
            resources={"metadata": {"path": str(path.parent)}},
            record_timing=False,
            extra_arguments=["--IPKernelApp.log_level=40"],
        )
        try:
            client.execute(env=environment() | {"LVMBOOK_TIMES": folder})
            failure = ""
        except Exception as error:
            failure = describe(notebook, error)
        reports = [read_json(report) for report in Path(folder).glob("*.json")]
    took = {
        "wall": time.monotonic() - start,
        "cpu": sum(report.get("cpu_seconds", 0.0) for report in reports),
        "peak_mb": max((report.get("peak_mb", 0.0) for report in reports), default=0.0),
    }
    return took, failure


def describe(notebook, error: Exception) -> str:
    """Name the cell that failed, show its source and the traceback."""
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    failed = [cell for cell in codes if any(output.output_type == "error" for output in cell.outputs)]
    begun = [cell for cell in codes if cell.execution_count is not None]
    cell = (failed or begun[-1:] or codes[:1] or [None])[0]
    if cell is None:
        return f"{type(error).__name__}: {error}"
    # The traceback of a cell that raised begins with its source; other errors know nothing of cells.
    text = getattr(error, "traceback", "") or f"{cell.source}\n\n{type(error).__name__}: {error}"
    return f"code cell {codes.index(cell) + 1} of {len(codes)}\n\n{COLOUR.sub('', text)}"


# Pages


def write_pages() -> None:
    say("pages: writing …")
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    command += ["build", ".", "-n", "-W", "--keep-going", "-q"]
    result = subprocess.run(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    (BUILD / "sphinx.log").write_text(result.stdout, "utf-8")
    if result.returncode:
        # What follows is the traceback of jupyter-book itself.
        say(COLOUR.sub("", result.stdout.split("\nTraceback (most recent call last)")[0]))
        raise BuildError(f"jupyter-book stopped or warned, and a warning is an error here; see {BUILD / 'sphinx.log'}")


def weight(page: Path) -> tuple[float, float]:
    """Return the compressed kilobytes of a first visit without figures, and of the figures."""
    text = page.read_text("utf-8")
    links = re.findall(r"<(?:script|link)[^>]*(?:src|href)=\"([^\"#?]+)[^\"]*\"[^>]*>", text)
    files = {(page.parent / link).resolve() for link in links if "://" not in link and not link.endswith(".html")}
    fonts = HTML / "_static" / "mathjax" / "output" / "chtml" / "fonts" / "woff-v2"
    if any(path.name == "tex-chtml.js" for path in files):
        files |= {fonts / f"MathJax_{name}.woff" for name in FONTS}
    files |= set((HTML / "_static" / "vendor").rglob("fa-solid-900.woff2"))
    figures = {(page.parent / link).resolve() for link in re.findall(r'src="([^"]*_images/[^"]+)"', text)}
    first = sum(len(gzip.compress(path.read_bytes())) for path in {page.resolve(), *files} if path.is_file())
    return first / 1000, sum(path.stat().st_size for path in figures if path.is_file()) / 1000


# Summary


def line_of_times(took: dict) -> str:
    if not took:
        return "executed by another command, not measured"
    return f"{took['cpu']:5.1f} CPU s, {took['wall']:5.1f} s, {took['peak_mb']:5.0f} MB"


def summarize() -> None:
    known, total = times(), 0.0
    say("\nper chapter: CPU of the kernel, wall time, peak memory · first load of the page (compressed) + figures")
    for path in chapters():
        took = known.get(fingerprint(read_notebook(path)), {})
        first, figures = weight((HTML / path.relative_to(ROOT)).with_suffix(".html"))
        total += took.get("cpu", 0.0)
        say(f"  {path.stem:28} {line_of_times(took)} · {first:4.0f} kB + {figures:4.0f} kB")
    site = sum(path.stat().st_size for path in HTML.rglob("*") if path.is_file())
    say(f"  together {total:.1f} CPU s; site {site / 1e6:.1f} MB; {len(read_json(EQUATIONS))} equations verified\n")


# Network


def without_network(arguments: list[str]) -> None:
    """Start again in a namespace without network where the system allows it; return only where it does not."""
    unshare = shutil.which("unshare")
    if unshare and subprocess.run([unshare, "-rn", "true"], capture_output=True).returncode == 0:
        os.execv(unshare, [unshare, "-rn", sys.executable, str(Path(__file__)), "--inside", *arguments])
    say("network: not blocked (this system does not allow it)")


def raise_loopback() -> None:
    """Kernels talk over the loopback interface, which is down in a fresh namespace."""
    flags, up = 0x8914, 0x1 | 0x40
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        fcntl.ioctl(handle, flags, struct.pack("16sH14x", b"lo", up))
    say("network: blocked")


def build(cold: bool) -> None:
    table_of_contents()
    remove_stale(cold)
    check_equations()
    execute_chapters()
    write_pages()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cold", action="store_true", help="remove every earlier output first")
    network = parser.add_mutually_exclusive_group()
    network.add_argument("--keep-network", action="store_true", help="build with network access (default)")
    network.add_argument("--no-network", action="store_true", help="block network access where the system allows it")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    cold = ["--cold"] if options.cold else []
    if options.no_network and not options.inside:
        without_network(cold)
    if options.inside:
        raise_loopback()
    os.environ.update(environment())
    BUILD.mkdir(exist_ok=True)
    with open(BUILD / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say(f"Another build is running in {BUILD}.")
            return 1
        try:
            build(options.cold)
        except BuildError as error:
            # A warning lives on in the pickled pages: without this the next build would pass.
            remove(DOCTREES)
            say(f"build failed: {error}")
            return 1
        summarize()
    say(str(HTML / "index.html"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
