"""The exact ELBO: loops, closed forms and a fine trapezoid sum; its distance to log p(x) is the KL to the posterior."""

import itertools
import math

import pytest
import torch
from torch.distributions import Categorical

from lvmlib import (
    BernoulliDecoder,
    BernoulliVector,
    BinaryLatentModel,
    DiagonalGaussian,
    FreeGaussian,
    FullGaussian,
    GaussianDecoder,
    GaussianLatentModel,
    GaussianMixture,
    Grid,
    LinearGaussian,
    QuadratureError,
    exact_elbo,
    exact_log_marginal,
    exact_posterior,
    mlp,
    posterior_proposal,
    prior_proposal,
)
from lvmlib.exact import hermite_nodes
from tests import oracles
from tests.conftest import X_DIM, numbers
from tests.test_models import DOUBLE, close

KINDS = ["diagonal", "full"]


def gaussian(kind, num_points, z_dim, spread=1.0):
    """Return asymmetric Gaussians and the leaf tensors that they are made of."""
    loc = numbers(num_points, z_dim, seed=3).requires_grad_()
    log_scale = (0.3 * numbers(num_points, z_dim, seed=4) - 0.4 + math.log(spread)).requires_grad_()
    if kind == "diagonal":
        return DiagonalGaussian(loc, log_scale.exp()), [loc, log_scale]
    lower = (0.5 * numbers(num_points, z_dim, z_dim, seed=5)).requires_grad_()
    return FullGaussian(loc, torch.diag_embed(log_scale.exp()) + lower.tril(-1)), [loc, log_scale, lower]


def crooked(model, num_points):
    """Return a discrete law over the model's states, and its logits."""
    if isinstance(model, BinaryLatentModel):
        logits = numbers(num_points, 4, seed=3).requires_grad_()
        return BernoulliVector(logits), logits
    logits = numbers(num_points, 3, seed=3).requires_grad_()
    return Categorical(logits=logits, validate_args=False), logits


def moments(q):
    """Return mean and covariance of a Gaussian."""
    return q.mean, torch.diag_embed(q.variance) if isinstance(q, DiagonalGaussian) else q.covariance_matrix


def gaussian_kl(q, p):
    """Return KL(q ‖ p) = ½ (tr(P⁻¹ Q) + (p − q)ᵀ P⁻¹ (p − q) − d + log det P − log det Q)."""
    (q_mean, q_cov), (p_mean, p_cov) = moments(q), moments(p)
    inverse, difference = torch.linalg.inv(p_cov), p_mean - q_mean
    square = torch.einsum("bi,bij,bj->b", difference, inverse, difference)
    trace = torch.einsum("bij,bji->b", inverse, q_cov)
    return 0.5 * (trace + square - q_mean.shape[-1] + p_cov.logdet() - q_cov.logdet())


def trapezoid(model, x, q, num_nodes, radius=8.5):
    """Return the ELBO as a sum over equally spaced nodes of noise, pushed through the factor of q's covariance."""
    mean, covariance = moments(q)
    factor, z_dim = torch.linalg.cholesky(covariance), mean.shape[-1]
    axis = torch.linspace(-radius, radius, num_nodes, dtype=DOUBLE)
    noise = torch.cartesian_prod(*[axis] * z_dim).reshape(-1, z_dim)
    log_normal = -0.5 * noise.square().sum(1) - 0.5 * z_dim * math.log(2 * math.pi)
    cell = (2 * radius / (num_nodes - 1)) ** z_dim
    z = mean + torch.einsum("bij,sj->sbi", factor, noise)
    log_q = log_normal[:, None] - factor.diagonal(dim1=1, dim2=2).log().sum(1)
    return (cell * log_normal.exp()) @ (model.log_joint(x, z) - log_q)


@pytest.fixture(params=[1, 2])
def neural(request):
    """A Bernoulli decoder with a latent of dimension 1 or 2."""
    return GaussianLatentModel(request.param, BernoulliDecoder(mlp(request.param, [5], X_DIM))).double()


# hand values and loops


def test_exact_elbo_of_a_linear_gaussian_by_hand():
    # x = 5, p(x | z) = N(3 z, 16), q = N(0, 1) is the prior: E log N(5; 3 z, 16) has E (5 − 3 z)² = 25 + 9
    model = LinearGaussian(torch.tensor([[3.0]], dtype=DOUBLE), torch.zeros(1, dtype=DOUBLE), 4.0)
    x = torch.tensor([[5.0]], dtype=DOUBLE)
    close(exact_elbo(model, x, prior_proposal(model)(x)), [-0.5 * math.log(2 * math.pi * 16) - 34 / 32])


