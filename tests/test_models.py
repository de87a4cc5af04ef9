"""Models: log densities against loops, samples against the story, shapes that must not pair by accident."""

import contextlib
import math

import pytest
import torch

from lvmlib import (
    BernoulliDecoder,
    BernoulliMixture,
    BinaryLatentModel,
    GaussianDecoder,
    GaussianLatentModel,
    GaussianMixture,
    LatentVariableModel,
    LinearGaussian,
    mlp,
)
from tests import oracles
from tests.conftest import X_DIM, numbers

DOUBLE = torch.float64


def close(actual, expected, rtol=1e-12, atol=1e-13):
    torch.testing.assert_close(
        torch.as_tensor(actual, dtype=DOUBLE).detach(), torch.as_tensor(expected, dtype=DOUBLE), rtol=rtol, atol=atol
    )


def layers(network):
    """Return the (weight, bias) lists of a network made by mlp."""
    return [(part.weight.tolist(), part.bias.tolist()) for part in network if isinstance(part, torch.nn.Linear)]


def draws(model, num_samples, num_points):
    """Return K prior draws for each data point."""
    return model.prior().expand((num_points,)).sample((num_samples,))


# log densities against loops


def test_gaussian_mixture_log_joint_equals_loops(gaussian_mixture, data, weights):
    x = data(gaussian_mixture)
    loc, scale = gaussian_mixture.loc.tolist(), gaussian_mixture.log_scale.exp().tolist()
    expected = [
        [math.log(weights[c]) + oracles.diagonal_log_density(row, loc[c], scale[c]) for row in x.tolist()]
        for c in range(3)
    ]
    close(gaussian_mixture.log_joint(x, gaussian_mixture.states()), expected)


def test_bernoulli_mixture_log_joint_equals_loops(bernoulli_mixture, data, weights):
    x = data(bernoulli_mixture)
    logits = bernoulli_mixture.logits.tolist()
    expected = [
        [math.log(weights[c]) + oracles.bernoulli_log_mass(row, logits[c]) for row in x.tolist()] for c in range(3)
    ]
    close(bernoulli_mixture.log_joint(x, bernoulli_mixture.states()), expected)


def test_binary_latent_log_joint_equals_loops(binary_latent, data):
    x, network = data(binary_latent), layers(binary_latent.decoder.network)
    prior = binary_latent.prior_logits.tolist()
    expected = [
        [
            oracles.bernoulli_log_mass(z, prior) + oracles.bernoulli_log_mass(row, oracles.perceptron(z, network))
            for row in x.tolist()
        ]
        for z in oracles.bits(4)
    ]
    close(binary_latent.log_joint(x, binary_latent.states()), expected)


@pytest.mark.parametrize("name", ["linear_gaussian", "real_gaussian_latent"])
def test_gaussian_decoder_log_joint_equals_loops(name, request, data):
    model = request.getfixturevalue(name)
    x, z = data(model), draws(model, 3, 5)
    network = model.decoder.network
    network = layers(network if isinstance(network, torch.nn.Sequential) else [network])
    scale = model.decoder.log_scale.exp().item()
    expected = [
        [
            oracles.diagonal_log_density(one, [0.0] * len(one), [1.0] * len(one))
            + oracles.diagonal_log_density(row, oracles.perceptron(one, network), [scale] * X_DIM)
            for one, row in zip(sample, x.tolist(), strict=True)
        ]
        for sample in z.tolist()
    ]
    close(model.log_joint(x, z), expected)


def test_log_joint_is_log_prior_plus_log_likelihood(model, data):
    x, z = data(model), draws(model, 3, 5)
    close(model.log_joint(x, z), (model.log_prior(z) + model.log_likelihood(x, z)).detach())


@pytest.mark.parametrize(("num_samples", "num_points"), [(3, 5), (1, 5), (3, 1), (1, 1), (5, 5), (7, 7)])
def test_scores_have_shape_k_b(model, data, num_samples, num_points):
    scores = model.log_joint(data(model, num_points), draws(model, num_samples, num_points))
    assert scores.shape == (num_samples, num_points)


