"""Run every chapter as a reader in Colab would: from an empty folder, with the library installed by its own setup cell.

Usage: python tools/notebooks.py [NOTEBOOK ...]

For each chapter a fresh virtual environment is made that sees every package of the current one except lvmlib, has a
fake `google.colab`, and does not see this repository. The setup cell installs the wheel built from the working tree
(LVMLIB_SOURCE). nbval runs the cells; warnings are errors; CPU time and memory of the kernel are measured.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import site
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CELL_SECONDS = 45  # wall time of one cell
NOTEBOOK_SECONDS = 300  # wall time of one notebook
CPU_SECONDS = 45  # process time of one kernel
PEAK_MB = 2000
TOTAL_CPU_SECONDS = 1200  # all chapters together: fifteen chapters must fit into `make test`
DEAD_KERNEL_SECONDS = 5  # how long a kernel may be gone while its notebook still waits for it

# Runs in every kernel, after the start-up file of the build (which makes warnings errors). What it writes tells this
# script which process is the kernel, which cell runs and what it has cost.
KERNEL_STARTUP = """
def _install():
    import json, os, resource, sys, threading, time
    from IPython import get_ipython

    target = os.environ["LVMLIB_KERNEL_REPORT"]
    state = {"pid": os.getpid(), "started": 0, "finished": 0, "thread_errors": []}

    def write():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        state["cpu_seconds"] = time.process_time()
        state["peak_mb"] = peak / (1e6 if sys.platform == "darwin" else 1e6 / 1024)
        with open(target + ".part", "w") as file:
            json.dump(state, file)
        os.replace(target + ".part", target)

    def before(info):
        state["started"] += 1
        write()

    def after(result):
        state["finished"] += 1
        write()

    def thread_failed(args):
        state["thread_errors"].append(f"{args.exc_type.__name__}: {args.exc_value}")

    threading.excepthook = thread_failed
    get_ipython().events.register("pre_run_cell", before)
    get_ipython().events.register("post_run_cell", after)
    write()


_install()
del _install
"""


@dataclass
class Outcome:
    """What the run of one notebook gave; `problems` is empty when it passed."""

    name: str
    cells: int
    cpu_seconds: float
    wall_seconds: float
    peak_mb: float
    problems: list
    output: str

    def line(self):
        """Return the one line that reports this notebook."""
        word = "failed" if self.problems else "passed"
        return (
            f"{self.name:<32} {word}  {self.cells:3d} cells  CPU {self.cpu_seconds:5.1f} s"
            f"  wall {self.wall_seconds:5.1f} s  peak {self.peak_mb:5.0f} MB"
        )


def chapters():
    """Return the notebooks of the book in the order of the table of contents' file names."""
    return sorted((ROOT / "book").rglob("*.ipynb"))


def clean_environment():
    """Return the environment variables without anything that points Python to this repository."""
    drop = ("PYTHON", "PYTEST", "PIP_", "VIRTUAL_ENV", "JUPYTER", "IPYTHON", "LVM")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONNOUSERSITE": "1", "PIP_NO_INDEX": "1", "PIP_NO_INPUT": "1"}


def build_wheel(folder):
    """Build lvmlib's wheel from a copy of the working tree (a build leaves files behind) and return its path."""
    copy = folder / "source"
    copy.mkdir()
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    if names.returncode == 0 and names.stdout:
        listed = [Path(name) for name in names.stdout.decode().split("\0") if name]
    else:  # an unpacked archive instead of a clone
        listed = [path.relative_to(ROOT) for path in (ROOT / "lvmlib").rglob("*") if "__pycache__" not in path.parts]
        listed += [Path(name) for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")]
    for name in listed:
        if name.parts[0] in ("book", "tests") or not (ROOT / name).is_file():
            continue
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
    command += ["--wheel-dir", str(folder), str(copy)]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True)
    wheels = sorted(folder.glob("lvmlib-*.whl"))
    if done.returncode or len(wheels) != 1:
        raise SystemExit(f"notebooks: the wheel of lvmlib could not be built\n{done.stdout}{done.stderr}")
    return wheels[0]


