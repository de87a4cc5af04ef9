"""Argument checks: what a public function accepts is written in its annotations, and this module executes them."""

import functools
import inspect
import reprlib
import typing

import torch
from jaxtyping import AbstractArray, jaxtyped

MOST_FORMS = 1000  # that a function remembers


def describe(value: object) -> str:
    """Say what came, in the form used by all error messages: shape and dtype of a tensor, else type and value."""
    if isinstance(value, torch.Tensor):
        return f"{tuple(value.shape)} {value.dtype}"
    return f"{type(value).__name__} {reprlib.repr(value)}"


def _arrays(annotation: object) -> list[type]:
    """Return the array annotations in `annotation`: itself, or the members of a union."""
    members = typing.get_args(annotation) or (annotation,)
    return [member for member in members if isinstance(member, type) and issubclass(member, AbstractArray)]


def _form(value: object) -> object:
    """Return all that the annotation of an array can depend on."""
    return (value.shape, value.dtype) if isinstance(value, torch.Tensor) else type(value)


def checked(function):
    """Turn a violated shape or dtype annotation of a public function into a ``ValueError`` that names the argument.

    >>> from lvmlib import log_mean_exp
    >>> log_mean_exp(torch.zeros(3))
    Traceback (most recent call last):
    ValueError: log_mean_exp: log_w must be Float[Tensor, 'k b'], got (3,) torch.float32
    """
    signature = inspect.signature(function)
    arrays = {name: _arrays(p.annotation) for name, p in signature.parameters.items() if _arrays(p.annotation)}
    accepted: set[tuple] = set()  # forms of arguments: a training calls with the same ones in every step

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        form = (*map(_form, args), *((name, _form(value)) for name, value in kwargs.items()))
        if form in accepted:
            return function(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        sizes: dict[str, int] = {}
        with jaxtyped("context"):
            for name, allowed in arrays.items():
                value = bound.arguments.get(name, signature.parameters[name].default)
                if not isinstance(value, signature.parameters[name].annotation):
                    raise ValueError(_message(function, name, allowed[0], value, sizes))
                if isinstance(value, torch.Tensor):
                    sizes.update(zip(allowed[0].dim_str.split(), value.shape, strict=False))
        if len(accepted) < MOST_FORMS:
            accepted.add(form)
        return function(*args, **kwargs)

    return wrapper


def _message(function, name: str, allowed: type, value: object, sizes: dict[str, int]) -> str:
    text = f"{function.__qualname__}: {name} must be {allowed.__name__}, got {describe(value)}"
    known = [f"{axis} = {sizes[axis]}" for axis in allowed.dim_str.split() if axis in sizes]
    return text + (f" (other arguments give {', '.join(known)})" if known else "")


def check_count(name: str, value: object, minimum: int = 1) -> None:
    """Refuse what is not an integer of at least `minimum`.

    Raises:
        TypeError: `value` is not an ``int``.
        ValueError: `value` is below `minimum`.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {describe(value)}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")


def check_positive(name: str, value: float | torch.Tensor) -> None:
    """Refuse a number or tensor that is not finite and above 0 everywhere (``ValueError``)."""
    tensor = torch.as_tensor(value)
    if not (torch.isfinite(tensor) & (tensor > 0)).all():
        raise ValueError(f"{name} must be finite and above 0, got {value}")


def check_finite(name: str, value: torch.Tensor) -> None:
    """Refuse a tensor with NaN or infinite entries (``ValueError`` with their number and the first index)."""
    bad = (~torch.isfinite(value)).nonzero()
    if len(bad):
        raise ValueError(f"{name} must be finite, got {len(bad)} NaN or infinite entries, first at {bad[0].tolist()}")