def test_exact_elbo_of_a_mixture_by_hand():
    # x = 0, components N(±1, 1) and N(3, 1) with weights ¼, ¾; q = (½, ½): log p(x | z) = −½, −4½ up to the constant
    model = GaussianMixture(
        torch.tensor([0.25, 0.75], dtype=DOUBLE), torch.tensor([[-1.0], [3.0]], dtype=DOUBLE), torch.ones(1).double()
    )
    q = Categorical(logits=torch.zeros(1, 2, dtype=DOUBLE))
    expected = 0.5 * (math.log(0.25) + math.log(0.75)) - 2.5 - 0.5 * math.log(2 * math.pi) + math.log(2)
    close(exact_elbo(model, torch.zeros(1, 1, dtype=DOUBLE), q), [expected])


@pytest.mark.parametrize("num_points", [1, 2, 3, 4, 5, 16])
def test_exact_elbo_of_a_discrete_law_equals_loops(num_points, enumerable, data):
    # num_points also takes the numbers of states, 3 and 16, and of bits, 4
    x, (q, logits) = data(enumerable, num_points), crooked(enumerable, num_points)
    log_joint, expected = enumerable.log_joint(x, enumerable.states()).tolist(), []
    for b, row in enumerate(logits.tolist()):
        if isinstance(enumerable, BinaryLatentModel):
            log_q = [oracles.bernoulli_log_mass(z, row) for z in oracles.bits(4)]
        else:
            log_q = [math.log(share) for share in oracles.normalized_weights(row)]
        expected.append(math.fsum(math.exp(a) * (log_joint[s][b] - a) for s, a in enumerate(log_q)))
    close(exact_elbo(enumerable, x, q), expected)


