"""The step of `python -m lvmlib train`."""

import tempfile
from pathlib import Path

import torch
from problem import HIDDEN, LATENT, PIXELS, RATE, Problem, Row, Task
from with_torch import fill

import lvmlib
from lvmlib.experiments import runs, settings

VERSION = lvmlib.__version__


def task(problem: Problem, row: Row) -> Task | None:
    """Return how the row is done; None where the command does not do it."""
    if row.kind not in ("vae", "iwae"):
        return None
    images = torch.from_numpy(problem.images[: row.count * row.batch])
    data = lambda split, held_out: images if split == "train" else torch.empty(0, PIXELS)  # noqa: E731
    settings.SOURCES["random"] = settings.Source(data, PIXELS, False, {})
    options = {"z_dim": LATENT, "hidden_dims": (HIDDEN, HIDDEN), "batch_size": row.batch, "num_validation": 0}
    options |= {"objective": "elbo" if row.kind == "vae" else "iwae", "num_samples": row.samples, "num_epochs": 10**6}
    folder = Path(tempfile.mkdtemp())
    run = runs.Run(folder, settings.Settings.of("random", learning_rate=RATE, **options), "make bench")
    folder.rmdir()  # nothing is saved here
    fill(run.model.decoder.network, problem.decoder)
    fill(run.encoder.network, problem.encoder)
    run.wake()

    def learn(count: int) -> None:
        for _ in range(count):
            run.forward()

    @torch.no_grad()
    def value() -> float:
        return run.objective(run.model, run.encoder, torch.from_numpy(problem.images[: row.batch])).mean().item()

    return Task(learn, value, "a run of the command, without its checkpoints")
