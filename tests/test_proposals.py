"""Proposals: the prior ignores x; the posterior makes log w constant; free laws and encoders; detached laws."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, Normal

from lvmlib import (
    BernoulliVector,
    DiagonalGaussian,
    FreeBernoulli,
    FreeCategorical,
    FreeGaussian,
    FullGaussian,
    GaussianEncoder,
    GaussianLatentModel,
    detached,
    draw,
    exact_elbo,
    exact_log_marginal,
    mlp,
    posterior_proposal,
    prior_proposal,
    score,
)
from tests import oracles
from tests.conftest import X_DIM, numbers
from tests.test_models import DOUBLE, close

WITH_POSTERIOR = ["gaussian_mixture", "bernoulli_mixture", "linear_gaussian"]


@pytest.fixture(params=WITH_POSTERIOR)
def solvable(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("num_points", [1, 5])
def test_prior_proposal_has_one_law_per_data_point(model, data, num_points):
    assert prior_proposal(model)(data(model, num_points)).batch_shape == (num_points,)


def test_prior_proposal_has_the_density_of_the_prior(model, data):
    q = prior_proposal(model)(data(model))
    z = draw(q, 3)
    close(q.log_prob(z), model.log_prior(z).detach())


def test_prior_proposal_draws_anew_for_each_data_point(linear_gaussian, data):
    z = draw(prior_proposal(linear_gaussian)(data(linear_gaussian)), 3)
    assert len(z.reshape(-1, 2).unique(dim=0)) == 15


def test_log_w_under_the_prior_is_log_likelihood(model, data):
    x = data(model)
    q = prior_proposal(model)(x)
    z = draw(q, 3)
    close(score(model, x, q, z).log_w, model.log_likelihood(x, z).detach())


@pytest.mark.parametrize("num_points", [1, 3, 5])
def test_log_w_under_the_posterior_is_log_marginal_for_every_sample(solvable, data, num_points):
    x = data(solvable, num_points)
    q = posterior_proposal(solvable)(x)
    log_w = score(solvable, x, q, draw(q, 4)).log_w
    close(log_w, exact_log_marginal(solvable, x).expand(4, -1).detach(), rtol=1e-10)


def test_log_w_under_another_law_is_not_constant(solvable, data):
    x = data(solvable)
    q = prior_proposal(solvable)(x)
    assert (score(solvable, x, q, draw(q, 20)).log_w.std(0) > 0.1).all()


@pytest.mark.parametrize("name", ["binary_latent", "gaussian_latent"])
def test_posterior_proposal_refuses_a_model_whose_posterior_is_a_table(name, request, data):
    model = request.getfixturevalue(name)
    with pytest.raises(ValueError, match=f"model: the posterior of {type(model).__name__} is known only as a table"):
        posterior_proposal(model)(data(model))


def test_mixture_posterior_with_a_zero_weight_never_draws_that_component(weights, gaussian_mixture, data):
    x = data(gaussian_mixture)
    gaussian_mixture.weight_logits.data[1] = -math.inf
    assert not (draw(posterior_proposal(gaussian_mixture)(x), 200) == 1).any()


def test_proposals_do_not_modify_data(solvable, data):
    x = data(solvable)
    before = x.clone()
    posterior_proposal(solvable)(x)
    prior_proposal(solvable)(x)
    assert torch.equal(x, before)


# free laws, one per data point


FREE = {
    "diagonal": lambda num_data, size: FreeGaussian(num_data, size),
    "full": lambda num_data, size: FreeGaussian(num_data, size, full=True),
    "categorical": FreeCategorical,
    "bernoulli": FreeBernoulli,
}


@pytest.fixture(params=FREE)
def free(request):
    return FREE[request.param]


def randomize(proposal, seed=7):
    """Give a proposal parameters without symmetry, in float64."""
    proposal = proposal.double()
    for parameter in proposal.parameters():
        parameter.data = 0.5 * numbers(*parameter.shape, seed=seed)
    return proposal


@pytest.mark.parametrize(("num_data", "size"), [(5, 3), (1, 3), (5, 1), (1, 1), (3, 3)])
def test_free_proposal_has_one_law_per_data_point(num_data, size, free):
    q = free(num_data, size)(torch.zeros(num_data, X_DIM))
    wanted = () if isinstance(q, Categorical) else (size,)
    assert q.batch_shape == (num_data,) and q.event_shape == wanted


@pytest.mark.parametrize("full", [False, True])
def test_free_gaussian_starts_at_the_standard_normal(full):
    q, z = FreeGaussian(5, 2, full).double()(torch.zeros(5, X_DIM)), numbers(5, 2)
    close(q.log_prob(z), [oracles.diagonal_log_density(row, [0, 0], [1, 1]) for row in z.tolist()])


def test_free_categorical_starts_uniform():
    close(FreeCategorical(5, 3).double()(torch.zeros(5, X_DIM)).probs, torch.full((5, 3), 1 / 3, dtype=DOUBLE))


def test_free_bernoulli_starts_at_fair_coins():
    close(FreeBernoulli(5, 3).double()(torch.zeros(5, X_DIM)).mean, torch.full((5, 3), 0.5))


def test_free_diagonal_gaussian_has_the_density_of_its_parameters():
    proposal, z = randomize(FreeGaussian(5, 2)), numbers(5, 2)
    loc, scale = proposal.loc.tolist(), proposal.log_scale.exp().tolist()
    expected = [oracles.diagonal_log_density(*rows) for rows in zip(z.tolist(), loc, scale, strict=True)]
    close(proposal(z).log_prob(z), expected)


def test_free_full_gaussian_has_the_density_of_its_parameters():
    proposal, z = randomize(FreeGaussian(5, 3, full=True)), numbers(5, 3)
    expected = []
    for b in range(5):
        factor = [
            [
                math.exp(proposal.log_scale[b, i].item()) if i == j else proposal.lower[b, i, j].item() * (j < i)
                for j in range(3)
            ]
            for i in range(3)
        ]
        covariance = [[math.fsum(p * q for p, q in zip(r, s, strict=True)) for s in factor] for r in factor]
        expected.append(oracles.full_log_density(z[b].tolist(), proposal.loc[b].tolist(), covariance))
    close(proposal(z).log_prob(z), expected)


def test_free_categorical_has_the_probabilities_of_its_logits():
    proposal = randomize(FreeCategorical(5, 3))
    expected = [oracles.normalized_weights(row) for row in proposal.logits.tolist()]
    close(proposal(torch.zeros(5, X_DIM)).probs, expected)


def test_free_bernoulli_has_the_mass_of_its_logits():
    proposal, z = randomize(FreeBernoulli(5, 3)), (numbers(5, 3) > 0).double()
    expected = [oracles.bernoulli_log_mass(*rows) for rows in zip(z.tolist(), proposal.logits.tolist(), strict=True)]
    close(proposal(z).log_prob(z), expected)


def test_free_proposal_only_counts_the_data(free):
    proposal = randomize(free(5, 2))
    z = draw(proposal(torch.zeros(5, X_DIM)), 3)
    assert torch.equal(
        proposal(numbers(5, X_DIM)).log_prob(z), proposal(torch.zeros(5, 1, dtype=torch.float32)).log_prob(z)
    )


def trained(proposal):
    return [name for name, parameter in proposal.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("diagonal", ["loc", "log_scale"]),
        ("full", ["loc", "log_scale", "lower"]),
        ("categorical", ["logits"]),
        ("bernoulli", ["logits"]),
    ],
)
def test_every_trainable_parameter_of_a_free_proposal_gets_a_gradient_for_each_data_point(kind, names):
    proposal = randomize(FREE[kind](5, 2))
    z = draw(proposal(torch.zeros(5, X_DIM)), 3).detach()
    proposal(torch.zeros(5, X_DIM)).log_prob(z).sum().backward()
    assert trained(proposal) == names
    assert all((dict(proposal.named_parameters())[name].grad.flatten(1) != 0).any(1).all() for name in names)


def test_parameters_of_one_data_point_do_not_touch_the_law_of_another(free):
    proposal = randomize(free(5, 2))
    z = draw(proposal(torch.zeros(5, X_DIM)), 3).detach()
    proposal(torch.zeros(5, X_DIM)).log_prob(z)[:, 3].sum().backward()
    for name in trained(proposal):
        gradient = dict(proposal.named_parameters())[name].grad.flatten(1)
        assert (gradient != 0).any(1).tolist() == [False, False, False, True, False]


def test_only_the_triangle_below_the_diagonal_of_lower_is_used():
    proposal, z = randomize(FreeGaussian(5, 3, full=True)), numbers(5, 3)
    before = proposal(z).log_prob(z)
    proposal.lower.data += torch.ones(3, 3, dtype=DOUBLE).triu()
    assert torch.equal(before, proposal(z).log_prob(z))


def test_a_step_of_training_a_free_law_raises_its_exact_elbo(linear_gaussian, data):
    x, proposal = data(linear_gaussian), randomize(FreeGaussian(5, 2, full=True))
    before = exact_elbo(linear_gaussian, x, proposal(x))
    before.sum().backward()
    for name in trained(proposal):
        parameter = dict(proposal.named_parameters())[name]
        parameter.data += 1e-4 * parameter.grad
    assert (exact_elbo(linear_gaussian, x, proposal(x)) > before).all()


def test_free_proposal_survives_saving_and_loading(free):
    proposal, other = randomize(free(5, 2)), free(5, 2).double()
    other.load_state_dict(proposal.state_dict())
    z = draw(proposal(torch.zeros(5, X_DIM)), 3)
    assert torch.equal(proposal.law().log_prob(z), other.law().log_prob(z))


@pytest.mark.parametrize("num_points", [0, 1, 4, 6])
def test_free_proposal_refuses_another_number_of_data_points(num_points, free):
    with pytest.raises(ValueError, match=f"x must hold the 5 data points .* got {num_points}"):
        free(5, 2)(torch.zeros(num_points, X_DIM))


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)])
def test_free_proposal_refuses_counts_that_are_not_positive_ints(value, error, free):
    with pytest.raises(error, match="num_data"):
        free(value, 2)
    with pytest.raises(error, match="size"):
        free(5, value)


# encoders


class Fixed(nn.Module):
    """A network that returns given numbers."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output


