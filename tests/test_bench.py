"""The comparison of speeds: that it runs, that it finds a contestant which differs, and what it writes. No times."""

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lvmlib.experiments.results import read_result

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "tools" / "bench"
NAMES = ("problem", "worker", "with_torch", "with_lvmlib", "with_train", "floor", "__main__")


@pytest.fixture
def bench(monkeypatch):
    """The modules of the comparison, by name; they import one another as a program's own modules do."""
    monkeypatch.syspath_prepend(str(BENCH))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "JAX_PLATFORMS", "XLA_FLAGS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))  # put back afterwards
    before = list(sys.path)
    modules = {name: importlib.import_module(name) for name in NAMES if name != "__main__"}
    spec = importlib.util.spec_from_file_location("bench_main", BENCH / "__main__.py")
    modules["main"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(modules["main"])
    yield type("Bench", (), modules)
    sys.path[:] = before
    for name in modules:
        sys.modules.pop(name, None)


def test_a_short_comparison_runs_agrees_and_is_written(tmp_path):
    command = [sys.executable, str(BENCH), "--short", "--output", str(tmp_path / "a.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((tmp_path / "a.json").read_text())
    timed = [line for line in content["lines"] if "cpu_seconds" in line]
    assert {line["who"] for line in timed} == {"lvmlib", "lvmlib train", "PyTorch", "floor"}
    assert all(line["to_lvmlib"] == 1 for line in timed if line["who"] == "lvmlib")
    assert len({line["row"] for line in timed}) == 6
    assert content["command"] == "make bench" and content["threads"] == 1 and content["processor"]
    assert done.stdout.count("\n| ") == len(content["lines"])


def test_values_that_agree_within_their_errors_are_accepted_and_others_named(bench):
    assert bench.main.disagreement([1.0, 1.2, 0.9], [1.1, 1.0, 1.0], 0.0) == ""
    assert bench.main.disagreement([2.0, 2.2, 1.9], [1.1, 1.0, 1.0], 0.0).startswith("differs: 2.033 and 1.033")
    assert bench.main.disagreement([2.0, 2.2, 1.9], [1.1, 1.0, 1.0], 1.0) == ""
    assert bench.main.disagreement([math.nan] * 3, [1.1, 1.0, 1.0], 0.0).startswith("differs")


class Scripted:
    """A contestant whose answers are known."""

    def __init__(self, name, value, fails=False):
        self.name, self.value, self.fails = name, value, fails
        self.asked = []

    def ask(self, request, *arguments):
        self.asked.append(request)
        if request == "begin":
            return "by hand"
        if self.fails:
            raise RuntimeError("no memory")
        return [self.value, self.value + 0.01] if request == "values" else (0.5, 0.6)


def test_a_contestant_that_differs_or_fails_is_reported_and_not_timed(bench):
    contestants = [
        Scripted("lvmlib", 1.0),
        Scripted("PyTorch", 1.0),
        Scripted("Pyro", 7.0),
        Scripted("pythae", 1.0, fails=True),
        Scripted("floor", math.nan),
    ]
    lines = bench.main.race(bench.problem.rows(True)[4], contestants, short=True)
    assert ["cpu_seconds" in line for line in lines] == [True, True, False, False, True]
    assert lines[2]["wrong"].startswith("differs: 7") and lines[3]["wrong"] == "no memory"
    assert "run" not in contestants[2].asked
    assert lines[1]["to_lvmlib"] == lines[1]["to_floor"] == 1
    assert "differs" in bench.main.table(lines)


def test_the_number_of_steps_that_is_timed_was_run_before(bench):
    """A compiler compiles for each number of steps, and that must not be in the time."""

    class Compiled(Scripted):
        seen: frozenset = frozenset()

        def ask(self, request, *arguments):
            if request != "run":
                return super().ask(request, *arguments)
            (count,) = arguments
            new, self.seen = count not in self.seen, self.seen | {count}
            return (9.0, 9.0) if new else (0.01, 0.01)

    row = bench.problem.rows(False)[0]
    measured = bench.main.measure(row, [Compiled("NumPyro", 1.0)], repeats=1)["NumPyro"]
    assert measured["cpu_seconds"] == 0.01 and measured["count"] == round(bench.main.SECONDS / 0.01) < row.count


def test_the_floor_counts_the_products_of_a_step(bench):
    products = []
    bench.floor.arithmetic = lambda shapes, functions, repeats: products.extend(shapes)
    bench.floor.task(None, bench.problem.rows(True)[0])
    # 0.9872 + 1.2408 MFLOP for an image with one sample, two to a multiplication and addition
    assert sum(2 * m * k * n for m, k, n in products) == pytest.approx(20 * 2.228e6, rel=1e-9)


def test_the_committed_comparison_is_a_whole_one():
    content = read_result("benchmark")
    assert {line["who"] for line in content["lines"]} == {
        "lvmlib",
        "lvmlib train",
        "PyTorch",
        "Pyro",
        "NumPyro",
        "pythae",
        "floor",
    }
    assert not [line for line in content["lines"] if "wrong" in line]
    assert list(content["peak_memory_mb"]) == ["500", "5000", "50000"]
    # a hundred times the samples
    assert content["peak_memory_mb"]["50000"] < 1.2 * content["peak_memory_mb"]["500"]