@pytest.mark.parametrize("num_points", [1, 3, 5, 16])
def test_states_meet_every_data_point_also_where_their_numbers_agree(enumerable, data, num_points):
    x = data(enumerable, num_points)
    alone = torch.cat([enumerable.log_joint(row[None], enumerable.states()) for row in x], 1)
    close(enumerable.log_joint(x, enumerable.states()), alone.detach())


def test_each_sample_meets_its_own_data_point(model, data):
    x, z = data(model), draws(model, 3, 5)
    alone = torch.cat([model.log_joint(x[[b]], z[:, [b]]) for b in range(5)], 1)
    close(model.log_joint(x, z), alone.detach())


# states


def test_states_of_a_mixture_are_its_component_numbers(gaussian_mixture):
    assert gaussian_mixture.states().tolist() == [[0], [1], [2]]


def test_states_of_binary_latents_are_all_bit_vectors_lowest_bit_fastest(binary_latent):
    assert binary_latent.states()[:, 0].tolist() == [list(row) for row in oracles.bits(4)]


def test_a_range_of_states_is_a_slice_of_all_states(enumerable):
    assert torch.equal(enumerable.states(1, 3), enumerable.states()[1:3])


def test_prior_masses_of_all_states_sum_to_1(enumerable):
    close(enumerable.log_prior(enumerable.states()).exp().sum(), 1.0)


# samples


@pytest.mark.parametrize("num_samples", [1, 4])
def test_sample_returns_z_and_x(model, num_samples):
    z, x = model.sample(num_samples)
    assert (z.shape, x.shape) == ((num_samples, *model.prior().event_shape), (num_samples, X_DIM))


def test_sampled_z_of_a_mixture_is_an_integer(bernoulli_mixture):
    assert bernoulli_mixture.sample(4)[0].dtype == torch.int64


def test_sample_carries_no_gradient(model):
    assert not any(part.requires_grad for part in model.sample(3))


def test_sampled_x_belongs_to_its_z_in_a_gaussian_mixture(weights):
    model = GaussianMixture(weights, numbers(3, X_DIM), torch.full((1,), 1e-12, dtype=DOUBLE))
    z, x = model.sample(20)
    close(x, model.loc[z].detach(), atol=1e-10)


def test_sampled_x_belongs_to_its_z_in_a_bernoulli_mixture(weights):
    on = numbers(3, X_DIM) > 0
    model = BernoulliMixture(weights, torch.where(on, torch.tensor(1 - 1e-15, dtype=DOUBLE), 1e-300))
    z, x = model.sample(20)
    assert torch.equal(x, on[z].double())


def test_sampled_x_belongs_to_its_z_in_a_linear_gaussian():
    model = LinearGaussian(numbers(X_DIM, 2), numbers(X_DIM, seed=1), 1e-12)
    z, x = model.sample(20)
    close(x, z @ numbers(X_DIM, 2).T + numbers(X_DIM, seed=1), atol=1e-10)


def test_sample_is_the_same_in_training_and_evaluation_mode(model):
    torch.manual_seed(3)
    training = model.train().sample(4)[1]
    torch.manual_seed(3)
    assert torch.equal(model.eval().sample(4)[1], training)


@pytest.mark.parametrize("num_samples", [0, -1])
def test_sample_refuses_less_than_one(model, num_samples):
    with pytest.raises(ValueError, match=f"num_samples must be at least 1, got {num_samples}"):
        model.sample(num_samples)


# linear-Gaussian closed forms


def test_linear_gaussian_marginal_equals_dense_formula(linear_gaussian, data):
    x = data(linear_gaussian)
    covariance = oracles.linear_gaussian_covariance(numbers(X_DIM, 2).tolist(), 0.7)
    expected = [oracles.full_log_density(row, numbers(X_DIM, seed=1).tolist(), covariance) for row in x.tolist()]
    close(linear_gaussian.marginal().log_prob(x), expected)


