"""Annealed importance sampling: its expectation is p(x), by quadrature over all that is random, and by many chains.

For the chains that walk back, the expectation of the inverse weight is 1 / p(x).
"""

import math

import pytest
import torch

from lvmlib import (
    BernoulliMixture,
    annealed_log_weights,
    effective_sample_size,
    exact_log_marginal,
    log_marginal_estimate,
    log_mean_exp,
    prior_proposal,
    reverse_annealed_log_weights,
)
from lvmlib import ais as module
from lvmlib.quadrature import Grid
from tests.conftest import X_DIM

F64 = torch.float64
FINE = Grid(num_nodes=2001, radius=9.0)


@pytest.fixture(params=["gaussian_latent", "narrow_linear_gaussian"])
def one_dimensional(request):
    """A model with one latent dimension, far from a constant likelihood."""
    if request.param == "gaussian_latent":
        model = request.getfixturevalue("gaussian_latent")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3.0)
        return model
    return request.getfixturevalue(request.param)


@pytest.fixture
def narrow_linear_gaussian():
    from lvmlib import LinearGaussian

    return LinearGaussian(torch.tensor([[1.1], [-0.6], [0.4]], dtype=F64), torch.zeros(3, dtype=F64), 0.8)


def nodes(number=301, radius=7.0):
    """Return nodes and their weights under the standard normal law; the kink in min(1, ·) leaves an error of 2e-5."""
    points = torch.linspace(-radius, radius, number, dtype=F64)
    weights = torch.exp(-points.square() / 2)
    return points, weights / weights.sum()


def hamiltonian_move(model, x, z, momentum, exponent, step, num_leapfrog):
    """Return where a move of one chain ends and the chance that it is accepted, from the definition."""

    def potential(z):
        return z.square().sum(-1) / 2 - exponent * model.log_likelihood(x, z)

    def slope(z):
        z = z.detach().requires_grad_()
        return torch.autograd.grad(potential(z).sum(), z)[0]

    def energy(z, momentum):
        return potential(z) + momentum.square().sum(-1) / 2

    end, kick = z, momentum - step / 2 * slope(z)
    for number in range(num_leapfrog):
        end = end + step * kick
        kick = kick - (step if number < num_leapfrog - 1 else step / 2) * slope(end)
    return end, (energy(z, momentum) - energy(end, kick)).exp().clamp(max=1)


@pytest.mark.parametrize("num_leapfrog, step", [(1, 0.9), (3, 0.7)])
def test_the_expected_weight_after_one_move_is_p_of_x(one_dimensional, data, monkeypatch, num_leapfrog, step):
    model, x = one_dimensional, data(one_dimensional, 2)[:1]
    points, shares = nodes()
    start = points.repeat_interleave(len(points))[:, None, None]
    momentum = points.repeat(len(points))[:, None, None]
    share = (shares[:, None] * shares[None, :]).flatten()
    monkeypatch.setattr(module, "_start", lambda model, x, num_samples: module._at(model, x, start))
    monkeypatch.setattr(module.torch, "randn_like", lambda z: momentum)
    log_w = {}
    for name, uniform in (("accepted", torch.zeros_like), ("refused", torch.ones_like)):
        monkeypatch.setattr(module.torch, "rand_like", uniform)
        log_w[name] = annealed_log_weights(
            model, x, len(start), 2, num_leapfrog=num_leapfrog, step_size=step
        )[:, 0]  # fmt: skip
    exponent = module.path(2)[1].item()
    end, chance = hamiltonian_move(model, x, start, momentum, exponent, step, num_leapfrog)
    told = (1 - exponent) * model.log_likelihood(x, end) + exponent * model.log_likelihood(x, start)
    torch.testing.assert_close(log_w["accepted"], told[:, 0].detach())
    expected = (share * (chance[:, 0] * log_w["accepted"].exp() + (1 - chance[:, 0]) * log_w["refused"].exp())).sum()
    torch.testing.assert_close(
        expected.log(), exact_log_marginal(model, x, **grid(model))[0].detach(), atol=1e-4, rtol=0
    )
    assert 0.2 < (share * chance[:, 0]).sum() < 0.99  # moves are refused now and then


