"""Functions of log w."""

import math

import pytest
import torch

from lvmlib import effective_sample_size, log_mean_exp, normalize_log_weights, pareto_k, resample
from tests import oracles
from tests.conftest import numbers

INF = math.inf
FUNCTIONS = [log_mean_exp, normalize_log_weights, effective_sample_size, pareto_k]
SMOOTH = FUNCTIONS[:3]
ORACLES = [
    (log_mean_exp, oracles.log_mean_exp),
    (normalize_log_weights, oracles.normalized_weights),
    (effective_sample_size, oracles.effective_sample_size),
]
COLUMNS = {
    "ordinary": [0.3, -1.2, 2.0],
    "one sample": [-3.7],
    "equal": [1.5] * 4,
    "+800": [800.0, 799.0, 801.5],
    "-800": [-800.0, -799.0, -801.5],
    "-1e5": [-1e5, -1e5 - 3, -1e5 + 0.5, -1e5],
    "800 against -800": [800.0, -800.0, -800.0],
    "some -inf": [-INF, 0.7, -INF, -0.1],
    "one left": [-INF, -900.0],
    "all -inf": [-INF, -INF, -INF],
}


def by_name(function):
    return getattr(function, "__name__", None)


def column(values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)[:, None]


@pytest.mark.parametrize("values", COLUMNS.values(), ids=COLUMNS)
@pytest.mark.parametrize(("function", "oracle"), ORACLES, ids=by_name)
def test_value_equals_decimal_reference(function, oracle, values):
    expected = torch.tensor(oracle(values), dtype=torch.float64)
    torch.testing.assert_close(function(column(values)).squeeze(-1).squeeze(), expected.squeeze(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("values", COLUMNS.values(), ids=COLUMNS)
@pytest.mark.parametrize(("function", "oracle"), ORACLES, ids=by_name)
def test_float32_value_equals_decimal_reference_of_the_rounded_input(function, oracle, values):
    log_w = column(values, torch.float32)
    expected = torch.tensor(oracle(log_w[:, 0].tolist()), dtype=torch.float32)
    torch.testing.assert_close(function(log_w).squeeze(-1).squeeze(), expected.squeeze(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(3, 5), (1, 5), (3, 1), (1, 1), (4, 4)])
@pytest.mark.parametrize(("function", "oracle"), ORACLES, ids=by_name)
def test_every_column_is_its_own_reference(function, oracle, shape):
    log_w = numbers(*shape)
    expected = torch.tensor([oracle(values) for values in log_w.T.tolist()], dtype=torch.float64)
    torch.testing.assert_close(function(log_w).movedim(-1, 0), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_dtype_is_kept(function, dtype):
    assert function(numbers(30, 2).to(dtype)).dtype == dtype


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_data_points_give_an_empty_result(function):
    assert function(torch.zeros(30, 0)).shape[-1] == 0


def test_one_sample_is_its_log_weight_bitwise():
    log_w = 100 * numbers(1, 5)
    assert torch.equal(log_mean_exp(log_w), log_w[0])


def test_mean_exp_of_weights_1_and_3_is_2():
    assert log_mean_exp(column([0.0, math.log(3.0)])).item() == pytest.approx(math.log(2.0), rel=1e-15)


@pytest.mark.parametrize("function", [log_mean_exp, effective_sample_size, pareto_k])
def test_order_of_samples_does_not_matter(function):
    log_w = 3 * numbers(30, 2)
    torch.testing.assert_close(function(log_w.flip(0)), function(log_w), rtol=1e-12, atol=0)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_order_of_data_points_is_the_order_of_results(function):
    log_w = 3 * numbers(30, 3)
    assert torch.equal(function(log_w[:, [2, 0, 1]]), function(log_w)[..., [2, 0, 1]])


@pytest.mark.parametrize("shift", [1000.0, -1000.0])
@pytest.mark.parametrize("function", FUNCTIONS[1:])
def test_scaling_all_weights_changes_nothing(function, shift):
    log_w = 3 * numbers(30, 2)
    torch.testing.assert_close(function(log_w + shift), function(log_w), rtol=1e-9, atol=0)


def test_scaling_all_weights_shifts_log_mean_exp():
    log_w = numbers(3, 5)
    torch.testing.assert_close(log_mean_exp(log_w + 1000.0), log_mean_exp(log_w) + 1000.0, rtol=1e-14, atol=0)


@pytest.mark.parametrize("view", ["transposed", "expanded", "strided"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_memory_layout_does_not_matter(function, view):
    base = numbers(40, 40)
    log_w = {"transposed": base.T, "expanded": base[:, :1].expand(40, 3), "strided": base[:, ::3]}[view]
    packed = log_w.clone(memory_format=torch.contiguous_format)
    torch.testing.assert_close(function(log_w), function(packed), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_input_is_not_modified(function):
    log_w = numbers(30, 3)
    log_w[0] = -INF
    before = log_w.clone()
    function(log_w)
    assert torch.equal(log_w, before)


@pytest.mark.parametrize("bad", [math.nan, INF])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_nan_and_plus_inf_are_refused_with_their_place(function, bad):
    log_w = numbers(30, 3)
    log_w[4, 2] = bad
    with pytest.raises(ValueError, match=rf"log_w must be finite or -inf, got 1 .* {bad} at sample 4 of data point 2"):
        function(log_w)


@pytest.mark.parametrize("function", SMOOTH)
def test_no_samples_are_refused(function):
    with pytest.raises(ValueError, match=r"log_w must hold at least 1 sample \(num_samples >= 1\), got shape \(0, 3\)"):
        function(torch.zeros(0, 3))


@pytest.mark.parametrize("shape", [(3,), (), (2, 3, 4)])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_other_ranks_are_refused(function, shape):
    with pytest.raises(ValueError, match=rf"{function.__name__}: log_w must be Float\[Tensor, 'k b'\], got \("):
        function(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_integers_are_refused(dtype):
    with pytest.raises(ValueError, match=f"log_w must be Float.*got .* {dtype}"):
        log_mean_exp(torch.zeros(3, 2, dtype=dtype))


def test_normalized_weights_sum_to_1_over_samples():
    torch.testing.assert_close(
        normalize_log_weights(50 * numbers(3, 5)).sum(0), torch.ones(5, dtype=torch.float64), rtol=1e-14, atol=0
    )


def test_gradient_of_log_mean_exp_is_the_normalized_weights():
    log_w = (100 * numbers(3, 5)).requires_grad_()
    (gradient,) = torch.autograd.grad(log_mean_exp(log_w).sum(), log_w)
    torch.testing.assert_close(gradient, normalize_log_weights(log_w.detach()), rtol=1e-13, atol=1e-300)


@pytest.mark.parametrize("function", SMOOTH)
def test_gradient_agrees_with_finite_differences(function):
    assert torch.autograd.gradcheck(function, numbers(4, 3).requires_grad_())


def test_second_derivative_agrees_with_finite_differences():
    assert torch.autograd.gradgradcheck(log_mean_exp, numbers(3, 2).requires_grad_())


def gradient_of(function, log_w):
    """Return the gradient of a fixed linear combination of the function's values."""
    log_w = log_w.clone().requires_grad_()
    value = function(log_w)
    return torch.autograd.grad((value * numbers(*value.shape, seed=5)).sum(), log_w)[0]


@pytest.mark.parametrize("function", SMOOTH)
def test_gradient_is_0_where_the_weight_is_0(function):
    log_w = numbers(3, 4)
    log_w[:, 1] = log_w[0, 2] = -INF
    assert (gradient_of(function, log_w)[log_w == -INF] == 0).all()


@pytest.mark.parametrize("function", SMOOTH)
def test_zero_weights_do_not_touch_the_gradient_of_other_data_points(function):
    log_w = numbers(3, 4)
    expected = gradient_of(function, log_w)[:, [0, 3]]
    log_w[:, 1] = log_w[0, 2] = -INF
    assert torch.equal(gradient_of(function, log_w)[:, [0, 3]], expected)


@pytest.mark.parametrize("function", SMOOTH)
def test_gradient_beside_a_zero_weight_agrees_with_finite_differences(function):
    def with_zero_weight(free):
        return function(torch.cat([free, free.new_full((1, 2), -INF)]))

    assert torch.autograd.gradcheck(with_zero_weight, numbers(3, 2).requires_grad_())


def test_all_weights_zero_give_minus_inf_no_weights_and_no_effective_samples():
    log_w = torch.full((3, 1), -INF)
    values = [
        log_mean_exp(log_w).item(),
        effective_sample_size(log_w).item(),
        normalize_log_weights(log_w).sum().item(),
    ]
    assert values == [-INF, 0.0, 0.0]


def test_zero_weights_still_count_as_samples():
    assert log_mean_exp(column([0.0, -INF, -INF, -INF])).item() == pytest.approx(-math.log(4), rel=1e-15)


@pytest.mark.parametrize("num_samples", [1, 3, 7, 1000])
def test_effective_sample_size_of_equal_weights_is_num_samples(num_samples):
    assert effective_sample_size(torch.full((num_samples, 1), 0.3)).item() == num_samples


def test_effective_sample_size_never_leaves_1_to_num_samples():
    spread = 10.0 ** torch.linspace(-7, 3, 2000, dtype=torch.float64)
    size = effective_sample_size((numbers(7, 2000) * spread).float())
    assert size.min() >= 1 and size.max() <= 7 * (1 + 1e-6)  # rounding in float32


# Pareto k


def quantiles(num_samples):
    return (torch.arange(num_samples, dtype=torch.float64) + 0.5) / num_samples


@pytest.mark.parametrize("k", [0.2, 0.5, 0.8, 1.2])
def test_pareto_k_of_pareto_quantiles_is_their_tail_index(k):
    assert pareto_k(-k * quantiles(10_000).log()[:, None]).item() == pytest.approx(k, abs=0.05)


@pytest.mark.parametrize(("width", "expected"), [(0.5, 0.75), (0.8, 0.36), (0.7, 0.51)])
def test_pareto_k_of_a_narrow_gaussian_proposal_is_1_minus_variance_ratio(width, expected):
    z = width * torch.special.ndtri(quantiles(1_000_000))
    log_w = -0.5 * z.square() * (1 - 1 / width**2)
    assert pareto_k(log_w[:, None]).item() == pytest.approx(expected, abs=0.12)


def test_pareto_k_is_negative_for_a_wide_gaussian_proposal():
    z = 2 * torch.special.ndtri(quantiles(10_000))
    assert pareto_k((-0.5 * z.square() * (1 - 1 / 4))[:, None]).item() < 0


@pytest.mark.parametrize("num_samples", [25, 26, 100, 225, 1000])
def test_pareto_k_equals_the_fit_written_as_loops(num_samples):
    log_w = 2 * numbers(num_samples, 1)
    weights = sorted(math.exp(value - log_w.max().item()) for value in log_w[:, 0].tolist())
    tail_size = math.ceil(min(0.2 * num_samples, 3 * math.sqrt(num_samples)))
    excess = [weight - weights[-tail_size - 1] for weight in weights[-tail_size:]]
    assert pareto_k(log_w).item() == pytest.approx(oracles.generalized_pareto_shape(excess), rel=1e-9)


@pytest.mark.parametrize("level", [0.0, -1e5, 800.0])
def test_pareto_k_of_constant_weights_is_minus_inf(level):
    assert pareto_k(torch.full((30, 1), level)).item() == -INF


def test_pareto_k_of_fewer_than_5_positive_weights_is_plus_inf():
    log_w = torch.full((100, 1), -INF)
    log_w[:4, 0] = torch.tensor([0.0, 1.0, 2.0, 3.0])
    assert pareto_k(log_w).item() == INF


def test_pareto_k_is_finite_where_only_half_of_the_tail_is_above_0():
    log_w = torch.full((1000, 1), -INF, dtype=torch.float64)
    log_w[:50, 0] = -0.3 * quantiles(50).log()
    assert math.isfinite(pareto_k(log_w).item())


def test_pareto_k_of_all_zero_weights_is_not_nan():
    assert not pareto_k(torch.full((30, 2), -INF)).isnan().any()


def test_pareto_k_is_not_nan_where_most_weights_nearly_underflow():
    log_w = torch.cat([-torch.arange(10.0), -719 - 0.01 * torch.arange(90)]).double()[:, None]
    assert not pareto_k(log_w).isnan().any()


def test_pareto_k_does_not_call_three_giant_weights_harmless():
    log_w = torch.full((100, 1), -50.0)
    log_w[:3, 0] = torch.tensor([0.0, -1.0, -2.0])
    assert pareto_k(log_w).item() > 0.7


def test_pareto_k_reads_each_column_alone():
    log_w = torch.stack([numbers(30), torch.zeros(30), torch.full((30,), -INF), 3 * numbers(30, seed=1)], 1)
    alone = torch.cat([pareto_k(log_w[:, [b]]) for b in range(4)])
    torch.testing.assert_close(pareto_k(log_w), alone, rtol=0, atol=0)


def test_pareto_k_carries_no_gradient():
    assert not pareto_k(numbers(30, 2).requires_grad_()).requires_grad


@pytest.mark.parametrize("num_samples", [0, 1, 24])
def test_pareto_k_refuses_fewer_than_25_samples(num_samples):
    with pytest.raises(ValueError, match=f"log_w: pareto_k needs at least 25 samples, got {num_samples}"):
        pareto_k(torch.zeros(num_samples, 2))


def test_pareto_k_finds_no_tail_where_the_largest_weight_fills_it():
    log_w = torch.tensor([-20.0, 0.0, 1.0], dtype=torch.float64).repeat_interleave(torch.tensor([50, 150, 800]))
    assert pareto_k(log_w[:, None]).item() == -INF


@pytest.mark.parametrize("num_kept", [1, 2, 3, 7])
def test_resampling_picks_each_sample_by_its_share_rounded_and_on_average_exactly(all_uniform_numbers, num_kept):
    all_uniform_numbers()
    shares = torch.tensor([0.0, 0.5, 0.03, 0.0, 0.47], dtype=torch.float64)
    index = resample(shares.log()[:, None].expand(5, 10_000), num_kept)
    assert index.shape == (num_kept, 10_000)
    times = (index[..., None] == torch.arange(5)).sum(0)
    assert (times >= (num_kept * shares - 1e-9).floor()).all() and (times <= (num_kept * shares + 1e-9).ceil()).all()
    assert times.double().mean(0).tolist() == pytest.approx((num_kept * shares).tolist(), abs=2e-4)


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
def test_resampling_never_picks_a_sample_of_zero_weight(monkeypatch, number):
    monkeypatch.setattr(torch, "rand_like", lambda like: torch.full_like(like, number))
    assert set(resample(column([-INF, 3.0, -INF, 2.0, -INF]), 7).flatten().tolist()) == {1, 3}
    assert resample(column([-INF, -INF]), 2).flatten().tolist() == [0, 0]


def test_resampling_takes_no_gradient_and_refuses_what_no_law_is():
    assert not resample(column([0.0, 1.0]).requires_grad_(), 3).requires_grad
    with pytest.raises(ValueError, match="num_kept must be at least 1, got 0"):
        resample(column([0.0]), 0)
    with pytest.raises(ValueError, match="NaN"):
        resample(column([math.nan]), 1)