@pytest.mark.parametrize(("x_dim", "z_dim"), [(1, 1), (1, 3), (3, 1), (2, 2), (2, 5)])
def test_linear_gaussian_posterior_satisfies_bayes_rule(x_dim, z_dim):
    model = LinearGaussian(numbers(x_dim, z_dim), numbers(x_dim, seed=1), 0.7)
    x, z = numbers(5, x_dim, seed=2), numbers(3, 5, z_dim, seed=3)
    log_marginal = model.log_joint(x, z) - model.posterior(x).log_prob(z)
    close(log_marginal, model.marginal().log_prob(x).expand(3, 5).detach(), rtol=1e-10)


def test_linear_gaussian_posterior_has_mean_0_8_and_variance_0_6_by_hand():
    law = LinearGaussian(torch.tensor([[2.0]]), torch.zeros(1), math.sqrt(6)).posterior(torch.tensor([[4.0]]))
    torch.testing.assert_close((law.mean.item(), law.covariance_matrix.item()), (0.8, 0.6), rtol=1e-6, atol=0)


def test_linear_gaussian_in_float64_keeps_its_scale_in_float64():
    model = LinearGaussian(numbers(X_DIM, 2), numbers(X_DIM), 0.7)
    close(model.decoder.log_scale.exp(), 0.7, rtol=1e-15)


@pytest.mark.parametrize("scale", [0.1, 1e-3])
def test_linear_gaussian_marginal_in_float32_holds_for_small_noise(scale):
    weight, bias = numbers(X_DIM, 2), numbers(X_DIM, seed=1)
    x = (numbers(5, 2, seed=2) @ weight.T + bias + scale * numbers(5, X_DIM, seed=3)).float()
    covariance = oracles.linear_gaussian_covariance(weight.float().double().tolist(), scale)
    expected = [oracles.full_log_density(row, bias.float().tolist(), covariance) for row in x.tolist()]
    value = LinearGaussian(weight.float(), bias.float(), scale).marginal().log_prob(x)
    close(value, expected, rtol=1e-3, atol=1e-2)


def test_linear_gaussian_does_not_follow_later_changes_of_its_arguments():
    weight = numbers(X_DIM, 2)
    model = LinearGaussian(weight, numbers(X_DIM), 0.7)
    weight.zero_()
    assert model.decoder.network.weight.abs().min() > 0


# EM's maximization step


def responsibilities():
    return (2 * numbers(5, 3, seed=4)).softmax(1)


def expected_complete_log_likelihood(model, x, r):
    return (r.T * model.log_joint(x, model.states())).sum()


def test_gaussian_m_step_is_a_stationary_point_of_the_expected_log_likelihood(weights, data):
    model = GaussianMixture(weights, numbers(3, X_DIM), torch.ones(X_DIM, dtype=DOUBLE), learn_scale=True)
    x = data(model)
    model.m_step(x, responsibilities())
    gradients = torch.autograd.grad(
        expected_complete_log_likelihood(model, x, responsibilities()), list(model.parameters())
    )
    assert max(gradient.abs().max() for gradient in gradients) < 1e-10


def test_gaussian_m_step_leaves_a_fixed_scale_alone(gaussian_mixture, data):
    before = gaussian_mixture.log_scale.clone()
    gaussian_mixture.m_step(data(gaussian_mixture), responsibilities())
    assert torch.equal(gaussian_mixture.log_scale, before)


@pytest.mark.parametrize("pseudo_count", [0.0, 1.0, 2.5])
def test_bernoulli_m_step_is_a_stationary_point_of_the_penalized_expected_log_likelihood(
    bernoulli_mixture, data, pseudo_count
):
    x = data(bernoulli_mixture)
    x[0], x[1] = 0, 1  # no pixel is constant
    bernoulli_mixture.m_step(x, responsibilities(), pseudo_count)
    objective = expected_complete_log_likelihood(bernoulli_mixture, x, responsibilities())
    objective = objective + bernoulli_mixture.log_penalty(pseudo_count)
    gradients = torch.autograd.grad(objective, list(bernoulli_mixture.parameters()))
    assert max(gradient.abs().max() for gradient in gradients) < 1e-10