def grid(model):
    return {"grid": FINE} if type(model).__name__ == "GaussianLatentModel" else {}


def test_one_step_is_importance_sampling_from_the_prior(linear_gaussian, data):
    x = data(linear_gaussian)
    torch.manual_seed(3)
    annealed = log_mean_exp(annealed_log_weights(linear_gaussian, x, 11, 1))
    torch.manual_seed(3)
    plain = log_marginal_estimate(linear_gaussian, x, prior_proposal(linear_gaussian), 11)
    torch.testing.assert_close(annealed, plain)


def largest_weight(model, x):
    """Return the largest log-likelihood of any z: no weight of a chain can be above it."""
    z = torch.linspace(-12, 12, 20001, dtype=F64)[:, None, None]
    return model.log_likelihood(x, z.expand(-1, len(x), -1)).max(0).values.detach() + 1e-6


def test_the_mean_weight_of_many_adapted_chains_is_p_of_x(one_dimensional, data):
    """Hoeffding's inequality for w / p(x) in [0, c]: off by more than `bound` with a probability below 1e-9."""
    model, x, num_samples = one_dimensional, data(one_dimensional, 3), 60_000
    log_p = exact_log_marginal(model, x, **grid(model)).detach()
    ceiling = (largest_weight(model, x) - log_p).exp()
    bound = ceiling * math.sqrt(math.log(2 * len(x) * 1e9) / (2 * num_samples))
    ratio = (log_mean_exp(annealed_log_weights(model, x, num_samples, 8)) - log_p).exp()
    assert ((ratio - 1).abs() < bound).all(), (ratio, bound)
    assert bound.max() < 0.2 and ceiling.min() > 1.3


def test_more_steps_make_the_weights_more_equal(linear_gaussian, data):
    x = data(linear_gaussian)
    sizes = [effective_sample_size(annealed_log_weights(linear_gaussian, x, 100, steps)) for steps in (1, 20, 200)]
    assert (sizes[0] < sizes[1]).all() and (sizes[1] < sizes[2]).all()
    assert (sizes[2] > 30).all()


def test_many_steps_come_close_to_the_exact_number(linear_gaussian, data):
    x = data(linear_gaussian)
    found = log_mean_exp(annealed_log_weights(linear_gaussian, x, 200, 200))
    torch.testing.assert_close(found, exact_log_marginal(linear_gaussian, x).detach(), atol=0.5, rtol=0)


def test_pilot_chains_bring_the_share_of_accepted_moves_near_its_target(linear_gaussian, data):
    x = data(linear_gaussian)
    exponents = module.path(300).tolist()
    sizes = module._adapted(linear_gaussian, x, exponents, 5)
    assert sizes.shape == (299, len(x)) and (sizes[-1] < sizes[0]).all()
    q, point = linear_gaussian.posterior(x), None
    point = module._at(linear_gaussian, x, q.sample((400,)))
    _, chance = module._move(linear_gaussian, x, point, 1.0, sizes[-50:].mean(0), 5)
    assert ((chance.mean(0) - module.TARGET).abs() < 0.2).all()


def test_step_sizes_may_be_given_for_each_move_and_data_point(linear_gaussian, data):
    x = data(linear_gaussian)
    sizes = torch.full((3, len(x)), 0.2, dtype=F64)
    torch.manual_seed(1)
    one = annealed_log_weights(linear_gaussian, x, 4, 4, step_size=0.2)
    torch.manual_seed(1)
    many = annealed_log_weights(linear_gaussian, x, 4, 4, step_size=sizes)
    torch.manual_seed(1)
    other = annealed_log_weights(linear_gaussian, x, 4, 4, step_size=torch.cat([sizes[:2], 3 * sizes[:1]]))
    assert one.shape == (4, len(x)) and torch.equal(one, many) and not torch.equal(one, other)


