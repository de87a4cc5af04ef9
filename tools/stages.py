"""The test command: all stages in order, stopping at the first that is red.

Usage: python tools/stages.py [--only N] [--keep-going]
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHAPES = "--jaxtyping-packages=lvmlib,beartype.beartype"


def environment():
    """Return the environment of every stage: one thread each (two spinning threads are far slower than one)."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def run(*command):
    """Run a command in the root with its output shown; return whether it succeeded."""
    print("$ " + " ".join(map(str, command)), flush=True)
    return subprocess.run(list(map(str, command)), cwd=ROOT, env=environment()).returncode == 0


def lint():
    """Lint and check the format of scripts, modules and notebooks."""
    passed = run(sys.executable, "-m", "ruff", "check", ".")
    return run(sys.executable, "-m", "ruff", "format", "--check", ".") and passed


def unit_tests():
    """Run unit tests and doctests with warnings as errors and shapes checked, one worker per core (two at most)."""
    workers = min(2, os.cpu_count() or 1)
    command = [sys.executable, "-m", "pytest", "tests", "lvmlib", "--doctest-modules", "-q", "-W", "error", SHAPES]
    return run(*command, "--ignore=tests/test_book.py", "-n", workers, "--dist", "loadfile", "--durations=5")


def book_tests():
    """Run the structural tests of the book's sources."""
    return run(sys.executable, "-m", "pytest", "tests/test_book.py", "-q", "-W", "error")


def notebooks():
    """Run every chapter as in Colab."""
    return run(sys.executable, "tools/notebooks.py")


def build_and_scan():
    """Build the book from nothing, without network where the system allows it, then scan the pages."""
    built = run(sys.executable, "tools/build.py", "--cold", "--no-network")
    return built and run(sys.executable, "tools/scan_html.py")


STAGES = (
    ("lint and format", lint),
    ("unit tests and doctests", unit_tests),
    ("structural tests of the book", book_tests),
    ("every chapter as in Colab", notebooks),
    ("cold build without network, scan of the pages", build_and_scan),
)


def main(arguments=None):
    """Run the stages; return 0 when all are green."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=int, choices=range(1, len(STAGES) + 1), help="run this stage alone")
    parser.add_argument("--keep-going", action="store_true", help="run all stages even after a red one")
    options = parser.parse_args(arguments)
    start, passed, red = time.monotonic(), 0, []
    for number, (name, stage) in enumerate(STAGES, start=1):
        if options.only not in (None, number):
            continue
        print(f"\n=== stage {number}: {name} ===", flush=True)
        began = time.monotonic()
        green = stage()
        print(f"=== stage {number}: {'green' if green else 'RED'}, {time.monotonic() - began:.0f} s ===", flush=True)
        if green:
            passed += 1
            continue
        red.append(f"{number} ({name})")
        if not options.keep_going:
            break
    seconds = time.monotonic() - start
    if red:
        print(f"test: red in {seconds:.0f} s: stage {', '.join(red)}")
        return 1
    print(f"test: {passed} stage{'s' * (passed != 1)} passed in {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
