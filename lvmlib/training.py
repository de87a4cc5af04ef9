r"""Training: one loop for every objective with a gradient, and the EM algorithm for finite mixtures."""

import functools
import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lvmlib.contracts import check_count, check_positive, checked
from lvmlib.exact import exact_log_marginal, exact_posterior
from lvmlib.importance import draw, score
from lvmlib.mixtures import FiniteMixture
from lvmlib.models import LatentVariableModel
from lvmlib.progress import bar
from lvmlib.proposals import FreeProposal, prior_proposal
from lvmlib.weights import NonFiniteError

ADAM = functools.partial(torch.optim.Adam, fused=True)
Objective = Callable[[nn.Module, nn.Module | None, Tensor], Tensor]


def linear_to_a_tenth(progress: float) -> float:
    """Return the learning rate's factor after a share `progress` of the steps: 1 until half, then down to 0.1.

    >>> [linear_to_a_tenth(progress) for progress in (0.0, 0.5, 1.0)]
    [1.0, 1.0, 0.1]
    """
    return min(1.0, 1.9 - 1.8 * progress)


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
    optimizer: Callable[..., torch.optim.Optimizer] = ADAM,
    schedule: Callable[[float], float] = linear_to_a_tenth,
    evaluate: Callable[[], float] | None = None,
    evaluate_every: int = 1,
    validation: Float[Tensor, "m d"] | None = None,
    criterion: Objective | None = None,
    patience: int | None = None,
    progress: bool = False,
) -> dict[str, Tensor]:
    r"""Maximize the mean of an objective over the data by gradient steps, in shuffled minibatches.

    .. math:: \max_{\theta, \phi} \; \frac1N \sum_{i=1}^N \mathcal L_{\theta, \phi}(x^{(i)})

    This is the one place where the sign flips (a loss is minimized) and where the mean over the batch is taken.
    The model, and the encoder if there is one, are changed in place.

    Args:
        model: gives p.
        objective: a function ``(model, encoder, x) -> (B,)`` in nats per data point, the larger the better.
        x: training data, shape ``(N, D)``.
        encoder: gives q, if the objective needs it.
        num_epochs: passes over the data, ≥ 1.
        batch_size: data points per step, from 1 to N; the last batch of an epoch may be smaller.
        learning_rate: the optimizer's, > 0.
        optimizer: called as ``optimizer(parameters, lr=learning_rate)``, such as ``torch.optim.SGD``; Adam by default.
        schedule: factor of the learning rate as a function of the share of steps done, from 0 to 1; by default 1 over
            the first half, then linearly down to a tenth.
        evaluate: called without arguments and without gradient after epochs `evaluate_every`, 2·`evaluate_every`, …,
            and before the first; its numbers come back in the history.
        evaluate_every: in epochs.
        validation: data to choose the state by, shape ``(M, D)``. The mean of the criterion over them is computed at
            the same epochs, each time with the same random numbers, and the best of these states is what remains.
        criterion: what to choose by, a function like `objective`, which it is by default.
        patience: stop after this many validations without a new best, ≥ 1; needs `validation`.
        progress: show a progress bar with the current objective.

    Returns:
        ``objective``: mean over each epoch's data, shape ``(number of epochs run,)``, in nats; with `evaluate` or
        `validation` also these and ``evaluate_epoch``, the epochs of both; with `validation` also ``best_epoch``.

    Raises:
        ValueError: an argument out of range, or an objective of another shape than ``(B,)``.
        NonFiniteError: the objective, its gradient or a parameter is NaN or infinite; names the step, the data points
            and the term or parameter. Whenever the objective fails, the parameters go back to those at which it and
            its gradient were last finite.

    Reference:
        Kingma and Ba (2015), algorithm 1, arXiv:1412.6980, for the default optimizer.

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
    _check_data(x, batch_size, encoder, validation, patience)
    named = trained_parameters(model, encoder)
    parameters = list(named.values())
    stepper = optimizer(parameters, lr=learning_rate)
    num_steps = num_epochs * math.ceil(len(x) / batch_size)
    rates = [group["lr"] for group in stepper.param_groups]
    random_state = torch.get_rng_state()

    def validate() -> float:
        return _mean_objective(criterion or objective, model, encoder, validation, batch_size, random_state)

    watch = _Watch(evaluate, validate if validation is not None else None, parameters)
    watch.look(epoch=0)
    objectives, good, step = [], _copies(parameters), 0
    epochs = bar(range(1, num_epochs + 1), "fit", "epoch", show=progress)
    try:
        for epoch in epochs:
            total = 0.0
            for index in torch.randperm(len(x)).split(batch_size):
                _set_rate(stepper, rates, schedule(step / num_steps))
                when, terms = f"epoch {epoch}", lambda bad: broken_terms(model, encoder, x[bad])
                try:
                    values = _objective_values(objective, model, encoder, x.index_select(0, index))
                except NonFiniteError as error:  # in the log-weights or the scales that the objective met
                    raise NonFiniteError(f"{error}, in {when}{terms(index)}") from error
                stepper.zero_grad()
                (-values.mean()).backward()
                check_step(values, named, index, when, terms)
                _put(good, parameters)
                stepper.step()
                step += 1
                total += values.detach().sum().item()
            objectives.append(total / len(x))
            epochs.set_postfix_str(f"{objectives[-1]:.3f} nats", refresh=False)
            if epoch % evaluate_every == 0:
                watch.look(epoch)
                if patience is not None and epoch - watch.best_epoch >= patience * evaluate_every:
                    break
        if broken := [name for name, parameter in named.items() if not torch.isfinite(parameter).all()]:
            raise NonFiniteError(f"the last step made {', '.join(broken)} NaN or infinite; lower the learning rate")
    except Exception:
        _put(parameters, good)
        raise
    finally:
        epochs.close()
    return {"objective": torch.tensor(objectives)} | watch.result()


def _check_data(
    x: Tensor, batch_size: int, encoder: nn.Module | None, validation: Tensor | None, patience: int | None
) -> None:
    if isinstance(encoder, FreeProposal):
        raise ValueError(
            f"encoder must compute q from x, because fit shuffles the data; got {type(encoder).__name__}, which has "
            "one law per data point: use fit_proposal"
        )
    if len(x) == 0 or batch_size > len(x):
        raise ValueError(f"batch_size must be from 1 to the number of data points {len(x)}, got {batch_size}")
    if validation is not None and (len(validation) == 0 or validation.shape[1:] != x.shape[1:]):
        raise ValueError(f"validation must have shape (M, {x.shape[1]}) with M >= 1, got {tuple(validation.shape)}")
    if patience is not None:
        check_count("patience", patience)
        if validation is None:
            raise ValueError(f"patience needs validation data to judge an improvement by, got patience={patience} only")


def trained_parameters(model: nn.Module, encoder: nn.Module | None) -> dict[str, Tensor]:
    """Return the parameters that training may change, by their full names."""
    modules = {"model": model} | ({} if encoder is None else {"encoder": encoder})
    return {
        f"{part}.{name}": parameter
        for part, module in modules.items()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def _set_rate(stepper: torch.optim.Optimizer, rates: list[float], factor: float) -> None:
    """Multiply the learning rates that the optimizer began with by a factor."""
    for group, rate in zip(stepper.param_groups, rates, strict=True):
        group["lr"] = rate * factor


class _Watch:
    """What is looked at between epochs, and the best state so far by the validation data."""

    def __init__(
        self, evaluate: Callable[[], float] | None, validate: Callable[[], float] | None, parameters: list[Tensor]
    ):
        self.functions = {"evaluate": evaluate, "validation": validate}
        self.parameters, self.best, self.best_epoch = parameters, -math.inf, 0
        self.state = _copies(parameters)
        self.history = {name: [] for name, function in self.functions.items() if function is not None}
        self.epochs: list[int] = []

    @torch.no_grad()
    def look(self, epoch: int) -> None:
        for name, values in self.history.items():
            values.append(float(self.functions[name]()))
        self.epochs.append(epoch)
        if "validation" in self.history and self.history["validation"][-1] > self.best:
            self.best, self.best_epoch = self.history["validation"][-1], epoch
            self.state = _copies(self.parameters)

    def result(self) -> dict[str, Tensor]:
        """Return the history, and put the parameters into their best state if there are validation data."""
        told = {name: torch.tensor(values) for name, values in self.history.items()}
        if told:
            told["evaluate_epoch"] = torch.tensor(self.epochs)
        if "validation" in told:
            _put(self.parameters, self.state)
            told["best_epoch"] = torch.tensor(self.best_epoch)
        return told


def _copies(tensors: list[Tensor]) -> list[Tensor]:
    """Return copies that share no memory with the tensors."""
    return [tensor.detach().clone() for tensor in tensors]


@torch.no_grad()
def _put(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy the values of the sources into the targets."""
    torch._foreach_copy_(targets, sources)