def test_a_move_to_where_the_likelihood_is_no_number_is_refused(linear_gaussian, data, monkeypatch):
    x = data(linear_gaussian)
    point = module._at(linear_gaussian, x, torch.zeros(3, len(x), 2, dtype=F64))
    nan = module.Point(point.z, torch.full_like(point.log_likelihood, math.nan), point.slope)
    monkeypatch.setattr(module, "_at", lambda model, x, z: nan)
    kept, chance = module._move(linear_gaussian, x, point, 0.5, torch.ones(len(x), dtype=F64), 2)
    assert torch.equal(kept.log_likelihood, point.log_likelihood) and (chance == 0).all()


def test_the_path_rises_from_0_to_1_slowly_at_both_ends():
    path = module.path(50)
    gaps = path.diff()
    assert path[0] == 0 and path[-1] == 1 and (gaps > 0).all()
    assert gaps[0] < gaps[10] < gaps[25] and gaps[49] < gaps[40] < gaps[25]
    assert module.path(1).tolist() == [0.0, 1.0]


def test_a_gradient_is_neither_needed_nor_left_behind(gaussian_latent, data):
    with torch.no_grad():
        log_w = annealed_log_weights(gaussian_latent, data(gaussian_latent), 3, 4)
    assert not log_w.requires_grad
    assert all(parameter.grad is None for parameter in gaussian_latent.parameters())


def test_bad_arguments_are_refused(linear_gaussian, data):
    x = data(linear_gaussian)
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        annealed_log_weights(linear_gaussian, x, 0, 5)
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        annealed_log_weights(linear_gaussian, x, 3, 0)
    with pytest.raises(ValueError, match="num_leapfrog must be at least 1, got 0"):
        annealed_log_weights(linear_gaussian, x, 3, 5, num_leapfrog=0)
    for size in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="step_size must be finite and above 0"):
            annealed_log_weights(linear_gaussian, x, 3, 5, step_size=size)
    with pytest.raises(ValueError, match=r"step_size must have shape \(4, 5\), got \(3, 5\)"):
        annealed_log_weights(linear_gaussian, x, 3, 5, step_size=torch.ones(3, len(x), dtype=F64))
    with pytest.raises(ValueError, match="x must have shape"):
        annealed_log_weights(linear_gaussian, x[:, :-1], 3, 5)


def test_a_model_without_a_normal_prior_is_refused(data):
    model = BernoulliMixture(torch.tensor([0.5, 0.5]), torch.full((2, X_DIM), 0.3))
    with pytest.raises(
        ValueError, match=r"model must be a GaussianLatentModel \(z ~ N\(0, I\)\), got BernoulliMixture"
    ):
        annealed_log_weights(model, data(model), 3, 5)


# ------------------------------------------------------------------------------------------ the chains that walk back


@pytest.mark.parametrize("num_leapfrog, step", [(1, 0.9), (3, 0.7)])
def test_the_expected_inverse_weight_of_a_reversed_move_is_one_over_p_of_x(
    one_dimensional, data, monkeypatch, num_leapfrog, step
):
    model, x = one_dimensional, data(one_dimensional, 2)[:1]
    points, shares = nodes()
    start = points.repeat_interleave(len(points))[:, None, None]
    momentum = points.repeat(len(points))[:, None, None]
    log_likelihood = model.log_likelihood(x, points[:, None, None])[:, 0].detach()
    posterior = (shares.log() + log_likelihood).softmax(0)
    share = (posterior[:, None] * shares[None, :]).flatten()
    monkeypatch.setattr(module.torch, "randn_like", lambda z: momentum)
    log_w = {}
    for name, uniform in (("accepted", torch.zeros_like), ("refused", torch.ones_like)):
        monkeypatch.setattr(module.torch, "rand_like", uniform)
        log_w[name] = reverse_annealed_log_weights(
            model, x, start, 2, num_leapfrog=num_leapfrog, step_size=step
        )[:, 0]  # fmt: skip
    exponent = module.path(2)[1].item()
    _, chance = hamiltonian_move(model, x, start, momentum, exponent, step, num_leapfrog)
    chance = chance[:, 0]
    inverse = (share * (chance * (-log_w["accepted"]).exp() + (1 - chance) * (-log_w["refused"]).exp())).sum()
    torch.testing.assert_close(
        -inverse.log(), exact_log_marginal(model, x, **grid(model))[0].detach(), atol=2e-4, rtol=0
    )
    assert 0.2 < (share * chance).sum() < 0.99  # moves are refused now and then


