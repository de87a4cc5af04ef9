"""Gradient estimators: their exact expectation over all draws against the gradient of the exact bound, in θ and in φ.

Discrete laws are summed over all K-tuples of states, Gaussian laws over Gauss–Hermite nodes of the noise, relaxed bits
over the logistic noise. The references use densities only: sums and integrals over z with the probabilities of q.
"""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate
from torch import nn
from torch.distributions import Categorical

import lvmlib
from lvmlib import (
    BernoulliDecoder,
    BernoulliVector,
    BinaryLatentModel,
    DiagonalGaussian,
    FreeBernoulli,
    FreeGaussian,
    GaussianDecoder,
    GaussianLatentModel,
    GaussianMixture,
    LinearGaussian,
    doubly_reparameterized,
    draw,
    elbo,
    elbo_analytic_kl,
    exact_elbo,
    exact_log_marginal,
    exact_posterior,
    fit,
    fit_proposal,
    gumbel_softmax,
    iwae_bound,
    iwae_pathwise,
    kl_to_prior,
    learned_baseline,
    leave_one_out,
    logistic_noise,
    mlp,
    objective,
    pathwise,
    relax,
    reweighted_wake_sleep,
    score_function,
    sticking_the_landing,
    straight_through,
    vimco,
)
from lvmlib.importance import FOR_ANY_LAW
from lvmlib.quadrature import hermite_nodes
from tests import oracles
from tests.conftest import X_DIM, numbers
from tests.test_bounds import Crooked, Narrow, NarrowFull, gradients_agree, log_mean, multisets, over_density, trainable
from tests.test_models import DOUBLE, close


def guess(x):
    """Return a baseline that depends on x."""
    return 0.3 * x[:, 0] - 2.0


def crooked_baseline(model, x, q, z):
    return score_function(model, x, q, z, baseline=guess(x))


def learned(model, x, q, z):
    return learned_baseline(model, x, q, z, network=guess)


def mean_log(log_w):
    return log_w.mean(0)


OF_ELBO = [score_function, crooked_baseline, learned, leave_one_out]  # by scores, for any q
OF_ELBO_ALONG_THE_PATH = [pathwise, sticking_the_landing]
ALONG_THE_PATH = [*OF_ELBO_ALONG_THE_PATH, iwae_pathwise, doubly_reparameterized]
BY_SCORES = [*OF_ELBO, vimco, reweighted_wake_sleep]
ALL = [*BY_SCORES, *ALONG_THE_PATH]
RELAXED = [gumbel_softmax, straight_through]
FEWEST = {leave_one_out: 2, vimco: 2}
STATISTIC = {surrogate: mean_log for surrogate in [*OF_ELBO, *OF_ELBO_ALONG_THE_PATH]}
STATISTIC |= {
    surrogate: log_mean for surrogate in (vimco, reweighted_wake_sleep, iwae_pathwise, doubly_reparameterized)
}


def cases(surrogates, counts=(1, 2, 3)):
    """Return the pairs of a surrogate and a number of samples that it takes, as parameters of a test."""
    return [
        pytest.param(surrogate, k, id=f"{surrogate.__name__}-{k}")
        for surrogate in surrogates
        for k in counts
        if k >= FEWEST.get(surrogate, 1)
    ]


def each(surrogates):
    return pytest.mark.parametrize("surrogate", surrogates, ids=lambda f: f.__name__)


UNBIASED_BY_SCORES = [surrogate for surrogate in BY_SCORES if surrogate is not reweighted_wake_sleep]


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
    return model, Crooked(law, size).requires_grad_()


@pytest.fixture
def line():
    return LinearGaussian(0.5 * numbers(3, 1), numbers(3, seed=1), 0.9)


@pytest.fixture(params=["line-diagonal", "line-full", "gaussian_latent-diagonal"])
def continuous(request):
    """A model with one real latent and a Gaussian encoder for it."""
    name, kind = request.param.split("-")
    model = request.getfixturevalue(name)
    return model, (Narrow if kind == "diagonal" else NarrowFull)(3 if name == "line" else X_DIM)


def tuples(model, x, encoder, num_samples):
    """Return x (N, D), z (K, N, …) and log q (K, N) of all N K-tuples of states, for one data point (1, D)."""
    states = model.states()
    indices = torch.tensor(list(itertools.product(range(len(states)), repeat=num_samples))).T
    many, z = x.expand(indices.shape[1], -1), states[indices, 0]
    return many, z, encoder(many).log_prob(z)


def over_tuples(surrogate, model, x, encoder, num_samples):
    """Return the mean of a surrogate over all K-tuples of states; its gradient is the mean of the estimator."""
    many, z, log_q = tuples(model, x, encoder, num_samples)
    return log_q.sum(0).exp().detach() @ surrogate(model, many, encoder(many), z)


def exact_over_tuples(model, x, encoder, num_samples, statistic):
    """Return the mean of statistic(log_w) over all K-tuples of states, whose probabilities carry a gradient."""
    many, z, log_q = tuples(model, x, encoder, num_samples)
    return log_q.sum(0).exp() @ statistic(model.log_joint(many, z) - log_q)


def over_noise(surrogate, model, x, encoder, num_samples, num_nodes=80):
    """Return the mean of a surrogate over Gauss–Hermite nodes of the noise, the same number for each sample."""
    nodes, log_weight = hermite_nodes(num_nodes, 1)
    rows, orders = multisets(num_nodes, num_samples)
    probability = orders * log_weight.exp()[rows].prod(1)
    rows, probability = rows[probability > 1e-19], probability[probability > 1e-19]
    many = x.expand(len(rows), -1)
    q = encoder(many)
    return probability @ surrogate(model, many, q, q.transport(nodes[rows.T, 0]))