def _mean_objective(
    objective: Objective, model: nn.Module, encoder: nn.Module | None, x: Tensor, batch_size: int, random_state: Tensor
) -> float:
    """Return the objective's mean over x; the same random numbers each time, and none are taken from the training."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(random_state)
        values = [_objective_values(objective, model, encoder, batch) for batch in x.split(batch_size)]
    return torch.cat(values).mean().item()


@torch.no_grad()
def broken_terms(model: nn.Module, encoder: nn.Module | None, x: Tensor) -> str:
    """Say which parts of log w are not finite at x, as far as a fresh draw of z shows it."""
    if not isinstance(model, LatentVariableModel):
        return ""
    try:
        q = (prior_proposal(model) if encoder is None else encoder)(x)
        sample = score(model, x, q, draw(q, 1))
    except ValueError as error:
        return f"; there, {error}"
    parts = ("log_prior", "log_likelihood", "log_q")
    found = [name for name in parts if not torch.isfinite(getattr(sample, name)).all()]
    return f"; not finite there in a fresh draw of z: {', '.join(found) or 'no term of log w'}"


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
    named = {name: parameter for name, parameter in proposal.named_parameters() if parameter.requires_grad}
    parameters = list(named.values())
    stepper = ADAM(parameters, lr=learning_rate)
    rate = torch.optim.lr_scheduler.LambdaLR(stepper, lambda step: min(1.0, 2.0 - 2.0 * step / num_steps))
    history, good = [], _copies(parameters)
    try:
        for step in range(num_steps):
            values = _objective_values(objective, model, proposal, x)
            history.append(values.detach().clone())  # an objective may return a view of a parameter
            gradients = torch.autograd.grad(-values.sum(), parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            check_step(
                values, named, torch.arange(len(x)), f"step {step}", lambda bad: broken_terms(model, proposal, x)
            )
            _put(good, parameters)
            stepper.step()
            rate.step()
        with torch.no_grad():
            history.append(_objective_values(objective, model, proposal, x).clone())
    except Exception:
        _put(parameters, good)
        raise
    return torch.stack(history)


def _objective_values(objective: Objective, model: nn.Module, encoder: nn.Module | None, x: Tensor) -> Tensor:
    values = objective(model, encoder, x)
    if values.shape != (len(x),):
        raise ValueError(f"objective must return shape ({len(x)},), got {tuple(values.shape)}")
    return values


def check_step(
    values: Tensor, named: dict[str, Tensor], index: Tensor, when: str, terms: Callable[[Tensor], str]
) -> None:
    """Refuse an objective or a gradient that is not finite (`NonFiniteError`).

    Args:
        values: of the objective, shape ``(B,)``.
        named: the parameters, with their gradients.
        index: which data points these are, shape ``(B,)``.
        when: names the step.
        terms: says more about the data points where the objective is not finite.
    """
    if not math.isfinite(values.detach().sum().item()):  # one number; the sum of finite ones may overflow
        bad = index[~torch.isfinite(values)]
        if len(bad):
            where = f"at data points {bad[:5].tolist()}{terms(bad)}"
            raise NonFiniteError(f"objective is NaN or infinite in {when}, {where}")
    gradients = {name: parameter.grad for name, parameter in named.items() if parameter.grad is not None}
    if not math.isfinite(nn.utils.get_total_norm(list(gradients.values())).item()):
        broken = [name for name, gradient in gradients.items() if not torch.isfinite(gradient.norm())]
        raise NonFiniteError(
            f"the gradient of {', '.join(broken) or 'all parameters together'} is NaN or infinite in {when}, "
            f"batch of {index[:5].tolist()}, …"
        )


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
