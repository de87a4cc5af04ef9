"""The truth: enumeration against loops, closed form against dense formulas, quadrature against closed form."""

import itertools
import math
import time

import pytest
import torch

from lvmlib import (
    BernoulliDecoder,
    BinaryLatentModel,
    GaussianDecoder,
    GaussianLatentModel,
    GaussianMixture,
    Grid,
    LinearGaussian,
    QuadratureError,
    exact,
    exact_expected_log_mean,
    exact_log_marginal,
    exact_posterior,
    mlp,
)
from lvmlib.quadrature import check_resolved, functionals
from tests import oracles
from tests.conftest import X_DIM, numbers
from tests.test_models import DOUBLE, close, draws, layers

# enumeration and closed form


def test_enumeration_equals_loops(enumerable, data):
    x = data(enumerable)
    columns = enumerable.log_joint(x, enumerable.states()).T.tolist()
    close(exact_log_marginal(enumerable, x), [oracles.log_sum_exp(column) for column in columns])


def test_probabilities_of_all_images_sum_to_1(bernoulli_mixture):
    x = torch.tensor(oracles.bits(X_DIM), dtype=DOUBLE)
    close(exact_log_marginal(bernoulli_mixture, x).exp().sum(), 1.0)


def test_closed_form_equals_dense_formula(linear_gaussian, data):
    x, (weight, bias, scale) = data(linear_gaussian), [part.detach() for part in linear_gaussian._weight_bias_scale()]
    covariance = oracles.linear_gaussian_covariance(weight.tolist(), scale.item())
    expected = [oracles.full_log_density(row, bias.tolist(), covariance) for row in x.tolist()]
    close(exact_log_marginal(linear_gaussian, x), expected)


def test_quadrature_equals_an_integral_written_as_a_loop(gaussian_latent, data):
    x, network = data(gaussian_latent, 2), layers(gaussian_latent.decoder.network)

    def joint(row):
        def density(z):
            log_likelihood = oracles.bernoulli_log_mass(row, oracles.perceptron([z], network))
            return math.exp(oracles.normal_log_density(z, 0.0, 1.0) + log_likelihood)

        return density

    expected = [math.log(oracles.integral(joint(row), 9.0, 900)) for row in x.tolist()]
    close(exact_log_marginal(gaussian_latent, x, grid=Grid(401, 9.0)), expected, rtol=1e-12)


def test_log_marginal_at_2_hand_values():
    model = GaussianMixture(torch.tensor([0.5, 0.5]), torch.tensor([[-2.0], [2.0]]), torch.ones(1)).double()
    expected = -0.5 * math.log(2 * math.pi) - 2 + math.log(math.cosh(6.0)) - 4.5
    close(
        exact_log_marginal(model, torch.tensor([[0.0], [3.0]], dtype=DOUBLE)),
        [-0.5 * math.log(2 * math.pi) - 2, expected],
    )


@pytest.mark.parametrize("num_points", [1, 3, 16])
def test_each_data_point_has_its_own_log_marginal(model, data, num_points):
    x = data(model, num_points)
    close(exact_log_marginal(model, x), [exact_log_marginal(model, row[None]).item() for row in x])


@pytest.mark.parametrize("size", [1, 5, 100])
def test_chunks_of_states_do_not_change_the_sum(enumerable, data, monkeypatch, size):
    x = data(enumerable)
    expected = exact_log_marginal(enumerable, x).detach()
    monkeypatch.setattr(exact, "CHUNK_NUMBERS", size * exact._numbers_per_state(enumerable, x))
    close(exact_log_marginal(enumerable, x), expected)


def test_chunks_of_states_do_not_change_the_gradient(enumerable, data, monkeypatch):
    x, parameters = data(enumerable), [p for p in enumerable.parameters() if p.requires_grad]
    expected = torch.autograd.grad(exact_log_marginal(enumerable, x).sum(), parameters)
    monkeypatch.setattr(exact, "CHUNK_NUMBERS", exact._numbers_per_state(enumerable, x))
    chunked = torch.autograd.grad(exact_log_marginal(enumerable, x).sum(), parameters)
    for actual, wanted in zip(chunked, expected, strict=True):
        close(actual, wanted)


