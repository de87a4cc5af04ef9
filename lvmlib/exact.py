r"""The truth: log p(x) and p(z | x) without Monte Carlo, by enumeration, in closed form or by quadrature.

Enumeration and quadrature are one computation. A finite set of points :math:`z_s`, each with a volume
:math:`v_s`, gives :math:`p(x) = \sum_s v_s \, p(x, z_s)`: for a discrete z the points are its values and
:math:`v_s = 1`; for a continuous z they are the nodes of a grid.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Categorical, Distribution

from lvmlib.contracts import check_count, check_positive, checked
from lvmlib.laws import BernoulliVector
from lvmlib.models import GaussianLatentModel, LatentVariableModel, LinearGaussian, check_data
from lvmlib.proposals import Proposal, check_law
from lvmlib.quadrature import Grid, QuadratureError, check_resolved, functionals, hermite_nodes
from lvmlib.weights import check_log_w, log_mean_exp

MAX_STATES = 2**22
CHUNK_STATES = 2**14  # states per chunk: bounds the hidden layers of a decoder
CHUNK_NUMBERS = 2**20  # numbers per chunk of states: about 4 MB, which stays in cache


class ExactPosterior(NamedTuple):
    """p(z | x) of each data point: its `law`, and the `states` that a Categorical law ranges over.

    For an enumerable model `states` are all values of z; under quadrature they are the grid's nodes; both have shape
    ``(S, 1, *z_event)``. For a linear-Gaussian model `law` is a Gaussian over z itself and `states` is None.
    """

    law: Distribution
    states: Tensor | None


@checked
def exact_log_marginal(
    model: LatentVariableModel, x: Float[Tensor, "b d"], *, grid: Grid | None = None
) -> Float[Tensor, " b"]:
    r"""Exact log p(x), differentiable in the model's parameters.

    .. math:: \log p(x) = \log \sum_z p(z) \, p(x \mid z) \quad\text{or}\quad \log \int p(z) \, p(x \mid z) \, dz

    Closed form for a `LinearGaussian`, enumeration for a model with `num_states`, quadrature for a Gaussian prior in
    1 or 2 dimensions. Passing a `grid` asks for quadrature.

    Args:
        model: the model.
        x: data, shape ``(B, D)``.
        grid: nodes of the quadrature; ``Grid()`` if it is needed and not given.

    Returns:
        Shape ``(B,)``, in nats per data point.

    Raises:
        ValueError: no exact method applies, or there are more states than can be summed.
        QuadratureError: doubling the grid's spacing changes a value by more than ``grid.tolerance`` nats, or the
            integrand is not small at the edge of the box.

    >>> from lvmlib import LinearGaussian
    >>> model = LinearGaussian(torch.tensor([[3.0]]), torch.zeros(1), 4.0)
    >>> x = torch.tensor([[5.0]])
    >>> torch.stack([exact_log_marginal(model, x), exact_log_marginal(model, x, grid=Grid())]).detach()
    tensor([[-3.0284],
            [-3.0284]])
    """
    if grid is None and isinstance(model, LinearGaussian):
        law = model.marginal()
        check_data(x, law)
        return law.log_prob(x)
    if grid is None and model.num_states is not None:
        check_states(model, len(x), whole_table=False)
        return _stream_logsumexp(model, x)
    return _integrate(model, x, _check_grid(model, grid))


@checked
def exact_posterior(model: LatentVariableModel, x: Float[Tensor, "b d"], *, grid: Grid | None = None) -> ExactPosterior:
    r"""Exact posterior :math:`p(z \mid x) = p(x, z) / p(x)` of each data point.

    Args, methods and errors are those of `exact_log_marginal`.

    Returns:
        ``ExactPosterior(law, states)``. Under quadrature ``law.probs`` are the probabilities of the cells.

    >>> from lvmlib import GaussianMixture
    >>> model = GaussianMixture(torch.tensor([0.5, 0.5]), torch.tensor([[-1.0], [1.0]]), torch.ones(1))
    >>> exact_posterior(model, torch.tensor([[0.0], [1.0]])).law.probs.detach()
    tensor([[0.5000, 0.5000],
            [0.1192, 0.8808]])
    """
    if grid is None and isinstance(model, LinearGaussian):
        return ExactPosterior(model.posterior(x), None)
    if grid is None and model.num_states is not None:
        check_states(model, len(x), whole_table=True)
        states = model.states()
        return ExactPosterior(Categorical(logits=model.log_joint(x, states).T, validate_args=False), states)
    grid = _check_grid(model, grid)
    if len(x) * grid.num_nodes**model.z_dim > 16 * MAX_STATES:
        raise ValueError(
            f"x: the posterior is a table of {grid.num_nodes**model.z_dim} nodes x {len(x)} data points, allowed are "
            f"{16 * MAX_STATES} numbers; use fewer data points at a time or fewer nodes"
        )
    nodes = grid.nodes(model.z_dim).to(model.prior_loc)
    law = Categorical(logits=model.log_joint(x, nodes).T, validate_args=False)
    check_resolved(functionals(grid, model.z_dim).to(nodes) @ law.probs.detach().T, grid)
    return ExactPosterior(law, nodes)


@checked
def exact_elbo(
    model: LatentVariableModel,
    x: Float[Tensor, "b d"],
    q: Distribution,
    *,
    num_nodes: int = 40,
    tolerance: float = 1e-2,
) -> Float[Tensor, " b"]:
    r"""Exact ELBO of a given q, without samples and differentiable in q and in the model.

    .. math:: \mathrm{ELBO}(q) = \sum_z q(z) \, (\log p(x, z) - \log q(z)) \quad\text{or the integral}

    Enumeration for a q over finitely many values; for a Gaussian q in 1 or 2 dimensions tensor Gauss–Hermite
    quadrature over its noise, exact for polynomials of degree below 2·`num_nodes`.

    Args:
        model: gives p.
        x: data, shape ``(B, D)``.
        q: law with batch shape ``(B,)``: Categorical, BernoulliVector, DiagonalGaussian or FullGaussian.
        num_nodes: Gauss–Hermite nodes per axis, at most 300.
        tolerance: largest difference allowed to the value with three quarters of the nodes, in nats; infinity switches
            the check off, as an objective of many steps may want.

    Returns:
        Shape ``(B,)``, in nats per data point; at most log p(x), by KL(q ‖ p(z | x)).

    Raises:
        ValueError: q has another batch shape or is a law over another space, or no exact method applies to it.
        QuadratureError: the nodes do not resolve the model's density under q.

    Reference:
        Chapter 4.

    >>> from lvmlib import LinearGaussian
    >>> model, x = LinearGaussian(torch.tensor([[3.0]]), torch.zeros(1), 4.0), torch.tensor([[5.0]])
    >>> (exact_log_marginal(model, x) - exact_elbo(model, x, model.posterior(x))).abs().detach() < 1e-5
    tensor([True])
    """
    check_law(model, q, len(x))
    if hasattr(q, "transport") and isinstance(model, GaussianLatentModel) and model.z_dim <= 2:
        value = _hermite_elbo(model, x, q, num_nodes)
        if tolerance < math.inf:
            with torch.no_grad():
                error = (value - _hermite_elbo(model, x, q, 1 + 3 * num_nodes // 4)).abs().max().item()
            if not error <= tolerance:
                raise QuadratureError(
                    f"num_nodes: {num_nodes} nodes per axis leave an error of about {error:.2g} nats (against three "
                    f"quarters of them), allowed is {tolerance:g}; use more nodes, or a larger tolerance"
                )
        return value
    if model.num_states is None or hasattr(q, "transport"):
        raise ValueError(
            f"q: no exact ELBO is known for {type(q).__name__} with {type(model).__name__}; allowed are laws over "
            "finitely many states, and Gaussian laws with z_dim 1 or 2; otherwise use the estimate elbo"
        )
    check_states(model, len(x), whole_table=True)
    states = model.states()
    log_q = q.log_prob(states.expand(-1, len(x), *model.z_shape))
    # 0 · (log p − (−∞)) is 0: a state that q does not reach contributes nothing
    possible = log_q > -math.inf
    difference = torch.where(possible, model.log_joint(x, states) - torch.where(possible, log_q, 0.0), 0.0)
    return (log_q.exp() * difference).sum(0)


def _hermite_elbo(model: LatentVariableModel, x: Tensor, q: Distribution, num_nodes: int) -> Tensor:
    noise, log_weight = hermite_nodes(num_nodes, model.z_dim)
    if len(noise) * len(x) > 4 * MAX_STATES:
        raise ValueError(
            f"num_nodes: {len(noise)} nodes x {len(x)} data points are too many, allowed are {4 * MAX_STATES} in all"
        )
    z = q.transport(noise.to(q.mean).expand(-1, len(x), -1))
    return log_weight.exp().to(q.mean) @ (model.log_joint(x, z) - q.log_prob(z))


def posterior_proposal(model: LatentVariableModel) -> Proposal:
    """Return the best proposal there is, p(z | x), for a mixture or a linear-Gaussian model.

    Raises:
        ValueError: when called, if the exact posterior is not a law over z itself but over grid nodes or bit vectors.

    >>> from lvmlib import GaussianMixture
    >>> model = GaussianMixture(torch.tensor([0.5, 0.5]), torch.tensor([[-1.0], [1.0]]), torch.ones(1))
    >>> posterior_proposal(model)(torch.zeros(3, 1)).probs.shape
    torch.Size([3, 2])
    """

    def proposal(x: Tensor) -> Distribution:
        law, states = exact_posterior(model, x)
        if states is not None and states.dim() > 2:
            raise ValueError(f"model: the posterior of {type(model).__name__} is known only as a table over states")
        return law

    return proposal


def check_states(model: LatentVariableModel, num_data: int, *, whole_table: bool) -> None:
    """Refuse an enumeration that would not finish or not fit, before any memory is asked for (``ValueError``)."""
    numbers = model.num_states * num_data if whole_table else 0
    if model.num_states > MAX_STATES or numbers > 16 * MAX_STATES:
        num_bytes = 4 * model.num_states * (num_data + math.prod(model.z_shape))
        raise ValueError(
            f"model: enumeration needs {_readable(model.num_states)} states x {num_data} data points "
            f"({_readable(num_bytes)} bytes), allowed are {MAX_STATES} states and {16 * MAX_STATES} numbers; use fewer "
            "latents, fewer data points, or the estimate log_marginal_estimate(model, x, proposal, num_samples)"
        )


def _readable(count: int) -> str:
    return str(count) if count < 10**18 else f"10^{len(str(count)) - 1}"


def _numbers_per_state(model: LatentVariableModel, x: Tensor) -> int:
    """Return the size of the largest array that scores one state: Bernoulli laws pair both sides by matrix products."""
    with torch.no_grad():
        law = model.likelihood(model.states(0, 1))
    return len(x) if isinstance(law, BernoulliVector) else x.numel()


def _stream_logsumexp(model: LatentVariableModel, x: Tensor) -> Tensor:
    """Return log Σ_z p(x, z), a chunk of states at a time: memory does not grow with their number (without grad)."""
    chunk = max(1, min(CHUNK_STATES, CHUNK_NUMBERS // max(1, _numbers_per_state(model, x))))
    total = x.new_full((len(x),), -math.inf)
    for start in range(0, model.num_states, chunk):
        states = model.states(start, min(start + chunk, model.num_states))
        table = torch.cat([total[None], model.log_joint(x, states)])
        total = log_mean_exp(table) + math.log(len(table))  # log-sum-exp with gradient 0 where all states are −∞
    return total


def _check_grid(model: LatentVariableModel, grid: Grid | None) -> Grid:
    if not isinstance(model, GaussianLatentModel) or model.z_dim > 2:
        raise ValueError(
            f"model (or grid): no exact log p(x) is known for {type(model).__name__} with z_dim = "
            f"{getattr(model, 'z_dim', None)}; allowed are finitely many states, LinearGaussian, and a Gaussian prior "
            "with z_dim 1 or 2; otherwise use log_marginal_estimate"
        )
    grid = Grid() if grid is None else grid
    check_count("grid.num_nodes", grid.num_nodes, minimum=5)
    if grid.num_nodes % 2 == 0:
        raise ValueError(f"grid.num_nodes must be odd, so that every second node is a grid too, got {grid.num_nodes}")
    check_positive("grid.radius", grid.radius)
    if not grid.tolerance > 0:
        raise ValueError(f"grid.tolerance must be above 0 (infinity switches the check off), got {grid.tolerance}")
    if grid.num_nodes**model.z_dim > MAX_STATES:
        raise ValueError(
            f"grid.num_nodes: {grid.num_nodes} per axis make {grid.num_nodes**model.z_dim} nodes in {model.z_dim} "
            f"dimensions, allowed are {MAX_STATES}"
        )
    return grid


def _integrate(model: LatentVariableModel, x: Tensor, grid: Grid) -> Tensor:
    """Return log ∫ p(x, z) dz by the trapezoid rule, a chunk of nodes at a time, and check the grid on the way."""
    nodes = grid.nodes(model.z_dim).to(model.prior_loc)
    sum_weights = functionals(grid, model.z_dim).to(nodes)
    chunk = max(1, CHUNK_NUMBERS * 4 // max(64, len(x)))
    shift, sums = x.new_full((len(x),), -math.inf), 0.0
    for start in range(0, len(nodes), chunk):
        table = model.log_joint(x, nodes[start : start + chunk])
        largest = torch.maximum(shift, table.detach().amax(0))
        sums = sums * (shift - largest).exp() + sum_weights[:, start : start + chunk] @ (table - largest).exp()
        shift = largest
    check_resolved((sums / sums[0]).detach(), grid)
    return sums[0].log() + shift + grid.log_volume(model.z_dim)


def count_vectors(num_states: int, num_samples: int) -> Float[Tensor, "n c"]:
    """Return all ways to distribute K samples over C states, shape ``(N, C)``, in float64.

    Raises:
        ValueError: there are more than 2^22 of them.

    >>> count_vectors(2, 2).tolist()
    [[0.0, 2.0], [1.0, 1.0], [2.0, 0.0]]
    """
    check_count("num_states", num_states)
    check_count("num_samples", num_samples, minimum=0)
    number = math.comb(num_samples + num_states - 1, num_states - 1)
    if number > MAX_STATES:
        raise ValueError(
            f"num_samples: {num_samples} samples of {num_states} states give {number} count vectors, "
            f"allowed are {MAX_STATES}"
        )
    rows = torch.zeros(1, 0, dtype=torch.float64)
    for _ in range(num_states - 1):
        left = num_samples - rows.sum(1)
        repeats = left.long() + 1
        starts = repeats.cumsum(0) - repeats
        new = torch.arange(int(repeats.sum())) - starts.repeat_interleave(repeats)
        rows = torch.cat([rows.repeat_interleave(repeats, 0), new[:, None].double()], 1)
    return torch.cat([rows, (num_samples - rows.sum(1))[:, None]], 1)


@checked
def exact_expected_log_mean(
    log_w: Float[Tensor, " c"], log_q: Float[Tensor, " c"], num_samples: int
) -> Float[Tensor, ""]:
    r"""Exact :math:`E[\log \hat p_K]` for a z with few values, by summing over how often each value is drawn.

    .. math:: E[\log \hat p_K] = \sum_{n_1 + \dots + n_C = K} \frac{K!}{\prod_c n_c!} \prod_c q_c^{n_c}
              \; \log \frac1K \sum_c n_c w_c

    The order of the samples does not matter, so K^C tuples become (K + C − 1 choose C − 1) counts.

    Args:
        log_w: log-weight of each state, shape ``(C,)``.
        log_q: log probability of each state under the proposal, shape ``(C,)``.
        num_samples: K ≥ 1.

    Returns:
        A number in nats, below log p(x) = log Σ q w; float64.

    Raises:
        ValueError: there are more than 2^22 count vectors, or `log_q` does not sum to 1.

    >>> half = torch.tensor([0.5, 0.5]).log()
    >>> exact_expected_log_mean(torch.tensor([0.0, 2.0]), half, 1).round(decimals=6)  # the mean of 0 and 2
    tensor(1., dtype=torch.float64)
    """
    check_count("num_samples", num_samples)
    log_w, log_q = log_w.double(), log_q.double()
    check_log_w(log_w[:, None])
    if not abs(log_q.logsumexp(0).item()) < 1e-5:
        raise ValueError(f"log_q must be normalized (log-sum-exp 0 within 1e-5), got {log_q.logsumexp(0).item():g}")
    counts = count_vectors(len(log_w), num_samples)
    log_multinomial = math.lgamma(num_samples + 1) - torch.lgamma(counts + 1).sum(1)
    # 0 · (−∞) is 0 here: a state that is not drawn contributes nothing
    log_probability = log_multinomial + torch.where(counts > 0, counts * log_q, 0.0).sum(1)
    log_mean = (counts.log() + log_w).logsumexp(1) - math.log(num_samples)
    possible = log_probability > -math.inf
    log_probability, log_mean = log_probability[possible], log_mean[possible]
    if (log_mean == -math.inf).any():
        return log_mean.amin()  # some possible run has no weight at all
    return (log_probability.exp() * log_mean).sum()