def test_gaussian_encoder_splits_its_network_into_means_and_log_standard_deviations():
    q = GaussianEncoder(Fixed(torch.tensor([[1.0, 2.0, 0.0, math.log(3.0)]], dtype=DOUBLE)))(torch.zeros(1, X_DIM))
    close(q.mean, [[1.0, 2.0]])
    close(q.stddev, [[1.0, 3.0]])


@pytest.mark.parametrize(("num_points", "z_dim"), [(5, 2), (1, 2), (5, 1), (1, 1), (2, 2)])
def test_gaussian_encoder_has_one_law_per_data_point(num_points, z_dim):
    q = GaussianEncoder(mlp(X_DIM, [4], 2 * z_dim))(torch.zeros(num_points, X_DIM))
    assert isinstance(q, DiagonalGaussian) and q.batch_shape == (num_points,) and q.event_shape == (z_dim,)


def test_gaussian_encoder_computes_each_law_from_its_own_data_point():
    encoder, x = GaussianEncoder(mlp(X_DIM, [4], 4)).double(), numbers(5, X_DIM)
    z = numbers(3, 5, 2)
    order = [3, 0, 4, 1, 2]
    close(encoder(x[order]).log_prob(z[:, order]), encoder(x).log_prob(z)[:, order].detach())


