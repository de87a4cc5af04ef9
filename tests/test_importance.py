"""Draw, score, estimate: exact expectations over all sample tuples, and streaming in bounded memory."""

import itertools
import math

import pytest
import torch
from torch.distributions import Categorical

from lvmlib import (
    BernoulliVector,
    DiagonalGaussian,
    Draw,
    FullGaussian,
    draw,
    exact_expected_log_mean,
    exact_log_marginal,
    importance,
    log_marginal_estimate,
    log_mean_exp,
    posterior_proposal,
    prior_proposal,
    score,
)
from tests.conftest import X_DIM, numbers
from tests.test_contracts import run_python
from tests.test_models import DOUBLE, close

MIXTURES = ["gaussian_mixture", "bernoulli_mixture"]


@pytest.fixture(params=MIXTURES)
def mixture(request):
    return request.getfixturevalue(request.param)


def crooked(x):
    """A proposal over 3 components that depends on x and is neither prior nor posterior."""
    return Categorical(logits=torch.stack([x[:, 0], -x[:, 1], 0.3 * x[:, 2] + 1], 1))


def wide(x):
    """A Gaussian proposal over 2 latents that depends on x."""
    return DiagonalGaussian(0.3 * x[:, :2], 1 + x[:, 2:4].abs())


def all_tuples(num_samples):
    """Return every K-tuple of 3 components, shape (K, 3^K)."""
    return torch.tensor(list(itertools.product(range(3), repeat=num_samples))).T


def expectation(model, x, num_samples, statistic):
    """Return the exact mean of statistic(log_w) over all tuples drawn from `crooked`, for one data point (1, D)."""
    z = all_tuples(num_samples)
    x = x.expand(z.shape[1], -1)
    scores = score(model, x, crooked(x), z)
    return (scores.log_q.sum(0).exp() * statistic(scores.log_w)).sum()


@pytest.fixture
def replay(monkeypatch):
    """Return a function that makes `log_marginal_estimate` use given draws instead of random ones."""

    def install(z):
        taken = []

        def next_draws(q, num_samples):
            start = sum(taken)
            taken.append(num_samples)
            return z[start : start + num_samples]

        monkeypatch.setattr(importance, "draw", next_draws)
        return taken

    return install


# exact expectations


