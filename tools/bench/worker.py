"""A contestant's process: it does what it is asked and says how long it took."""

import importlib
import os
import platform
import resource
import time
import traceback


def one_core() -> None:
    """Let this process use one core, where the system allows to say so; the threads are limited besides."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def serve(connection, module: str) -> None:
    """Answer requests ``(name, arguments…)`` until there are none."""
    one_core()
    try:
        contestant = Contestant(module)
    except ImportError as error:
        connection.send(("missing", str(error)))
        return
    connection.send(("ready", contestant.version))
    while (request := connection.recv()) is not None:
        name, *arguments = request
        try:
            connection.send(("done", getattr(contestant, name)(*arguments)))
        except Exception as error:
            traceback.print_exc()
            connection.send(("failed", f"{type(error).__name__}: {error}"))


class Contestant:
    """A contestant and the row that it is at."""

    def __init__(self, module: str):
        import torch
        from problem import Problem

        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.module = importlib.import_module(module)
        self.version, self.task = self.module.VERSION, None
        self.problems = {fresh: Problem(fresh) for fresh in (True, False)}

    def begin(self, row, fresh: bool) -> str | None:
        """Prepare a row, at fresh or trained weights; return how it is written, or None without such a feature."""
        self.task = self.module.task(self.problems[fresh], row)
        return None if self.task is None else self.task.note

    def values(self, number: int) -> list[float]:
        """Return independent estimates of what all contestants must agree on."""
        return [float(self.task.value()) for _ in range(number)]

    def run(self, count: int) -> tuple[float, float]:
        """Return the seconds, of the processor and of the clock, that a step takes."""
        cpu, wall = time.process_time(), time.perf_counter()
        self.task.run(count)
        return (time.process_time() - cpu) / count, (time.perf_counter() - wall) / count


def peak_memory(connection, samples: int) -> None:
    """Send the peak memory of a process, in MB, that calls `log_marginal_estimate` with this K on 20 images."""
    one_core()
    import torch
    from problem import Problem
    from with_lvmlib import networks

    from lvmlib import log_marginal_estimate

    torch.set_num_threads(1)
    problem = Problem(fresh=False)
    model, encoder = networks(problem)
    with torch.no_grad():
        log_marginal_estimate(model, torch.from_numpy(problem.images[:20]), encoder, samples)
    unit = 1024**2 if platform.system() == "Darwin" else 1024
    connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)
