"""Argument checks: a violated annotation becomes an error that names the argument, what came and what is allowed."""

import math
import subprocess
import sys

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from lvmlib import contracts


@contracts.checked
def scaled(a: Float[Tensor, "k b"], c: Float[Tensor, " b"] | None = None, *, factor: float = 1.0):
    """Multiply."""
    return a * (1.0 if c is None else c) * factor


class Holder:
    @contracts.checked
    def method(self, a: Float[Tensor, " d"]):
        return a


def test_checked_lets_legal_arguments_through():
    assert scaled(torch.ones(2, 3), torch.ones(3), factor=2.0).sum() == 12


def test_what_was_accepted_once_is_not_looked_at_again_and_what_was_not_is():
    looked = []

    meta = type(Float[Tensor, "k b"])
    assert scaled(torch.ones(5, 7)).sum() == scaled(torch.ones(5, 7)).sum() == 35
    known, meta.__instancecheck__ = meta.__instancecheck__, lambda *_: looked.append(1) or True
    try:
        scaled(torch.ones(5, 7))
        assert not looked
        scaled(torch.ones(5, 8))
        assert looked
    finally:
        meta.__instancecheck__ = known
    for bad in (torch.ones(5), torch.ones(5, 7, dtype=torch.int64), [[1.0]]):
        with pytest.raises(ValueError, match="a must be"):
            scaled(bad)


def test_checked_leaves_name_and_docstring():
    assert (scaled.__name__, scaled.__doc__) == ("scaled", "Multiply.")


@pytest.mark.parametrize(
    ("value", "came"),
    [
        (torch.ones(3), r"\(3,\) torch.float32"),
        (torch.ones(3, 2, dtype=torch.int32), r"\(3, 2\) torch.int32"),
        (torch.ones(3, 2, dtype=torch.bool), r"\(3, 2\) torch.bool"),
        (2.5, r"float 2.5"),
        ("text", r"str 'text'"),
    ],
)
def test_checked_names_argument_what_came_and_what_is_allowed(value, came):
    with pytest.raises(ValueError, match=r"scaled: a must be Float\[Tensor, 'k b'\], got " + came):
        scaled(value)


def test_checked_reports_the_sizes_that_other_arguments_give():
    with pytest.raises(ValueError, match=r"c must be .* got \(4,\) torch.float32 .*other arguments give b = 3"):
        scaled(torch.ones(2, 3), torch.ones(4))


def test_checked_refuses_a_size_1_where_another_argument_gives_3():
    with pytest.raises(ValueError, match="c must be"):
        scaled(torch.ones(2, 3), torch.ones(1))


def test_checked_sees_keyword_arguments():
    with pytest.raises(ValueError, match="a must be"):
        scaled(c=torch.ones(3), a=torch.ones(3))


def test_checked_checks_methods_without_checking_self():
    with pytest.raises(ValueError, match=r"Holder.method: a must be Float\[Tensor, 'd'\], got \(1, 2\)"):
        Holder().method(torch.ones(1, 2))


def test_checked_forgets_sizes_between_calls():
    assert scaled(torch.ones(2, 3)).shape == (2, 3)
    assert scaled(torch.ones(5, 4)).shape == (5, 4)


def test_message_stays_short_for_long_input():
    with pytest.raises(ValueError, match="a must be") as caught:
        scaled([0.0] * 100_000)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("value", [1, 7])
def test_check_count_accepts(value):
    contracts.check_count("num_samples", value)


@pytest.mark.parametrize("value", [0, -3])
def test_check_count_refuses_below_minimum(value):
    with pytest.raises(ValueError, match=f"num_samples must be at least 1, got {value}"):
        contracts.check_count("num_samples", value)


@pytest.mark.parametrize("value", [True, 2.0, "3", None])
def test_check_count_refuses_what_is_not_an_int(value):
    with pytest.raises(TypeError, match=f"num_samples must be an int, got {type(value).__name__} {value!r}"):
        contracts.check_count("num_samples", value)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, torch.tensor([1.0, 0.0])])
def test_check_positive_refuses(value):
    with pytest.raises(ValueError, match="scale must be finite and above 0, got"):
        contracts.check_positive("scale", value)


def test_check_finite_gives_number_and_first_index():
    with pytest.raises(ValueError, match=r"x must be finite, got 2 NaN or infinite entries, first at \[0, 1\]"):
        contracts.check_finite("x", torch.tensor([[0.0, math.nan], [math.inf, 1.0]]))


def run_python(code: str, *options: str) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    done = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_checks_hold_when_python_removes_asserts():
    code = "import torch, lvmlib\ntry: lvmlib.log_mean_exp(torch.zeros(3))\nexcept ValueError: print('refused')"
    assert run_python(code, "-O") == "refused"


def test_import_changes_no_global_state():
    code = """
import torch
def state():
    return (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), torch.initial_seed(),
            torch.get_rng_state().tolist(), torch.distributions.Distribution._validate_args)
torch.manual_seed(3)
before = state()
import lvmlib
print(before == state())
"""
    assert run_python(code) == "True"
