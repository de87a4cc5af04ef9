"""Test the tests of the library: plant each bug of tests/mutants.toml in its own copy and require a test to fail.

Usage: python tools/mutants.py [--only WORD] [--jobs N] [--limit SECONDS]

A mutant is killed when one of its test files fails on it: a test that ran and failed. A copy that cannot be imported, a
name that does not exist and a run without an answer are no kills but broken mutants. The last line counts the killed.
"""

import argparse
import contextlib
import difflib
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST = "tests/mutants.toml"
COPIED = ("lvmlib", "tests")
KEYS = {"name", "file", "old", "new", "bug", "tests"}
LIMIT_SECONDS = 120
POLL_SECONDS = 0.01
SHOWN = 2000  # characters of the output of a run that went wrong


class ListError(ValueError):
    """The list of mutants does not fit the sources."""


# ------------------------------------------------------------------------------------------------------------ the list


def read_list(root):
    """Return the mutants, the tests to leave out and the modules to import ahead; refuse a list that does not fit."""
    data = tomllib.loads((root / LIST).read_text(encoding="utf-8"))
    mutants, problems = data["mutant"], []
    for position, mutant in enumerate(mutants):
        who = mutant.get("name", f"mutant number {position}")
        if mutant.keys() != KEYS:
            problems.append(f"{who}: the keys must be {sorted(KEYS)}, got {sorted(mutant)}")
            continue
        path = root / "lvmlib" / mutant["file"]
        found = path.read_text(encoding="utf-8").count(mutant["old"]) if path.is_file() else 0
        if found != 1:
            problems.append(f"{who}: its lines must stand exactly once in {mutant['file']}, found {found} times")
        missing = [name for name in mutant["tests"] if not (root / "tests" / name).is_file()]
        if missing or not mutant["tests"]:
            problems.append(f"{who}: no test file {', '.join(missing) or 'at all'}")
    names = [mutant.get("name") for mutant in mutants]
    problems += [
        f"{name}: the name is taken twice" for name in sorted({n for n in names if names.count(n) > 1}, key=str)
    ]
    if problems:
        raise ListError("\n".join(problems))
    return mutants, data.get("left_out", []), data.get("import_ahead", [])


def planted(mutant, text):
    """Return the source with the bug in it."""
    return text.replace(mutant["old"], mutant["new"])


def difference(root, mutant):
    """Return the bug as a patch."""
    text = (root / "lvmlib" / mutant["file"]).read_text(encoding="utf-8")
    name = f"lvmlib/{mutant['file']}"
    lines = difflib.unified_diff(text.splitlines(), planted(mutant, text).splitlines(), name, name, n=0, lineterm="")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------------ one run


