"""Vector-valued laws: densities against formulas, samplers against densities, event axes where they belong."""

import math

import pytest
import torch

from lvmlib import BernoulliVector, DiagonalGaussian, FullGaussian
from tests import oracles
from tests.conftest import numbers


def bernoulli(*batch):
    return BernoulliVector(2 * numbers(*batch, 3))


def diagonal(*batch):
    return DiagonalGaussian(numbers(*batch, 3), 0.3 + numbers(*batch, 3, seed=1).abs())


def full(*batch):
    factor = numbers(*batch, 3, 3, seed=1).tril(-1) + torch.diag_embed(0.3 + numbers(*batch, 3, seed=2).abs())
    return FullGaussian(numbers(*batch, 3), factor)


LAWS = [bernoulli, diagonal, full]
GAUSSIANS = [diagonal, full]


@pytest.mark.parametrize("batch", [(), (1,), (5,), (3, 1), (2, 5)])
@pytest.mark.parametrize("make", LAWS)
def test_event_axis_is_inside_the_law(make, batch):
    law = make(*batch)
    assert (law.batch_shape, law.event_shape) == (batch, (3,))


@pytest.mark.parametrize("make", LAWS)
def test_log_prob_sums_over_the_event_axis_only(make):
    assert make(5).log_prob(make(5).sample((2,))).shape == (2, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bernoulli_log_prob_equals_loops(dtype):
    law, x = BernoulliVector((2 * numbers(5, 3)).to(dtype)), (numbers(5, 3, seed=1) > 0).to(dtype)
    expected = [
        oracles.bernoulli_log_mass(*pair) for pair in zip(x.tolist(), law.base_dist.logits.tolist(), strict=True)
    ]
    torch.testing.assert_close(
        law.log_prob(x).tolist(), expected, rtol=1e-6 if dtype == torch.float32 else 1e-13, atol=0
    )


@pytest.mark.parametrize(("num_states", "num_points"), [(3, 5), (5, 5), (1, 5), (3, 1), (1, 1)])
def test_bernoulli_with_a_batch_axis_of_1_pairs_every_state_with_every_data_point(num_states, num_points):
    logits, x = 2 * numbers(num_states, 1, 3), (numbers(num_points, 3, seed=1) > 0).double()
    expected = [[oracles.bernoulli_log_mass(row, state) for row in x.tolist()] for state in logits[:, 0].tolist()]
    torch.testing.assert_close(BernoulliVector(logits).log_prob(x).tolist(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("logit", [0.0, 20.0, -20.0, 120.0, -120.0, 800.0, 1e5])
@pytest.mark.parametrize("pixel", [0.0, 1.0])
def test_bernoulli_log_prob_holds_at_extreme_logits(pixel, logit):
    law = BernoulliVector(torch.tensor([logit, 0.5], dtype=torch.float64))
    expected = oracles.bernoulli_log_mass([pixel, 1.0], [logit, 0.5])
    x = torch.tensor([pixel, 1.0], dtype=torch.float64)
    torch.testing.assert_close(law.log_prob(x).item(), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("axes", [(), (1,)], ids=["one law", "a batch of states"])
def test_bernoulli_log_prob_of_784_confident_pixels_keeps_its_digits_in_float32(axes):
    x, logits = [1.0] * 784, [12.0] * 784
    law = BernoulliVector(torch.full((*axes, *axes, 784), 12.0))
    value = law.log_prob(torch.ones(*axes, 784)).item()
    torch.testing.assert_close(value, oracles.bernoulli_log_mass(x, logits), rtol=0, atol=1e-4)


def test_bernoulli_masses_sum_to_1():
    x = torch.tensor(oracles.bits(3), dtype=torch.float64)
    torch.testing.assert_close(bernoulli().log_prob(x).exp().sum().item(), 1.0, rtol=1e-14, atol=0)


def test_bernoulli_gradient_agrees_with_finite_differences():
    x = (numbers(5, 3, seed=1) > 0).double()
    logits = numbers(2, 1, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: BernoulliVector(logits).log_prob(x), logits)


def test_bernoulli_log_probs_are_those_of_each_pixel_being_on_and_off():
    law = bernoulli(5)
    expected = [
        [[oracles.bernoulli_log_mass([x], [logit]) for x in (1.0, 0.0)] for logit in row]
        for row in law.base_dist.logits.tolist()
    ]
    torch.testing.assert_close(law.log_probs().tolist(), expected, rtol=1e-13, atol=0)


def test_bernoulli_entropy_is_the_sum_over_all_images():
    law, x = bernoulli(), torch.tensor(oracles.bits(3), dtype=torch.float64)
    log_p = law.log_prob(x)
    torch.testing.assert_close(law.entropy(), -(log_p.exp() * log_p).sum(), rtol=1e-13, atol=0)


def test_bernoulli_entropy_of_a_certain_bit_is_0_and_so_is_its_gradient():
    logits = torch.tensor([math.inf, -math.inf], dtype=torch.float64, requires_grad=True)
    value = BernoulliVector(logits).entropy()
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.item() == 0 and (gradient == 0).all()


def test_bernoulli_samples_follow_certain_logits():
    bits = (numbers(5, 3) > 0).double()
    assert torch.equal(BernoulliVector(1e6 * (2 * bits - 1)).sample((4,)), bits.expand(4, 5, 3))


def test_diagonal_gaussian_log_prob_equals_loops():
    law, z = diagonal(5), numbers(5, 3, seed=3)
    parts = zip(z.tolist(), law.mean.tolist(), law.stddev.tolist(), strict=True)
    expected = [oracles.diagonal_log_density(*part) for part in parts]
    torch.testing.assert_close(law.log_prob(z).tolist(), expected, rtol=1e-13, atol=0)


def test_full_gaussian_log_prob_equals_loops():
    law, z = full(5), numbers(5, 3, seed=3)
    covariance = law.scale_tril @ law.scale_tril.mT
    parts = zip(z.tolist(), law.loc.tolist(), covariance.tolist(), strict=True)
    expected = [oracles.full_log_density(*part) for part in parts]
    torch.testing.assert_close(law.log_prob(z).tolist(), expected, rtol=1e-11, atol=0)


def test_full_gaussian_with_a_diagonal_factor_is_the_diagonal_gaussian():
    law, z = diagonal(5), numbers(5, 3, seed=3)
    same = FullGaussian(law.mean, torch.diag_embed(law.stddev))
    torch.testing.assert_close(same.log_prob(z), law.log_prob(z), rtol=1e-13, atol=0)


@pytest.mark.parametrize("make", GAUSSIANS)
def test_transport_and_density_agree_by_change_of_variables(make):
    law, noise = make(), numbers(3, seed=3)
    jacobian = torch.autograd.functional.jacobian(law.transport, noise)
    expected = oracles.diagonal_log_density(noise.tolist(), [0.0] * 3, [1.0] * 3) - jacobian.det().abs().log().item()
    torch.testing.assert_close(law.log_prob(law.transport(noise)).item(), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("make", GAUSSIANS)
def test_transport_takes_samples_first(make):
    law, noise = make(5), numbers(2, 5, 3, seed=3)
    expected = torch.stack([make(5).transport(one) for one in noise])
    torch.testing.assert_close(law.transport(noise), expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("make", GAUSSIANS)
def test_transport_of_zero_noise_is_the_mean(make):
    assert torch.equal(make(5).transport(torch.zeros(5, 3, dtype=torch.float64)), make(5).mean)


@pytest.mark.parametrize("make", GAUSSIANS)
def test_sample_is_the_transport_of_standard_normal_noise(make):
    law = make(5)
    torch.manual_seed(7)
    sample = law.rsample((2,))
    torch.manual_seed(7)
    noise = torch.randn(2, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(sample, law.transport(noise), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("make", GAUSSIANS)
def test_transport_is_differentiable_in_the_mean(make):
    law = make(5)
    loc = law.mean.clone().requires_grad_()
    again = DiagonalGaussian(loc, law.stddev) if make is diagonal else FullGaussian(loc, law.scale_tril)
    (gradient,) = torch.autograd.grad(again.transport(numbers(2, 5, 3)).sum(), loc)
    assert torch.equal(gradient, torch.full_like(loc, 2.0))


@pytest.mark.parametrize("make", LAWS)
def test_expanded_law_has_the_same_density(make):
    law = make()
    expanded, z = law.expand((5,)), law.sample((5,))
    assert expanded.batch_shape == (5,)
    torch.testing.assert_close(expanded.log_prob(z), law.log_prob(z), rtol=1e-14, atol=0)


@pytest.mark.parametrize("make", LAWS)
def test_expanded_law_keeps_its_kind(make):
    assert type(make().expand((5,))) is type(make())


@pytest.mark.parametrize("make", GAUSSIANS)
def test_draws_of_an_expanded_law_differ_between_data_points(make):
    assert len(make().expand((5,)).rsample((2,)).reshape(-1, 3).unique(dim=0)) == 10


def test_only_gaussians_can_be_transported():
    assert [hasattr(make(), "transport") for make in LAWS] == [False, True, True]


@pytest.mark.parametrize("make", LAWS)
def test_kl_divergence_to_itself_is_0(make):
    torch.testing.assert_close(
        torch.distributions.kl_divergence(make(5), make(5)), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_diagonal_gaussian_refuses_a_scale_that_is_not_positive(scale):
    with pytest.raises(ValueError, match="scale"):
        DiagonalGaussian(torch.zeros(3), torch.tensor([1.0, scale, 1.0]))


def test_diagonal_gaussian_refuses_loc_and_scale_that_only_broadcast():
    with pytest.raises(ValueError, match="scale"):
        DiagonalGaussian(torch.zeros(5, 1), torch.ones(5))


def test_full_gaussian_refuses_a_singular_factor():
    with pytest.raises(ValueError, match="scale_tril"):
        FullGaussian(torch.zeros(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
