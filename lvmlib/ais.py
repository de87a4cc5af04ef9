r"""Annealed importance sampling: log-weights of chains that walk from the prior to the posterior.

A second opinion on log p(x) that needs no encoder. Between neighbouring laws of the path the chains move by
Hamiltonian Monte Carlo, which leaves each law as it is. Chains that walk back from an exact draw of the posterior
bound log p(x) from above.
"""

import itertools
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lvmlib.contracts import check_count, check_positive, checked
from lvmlib.models import GaussianLatentModel, LatentVariableModel

TARGET = 0.65  # share of accepted moves that the step sizes are adapted to
GAIN = 0.2  # change of a log step size per unit of error in the share
NUM_PILOTS = 4  # chains per data point that find the step sizes, and do not count


class Point(NamedTuple):
    """Where chains stand: z, shape ``(K, B, z_dim)``; log p(x | z), ``(K, B)``; and its gradient in z."""

    z: Tensor
    log_likelihood: Tensor
    slope: Tensor


def path(num_steps: int) -> Float[Tensor, " steps_and_start"]:
    r"""Return the exponents :math:`0 = \beta_0 < \dots < \beta_T = 1`, close to one another at both ends.

    .. math:: \beta_t \propto \sigma(8 t / T - 4) - \sigma(-4)

    Reference:
        Wu et al. (2017), arXiv:1611.04273.

    >>> path(4)
    tensor([0.0000, 0.1050, 0.5000, 0.8950, 1.0000], dtype=torch.float64)
    """
    check_count("num_steps", num_steps)
    curve = torch.linspace(-4, 4, num_steps + 1, dtype=torch.float64).sigmoid()
    return (curve - curve[0]) / (curve[-1] - curve[0])


@checked
def annealed_log_weights(
    model: LatentVariableModel,
    x: Float[Tensor, "b d"],
    num_samples: int,
    num_steps: int,
    *,
    num_leapfrog: int = 5,
    step_size: float | Float[Tensor, "moves b"] | None = None,
) -> Float[Tensor, "k b"]:
    r"""Log-weights of K annealed chains per data point; like those of importance sampling, but nearly equal.

    .. math:: \log w = \sum_{t=1}^T (\beta_t - \beta_{t-1}) \log p(x \mid z_{t-1}), \qquad
              z_0 \sim p(z), \quad z_t \sim \text{a move that keeps } \pi_t(z) \propto p(z) \, p(x \mid z)^{\beta_t}

    The mean of w is unbiased for p(x), whatever T and the step sizes, so `log_mean_exp` of the result is biased low for
    log p(x); the more steps, the less. With T = 1 it is importance sampling from the prior. Chains that all miss a
    region of the posterior give a number that is too low and looks sure.

    Args:
        model: a `GaussianLatentModel`, with a decoder that is differentiable in z.
        x: data, shape ``(B, D)``.
        num_samples: K ≥ 1 chains per data point.
        num_steps: T ≥ 1 laws after the prior.
        num_leapfrog: steps of the integrator per move, ≥ 1.
        step_size: of the integrator, above 0; a number, or one per move and data point, shape ``(T − 1, B)``. By
            default four pilot chains per data point adapt it to a share of 0.65 accepted moves. The pilots do not
            count, because a step size that depends on the chain itself would make the estimate biased.

    Returns:
        log w in nats, shape ``(K, B)``, without gradient.

    Raises:
        ValueError: an argument out of range, x does not fit the model, or the prior is not standard normal.

    Reference:
        Neal (2001), arXiv:physics/9803008; Neal (2011), section 5.3, arXiv:1206.1901; Wu et al. (2017),
        arXiv:1611.04273; chapter 10.

    >>> from lvmlib import LinearGaussian, exact_log_marginal, log_mean_exp
    >>> model, x = LinearGaussian(torch.tensor([[3.0]]), torch.zeros(1), 1.0), torch.tensor([[5.0]])
    >>> log_w = annealed_log_weights(model, x, num_samples=500, num_steps=50)
    >>> bool((log_mean_exp(log_w) - exact_log_marginal(model, x)).abs() < 0.5)
    True
    """
    check_count("num_samples", num_samples)
    exponents, sizes = _plan(model, x, num_steps, num_leapfrog, step_size)
    return _walk(model, x, _start(model, x, num_samples), exponents, sizes, num_leapfrog)


@checked
def reverse_annealed_log_weights(
    model: LatentVariableModel,
    x: Float[Tensor, "b d"],
    z: Float[Tensor, "k b z"],
    num_steps: int,
    *,
    num_leapfrog: int = 5,
    step_size: float | Float[Tensor, "moves b"] | None = None,
) -> Float[Tensor, "k b"]:
    r"""Log-weights of K chains that walk from the posterior back to the prior: those of the forward chains, reversed.

    .. math:: \log w = \sum_{t=1}^T (\beta_t - \beta_{t-1}) \log p(x \mid z_{t-1}), \qquad
              z_{T-1} \sim p(z \mid x), \quad z_{t-1} \sim \text{a move that keeps } \pi_t, \text{ from } z_t

    The mean of 1 / w is 1 / p(x) exactly, so the mean of log w is at least log p(x), and so is that of
    ``-log_mean_exp(-log_w)``, which is the tighter the larger K. With `annealed_log_weights` below, log p(x) lies
    between the two in expectation. This needs a z that *is* a draw from the posterior, as the z of
    ``model.sample(n)`` is for its x. From any other z, such as one that an encoder proposes, it bounds nothing.

    Args:
        model: a `GaussianLatentModel`, with a decoder that is differentiable in z.
        x: data, shape ``(B, D)``.
        z: exact draws from p(z | x), where the chains start, shape ``(K, B, z_dim)``; the K may be one and the same.
        num_steps, num_leapfrog, step_size: as for `annealed_log_weights`.

    Returns:
        log w in nats, shape ``(K, B)``, without gradient.

    Raises:
        ValueError: an argument out of range, x or z do not fit the model, or the prior is not standard normal.

    Reference:
        Grosse, Ghahramani and Adams (2015), arXiv:1511.02543; Wu et al. (2017), arXiv:1611.04273; chapter 10.

    >>> from lvmlib import LinearGaussian, exact_log_marginal
    >>> model = LinearGaussian(torch.tensor([[3.0]]), torch.zeros(1), 1.0)
    >>> z, x = model.sample(500)
    >>> below = annealed_log_weights(model, x, num_samples=1, num_steps=20)
    >>> above = reverse_annealed_log_weights(model, x, z[None], num_steps=20)
    >>> bool(below.mean() < exact_log_marginal(model, x).mean() < above.mean())
    True
    """
    check_count("K of z", len(z))
    exponents, sizes = _plan(model, x, num_steps, num_leapfrog, step_size)
    model.check_z(z)
    return -_walk(model, x, _at(model, x, z), exponents[::-1], sizes.flip(0), num_leapfrog)


