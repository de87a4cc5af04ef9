"""The table that closes chapter 6: five models of one size, trained on the digits from several seeds.

Every model sees the same 1,237 training images and keeps the state that is best on the same 200 validation images, by
log p(x) or, for the autoencoders, its estimate from 100 samples; one autoencoder keeps what is best by the bound that
it is trained on. The test images are looked at once, at the end. Run it with
``python -m lvmlib.experiments.closing_table``; the result is part of the package, and chapter 6 reads it.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lvmlib.autoregressive import AutoregressiveModel
from lvmlib.bounds import elbo_analytic_kl, iwae_bound
from lvmlib.contracts import check_count
from lvmlib.datasets import digits
from lvmlib.exact import exact_log_marginal
from lvmlib.experiments.results import provenance, write_result
from lvmlib.importance import log_marginal_estimate
from lvmlib.mixtures import BernoulliMixture
from lvmlib.models import BernoulliDecoder, GaussianLatentModel, mlp
from lvmlib.proposals import GaussianEncoder
from lvmlib.quadrature import Grid
from lvmlib.training import em, fit

NUM_VALIDATION = 200
OPTIONS = {"num_epochs": 300, "batch_size": 200, "learning_rate": 1e-2, "evaluate_every": 5}
TRAINING_GRID = Grid(num_nodes=31, radius=4.5, tolerance=float("inf"))  # coarse: good enough for training steps
TEST_GRID = Grid(num_nodes=1001, radius=5.0)  # its error is checked
NUM_SAMPLES = 5000  # of the estimate, where z has more dimensions than a grid can have


class Trained(NamedTuple):
    """A trained model, its log p(x) as a function of images, and the epoch or EM step whose state was kept."""

    model: nn.Module
    log_p: Callable[[Tensor], Tensor]
    kept_epoch: int


def data() -> tuple[Tensor, Tensor, Tensor]:
    """Return training, validation and test images, each of shape ``(N, 64)``."""
    images = digits("train").x
    return images[:-NUM_VALIDATION], images[-NUM_VALIDATION:], digits("test").x


def mixture() -> Trained:
    """Fit a mixture by EM, and keep the step that is best on the validation images."""
    train, validation, _ = data()
    model = BernoulliMixture(torch.full((130,), 1 / 130), 0.25 + 0.5 * torch.rand(130, 64))
    best, kept, state = -float("inf"), 0, None
    for step in range(1, 61):
        em(model, train, num_steps=1, pseudo_count=1.0)
        value = exact_log_marginal(model, validation).mean().item()
        if value > best:
            best, kept, state = value, step, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    return Trained(model, functools.partial(exact_log_marginal, model), kept)


def autoregressive() -> Trained:
    """Train the autoregressive model of chapter 1."""
    train, validation, _ = data()
    model = AutoregressiveModel(x_dim=64, hidden_dim=128)
    history = fit(model, lambda model, encoder, x: model.log_prob(x), train, validation=validation, **OPTIONS)
    return Trained(model, model.log_prob, history["best_epoch"].item())


def decoder(z_dim: int) -> GaussianLatentModel:
    """Return an untrained neural latent variable model of the size of the other models."""
    return GaussianLatentModel(z_dim, BernoulliDecoder(mlp(z_dim, [36, 82] if z_dim == 2 else [36, 79], 64)))


def exactly_trained() -> Trained:
    """Train the decoder with z in the plane on its exact log-likelihood, by quadrature."""
    train, validation, _ = data()
    model = decoder(2)
    objective = lambda model, encoder, x: exact_log_marginal(model, x, grid=TRAINING_GRID)  # noqa: E731
    history = fit(model, objective, train, validation=validation, **OPTIONS)
    log_p = functools.partial(exact_log_marginal, model, grid=TEST_GRID)
    return Trained(model, log_p, history["best_epoch"].item())


def vae(z_dim: int, kept_by_bound: bool = False) -> Trained:
    """Train the same decoder together with an encoder on the variational lower bound."""
    train, validation, _ = data()
    model, encoder = decoder(z_dim), GaussianEncoder(mlp(64, [128], 2 * z_dim))
    objective = lambda model, encoder, x: elbo_analytic_kl(model, x, encoder)  # noqa: E731
    criterion = None if kept_by_bound else lambda model, encoder, x: iwae_bound(model, x, encoder, 100)
    history = fit(model, objective, train, encoder=encoder, validation=validation, criterion=criterion, **OPTIONS)
    if z_dim == 2:
        log_p = functools.partial(exact_log_marginal, model, grid=TEST_GRID)
    else:
        log_p = lambda x: log_marginal_estimate(model, x, encoder, NUM_SAMPLES)  # noqa: E731
    return Trained(model, log_p, history["best_epoch"].item())


MODELS: dict[str, Callable[[], Trained]] = {
    "mixture": mixture,
    "autoregressive": autoregressive,
    "decoder, z in 2-D, exact": exactly_trained,
    "VAE, z in 2-D, kept by the bound": functools.partial(vae, 2, kept_by_bound=True),
    "VAE, z in 2-D": functools.partial(vae, 2),
    "VAE, z in 8-D": functools.partial(vae, 8),
}


def run(name: str, seed: int) -> dict[str, float]:
    """Train one model from one seed and measure it.

    Args:
        name: a key of `MODELS`.
        seed: of torch's generator, which is left as it was.

    Returns:
        ``nats`` per test image, exact or, with z in 8-D, an estimate that is a little too low on average; its
        ``standard_error`` over the images; ``seconds`` of CPU time to draw 1,000 images; ``train_seconds``;
        ``kept_epoch``, the epoch or EM step that was best on the validation images; ``parameters`` of p.

    Raises:
        ValueError: there is no such model.
    """
    if name not in MODELS:
        raise ValueError(f"name must be one of {list(MODELS)}, got {name!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        start = time.process_time()
        model, log_p, kept_epoch = MODELS[name]()
        trained = time.process_time() - start
        model.requires_grad_(False)
        with torch.no_grad():
            values = log_p(data()[2])
        return {
            "nats": values.mean().item(),
            "standard_error": (values.std() / len(values) ** 0.5).item(),
            "seconds": seconds_per_thousand(model),
            "train_seconds": round(trained, 1),
            "kept_epoch": kept_epoch,
            "parameters": getattr(model, "num_parameters", sum(p.numel() for p in model.parameters())),
        }


def seconds_per_thousand(model: nn.Module) -> float:
    """Return the CPU seconds to draw 1,000 images: the median of seven runs, since single ones scatter."""
    times = []
    for _ in range(7):
        start = time.process_time()
        model.sample(1000)
        times.append(time.process_time() - start)
    return statistics.median(times)


def main() -> None:
    """Train all models from all seeds and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, counted from 0 (default 5)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "data" / "closing_table.json")
    options = parser.parse_args()
    check_count("--seeds", options.seeds)
    torch.set_num_threads(1)
    jobs = [(name, seed) for name in MODELS for seed in range(options.seeds)]
    table: dict[str, list] = {name: [] for name in MODELS}
    for name, seed in tqdm(jobs, unit="training"):
        table[name].append({"seed": seed} | run(name, seed))
    command = "python -m lvmlib.experiments.closing_table"
    settings = OPTIONS | {"num_validation": NUM_VALIDATION, "num_samples": NUM_SAMPLES}
    write_result(options.output, provenance(command) | {"settings": settings, "models": table})


if __name__ == "__main__":
    main()