def gradients(value, parameters):
    found = torch.autograd.grad(value.sum(), parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def same(one, other, rtol=1e-10, atol=1e-12):
    for a, b in zip(one, other, strict=True):
        close(a, b.detach(), rtol=rtol, atol=atol)


def some_law(model, num_points, seed=7):
    """Return an asymmetric q for each of B data points, and the leaf tensors that it is made of."""
    if isinstance(model, GaussianLatentModel):
        loc = (0.3 * numbers(num_points, model.z_dim, seed=seed)).requires_grad_()
        scale = (0.5 + 0.3 * numbers(num_points, model.z_dim, seed=seed + 1).abs()).requires_grad_()
        return DiagonalGaussian(loc, scale), [loc, scale]
    size = model.num_states if not model.z_shape else model.z_dim
    logits = numbers(num_points, size, seed=seed).requires_grad_()
    return (BernoulliVector(logits) if model.z_shape else Categorical(logits=logits)), [logits]


def gaussian_posterior(model, x):
    """Return the exact posterior of a model with one latent as a DiagonalGaussian, and its leaf mean and scale."""
    law = model.posterior(x)
    loc, scale = law.mean.detach().requires_grad_(), law.stddev.detach().requires_grad_()
    return DiagonalGaussian(loc, scale), loc, scale


# exact expectations of the gradient in θ and φ


@pytest.mark.parametrize(("surrogate", "num_samples"), cases(UNBIASED_BY_SCORES))
def test_expected_gradient_over_all_tuples_is_that_of_the_exact_bound(surrogate, num_samples, discrete, data):
    model, encoder = discrete
    for x in data(model, 2).split(1):
        expected = exact_over_tuples(model, x, encoder, num_samples, STATISTIC[surrogate])
        actual = over_tuples(surrogate, model, x, encoder, num_samples)
        gradients_agree(actual, expected, trainable(model, encoder))


@pytest.mark.parametrize(("surrogate", "num_samples"), cases(OF_ELBO))
def test_expected_gradient_over_all_tuples_is_that_of_exact_elbo(surrogate, num_samples, discrete, data):
    model, encoder = discrete
    x = data(model, 1)
    expected = exact_elbo(model, x, encoder(x)).sum()
    gradients_agree(over_tuples(surrogate, model, x, encoder, num_samples), expected, trainable(model, encoder))


@pytest.mark.parametrize(("surrogate", "num_samples"), cases([*UNBIASED_BY_SCORES, *ALONG_THE_PATH]))
def test_expected_gradient_over_noise_is_that_of_the_integral_over_z(surrogate, num_samples, continuous, data):
    model, encoder = continuous
    x = data(model, 1)
    expected = over_density(model, x, encoder, num_samples, STATISTIC[surrogate])
    actual = over_noise(surrogate, model, x, encoder, num_samples)
    gradients_agree(actual, expected, trainable(model, encoder), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("surrogate", "num_samples"), cases([*OF_ELBO, *OF_ELBO_ALONG_THE_PATH], counts=(1, 2)))
def test_expected_gradient_over_noise_is_that_of_exact_elbo(surrogate, num_samples, continuous, data):
    model, encoder = continuous
    x = data(model, 1)
    expected = exact_elbo(model, x, encoder(x), num_nodes=60).sum()
    actual = over_noise(surrogate, model, x, encoder, num_samples)
    gradients_agree(actual, expected, trainable(model, encoder), rtol=1e-9, atol=1e-10)


@each([*UNBIASED_BY_SCORES, *ALONG_THE_PATH])
def test_gradient_over_noise_has_converged_in_the_number_of_nodes(surrogate, continuous, data):
    model, encoder = continuous
    x = data(model, 1)
    coarse, fine = (over_noise(surrogate, model, x, encoder, 2, num_nodes) for num_nodes in (80, 110))
    gradients_agree(coarse, fine, trainable(model, encoder), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("num_samples", [1, 2, 3])
def test_expected_gradient_of_wake_sleep_in_the_model_is_that_of_the_iwae_bound(num_samples, discrete, data):
    model, encoder = discrete
    x = data(model, 1)
    expected = exact_over_tuples(model, x, encoder, num_samples, log_mean)
    actual = over_tuples(reweighted_wake_sleep, model, x, encoder, num_samples)
    gradients_agree(actual, expected, trainable(model))


# values


@pytest.mark.parametrize(("surrogate", "num_samples"), cases(BY_SCORES))
def test_value_is_the_bound_of_the_same_draws(surrogate, num_samples, enumerable, data):
    x = data(enumerable)
    q, _ = some_law(enumerable, 5)
    z = draw(q, num_samples)
    expected = STATISTIC[surrogate](enumerable.log_joint(x, z) - q.log_prob(z))
    close(surrogate(enumerable, x, q, z), expected.detach())


@pytest.mark.parametrize(("surrogate", "num_samples"), cases(ALL))
def test_value_is_the_bound_of_the_same_draws_for_a_gaussian_q(surrogate, num_samples, linear_gaussian, data):
    x = data(linear_gaussian)
    q, _ = some_law(linear_gaussian, 5)
    z = draw(q, num_samples)
    expected = STATISTIC[surrogate](linear_gaussian.log_joint(x, z) - q.log_prob(z))
    close(surrogate(linear_gaussian, x, q, z), expected.detach())


# at the posterior


@pytest.mark.parametrize("num_samples", [1, 3])
@pytest.mark.parametrize("name", ["gaussian_mixture", "bernoulli_mixture"])
def test_score_function_has_no_variance_at_the_posterior_with_log_marginal_as_baseline(
    name, num_samples, request, data
):
    model = request.getfixturevalue(name)
    x = data(model)
    logits = exact_posterior(model, x).law.logits.detach().requires_grad_()
    q, baseline = Categorical(logits=logits), exact_log_marginal(model, x)
    for z in itertools.product(range(3), repeat=num_samples):
        z = torch.tensor(z)[:, None].expand(-1, 5)
        close(
            gradients(score_function(model, x, q, z, baseline=baseline), [logits])[0],
            torch.zeros(5, 3),
            atol=1e-11,
        )


@pytest.mark.parametrize("num_samples", [2, 3])
def test_leave_one_out_has_no_variance_at_the_posterior(num_samples, gaussian_mixture, data):
    x = data(gaussian_mixture)
    logits = exact_posterior(gaussian_mixture, x).law.logits.detach().requires_grad_()
    for z in itertools.product(range(3), repeat=num_samples):
        value = leave_one_out(gaussian_mixture, x, Categorical(logits=logits), torch.tensor(z)[:, None].expand(-1, 5))
        close(gradients(value, [logits])[0], torch.zeros(5, 3), atol=1e-11)


@pytest.mark.parametrize(
    ("surrogate", "num_samples"), cases([leave_one_out, sticking_the_landing, doubly_reparameterized])
)
def test_gradient_in_a_gaussian_posterior_is_zero_for_any_noise(surrogate, num_samples, line, data):
    x = data(line)
    q, loc, scale = gaussian_posterior(line, x)
    value = surrogate(line, x, q, q.transport(numbers(num_samples, 5, 1)))
    same(gradients(value, [loc, scale]), [torch.zeros(5, 1, dtype=DOUBLE)] * 2, atol=1e-11)


def over_single_noise(surrogate, model, x, q, leaf):
    """Return the estimates of the gradient in `leaf` at Gauss–Hermite nodes of the noise, (S,), and their weights."""
    nodes, log_weight = hermite_nodes(40, 1)
    found = [gradients(surrogate(model, x, q, q.transport(node[None])), [leaf])[0].item() for node in nodes]
    return torch.tensor(found, dtype=DOUBLE), log_weight.exp()


def test_pathwise_gradient_in_the_mean_has_variance_one_over_sigma_squared_at_the_posterior(line, data):
    x = data(line, 1)
    q, loc, scale = gaussian_posterior(line, x)
    found, weights = over_single_noise(pathwise, line, x, q, loc)
    close(weights @ found, 0.0, atol=1e-12)
    close(weights @ found.square(), scale.item() ** -2)


@pytest.mark.parametrize("delta", [0.3, -2.0])
def test_a_baseline_off_by_delta_gives_variance_delta_squared_over_sigma_squared(delta, line, data):
    x = data(line, 1)
    q, loc, scale = gaussian_posterior(line, x)
    off = functools.partial(score_function, baseline=exact_log_marginal(line, x) + delta)
    found, weights = over_single_noise(off, line, x, q, loc)
    close(weights @ found, 0.0, atol=1e-12)
    close(weights @ found.square(), delta**2 / scale.item() ** 2)


@pytest.mark.parametrize(("surrogate", "num_samples"), cases([vimco, iwae_pathwise], counts=(2, 3)))
def test_gradient_of_the_iwae_bound_at_the_posterior_is_minus_the_mean_score(surrogate, num_samples, line, data):
    x = data(line)
    q, loc, scale = gaussian_posterior(line, x)
    z = q.transport(numbers(num_samples, 5, 1))
    value, scores = surrogate(line, x, q, z), q.log_prob(z.detach()).mean(0)
    same(gradients(value, [loc, scale]), [-g for g in gradients(scores, [loc, scale])])


# given draws


def coefficients(surrogate, model, x, z, logits):
    """Return the coefficients c_k of ∇ log q(z_k) in the gradient of one data point whose K states differ.

    The gradient in the logits is Σ_k c_k (1[z_k] − q) up to states that were not drawn, so it is solved for c.
    """
    (gradient,) = gradients(surrogate(model, x, Categorical(logits=logits), z), [logits])
    rows = nn.functional.one_hot(z[:, 0], logits.shape[1]) - logits.detach().softmax(1)
    return torch.linalg.lstsq(rows.T, gradient.T).solution[:, 0].tolist()


@pytest.fixture
def four_states():
    """A mixture of four, one data point, three different states drawn for it, their log-weights, and q's logits."""
    model = GaussianMixture(torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=DOUBLE), numbers(4, X_DIM), torch.ones(1).double())
    x, z = numbers(1, X_DIM, seed=3), torch.tensor([[2], [0], [1]])
    logits = numbers(1, 4, seed=4).requires_grad_()
    log_w = model.log_joint(x, z) - Categorical(logits=logits).log_prob(z)
    return model, x, z, logits, log_w[:, 0].tolist()


def test_score_function_weighs_the_scores_by_log_weight_minus_baseline(four_states):
    model, x, z, logits, log_w = four_states
    found = coefficients(functools.partial(score_function, baseline=-4.7), model, x, z, logits)
    close(found, [(value + 4.7) / 3 for value in log_w])


def test_leave_one_out_weighs_the_scores_by_the_distance_to_the_mean_of_the_others(four_states):
    model, x, z, logits, log_w = four_states
    expected = [(log_w[k] - (sum(log_w) - log_w[k]) / 2) / 3 for k in range(3)]
    close(coefficients(leave_one_out, model, x, z, logits), expected)


def test_vimco_weighs_the_scores_by_what_each_sample_adds_to_the_bound_and_less_its_weight(four_states):
    model, x, z, logits, log_w = four_states
    bound, shares, expected = oracles.log_mean_exp(log_w), oracles.normalized_weights(log_w), []
    for k in range(3):
        others = [value for j, value in enumerate(log_w) if j != k]
        expected.append(bound - oracles.log_mean_exp([*others, sum(others) / 2]) - shares[k])
    close(coefficients(vimco, model, x, z, logits), expected)


def test_wake_sleep_weighs_the_scores_by_normalized_weights(four_states):
    model, x, z, logits, log_w = four_states
    close(coefficients(reweighted_wake_sleep, model, x, z, logits), oracles.normalized_weights(log_w))


@pytest.mark.parametrize(("surrogate", "num_samples"), cases(ALL))
def test_gradient_in_the_model_is_that_of_the_bound_of_the_same_draws(surrogate, num_samples, linear_gaussian, data):
    x = data(linear_gaussian)
    q, _ = some_law(linear_gaussian, 5)
    z = draw(q, num_samples)
    fixed = z.detach()
    expected = STATISTIC[surrogate](linear_gaussian.log_joint(x, fixed) - q.log_prob(fixed))
    parameters = trainable(linear_gaussian)
    same(gradients(surrogate(linear_gaussian, x, q, z), parameters), gradients(expected, parameters))


def test_one_doubly_reparameterized_sample_sticks_the_landing(continuous, data):
    model, encoder = continuous
    x = data(model)
    q, noise = encoder(x), numbers(1, 5, 1)
    one, other = (f(model, x, q, q.transport(noise)) for f in (doubly_reparameterized, sticking_the_landing))
    same(gradients(one, trainable(model, encoder)), gradients(other, trainable(model, encoder)))


def test_one_pathwise_sample_of_the_iwae_bound_is_one_of_the_elbo(continuous, data):
    model, encoder = continuous
    x = data(model)
    q, noise = encoder(x), numbers(1, 5, 1)
    one, other = (f(model, x, q, q.transport(noise)) for f in (iwae_pathwise, pathwise))
    same(gradients(one, trainable(model, encoder)), gradients(other, trainable(model, encoder)))


def test_doubly_reparameterized_gradient_is_that_of_the_path_of_each_sample_with_squared_weights(line, data):
    x = data(line)
    q, leaves = some_law(line, 5)
    noise = numbers(3, 5, 1)
    log_w = line.log_joint(x, q.transport(noise)) - q.log_prob(q.transport(noise).detach())
    shares = [oracles.normalized_weights(column) for column in log_w.T.tolist()]
    fixed = DiagonalGaussian(*[leaf.detach() for leaf in leaves])
    path = [line.log_joint(x, q.transport(e[None])) - fixed.log_prob(q.transport(e[None])) for e in noise]
    expected = sum(torch.tensor([s[k] ** 2 for s in shares], dtype=DOUBLE) * path[k] for k in range(3))
    same(gradients(doubly_reparameterized(line, x, q, q.transport(noise)), leaves), gradients(expected, leaves))


@pytest.mark.parametrize("num_backward", [1, 2, 4])
@each([iwae_pathwise, doubly_reparameterized])
def test_a_backward_pass_through_resampled_samples_has_the_gradient_of_all_on_average(
    surrogate, num_backward, all_uniform_numbers, line, data
):
    q, leaves = some_law(line, 1)
    x, noise, copies = data(line, 1), numbers(3, 1, 1), 20_000
    everywhere = DiagonalGaussian(*[leaf.expand(copies, -1) for leaf in leaves])
    expected = surrogate(line, x, q, q.transport(noise))
    all_uniform_numbers()
    z = everywhere.transport(noise.expand(-1, copies, -1))
    found = surrogate(line, x.expand(copies, -1), everywhere, z, num_backward=num_backward)
    close(found.detach(), expected.detach().expand(copies))  # the value is that of all samples
    parameters = [*leaves, *trainable(line)]
    same(gradients(found / copies, parameters), gradients(expected, parameters), rtol=1e-3, atol=1e-3)


@each([iwae_pathwise, doubly_reparameterized])
def test_only_resampled_samples_have_a_backward_pass_and_the_caller_s_z_keeps_its_gradient(surrogate, line, data):
    x = data(line)
    q, _ = some_law(line, 5)
    z, seen, whole = draw(q, 8), [], type(line).likelihood

    class Spy(type(line)):
        def likelihood(self, z):
            seen.append((len(z), torch.is_grad_enabled()))
            return whole(self, z)

    line.__class__ = Spy
    surrogate(line, x, q, z, num_backward=2).sum().backward()
    assert seen == [(8, False), (2, True)]
    assert z._backward_hooks is None or not z._backward_hooks


@each([iwae_pathwise, doubly_reparameterized])
def test_no_sample_for_the_backward_pass_is_refused(surrogate, line, data):
    q, _ = some_law(line, 5)
    with pytest.raises(ValueError, match="num_backward must be at least 1, got 0"):
        surrogate(line, data(line), q, draw(q, 3), num_backward=0)


@pytest.mark.parametrize("num_samples", [2, 3])
def test_leave_one_out_is_score_function_with_the_mean_of_the_others_as_baseline(num_samples, discrete, data):
    model, encoder = discrete
    x = data(model)
    q = encoder(x)
    z = draw(q, num_samples)
    log_w = (model.log_joint(x, z) - q.log_prob(z)).detach()
    others = torch.stack([log_w[[j for j in range(num_samples) if j != k]].mean(0) for k in range(num_samples)])
    one, other = leave_one_out(model, x, q, z), score_function(model, x, q, z, baseline=others)
    same(gradients(one, trainable(model, encoder)), gradients(other, trainable(model, encoder)))


@pytest.mark.parametrize("num_samples", [1, 3])
@each([score_function, crooked_baseline, learned, pathwise, sticking_the_landing])
def test_gradient_of_several_samples_is_the_mean_of_those_of_one(surrogate, num_samples, line, data):
    x = data(line)
    q, leaves = some_law(line, 5)
    noise, parameters = numbers(num_samples, 5, 1), [*leaves, *trainable(line)]
    single = [gradients(surrogate(line, x, q, q.transport(e[None])), parameters) for e in noise]
    expected = [torch.stack(parts).mean(0) for parts in zip(*single, strict=True)]
    same(gradients(surrogate(line, x, q, q.transport(noise)), parameters), expected)


# baselines


def test_score_function_has_no_baseline_by_default(gaussian_mixture, data):
    x = data(gaussian_mixture)
    q, leaves = some_law(gaussian_mixture, 5)
    z = draw(q, 3)
    one, other = score_function(gaussian_mixture, x, q, z), score_function(gaussian_mixture, x, q, z, baseline=0)
    same(gradients(one, leaves), gradients(other, leaves), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(5,), (3, 5)])