def _plan(
    model: LatentVariableModel, x: Tensor, num_steps: int, num_leapfrog: int, step_size: float | Tensor | None
) -> tuple[list[float], Tensor]:
    """Check the arguments; return the exponents, and the step sizes, one per move and data point, ``(T − 1, B)``."""
    check_count("num_leapfrog", num_leapfrog)
    if not isinstance(model, GaussianLatentModel):
        raise ValueError(f"model must be a GaussianLatentModel (z ~ N(0, I)), got {type(model).__name__}")
    exponents = path(num_steps).tolist()
    if step_size is None:
        step_size = _adapted(model, x, exponents, num_leapfrog) if num_steps > 1 else 1.0
    check_positive("step_size", step_size)
    sizes = torch.as_tensor(step_size, dtype=x.dtype, device=x.device)
    if sizes.dim() and sizes.shape != (num_steps - 1, len(x)):
        raise ValueError(f"step_size must have shape ({num_steps - 1}, {len(x)}), got {tuple(sizes.shape)}")
    return exponents, sizes.expand(num_steps - 1, len(x))


def _walk(
    model: GaussianLatentModel, x: Tensor, point: Point, exponents: list[float], sizes: Tensor, num_leapfrog: int
) -> Tensor:
    """Return the sum of exponent differences times log p(x | z) along chains, ``(K, B)``; each move keeps its law."""
    log_w = torch.zeros_like(point.log_likelihood)
    for step, (before, now) in enumerate(itertools.pairwise(exponents)):
        log_w = log_w + (now - before) * point.log_likelihood
        if step < len(sizes):
            point, _ = _move(model, x, point, now, sizes[step], num_leapfrog)
    return log_w


def _adapted(model: GaussianLatentModel, x: Tensor, exponents: list[float], num_leapfrog: int) -> Tensor:
    """Return the step sizes that pilot chains arrive at, one per move and data point, shape ``(T − 1, B)``."""
    point = _start(model, x, NUM_PILOTS)
    size, sizes = x.new_full((len(x),), model.z_dim**-0.25), []
    for exponent in exponents[1:-1]:
        sizes.append(size)
        point, chance = _move(model, x, point, exponent, size, num_leapfrog)
        size = size * (GAIN * (chance.mean(0) - TARGET)).exp()
    return torch.stack(sizes)


def _start(model: GaussianLatentModel, x: Tensor, num_samples: int) -> Point:
    """Draw from the prior."""
    return _at(model, x, torch.randn(num_samples, len(x), model.z_dim, dtype=x.dtype, device=x.device))


@torch.enable_grad()
def _at(model: GaussianLatentModel, x: Tensor, z: Tensor) -> Point:
    """Return the point at z."""
    z = z.detach().requires_grad_()
    log_likelihood = model.log_likelihood(x, z)
    (slope,) = torch.autograd.grad(log_likelihood.sum(), z)
    return Point(z.detach(), log_likelihood.detach(), slope)


def _move(
    model: GaussianLatentModel, x: Tensor, start: Point, exponent: float, size: Tensor, num_leapfrog: int
) -> tuple[Point, Tensor]:
    """Make one Hamiltonian move that leaves π(z) ∝ p(z) p(x | z)^β as it is; return also its chance, ``(K, B)``."""
    momentum, size = torch.randn_like(start.z), size[:, None]
    end, kick = start, momentum
    for _ in range(num_leapfrog):
        kick = kick + size / 2 * (exponent * end.slope - end.z)
        end = _at(model, x, end.z + size * kick)
        kick = kick + size / 2 * (exponent * end.slope - end.z)
    gain = _log_density(end, kick, exponent) - _log_density(start, momentum, exponent)
    chance = gain.exp().clamp(max=1.0).nan_to_num(0.0)  # a move into what is not a number is refused
    accepted = torch.rand_like(chance) < chance
    z, slope = (torch.where(accepted[..., None], a, b) for a, b in ((end.z, start.z), (end.slope, start.slope)))
    kept = Point(z, torch.where(accepted, end.log_likelihood, start.log_likelihood), slope)
    return kept, chance


def _log_density(point: Point, momentum: Tensor, exponent: float) -> Tensor:
    """Return log p(z) + β log p(x | z) + log N(momentum; 0, I), without their constants, shape ``(K, B)``."""
    return exponent * point.log_likelihood - (point.z.square() + momentum.square()).sum(-1) / 2
