"""Where a loader stands, as JSON: of an iterator of grain's, or of a loader with `state_dict`.

grain's iterators have `get_state` and `set_state`. A loader with `state_dict` and `load_state_dict`, as
torchdata's `StatefulDataLoader`, says where its newest pass stands, and begins its next pass where it was
told. What it says may hold arrays, tensors and bytes. Next file to read: `loader.py`.
"""

from __future__ import annotations

import base64
import json
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pcflax.errors import CheckpointWarning


def is_stateful(loader: Any) -> bool:
    """Return whether the loader itself, and not its iterator, keeps its place."""
    return all(hasattr(loader, name) for name in ("state_dict", "load_state_dict"))


def state_of(loader: Any, iterator: Iterator[Any]) -> str | None:
    """Return where this newest iterator of a loader stands; None where neither says.

    Raises:
        TypeError: where `state_dict` holds what is neither number, string, bytes, array, tensor, list nor
            dictionary.
    """
    if is_stateful(loader):
        generator = getattr(loader, "generator", None)  # moves on where a new pass begins
        drawn = None if generator is None else generator.get_state()
        return json.dumps(_plain({"loader": loader.state_dict(), "generator": drawn}))
    if not hasattr(iterator, "get_state"):
        return None
    state: Any = iterator.get_state()  # type: ignore[attr-defined]
    return state.decode() if isinstance(state, bytes) else json.dumps(state)


def open_at(loader: Any, state: str, name: str) -> Iterator[Any]:
    """Return a new iterator of a stateful loader, where one stood that said this.

    Warns:
        CheckpointWarning: where a sampler of torch's own draws the order, which no state holds.
    """
    sampler = getattr(loader, "sampler", None)
    if type(sampler).__module__ == "torch.utils.data.sampler" and hasattr(sampler, "generator"):
        warnings.warn(
            f"'{name}' keeps no place in the order of its {type(sampler).__name__}, so training does not go "
            f"on as the uninterrupted run; give shuffle=True, or a sampler with state_dict",
            CheckpointWarning,
            stacklevel=7,
        )
    stored = _built(json.loads(state))
    loader.load_state_dict(stored["loader"])
    iterator = iter(loader)
    if stored["generator"] is not None:
        loader.generator.set_state(stored["generator"])
    return iterator


def set_state(iterator: Any, state: str) -> None:
    """Take an iterator of grain's where one stood that said this."""
    in_bytes = isinstance(iterator.get_state(), bytes)  # that of grain.DataLoader
    iterator.set_state(state.encode() if in_bytes else json.loads(state))


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")  # nobody has a tensor of a library that is not imported
    return torch is not None and isinstance(value, torch.Tensor)


def _plain(value: Any) -> Any:
    """Return what JSON can hold; all but numbers and strings as [kind, content]."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return ["dict", [[_plain(key), _plain(each)] for key, each in value.items()]]
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return [kind, [_plain(each) for each in value]]
    if isinstance(value, bytes):
        return ["bytes", base64.b64encode(value).decode()]
    if _is_tensor(value):
        return ["tensor", _plain(value.numpy())]
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
        content = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return ["array", [value.dtype.str, list(value.shape), content]]
    raise TypeError(
        f"the state_dict() of a loader holds one {type(value).__name__}, which no checkpoint can; give "
        f"numbers, strings, bytes, arrays, tensors, lists and dictionaries"
    )


def _built(value: Any) -> Any:
    """Return what `_plain` was given."""
    if not isinstance(value, list):
        return value
    kind, content = value
    if kind == "dict":
        return {_built(key): _built(each) for key, each in content}
    if kind in ("tuple", "list"):
        return (tuple if kind == "tuple" else list)(map(_built, content))
    if kind == "bytes":
        return base64.b64decode(content)
    if kind == "tensor":
        return sys.modules["torch"].from_numpy(_built(content))
    dtype, shape, data = content
    return np.frombuffer(base64.b64decode(data), dtype).reshape(shape).copy()