@pytest.mark.parametrize("num_points", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_exact_elbo_of_a_linear_gaussian_is_the_closed_form(kind, num_points, narrow_linear_gaussian, data):
    model, x = narrow_linear_gaussian, data(narrow_linear_gaussian, num_points)
    q, _ = gaussian(kind, num_points, model.z_dim)
    (mean, covariance), (weight, bias, scale) = moments(q), model._weight_bias_scale()
    residual = (x - mean @ weight.T - bias).square().sum(1)
    spread = torch.einsum("di,bij,dj->b", weight, covariance, weight)
    reconstruction = -0.5 * 3 * (2 * math.pi * scale**2).log() - (residual + spread) / (2 * scale**2)
    eye = torch.eye(model.z_dim, dtype=DOUBLE).expand_as(covariance)
    expected = reconstruction - gaussian_kl(q, FullGaussian(torch.zeros_like(mean), eye))
    close(exact_elbo(model, x, q), expected.detach(), rtol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_exact_elbo_of_a_neural_decoder_is_a_fine_trapezoid_sum(kind, neural, data):
    x, (q, _) = data(neural), gaussian(kind, 5, neural.z_dim)
    fine = trapezoid(neural, x, q, 601 if neural.z_dim == 1 else 121)
    close(exact_elbo(neural, x, q, num_nodes=100), fine.detach(), rtol=1e-9)


def test_the_trapezoid_sum_has_converged(neural, data):
    x, (q, _) = data(neural), gaussian("full", 5, neural.z_dim)
    close(trapezoid(neural, x, q, 81), trapezoid(neural, x, q, 121).detach(), rtol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_exact_elbo_of_a_gaussian_decoder_is_a_fine_trapezoid_sum(kind, data):
    model = GaussianLatentModel(2, GaussianDecoder(mlp(2, [5], X_DIM), 0.6)).double()
    x, (q, _) = data(model), gaussian(kind, 5, 2)
    close(exact_elbo(model, x, q), trapezoid(model, x, q, 121).detach(), rtol=1e-9)


def test_exact_elbo_has_converged_in_the_number_of_nodes(neural, data):
    x, (q, _) = data(neural), gaussian("full", 5, neural.z_dim)
    close(exact_elbo(neural, x, q), exact_elbo(neural, x, q, num_nodes=100).detach(), rtol=0, atol=1e-6)


def test_nodes_that_do_not_resolve_the_decoder_are_refused(data):
    model = GaussianLatentModel(1, GaussianDecoder(mlp(1, [5], X_DIM), 0.05)).double()
    x, (q, _) = data(model), gaussian("diagonal", 5, 1, spread=3.0)
    with pytest.raises(QuadratureError, match="num_nodes: 7 nodes per axis leave an error of .* allowed is 0.01"):
        exact_elbo(model, x, q, num_nodes=7)


def test_an_infinite_tolerance_lets_any_number_of_nodes_pass(data):
    model = GaussianLatentModel(1, GaussianDecoder(mlp(1, [5], X_DIM), 0.05)).double()
    x, (q, _) = data(model), gaussian("diagonal", 5, 1, spread=3.0)
    assert exact_elbo(model, x, q, num_nodes=7, tolerance=math.inf).isfinite().all()


def test_two_nodes_are_exact_for_a_linear_gaussian(linear_gaussian, data):
    # log p(x, z) − log q(z) is a quadratic of the noise, and n nodes are exact below degree 2 n
    x, (q, _) = data(linear_gaussian), gaussian("full", 5, 2)
    close(exact_elbo(linear_gaussian, x, q, num_nodes=2), exact_elbo(linear_gaussian, x, q).detach(), rtol=1e-11)


def test_a_full_gaussian_with_a_diagonal_factor_has_the_elbo_of_the_diagonal_gaussian(neural, data):
    x, (q, _) = data(neural), gaussian("diagonal", 5, neural.z_dim)
    full = FullGaussian(q.mean, torch.diag_embed(q.stddev))
    close(exact_elbo(neural, x, full), exact_elbo(neural, x, q).detach())


# gap = KL(q ‖ posterior)


def test_gap_of_a_discrete_law_is_the_kl_to_the_posterior(enumerable, data):
    x, (q, _) = data(enumerable), crooked(enumerable, 5)
    log_q = q.log_prob(enumerable.states().expand(-1, 5, *enumerable.z_shape)).T.tolist()
    posterior = [oracles.normalized_weights(row) for row in enumerable.log_joint(x, enumerable.states()).T.tolist()]
    expected = [
        math.fsum(math.exp(a) * (a - math.log(p)) for a, p in zip(*rows, strict=True))
        for rows in zip(log_q, posterior, strict=True)
    ]
    close(exact_log_marginal(enumerable, x) - exact_elbo(enumerable, x, q), expected, rtol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_gap_of_a_gaussian_is_the_closed_form_kl_to_the_posterior(kind, narrow_linear_gaussian, data):
    model, x = narrow_linear_gaussian, data(narrow_linear_gaussian)
    q, _ = gaussian(kind, 5, model.z_dim)
    gap = exact_log_marginal(model, x) - exact_elbo(model, x, q)
    close(gap, gaussian_kl(q, model.posterior(x)).detach(), rtol=1e-10)


def test_gap_of_a_neural_decoder_is_the_kl_to_the_posterior_on_a_grid(neural, data):
    x, (q, _) = data(neural), gaussian("full", 5, neural.z_dim)
    # wide enough to hold q, not only the posterior
    posterior = exact_posterior(neural, x, grid=Grid(121, radius=12.0))
    axis = posterior.states[:, 0].unique()
    cell = ((axis[-1] - axis[0]) / (len(axis) - 1)) ** neural.z_dim
    log_q = q.log_prob(posterior.states.expand(-1, 5, -1))
    log_posterior = posterior.law.logits.T - cell.log()
    expected = (cell * log_q.exp() * (log_q - log_posterior)).sum(0)
    close(exact_log_marginal(neural, x) - exact_elbo(neural, x, q), expected.detach(), rtol=1e-6)


@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0])
def test_gap_is_positive_for_a_gaussian_that_is_not_the_posterior(spread, neural, data):
    x, (q, _) = data(neural), gaussian("full", 5, neural.z_dim, spread)
    assert (exact_log_marginal(neural, x) - exact_elbo(neural, x, q) > 1e-4).all()


def test_gap_is_positive_for_a_discrete_law_that_is_not_the_posterior(enumerable, data):
    x, (q, _) = data(enumerable), crooked(enumerable, 5)
    assert (exact_log_marginal(enumerable, x) - exact_elbo(enumerable, x, q) > 1e-4).all()


@pytest.mark.parametrize("name", ["gaussian_mixture", "bernoulli_mixture", "linear_gaussian"])
def test_gap_is_zero_at_the_posterior(name, request, data):
    model = request.getfixturevalue(name)
    x = data(model)
    close(exact_elbo(model, x, posterior_proposal(model)(x)), exact_log_marginal(model, x).detach(), rtol=1e-12)


@pytest.mark.parametrize("name", ["gaussian_mixture", "bernoulli_mixture", "linear_gaussian"])
def test_gradient_in_the_model_at_the_posterior_is_that_of_log_marginal(name, request, data):
    model = request.getfixturevalue(name)
    x, parameters = data(model), [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        q = posterior_proposal(model)(x)
    actual = torch.autograd.grad(exact_elbo(model, x, q).sum(), parameters)
    expected = torch.autograd.grad(exact_log_marginal(model, x).sum(), parameters)
    for one, other in zip(actual, expected, strict=True):
        close(one, other, rtol=1e-10, atol=1e-12)


def test_gradient_in_the_posterior_is_zero(linear_gaussian, data):
    x = data(linear_gaussian)
    with torch.no_grad():
        loc, lower = linear_gaussian.posterior(x).loc, linear_gaussian.posterior(x).scale_tril
    loc, lower = loc.requires_grad_(), lower.clone().requires_grad_()
    for gradient in torch.autograd.grad(exact_elbo(linear_gaussian, x, FullGaussian(loc, lower)).sum(), [loc, lower]):
        close(gradient, torch.zeros_like(gradient), atol=1e-11)


def test_gap_shrinks_when_a_diagonal_law_becomes_full_at_the_posterior(linear_gaussian, data):
    x = data(linear_gaussian)
    posterior = linear_gaussian.posterior(x)
    diagonal = DiagonalGaussian(posterior.mean, posterior.precision_matrix.diagonal(dim1=1, dim2=2).rsqrt())
    assert (exact_elbo(linear_gaussian, x, posterior) - exact_elbo(linear_gaussian, x, diagonal) > 1e-3).all()


# gradients


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("z_dim", [1, 2])
def test_gradient_in_a_gaussian_law_passes_gradcheck(z_dim, kind, data):
    model = GaussianLatentModel(z_dim, BernoulliDecoder(mlp(z_dim, [3], X_DIM))).double()
    x, (_, leaves) = data(model, 2), gaussian(kind, 2, z_dim)

    def value(loc, log_scale, lower=None):
        scale = log_scale.exp()
        if lower is None:
            return exact_elbo(model, x, DiagonalGaussian(loc, scale), num_nodes=10)
        return exact_elbo(model, x, FullGaussian(loc, torch.diag_embed(scale) + lower.tril(-1)), num_nodes=10)

    assert torch.autograd.gradcheck(value, leaves)


def test_gradient_in_a_discrete_law_passes_gradcheck(enumerable, data):
    x, (_, logits) = data(enumerable, 2), crooked(enumerable, 2)
    law = BernoulliVector if isinstance(enumerable, BinaryLatentModel) else Categorical
    assert torch.autograd.gradcheck(lambda logits: exact_elbo(enumerable, x, law(logits=logits)), [logits])


def test_gradient_in_the_model_passes_gradcheck(model, data):
    x, parameters = data(model, 2), [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        q = crooked(model, 2)[0] if model.num_states else gaussian("full", 2, model.z_dim)[0]
    # gradcheck changes the parameters in place, so the model sees each change
    assert torch.autograd.gradcheck(lambda *_: exact_elbo(model, x, q, num_nodes=10), parameters)


def test_gradient_of_a_wide_batch_stays_with_its_data_point(linear_gaussian, data):
    x, (q, (loc, _)) = data(linear_gaussian), gaussian("diagonal", 5, 2)
    (gradient,) = torch.autograd.grad(exact_elbo(linear_gaussian, x, q)[3], loc)
    assert (gradient != 0).any(1).tolist() == [False, False, False, True, False]


# states of probability 0


IMPOSSIBLE = {
    "gaussian_mixture": (Categorical, [[0.3, -math.inf, 0.1], [-0.3, 0.2, -math.inf]]),
    "bernoulli_mixture": (Categorical, [[0.3, -math.inf, -math.inf], [-math.inf, 0.2, -math.inf]]),
    "binary_latent": (BernoulliVector, [[0.3, -math.inf, 1.0, math.inf], [math.inf, 0.2, 0.0, -math.inf]]),
}


@pytest.fixture(params=IMPOSSIBLE)
def impossible(request):
    """A model, a q of two data points with states of probability 0, and its logits."""
    law, logits = IMPOSSIBLE[request.param]
    logits = torch.tensor(logits, dtype=DOUBLE, requires_grad=True)
    return request.getfixturevalue(request.param), law(logits=logits), logits


def test_impossible_states_of_q_do_not_count(impossible, data):
    model, q, _ = impossible
    x = data(model, 2)
    log_q = q.log_prob(model.states().expand(-1, 2, *model.z_shape)).T.tolist()
    log_joint = model.log_joint(x, model.states()).T.tolist()
    expected = [
        math.fsum(math.exp(a) * (p - a) for a, p in zip(*rows, strict=True) if a > -math.inf)
        for rows in zip(log_q, log_joint, strict=True)
    ]
    close(exact_elbo(model, x, q), expected)


def test_gradient_is_finite_where_q_has_impossible_states(impossible, data):
    model, q, logits = impossible
    parameters = [logits, *(p for p in model.parameters() if p.requires_grad)]
    gradients = torch.autograd.grad(exact_elbo(model, data(model, 2), q).sum(), parameters)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_gradient_where_q_has_impossible_states_is_the_limit(impossible, data):
    model, q, logits = impossible
    x = data(model, 2)
    (actual,) = torch.autograd.grad(exact_elbo(model, x, q).sum(), logits)
    near = logits.detach().clamp(-60, 60).requires_grad_()
    law = BernoulliVector if isinstance(q, BernoulliVector) else Categorical
    close(actual, torch.autograd.grad(exact_elbo(model, x, law(logits=near)).sum(), near)[0], rtol=1e-10, atol=1e-12)


def test_states_of_prior_probability_zero_do_not_count_where_q_never_goes(gaussian_mixture, data):
    x = data(gaussian_mixture, 1)
    gaussian_mixture.weight_logits.data[1] = -math.inf
    logits = torch.tensor([[0.0, -math.inf, 1.0]], dtype=DOUBLE, requires_grad=True)
    value = exact_elbo(gaussian_mixture, x, Categorical(logits=logits)).sum()
    gradients = torch.autograd.grad(value, [logits, *(p for p in gaussian_mixture.parameters() if p.requires_grad)])
    assert value.isfinite() and all(gradient.isfinite().all() for gradient in gradients)


def test_elbo_is_minus_infinity_where_q_goes_and_the_prior_does_not(gaussian_mixture, data):
    x = data(gaussian_mixture, 1)
    gaussian_mixture.weight_logits.data[1] = -math.inf
    assert exact_elbo(gaussian_mixture, x, Categorical(logits=torch.zeros(1, 3).double())).item() == -math.inf


# shapes and side effects


@pytest.mark.parametrize("num_points", [1, 2, 5, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_exact_elbo_of_a_batch_is_that_of_each_data_point(kind, num_points, neural, data):
    x, (q, _) = data(neural, num_points), gaussian(kind, num_points, neural.z_dim)
    whole = exact_elbo(neural, x, q, num_nodes=7)
    assert whole.shape == (num_points,)
    mean, covariance = moments(q)
    factor = torch.linalg.cholesky(covariance)
    for i in range(num_points):
        one = slice(i, i + 1)
        law = FullGaussian(mean[one], factor[one])
        if kind == "diagonal":
            law = DiagonalGaussian(mean[one], q.stddev[one])
        close(exact_elbo(neural, x[one], law, num_nodes=7), whole[one].detach())


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_exact_elbo_keeps_the_dtype(dtype, model, data):
    model = model.to(dtype)
    x = data(model)
    assert exact_elbo(model, x, prior_proposal(model)(x)).dtype == dtype


def test_exact_elbo_in_float_is_close_to_double(model, data):
    x = data(model)
    expected = exact_elbo(model, x, prior_proposal(model)(x)).detach()
    model, x = model.float(), x.float()
    close(exact_elbo(model, x, prior_proposal(model)(x)), expected, rtol=1e-5)


def test_exact_elbo_has_no_randomness(model, data):
    x = data(model)
    state = torch.get_rng_state()
    q = prior_proposal(model)(x)
    assert torch.equal(exact_elbo(model, x, q), exact_elbo(model, x, q))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_law_of_an_enumerable_posterior_is_accepted_as_q(bernoulli_mixture, data):
    x = data(bernoulli_mixture)
    q = exact_posterior(bernoulli_mixture, x).law
    close(exact_elbo(bernoulli_mixture, x, q), exact_log_marginal(bernoulli_mixture, x).detach())


# bad input


@pytest.mark.parametrize("batch", [(), (1,), (4,), (5, 1)])
def test_a_law_of_another_batch_shape_is_refused(batch, linear_gaussian, data):
    q = DiagonalGaussian(torch.zeros(*batch, 2, dtype=DOUBLE), torch.ones(*batch, 2, dtype=DOUBLE))
    with pytest.raises(ValueError, match=r"q must have batch shape \(5,\) to match x, got \("):
        exact_elbo(linear_gaussian, data(linear_gaussian), q)


@pytest.mark.parametrize("z_dim", [1, 3])
@pytest.mark.parametrize("full", [False, True])
def test_a_gaussian_of_another_dimension_is_refused(full, z_dim, linear_gaussian, data):
    with pytest.raises(ValueError, match="q must be a law over the space of the prior"):
        exact_elbo(linear_gaussian, data(linear_gaussian), FreeGaussian(5, z_dim, full).double().law())


@pytest.mark.parametrize("num_states", [1, 2, 4])
@pytest.mark.parametrize("validate", [False, True])
def test_a_categorical_with_another_number_of_states_is_refused(validate, num_states, gaussian_mixture, data):
    q = Categorical(logits=torch.zeros(5, num_states, dtype=DOUBLE), validate_args=validate)
    with pytest.raises(ValueError, match="q must .*states"):
        exact_elbo(gaussian_mixture, data(gaussian_mixture), q)


@pytest.mark.parametrize("num_bits", [1, 3])
def test_another_number_of_bits_is_refused(num_bits, binary_latent, data):
    with pytest.raises(ValueError, match="q must be a law over the space of the prior"):
        exact_elbo(binary_latent, data(binary_latent), BernoulliVector(torch.zeros(5, num_bits, dtype=DOUBLE)))


def test_a_categorical_for_bits_is_refused(binary_latent, data):
    with pytest.raises(ValueError, match="q must be a law over the space of the prior"):
        exact_elbo(binary_latent, data(binary_latent), Categorical(logits=torch.zeros(5, 16, dtype=DOUBLE)))


@pytest.mark.parametrize("name", ["gaussian_mixture", "binary_latent"])
def test_a_gaussian_for_finitely_many_states_is_refused(name, request, data):
    model = request.getfixturevalue(name)
    with pytest.raises(ValueError, match="q(: no exact ELBO is known for| must be a law over)"):
        exact_elbo(model, data(model), gaussian("diagonal", 5, 4)[0])


def test_bits_for_a_gaussian_prior_are_refused(linear_gaussian, data):
    with pytest.raises(ValueError, match="q(: no exact ELBO is known for| must be a law over)"):
        exact_elbo(linear_gaussian, data(linear_gaussian), BernoulliVector(torch.zeros(5, 2, dtype=DOUBLE)))


def test_three_latent_dimensions_are_refused(data):
    model = LinearGaussian(numbers(X_DIM, 3), numbers(X_DIM), 0.7)
    with pytest.raises(ValueError, match="no exact ELBO .* z_dim 1 or 2; otherwise use the estimate elbo"):
        exact_elbo(model, data(model), gaussian("full", 5, 3)[0])


def test_too_many_states_are_refused():
    model = BinaryLatentModel(40, BernoulliDecoder(mlp(40, [], X_DIM))).double()
    with pytest.raises(ValueError, match=f"enumeration needs {2**40} states x 5 data points"):
        exact_elbo(model, torch.zeros(5, X_DIM, dtype=DOUBLE), BernoulliVector(torch.zeros(5, 40, dtype=DOUBLE)))


def test_too_many_quadrature_nodes_are_refused(linear_gaussian, data):
    with pytest.raises(ValueError, match="num_nodes"):
        exact_elbo(linear_gaussian, data(linear_gaussian), gaussian("full", 5, 2)[0], num_nodes=1000)


@pytest.mark.parametrize("kind", KINDS)
def test_double_data_for_a_float_model_and_law_are_refused(kind, linear_gaussian, data):
    x = data(linear_gaussian)
    q = FreeGaussian(5, 2, kind == "full").law()
    with pytest.raises(TypeError, match=r"x must have the model's dtype torch.float32, got torch.float64"):
        exact_elbo(linear_gaussian.float(), x, q)


@pytest.mark.parametrize(("num_nodes", "error"), [(0, ValueError), (-3, ValueError), (2.0, TypeError)])
def test_num_nodes_that_are_not_a_positive_int_are_refused(num_nodes, error, linear_gaussian, data):
    with pytest.raises(error, match="num_nodes"):
        exact_elbo(linear_gaussian, data(linear_gaussian), gaussian("full", 5, 2)[0], num_nodes=num_nodes)


@pytest.mark.parametrize("shape", [(X_DIM,), (5, X_DIM, 1)])
def test_data_of_another_rank_are_refused(shape, linear_gaussian):
    with pytest.raises(ValueError, match=r"exact_elbo: x must be Float\[Tensor, 'b d'\], got \("):
        exact_elbo(linear_gaussian, torch.zeros(shape, dtype=DOUBLE), gaussian("full", 5, 2)[0])


@pytest.mark.parametrize("shape", [(0, X_DIM), (5, 1)])
def test_no_data_or_data_of_another_width_are_refused(shape, model):
    x = torch.zeros(shape, dtype=DOUBLE)
    q = crooked(model, len(x))[0] if model.num_states else gaussian("full", len(x), model.z_dim)[0]
    with pytest.raises(
        ValueError, match=rf"x must have shape \(B, {X_DIM}\) with B >= 1, got \({shape[0]}, {shape[1]}"
    ):
        exact_elbo(model, x, q)


# nodes


@pytest.mark.parametrize(
    ("num_nodes", "nodes", "weights"),
    [
        (1, [0.0], [1.0]),
        (2, [-1.0, 1.0], [0.5, 0.5]),
        (3, [-math.sqrt(3), 0.0, math.sqrt(3)], [1 / 6, 2 / 3, 1 / 6]),
    ],
)
def test_hermite_nodes_by_hand(num_nodes, nodes, weights):
    z, log_weight = hermite_nodes(num_nodes, 1)
    close(z[:, 0, 0], nodes)
    close(log_weight.exp(), weights)


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 5, 8])
def test_hermite_nodes_are_exact_below_degree_two_n(num_nodes):
    z, log_weight = hermite_nodes(num_nodes, 1)
    for degree in range(2 * num_nodes):
        moment = 0.0 if degree % 2 else float(math.prod(range(1, degree, 2)))  # (degree − 1)!!
        close((log_weight.exp() * z[:, 0, 0] ** degree).sum(), moment, rtol=1e-11, atol=1e-8)


def test_hermite_nodes_are_not_exact_at_degree_two_n():
    z, log_weight = hermite_nodes(3, 1)
    close((log_weight.exp() * z[:, 0, 0] ** 6).sum(), 9.0)  # the sixth moment is 15


@pytest.mark.parametrize(("num_nodes", "z_dim"), [(1, 1), (5, 1), (1, 2), (5, 2), (3, 3), (40, 2), (100, 1), (300, 1)])
def test_hermite_nodes_have_shape_s_1_z_and_weights_that_sum_to_1(num_nodes, z_dim):
    z, log_weight = hermite_nodes(num_nodes, z_dim)
    assert z.shape == (num_nodes**z_dim, 1, z_dim) and log_weight.shape == (num_nodes**z_dim,)
    assert z.isfinite().all()
    close(log_weight.exp().sum(), 1.0)


def test_weights_of_hermite_nodes_in_two_dimensions_are_products():
    z, log_weight = hermite_nodes(3, 2)
    line, single = hermite_nodes(3, 1)
    for s, (i, j) in enumerate(itertools.product(range(3), repeat=2)):
        close(z[s, 0], torch.stack([line[i, 0, 0], line[j, 0, 0]]))
        close(log_weight[s], single[i] + single[j])


@pytest.mark.parametrize(
    ("num_nodes", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError), (True, TypeError)]
)
def test_hermite_nodes_refuse_what_is_not_a_positive_int(num_nodes, error):
    with pytest.raises(error, match="num_nodes"):
        hermite_nodes(num_nodes, 1)


def test_hermite_nodes_refuse_a_number_whose_weights_overflow():
    with pytest.raises(ValueError, match="num_nodes"):
        hermite_nodes(400, 1)