def test_no_gradient_flows_into_the_baseline(shape, gaussian_mixture, data):
    q, _ = some_law(gaussian_mixture, 5)
    baseline = numbers(*shape).requires_grad_()
    value = score_function(gaussian_mixture, data(gaussian_mixture), q, draw(q, 3), baseline=baseline)
    assert torch.autograd.grad(value.sum(), [baseline], allow_unused=True) == (None,)


@pytest.mark.parametrize("kind", ["number", "per data point", "per sample"])
def test_a_number_is_the_baseline_of_each_data_point_and_sample(kind, gaussian_mixture, data):
    x = data(gaussian_mixture)
    q, leaves = some_law(gaussian_mixture, 5)
    z = draw(q, 3)
    baseline = {"number": -1.234567890123, "per data point": torch.full((5,), -1.234567890123, dtype=DOUBLE)}
    baseline["per sample"] = baseline["per data point"].expand(3, 5)
    log_q = q.log_prob(z)
    signal = (gaussian_mixture.log_joint(x, z) - log_q).detach() + 1.234567890123
    value = score_function(gaussian_mixture, x, q, z, baseline=baseline[kind])
    same(gradients(value, leaves), gradients((signal * log_q).mean(0), leaves))


@pytest.mark.parametrize("shape", [(3,), (1,), (3, 1), (1, 5), (5, 3), (3, 5, 1)])
def test_a_baseline_that_would_broadcast_by_accident_is_refused(shape, gaussian_mixture, data):
    q, _ = some_law(gaussian_mixture, 5)
    with pytest.raises(ValueError, match=r"score_function: baseline must be .*got \("):
        score_function(gaussian_mixture, data(gaussian_mixture), q, draw(q, 3), baseline=numbers(*shape))