def copy(root, target):
    """Copy what the tests of the library need; return where to."""
    for name in COPIED:
        shutil.copytree(root / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(root / "pyproject.toml", target)
    return target


class Recorder:
    """A pytest plugin that keeps the first failure."""

    def __init__(self):
        self.first = None

    def pytest_exception_interact(self, node, call, report):
        if self.first is None:
            wrong_code = call.excinfo.errisinstance((NameError, ImportError, SyntaxError))
            self.first = {"test": report.nodeid, "when": report.when, "wrong_code": wrong_code}


def run_tests(folder, tests, left_out):
    """Run test files in a copy, in this process; return (exit status of pytest, first failure or None)."""
    import pytest

    os.chdir(folder)
    sys.path.insert(0, str(folder))  # before the environment's own lvmlib
    recorder = Recorder()
    # plain assertions: rewriting all test files takes longer than the tests that a mutant needs
    arguments = ["-x", "-q", "--tb=short", "--assert=plain", "-p", "no:cacheprovider", f"--basetemp={folder / 'tmp'}"]
    arguments += [f"--deselect={name}" for name in left_out]
    status = int(pytest.main([*arguments, *(f"tests/{name}" for name in tests)], plugins=[recorder]))
    library = sys.modules.get("lvmlib")
    if library is not None and not Path(library.__file__).is_relative_to(folder):
        raise ImportError(f"the tests saw {library.__file__} in place of the copy")
    return status, recorder.first


class Run:
    """Test files on a copy with at most one bug, in a process of its own that starts with everything imported.

    The process is forked, so PyTorch is imported once for all; `lvmlib` and the tests are imported by the child alone,
    and no bytecode is written.
    """

    def __init__(self, root, mutant, tests, left_out):
        self.mutant, self.start = mutant, time.monotonic()
        self.folder = Path(tempfile.mkdtemp(prefix="lvmlib-mutant-")).resolve()
        copy(root, self.folder)
        if mutant is not None:
            path = self.folder / "lvmlib" / mutant["file"]
            path.write_text(planted(mutant, path.read_text(encoding="utf-8")), encoding="utf-8")
        sys.stdout.flush()
        self.process = os.fork()
        if self.process == 0:
            self.child(tests, left_out)

    def child(self, tests, left_out):
        """Run the tests, leave the result in a file, and end without the clean-up of the parent."""
        try:
            os.setsid()  # so that what the tests start can be ended with them
            with open(self.folder / "output", "w") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            result = run_tests(self.folder, tests, left_out)
            (self.folder / "result").write_text(json.dumps(result))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    def poll(self, limit):
        """Return (verdict, what to say about it, output) if there is one, else None; see `judge`."""
        timed_out = time.monotonic() - self.start > limit
        if not timed_out and os.waitpid(self.process, os.WNOHANG) == (0, 0):
            return None
        if timed_out:
            self.end()
        self.seconds = time.monotonic() - self.start
        output = (self.folder / "output").read_text(errors="replace") if (self.folder / "output").exists() else ""
        path = self.folder / "result"
        result = json.loads(path.read_text()) if path.exists() and not timed_out else None
        shutil.rmtree(self.folder, ignore_errors=True)
        return *(("broken", f"no answer in {limit:g} s") if timed_out else judge(result)), output

    def end(self):
        """End the process and all that it started."""
        for send in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                send(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)


def judge(result):
    """Return the verdict on a run, "killed", "survived" or "broken", and what to say about it."""
    if result is None:
        return "broken", "the process that ran the tests died"
    status, first = result
    if status == 0:
        return "survived", "all tests passed"
    if status != 1 or first is None or first["when"] == "collect":
        return "broken", f"pytest ended with status {status} before a test failed"
    if first["wrong_code"]:
        return "broken", f"a name, an import or the syntax is wrong, says {first['test']}"
    return "killed", first["test"]


def run_all(root, jobs, left_out, options):
    """Run the (mutant, test files) given, some at a time; yield each as (run, verdict, text, output)."""
    waiting, running = list(reversed(jobs)), []
    try:
        while waiting or running:
            while waiting and len(running) < max(1, options.jobs):
                running.append(Run(root, *waiting.pop(), left_out))
            for run in list(running):
                answer = run.poll(options.limit)
                if answer is not None:
                    running.remove(run)
                    yield run, *answer
            time.sleep(POLL_SECONDS)
    finally:
        for run in running:
            run.end()
            shutil.rmtree(run.folder, ignore_errors=True)


def indented(text):
    """Return the text as a block below a line of the report."""
    return "    " + text.strip().replace("\n", "\n    ")


def plant_all(root, options):
    """Run the tests of this copy without a bug, then with each; return 0 when all mutants were killed."""
    try:
        mutants, left_out, ahead = read_list(root)
    except ListError as error:
        print(error)
        print("mutants: 0 planted, 0 killed")
        return 1
    for name in (*ahead, "pytest"):
        importlib.import_module(name)
    mutants = [mutant for mutant in mutants if options.only in mutant["name"]]

    files = sorted({name for mutant in mutants for name in mutant["tests"]})
    green = True
    for _, verdict, text, output in run_all(root, [(None, [name]) for name in files], left_out, options):
        if verdict != "survived":
            green = False
            print(f"the tests fail without a mutant: {text}\n{indented(output[-SHOWN:])}", flush=True)
    if not green:
        print("mutants: 0 planted, 0 killed")
        return 1
    print(f"no mutant: {len(files)} test files pass", flush=True)

    killed = 0
    for run, verdict, text, output in run_all(root, [(m, m["tests"]) for m in mutants], left_out, options):
        mutant = run.mutant
        shown = {"killed": "killed", "survived": "SURVIVED", "broken": "BROKEN"}[verdict]
        print(f"{mutant['name']:<44} {shown:<8} {run.seconds:5.1f} s  {text.removeprefix('tests/')}", flush=True)
        if verdict != "killed":
            told = f"{mutant['bug']}\n{difference(root, mutant)}\ntests: {', '.join(mutant['tests'])}"
            print(indented(told + (f"\n{output[-SHOWN:]}" if verdict == "broken" else "")), flush=True)
        killed += verdict == "killed"
    print(f"mutants: {len(mutants)} planted, {killed} killed")
    return 0 if mutants and killed == len(mutants) else 1


def main(arguments=None):
    """Plant all mutants; return 0 when all were killed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="plant only the mutants whose name contains this")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes at a time")
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, help="seconds after which a run is ended")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    # no bytecode of one mutant for the next; one thread, because a process with several should not be forked
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    with tempfile.TemporaryDirectory(prefix="lvmlib-mutants-") as folder:
        # what changes in the repository during the run does not count
        return plant_all(copy(options.root, Path(folder).resolve()), options)


if __name__ == "__main__":
    sys.exit(main())