def test_chunks_are_really_taken(enumerable, data, monkeypatch):
    x, sizes = data(enumerable), []
    states = type(enumerable).states

    def spy(self, start=0, stop=None):
        sizes.append(stop - start)
        return states(self, start, stop)

    monkeypatch.setattr(type(enumerable), "states", spy)
    monkeypatch.setattr(exact, "CHUNK_NUMBERS", 2 * exact._numbers_per_state(enumerable, x))
    sizes.clear()
    exact_log_marginal(enumerable, x)
    assert sizes.pop(0) == 1  # to see which law it is
    assert max(sizes) == 2 and sum(sizes) == enumerable.num_states


@pytest.mark.parametrize("chunk", [1, 1000])
def test_a_component_of_weight_0_adds_nothing_and_its_gradient_is_0(monkeypatch, chunk):
    monkeypatch.setattr(exact, "CHUNK_NUMBERS", chunk)
    loc, x = numbers(3, X_DIM), numbers(5, X_DIM, seed=3)
    model = GaussianMixture(torch.tensor([0.0, 0.4, 0.6], dtype=DOUBLE), loc, torch.ones(1, dtype=DOUBLE))
    two = GaussianMixture(torch.tensor([0.4, 0.6], dtype=DOUBLE), loc[1:], torch.ones(1, dtype=DOUBLE))
    close(exact_log_marginal(model, x), exact_log_marginal(two, x).detach())
    exact_log_marginal(model, x).sum().backward()
    exact_log_marginal(two, x).sum().backward()
    close(model.loc.grad, torch.cat([torch.zeros(1, X_DIM, dtype=DOUBLE), two.loc.grad]))
    close(model.weight_logits.grad, torch.cat([torch.zeros(1, dtype=DOUBLE), two.weight_logits.grad]))


def test_data_1000_scales_away_have_a_finite_log_marginal(gaussian_mixture):
    x = 1000 + numbers(2, X_DIM)
    loc, scale = gaussian_mixture.loc.tolist(), gaussian_mixture.log_scale.exp().tolist()
    expected = [
        oracles.log_sum_exp(
            [math.log(w) + oracles.diagonal_log_density(row, loc[c], scale[c]) for c, w in enumerate([0.2, 0.5, 0.3])]
        )
        for row in x.tolist()
    ]
    close(exact_log_marginal(gaussian_mixture, x), expected)


def independent_pairs(num_latents, x_dim):
    """Model whose pixel d depends on latent d mod L only, so that p(x) is a product of two-term sums."""
    network = torch.nn.Linear(num_latents, x_dim, dtype=DOUBLE)
    weight = torch.zeros(x_dim, num_latents, dtype=DOUBLE)
    for pixel in range(x_dim):
        weight[pixel, pixel % num_latents] = 0.3 * pixel - 4
    network.weight.data, network.bias.data = weight, numbers(x_dim)
    return BinaryLatentModel(num_latents, BernoulliDecoder(network)).double(), weight


def test_2_to_the_16_states_and_50_pixels_take_seconds_and_equal_the_factorized_sum():
    model, weight = independent_pairs(16, 50)
    x = (numbers(7, 50, seed=3) > 0).double()
    started = time.process_time()
    value = exact_log_marginal(model, x)
    assert time.process_time() - started < 5
    expected = torch.zeros(7, dtype=DOUBLE)
    for latent in range(16):
        pixels = list(range(latent, 50, 16))
        on = [weight[pixel, latent].item() + numbers(50)[pixel].item() for pixel in pixels]
        off = numbers(50)[pixels].tolist()
        for b, row in enumerate(x[:, pixels].tolist()):
            pair = [oracles.bernoulli_log_mass(row, logits) for logits in (off, on)]
            expected[b] += oracles.log_mean_exp(pair)
    close(value, expected, rtol=1e-10)