@pytest.fixture
def network():
    return nn.Sequential(mlp(X_DIM, [3], 1), nn.Flatten(0)).double()


@pytest.mark.parametrize("num_samples", [1, 3])
def test_gradient_of_the_learned_baseline_is_that_of_its_squared_error(num_samples, discrete, data, network):
    model, encoder = discrete
    x = data(model)
    q = encoder(x)
    z = draw(q, num_samples)
    log_w = (model.log_joint(x, z) - q.log_prob(z)).detach()
    expected = -0.5 * (log_w - network(x)).square().mean(0)
    value = learned_baseline(model, x, q, z, network=network)
    same(gradients(value, trainable(network)), gradients(expected, trainable(network)))


def test_a_learned_baseline_leaves_the_gradients_of_score_function(discrete, data, network):
    model, encoder = discrete
    x = data(model)
    q = encoder(x)
    z = draw(q, 3)
    one = learned_baseline(model, x, q, z, network=network)
    other = score_function(model, x, q, z, baseline=network(x))
    same(gradients(one, trainable(model, encoder)), gradients(other, trainable(model, encoder)))


@pytest.mark.parametrize("shape", [(5, 1), (1,), (), (3, 5)])
def test_a_network_that_returns_another_shape_is_refused(shape, gaussian_mixture, data):
    q, _ = some_law(gaussian_mixture, 5)
    with pytest.raises(ValueError, match=r"network must return shape \(5,\), one baseline per x, got \("):
        learned_baseline(gaussian_mixture, data(gaussian_mixture), q, draw(q, 3), network=lambda x: numbers(*shape))


def test_a_baseline_that_is_a_part_of_the_encoder_is_trained_by_fit():
    model = GaussianMixture(torch.tensor([0.3, 0.7]), torch.tensor([[-1.0], [1.0]]), torch.ones(1)).double()

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.tensor([0.0, 0.5], dtype=DOUBLE))
            self.baseline = nn.Sequential(mlp(1, [], 1), nn.Flatten(0)).double()

        def forward(self, x):
            return Categorical(logits=self.logits.expand(len(x), -1))

    encoder, x = Encoder(), numbers(20, 1)
    climb = objective(learned_baseline, 2, network=encoder.baseline)
    fit(model.requires_grad_(False), climb, x, encoder=encoder, num_epochs=200, batch_size=20, learning_rate=0.03)
    error = exact_log_marginal(model, x) - encoder.baseline(x)
    assert error.abs().mean() < 0.5 < exact_log_marginal(model, x).abs().mean()


# samples of zero weight


@pytest.fixture
def gapped(gaussian_mixture):
    """A mixture whose state 1 has no weight; no gradient is asked of the weights."""
    gaussian_mixture.weight_logits.data[1] = -math.inf
    gaussian_mixture.weight_logits.requires_grad_(False)
    return gaussian_mixture


@pytest.mark.parametrize("num_samples", [2, 3])
@pytest.mark.parametrize("surrogate", [vimco, reweighted_wake_sleep], ids=lambda f: f.__name__)
def test_gradient_is_finite_whichever_samples_have_zero_weight(surrogate, num_samples, gapped, data):
    many, z, _ = tuples(gapped, data(gapped, 1), Crooked(Categorical, 3), num_samples)
    q, leaves = some_law(gapped, len(many))
    found = gradients(surrogate(gapped, many, q, z), [*leaves, *trainable(gapped)])
    assert all(gradient.isfinite().all() for gradient in found)


@pytest.mark.parametrize("surrogate", [vimco, reweighted_wake_sleep], ids=lambda f: f.__name__)
def test_where_all_weights_are_zero_the_value_is_minus_infinity_and_the_gradient_zero(surrogate, gapped, data):
    q, leaves = some_law(gapped, 2)
    value = surrogate(gapped, data(gapped, 2), q, torch.tensor([[1, 1], [1, 0]]))
    assert value[0] == -math.inf and value[1].isfinite()
    gradient = gradients(value, leaves)[0]
    assert gradient[0].abs().max() == 0 and gradient[1].abs().max() > 0


@pytest.mark.parametrize("num_samples", [2, 3])
def test_vimco_is_unbiased_for_the_mean_over_the_tuples_with_a_weight(num_samples, gapped, data):
    x, encoder = data(gapped, 1), Crooked(Categorical, 3).requires_grad_()
    many, z, log_q = tuples(gapped, x, encoder, num_samples)
    some = (z != 1).any(0)
    expected = log_q.sum(0).exp()[some] @ log_mean((gapped.log_joint(many, z) - log_q)[:, some])
    actual = log_q.sum(0).exp().detach()[some] @ vimco(gapped, many, encoder(many), z)[some]
    gradients_agree(actual, expected, trainable(gapped, encoder))


@each(OF_ELBO)
def test_value_for_the_elbo_is_minus_infinity_where_a_sample_has_zero_weight(surrogate, gapped, data):
    q, _ = some_law(gapped, 2)
    value = surrogate(gapped, data(gapped, 2), q, torch.tensor([[1, 2], [0, 0]]))
    assert value[0] == -math.inf and value[1].isfinite()


@pytest.mark.parametrize(("surrogate", "num_samples"), cases(BY_SCORES, counts=(3,)))
def test_gradient_is_finite_where_q_has_impossible_states(surrogate, num_samples, gaussian_mixture, data):
    logits = torch.tensor([[0.3, -math.inf, 0.1], [-0.3, 0.2, -math.inf]], dtype=DOUBLE, requires_grad=True)
    q = Categorical(logits=logits, validate_args=False)
    value = surrogate(gaussian_mixture, data(gaussian_mixture, 2), q, draw(q, num_samples))
    assert all(g.isfinite().all() for g in gradients(value, [logits, *trainable(gaussian_mixture)]))


