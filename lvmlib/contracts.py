"""Argument checks: what a public function accepts is written in its annotations, and this module executes them."""

import functools
import inspect
import reprlib
import typing

import torch
from jaxtyping import AbstractArray, Float, Shaped, jaxtyped

USUAL_FLOATS = frozenset({torch.float32, torch.float64})


def describe(value: object) -> str:
    """Say what came, in the form used by all error messages: shape and dtype of a tensor, else type and value."""
    if isinstance(value, torch.Tensor):
        return f"{tuple(value.shape)} {value.dtype}"
    return f"{type(value).__name__} {reprlib.repr(value)}"


def _arrays(annotation: object) -> list[type]:
    """Return the array annotations in `annotation`: itself, or the members of a union."""
    members = typing.get_args(annotation) or (annotation,)
    return [member for member in members if isinstance(member, type) and issubclass(member, AbstractArray)]


def _plain(annotation: object) -> tuple[bool, tuple[str, ...]] | None:
    """Return whether an array is floating and the names of its axes, where names are all that its shape says."""
    if _arrays(annotation) != [annotation] or annotation.dtype not in (Float, Shaped):
        return None
    names = tuple(annotation.dim_str.split())
    plain = all(name.isidentifier() for name in names[:-1]) and names[-1:] != ("...",)
    return (annotation.dtype is Float, names) if plain and all(n.strip("*").isidentifier() for n in names) else None


def _fits(value: object, plain: tuple[bool, tuple[str, ...]], sizes: dict[str, object]) -> bool:
    """Return whether a tensor has the shape that the names ask for, given the sizes so far, which are added to."""
    floating, names = plain
    if not isinstance(value, torch.Tensor) or (floating and value.dtype not in USUAL_FLOATS):
        return False
    shape = tuple(value.shape)
    if names and names[-1][0] == "*" and len(shape) >= len(names) - 1:
        shape = (*shape[: len(names) - 1], shape[len(names) - 1 :])
    return len(shape) == len(names) and all(sizes.setdefault(name, size) == size for name, size in zip(names, shape))


def checked(function):
    """Turn a violated shape or dtype annotation of a public function into a ``ValueError`` that names the argument.

    >>> from lvmlib import log_mean_exp
    >>> log_mean_exp(torch.zeros(3))
    Traceback (most recent call last):
    ValueError: log_mean_exp: log_w must be Float[Tensor, 'k b'], got (3,) torch.float32
    """
    parameters = inspect.signature(function).parameters
    arrays = [
        (place, name, p.annotation) for place, (name, p) in enumerate(parameters.items()) if _arrays(p.annotation)
    ]
    allowed_arrays = {name: _arrays(annotation) for _, name, annotation in arrays}
    plain = [(place, name, _plain(annotation)) for place, name, annotation in arrays]

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        # legal arguments are told from their shapes in a few microseconds; jaxtyping, which takes a hundred, decides
        # about all others
        seen: dict[str, object] = {}
        if all(
            names is not None and _fits(args[place] if place < len(args) else kwargs.get(name), names, seen)
            for place, name, names in plain
        ):
            return function(*args, **kwargs)
        sizes: dict[str, int] = {}
        with jaxtyped("context"):
            # by hand, because `inspect.signature(…).bind` takes longer than all the checks
            for place, name, annotation in arrays:
                if place < len(args):
                    value = args[place]
                elif name in kwargs:
                    value = kwargs[name]
                else:
                    continue  # a default, or missing, which the call will say
                allowed = allowed_arrays[name]
                if not isinstance(value, annotation):
                    raise ValueError(_message(function, name, allowed[0], value, sizes))
                if isinstance(value, torch.Tensor):
                    sizes.update(zip(allowed[0].dim_str.split(), value.shape, strict=False))
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