@pytest.mark.parametrize("function", [exact_log_marginal, exact_posterior])
@pytest.mark.parametrize("z_dim", [40, 2000])
def test_2_to_the_40_states_are_refused_with_their_number_and_bytes(function, z_dim):
    model = BinaryLatentModel(z_dim, BernoulliDecoder(mlp(z_dim, [2], X_DIM)))
    with pytest.raises(
        ValueError, match=rf"{2**40 if z_dim == 40 else 'states'}.*bytes.*4194304.*log_marginal_estimate"
    ):
        function(model, torch.zeros(2, X_DIM))


# gradients


def directional(model, x, step=1e-5, **options):
    """Return (finite difference, autograd) of Σ log p(x) along one fixed direction in parameter space."""
    parameters = list(model.parameters())
    directions = [numbers(*p.shape, seed=9) for p in parameters]
    gradients = torch.autograd.grad(exact_log_marginal(model, x, **options).sum(), parameters)
    ends = []
    with torch.no_grad():
        for sign in (1, -1):
            for p, direction in zip(parameters, directions, strict=True):
                p.add_(direction, alpha=sign * step)
            ends.append(exact_log_marginal(model, x, **options).sum().item())
            for p, direction in zip(parameters, directions, strict=True):
                p.sub_(direction, alpha=sign * step)
    return (ends[0] - ends[1]) / (2 * step), sum(
        (g * d).sum() for g, d in zip(gradients, directions, strict=True)
    ).item()


def test_gradient_in_the_parameters_agrees_with_finite_differences(model, data):
    for p in model.parameters():
        p.requires_grad_()
    finite, autograd = directional(model, data(model))
    assert finite == pytest.approx(autograd, rel=1e-6) and abs(autograd) > 1e-3


def test_gradient_in_the_data_agrees_with_finite_differences(gaussian_mixture, linear_gaussian):
    x = numbers(3, X_DIM, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: exact_log_marginal(gaussian_mixture, x), x)
    assert torch.autograd.gradcheck(lambda x: exact_log_marginal(linear_gaussian, x), x)


def test_gradient_is_the_posterior_mean_of_the_gradient_of_log_joint(enumerable, data):
    x, parameters = data(enumerable), list(enumerable.parameters())
    with torch.no_grad():
        posterior = exact_posterior(enumerable, x).law.probs.T
    parameters = [p for p in parameters if p.requires_grad]
    expected = torch.autograd.grad((posterior * enumerable.log_joint(x, enumerable.states())).sum(), parameters)
    for actual, mean in zip(
        torch.autograd.grad(exact_log_marginal(enumerable, x).sum(), parameters), expected, strict=True
    ):
        close(actual, mean)


# posterior


def test_posterior_of_an_enumerable_model_is_bayes_rule(enumerable, data):
    x = data(enumerable)
    columns = enumerable.log_joint(x, enumerable.states()).T.tolist()
    expected = [oracles.normalized_weights(column) for column in columns]
    close(exact_posterior(enumerable, x).law.probs, expected)


def test_posterior_of_an_enumerable_model_ranges_over_the_states(enumerable, data):
    assert torch.equal(exact_posterior(enumerable, data(enumerable)).states, enumerable.states())


def test_log_joint_minus_log_posterior_is_log_marginal_at_every_z(model, data):
    x = data(model)
    law, states = exact_posterior(model, x)
    if states is None:
        z = draws(model, 3, 5)
        difference = model.log_joint(x, z) - law.log_prob(z)
    else:
        volume = 0.0 if model.num_states else Grid().log_volume(model.z_dim)
        number = torch.arange(len(states))[:, None].expand(-1, len(x))
        difference = model.log_joint(x, states) + volume - law.log_prob(number)
    close(difference, exact_log_marginal(model, x).expand(len(difference), -1).detach(), rtol=1e-9)