# wake-sleep: the gradient of the forward KL, and its bias


def wake(model, x, encoder, num_samples):
    """Return the expected wake gradient in q's weights, flat."""
    return gradients(over_tuples(reweighted_wake_sleep, model, x, encoder, num_samples), trainable(encoder))[
        0
    ].flatten()


def forward_kl(model, x, encoder):
    """Return minus the gradient of KL(p(z | x) ‖ q) in q's weights, flat, and the leading term of the bias times K."""
    posterior = exact_posterior(model, x).law.probs[0].detach()
    log_q = encoder(x).log_prob(model.states())[:, 0]
    scores = torch.stack([gradients(value, trainable(encoder))[0].flatten() for value in log_q])
    exact = posterior @ scores
    return exact, -(posterior.square() / log_q.exp().detach()) @ (scores - exact)


def test_wake_gradient_of_one_sample_is_zero_in_expectation(discrete, data):
    model, encoder = discrete
    close(wake(model, data(model, 1), encoder, 1), torch.zeros(trainable(encoder)[0].numel()), atol=1e-13)


def mild_mixture():
    """A mixture of three with overlapping components, so that the weights vary little."""
    return GaussianMixture(torch.tensor([0.2, 0.5, 0.3], dtype=DOUBLE), 0.3 * numbers(3, X_DIM), torch.ones(1).double())


def test_bias_of_the_wake_gradient_falls_as_one_over_num_samples(data):
    model, encoder = mild_mixture(), Crooked(Categorical, 3).requires_grad_()
    x = data(model, 1)
    exact, leading = forward_kl(model, x, encoder)
    errors = [((wake(model, x, encoder, k) - exact) * k - leading).norm() / leading.norm() for k in (2, 4, 8)]
    assert errors[0] < 0.5 and errors[1] < 0.6 * errors[0] and errors[2] < 0.6 * errors[1]


@pytest.mark.parametrize("num_samples", [2, 4, 8])
def test_wake_gradient_points_the_way_of_the_forward_kl_but_falls_short(num_samples, data):
    model, encoder = mild_mixture(), Crooked(Categorical, 3).requires_grad_()
    x = data(model, 1)
    exact, _ = forward_kl(model, x, encoder)
    share = (wake(model, x, encoder, num_samples) @ exact / exact.square().sum()).item()
    assert 1 - 1.5 / num_samples < share < 1 - 0.5 / num_samples


def test_wake_gradient_is_not_that_of_the_iwae_bound(discrete, data):
    model, encoder = discrete
    x = data(model, 1)
    bound = gradients(exact_over_tuples(model, x, encoder, 2, log_mean), trainable(encoder))[0].flatten()
    assert (wake(model, x, encoder, 2) - bound).norm() > 0.1 * bound.norm()


# symmetries, dtype, side effects


@pytest.mark.parametrize(("surrogate", "num_samples"), cases(ALL, counts=(3,)))
def test_permuting_the_samples_leaves_value_and_gradient(surrogate, num_samples, line, data):
    x = data(line)
    q, leaves = some_law(line, 5)
    noise, parameters = numbers(num_samples, 5, 1), [*leaves, *trainable(line)]
    one, other = (surrogate(line, x, q, q.transport(noise[order])) for order in ([0, 1, 2], [2, 0, 1]))
    close(one, other.detach())
    same(gradients(one, parameters), gradients(other, parameters))


@pytest.mark.parametrize(("surrogate", "num_samples"), cases(BY_SCORES, counts=(3,)))
@pytest.mark.parametrize("num_points", [2, 3, 4])
def test_each_data_point_has_its_own_value_and_gradient(surrogate, num_samples, num_points, enumerable, data):
    # num_points also takes the values of z_dim, of the number of states and of the number of samples
    x = data(enumerable, num_points)
    q, (logits,) = some_law(enumerable, num_points)
    z = draw(q, num_samples)
    value = surrogate(enumerable, x, q, z)
    (whole,) = gradients(value, [logits])
    for i in range(num_points):
        row = logits[i : i + 1].detach().requires_grad_()
        one = surrogate(enumerable, x[i : i + 1], type(q)(logits=row), z[:, i : i + 1])
        close(one, value[i : i + 1].detach())
        same(gradients(one, [row]), [whole[i : i + 1]])


@pytest.mark.parametrize(("surrogate", "num_samples"), cases(ALONG_THE_PATH, counts=(3,)))
@pytest.mark.parametrize("num_points", [1, 2, 3])
def test_each_data_point_has_its_own_gradient_along_the_path(surrogate, num_samples, num_points, linear_gaussian, data):
    x, noise = data(linear_gaussian, num_points), numbers(num_samples, num_points, 2)
    q, leaves = some_law(linear_gaussian, num_points)
    value = surrogate(linear_gaussian, x, q, q.transport(noise))
    whole = gradients(value, leaves)
    for i in range(num_points):
        rows = [leaf[i : i + 1].detach().requires_grad_() for leaf in leaves]
        law = DiagonalGaussian(*rows)
        one = surrogate(linear_gaussian, x[i : i + 1], law, law.transport(noise[:, i : i + 1]))
        close(one, value[i : i + 1].detach())
        same(gradients(one, rows), [part[i : i + 1] for part in whole])


@pytest.mark.parametrize(("surrogate", "num_samples"), cases(ALL, counts=(3,)))
def test_single_precision_gives_the_gradient_of_double(surrogate, num_samples, line, data):
    x, noise, found = data(line), numbers(num_samples, 5, 1), []
    _, leaves = some_law(line, 5)
    for dtype in (torch.float32, DOUBLE):
        parts = [leaf.detach().to(dtype).requires_grad_() for leaf in leaves]
        q, model = DiagonalGaussian(*parts), line.to(dtype)
        value = surrogate(model, x.to(dtype), q, q.transport(noise.to(dtype)))
        assert value.dtype == dtype
        found.append(gradients(value, [*parts, *trainable(model)]))
    same(*found, rtol=2e-4, atol=2e-4)