def test_bernoulli_penalty_is_the_log_density_of_beta_laws(bernoulli_mixture):
    def log_beta(model):
        return torch.distributions.Beta(torch.tensor(3.5), torch.tensor(3.5)).log_prob(model.logits.sigmoid()).sum()

    other = BernoulliMixture(bernoulli_mixture.weight_logits.softmax(0), numbers(3, X_DIM, seed=8).sigmoid())
    difference = bernoulli_mixture.log_penalty(2.5) - other.log_penalty(2.5)
    close(difference, (log_beta(bernoulli_mixture) - log_beta(other)).item())


def test_m_step_keeps_a_component_without_data(gaussian_mixture, data):
    before = gaussian_mixture.loc[1].clone()
    r = torch.tensor([0.5, 0.0, 0.5], dtype=DOUBLE).expand(5, 3)
    gaussian_mixture.m_step(data(gaussian_mixture), r)
    assert torch.equal(gaussian_mixture.loc[1], before)


def test_m_step_without_pseudo_counts_refuses_a_pixel_that_is_never_on(bernoulli_mixture):
    with pytest.raises(ValueError, match="pseudo_count must be > 0 here, got 0.0: 21 pixel means"):
        bernoulli_mixture.m_step(torch.zeros(5, X_DIM, dtype=DOUBLE), responsibilities(), 0.0)


@pytest.mark.parametrize("name", ["gaussian_mixture", "bernoulli_mixture"])
def test_m_step_refuses_data_of_another_width(name, request):
    model = request.getfixturevalue(name)
    with pytest.raises(ValueError, match="x must"):
        model.m_step(torch.zeros(5, 1, dtype=DOUBLE), responsibilities())


@pytest.mark.parametrize("name", ["gaussian_mixture", "bernoulli_mixture"])
def test_m_step_refuses_another_number_of_components(name, request):
    model = request.getfixturevalue(name)
    with pytest.raises(ValueError, match="responsibilities"):
        model.m_step(torch.zeros(5, X_DIM, dtype=DOUBLE), torch.ones(5, 1, dtype=DOUBLE))


def test_m_step_never_sets_the_scale_to_0(weights):
    model = GaussianMixture(weights, numbers(3, X_DIM), torch.ones(X_DIM, dtype=DOUBLE), learn_scale=True)
    with contextlib.suppress(ValueError):  # refusing is fine too
        model.m_step(torch.ones(5, X_DIM, dtype=DOUBLE), responsibilities())
    assert model.log_scale.isfinite().all()


# bad input


def test_gaussian_mixture_refuses_a_scale_that_does_not_fit():
    with pytest.raises(ValueError, match="scale"):
        GaussianMixture(torch.tensor([0.5, 0.5]), torch.zeros(2, 7), torch.ones(2))


@pytest.mark.parametrize("weights", [[-0.5, 1.5], [0.5, 0.6], [0.4, 0.4], [math.nan, 1.0], [0.0, 0.0]], ids=str)
def test_mixture_weights_that_are_no_probabilities_are_refused(weights):
    with pytest.raises(ValueError, match="weights must be"):
        GaussianMixture(torch.tensor(weights), torch.zeros(2, 3), torch.ones(3))


def test_number_of_weights_and_components_must_agree():
    with pytest.raises(ValueError, match=r"loc must be .* got \(2, 3\) .*other arguments give c = 4"):
        GaussianMixture(torch.full((4,), 0.25), torch.zeros(2, 3), torch.ones(3))


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_scale_must_be_positive_and_finite(scale):
    with pytest.raises(ValueError, match="scale must be finite and above 0"):
        GaussianMixture(torch.tensor([0.5, 0.5]), torch.zeros(2, 3), torch.tensor(scale))
    with pytest.raises(ValueError, match="scale must be finite and above 0"):
        LinearGaussian(torch.ones(3, 2), torch.zeros(3), scale)
    with pytest.raises(ValueError, match="scale must be finite and above 0"):
        GaussianDecoder(mlp(2, [3], 4), scale)


@pytest.mark.parametrize("prob", [0.0, 1.0, -0.1, math.nan])
def test_pixel_means_must_lie_strictly_between_0_and_1(prob):
    with pytest.raises(ValueError, match="probs must lie strictly between 0 and 1"):
        BernoulliMixture(torch.tensor([1.0]), torch.tensor([[0.5, prob]]))


