"""Check a reader's answer to an exercise, and say what is wrong with it rather than what is right."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def check_answer(
    answer: Callable,
    reference: Callable,
    cases: Sequence[tuple],
    *,
    wrong: dict[str, Callable] | None = None,
    tolerance: float = 1e-4,
) -> bool:
    """Compare a reader's function with a reference on several inputs, print one line, and return whether they agree.

    Args:
        answer: the reader's function. An answer of ``...`` or None counts as not started.
        reference: a right answer.
        cases: argument tuples to try.
        wrong: hint -> a usual wrong answer; where the reader's values equal that answer's, the hint is printed.
        tolerance: largest difference allowed, absolute plus relative.

    Returns:
        True if every case agrees.

    >>> check_answer(lambda a: a + a, lambda a: 2 * a, [(torch.tensor(3.0),)])
    Right.
    True
    >>> hints = {"You forgot the factor 2.": lambda a: a}
    >>> check_answer(lambda a: a, lambda a: 2 * a, [(torch.tensor(3.0),)], wrong=hints)
    Not yet. You forgot the factor 2.
    False
    """
    for case in cases:
        got, wanted = answer(*case), reference(*case)
        if got is None or got is ...:
            print("Not started: replace the dots.")
            return False
        got = torch.as_tensor(got)
        if got.shape != wanted.shape:
            print(f"Not yet. The answer should have shape {tuple(wanted.shape)}, yours has {tuple(got.shape)}.")
            return False
        if not _close(got, wanted, tolerance):
            hints = [hint for hint, function in (wrong or {}).items() if _close(got, function(*case), tolerance)]
            print(
                "Not yet. " + (hints[0] if hints else f"The first wrong value: {_first_wrong(got, wanted, tolerance)}.")
            )
            return False
    print("Right.")
    return True


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    b = torch.as_tensor(b)
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance)


def _first_wrong(got: Tensor, wanted: Tensor, tolerance: float) -> str:
    got, wanted = got.double().flatten(), wanted.double().flatten()
    index = int((~torch.isclose(got, wanted, rtol=tolerance, atol=tolerance)).nonzero()[0])
    return f"got {got[index].item():.5g}, it should be {wanted[index].item():.5g}"
