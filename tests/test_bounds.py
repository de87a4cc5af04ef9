"""Bounds: exact expectations and gradients over all draws, by enumeration for a discrete q, by quadrature otherwise.

The reference integrates over z with the density of q, so its gradient in q's parameters is the score-function form;
the bounds transport noise, so theirs is the pathwise form. The two agree only if both are right.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, Normal

from lvmlib import (
    BernoulliDecoder,
    BernoulliVector,
    BinaryLatentModel,
    DiagonalGaussian,
    FreeBernoulli,
    FreeCategorical,
    FreeGaussian,
    FullGaussian,
    GaussianEncoder,
    GaussianLatentModel,
    GaussianMixture,
    LinearGaussian,
    bounds,
    detached,
    elbo,
    elbo_analytic_entropy,
    elbo_analytic_kl,
    exact_elbo,
    exact_expected_log_mean,
    exact_log_marginal,
    iwae_bound,
    mlp,
    posterior_proposal,
    prior_proposal,
    rate_and_distortion,
)
from lvmlib.bounds import kl_to_prior
from lvmlib.importance import FOR_ANY_LAW
from tests import oracles
from tests.conftest import X_DIM, numbers
from tests.test_models import DOUBLE, close

ELBOS = [elbo, elbo_analytic_kl, elbo_analytic_entropy]
BOUNDS = [*ELBOS, iwae_bound]
NOISY = [
    (elbo, 2),
    (elbo_analytic_kl, 2),
    (elbo_analytic_entropy, 2),
    (iwae_bound, 1),
    (iwae_bound, 2),
    (iwae_bound, 3),
]
MULTIPLICITY = {1: [0, 1], 2: [0, 1, 2], 3: [0, 1, 3, 6]}  # orders of K draws with this many distinct values


def mean(values):
    return math.fsum(values) / len(values)


class Crooked(nn.Module):
    """A discrete q whose logits are linear in x: neither prior nor posterior, and without a gradient."""

    def __init__(self, law, size):
        super().__init__()
        self.law, self.weight = law, nn.Parameter(0.4 * numbers(X_DIM, size, seed=5), requires_grad=False)

    def forward(self, x):
        return self.law(logits=x @ self.weight)


def cut(proposal):
    """Return a proposal with the same laws, without their gradient."""
    return lambda x: detached(proposal(x))


class Narrow(nn.Module):
    """A Gaussian q over one latent whose mean and log standard deviation are linear in x."""

    def __init__(self, x_dim):
        super().__init__()
        self.weight, self.log_scale = (
            nn.Parameter(0.1 * numbers(x_dim, 1, seed=5)),
            nn.Parameter(torch.full((1,), -0.4, dtype=DOUBLE)),
        )

    def forward(self, x):
        return DiagonalGaussian(x @ self.weight + 0.3, (self.log_scale + 0.05 * x[:, :1]).exp())


class NarrowFull(Narrow):
    """The same law as a FullGaussian."""

    def forward(self, x):
        q = super().forward(x)
        return FullGaussian(q.mean, torch.diag_embed(q.stddev))


@pytest.fixture
def two_bits():
    model = BinaryLatentModel(2, BernoulliDecoder(mlp(2, [4], X_DIM)), learn_prior=True).double()
    model.prior_logits.data = numbers(2, seed=2)
    return model


@pytest.fixture(params=["gaussian_mixture", "bernoulli_mixture", "two_bits"])
def discrete(request):
    """A model with 3 or 4 states and a discrete encoder for it."""
    model = request.getfixturevalue(request.param)
    law, size = (BernoulliVector, 2) if request.param == "two_bits" else (Categorical, 3)
    return model, Crooked(law, size)


@pytest.fixture
def line():
    # weak coupling: log w varies slowly with the noise, and Gauss–Hermite quadrature converges fast
    return LinearGaussian(0.5 * numbers(3, 1), numbers(3, seed=1), 0.9)


@pytest.fixture(params=["line-diagonal", "line-full", "gaussian_latent-diagonal"])
def continuous(request):
    """A model with one real latent and a Gaussian encoder for it."""
    name, kind = request.param.split("-")
    model = request.getfixturevalue(name)
    return model, (Narrow if kind == "diagonal" else NarrowFull)(3 if name == "line" else X_DIM)


@pytest.fixture
def replay(monkeypatch):
    """Return a function that makes the bounds use z = make(q) instead of a random draw."""

    def install(make):
        def given(q, num_samples):
            z = make(q)
            assert len(z) == num_samples
            return z

        monkeypatch.setattr(bounds, "draw", given)

    return install


@pytest.fixture
def over_tuples(replay):
    """Return the exact (mean, variance) of a bound over all K-tuples of states, for one data point (1, D)."""

    def moments(bound, model, x, encoder, num_samples):
        states = model.states()
        indices = torch.tensor(list(itertools.product(range(len(states)), repeat=num_samples))).T
        z, many = states[indices, 0], x.expand(indices.shape[1], -1)
        replay(lambda q: z)
        probability = encoder(many).log_prob(z).sum(0).exp()
        values = bound(model, many, encoder, num_samples)
        expected = (probability * values).sum()
        return expected, (probability * (values - expected).square()).sum()

    return moments


def multisets(size, num_samples):
    """Return all multisets of K of `size` numbers, (M, K), and the number of orders of each, (M,)."""
    rows = torch.combinations(torch.arange(size), num_samples, with_replacement=True).reshape(-1, num_samples)
    distinct = 1 + (rows.diff(dim=1) != 0).sum(1)
    return rows, torch.tensor(MULTIPLICITY[num_samples], dtype=DOUBLE)[distinct]


@pytest.fixture
def over_noise(replay):
    """Return the exact (mean, variance) of a bound over Gaussian noise: `num_nodes` Gauss–Hermite nodes per sample."""

    def moments(bound, model, x, encoder, num_samples, num_nodes=80):
        nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite.hermgauss(num_nodes))
        rows, orders = multisets(num_nodes, num_samples)
        probability = orders * (weights / math.sqrt(math.pi))[rows].prod(1)
        rows, probability = rows[probability > 1e-19], probability[probability > 1e-19]
        many = x.expand(len(rows), -1)
        replay(lambda q: q.transport((math.sqrt(2) * nodes)[rows.T][..., None]))
        values = bound(model, many, encoder, num_samples)
        expected = (probability * values).sum()
        return expected, (probability * (values - expected).square()).sum()

    return moments


def over_density(model, x, encoder, num_samples, statistic):
    """Return the mean of statistic(log_w (K, M)) by the trapezoid rule over z with the density of q."""
    q = encoder(x)
    centre, spread = q.mean.item(), q.stddev.item()
    z = torch.linspace(centre - 9 * spread, centre + 9 * spread, 81, dtype=DOUBLE)[:, None, None]
    log_q = q.log_prob(z)[:, 0]
    log_w = model.log_joint(x, z)[:, 0] - log_q
    rows, orders = multisets(81, num_samples)
    cell = (log_q + math.log(18 * spread / 80)).exp()
    return (orders * cell[rows].prod(1) * statistic(log_w[rows].T)).sum()


def log_mean(log_w):
    return log_w.logsumexp(0) - math.log(len(log_w))


def trainable(*modules):
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def gradients_agree(actual, expected, parameters, rtol=1e-10, atol=1e-12):
    pairs = zip(
        torch.autograd.grad(actual, parameters), torch.autograd.grad(expected, parameters), parameters, strict=True
    )
    for one, other, _ in pairs:
        close(one, other, rtol=rtol, atol=atol)


# hand values: x = 5, p(x | z) = N(3 z, 16), q = N(1, 1), draws z = 1 and z = 2


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        (elbo, -(0.625 + 1.53125) / 2),
        (elbo_analytic_kl, -(0.125 + 0.03125) / 2 - 0.5),
        (elbo_analytic_entropy, -(0.625 + 2.03125) / 2 + 0.5),
        (iwae_bound, math.log((math.exp(-0.625) + math.exp(-1.53125)) / 2)),
    ],
)
def test_bound_of_two_given_draws_by_hand(bound, expected, replay):
    model = LinearGaussian(torch.tensor([[3.0]], dtype=DOUBLE), torch.zeros(1, dtype=DOUBLE), 4.0)
    one = torch.ones(1, 1, dtype=DOUBLE)
    replay(lambda q: torch.tensor([[[1.0]], [[2.0]]], dtype=DOUBLE))
    value = bound(model, 5 * one, lambda x: DiagonalGaussian(one, one), 2)
    close(value, [expected - math.log(4) - 0.5 * math.log(2 * math.pi)])


# exact expectations, discrete q


@pytest.mark.parametrize("num_samples", [1, 2, 3])
@pytest.mark.parametrize("bound", BOUNDS, ids=lambda f: f.__name__)
def test_expected_bound_over_all_tuples_equals_loops(bound, num_samples, discrete, data, over_tuples):
    model, encoder = discrete
    statistic = oracles.log_mean_exp if bound is iwae_bound else mean
    for x in data(model, 2).split(1):
        log_q = encoder(x).log_prob(model.states())[:, 0]
        log_w = model.log_joint(x, model.states())[:, 0] - log_q
        expected = oracles.expected_over_tuples(log_w.tolist(), log_q.tolist(), num_samples, statistic)
        close(over_tuples(bound, model, x, encoder, num_samples)[0], expected, rtol=1e-10)


@pytest.mark.parametrize("num_samples", [1, 2, 3])
@pytest.mark.parametrize("bound", ELBOS, ids=lambda f: f.__name__)
def test_gradient_of_the_expected_elbo_is_that_of_the_exact_elbo(bound, num_samples, discrete, data, over_tuples):
    model, encoder = discrete
    x = data(model, 1)
    expected = exact_elbo(model, x, encoder(x)).sum()
    actual, _ = over_tuples(bound, model, x, encoder, num_samples)
    gradients_agree(actual, expected, trainable(model, encoder))


@pytest.mark.parametrize("num_samples", [1, 2, 3])
def test_gradient_of_the_expected_iwae_bound_is_that_of_the_sum_over_counts(num_samples, discrete, data, over_tuples):
    model, encoder = discrete
    x = data(model, 1)
    log_q = encoder(x).log_prob(model.states())[:, 0]
    expected = exact_expected_log_mean(model.log_joint(x, model.states())[:, 0] - log_q, log_q, num_samples)
    actual, _ = over_tuples(iwae_bound, model, x, encoder, num_samples)
    gradients_agree(actual, expected, trainable(model, encoder))


def test_gradient_of_iwae_bound_weighs_the_samples_by_normalized_weights(gaussian_mixture, data, replay):
    x, encoder = data(gaussian_mixture, 1), Crooked(Categorical, 3)
    z = torch.tensor([[0], [2], [2]])
    replay(lambda q: z)
    log_w = gaussian_mixture.log_joint(x, z) - encoder(x).log_prob(z)
    shares = oracles.normalized_weights(log_w[:, 0].tolist())
    expected = sum(share * value for share, value in zip(shares, log_w[:, 0], strict=True))
    actual = iwae_bound(gaussian_mixture, x, encoder, 3).sum()
    gradients_agree(actual, expected, trainable(gaussian_mixture, encoder))


# exact expectations, Gaussian q


@pytest.mark.parametrize(("bound", "num_samples"), NOISY)
def test_expected_bound_over_noise_is_the_integral_over_z(bound, num_samples, continuous, data, over_noise):
    model, encoder = continuous
    x = data(model, 1)
    statistic = log_mean if bound is iwae_bound else lambda log_w: log_w.mean(0)
    expected = over_density(model, x, encoder, num_samples, statistic)
    close(over_noise(bound, model, x, encoder, num_samples)[0], expected.detach(), rtol=1e-9)


@pytest.mark.parametrize(("bound", "num_samples"), NOISY)
def test_pathwise_gradient_of_the_bound_is_the_gradient_of_the_integral(
    bound, num_samples, continuous, data, over_noise
):
    model, encoder = continuous
    x = data(model, 1)
    statistic = log_mean if bound is iwae_bound else lambda log_w: log_w.mean(0)
    expected = over_density(model, x, encoder, num_samples, statistic)
    actual, _ = over_noise(bound, model, x, encoder, num_samples)
    gradients_agree(actual, expected, trainable(model, encoder), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("bound", ELBOS, ids=lambda f: f.__name__)
def test_expected_elbo_over_noise_is_the_exact_elbo(bound, continuous, data, over_noise):
    model, encoder = continuous
    x = data(model, 1)
    expected = exact_elbo(model, x, encoder(x), num_nodes=60).sum()
    close(over_noise(bound, model, x, encoder, 2)[0], expected.detach(), rtol=1e-10)


@pytest.mark.parametrize("bound", ELBOS, ids=lambda f: f.__name__)
def test_pathwise_gradient_of_the_elbo_is_that_of_the_exact_elbo(bound, continuous, data, over_noise):
    model, encoder = continuous
    x = data(model, 1)
    expected = exact_elbo(model, x, encoder(x), num_nodes=60).sum()
    gradients_agree(
        over_noise(bound, model, x, encoder, 2)[0], expected, trainable(model, encoder), rtol=1e-9, atol=1e-10
    )


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda f: f.__name__)
def test_expectation_over_noise_has_converged_in_the_number_of_nodes(bound, continuous, data, over_noise):
    model, encoder = continuous
    x = data(model, 1)
    coarse, fine = (over_noise(bound, model, x, encoder, 2, num_nodes)[0] for num_nodes in (80, 110))
    close(coarse, fine.detach(), rtol=1e-10)


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda f: f.__name__)
def test_gradient_over_noise_has_converged_in_the_number_of_nodes(bound, continuous, data, over_noise):
    model, encoder = continuous
    x = data(model, 1)
    coarse, fine = (over_noise(bound, model, x, encoder, 2, num_nodes)[0] for num_nodes in (80, 110))
    gradients_agree(coarse, fine, trainable(model, encoder), rtol=1e-8, atol=1e-9)


# three faces


def test_three_faces_of_the_elbo_have_different_variances_for_a_discrete_q(discrete, data, over_tuples):
    model, encoder = discrete
    variances = [over_tuples(face, model, data(model, 1), encoder, 1)[1].item() for face in ELBOS]
    assert min(abs(a / b - 1) for a, b in itertools.combinations(variances, 2)) > 1e-3


def test_three_faces_of_the_elbo_have_different_variances_for_a_gaussian_q(continuous, data, over_noise):
    model, encoder = continuous
    variances = [over_noise(face, model, data(model, 1), encoder, 1)[1].item() for face in ELBOS]
    assert min(abs(a / b - 1) for a, b in itertools.combinations(variances, 2)) > 1e-3


@pytest.mark.parametrize("bound", ELBOS, ids=lambda f: f.__name__)
def test_variance_of_the_elbo_falls_as_one_over_num_samples(bound, discrete, data, over_tuples):
    model, encoder = discrete
    one, three = (over_tuples(bound, model, data(model, 1), encoder, k)[1].item() for k in (1, 3))
    close(one, 3 * three, rtol=1e-9)


def test_only_the_face_of_log_weights_has_no_variance_at_the_posterior(gaussian_mixture, data, over_tuples):
    x, posterior = data(gaussian_mixture, 1), cut(posterior_proposal(gaussian_mixture))
    first, *others = (over_tuples(face, gaussian_mixture, x, posterior, 1)[1].item() for face in ELBOS)
    assert first < 1e-24 and min(others) > 1e-6


@pytest.mark.parametrize("num_samples", [1, 4])
@pytest.mark.parametrize("bound", [elbo, iwae_bound], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["gaussian_mixture", "bernoulli_mixture", "linear_gaussian"])
def test_bound_at_the_posterior_is_log_marginal_for_any_draws(name, bound, num_samples, request, data):
    model = request.getfixturevalue(name)
    x = data(model)
    close(
        bound(model, x, cut(posterior_proposal(model)), num_samples), exact_log_marginal(model, x).detach(), rtol=1e-10
    )


# order


def test_bounds_rise_from_the_elbo_with_num_samples_to_log_marginal_for_a_discrete_q(discrete, data, over_tuples):
    model, encoder = discrete
    for x in data(model, 3).split(1):
        values = [over_tuples(elbo, model, x, encoder, 1)[0].item()]
        values += [over_tuples(iwae_bound, model, x, encoder, k)[0].item() for k in (2, 3)]
        values.append(exact_log_marginal(model, x).item())
        assert all(b - a > 1e-6 for a, b in itertools.pairwise(values))


def test_bounds_rise_from_the_elbo_with_num_samples_to_log_marginal_for_a_gaussian_q(continuous, data, over_noise):
    model, encoder = continuous
    for x in data(model, 3).split(1):
        values = [over_noise(elbo, model, x, encoder, 1)[0].item()]
        values += [over_noise(iwae_bound, model, x, encoder, k)[0].item() for k in (2, 3)]
        values.append(exact_log_marginal(model, x).item())
        assert all(b - a > 1e-6 for a, b in itertools.pairwise(values))


def test_iwae_bound_of_one_sample_is_the_elbo_bitwise(model, data):
    x, encoder, values = data(model), cut(prior_proposal(model)), []
    for bound in (lambda *a: elbo(*a, 1), lambda *a: iwae_bound(*a, 1)):
        torch.manual_seed(3)
        values.append(bound(model, x, encoder))
    assert torch.equal(*values)


def test_iwae_bound_of_one_sample_has_the_gradient_of_the_elbo(line, data):
    x, encoder, gradients = data(line), Narrow(3), []
    for bound in (elbo, iwae_bound):
        torch.manual_seed(3)
        gradients.append(torch.autograd.grad(bound(line, x, encoder, 1).sum(), trainable(line, encoder)))
    for one, other in zip(*gradients, strict=True):
        close(one, other)


@pytest.mark.parametrize("bound", ELBOS, ids=lambda f: f.__name__)
def test_one_sample_is_the_default_of_the_elbo(bound, line, data):
    x, values = data(line), []
    for extra in ((), (1,)):
        torch.manual_seed(3)
        values.append(bound(line, x, Narrow(3), *extra))
    assert torch.equal(*values)


def test_iwae_bound_of_any_draws_is_at_least_the_elbo_of_the_same_draws(line, data, replay):
    x = data(line)
    replay(lambda q: q.transport(numbers(3, 5, 1)))
    assert (iwae_bound(line, x, Narrow(3), 3) - elbo(line, x, Narrow(3), 3) > 0).all()


# shapes, symmetries, side effects


@pytest.mark.parametrize(("num_samples", "num_points"), [(3, 5), (1, 1), (3, 3)])
@pytest.mark.parametrize("bound", BOUNDS, ids=lambda f: f.__name__)
def test_bound_has_one_number_per_data_point(bound, num_samples, num_points, model, data):
    assert bound(model, data(model, num_points), cut(prior_proposal(model)), num_samples).shape == (num_points,)


@pytest.mark.parametrize("num_points", [2, 3, 4])
@pytest.mark.parametrize("name", ["gaussian_mixture", "two_bits", "linear_gaussian"])
@pytest.mark.parametrize("bound", BOUNDS, ids=lambda f: f.__name__)
def test_bound_of_a_batch_is_the_bound_of_each_data_point(bound, name, num_points, request, data, replay):
    # num_points also takes the values of z_dim, of the number of states and of the number of samples
    model = request.getfixturevalue(name)
    encoder = {
        "gaussian_mixture": Crooked(Categorical, 3),
        "two_bits": Crooked(BernoulliVector, 2),
        "linear_gaussian": lambda x: DiagonalGaussian(0.3 * x[:, :2], 1 + x[:, 2:4].abs()),
    }[name]
    x = data(model, num_points)
    z = encoder(x).sample((3,))
    replay(lambda q: z)
    whole = bound(model, x, encoder, 3)
    for i in range(num_points):
        replay(lambda q, i=i: z[:, i : i + 1])
        close(bound(model, x[i : i + 1], encoder, 3), whole[i : i + 1].detach())


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda f: f.__name__)
def test_permuting_the_samples_leaves_the_bound(bound, line, data, replay):
    x, noise, values = data(line), numbers(3, 5, 1), []
    for order in ([0, 1, 2], [2, 0, 1]):
        replay(lambda q, order=order: q.transport(noise[order]))
        values.append(bound(line, x, Narrow(3), 3).detach())
    close(*values)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("bound", BOUNDS, ids=lambda f: f.__name__)
def test_bound_keeps_the_dtype(bound, dtype, model, data):
    model = model.to(dtype)
    assert bound(model, data(model), cut(prior_proposal(model)), 3).dtype == dtype


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda f: f.__name__)
def test_bound_leaves_data_and_parameters_alone(bound, line, data):
    x, encoder = data(line), Narrow(3)
    before = [t.detach().clone() for t in (x, *trainable(line, encoder))]
    bound(line, x, encoder, 3).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, (x, *trainable(line, encoder)), strict=True))


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda f: f.__name__)
def test_bound_calls_the_encoder_once(bound, line, data):
    calls, encoder = [], Narrow(3)

    def spy(x):
        calls.append(x)
        return encoder(x)

    bound(line, data(line), spy, 3)
    assert len(calls) == 1


# a q whose draws carry no gradient


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda f: f.__name__)
def test_a_gradient_in_a_discrete_q_is_refused_by_name_of_what_works(bound, discrete, data):
    model, encoder = discrete
    with pytest.raises(
        ValueError, match=rf"encoder \(or proposal\): no gradient .* {encoder.law.__name__}.*{FOR_ANY_LAW}"
    ):
        bound(model, data(model), encoder.requires_grad_(), 2)


def test_the_estimators_named_to_who_asks_for_a_gradient_exist():
    import lvmlib

    names = FOR_ANY_LAW.replace(" and ", ", ").split(", ")
    assert len(names) == 5 and all(callable(getattr(lvmlib, name)) for name in names)


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda f: f.__name__)
def test_a_discrete_prior_that_learns_is_refused_as_the_encoder(bound, gaussian_mixture, data):
    with pytest.raises(ValueError, match=r"encoder \(or proposal\): no gradient passes through draws of a Categorical"):
        bound(gaussian_mixture, data(gaussian_mixture), prior_proposal(gaussian_mixture), 2)


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda f: f.__name__)
def test_a_gaussian_without_transport_is_refused_where_it_asks_for_a_gradient(bound, line, data):
    loc = torch.zeros(5, 1, dtype=DOUBLE, requires_grad=True)
    with pytest.raises(ValueError, match=r"encoder \(or proposal\): no gradient passes through draws of a Independent"):
        bound(line, data(line), lambda x: Independent(Normal(loc, 1.0), 1), 2)


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda f: f.__name__)
def test_bound_of_a_discrete_q_that_asks_for_a_gradient_is_computed_without_autograd(bound, discrete, data):
    model, encoder = discrete
    x, values = data(model), []
    for asks in (False, True):
        torch.manual_seed(3)
        encoder.requires_grad_(asks)
        with torch.set_grad_enabled(not asks):
            values.append(bound(model, x, encoder, 2))
    assert torch.equal(*values)


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda f: f.__name__)
def test_bound_of_a_discrete_q_without_gradient_keeps_the_gradient_of_the_model(bound, discrete, data):
    model, encoder = discrete
    gradients = torch.autograd.grad(bound(model, data(model), encoder, 2).sum(), trainable(model), allow_unused=True)
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


# KL to the prior


def line_of_nodes(loc, scale):
    """Return trapezoid nodes within 9 standard deviations, and their spacing."""
    step = 18 * scale / 120
    return [loc - 9 * scale + i * step for i in range(121)], step


def test_kl_of_a_diagonal_gaussian_is_the_sum_of_numeric_integrals(data):
    model = GaussianLatentModel(2, BernoulliDecoder(mlp(2, [], X_DIM)))
    loc, scale = numbers(3, 2), 0.4 + numbers(3, 2, seed=1).abs()
    expected = [0.0] * 3
    for b, d in itertools.product(range(3), range(2)):
        m, s = loc[b, d].item(), scale[b, d].item()
        nodes, step = line_of_nodes(m, s)
        for z in nodes:
            log_q = oracles.normal_log_density(z, m, s)
            expected[b] += step * math.exp(log_q) * (log_q - oracles.normal_log_density(z, 0.0, 1.0))
    close(kl_to_prior(DiagonalGaussian(loc, scale), model.double()), expected, rtol=1e-10)


def test_kl_of_a_full_gaussian_is_the_numeric_integral(data):
    model = GaussianLatentModel(2, BernoulliDecoder(mlp(2, [], X_DIM))).double()
    loc = torch.tensor([[0.7, -0.4]], dtype=DOUBLE)
    lower = torch.tensor([[[0.8, 0.0], [-0.5, 0.6]]], dtype=DOUBLE)
    covariance = (lower @ lower.mT)[0].tolist()
    step, expected = 0.16, 0.0
    for i, j in itertools.product(range(-40, 41), repeat=2):
        z = [0.7 + i * step, -0.4 + j * step]
        log_q = oracles.full_log_density(z, loc[0].tolist(), covariance)
        expected += step**2 * math.exp(log_q) * (log_q - oracles.diagonal_log_density(z, [0, 0], [1, 1]))
    close(kl_to_prior(FullGaussian(loc, lower), model), [expected], rtol=1e-9)


def test_kl_of_a_full_gaussian_with_a_diagonal_factor_is_that_of_the_diagonal_gaussian(linear_gaussian):
    loc, scale = numbers(5, 2), 0.4 + numbers(5, 2, seed=1).abs()
    full = kl_to_prior(FullGaussian(loc, torch.diag_embed(scale)), linear_gaussian)
    close(full, kl_to_prior(DiagonalGaussian(loc, scale), linear_gaussian))


@pytest.mark.parametrize("num_points", [1, 3, 5])
def test_kl_of_a_categorical_equals_loops(num_points, gaussian_mixture, weights):
    logits = numbers(num_points, 3)
    expected = []
    for row in logits.tolist():
        q = oracles.normalized_weights(row)
        expected.append(math.fsum(a * math.log(a / b) for a, b in zip(q, weights.tolist(), strict=True)))
    close(kl_to_prior(Categorical(logits=logits), gaussian_mixture), expected)


@pytest.mark.parametrize("num_points", [1, 2, 4, 5])
def test_kl_of_a_bernoulli_vector_equals_loops_over_all_states(num_points, binary_latent):
    logits = numbers(num_points, 4)
    prior = binary_latent.prior_logits.tolist()
    expected = []
    for row in logits.tolist():
        terms = [(oracles.bernoulli_log_mass(z, row), oracles.bernoulli_log_mass(z, prior)) for z in oracles.bits(4)]
        expected.append(math.fsum(math.exp(a) * (a - b) for a, b in terms))
    close(kl_to_prior(BernoulliVector(logits), binary_latent), expected)


def test_kl_of_a_bernoulli_vector_to_a_saturated_prior_is_infinite_only_where_q_has_mass(binary_latent):
    binary_latent.prior_logits.data[1] = -math.inf
    logits = numbers(4, 4)
    logits[[0, 1, 3], 1] = -math.inf
    assert kl_to_prior(BernoulliVector(logits), binary_latent).isinf().tolist() == [False, False, True, False]


def test_kl_of_the_prior_to_itself_is_zero(model):
    close(kl_to_prior(prior_proposal(model)(torch.zeros(5, X_DIM)), model), torch.zeros(5), atol=1e-14)


@pytest.mark.parametrize("name", ["gaussian_mixture", "binary_latent", "linear_gaussian"])
def test_kl_is_never_negative(name, request):
    model = request.getfixturevalue(name)
    laws = {
        "gaussian_mixture": lambda a: Categorical(logits=a[:, :3]),
        "binary_latent": BernoulliVector,
        "linear_gaussian": lambda a: DiagonalGaussian(a[:, :2], a[:, 2:].exp()),
    }
    assert (kl_to_prior(laws[name](3 * numbers(50, 4)), model) > 0).all()


def test_gradient_of_kl_of_a_diagonal_gaussian_is_the_closed_form(linear_gaussian):
    loc, scale = numbers(5, 2).requires_grad_(), (0.4 + numbers(5, 2, seed=1).abs()).requires_grad_()
    gradients = torch.autograd.grad(kl_to_prior(DiagonalGaussian(loc, scale), linear_gaussian).sum(), [loc, scale])
    close(gradients[0], loc.detach())
    close(gradients[1], (scale - 1 / scale).detach())


# states that q or the prior never reaches


def test_kl_of_a_categorical_with_an_impossible_state_sums_over_the_others(gaussian_mixture):
    q = Categorical(logits=torch.tensor([[0.0, -math.inf, 0.0]], dtype=DOUBLE), validate_args=False)
    close(kl_to_prior(q, gaussian_mixture), [0.5 * math.log(0.5 / 0.2) + 0.5 * math.log(0.5 / 0.3)])


IMPOSSIBLE = {
    "gaussian_mixture": (Categorical, [[0.3, -math.inf, 0.1], [-0.3, 0.2, -math.inf]]),
    "two_bits": (BernoulliVector, [[0.3, -math.inf], [math.inf, 0.2]]),
}


@pytest.fixture(params=IMPOSSIBLE)
def impossible(request):
    """A model, and the law and logits of a q for two data points that has states of probability 0."""
    law, logits = IMPOSSIBLE[request.param]
    return request.getfixturevalue(request.param), law, torch.tensor(logits, dtype=DOUBLE)


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda f: f.__name__)
def test_bound_is_finite_where_q_has_impossible_states(bound, impossible, data):
    model, law, logits = impossible
    assert bound(model, data(model, 2), lambda x: law(logits=logits), 3).isfinite().all()


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda f: f.__name__)
def test_gradient_of_the_bound_is_finite_where_q_has_impossible_states(bound, impossible, data):
    model, law, logits = impossible
    value = bound(model, data(model, 2), lambda x: law(logits=logits), 3).sum()
    gradients = torch.autograd.grad(value, trainable(model), allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in gradients)


def test_gradient_of_the_kl_is_finite_where_q_has_impossible_states(impossible, data):
    model, law, logits = impossible
    (gradient,) = torch.autograd.grad(kl_to_prior(law(logits=logits.requires_grad_()), model).sum(), logits)
    assert gradient.isfinite().all()


def test_iwae_bound_ignores_samples_of_zero_weight(gaussian_mixture, data, replay):
    gaussian_mixture.weight_logits.data[1] = -math.inf
    x = data(gaussian_mixture, 1)
    replay(lambda q: torch.tensor([[1], [0], [1]]))
    three = iwae_bound(gaussian_mixture, x, Crooked(Categorical, 3), 3)
    replay(lambda q: torch.tensor([[0]]))
    close(three, iwae_bound(gaussian_mixture, x, Crooked(Categorical, 3), 1).detach() - math.log(3))


def test_elbo_of_a_draw_of_zero_weight_is_minus_infinity(gaussian_mixture, data, replay):
    gaussian_mixture.weight_logits.data[1] = -math.inf
    replay(lambda q: torch.tensor([[1], [0]]))
    assert elbo(gaussian_mixture, data(gaussian_mixture, 1), Crooked(Categorical, 3), 2).item() == -math.inf


# bad input


@pytest.mark.parametrize("num_samples", [0, -1])
@pytest.mark.parametrize("bound", BOUNDS, ids=lambda f: f.__name__)
def test_less_than_one_sample_is_refused(bound, num_samples, line, data):
    with pytest.raises(ValueError, match=f"num_samples must be at least 1, got {num_samples}"):
        bound(line, data(line), Narrow(3), num_samples)


@pytest.mark.parametrize("num_samples", [2.0, "3", True])
@pytest.mark.parametrize("bound", BOUNDS, ids=lambda f: f.__name__)
def test_num_samples_that_are_not_an_int_are_refused(bound, num_samples, line, data):
    with pytest.raises(TypeError, match="num_samples"):
        bound(line, data(line), Narrow(3), num_samples)


@pytest.mark.parametrize("shape", [(3,), (5, 3, 1)])
@pytest.mark.parametrize("bound", BOUNDS, ids=lambda f: f.__name__)
def test_data_of_another_rank_are_refused(bound, shape, line):
    with pytest.raises(ValueError, match=rf"{bound.__name__}: x must be Float\[Tensor, 'b d'\], got \("):
        bound(line, torch.zeros(shape, dtype=DOUBLE), Narrow(3), 2)


@pytest.mark.parametrize("shape", [(0, 3), (5, 1), (5, 4)])
@pytest.mark.parametrize("bound", BOUNDS, ids=lambda f: f.__name__)
def test_no_data_or_data_of_another_width_are_refused(bound, shape, line):
    with pytest.raises(
        ValueError,
        match=rf"x must have shape \(B, {3 if shape[0] else 'D'}\) with B >= 1, got \({shape[0]}, {shape[1]}\)",
    ):
        bound(line, torch.zeros(shape, dtype=DOUBLE), prior_proposal(line), 2)


@pytest.mark.parametrize("batch", [(), (1,), (4,), (5, 1)])
@pytest.mark.parametrize("bound", BOUNDS, ids=lambda f: f.__name__)
def test_an_encoder_of_another_batch_shape_is_refused(bound, batch, line, data):
    law = DiagonalGaussian(torch.zeros(*batch, 1, dtype=DOUBLE), torch.ones(*batch, 1, dtype=DOUBLE))
    with pytest.raises(ValueError, match=r"q must have batch shape"):
        bound(line, data(line), lambda x: law, 2)


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("law", [FreeGaussian(5, 1), FreeGaussian(5, 3, full=True), FreeCategorical(5, 2)])
def test_an_encoder_over_another_space_is_refused(law, bound, linear_gaussian, data):
    with pytest.raises(ValueError, match=r"q must be a law over the space of the prior DiagonalGaussian"):
        bound(linear_gaussian, data(linear_gaussian), law.double(), 2)


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("num_states", [1, 2, 4])
def test_a_categorical_with_another_number_of_states_is_refused(num_states, bound, gaussian_mixture, data):
    encoder = FreeCategorical(5, num_states).double()
    encoder.logits.data[:, 1:] -= 50.0  # state 0 is drawn every time: the draws alone do not betray the fault
    with pytest.raises(ValueError, match=r"q must .*states"):
        bound(gaussian_mixture, data(gaussian_mixture), encoder, 2)


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda f: f.__name__)
def test_bits_for_a_gaussian_prior_are_refused(bound, linear_gaussian, data):
    with pytest.raises(ValueError, match=r"q must be a law over the space of the prior DiagonalGaussian"):
        bound(linear_gaussian, data(linear_gaussian), FreeBernoulli(5, 2).double(), 2)


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda f: f.__name__)
def test_double_data_for_a_float_model_are_refused(bound, line, data):
    x = data(line)
    with pytest.raises(TypeError, match=r"x must have the model's dtype torch.float32, got torch.float64"):
        bound(line.float(), x, prior_proposal(line), 2)


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda f: f.__name__)
def test_double_data_for_a_float_encoder_are_refused(bound, line, data):
    x = data(line)
    with pytest.raises((TypeError, ValueError), match=r"x must .*float32.* got .*float64"):
        bound(line.float(), x, GaussianEncoder(mlp(3, [4], 2)), 2)


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda f: f.__name__)
def test_a_law_in_the_place_of_the_encoder_is_refused(bound, line, data):
    x = data(line)
    with pytest.raises(TypeError, match="encoder"):
        bound(line, x, Narrow(3)(x), 2)


@pytest.mark.parametrize("z_dim", [1, 3])
@pytest.mark.parametrize("full", [False, True])
def test_kl_of_a_gaussian_of_another_dimension_is_refused(full, z_dim, linear_gaussian):
    q = FreeGaussian(5, z_dim, full).double().law()
    with pytest.raises(ValueError, match="q must"):
        kl_to_prior(q, linear_gaussian)


@pytest.mark.parametrize("num_states", [1, 2, 4])
def test_kl_of_a_categorical_with_another_number_of_states_is_refused(num_states, gaussian_mixture):
    with pytest.raises(ValueError, match="q must"):
        kl_to_prior(FreeCategorical(5, num_states).double().law(), gaussian_mixture)


@pytest.mark.parametrize("num_bits", [1, 3])
def test_kl_of_another_number_of_bits_is_refused(num_bits, binary_latent):
    with pytest.raises(ValueError, match="q must"):
        kl_to_prior(FreeBernoulli(5, num_bits).double().law(), binary_latent)


@pytest.mark.parametrize("full", [False, True])
def test_kl_of_a_gaussian_to_a_mixtures_prior_is_refused(full):
    model = GaussianMixture(torch.tensor([0.5, 0.5]), torch.zeros(2, 1), torch.ones(1))
    with pytest.raises((ValueError, NotImplementedError)):
        kl_to_prior(FreeGaussian(5, 1, full).law(), model)


def test_rate_and_distortion_are_the_two_terms_of_the_elbo(linear_gaussian, data):
    x, encoder = data(linear_gaussian), posterior_proposal(linear_gaussian)
    torch.manual_seed(1)
    rate, distortion = rate_and_distortion(linear_gaussian, x, encoder, 3)
    assert rate.shape == distortion.shape == (len(x),) and (rate > 0).all()
    torch.manual_seed(1)
    close(-(rate + distortion), elbo_analytic_kl(linear_gaussian, x, encoder, 3))
    torch.manual_seed(1)
    z = encoder(x).transport(torch.randn(3, len(x), 2, dtype=DOUBLE))
    close(distortion, -linear_gaussian.log_likelihood(x, z).mean(0))


def test_an_encoder_that_ignores_x_has_the_rate_of_its_distance_to_the_prior():
    model = GaussianLatentModel(2, BernoulliDecoder(mlp(2, [], 3))).double()
    q = lambda x: DiagonalGaussian(torch.full((len(x), 2), 1.5).double(), torch.ones(len(x), 2).double())  # noqa: E731
    rate, _ = rate_and_distortion(model, torch.zeros(4, 3, dtype=DOUBLE), q)
    assert rate.tolist() == pytest.approx([2 * 1.5**2 / 2] * 4, abs=1e-12)