@pytest.mark.parametrize("name", ["bernoulli_mixture", "binary_latent", "gaussian_latent"])
@pytest.mark.parametrize(("value", "shown"), [(0.5, "0 to 0.5"), (255.0, "0 to 255"), (-1.0, "-1 to 0")])
def test_pixels_outside_0_and_1_are_refused_with_the_choices(name, request, value, shown):
    model = request.getfixturevalue(name)
    x = torch.zeros(5, X_DIM, dtype=DOUBLE)
    x[2, 3] = value
    with pytest.raises(ValueError, match=f"x must be 0 or 1.*from {shown}; .*binarize.*255.*GaussianDecoder"):
        model.log_joint(x, draws(model, 3, 5))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_data_that_are_not_finite_are_refused_with_number_and_place(model, data, bad):
    x = data(model)
    x[2, 3] = x[4, 0] = bad
    with pytest.raises(ValueError, match=r"x must be finite, got 2 .* first at \[2, 3\]"):
        model.log_joint(x, draws(model, 3, 5))


@pytest.mark.parametrize("shape", [(5, 1), (5, X_DIM - 1), (5, X_DIM + 1), (0, X_DIM)])
def test_data_of_another_width_or_none_are_refused(model, shape):
    with pytest.raises(
        ValueError, match=rf"x must have shape \(B, {X_DIM}\) with B >= 1, got \({shape[0]}, {shape[1]}\)"
    ):
        model.log_likelihood(torch.zeros(shape, dtype=DOUBLE), draws(model, 3, shape[0]))


@pytest.mark.parametrize("shape", [(X_DIM,), (5, X_DIM, 1), (5, 1, X_DIM)])
def test_data_of_another_rank_are_refused(model, shape):
    with pytest.raises(ValueError, match="log_likelihood: x must be"):
        model.log_likelihood(torch.zeros(shape, dtype=DOUBLE), draws(model, 3, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.uint8, torch.bool])
def test_data_of_another_dtype_are_refused(model, dtype):
    with pytest.raises(TypeError, match=f"x must have the model's dtype torch.float64, got {dtype}"):
        model.log_likelihood(torch.zeros(5, X_DIM, dtype=dtype), draws(model, 3, 5))


def test_data_on_another_device_are_refused(model):
    with pytest.raises(ValueError, match="x must be on the model's device cpu, got meta"):
        model.log_likelihood(torch.zeros(5, X_DIM, dtype=DOUBLE, device="meta"), draws(model, 3, 5))


@pytest.mark.parametrize("num_points", [2, 4])
def test_z_for_another_number_of_data_points_is_refused(model, data, num_points):
    with pytest.raises(
        ValueError, match=rf"z must pair with x: axis 1 of z must be 1 or 5, got shape \(3, {num_points}"
    ):
        model.log_likelihood(data(model), draws(model, 3, num_points))


@pytest.mark.parametrize("num_points", [2, 4])
def test_z_of_several_data_points_is_refused_for_a_single_one(model, data, num_points):
    with pytest.raises(ValueError, match=rf"z must pair with x: axis 1 of z must be 1, got shape \(3, {num_points}"):
        model.log_likelihood(data(model, 1), draws(model, 3, num_points))


def test_z_with_an_extra_axis_is_refused_also_where_it_would_broadcast(model, data):
    z = draws(model, 3, 2)
    z = z[:, :, None].expand(3, 2, 2, *z.shape[2:])
    with pytest.raises(ValueError, match="z must"):
        model.log_likelihood(data(model, 2), z)


@pytest.mark.parametrize("component", [-1, 3])
@pytest.mark.parametrize("method", ["log_likelihood", "log_joint", "log_prior"])
def test_component_numbers_out_of_range_are_refused(gaussian_mixture, data, component, method):
    z = torch.full((3, 5), component)
    arguments = (z,) if method == "log_prior" else (data(gaussian_mixture), z)
    with pytest.raises(ValueError, match=rf"z must lie in 0..2, got {component}..{component}"):
        getattr(gaussian_mixture, method)(*arguments)


