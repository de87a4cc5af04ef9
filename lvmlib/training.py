r"""Training: one loop for every objective with a gradient, and the EM algorithm for finite mixtures."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from lvmlib.contracts import check_count, check_positive, checked
from lvmlib.exact import exact_log_marginal, exact_posterior
from lvmlib.mixtures import FiniteMixture
from lvmlib.proposals import FreeProposal

Objective = Callable[[nn.Module, nn.Module | None, Tensor], Tensor]


class NonFiniteError(ValueError):
    """An objective or a gradient was NaN or infinite; the model was left as it was before that step."""


@checked
def fit(
    model: nn.Module,
    objective: Objective,
    x: Float[Tensor, "n d"],
    *,
    encoder: nn.Module | None = None,
    num_epochs: int = 100,
    batch_size: int = 100,
    learning_rate: float = 3e-3,
    evaluate: Callable[[], float] | None = None,
    evaluate_every: int = 1,
    progress: bool = False,
) -> dict[str, Tensor]:
    r"""Maximize the mean of an objective over the data with Adam, in shuffled minibatches.

    .. math:: \max_{\theta, \phi} \; \frac1N \sum_{i=1}^N \mathcal L_{\theta, \phi}(x^{(i)})

    This is the one place where the sign flips (a loss is minimized) and where the mean over the batch is taken.
    The learning rate falls linearly to a tenth over the second half of the steps. The model, and the encoder if there
    is one, are changed in place and left in their last state with a finite objective.

    Args:
        model: gives p.
        objective: a function ``(model, encoder, x) -> (B,)`` in nats per data point, the larger the better.
        x: training data, shape ``(N, D)``.
        encoder: gives q, if the objective needs it.
        num_epochs: passes over the data, ≥ 1.
        batch_size: data points per step, from 1 to N; the last batch of an epoch may be smaller.
        learning_rate: Adam's, > 0.
        evaluate: called without arguments and without gradient after epochs `evaluate_every`, 2·`evaluate_every`, …,
            and before the first; its numbers come back in the history.
        evaluate_every: in epochs.
        progress: show a progress bar, on standard error.

    Returns:
        ``objective``: mean over each epoch's data, shape ``(num_epochs,)``, in nats; with `evaluate` also
        ``evaluate`` and the epochs it was called at, ``evaluate_epoch``.

    Raises:
        ValueError: an argument out of range, or an objective of another shape than ``(B,)``.
        NonFiniteError: the objective or its gradient is NaN or infinite; names the step and the data points.

    Reference:
        Kingma and Ba (2015), algorithm 1, arXiv:1412.6980, for the optimizer.

    >>> from lvmlib import LinearGaussian
    >>> model = LinearGaussian(torch.zeros(2, 1), torch.zeros(2))
    >>> x = torch.tensor([[1.0, 1.0], [3.0, 1.0]])
    >>> exact = lambda model, encoder, x: exact_log_marginal(model, x)
    >>> _ = fit(model, exact, x, num_epochs=300, batch_size=2, learning_rate=0.1)
    >>> model.marginal().mean.detach().round(decimals=2)  # the maximum-likelihood mean is the mean of the data
    tensor([2., 1.])
    """
    check_count("num_epochs", num_epochs)
    check_count("evaluate_every", evaluate_every)
    check_count("batch_size", batch_size)
    check_positive("learning_rate", learning_rate)
    if isinstance(encoder, FreeProposal):
        raise ValueError(
            f"encoder must compute q from x, because fit shuffles the data; got {type(encoder).__name__}, which has "
            "one law per data point: use fit_proposal"
        )
    if len(x) == 0 or batch_size > len(x):
        raise ValueError(f"batch_size must be from 1 to the number of data points {len(x)}, got {batch_size}")
    parameters = [p for part in (model, encoder) if part is not None for p in part.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    num_steps = num_epochs * math.ceil(len(x) / batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 1.9 - 1.8 * step / num_steps))
    history: dict[str, list[float]] = {"objective": []}
    if evaluate is not None:
        history |= {"evaluate": [_evaluated(evaluate)], "evaluate_epoch": [0]}
    for epoch in tqdm(range(num_epochs), disable=not progress, desc="fit", unit="epoch"):
        total = 0.0
        for index in torch.randperm(len(x)).split(batch_size):
            values = _objective_values(objective, model, encoder, x[index])
            optimizer.zero_grad()
            (-values.mean()).backward()
            _check_step(values, parameters, index, epoch)
            optimizer.step()
            schedule.step()
            total += values.detach().sum().item()
        history["objective"].append(total / len(x))
        if evaluate is not None and (epoch + 1) % evaluate_every == 0:
            history["evaluate"].append(_evaluated(evaluate))
            history["evaluate_epoch"].append(epoch + 1)
    return {name: torch.tensor(values) for name, values in history.items()}


@checked
def fit_proposal(
    model: nn.Module,
    proposal: FreeProposal,
    x: Float[Tensor, "n d"],
    objective: Objective,
    *,
    num_steps: int = 200,
    learning_rate: float = 0.05,
) -> Float[Tensor, "steps_and_start n"]:
    r"""Maximize an objective over free proposals, one optimization per data point, all of them in one batch.

    .. math:: \max_{q_1, \dots, q_N} \; \sum_{i=1}^N \mathcal L(x^{(i)}, q_i)

    Adam works on each number by itself, so the N optimizations do not influence one another. The learning rate falls
    linearly to zero over the second half of the steps. The proposal is changed in place, the model is not.

    Args:
        model: gives p.
        proposal: N free laws, such as `FreeGaussian`.
        x: data, shape ``(N, D)``.
        objective: a function ``(model, proposal, x) -> (N,)`` in nats per data point.
        num_steps: ≥ 1.
        learning_rate: Adam's, > 0.

    Returns:
        The objective before the first step and after each, shape ``(num_steps + 1, N)``.

    Raises:
        ValueError: an argument out of range, or an objective of another shape than ``(N,)``.
        NonFiniteError: the objective or its gradient is NaN or infinite; names the step and the data points.

    Reference:
        Chapter 4.

    >>> from lvmlib import FreeGaussian, LinearGaussian, exact_elbo
    >>> model, x = LinearGaussian(torch.tensor([[3.0]]), torch.zeros(1), 4.0), torch.tensor([[5.0]])
    >>> q = FreeGaussian(1, 1)
    >>> _ = fit_proposal(model, q, x, lambda model, q, x: exact_elbo(model, x, q(x)))
    >>> torch.stack([q(x).mean, model.posterior(x).mean]).detach().round(decimals=2).flatten()
    tensor([0.6000, 0.6000])
    """
    check_count("num_steps", num_steps)
    check_positive("learning_rate", learning_rate)
    parameters = [p for p in proposal.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2.0 - 2.0 * step / num_steps))
    history = []
    for step in range(num_steps):
        values = _objective_values(objective, model, proposal, x)
        history.append(values.detach())
        gradients = torch.autograd.grad(-values.sum(), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        _check_step(values, parameters, torch.arange(len(x)), step)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        history.append(_objective_values(objective, model, proposal, x))
    return torch.stack(history)


def _objective_values(objective: Objective, model: nn.Module, encoder: nn.Module | None, x: Tensor) -> Tensor:
    values = objective(model, encoder, x)
    if values.shape != (len(x),):
        raise ValueError(f"objective must return shape ({len(x)},), got {tuple(values.shape)}")
    return values


@torch.no_grad()
def _evaluated(evaluate: Callable[[], float]) -> float:
    return float(evaluate())


def _check_step(values: Tensor, parameters: list[Tensor], index: Tensor, epoch: int) -> None:
    bad = index[~torch.isfinite(values)]
    if len(bad):
        raise NonFiniteError(f"objective is NaN or infinite in epoch {epoch}, at data points {bad[:5].tolist()}")
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not torch.isfinite(nn.utils.get_total_norm(gradients)):
        raise NonFiniteError(f"the gradient is NaN or infinite in epoch {epoch}, batch of {index[:5].tolist()}, …")


@torch.no_grad()
@checked
def em(
    model: FiniteMixture, x: Float[Tensor, "n d"], num_steps: int, *, pseudo_count: float = 0.0
) -> Float[Tensor, " steps_and_start"]:
    r"""Run EM on a finite mixture, in place.

    .. math:: r_{ic} = p(z = c \mid x^{(i)}), \qquad
              \theta \leftarrow \arg\max_\theta \sum_i \sum_c r_{ic} \log p_\theta(x^{(i)}, z = c) + \log p(\theta)

    No step decreases Σ log p(x) + log p(θ), where log p(θ) is the log density of the prior that `pseudo_count`
    stands for (0 without pseudo-counts).

    Args:
        model: a `GaussianMixture` or `BernoulliMixture`.
        x: data, shape ``(N, D)``.
        num_steps: number of E- and M-steps, ≥ 1.
        pseudo_count: imagined observations of each kind per pixel; see `BernoulliMixture.m_step`.

    Returns:
        The objective (Σ log p(x) + log p(θ)) / N before the first step and after each, shape ``(num_steps + 1,)``,
        in nats per data point.

    Raises:
        ValueError: an argument out of range, or an M-step without a finite answer (see the model's `m_step`); the
            model is then left as it was before that step.

    Reference:
        Dempster, Laird and Rubin (1977); chapter 2.

    >>> from lvmlib import GaussianMixture
    >>> model = GaussianMixture(torch.tensor([0.5, 0.5]), torch.tensor([[-1.0], [1.0]]), torch.tensor(0.1))
    >>> _ = em(model, torch.tensor([[-2.0], [-2.0], [-2.0], [4.0]]), num_steps=3)
    >>> model.loc.detach().flatten(), model.prior().probs.detach()
    (tensor([-2.,  4.]), tensor([0.7500, 0.2500]))
    """
    check_count("num_steps", num_steps)

    def objective() -> Tensor:
        return exact_log_marginal(model, x).mean() + model.log_penalty(pseudo_count) / len(x)

    history = [objective()]
    for _ in range(num_steps):
        model.m_step(x, exact_posterior(model, x).law.probs, pseudo_count)
        history.append(objective())
    return torch.stack(history)