@pytest.mark.parametrize("num_samples", [1, 2, 3])
def test_mean_weight_is_unbiased_for_the_marginal(mixture, data, num_samples):
    for x in data(mixture).split(1):
        mean = expectation(mixture, x, num_samples, lambda log_w: log_mean_exp(log_w).exp())
        close(mean, exact_log_marginal(mixture, x).exp().item(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("num_samples", [1, 2, 3])
def test_log_marginal_estimate_is_unbiased_on_the_scale_of_probabilities(mixture, data, replay, num_samples):
    z = all_tuples(num_samples)
    replay(z)
    x = data(mixture, 1)
    many = x.expand(z.shape[1], -1)
    estimates = log_marginal_estimate(mixture, many, crooked, num_samples)
    probability = crooked(many).log_prob(z).sum(0).exp()
    close((probability * estimates.exp()).sum(), exact_log_marginal(mixture, x).exp().item(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("num_samples", [1, 2, 3])
def test_expected_estimate_is_the_exact_expected_log_mean(mixture, data, num_samples):
    x = data(mixture, 1)
    states = torch.arange(3)[:, None]
    log_q = crooked(x).log_prob(states)[:, 0]
    log_w = mixture.log_joint(x, states)[:, 0] - log_q
    close(
        expectation(mixture, x, num_samples, log_mean_exp),
        exact_expected_log_mean(log_w, log_q, num_samples).item(),
        rtol=1e-10,
    )


def test_expected_estimate_increases_with_num_samples_and_stays_below_log_marginal(mixture, data):
    for x in data(mixture).split(1):
        bounds = [expectation(mixture, x, k, log_mean_exp).item() for k in (1, 2, 3)]
        bounds.append(exact_log_marginal(mixture, x).item())
        assert all(b - a > 1e-4 for a, b in itertools.pairwise(bounds))


def test_gradient_of_the_expected_weight_is_the_gradient_of_the_marginal(mixture, data):
    x, parameters = data(mixture, 1), [p for p in mixture.parameters() if p.requires_grad]
    mean = expectation(mixture, x, 2, lambda log_w: log_mean_exp(log_w).exp())
    expected = torch.autograd.grad(exact_log_marginal(mixture, x).exp().sum(), parameters)
    for actual, wanted in zip(torch.autograd.grad(mean, parameters), expected, strict=True):
        close(actual, wanted, rtol=1e-10, atol=1e-18)


# score


def test_log_w_is_log_prior_plus_log_likelihood_minus_log_q():
    parts = [torch.tensor([[value]]) for value in (1.0, 10.0, 100.0)]
    assert Draw(torch.zeros(1, 1), *parts).log_w.item() == -89


@pytest.mark.parametrize(("num_samples", "num_points"), [(3, 5), (1, 5), (3, 1), (1, 1), (5, 5)])
def test_scores_have_shape_k_b_and_z_is_kept(linear_gaussian, data, num_samples, num_points):
    x = data(linear_gaussian, num_points)
    z = draw(wide(x), num_samples)
    scores = score(linear_gaussian, x, wide(x), z)
    assert scores.z is z
    assert all(part.shape == (num_samples, num_points) for part in (*scores[1:], scores.log_w))


def test_scores_are_the_model_and_proposal_densities(linear_gaussian, data):
    x, z = data(linear_gaussian), numbers(3, 5, 2)
    scores = score(linear_gaussian, x, wide(x), z)
    close(scores.log_prior, linear_gaussian.log_prior(z).detach())
    close(scores.log_likelihood, linear_gaussian.log_likelihood(x, z).detach())
    close(scores.log_q, wide(x).log_prob(z))


def test_log_w_is_differentiable_in_the_parameters_of_the_proposal(linear_gaussian, data):
    x, z = data(linear_gaussian), numbers(3, 5, 2)
    loc = numbers(5, 2, seed=2).requires_grad_()
    q = DiagonalGaussian(loc, torch.full_like(loc, 0.8))
    (gradient,) = torch.autograd.grad(score(linear_gaussian, x, q, z).log_w.sum(), loc)
    close(gradient, -((z - loc) / 0.8**2).sum(0).detach())


def test_score_has_no_randomness(linear_gaussian, data):
    x, z = data(linear_gaussian), numbers(3, 5, 2)
    state = torch.get_rng_state()
    assert torch.equal(score(linear_gaussian, x, wide(x), z).log_w, score(linear_gaussian, x, wide(x), z).log_w)
    assert torch.equal(torch.get_rng_state(), state)


def test_permuting_data_points_permutes_log_w(linear_gaussian, data):
    x, z, order = data(linear_gaussian), numbers(3, 5, 2), [3, 0, 4, 1, 2]
    permuted = score(linear_gaussian, x[order], wide(x[order]), z[:, order]).log_w
    close(permuted, score(linear_gaussian, x, wide(x), z).log_w[:, order].detach())


def test_score_leaves_its_inputs_alone(linear_gaussian, data):
    x, z = data(linear_gaussian), numbers(3, 5, 2)
    before = x.clone(), z.clone()
    score(linear_gaussian, x, wide(x), z)
    assert torch.equal(x, before[0]) and torch.equal(z, before[1])


@pytest.mark.parametrize("batch", [(), (1,), (4,), (5, 1)])
def test_score_refuses_a_proposal_of_another_batch_shape(linear_gaussian, data, batch):
    q = DiagonalGaussian(torch.zeros(*batch, 2, dtype=DOUBLE), torch.ones(*batch, 2, dtype=DOUBLE))
    with pytest.raises(ValueError, match=r"q must have batch shape \(5,\) to match x, got \("):
        score(linear_gaussian, data(linear_gaussian), q, numbers(3, 5, 2))


@pytest.mark.parametrize("num_points", [1, 4])
def test_score_refuses_z_for_another_number_of_data_points(linear_gaussian, data, num_points):
    x = data(linear_gaussian)
    with pytest.raises(ValueError, match=r"score: z must be .*b = 5"):
        score(linear_gaussian, x, wide(x), numbers(3, num_points, 2))


@pytest.mark.parametrize("width", [1, 3])
def test_score_refuses_z_of_another_width(linear_gaussian, data, width):
    q = DiagonalGaussian(numbers(5, width), torch.ones(5, width, dtype=DOUBLE))
    with pytest.raises(ValueError, match=rf"event shape \(2,\), got .*event shape \({width},\)"):
        score(linear_gaussian, data(linear_gaussian), q, numbers(3, 5, width))


def test_score_refuses_a_proposal_over_another_number_of_latents(linear_gaussian, data):
    q = DiagonalGaussian(numbers(5, 1), torch.ones(5, 1, dtype=DOUBLE))
    with pytest.raises(ValueError, match="q must"):
        score(linear_gaussian, data(linear_gaussian), q, numbers(3, 5, 2))


def test_score_refuses_component_numbers_out_of_range(gaussian_mixture, data):
    q = Categorical(logits=torch.zeros(5, 4, dtype=DOUBLE))
    with pytest.raises(ValueError, match="3 states, got 4 states"):
        score(gaussian_mixture, data(gaussian_mixture), q, torch.full((3, 5), 3))


def test_estimate_refuses_a_continuous_proposal_for_binary_latents(binary_latent, data):
    with pytest.raises(ValueError, match="z must be 0 or 1|q must"):
        log_marginal_estimate(binary_latent, data(binary_latent), lambda x: DiagonalGaussian(x[:, :4], 1 + x[:, :4]), 3)


def test_estimate_refuses_a_discrete_proposal_for_continuous_latents(linear_gaussian, data):
    with pytest.raises(ValueError, match="q must"):
        log_marginal_estimate(linear_gaussian, data(linear_gaussian), lambda x: BernoulliVector(x[:, :2]), 3)


# draw


def laws():
    loc, scale = numbers(5, 2), 1 + numbers(5, 2, seed=1).abs()
    return [
        DiagonalGaussian(loc, scale),
        FullGaussian(loc, torch.diag_embed(scale)),
        BernoulliVector(loc),
        Categorical(logits=loc),
    ]


@pytest.mark.parametrize("num_samples", [1, 3, 5])
@pytest.mark.parametrize("q", laws(), ids=lambda q: type(q).__name__)
def test_draw_has_samples_first(q, num_samples):
    assert draw(q, num_samples).shape == (num_samples, 5, *q.event_shape)


@pytest.mark.parametrize("q", laws()[:2], ids=lambda q: type(q).__name__)
def test_draw_is_the_transport_of_fresh_standard_normal_noise(q):
    torch.manual_seed(3)
    z = draw(q, 3)
    torch.manual_seed(3)
    assert torch.equal(z, q.transport(torch.randn(3, 5, 2, dtype=DOUBLE)))


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_draw_has_the_dtype_of_the_law(dtype):
    assert draw(DiagonalGaussian(torch.zeros(5, 2, dtype=dtype), torch.ones(5, 2, dtype=dtype)), 3).dtype == dtype


@pytest.mark.parametrize("index", [0, 1])
def test_draw_is_differentiable_in_the_mean_of_a_gaussian(index):
    loc = numbers(5, 2).requires_grad_()
    q = [DiagonalGaussian(loc, torch.ones_like(loc)), FullGaussian(loc, torch.eye(2, dtype=DOUBLE).expand(5, 2, 2))][
        index
    ]
    (gradient,) = torch.autograd.grad(draw(q, 3).sum(), loc)
    assert torch.equal(gradient, torch.full_like(loc, 3.0))


@pytest.mark.parametrize("kind", [BernoulliVector, lambda logits: Categorical(logits=logits)])
def test_draw_from_a_discrete_law_carries_no_gradient(kind):
    assert not draw(kind(numbers(5, 2).requires_grad_()), 3).requires_grad


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_draw_refuses_a_law_without_one_batch_axis(batch):
    with pytest.raises(ValueError, match=r"q must have batch shape \(B,\), one law per data point, got \("):
        draw(DiagonalGaussian(torch.zeros(*batch, 2), torch.ones(*batch, 2)), 3)


# estimate


@pytest.mark.parametrize("num_samples", [0, -1])
def test_less_than_one_sample_is_refused(linear_gaussian, data, num_samples):
    x = data(linear_gaussian)
    for call in (
        lambda: log_marginal_estimate(linear_gaussian, x, wide, num_samples),
        lambda: draw(wide(x), num_samples),
    ):
        with pytest.raises(ValueError, match=f"num_samples must be at least 1, got {num_samples}"):
            call()


@pytest.mark.parametrize("num_samples", [2.0, "3", True])
def test_num_samples_that_are_not_an_int_are_refused(linear_gaussian, data, num_samples):
    with pytest.raises(TypeError, match="num_samples"):
        log_marginal_estimate(linear_gaussian, data(linear_gaussian), wide, num_samples)


@pytest.mark.parametrize("shape", [(0, X_DIM), (5, 1)])
def test_no_data_or_data_of_another_width_are_refused(model, shape):
    with pytest.raises(
        ValueError,
        match=rf"x must have shape \(B, {X_DIM if shape[0] else 'D'}\) with B >= 1, got \({shape[0]}, {shape[1]}\)",
    ):
        log_marginal_estimate(model, torch.zeros(shape, dtype=DOUBLE), prior_proposal(model), 3)


@pytest.mark.parametrize("shape", [(X_DIM,), (5, X_DIM, 1)])
def test_data_of_another_rank_are_refused(linear_gaussian, shape):
    with pytest.raises(ValueError, match=r"log_marginal_estimate: x must be Float\[Tensor, 'b d'\], got \("):
        log_marginal_estimate(linear_gaussian, torch.zeros(shape, dtype=DOUBLE), wide, 3)


def test_estimate_from_one_sample_is_log_w_bitwise(linear_gaussian, data, replay):
    x, z = data(linear_gaussian), numbers(1, 5, 2)
    replay(z)
    assert torch.equal(
        log_marginal_estimate(linear_gaussian, x, wide, 1), score(linear_gaussian, x, wide(x), z).log_w[0]
    )


@pytest.mark.parametrize("num_samples", [1, 7])
@torch.no_grad()
def test_estimate_at_the_posterior_is_exact(mixture, data, num_samples):
    x = data(mixture)
    close(
        log_marginal_estimate(mixture, x, posterior_proposal(mixture), num_samples),
        exact_log_marginal(mixture, x).detach(),
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 100])
def test_estimate_in_chunks_equals_the_estimate_in_one_piece(linear_gaussian, data, replay, monkeypatch, size):
    x, z = data(linear_gaussian), numbers(7, 5, 2)
    taken = replay(z)
    monkeypatch.setattr(importance, "CHUNK_NUMBERS", size * x.numel())
    value = log_marginal_estimate(linear_gaussian, x, wide, 7)
    assert max(taken) == min(size, 7) and sum(taken) == 7
    close(value, log_mean_exp(score(linear_gaussian, x, wide(x), z).log_w).detach())


def test_estimate_in_chunks_has_the_gradient_of_the_estimate_in_one_piece(linear_gaussian, data, replay, monkeypatch):
    x, z, weight = data(linear_gaussian), numbers(7, 5, 2), linear_gaussian.decoder.network.weight
    replay(z)
    monkeypatch.setattr(importance, "CHUNK_NUMBERS", 2 * x.numel())
    (chunked,) = torch.autograd.grad(log_marginal_estimate(linear_gaussian, x, wide, 7).sum(), weight)
    (whole,) = torch.autograd.grad(log_mean_exp(score(linear_gaussian, x, wide(x), z).log_w).sum(), weight)
    close(chunked, whole)


def test_chunks_of_zero_weight_still_count(gaussian_mixture, data, replay, monkeypatch):
    gaussian_mixture.weight_logits.data[1] = -math.inf
    x = data(gaussian_mixture, 1)
    replay(torch.tensor([[1], [1], [0], [1]]))
    monkeypatch.setattr(importance, "CHUNK_NUMBERS", 2 * x.numel())
    single = score(gaussian_mixture, x, crooked(x), torch.tensor([[0]])).log_w[0] - math.log(4)
    close(log_marginal_estimate(gaussian_mixture, x, crooked, 4), single.detach())


def test_chunks_are_drawn_independently(linear_gaussian, data, monkeypatch):
    x, drawn = data(linear_gaussian), []

    def spy(q, num_samples):
        drawn.append(draw(q, num_samples))
        return drawn[-1]

    monkeypatch.setattr(importance, "draw", spy)
    monkeypatch.setattr(importance, "CHUNK_NUMBERS", 2 * x.numel())
    log_marginal_estimate(linear_gaussian, x, wide, 7)
    assert len(drawn) == 4 and len(torch.cat(drawn).reshape(-1, 2).unique(dim=0)) == 35


@torch.no_grad()
def test_estimate_of_10_to_the_5_samples_is_close_and_of_the_right_sign(bernoulli_mixture, data):
    # weights lie in [0, exp(max log_w)]; Hoeffding: |mean - p| > t has probability < 2 exp(-2 K t² / max²) < 1e-9
    x = data(bernoulli_mixture, 1)
    states = torch.arange(3)[:, None]
    largest = bernoulli_mixture.log_likelihood(x, states).max().exp().item()
    estimate = log_marginal_estimate(bernoulli_mixture, x, prior_proposal(bernoulli_mixture), 100_000).exp().item()
    allowed = largest * math.sqrt(math.log(2e9) / (2 * 100_000))
    assert abs(estimate - exact_log_marginal(bernoulli_mixture, x).exp().item()) < allowed


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_estimate_keeps_the_dtype(linear_gaussian, data, dtype):
    model = linear_gaussian.to(dtype)
    assert log_marginal_estimate(model, data(model), wide, 3).dtype == dtype


@torch.no_grad()
def test_estimate_is_the_same_in_training_and_evaluation_mode(model, data):
    x, values = data(model), []
    for mode in (True, False):
        torch.manual_seed(3)
        values.append(log_marginal_estimate(model.train(mode), x, prior_proposal(model), 4))
        assert model.training is mode
    assert torch.equal(*values)


def test_estimate_of_an_expanded_or_transposed_batch_is_the_same(linear_gaussian, data, replay):
    x, z = data(linear_gaussian), numbers(3, 5, 2)
    for view in (x, x.T.contiguous().T, x.clone().requires_grad_()):
        replay(z)
        close(
            log_marginal_estimate(linear_gaussian, view, wide, 3),
            log_mean_exp(score(linear_gaussian, x, wide(x), z).log_w).detach(),
        )


PEAK = """
import resource, torch
from lvmlib import *
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = {model}
x = model.sample({num_points})[1]
with torch.no_grad():
    log_marginal_estimate(model, x, prior_proposal(model), {num_samples})
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) // 1024)
"""


def test_5000_samples_of_1000_images_of_64_pixels_take_less_than_500_mb():
    model = "BernoulliMixture(torch.tensor([0.3, 0.7]), torch.rand(2, 64) * 0.8 + 0.1)"
    assert int(run_python(PEAK.format(model=model, num_points=1000, num_samples=5000))) < 500


def test_memory_does_not_grow_with_num_samples_where_z_is_wider_than_x():
    model = "GaussianLatentModel(200, BernoulliDecoder(mlp(200, [], 2)))"
    assert int(run_python(PEAK.format(model=model, num_points=1, num_samples=400_000))) < 300


def test_estimate_refuses_a_gradient_that_discrete_draws_do_not_carry(binary_latent, data):
    x = data(binary_latent)
    with pytest.raises(ValueError, match="no gradient passes through draws of a BernoulliVector.*leave_one_out"):
        log_marginal_estimate(binary_latent, x, prior_proposal(binary_latent), 3)
    with torch.no_grad():
        assert log_marginal_estimate(binary_latent, x, prior_proposal(binary_latent), 3).shape == (len(x),)