def test_posterior_under_quadrature_has_the_moments_of_the_closed_form(narrow_linear_gaussian, data):
    model = narrow_linear_gaussian
    x = data(model)
    law, nodes = exact_posterior(model, x, grid=Grid())
    mean = law.probs @ nodes[:, 0]
    second = torch.einsum("bs,si,sj->bij", law.probs, nodes[:, 0], nodes[:, 0])
    expected = exact_posterior(model, x).law
    close(mean, expected.mean.detach(), atol=1e-6)
    close(second - mean[:, :, None] * mean[:, None], expected.covariance_matrix.detach(), atol=1e-5)


# quadrature


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_quadrature_equals_closed_form(narrow_linear_gaussian, data, dtype):
    model = narrow_linear_gaussian.to(dtype)
    x = data(model)
    expected = exact_log_marginal(model, x).detach()
    value = exact_log_marginal(model, x, grid=Grid(121, 8.0))
    assert value.dtype == dtype
    close(value, expected.double(), atol=1e-5 if dtype == torch.float32 else 1e-10)


def test_quadrature_converges_faster_than_any_power(data):
    model = LinearGaussian(numbers(3, 1), numbers(3, seed=1), 0.8)
    x = data(model)
    truth = exact_log_marginal(model, x)
    errors = [
        (exact_log_marginal(model, x, grid=Grid(n, 8.0, math.inf)) - truth).abs().max().item() for n in (21, 41, 81)
    ]
    # halving the spacing divides the error by more than 1,000, then by more than a million; a rule of order p: by 2^p
    assert errors[0] > 0.1 and errors[1] < errors[0] / 1e3 and errors[2] < errors[1] / 1e6


@pytest.mark.parametrize("size", [1, 7, 100])
def test_chunks_of_nodes_do_not_change_the_integral(gaussian_latent, data, monkeypatch, size):
    x = data(gaussian_latent)
    expected = exact_log_marginal(gaussian_latent, x).detach()
    monkeypatch.setattr(exact, "CHUNK_NUMBERS", 16 * size)  # `size` nodes at a time
    close(exact_log_marginal(gaussian_latent, x), expected)


def test_chunks_of_nodes_do_not_change_the_gradient_of_the_integral(gaussian_latent, data, monkeypatch):
    x, parameters = data(gaussian_latent), list(gaussian_latent.parameters())
    expected = torch.autograd.grad(exact_log_marginal(gaussian_latent, x).sum(), parameters)
    monkeypatch.setattr(exact, "CHUNK_NUMBERS", 16 * 7)
    chunked = torch.autograd.grad(exact_log_marginal(gaussian_latent, x).sum(), parameters)
    for actual, wanted in zip(chunked, expected, strict=True):
        close(actual, wanted)


def test_nodes_are_really_taken_in_chunks(gaussian_latent, data, monkeypatch):
    x, sizes = data(gaussian_latent), []
    log_joint = type(gaussian_latent).log_joint

    def spy(self, x, z):
        sizes.append(len(z))
        return log_joint(self, x, z)

    monkeypatch.setattr(type(gaussian_latent), "log_joint", spy)
    monkeypatch.setattr(exact, "CHUNK_NUMBERS", 16 * 7)
    exact_log_marginal(gaussian_latent, x)
    assert sizes == [7] * 11 + [4]


@pytest.mark.parametrize("z_dim", [1, 2])
def test_nodes_of_a_grid_carry_volume_that_integrates_the_prior_to_1(z_dim):
    grid = Grid()
    nodes = grid.nodes(z_dim)
    assert nodes.shape == (81**z_dim, 1, z_dim)
    densities = torch.distributions.Normal(0.0, 1.0).log_prob(nodes).sum(-1) + grid.log_volume(z_dim)
    close(densities.exp().sum(), 1.0, atol=1e-8)


def test_nodes_reach_from_minus_radius_to_radius_last_axis_fastest():
    nodes = Grid(5, 2.0).nodes(2)[:, 0]
    assert nodes[:3].tolist() == [[-2, -2], [-2, -1], [-2, 0]] and nodes[-1].tolist() == [2, 2]


def unit_model(scale, weight=1.0):
    return LinearGaussian(torch.tensor([[weight]], dtype=DOUBLE), torch.zeros(1, dtype=DOUBLE), scale)