def site_folders():
    """Return the folders that hold the packages of the running Python, the first found first."""
    folders = [sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"], *site.getsitepackages()]
    return [folder for folder in dict.fromkeys(map(Path, folders)) if folder.is_dir()]


def make_environment(folder):
    """Make a virtual environment in `folder` with links to every installed package but lvmlib; return its python."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    target = next((folder / "lib").glob("python*")) / "site-packages"
    for source in site_folders():
        for entry in source.iterdir():
            hidden = "lvmlib" in entry.name.lower() or entry.name.startswith(("__editable__", "__pycache__", "~"))
            # A package may have been installed in place by a path file: such a line may lead to this repository.
            in_place = entry.suffix == ".pth" and str(ROOT) in entry.read_text(errors="replace")
            link = target / entry.name
            if hidden or in_place or link.is_symlink() or link.exists() or entry.name == "google":
                continue
            link.symlink_to(entry)
    colab = target / "google" / "colab"
    colab.mkdir(parents=True)
    (colab / "__init__.py").write_text('"""Stands in for the package that only Colab has."""\n')
    for source in site_folders():
        for entry in (source / "google").glob("*"):
            if entry.name != "__pycache__" and not (target / "google" / entry.name).exists():
                (target / "google" / entry.name).symlink_to(entry)
    return python


def check_environment(python, empty, environment):
    """Refuse an environment in which the run would prove nothing: one that already has lvmlib."""
    code = "import importlib.util as u, google.colab, torch; print(u.find_spec('lvmlib'))"
    done = subprocess.run([python, "-c", code], cwd=empty, env=environment, capture_output=True, text=True)
    if done.returncode or done.stdout.strip() != "None":
        raise SystemExit(f"notebooks: the fresh environment is not what it must be\n{done.stdout}{done.stderr}")


def code_cells(notebook):
    """Return the code cells of a notebook file."""
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]


def describe(cells, number):
    """Name the code cell `number` (from 0) by its number, id and first line."""
    if not 0 <= number < len(cells):
        return f"code cell {number}"
    source = "".join(cells[number]["source"]).strip().splitlines() or [""]
    return f"code cell {number} (id {cells[number].get('id', '?')}, `{source[0][:60]}`)"


def read_report(path):
    """Return what the kernel wrote about itself, or an empty dict before it has."""
    return json.loads(path.read_text()) if path.exists() else {}


def is_gone(pid):
    """Return whether a process has ended (a killed child of pytest stays as a zombie until it is waited for)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        pass  # no such process, or a system without /proc
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def end_group(process):
    """End a process and everything that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def watch(process, report, limit):
    """Wait for pytest; return None, or why it was ended: the notebook took too long, or its kernel is dead."""
    start, gone_since = time.monotonic(), None
    while process.poll() is None:
        time.sleep(0.2)
        now, pid = time.monotonic(), read_report(report).get("pid")
        if pid is not None and is_gone(pid):
            gone_since = gone_since or now
        if gone_since and now - gone_since > DEAD_KERNEL_SECONDS and process.poll() is None:
            end_group(process)
            return "the kernel died (killed, or out of memory)"
        if now - start > limit:
            end_group(process)
            return f"over the limit of {limit} s for one notebook"
    return None


def run_notebook(notebook, wheel, folder):
    """Run one notebook in its own environment and empty folder."""
    start = time.monotonic()
    empty = folder / "run"
    empty.mkdir(parents=True)
    (empty / notebook.name).write_bytes(notebook.read_bytes())
    startup = folder / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00-lvmbook.py").write_bytes((ROOT / "tools" / "ipython_startup.py").read_bytes())
    (startup / "01-report.py").write_text(KERNEL_STARTUP)
    (folder / "pytest.ini").write_text("[pytest]\n")
    report = folder / "kernel.json"
    environment = clean_environment() | {
        "LVMLIB_SOURCE": str(wheel),
        "LVMLIB_KERNEL_REPORT": str(report),
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(folder / "jupyter"),
    }
    python = make_environment(folder / "env")
    check_environment(python, empty, environment)
    command = [python, "-m", "pytest", "--nbval", "--nbval-current-env", f"--nbval-cell-timeout={CELL_SECONDS}"]
    command += ["--maxfail=1", "-q", "-rf", "--color=no", "-p", "no:cacheprovider", "--tb=short"]
    command += ["-c", str(folder / "pytest.ini"), f"--rootdir={empty}", notebook.name]
    log = folder / "pytest.log"
    with open(log, "w") as output:
        process = subprocess.Popen(
            command, cwd=empty, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        reason = watch(process, report, NOTEBOOK_SECONDS)
    text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(errors="replace"))
    cells, told = code_cells(notebook), read_report(report)
    problems = judge(notebook.name, cells, told, reason, process.returncode, text)
    cpu, peak = told.get("cpu_seconds", 0.0), told.get("peak_mb", 0.0)
    return Outcome(notebook.stem, len(cells), cpu, time.monotonic() - start, peak, problems, text)


def judge(name, cells, told, reason, returncode, text):
    """List what is wrong with a finished run, each line naming the chapter and, where there is one, the cell."""
    problems = []
    if reason:
        problems.append(f"{name}, {describe(cells, told.get('started', 0) - 1)}: {reason}")
    elif returncode:
        failed = re.findall(r"^(?:FAILED|ERROR) \S*::Cell (\d+)", text, flags=re.MULTILINE)
        where = ", ".join(describe(cells, int(number)) for number in failed) or "before the first cell"
        said = re.search(r"^Cell \d+: (.+)$", text, flags=re.MULTILINE)
        problems.append(f"{name}, {where}: {said[1] if said else f'pytest ended with {returncode}'}")
    elif told.get("finished", 0) != len(cells):
        problems.append(f"{name}: {told.get('finished', 0)} of {len(cells)} code cells were run to their end")
    for error in told.get("thread_errors", []):
        problems.append(f"{name}: an exception in a thread, {error}")
    if told.get("cpu_seconds", 0.0) > CPU_SECONDS:
        problems.append(f"{name}: {told['cpu_seconds']:.1f} CPU seconds, allowed {CPU_SECONDS}")
    if told.get("peak_mb", 0.0) > PEAK_MB:
        problems.append(f"{name}: peak of {told['peak_mb']:.0f} MB, allowed {PEAK_MB}")
    return problems


def main(arguments=None):
    """Run the notebooks, two at a time; return 0 when all passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="notebooks to run (default: all in book/)")
    parser.add_argument("--jobs", type=int, default=2, help="how many notebooks run at a time (default 2)")
    options = parser.parse_args(arguments)
    notebooks = [path.resolve() for path in options.notebooks] or chapters()
    missing = [str(path) for path in notebooks if not path.is_file()]
    if missing or not notebooks:
        print(f"notebooks: no such notebook: {', '.join(missing) or 'book/*.ipynb'}")
        return 1
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="lvmlib-notebooks-") as name:
        folder = Path(name).resolve()
        wheel = build_wheel(folder)
        print(f"wheel: {wheel.name}", flush=True)
        with ThreadPoolExecutor(options.jobs) as pool:
            runs = [pool.submit(run_notebook, path, wheel, folder / f"{i:02d}") for i, path in enumerate(notebooks)]
            for run in runs:
                outcomes.append(run.result())
                print(outcomes[-1].line(), flush=True)
    for outcome in outcomes:
        if outcome.problems:
            print("\n" + outcome.output[-6000:])
    problems = [problem for outcome in outcomes for problem in outcome.problems]
    total = sum(outcome.cpu_seconds for outcome in outcomes)
    if total > TOTAL_CPU_SECONDS:
        problems.append(f"all chapters together: {total:.0f} CPU seconds, allowed {TOTAL_CPU_SECONDS}")
    for problem in problems:
        print(f"notebooks: {problem}")
    failed = sum(bool(outcome.problems) for outcome in outcomes)
    print(f"notebooks: {len(outcomes) - failed} passed, {failed} failed, {total:.0f} CPU seconds")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
