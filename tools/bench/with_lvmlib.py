"""lvmlib, as a reader uses it."""

import functools

import torch
from problem import COMPONENTS, HIDDEN, LATENT, PIXELS, RATE, Problem, Row, Task
from with_torch import fill

import lvmlib
from lvmlib import (
    BernoulliDecoder,
    BernoulliMixture,
    GaussianEncoder,
    GaussianLatentModel,
    elbo_analytic_kl,
    exact_log_marginal,
    fit,
    iwae_bound,
    log_marginal_estimate,
    mlp,
)

VERSION = lvmlib.__version__
OBJECTIVES = {
    "vae": (lambda model, encoder, x: elbo_analytic_kl(model, x, encoder), "`fit` with `elbo_analytic_kl`"),
    "iwae": (lambda model, encoder, x: iwae_bound(model, x, encoder, 50), "`fit` with `iwae_bound`"),
}


def networks(problem: Problem) -> tuple[GaussianLatentModel, GaussianEncoder]:
    """Return model and encoder with the given weights."""
    model = GaussianLatentModel(LATENT, BernoulliDecoder(mlp(LATENT, [HIDDEN, HIDDEN], PIXELS)))
    encoder = GaussianEncoder(mlp(PIXELS, [HIDDEN, HIDDEN], 2 * LATENT))
    fill(model.decoder.network, problem.decoder)
    fill(encoder.network, problem.encoder)
    return model, encoder


def task(problem: Problem, row: Row) -> Task:
    """Return how the row is done."""
    images = torch.from_numpy(problem.images)
    x = images[: row.batch]
    if row.kind.startswith("mixture"):
        return mixture(problem, row, x)
    model, encoder = networks(problem)
    if row.kind == "log p":

        @torch.no_grad()
        def run(count: int = 1) -> float:
            return log_marginal_estimate(model, x, encoder, row.samples).mean().item()

        return Task(run, run, "`log_marginal_estimate`")
    objective, note = OBJECTIVES[row.kind]
    options = {"encoder": encoder, "num_epochs": 1, "batch_size": row.batch, "learning_rate": RATE}

    def learn(count: int) -> None:
        fit(model, objective, images[: count * row.batch], schedule=lambda share: 1.0, **options)

    return Task(learn, lambda: objective(model, encoder, x).mean().item(), note)


def mixture(problem: Problem, row: Row, x: torch.Tensor) -> Task:
    """Return how the rows of the mixture are done."""
    weights, probs = torch.from_numpy(problem.component_weights), torch.from_numpy(problem.component_probs)
    assert len(weights) == COMPONENTS
    model = BernoulliMixture(weights, probs)
    objective = lambda model, encoder, x: exact_log_marginal(model, x)  # noqa: E731
    options = {"batch_size": len(x), "learning_rate": RATE, "schedule": lambda share: 1.0}

    @torch.no_grad()
    def evaluate(count: int = 1) -> float:
        for _ in range(count):
            value = exact_log_marginal(model, x)
        return value.mean().item()

    if row.kind == "mixture log p":
        return Task(evaluate, evaluate, "`exact_log_marginal`")
    return Task(functools.partial(_learn, model, objective, x, options), evaluate, "`fit` with `exact_log_marginal`")


def _learn(model, objective, x: torch.Tensor, options: dict, count: int) -> None:
    fit(model, objective, x, num_epochs=count, **options)