@pytest.mark.parametrize("z", [0.0, 0.15, 0.04, 0.075, 0.1, 3.075])
@pytest.mark.parametrize("scale", [0.001, 0.05, 0.08])
def test_a_peak_between_the_nodes_is_refused_wherever_it_lies(scale, z):
    model = unit_model(scale)
    x = torch.tensor([[z * (1 + scale**2)]], dtype=DOUBLE)  # its posterior mean is z; nodes are 0.15 apart
    with pytest.raises(QuadratureError, match="81 nodes per axis.*allowed is 0.001; use more nodes"):
        exact_log_marginal(model, x, grid=Grid())


def test_a_peak_between_the_nodes_of_two_axes_is_refused():
    model = LinearGaussian(torch.eye(2, dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE), 0.01)
    with pytest.raises(QuadratureError):
        exact_log_marginal(model, torch.full((1, 2), 0.075 * 1.0001, dtype=DOUBLE), grid=Grid())


class TwoPeaks(torch.nn.Module):
    """A mean that is 0 at z = −spacing and z = +spacing: two equal peaks of the posterior, two nodes apart."""

    def __init__(self, spacing):
        super().__init__()
        self.spacing = spacing

    def forward(self, z):
        return (z / self.spacing) ** 2 - 1


@pytest.mark.parametrize("noise", [0.15, 0.25, 0.4])
def test_two_peaks_halfway_between_nodes_are_refused(noise):
    spacing = 2 * 6.0 / 80
    grid = Grid()
    shift = spacing / 2  # both peaks halfway between nodes
    network = torch.nn.Sequential(TwoPeaks(spacing)).double()
    model = GaussianLatentModel(1, GaussianDecoder(Shifted(network, shift), 2 * noise)).double()
    x = torch.zeros(1, 1, dtype=DOUBLE)
    with pytest.raises(QuadratureError):
        exact_log_marginal(model, x, grid=grid)


def test_two_peaks_that_the_coarse_grid_and_the_first_frequency_miss_are_refused():
    # two narrow peaks, each halfway between two nodes: the coarse grid holds half of the mass, four nodes are a period
    grid, shares = Grid(), torch.zeros(81, 1, dtype=DOUBLE)
    shares[40:44] = 0.25
    sums = functionals(grid, 1) @ shares
    _, coarse, edge, cosine, sine, *_ = sums[:, 0].tolist()
    assert (coarse, edge) == (1.0, 0.0) and math.hypot(cosine, sine) < 1e-14
    with pytest.raises(QuadratureError, match="leave an error of"):
        check_resolved(sums, grid)


class Shifted(torch.nn.Module):
    """A function of z − shift."""

    def __init__(self, network, shift):
        super().__init__()
        self.network, self.shift = network, shift

    def forward(self, z):
        return self.network(z - self.shift)


def test_one_unresolved_data_point_among_many_is_refused():
    x = torch.zeros(5, 1, dtype=DOUBLE)
    with pytest.raises(QuadratureError):
        exact_posterior(unit_model(0.01), x, grid=Grid())


@pytest.mark.parametrize("x", [7.0, 20.0, -50.0])
def test_mass_at_or_beyond_the_edge_is_refused(x):
    with pytest.raises(QuadratureError, match="share .* of the mass at the edge"):
        exact_log_marginal(unit_model(0.5), torch.tensor([[x]], dtype=DOUBLE), grid=Grid())


@pytest.mark.parametrize(("num_nodes", "radius"), [(81, 2.0), (10_001, 3.0), (100_001, 2.0)])
def test_mass_outside_the_box_is_refused_however_fine_the_grid(num_nodes, radius):
    model, x = unit_model(1.0, weight=1e-6), torch.tensor([[0.3]], dtype=DOUBLE)  # posterior = prior
    with pytest.raises(QuadratureError):
        exact_log_marginal(model, x, grid=Grid(num_nodes, radius))


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (Grid(80), "grid.num_nodes must be odd.*got 80"),
        (Grid(3), "grid.num_nodes must be at least 5, got 3"),
        (Grid(81, 0.0), "grid.radius must be finite and above 0, got 0.0"),
        (Grid(81, math.nan), "grid.radius must be finite and above 0, got nan"),
        (Grid(81, math.inf), "grid.radius must be finite and above 0, got inf"),
    ],
)
def test_impossible_grids_are_refused(gaussian_latent, data, grid, message):
    with pytest.raises(ValueError, match=message):
        exact_log_marginal(gaussian_latent, data(gaussian_latent), grid=grid)


