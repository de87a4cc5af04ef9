"""Compare lvmlib's speed with that of plain PyTorch, Pyro, NumPyro and pythae, on one core and in one sitting.

Run it with `make bench`; with `--short` it only shows that everything runs, and needs none of the peers.
Each contestant has a process of its own. Before a row is timed all of them must agree on its value, at fresh weights
and, where the row learns, after the same number of steps, and at the trained weights that are then timed: one that does
not is reported and not timed. Then they take turns, and the medians are compared.

Exit status: 0 all agree, 1 some contestant does not, 2 a bad argument.
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
from pathlib import Path

# before torch or jax is imported, here and in the contestants' processes
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import worker  # noqa: E402
from problem import Row, rows  # noqa: E402

OWN, FLOOR = "lvmlib", "floor"
PROGRAMS = {
    "lvmlib": "with_lvmlib",
    "lvmlib train": "with_train",
    "PyTorch": "with_torch",
    "Pyro": "with_pyro",
    "NumPyro": "with_numpyro",
    "pythae": "with_pythae",
    "floor": "floor",
}
ALWAYS = ("lvmlib", "lvmlib train", "PyTorch", "floor")  # need no package that lvmlib does not need
LEARNING_STEPS = 40
REPEATS = 5
WARM_STEPS = 10
SECONDS = 0.4  # of a measurement, about, where the contestant is slow


class Process:
    """A contestant, seen from here."""

    def __init__(self, name: str):
        context = multiprocessing.get_context("spawn")
        self.name, (self.connection, other) = name, context.Pipe()
        self.process = context.Process(target=worker.serve, args=(other, PROGRAMS[name]), daemon=True)
        self.process.start()
        other.close()

    def wait(self) -> None:
        """Wait until it has imported what it needs, or has not found it."""
        self.state, self.version = self.connection.recv()

    def ask(self, *request):
        """Return the answer to a request.

        Raises:
            RuntimeError: the contestant failed.
        """
        self.connection.send(request)
        state, answer = self.connection.recv()
        if state != "done":
            raise RuntimeError(answer)
        return answer

    def close(self) -> None:
        """End the process."""
        if self.state == "ready":
            self.connection.send(None)
        self.process.join(10)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Return a mean and its standard error.

    >>> mean_and_error([1.0, 3.0])
    (2.0, 1.0)
    """
    return statistics.fmean(values), statistics.stdev(values) / len(values) ** 0.5


def disagreement(values: list[float], reference: list[float], slack: float) -> str:
    """Return what is wrong with a contestant's values, or "" when they agree with those of plain PyTorch.

    >>> disagreement([1.0, 1.2, 0.9], [1.1, 1.0, 1.0], slack=0.0)
    ''
    >>> disagreement([2.0, 2.2, 1.9], [1.1, 1.0, 1.0], slack=0.0)
    'differs: 2.033 and 1.033 nats, allowed is 0.472'
    """
    if not all(map(math.isfinite, values)):
        return f"differs: {values[0]} nats"
    (mean, error), (target, target_error) = mean_and_error(values), mean_and_error(reference)
    allowed = 5 * math.hypot(error, target_error) + 1e-5 * abs(target) + slack
    if abs(mean - target) <= allowed:
        return ""
    return f"differs: {mean:.3f} and {target:.3f} nats, allowed is {allowed:.3f}"


def check(row: Row, contestants: list[Process], short: bool, learns: bool) -> dict[str, str]:
    """Return what is wrong with each contestant in a row, "" for nothing; if `learns`, after some steps too."""
    number = 3 if short or row.kind == "log p" else 20
    wrong = dict.fromkeys((one.name for one in contestants), "")
    found = {}
    for one in contestants:
        if one.name == FLOOR:
            continue
        try:
            found[one.name] = [one.ask("values", number)]
            if learns:
                one.ask("run", 5 if short else LEARNING_STEPS)
                found[one.name].append(one.ask("values", number))
        except RuntimeError as error:
            wrong[one.name] = str(error)
    for name, stages in found.items():
        for stage, (values, reference) in enumerate(zip(stages, found["PyTorch"])):
            # after the steps each has seen other noise and other batches
            slack = 0.01 * abs(statistics.fmean(reference)) if stage else 0.0
            wrong[name] = wrong[name] or disagreement(values, reference, slack)
    return wrong


def measure(row: Row, contestants: list[Process], repeats: int) -> dict[str, dict]:
    """Return the median seconds of each contestant; they take turns."""
    counts, times = {}, {one.name: [] for one in contestants}
    for one in contestants:  # warm-up, and how long a step takes; a compiler compiles for each number of steps
        few = min(row.count, WARM_STEPS)
        one.ask("run", few)
        wall = one.ask("run", few)[1]
        counts[one.name] = max(1, min(row.count, round(SECONDS / wall)))
        one.ask("run", counts[one.name])
    for repeat in range(repeats):
        for one in contestants[repeat % len(contestants) :] + contestants[: repeat % len(contestants)]:
            times[one.name].append(one.ask("run", counts[one.name]))
    return {
        name: {"cpu_seconds": statistics.median(cpu), "wall_seconds": statistics.median(wall), "count": counts[name]}
        for name, pairs in times.items()
        for cpu, wall in [zip(*pairs)]
    }