@pytest.mark.parametrize("method", ["log_likelihood", "log_joint", "log_prior"])
def test_component_numbers_that_are_not_integers_are_refused(gaussian_mixture, data, method):
    z = torch.full((3, 5), 0.7)
    arguments = (z,) if method == "log_prior" else (data(gaussian_mixture), z)
    with pytest.raises(
        TypeError, match=r"z must be torch.int64 component numbers, got \(3, 5\) torch.float32|parameter 'z'"
    ):
        getattr(gaussian_mixture, method)(*arguments)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("method", ["log_likelihood", "log_joint", "log_prior"])
def test_latents_of_another_width_are_refused(linear_gaussian, data, width, method):
    z = torch.zeros(3, 5, width, dtype=DOUBLE)
    arguments = (z,) if method == "log_prior" else (data(linear_gaussian), z)
    with pytest.raises(ValueError, match=rf"z must have shape \(K, B, 2\), got \(3, 5, {width}\)"):
        getattr(linear_gaussian, method)(*arguments)


@pytest.mark.parametrize("method", ["log_likelihood", "log_joint", "log_prior"])
def test_binary_latents_that_are_not_bits_are_refused(binary_latent, data, method):
    z = torch.full((3, 5, 4), 0.5, dtype=DOUBLE)
    arguments = (z,) if method == "log_prior" else (data(binary_latent), z)
    with pytest.raises(ValueError, match="z must be 0 or 1"):
        getattr(binary_latent, method)(*arguments)


@pytest.mark.parametrize("z_dim", [0, -1])
def test_z_dim_below_1_is_refused(z_dim):
    for kind in (BinaryLatentModel, GaussianLatentModel):
        with pytest.raises(ValueError, match=f"z_dim must be at least 1, got {z_dim}"):
            kind(z_dim, BernoulliDecoder(mlp(1, [2], 3)))


@pytest.mark.parametrize("hidden", [[0], [4, -1]])
def test_empty_layers_are_refused(hidden):
    with pytest.raises(ValueError, match=r"size \d of the network must be at least 1"):
        mlp(2, hidden, 3)


def test_mlp_has_tanh_between_layers_and_none_at_the_end():
    kinds = [type(layer).__name__ for layer in mlp(2, [4, 5], 3)]
    assert kinds == ["Linear", "Tanh", "Linear", "Tanh", "Linear"]


def test_mlp_equals_loops():
    network, z = mlp(2, [4, 5], 3).double(), numbers(6, 2)
    close(network(z), [oracles.perceptron(row, layers(network)) for row in z.tolist()])


def test_base_model_has_no_laws():
    for call in (LatentVariableModel().prior, lambda: LatentVariableModel().likelihood(torch.zeros(1, 1))):
        with pytest.raises(NotImplementedError):
            call()


# gradients and memory


def test_data_and_latents_are_not_modified(model, data):
    x, z = data(model), draws(model, 3, 5)
    before = x.clone(), z.clone()
    model.log_joint(x, z)
    assert torch.equal(x, before[0]) and torch.equal(z, before[1])


def test_memory_layout_of_data_does_not_matter(model, data):
    x, z = data(model), draws(model, 3, 5)
    close(model.log_joint(x.T.contiguous().T, z), model.log_joint(x, z).detach())


def test_one_data_point_expanded_is_that_point_repeated(model, data):
    x, z = data(model, 1), draws(model, 3, 5)
    close(model.log_joint(x.expand(5, -1), z), model.log_joint(x.repeat(5, 1), z).detach())


def test_learn_flags_decide_what_is_trained():
    decoder = mlp(2, [3], 4)
    flags = [
        (GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.ones(2), learn_scale=on).log_scale, on)
        for on in (False, True)
    ]
    flags += [(GaussianDecoder(decoder, learn_scale=on).log_scale, on) for on in (False, True)]
    flags += [
        (BinaryLatentModel(2, BernoulliDecoder(decoder), learn_prior=on).prior_logits, on) for on in (False, True)
    ]
    assert all(parameter.requires_grad is on for parameter, on in flags)