def test_a_grid_of_10_to_the_10_nodes_is_refused_before_memory_is_asked_for(data):
    model = GaussianLatentModel(2, BernoulliDecoder(mlp(2, [3], X_DIM))).double()
    with pytest.raises(ValueError, match="nodes"):
        exact_log_marginal(model, data(model), grid=Grid(100_001))


def test_quadrature_refuses_data_of_another_dtype():
    model = GaussianLatentModel(1, BernoulliDecoder(mlp(1, [3], X_DIM)))
    with pytest.raises(TypeError, match="x must have the model's dtype torch.float32, got torch.float64"):
        exact_log_marginal(model, torch.zeros(2, X_DIM, dtype=DOUBLE))


def test_a_model_without_exact_method_is_refused_with_the_choices():
    model = GaussianLatentModel(3, BernoulliDecoder(mlp(3, [3], X_DIM)))
    with pytest.raises(ValueError, match="GaussianLatentModel with z_dim = 3; allowed are .*log_marginal_estimate"):
        exact_log_marginal(model, torch.zeros(2, X_DIM))


def test_a_grid_for_a_mixture_is_refused(gaussian_mixture, data):
    with pytest.raises(ValueError, match="GaussianMixture"):
        exact_log_marginal(gaussian_mixture, data(gaussian_mixture), grid=Grid())


@pytest.mark.parametrize("function", [exact_log_marginal, exact_posterior])
@pytest.mark.parametrize("shape", [(0, X_DIM), (5, 1), (5, X_DIM + 1)])
def test_no_data_or_data_of_another_width_are_refused(model, function, shape):
    with pytest.raises(
        ValueError, match=rf"x must have shape \(B, {X_DIM}\) with B >= 1, got \({shape[0]}, {shape[1]}\)"
    ):
        function(model, torch.zeros(shape, dtype=DOUBLE))


@pytest.mark.parametrize("function", [exact_log_marginal, exact_posterior])
@pytest.mark.parametrize(
    "x", [torch.zeros(X_DIM, dtype=DOUBLE), torch.zeros(2, X_DIM, dtype=torch.int64)], ids=["rank", "int"]
)
def test_data_that_violate_the_annotation_are_refused_by_name(model, function, x):
    with pytest.raises(ValueError, match=rf"{function.__name__}: x must be Float\[Tensor, 'b d'\], got"):
        function(model, x)


# expectation over counts


@pytest.mark.parametrize(("num_states", "num_samples"), [(1, 4), (2, 3), (3, 2), (4, 5), (3, 0)])
def test_count_vectors_are_all_and_sum_to_num_samples(num_states, num_samples):
    rows = exact.count_vectors(num_states, num_samples)
    assert len(rows.unique(dim=0)) == len(rows) == math.comb(num_samples + num_states - 1, num_states - 1)
    assert (rows.sum(1) == num_samples).all() and (rows >= 0).all()


LOG_Q = [math.log(p) for p in (0.1, 0.6, 0.3)]
LOG_W = [2.0, -1.5, 0.4]


@pytest.mark.parametrize("num_samples", [1, 2, 3, 5])
@pytest.mark.parametrize("log_w", [LOG_W, [800.0, -800.0, 0.0], [-1e5, 1.0, 2.0]], ids=str)
def test_expected_log_mean_equals_the_sum_over_all_tuples(num_samples, log_w):
    value = exact_expected_log_mean(torch.tensor(log_w).double(), torch.tensor(LOG_Q).double(), num_samples)
    expected = oracles.expected_over_tuples(log_w, LOG_Q, num_samples, oracles.log_mean_exp)
    assert value.item() == pytest.approx(expected, rel=1e-6)  # LOG_Q is exact to float32