def race(row: Row, contestants: list[Process], short: bool) -> list[dict]:
    """Return a line for each contestant in a row."""
    notes, lines = {}, {}
    for fresh in (True, False):
        for one in contestants:
            try:
                notes[one.name] = one.ask("begin", row, fresh)
            except RuntimeError as error:
                lines[one.name] = {"wrong": str(error)}
        present = [one for one in contestants if notes.get(one.name) and one.name not in lines]
        wrong = check(row, present, short, learns=fresh and row.learns)
        lines |= {name: {"wrong": what} for name, what in wrong.items() if what}
    sound = [one for one in present if one.name not in lines]
    lines |= measure(row, sound, 2 if short else REPEATS)
    for one in contestants:
        lines.setdefault(one.name, {"missing": "no such feature"})
        lines[one.name] = {"row": row.name, "who": one.name, "how": notes.get(one.name) or ""} | lines[one.name]
    for line in lines.values():
        for name, other in (("to_lvmlib", OWN), ("to_floor", FLOOR)):
            if "cpu_seconds" in line and "cpu_seconds" in lines.get(other, {}):
                line[name] = line["cpu_seconds"] / lines[other]["cpu_seconds"]
    return [lines[one.name] for one in contestants]


def memory(samples: list[int]) -> dict[str, float]:
    """Return the peak memory, in MB, of a process for each K."""
    context, peaks = multiprocessing.get_context("spawn"), {}
    for number in samples:
        connection, other = context.Pipe()
        process = context.Process(target=worker.peak_memory, args=(other, number), daemon=True)
        process.start()
        other.close()
        peaks[str(number)] = round(connection.recv())
        process.join()
    return peaks


def processor() -> str:
    """Return the name of the processor's model, as far as the system tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def table(lines: list[dict]) -> str:
    """Return the lines as a Markdown table."""
    head = ["what", "who", "CPU ms", "wall ms", "÷ lvmlib", "÷ floor", "how"]
    text = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    before = ""
    for line in lines:
        what, before = ("" if line["row"] == before else line["row"]), line["row"]
        if "cpu_seconds" in line:
            ratios = [f"{line[name]:.2f}" if name in line else "" for name in ("to_lvmlib", "to_floor")]
            cells = [f"{1000 * line['cpu_seconds']:.3g}", f"{1000 * line['wall_seconds']:.3g}", *ratios, line["how"]]
        else:
            cells = ["–", "–", "–", "–", line.get("wrong") or line["missing"]]
        text.append("| " + " | ".join([what, line["who"], *cells]) + " |")
    return "\n".join(text)


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison, print it and write it."""
    parser = argparse.ArgumentParser(prog="make bench", description="compare the speed of lvmlib with its peers'")
    parser.add_argument("--short", action="store_true", help="only see that it runs; without the peers")
    parser.add_argument("--peers", action="store_true", help="with --short: the peers too")
    parser.add_argument("--output", type=Path, help="file of the result, lvmlib/data/benchmark.json without --short")
    options = parser.parse_args(arguments)
    names = [name for name in PROGRAMS if name in ALWAYS or options.peers or not options.short]
    output = options.output or (None if options.short else ROOT / "lvmlib" / "data" / "benchmark.json")
    contestants = [Process(name) for name in names]
    for one in contestants:
        one.wait()
        if one.state != "ready":
            sys.stderr.write(f"{one.name} is not installed ({one.version}); see requirements-bench.txt\n")
    present = [one for one in contestants if one.state == "ready"]
    lines = []
    try:
        for row in rows(options.short):
            lines += race(row, present, options.short)
            sys.stderr.write(f"{row.name}: done\n")
    finally:
        for one in contestants:
            one.close()
    peaks = memory([500] if options.short else [500, 5000, 50_000])
    sys.stdout.write(table(lines) + "\n\n")
    shown = ", ".join(f"{peak} MB at K = {int(number):,}" for number, peak in peaks.items())
    sys.stdout.write(f"Peak memory of a process that calls log_marginal_estimate on 20 images: {shown}.\n")
    for line in lines:
        if line["who"] == OWN and line["row"].startswith("log p") and "cpu_seconds" in line:
            whole = 500 * line["cpu_seconds"]
            sys.stdout.write(
                f"lvmlib: {line['row'].rpartition(',')[0]} of 10,000 images in {whole:.0f} core-seconds.\n"
            )
    if output is not None:
        from lvmlib.experiments.results import provenance, write_result

        about = {"processor": processor(), "threads": 1, "repeats": 2 if options.short else REPEATS}
        about["versions"] = {one.name: one.version for one in present if one.name not in ("lvmlib train", FLOOR)}
        write_result(output, provenance("make bench") | about | {"peak_memory_mb": peaks, "lines": rounded(lines)})
    return 1 if any("wrong" in line for line in lines) else 0


def rounded(lines: list[dict]) -> list[dict]:
    """Return the lines with four digits of each number."""
    return json.loads(json.dumps(lines), parse_float=lambda text: float(f"{float(text):.4g}"))


if __name__ == "__main__":
    sys.exit(main())