def test_gaussian_encoder_gives_every_parameter_of_its_network_a_gradient(data):
    model = GaussianLatentModel(2, nn.Linear(2, X_DIM)).double()
    encoder = GaussianEncoder(mlp(X_DIM, [4], 4)).double()
    q = encoder(numbers(5, X_DIM))
    (q.log_prob(draw(q, 3)) - model.log_prior(draw(q, 3))).sum().backward()
    assert all((parameter.grad != 0).any() for parameter in encoder.parameters())


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_gaussian_encoder_refuses_an_odd_number_of_outputs(num_outputs):
    with pytest.raises(ValueError, match=rf"network must return 2 z_dim columns, got \(5, {num_outputs}\)"):
        GaussianEncoder(mlp(X_DIM, [4], num_outputs))(torch.zeros(5, X_DIM))


@pytest.mark.parametrize("log_scale", [-800.0, math.nan])
def test_gaussian_encoder_refuses_a_standard_deviation_that_is_not_above_0(log_scale):
    with pytest.raises(ValueError, match="scale must be above 0, got"):
        GaussianEncoder(Fixed(torch.tensor([[1.0, log_scale]], dtype=DOUBLE)))(torch.zeros(1, X_DIM))


# detached


LAWS = {
    "diagonal": lambda a: DiagonalGaussian(a, (0.3 * a).exp()),
    "full": lambda a: FullGaussian(a, torch.diag_embed((0.3 * a).exp()) + (a[..., None] * a[..., None, :]).tril(-1)),
    "bernoulli": BernoulliVector,
    "categorical": lambda a: Categorical(logits=a),
}


