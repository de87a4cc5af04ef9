"""Trainings of chapter 8: the same autoencoder on bounds with K = 1, 5 and 50, at a constant learning rate.

Every run is watched by exact numbers of the test images, log p(x) and the VLB of the encoder's own law, and by its CPU
time without the watching. Run it with ``python -m lvmlib.experiments.tighter_bounds``; the result is part of the
package, and chapter 8 reads it.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from lvmlib.contracts import check_count
from lvmlib.datasets import digits
from lvmlib.exact import exact_elbo, exact_log_marginal
from lvmlib.experiments.results import provenance, write_result
from lvmlib.gradients import doubly_reparameterized, iwae_pathwise, objective
from lvmlib.models import BernoulliDecoder, GaussianLatentModel, mlp
from lvmlib.proposals import GaussianEncoder
from lvmlib.quadrature import Grid
from lvmlib.training import fit

SURROGATES = {"IWAE": iwae_pathwise, "DReG": doubly_reparameterized}
# (estimator, K, epochs): about the same CPU time each
RUNS = (("IWAE", 1, 800), ("IWAE", 5, 400), ("IWAE", 50, 100), ("DReG", 5, 400), ("DReG", 50, 100))
OPTIONS = {"batch_size": 100, "learning_rate": 3e-3}
GRID = Grid(num_nodes=151, radius=4.5, tolerance=float("inf"))  # for curves; off by some hundredths of a nat at most
EVALUATE_EVERY = 20


def constant(share: float) -> float:
    """Return the learning rate's factor, 1: runs of different length can be compared at any point."""
    return 1.0


def run(name: str, num_samples: int, num_epochs: int, seed: int) -> dict:
    """Train one autoencoder and watch it.

    Args:
        name: a key of `SURROGATES`.
        num_samples: K ≥ 1.
        num_epochs: passes over the training images, ≥ 1.
        seed: of torch's generator, which is left as it was.

    Returns:
        Lists of equal length, one entry every `EVALUATE_EVERY` epochs: ``epoch``, ``seconds`` of CPU, and the means
        over the test images of ``log_p``, exact, and of ``vlb``, the exact bound of the encoder's law.

    Raises:
        ValueError: there is no such estimator.
    """
    if name not in SURROGATES:
        raise ValueError(f"name must be one of {list(SURROGATES)}, got {name!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GaussianLatentModel(2, BernoulliDecoder(mlp(2, [36, 82], 64)))
        encoder = GaussianEncoder(mlp(64, [128], 4))
        watch = _Watch(model, encoder, digits("test").x)
        options = OPTIONS | {"num_epochs": num_epochs, "schedule": constant, "evaluate_every": EVALUATE_EVERY}
        surrogate: Callable = objective(SURROGATES[name], num_samples)
        history = fit(model, surrogate, digits("train").x, encoder=encoder, evaluate=watch, **options)
    return {"epoch": history["evaluate_epoch"].tolist(), **watch.told}


class _Watch:
    """Note the exact numbers of a training, and its time without the noting."""

    def __init__(self, model: GaussianLatentModel, encoder: GaussianEncoder, x: Tensor):
        self.model, self.encoder, self.x = model, encoder, x
        self.told: dict[str, list[float]] = {"seconds": [], "log_p": [], "vlb": []}
        self.away, self.start = 0.0, time.process_time()

    def __call__(self) -> float:
        came = time.process_time()
        self.told["seconds"].append(round(came - self.start - self.away, 3))
        log_p = exact_log_marginal(self.model, self.x, grid=GRID).mean().item()
        q = self.encoder(self.x)
        vlb = exact_elbo(self.model, self.x, q, num_nodes=20, tolerance=float("inf")).mean().item()
        self.told["log_p"].append(round(log_p, 4))
        self.told["vlb"].append(round(vlb, 4))
        self.away += time.process_time() - came
        return log_p


def main() -> None:
    """Train all runs from all seeds and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, counted from 0 (default 3)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "data" / "tighter_bounds.json")
    options = parser.parse_args()
    check_count("--seeds", options.seeds)
    torch.set_num_threads(1)
    jobs = [(*settings, seed) for settings in RUNS for seed in range(options.seeds)]
    runs = [
        {"name": name, "num_samples": k, "seed": seed} | run(name, k, epochs, seed)
        for name, k, epochs, seed in tqdm(jobs, unit="training")
    ]
    write_result(options.output, provenance("python -m lvmlib.experiments.tighter_bounds") | {"runs": runs})


if __name__ == "__main__":
    main()
