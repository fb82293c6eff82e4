"""What a batch has to be: floating arrays (or tokens) with one batch size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from .clamps import as_clamp


def check_batch(
    inputs: Any,
    targets: Any,
    clamps: Mapping[str, Any] | None = None,
    *,
    integers: bool = False,
) -> int:
    """Refuse what is not a batch of floating arrays with one batch size; return that size.

    With `integers`, inputs may be integers, too.

    Raises:
        TypeError: for a dtype that is not floating.
        ValueError: for missing axes, batch sizes that differ, an empty batch, or neither array.
    """
    sizes = {}
    roles = []
    for role, value in (("inputs", inputs), ("targets", targets)):
        several = value.items() if isinstance(value, Mapping) else [("", value)]
        roles += [(role, f"{role} '{name}'" if name else role, array) for name, array in several]
    for role, title, array in roles:
        if array is None:
            continue
        dtype = getattr(array, "dtype", None)
        tokens = integers and role == "inputs" and dtype is not None
        if dtype is None or not (
            jnp.issubdtype(dtype, jnp.floating) or (tokens and jnp.issubdtype(dtype, jnp.integer))
        ):
            kind = type(array).__name__ if dtype is None else dtype
            remedy = (
                "make them one-hot: jax.nn.one_hot(labels, num_classes)"
                if role == "targets"
                else "cast them: inputs.astype(jnp.float32)"
            )
            raise TypeError(f"expected {title} of a floating dtype, got {kind}; {remedy}")
        if array.ndim < 2:
            raise ValueError(
                f"expected {title} of shape (batch, features), got {array.shape}; a single example "
                f"needs a batch axis: {role}[None]"
            )
        sizes[title] = array.shape[0]
    if clamps is not None and not isinstance(clamps, Mapping):
        raise TypeError(
            f"expected clamps as {{layer name: value or pc.Clamp(value, mask)}}, got "
            f"{type(clamps).__name__}"
        )
    for name, clamp in (clamps or {}).items():
        sizes[f"the clamp of '{name}'"] = as_clamp(name, clamp).value.shape[0]
    if not sizes:
        raise ValueError("inputs and targets are both None, so the batch size is unknown; give one")
    (first, batch_size), *others = sizes.items()
    for role, size in others:
        if size != batch_size:
            raise ValueError(
                f"{first} have batch size {batch_size} but {role} {size}; give one "
                f"{'target' if role == 'targets' else 'row'} for each "
                f"{'input' if first == 'inputs' else 'example'}"
            )
    if batch_size == 0:
        raise ValueError("expected at least one example, got an empty batch")
    return batch_size