@pytest.fixture(params=LAWS)
def law(request):
    return LAWS[request.param]


def test_detached_law_is_of_the_same_kind_and_shape(law):
    q = law(numbers(5, 3).requires_grad_())
    cut = detached(q)
    assert type(cut) is type(q) and cut.batch_shape == q.batch_shape and cut.event_shape == q.event_shape


def test_detached_law_has_the_same_log_prob(law):
    q = law(numbers(5, 3).requires_grad_())
    z = draw(q, 4).detach()
    close(detached(q).log_prob(z), q.log_prob(z).detach())


def test_log_prob_of_a_detached_law_has_no_gradient_in_its_parameters(law):
    q = law(numbers(5, 3).requires_grad_())
    assert not detached(q).log_prob(draw(q, 4).detach()).requires_grad


@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_gradient_through_z_survives_detaching_the_law(kind):
    parameter = numbers(5, 3).requires_grad_()
    q = LAWS[kind](parameter)
    z = q.transport(numbers(4, 5, 3, seed=1))
    (through_z,) = torch.autograd.grad(detached(q).log_prob(z).sum(), parameter, retain_graph=True)
    (total,) = torch.autograd.grad(q.log_prob(z).sum(), parameter, retain_graph=True)
    (score_part,) = torch.autograd.grad(q.log_prob(z.detach()).sum(), parameter)
    close(through_z, (total - score_part).detach(), rtol=1e-10)
    assert (through_z != 0).all()


def test_detaching_leaves_the_law_itself_trainable(law):
    parameter = numbers(5, 3).requires_grad_()
    q = law(parameter)
    z = draw(q, 4).detach()
    detached(q)
    assert (torch.autograd.grad(q.log_prob(z).sum(), parameter)[0] != 0).any()


def test_detached_prior_proposal_works_for_every_model(model, data):
    q = prior_proposal(model)(data(model))
    assert not detached(q).log_prob(draw(q, 3).detach()).requires_grad


def test_detached_keeps_states_of_probability_zero():
    q = Categorical(logits=torch.tensor([[0.0, -math.inf, 1.0]], requires_grad=True))
    assert detached(q).log_prob(torch.tensor([1])).item() == -math.inf


@pytest.mark.parametrize(
    "q", [Normal(0.0, 1.0), Independent(Normal(torch.zeros(5, 2), 1.0), 1)], ids=["flat", "vector"]
)
def test_detached_refuses_a_law_that_is_not_the_librarys(q):
    with pytest.raises(ValueError, match="q must be a Gaussian, BernoulliVector or Categorical law, got "):
        detached(q)
