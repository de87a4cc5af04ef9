"""Check a reader's answer to an exercise, and say what is wrong with it rather than what is right."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lvmlib.contracts import describe
from lvmlib.teaching.answers import EXERCISES

NOT_STARTED = "Not started: replace the dots."


def check(number: str, answer: object) -> bool:
    """Compare a reader's function with the reference of an exercise, print one line, and return whether they agree.

    References, inputs and hints stand in `lvmlib.teaching.answers`, where nobody sees them by accident.

    Args:
        number: the exercise, such as ``"5.2"``.
        answer: the reader's function; see `check_answer` for what is printed.

    Returns:
        True if the answer agrees with the reference on every input.

    Raises:
        ValueError: there is no code exercise of this number.

    >>> check("5.2", lambda log_p, best_elbo, encoder_elbo: ...)
    Not started: replace the dots.
    False
    >>> check("5.2", lambda log_p, best_elbo, encoder_elbo: log_p - encoder_elbo)
    Not yet. That is the total gap: it is not split.
    False
    """
    if number not in EXERCISES:
        raise ValueError(f"number must be one of {', '.join(map(repr, EXERCISES))}, got {describe(number)}")
    exercise = EXERCISES[number]
    return check_answer(answer, exercise.reference, exercise.cases, wrong=exercise.wrong, tolerance=exercise.tolerance)


def check_answer(
    answer: object,
    reference: Callable,
    cases: Sequence[tuple],
    *,
    wrong: Mapping[str, Callable] | None = None,
    tolerance: float = 1e-4,
) -> bool:
    """Compare a reader's function with a reference on several inputs, print one line, and return whether they agree.

    The answer sees copies of the inputs and a random state of its own: it can change neither for what comes after.
    An answer that raises is not right; the error is told in the line, not raised.

    Args:
        answer: the reader's function. An answer of ``...`` or None, or that returns one, counts as not started.
        reference: a right answer, which returns tensors.
        cases: argument tuples to try, at least one.
        wrong: hint -> a usual wrong answer; the hint is printed where the reader's values equal that answer's in the
            first case that is not right.
        tolerance: largest difference allowed, absolute plus relative.

    Returns:
        True if every case agrees.

    Raises:
        ValueError: there is no case.

    >>> check_answer(lambda a: a + a, lambda a: 2 * a, [(torch.tensor(3.0),)])
    Right.
    True
    >>> hints = {"You forgot the factor 2.": lambda a: a}
    >>> check_answer(lambda a: a, lambda a: 2 * a, [(torch.tensor(3.0),)], wrong=hints)
    Not yet. You forgot the factor 2.
    False
    """
    if not cases:
        raise ValueError("cases must hold at least one tuple of arguments, got none")
    with torch.random.fork_rng(devices=[]):
        fault = _fault(answer, reference, cases, wrong or {}, tolerance)
    print(fault or "Right.")
    return not fault


def _fault(
    answer: object, reference: Callable, cases: Sequence[tuple], wrong: Mapping[str, Callable], tolerance: float
) -> str:
    """Return the line that says what is wrong with an answer, empty if nothing is."""
    if answer is None or answer is ...:
        return NOT_STARTED
    if not callable(answer):
        return f"Not yet. Pass the function itself, not its value (a {type(answer).__name__})."
    for done, case in enumerate(cases):
        wanted = _value(reference, case)
        try:
            got = answer(*_copy(case))
        except Exception as error:
            message = str(error).strip().partition("\n")[0]
            return f"Not yet. Your function raises {type(error).__name__}{': ' if message else ''}{message}"
        if got is None or got is ...:
            return NOT_STARTED
        shape = f"shape {tuple(wanted.shape)}"
        try:
            got = _plain(got)
        except (TypeError, ValueError, RuntimeError):
            return f"Not yet. The answer should be a tensor of {shape}, yours is a {type(got).__name__}."
        if _close(got, wanted, tolerance):
            continue
        for hint, function in wrong.items():
            was_right = all(_close(_value(function, c), _value(reference, c), tolerance) for c in cases[:done])
            # NaN equals NaN here: to get one is a usual mistake
            if was_right and _close(got, _value(function, case), tolerance, equal_nan=True):
                return f"Not yet. {hint}"
        if got.shape != wanted.shape:
            return f"Not yet. The answer should have {shape}, yours has {tuple(got.shape)}."
        return f"Not yet. The first wrong value: {_first_wrong(got, wanted, tolerance)}."
    return ""


def _copy(case: tuple) -> tuple:
    """Copy the tensors among the arguments, so that an answer that works in place changes no other's."""
    return tuple(a.detach().clone().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a for a in case)


def _plain(value: object) -> Tensor:
    """Return a number, a list or a tensor as float64 without gradient."""
    return torch.as_tensor(value).detach().cpu().double()


def _value(function: Callable, case: tuple) -> Tensor:
    return _plain(function(*_copy(case)))


def _close(a: Tensor, b: Tensor, tolerance: float, equal_nan: bool = False) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=equal_nan)


def _first_wrong(got: Tensor, wanted: Tensor, tolerance: float) -> str:
    index = int((~torch.isclose(got, wanted, rtol=tolerance, atol=tolerance)).flatten().nonzero()[0])
    return f"got {got.flatten()[index].item():.5g}, it should be {wanted.flatten()[index].item():.5g}"