class Counting(nn.Module):
    """A decoder that counts its calls."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder, self.calls = decoder, 0

    def forward(self, z):
        self.calls += 1
        return self.decoder(z)


@pytest.mark.parametrize(("surrogate", "num_samples"), cases(ALL, counts=(3,)))
def test_decoder_is_evaluated_once(surrogate, num_samples, gaussian_latent, data):
    x = data(gaussian_latent)
    q, _ = some_law(gaussian_latent, 5)
    gaussian_latent.decoder = Counting(gaussian_latent.decoder)
    surrogate(gaussian_latent, x, q, draw(q, num_samples)).sum().backward()
    assert gaussian_latent.decoder.calls == 1


@pytest.mark.parametrize(("surrogate", "num_samples"), cases(ALL, counts=(3,)))
def test_the_draws_are_left_as_they_were(surrogate, num_samples, line, data):
    q, _ = some_law(line, 5)
    z = draw(q, num_samples)
    copy = z.detach().clone()
    surrogate(line, data(line), q, z)
    (gradient,) = torch.autograd.grad(z.sum(), [z])
    assert torch.equal(z, copy) and torch.equal(gradient, torch.ones_like(z))


@pytest.mark.parametrize(("surrogate", "num_samples"), cases(ALL, counts=(2,)))
def test_a_law_without_gradient_is_scored_too(surrogate, num_samples, line, data):
    q = DiagonalGaussian(numbers(5, 1), numbers(5, 1).exp())
    value = surrogate(line, data(line), q, draw(q, num_samples))
    assert value.requires_grad and value.isfinite().all()


@pytest.mark.parametrize(("surrogate", "num_samples"), cases(ALL, counts=(2,)))
def test_surrogate_is_computed_without_autograd(surrogate, num_samples, line, data):
    q, _ = some_law(line, 5)
    with torch.no_grad():
        z = draw(q, num_samples)
        value = surrogate(line, data(line), q, z)
    close(value, STATISTIC[surrogate](line.log_joint(data(line), z) - q.log_prob(z)).detach())


# objectives


@pytest.mark.parametrize(("surrogate", "bound"), [(pathwise, elbo), (iwae_pathwise, iwae_bound)])
def test_objective_along_the_path_is_the_bound_bitwise(surrogate, bound, line, data):
    x, encoder, found = data(line), Narrow(3), []
    for function in (objective(surrogate, 3), functools.partial(bound, num_samples=3)):
        torch.manual_seed(3)
        value = function(line, x, encoder) if isinstance(function, functools.partial) else function(line, encoder, x)
        found.append([value, *gradients(value, trainable(line, encoder))])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_objective_draws_one_sample_by_default_and_hands_on_its_options(line, data):
    def spy(model, x, q, z, factor):
        assert z.shape == (1, 5, 1)
        return factor * q.log_prob(z)[0].square().sign()

    close(objective(spy, factor=4)(line, Narrow(3), data(line)), [4.0] * 5)


def test_objective_gives_noise_to_a_surrogate_that_asks_for_noise(two_bits, data):
    def spy(model, x, q, noise):
        return noise

    noise = objective(spy, 200)(two_bits, Crooked(BernoulliVector, 2), data(two_bits))
    assert noise.shape == (200, 5, 2) and len(noise.unique()) == noise.numel()


@pytest.mark.parametrize("surrogate", RELAXED)
def test_objective_draws_the_noise_of_relaxed_bits(surrogate, two_bits, data):
    x, encoder = data(two_bits), Crooked(BernoulliVector, 2).requires_grad_()
    torch.manual_seed(3)
    noise = logistic_noise(encoder(x), 4)
    torch.manual_seed(3)
    value = objective(surrogate, 4, temperature=0.7)(two_bits, encoder, x)
    close(value, surrogate(two_bits, x, encoder(x), noise, temperature=0.7).detach(), rtol=0, atol=0)


def test_objective_calls_the_encoder_once(line, data):
    calls, encoder = [], Narrow(3)

    def spy(x):
        calls.append(x)
        return encoder(x)

    objective(doubly_reparameterized, 3)(line, spy, data(line))
    assert len(calls) == 1


@pytest.mark.parametrize(("num_samples", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError)])
def test_objective_refuses_num_samples_that_are_not_a_positive_int(num_samples, error):
    with pytest.raises(error, match="num_samples"):
        objective(pathwise, num_samples)


def test_fit_climbs_the_elbo_with_discrete_latents(two_bits, data):
    x, encoder = data(two_bits, 6), Crooked(BernoulliVector, 2).requires_grad_()
    history = fit(two_bits, objective(leave_one_out, 8), x, encoder=encoder, num_epochs=60, batch_size=6)["objective"]
    assert history[-10:].mean() > history[:10].mean() + 0.1


def test_fit_proposal_lands_on_the_posterior_where_the_estimator_has_no_variance_there(line, data):
    x, free = data(line), FreeGaussian(5, 1).double()
    history = fit_proposal(line, free, x, objective(sticking_the_landing), num_steps=400)
    gap = exact_log_marginal(line, x) - exact_elbo(line, x, free(x))
    assert (gap < 1e-6).all() and (history[-1] - history[-2]).abs().max() < 1e-4


# relaxed bits


@pytest.fixture
def one_bit():
    """One bit with a learned prior and a neural decoder."""
    torch.manual_seed(4)
    model = BinaryLatentModel(1, BernoulliDecoder(mlp(1, [4], X_DIM)), learn_prior=True).double()
    model.prior_logits.data = torch.tensor([0.4], dtype=DOUBLE)
    return model


@pytest.fixture
def straight_bit():
    """One bit with a Gaussian decoder that is linear: log p(x | z) is a quadratic function of z."""
    model = BinaryLatentModel(1, GaussianDecoder(mlp(1, [], 3), 0.8), learn_prior=True).double()
    model.prior_logits.data = torch.tensor([0.4], dtype=DOUBLE)
    return model


def logistic_nodes(logit, temperature):
    """Return nodes of the logistic noise and weights with its density: Gauss–Legendre panels, the step at an edge."""
    width = min(1.0, 2 * temperature)
    edges = -logit + width * np.arange(-math.ceil(45 / width), math.ceil(45 / width) + 1)
    nodes, weights = np.polynomial.legendre.leggauss(16)
    noise = torch.from_numpy((edges[:-1, None] + width * (nodes + 1) / 2).ravel())
    density = torch.from_numpy(np.tile(weights * width / 2, len(edges) - 1)) * noise.sigmoid() * (-noise).sigmoid()
    return noise, density


def over_logistic_noise(surrogate, model, x, logit, temperature):
    """Return the mean of a relaxed surrogate of one bit over its noise, for one data point and a leaf logit (1, 1)."""
    noise, weights = logistic_nodes(logit.item(), temperature)
    q = BernoulliVector(logit.expand(len(noise), 1))
    return weights @ surrogate(model, x.expand(len(noise), -1), q, noise[None, :, None], temperature=temperature)


def concrete_elbo(model, x, logit, temperature):
    """Return E[log p(x | z)] − KL for z of the binary Concrete law, by its density on (0, 1), with t = logit(z)."""
    t = torch.linspace(-60, 60, 24_001, dtype=DOUBLE)
    # z = σ(t) has density τ α e^{−τt} / (α e^{−τt} + 1)² in t, α = e^ℓ
    shifted = logit[0, 0] - temperature * t
    density = temperature * shifted.sigmoid() * (-shifted).sigmoid()
    log_likelihood = model.likelihood(t.sigmoid()[:, None, None]).log_prob(x)[:, 0]
    return (density * log_likelihood).sum() * 0.005 - kl_to_prior(BernoulliVector(logit), model)[0]


LOGITS = [-0.7, 1.3]


def leaf(logit):
    return torch.tensor([[logit]], dtype=DOUBLE, requires_grad=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("logit", LOGITS)
def test_expected_gumbel_softmax_is_the_integral_over_the_concrete_density(logit, temperature, one_bit, data):
    x, logit = data(one_bit, 1), leaf(logit)
    actual = over_logistic_noise(gumbel_softmax, one_bit, x, logit, temperature)
    expected = concrete_elbo(one_bit, x, logit, temperature)
    close(actual, expected.detach(), rtol=1e-10)
    gradients_agree(actual, expected, [logit, *trainable(one_bit)], rtol=1e-8, atol=1e-10)


def quadratic(model, x):
    """Return (a, b, c) of log p(x | z) = a + b z + c z² of the straight bit."""
    loss = [model.likelihood(torch.full((1, 1, 1), z, dtype=DOUBLE)).log_prob(x).item() for z in (0.0, 0.5, 1.0)]
    c = 2 * (loss[0] + loss[2] - 2 * loss[1])
    return loss[0], loss[2] - loss[0] - c, c


@pytest.mark.parametrize("logit", LOGITS)
def test_gumbel_softmax_at_temperature_one_is_the_closed_form(logit, straight_bit, data):
    x = data(straight_bit, 1)
    a, b, c = quadratic(straight_bit, x)
    value = over_logistic_noise(gumbel_softmax, straight_bit, x, leaf(logit), 1.0)
    value = value + kl_to_prior(BernoulliVector(leaf(logit)), straight_bit)[0]
    odds = math.exp(logit)  # z = α u / (1 − u + α u) for uniform u
    first = odds * (odds - 1 - logit) / (odds - 1) ** 2
    second = odds * (odds - 1 / odds - 2 * logit) * odds / (odds - 1) ** 3
    close(value, a + b * first + c * second, rtol=1e-10)


def elbo_gradient(model, x, logit):
    return gradients(exact_elbo(model, x, BernoulliVector(logit)), [logit])[0].item()


def relaxed_gradient(surrogate, model, x, logit, temperature):
    return gradients(over_logistic_noise(surrogate, model, x, logit, temperature), [logit])[0].item()


@pytest.mark.parametrize("logit", LOGITS)
def test_bias_of_gumbel_softmax_is_proportional_to_a_small_temperature(logit, straight_bit, data):
    x, logit = data(straight_bit, 1), leaf(logit)
    p = logit.sigmoid().item()
    slope = -quadratic(straight_bit, x)[2] * p * (1 - p) * (1 - 2 * p)  # of E[z²] ≈ p − τ p (1 − p), in the logit
    for temperature in (0.1, 0.05, 0.025):
        bias = relaxed_gradient(gumbel_softmax, straight_bit, x, logit, temperature)
        bias -= elbo_gradient(straight_bit, x, logit)
        assert abs(bias / (slope * temperature) - 1) < 6 * temperature


@pytest.mark.parametrize("logit", LOGITS)
def test_bias_of_gumbel_softmax_vanishes_with_the_temperature(logit, one_bit, data):
    x, logit = data(one_bit, 1), leaf(logit)
    exact = elbo_gradient(one_bit, x, logit)
    temperatures = (0.4, 0.1, 0.025, 0.00625)
    errors = [abs(relaxed_gradient(gumbel_softmax, one_bit, x, logit, t) - exact) for t in temperatures]
    assert errors[0] > 1e-4 and all(fine < 0.5 * coarse for coarse, fine in itertools.pairwise(errors))


def slopes(model, x):
    """Return the derivative of log p(x | z) in z at 0 and at 1, and its difference between the two."""
    z = torch.tensor([[[0.0]], [[1.0]]], dtype=DOUBLE, requires_grad=True)
    value = model.likelihood(z).log_prob(x)
    return *gradients(value, [z])[0].flatten().tolist(), (value[1] - value[0]).item()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("logit", LOGITS)
def test_expected_straight_through_is_the_slopes_times_the_flow_of_the_relaxed_bit(logit, temperature, one_bit, data):
    x = data(one_bit, 1)
    at_zero, at_one, _ = slopes(one_bit, x)

    def flow(u):
        relaxed = 1 / (1 + math.exp(-(logit + math.log(u / (1 - u))) / temperature))
        return relaxed * (1 - relaxed) / temperature

    step = 1 / (1 + math.exp(logit))  # the bit is on for u above this
    expected = at_zero * integrate.quad(flow, 0, step)[0] + at_one * integrate.quad(flow, step, 1)[0]
    value = over_logistic_noise(straight_through, one_bit, x, variable := leaf(logit), temperature)
    value = value + kl_to_prior(BernoulliVector(variable), one_bit)[0]
    close(gradients(value, [variable])[0].item(), expected, rtol=1e-8)


def test_straight_through_at_even_odds_and_temperature_one_is_a_third_too_small(straight_bit, data):
    x, logit = data(straight_bit, 1), leaf(0.0)
    *_, difference = slopes(straight_bit, x)
    straight_bit.prior_logits.data.zero_()  # the KL then has gradient 0
    close(elbo_gradient(straight_bit, x, logit), difference / 4)
    close(relaxed_gradient(straight_through, straight_bit, x, logit, 1.0), difference / 6, rtol=1e-10)


@pytest.mark.parametrize("logit", LOGITS)
def test_straight_through_at_a_low_temperature_takes_the_mean_slope_for_the_difference(logit, one_bit, data):
    x, p = data(one_bit, 1), torch.tensor(logit).double().sigmoid().item()
    at_zero, at_one, difference = slopes(one_bit, x)
    bias = p * (1 - p) * ((at_zero + at_one) / 2 - difference)
    assert abs(bias) > 1e-3
    variable = leaf(logit)
    for temperature in (0.1, 0.01):
        found = relaxed_gradient(straight_through, one_bit, x, variable, temperature)
        found -= elbo_gradient(one_bit, x, variable)
        assert abs(found - bias) < temperature * (abs(at_zero) + abs(at_one))


@pytest.mark.parametrize("logit", LOGITS)
def test_bias_of_straight_through_is_proportional_to_the_temperature_where_log_likelihood_is_quadratic(
    logit, straight_bit, data
):
    x, logit = data(straight_bit, 1), leaf(logit)
    p = logit.sigmoid().item()
    slope = 2 * quadratic(straight_bit, x)[2] * math.log(2) * p * (1 - p) * (2 * p - 1)
    for temperature in (0.1, 0.05, 0.025):
        bias = relaxed_gradient(straight_through, straight_bit, x, logit, temperature)
        bias -= elbo_gradient(straight_bit, x, logit)
        assert abs(bias / (slope * temperature) - 1) < 6 * temperature


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_straight_through_is_unbiased_in_value_and_in_the_model(temperature, one_bit, data):
    x, logit = data(one_bit, 1), leaf(1.3)
    actual = over_logistic_noise(straight_through, one_bit, x, logit, temperature)
    expected = exact_elbo(one_bit, x, BernoulliVector(logit)).sum()
    close(actual, expected.detach(), rtol=1e-10)
    gradients_agree(actual, expected, trainable(one_bit))


@pytest.mark.parametrize("logit", LOGITS)
def test_variance_of_the_relaxed_gradient_grows_as_one_over_the_temperature(logit, straight_bit, data):
    noise, weights = logistic_nodes(logit, 0.01)
    variable = torch.full((len(noise), 1), logit, dtype=DOUBLE, requires_grad=True)
    (slope,) = gradients(relax(BernoulliVector(variable), noise[None, :, None], 0.01), [variable])
    p = 1 / (1 + math.exp(-logit))
    close(weights @ slope[:, 0].square() * 0.01, p * (1 - p) / 6, rtol=1e-3)  # ∫ σ'(s)² ds = 1/6


def test_relaxed_bits_by_hand():
    q = BernoulliVector(torch.tensor([[0.0, math.log(3.0)]], dtype=DOUBLE))
    noise = torch.tensor([[[math.log(2.0), 0.0]], [[0.0, -math.log(3.0)]]], dtype=DOUBLE)
    close(relax(q, noise, 0.5), [[[4 / 5, 9 / 10]], [[1 / 2, 1 / 2]]])


@pytest.mark.parametrize("logit", LOGITS)
def test_relaxed_bits_above_one_half_have_the_probability_of_the_bit(logit):
    noise, weights = logistic_nodes(logit, 0.6)
    q = BernoulliVector(torch.full((len(noise), 1), logit, dtype=DOUBLE))
    close(weights @ (relax(q, noise[None, :, None], 0.6)[0, :, 0] > 0.5).double(), 1 / (1 + math.exp(-logit)))


def test_logistic_noise_is_logistic():
    uniform = logistic_noise(BernoulliVector(torch.zeros(2, 3, dtype=DOUBLE)), 20_000).sigmoid()
    # Hoeffding: each bin's share of 120 000 leaves 0.1 by 0.01 with a probability below 2 exp(−24)
    assert uniform.shape == (20_000, 2, 3) and uniform.dtype == DOUBLE
    assert ((uniform.flatten() * 10).long().bincount() / uniform.numel() - 0.1).abs().max() < 0.01


@pytest.mark.parametrize(("num_samples", "num_points"), [(3, 5), (1, 1), (2, 2)])
def test_gumbel_softmax_of_given_noise_equals_loops(num_samples, num_points, two_bits, data):
    x = data(two_bits, num_points)
    q, (logits,) = some_law(two_bits, num_points)
    noise = numbers(num_samples, num_points, 2)
    expected = []
    for b in range(num_points):
        total = 0.0
        for k in range(num_samples):
            z = [1 / (1 + math.exp(-(logits[b, d] + noise[k, b, d]).item() / 0.7)) for d in range(2)]
            pixels = two_bits.decoder.network(torch.tensor(z, dtype=DOUBLE)).tolist()
            total += oracles.bernoulli_log_mass(x[b].tolist(), pixels) / num_samples
        expected.append(total - kl_to_prior(q, two_bits)[b].item())
    close(gumbel_softmax(two_bits, x, q, noise, temperature=0.7), expected)


def test_straight_through_of_given_noise_has_the_value_of_the_bits(two_bits, data, monkeypatch):
    x = data(two_bits)
    q, (logits,) = some_law(two_bits, 5)
    noise = numbers(3, 5, 2)
    monkeypatch.setattr(lvmlib.bounds, "draw", lambda q, num_samples: (logits + noise > 0).double())
    with torch.no_grad():
        expected = elbo_analytic_kl(two_bits, x, lambda x: q, 3)
    close(straight_through(two_bits, x, q, noise, temperature=0.7), expected)


@pytest.mark.parametrize("surrogate", RELAXED)
def test_gradient_in_the_prior_is_that_of_the_kl(surrogate, two_bits, data):
    q, _ = some_law(two_bits, 5)
    value = surrogate(two_bits, data(two_bits), q, numbers(3, 5, 2), temperature=0.7)
    prior = [two_bits.prior_logits]
    same(gradients(value, prior), gradients(-kl_to_prior(q, two_bits), prior))


@pytest.mark.parametrize("surrogate", RELAXED)
def test_single_precision_relaxes_too(surrogate, two_bits, data):
    x = data(two_bits).float()
    model, logits = two_bits.float(), numbers(5, 2).float().requires_grad_()
    value = surrogate(model, x, BernoulliVector(logits), numbers(3, 5, 2).float(), temperature=0.7)
    assert value.dtype == torch.float32 and gradients(value, [logits])[0].isfinite().all()


@pytest.mark.parametrize("surrogate", RELAXED)
def test_infinite_noise_gives_a_bit_and_no_gradient(surrogate, two_bits, data):
    q, leaves = some_law(two_bits, 1)
    noise = torch.full((1, 1, 2), -math.inf, dtype=DOUBLE)
    value = surrogate(two_bits, data(two_bits, 1), q, noise, temperature=0.7)
    same(gradients(value, leaves), gradients(-kl_to_prior(q, two_bits), leaves))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("surrogate", RELAXED)
def test_a_temperature_that_is_not_above_zero_is_refused(surrogate, temperature, two_bits, data):
    q, _ = some_law(two_bits, 5)
    with pytest.raises(ValueError, match="temperature must be finite and above 0"):
        surrogate(two_bits, data(two_bits), q, numbers(3, 5, 2), temperature=temperature)


@pytest.mark.parametrize("surrogate", RELAXED)
def test_relaxing_another_law_than_bits_is_refused(surrogate, gaussian_mixture, data):
    q, _ = some_law(gaussian_mixture, 5)
    with pytest.raises(ValueError, match=f"q must be a BernoulliVector, got Categorical; .*{FOR_ANY_LAW}"):
        surrogate(gaussian_mixture, data(gaussian_mixture), q, numbers(3, 5, 3), temperature=0.5)


@pytest.mark.parametrize("shape", [(3, 5, 1), (3, 5, 3), (0, 5, 2), (3, 1, 2)])
@pytest.mark.parametrize("surrogate", RELAXED)
def test_noise_of_another_shape_than_the_bits_is_refused(surrogate, shape, two_bits, data):
    q, _ = some_law(two_bits, 5)
    with pytest.raises(ValueError, match="noise must"):
        surrogate(two_bits, data(two_bits), q, numbers(*shape), temperature=0.5)


@pytest.mark.parametrize("surrogate", RELAXED)
def test_grey_pixels_and_other_widths_are_refused_for_relaxed_bits(surrogate, two_bits, data):
    q, _ = some_law(two_bits, 5)
    for x in (0.5 * data(two_bits), data(two_bits)[:, :3]):
        with pytest.raises(ValueError, match="x must"):
            surrogate(two_bits, x, q, numbers(3, 5, 2), temperature=0.5)


# bad input


@pytest.mark.parametrize("surrogate", [leave_one_out, vimco])
def test_a_single_sample_is_refused(surrogate, gaussian_mixture, data):
    q, _ = some_law(gaussian_mixture, 5)
    with pytest.raises(ValueError, match=r"z must hold at least 2 samples \(num_samples >= 2\), got 1"):
        surrogate(gaussian_mixture, data(gaussian_mixture), q, draw(q, 1))


@each(ALL)
def test_no_samples_are_refused(surrogate, line, data):
    q, _ = some_law(line, 5)
    with pytest.raises(ValueError, match=r"z must hold at least [12] samples \(num_samples >= [12]\), got 0"):
        surrogate(line, data(line), q, q.transport(numbers(0, 5, 1)))


@each(ALONG_THE_PATH)
@pytest.mark.parametrize("name", ["gaussian_mixture", "two_bits"])
def test_a_discrete_law_has_no_path_and_the_message_names_what_works(name, surrogate, request, data):
    model = request.getfixturevalue(name)
    q, _ = some_law(model, 5)
    with pytest.raises(ValueError, match=f"q must have `transport`.*{type(q).__name__}.*{FOR_ANY_LAW}.*gumbel_softmax"):
        surrogate(model, data(model), q, draw(q, 3))


@each(ALONG_THE_PATH)
def test_a_z_that_has_lost_its_gradient_is_refused(surrogate, line, data):
    q, _ = some_law(line, 5)
    with pytest.raises(ValueError, match="z must carry the gradient of q"):
        surrogate(line, data(line), q, draw(q, 3).detach())


@each(ALL)
@pytest.mark.parametrize("shape", [(3, 4, 1), (3, 1, 1), (3, 5), (3, 5, 2)])
def test_a_z_of_another_shape_is_refused(shape, surrogate, line, data):
    q, _ = some_law(line, 5)
    with pytest.raises(ValueError, match="z must"):
        surrogate(line, data(line), q, numbers(*shape).requires_grad_())


@each(ALL)
@pytest.mark.parametrize("num_points", [1, 4])
def test_a_law_for_another_number_of_data_points_is_refused(num_points, surrogate, line, data):
    q, _ = some_law(line, num_points)
    with pytest.raises(ValueError, match=r"q must have batch shape \(5,\)"):
        surrogate(line, data(line), q, numbers(3, 5, 1).requires_grad_())


@each([surrogate for surrogate in ALL if surrogate is not crooked_baseline])
@pytest.mark.parametrize("shape", [(7,), (0, 3), (5, 4)])
def test_data_of_another_shape_are_refused(shape, surrogate, line):
    x = torch.zeros(shape, dtype=DOUBLE)
    q, _ = some_law(line, len(x))
    with pytest.raises(ValueError, match="x must"):
        surrogate(line, x, q, draw(q, 3))


@each(BY_SCORES)
def test_a_law_over_another_space_is_refused(surrogate, linear_gaussian, data):
    q = FreeBernoulli(5, 2).double().law()
    with pytest.raises(ValueError, match="q must be a law over the space of the prior DiagonalGaussian"):
        surrogate(linear_gaussian, data(linear_gaussian), q, numbers(3, 5, 2))