def test_one_reversed_step_is_the_likelihood_at_the_draw(linear_gaussian, data):
    x = data(linear_gaussian)
    z = linear_gaussian.posterior(x).sample((11,))
    expected = linear_gaussian.log_likelihood(x, z).detach()
    torch.testing.assert_close(reverse_annealed_log_weights(linear_gaussian, x, z, 1), expected)


def test_a_reversed_chain_makes_the_same_moves_in_the_reverse_order(linear_gaussian, data, monkeypatch):
    x, sizes = data(linear_gaussian), torch.rand(4, 5, dtype=F64) + 0.1
    moves = {"forward": [], "back": []}

    def stay(model, x, point, exponent, size, num_leapfrog):
        moves[name].append((exponent, size))
        return point, None

    monkeypatch.setattr(module, "_move", stay)
    name = "forward"
    annealed_log_weights(linear_gaussian, x, 2, 5, step_size=sizes)
    name = "back"
    z = torch.randn(3, len(x), 2, dtype=F64)
    log_w = reverse_annealed_log_weights(linear_gaussian, x, z, 5, step_size=sizes)
    assert [exponent for exponent, _ in moves["forward"]] == module.path(5)[1:-1].tolist()
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(moves["forward"], moves["back"][::-1]))
    torch.testing.assert_close(log_w, linear_gaussian.log_likelihood(x, z).detach())  # nothing moved


def test_forward_and_reversed_chains_hold_the_exact_number_between_them(linear_gaussian):
    """The gap falls with the steps, far beyond chance (the mean at 200 steps has a standard deviation of 0.02)."""
    torch.manual_seed(1)
    z, x = linear_gaussian.sample(40)
    truth, gaps = exact_log_marginal(linear_gaussian, x).mean().detach(), []
    for steps in (4, 30, 200):
        low = annealed_log_weights(linear_gaussian, x, 30, steps).mean() - truth
        high = reverse_annealed_log_weights(linear_gaussian, x, z.expand(30, -1, -1), steps).mean() - truth
        assert low < 0 < high
        gaps.append(high - low)
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 0.5


def test_bad_draws_of_the_posterior_are_refused(linear_gaussian, data):
    x = data(linear_gaussian)
    z = torch.zeros(3, len(x), 2, dtype=F64)
    with pytest.raises(ValueError, match="K of z must be at least 1, got 0"):
        reverse_annealed_log_weights(linear_gaussian, x, z[:0], 5)
    with pytest.raises(ValueError, match=r"z must have shape \(K, B, 2\), got \(3, 5, 1\)"):
        reverse_annealed_log_weights(linear_gaussian, x, z[:, :, :1], 5)
    with pytest.raises(ValueError, match="z must be Float.*b = 5"):
        reverse_annealed_log_weights(linear_gaussian, x, z[:, :1], 5)
    with pytest.raises(TypeError, match="z must have the model's dtype"):
        reverse_annealed_log_weights(linear_gaussian, x, z.float(), 5)
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        reverse_annealed_log_weights(linear_gaussian, x, z, 0)
    with pytest.raises(ValueError, match="step_size must be finite and above 0"):
        reverse_annealed_log_weights(linear_gaussian, x, z, 5, step_size=0.0)
    mixture = BernoulliMixture(torch.tensor([0.5, 0.5]), torch.full((2, X_DIM), 0.3))
    with pytest.raises(ValueError, match="model must be a GaussianLatentModel"):
        reverse_annealed_log_weights(mixture, x, z, 5)
