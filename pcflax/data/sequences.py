"""Sequences as a data set: series of any length, or windows of long ones, (batch, time, *features).

One example is one sequence. Shorter ones are filled up with zeros, and a mask of the targets says to where
they go; what filled them up before is not looked at. Next file to read: `pcflax/networks/along.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pcflax.checks import expect_count

from .arrays import ArrayDataset, from_arrays


def from_sequences(
    inputs: Any,
    targets: Any,
    *,
    batch_size: int,
    window: int | None = None,
    stride: int | None = None,
    horizon: int = 0,
    lengths: Any = None,
    clamps: Mapping[str, Any] | None = None,
    shuffle: bool = True,
    seed: int = 0,
    num_classes: int | None = None,
    name: str = "sequences",
) -> ArrayDataset:
    """Return batches of sequences of one's own.

    Args:
        inputs: (examples, time, *features), what is given at each step, or {name: array}; or None. A list of
            arrays (time, *features) where each sequence has its own length.
        targets: the same of what is to be explained or predicted at each step; integer labels (examples,
            time) where `num_classes` is given. None takes the inputs, with a horizon.
        batch_size: sequences in a batch, or windows.
        window: how many steps an example has, cut from the series; all of it unless given.
        stride: how far apart windows begin; `window` unless given, so that none overlap.
        horizon: how many steps ahead of the inputs the targets are: the target at t is that of t + horizon.
        lengths: (examples,), how many steps of each sequence count, from 1; what stands after them may be
            anything. All steps unless given.
        clamps: {name of a node: array along time}, what else is known, such as true states to compare with;
            with a horizon those of t + horizon, as targets.
        shuffle: whether each epoch has an order of its own.
        seed: of the shuffling.
        num_classes: of labels.
        name: what errors call the set.

    Raises:
        ValueError: for arrays without an axis of time, or of another number of sequences or steps than the
            others, lengths or a window that do not fit, or no targets to take.
        TypeError: for a tuple, as (values, mask) is: lengths say what is known.
        TypeError, ValueError: as for `from_arrays`.

    >>> import numpy as np, pcflax as pc
    >>> series = np.arange(20.0).reshape(1, 10, 2)
    >>> data = pc.data.from_sequences(series, None, horizon=1, window=3, batch_size=3, shuffle=False)
    >>> batch = next(iter(data))
    >>> batch.inputs.shape, batch.inputs[0, :, 0], batch.targets[0, :, 0]
    ((3, 3, 2), Array([0., 2., 4.], dtype=float32), Array([2., 4., 6.], dtype=float32))
    >>> series = [np.ones((4, 2)), np.ones((2, 2))]
    >>> next(iter(pc.data.from_sequences(None, series, batch_size=2, shuffle=False))).targets.mask[:, :, 0]
    Array([[ True,  True,  True,  True],
           [ True,  True, False, False]], dtype=bool)
    """
    horizon = expect_count("from_sequences", "horizon", horizon)
    if targets is None and clamps is None and not (horizon and inputs is not None):
        raise ValueError(
            f"'{name}' has no targets; give them, or a horizon of 1 or more, by which the inputs are to be "
            f"predicted"
        )
    targets = inputs if targets is None and horizon else targets
    parts: Any = {
        role: dict(value) if isinstance(value, Mapping) else {None: value}
        for role, value in (("inputs", inputs), ("targets", targets), ("clamps", clamps or {}))
        if value is not None
    }
    parts, given = _filled(parts, name)
    first = next(array for role in parts.values() for array in role.values())
    shape = first.shape[:2]
    ends = _lengths(lengths, given, shape, name) - horizon
    steps = shape[1] - horizon
    if steps < 1 or ends.min() < 1:
        raise ValueError(
            f"horizon {horizon} leaves no step of a sequence of '{name}' that has {min(ends) + horizon}; "
            f"give a smaller one"
        )
    size = steps if window is None else expect_count("from_sequences", "window", window, least=1)
    if size > steps:
        raise ValueError(
            f"window {size} is longer than the {steps} steps of '{name}'; give at most {steps}"
        )
    pace = size if stride is None else expect_count("from_sequences", "stride", stride, least=1)
    starts = np.arange(0, steps - size + 1, pace)
    rows, begins = (g.ravel() for g in np.meshgrid(np.arange(shape[0]), starts, indexing="ij"))
    there = begins < ends[rows]
    rows, begins = rows[there], begins[there]
    places = begins[:, None] + np.arange(size)
    known = places < ends[rows][:, None]

    def cut(array: np.ndarray, ahead: int) -> np.ndarray:
        found = array[rows[:, None], places + ahead]
        return np.where(known.reshape(*known.shape, *[1] * (found.ndim - 2)), found, 0)

    def masked(array: np.ndarray) -> Any:
        found = cut(array, horizon)
        if known.all():
            return found
        return found, known.reshape(*known.shape, *[1] * (found.ndim - 2))

    taken: dict[str, Any] = {
        role: {key: cut(a, 0) if role == "inputs" else masked(a) for key, a in arrays.items()}
        for role, arrays in parts.items()
    }
    alone = {role: own.get(None, own) for role, own in taken.items()}
    return from_arrays(
        alone.get("inputs"),
        alone.get("targets"),
        clamps=alone.get("clamps") or None,
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        num_classes=num_classes,
        name=name,
    )


def _filled(
    parts: Mapping[str, Mapping[str | None, Any]], name: str
) -> tuple[dict[str, dict[str | None, np.ndarray]], Any]:
    """Return the arrays, lists of sequences filled up, and the lengths of these."""
    found: dict[str, dict[str | None, np.ndarray]] = {}
    lengths, shapes = None, {}
    for role, arrays in parts.items():
        found[role] = {}
        for key, value in arrays.items():
            title = f"the {role}" + ("" if key is None else f" '{key}'")
            if isinstance(value, tuple):
                raise TypeError(
                    f"{title} of '{name}' are a tuple, expected an array, or a list of sequences; "
                    f"what is known of them is told by lengths, not by masks"
                )
            if isinstance(value, list):
                series = [np.asarray(one) for one in value]
                shapes_of_steps = {one.shape[1:] if one.ndim else None for one in series}
                if len(shapes_of_steps) != 1 or None in shapes_of_steps:
                    raise ValueError(
                        f"{title} of '{name}' are a list of sequences, which have to be of one shape but for "
                        f"their length; give arrays (time, features)"
                    )
                own = np.array([len(one) for one in series])
                if lengths is not None and not np.array_equal(lengths, own):
                    raise ValueError(
                        f"{title} of '{name}' have sequences of other lengths; give one length each"
                    )
                lengths = own
                shape = (len(series), own.max(), *series[0].shape[1:])
                filled = np.zeros(shape, np.result_type(*series))
                for row, one in zip(filled, series, strict=True):
                    row[: len(one)] = one
                value = filled
            array = np.asarray(value)
            if array.shape[:1] == (0,):
                raise ValueError(f"data set '{name}' is empty; expected at least one sequence")
            if array.ndim < (2 if np.issubdtype(array.dtype, np.integer) else 3):
                raise ValueError(
                    f"{title} of '{name}' have shape {array.shape}, a sequence without time; expected "
                    f"(examples, time, features)"
                )
            found[role][key], shapes[title] = array, array.shape[:2]
    (first, shape), *others = shapes.items()
    for title, other in others:
        if other != shape:
            raise ValueError(
                f"'{name}' has {shape} (sequences, steps) in {first} but {other} in {title}; give as many"
            )
    return found, lengths


def _lengths(
    lengths: Sequence[int] | None, given: np.ndarray | None, shape: tuple[int, int], name: str
) -> np.ndarray:
    """Return each sequence's number of steps, checked: at most those of lists of sequences."""
    most = np.full(shape[0], shape[1]) if given is None else given
    ends = most if lengths is None else np.asarray(lengths)
    if ends.shape != shape[:1] or not np.issubdtype(ends.dtype, np.integer):
        raise ValueError(
            f"'{name}' expected lengths of shape {shape[:1]}, one whole number a sequence, got {ends.dtype} "
            f"{ends.shape}"
        )
    if ends.min() < 1 or ends.max() > shape[1]:
        raise ValueError(
            f"'{name}' expected lengths from 1 to {shape[1]}, got {ends.min()} to {ends.max()}"
        )
    if (ends > most).any():
        row = int(np.argmax(ends > most))
        raise ValueError(
            f"sequence {row} of '{name}' has {most[row]} steps, got a length of {ends[row]}; give at most as "
            f"many as there are"
        )
    return ends