def test_expected_log_mean_of_one_sample_is_the_elbo():
    log_q, log_w = torch.tensor(LOG_Q, dtype=DOUBLE), torch.tensor(LOG_W, dtype=DOUBLE)
    close(exact_expected_log_mean(log_w, log_q, 1), (log_q.exp() * log_w).sum())


def test_expected_log_mean_increases_with_num_samples_and_stays_below_log_marginal():
    log_q, log_w = torch.tensor(LOG_Q, dtype=DOUBLE), torch.tensor(LOG_W, dtype=DOUBLE)
    bounds = [exact_expected_log_mean(log_w, log_q, k).item() for k in (1, 2, 3, 5, 10, 100)]
    bounds.append((log_q + log_w).logsumexp(0).item())
    assert all(b - a > 1e-4 for a, b in itertools.pairwise(bounds))


def test_expected_log_mean_does_not_depend_on_num_samples_where_weights_are_equal():
    log_q = torch.tensor(LOG_Q, dtype=DOUBLE)
    close(exact_expected_log_mean(torch.full((3,), 0.7, dtype=DOUBLE), log_q, 4), 0.7)


def test_expected_log_mean_is_minus_inf_where_all_samples_may_have_weight_0():
    log_q = torch.tensor(LOG_Q, dtype=DOUBLE)
    assert exact_expected_log_mean(torch.tensor([0.0, -math.inf, 1.0], dtype=DOUBLE), log_q, 3).item() == -math.inf


def test_expected_log_mean_ignores_a_state_that_is_never_drawn():
    log_q = torch.tensor([0.0, -math.inf], dtype=DOUBLE)
    assert exact_expected_log_mean(torch.tensor([0.3, -math.inf], dtype=DOUBLE), log_q, 3).item() == pytest.approx(0.3)


def test_expected_log_mean_is_not_nan_where_a_probability_underflows():
    log_q = torch.tensor([0.0, -800.0], dtype=DOUBLE)
    assert not exact_expected_log_mean(torch.tensor([0.3, -math.inf], dtype=DOUBLE), log_q, 1).isnan()


def test_expected_log_mean_gradient_agrees_with_finite_differences():
    log_q = torch.tensor(LOG_Q, dtype=DOUBLE)
    log_w = torch.tensor(LOG_W, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(lambda log_w: exact_expected_log_mean(log_w, log_q, 3), log_w)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_expected_log_mean_refuses_nan_and_plus_inf(bad):
    with pytest.raises(ValueError, match="log_w must be finite or -inf"):
        exact_expected_log_mean(torch.tensor([0.0, bad, 1.0]), torch.tensor(LOG_Q), 2)


@pytest.mark.parametrize("log_q", [[0.0, 0.0, 0.0], [-1.0, -1.0, -2.0], [math.nan, 0.0, -math.inf]], ids=str)
def test_expected_log_mean_refuses_a_proposal_that_does_not_sum_to_1(log_q):
    with pytest.raises(ValueError, match="log_q must be normalized"):
        exact_expected_log_mean(torch.tensor(LOG_W), torch.tensor(log_q), 2)


def test_expected_log_mean_refuses_too_many_counts_with_their_number():
    log_q = torch.full((10,), -math.log(10.0))
    with pytest.raises(
        ValueError, match="num_samples: 100 samples of 10 states give 4263421511271 count vectors.*4194304"
    ):
        exact_expected_log_mean(torch.zeros(10), log_q, 100)


@pytest.mark.parametrize("num_samples", [0, -1])
def test_expected_log_mean_refuses_less_than_one_sample(num_samples):
    with pytest.raises(ValueError, match=f"num_samples must be at least 1, got {num_samples}"):
        exact_expected_log_mean(torch.tensor(LOG_W), torch.tensor(LOG_Q), num_samples)
