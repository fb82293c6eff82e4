"""A user's arrays, checked: what is known of each example, in the form in which it is stored.

Labels stay whole numbers and images may stay bytes, for the reader makes rows and scales inside the
compiled loop. Everything has one row for each example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pcflax.checks import did_you_mean, expect_count, expect_kind
from pcflax.layers import Clamp, Evidence
from pcflax.typing import PyTree


def check_examples(
    inputs: Any,
    targets: Any,
    clamps: Mapping[str, Any] | None = None,
    *,
    num_classes: int | Mapping[str, int] | None,
    name: str,
    integer_inputs: bool = False,
    weights: Any = None,
    roles: tuple[str, str] = ("inputs", "targets"),
) -> tuple[Evidence, Any]:
    """Return a user's arrays as they are stored, and the `num_classes` of their decoder.

    `roles` are what the sentences of a refusal call the two.
    """
    clamps = {} if clamps is None else clamps
    expect_kind(f"data set '{name}'", "clamps", clamps, Mapping, "{'hidden': (values, mask)}")
    if inputs is None and targets is None and not clamps:
        raise ValueError("inputs and targets are both None; give at least one")
    inputs = _each(roles[0], inputs, name, lambda what, x: _input(what, x, integer_inputs))
    widths = _widths(num_classes, targets, name)
    # with one position an example, labels (examples, 1) are at every position
    positions = any(
        leaf.shape[1] == 1 and (leaf.ndim > 2 or leaf.dtype == np.int32)
        for leaf in jax.tree.leaves(_values(inputs))
    )
    targets = _each(
        roles[1], targets, name, lambda what, y: _target(what, y, widths[what.key], positions)
    )
    classes = _each(
        roles[1], _values(targets), name, lambda what, y: _num_classes(what, y, widths[what.key])
    )
    if isinstance(classes, Mapping):
        classes = tuple((key, width) for key, width in classes.items() if width) or None
    labels_as_int32 = jax.tree.map(
        lambda y: y.astype(np.int32) if np.issubdtype(y.dtype, np.integer) else y, targets
    )
    held = _each("clamps", clamps, name, _clamp) or {}
    stored = Evidence(inputs, labels_as_int32, held, _weights(weights, name))
    lengths = {
        jax.tree_util.keystr(path, simple=True, separator=" "): len(leaf)
        for path, leaf in jax.tree.leaves_with_path(stored)
        if path[-1] != jax.tree_util.GetAttrKey("mask")  # which has the values' rows
    }
    if len(set(lengths.values())) > 1:
        told = " but ".join(f"{length} {title}" for title, length in lengths.items())
        raise ValueError(f"'{name}' has {told}; give one row of each for every example")
    return stored, classes


class _What(NamedTuple):
    """What a sentence is about: inputs, targets or clamps of a data set, and which of several."""

    role: str
    key: str | None
    name: str

    def __str__(self) -> str:
        key = "" if self.key is None else f" '{self.key}'"
        return f"the {self.role}{key} of '{self.name}'"


def _each(role: str, value: Any, name: str, check: Callable[[_What, Any], Any]) -> PyTree:
    """Return the checked array, or those of a dictionary that are given; None where there is none."""
    if isinstance(value, Mapping):
        return {
            key: check(_What(role, key, name), given)
            for key, given in value.items()
            if given is not None
        } or None
    return None if value is None else check(_What(role, None, name), value)


def is_image_bytes(array: np.ndarray) -> bool:
    """Return whether these are images of one byte a number, which are scaled to [0, 1]."""
    return array.dtype == np.uint8 and array.ndim > 2


def scale_of(images: PyTree) -> float:
    """Return the factor that takes stored images to [0, 1] where they are bytes."""
    images = _values(images)
    return 1 / 255 if isinstance(images, np.ndarray) and is_image_bytes(images) else 1.0


def are_labels(given: Any) -> bool:
    """Return whether these are whole numbers, one an example, or (labels, known).

    >>> import numpy as np
    >>> are_labels(np.arange(3)), are_labels((np.arange(3), np.arange(3) > 0)), are_labels(np.eye(3))
    (True, True, False)
    """
    array: Any = given[0] if isinstance(given, tuple) and len(given) == 2 else given
    return getattr(array, "ndim", 0) == 1 and jnp.issubdtype(array.dtype, np.integer)


def told(error: Exception) -> str:
    """Return what a foreign error says, in one line.

    >>> told(ValueError("bad jpeg\\nat 0x17")), told(StopIteration())
    ('ValueError: bad jpeg', 'StopIteration')
    """
    return f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")


def native(array: Any) -> np.ndarray:
    """Return a NumPy array in this machine's byte order, of a precision that jax has.

    >>> import numpy as np
    >>> native(np.array([1, 2], ">i4")).dtype == np.int32
    True
    """
    array = np.asarray(array)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:  # long doubles
        return array.astype(np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _as_numpy(what: _What, value: Any) -> np.ndarray:
    """Return a user's value as an array of numbers with at least one row."""
    if np.ma.is_masked(value):
        raise ValueError(
            f"{what} are a masked array, whose mask would be lost; drop these examples, or give "
            f"(values, mask), True where known"
        )
    try:
        array = native(value)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{what} are no array: {error}; give rows of one shape") from None
    if array.dtype.kind == "O" and all(isinstance(one, str) for one in array.flat):
        array = array.astype(str)
    if array.dtype.kind == "O":
        raise TypeError(
            f"{what} have dtype object, expected numbers of one kind; make them one array, with "
            f"np.stack(rows) or np.asarray(values, 'float32')"
        )
    if array.shape[:1] == (0,):
        raise ValueError(f"data set '{what.name}' is empty; expected at least one example")
    return array


def _input(what: _What, value: Any, integers: bool) -> Any:
    return _masked(what, value, lambda what, array: _whole_input(what, array, integers))


def _whole_input(what: _What, array: np.ndarray, integers: bool) -> np.ndarray:
    if what.key is not None:
        whole = np.issubdtype(array.dtype, np.integer)
        integers = whole and (integers or array.dtype != np.uint8)
    elif is_image_bytes(array) and not integers:
        return array.copy()
    return _integer(what, array) if integers else _floating(what, array)


def _target(what: _What, value: Any, width: int | None, positions: bool) -> Any:
    """Return integer labels, or floating targets."""
    return _masked(what, value, lambda what, array: _whole_target(what, array, width, positions))


def _whole_target(what: _What, array: np.ndarray, width: int | None, positions: bool) -> np.ndarray:
    if np.issubdtype(array.dtype, np.integer):
        if width is not None and array.ndim == 2 and array.shape[1] == 1 and not positions:
            array = array[:, 0]  # a column of labels, one for each example
        if array.ndim == 1 or (array.ndim == 2 and width is not None):
            return array
    if array.ndim == 1:
        raise ValueError(
            f"{what} have shape {array.shape} and dtype {array.dtype}; expected integer labels of that "
            f"shape, or floating targets (examples, features); {_remedy_of_row(what, array)}"
        )
    return _floating(what, array)


def _widths(num_classes: Any, targets: Any, name: str) -> dict[Any, int | None]:
    """Return the width that was given for the rows of each target."""
    keys: list[Any] = list(targets) if isinstance(targets, Mapping) else [None]
    if not isinstance(num_classes, Mapping):
        return dict.fromkeys(keys, num_classes)
    for key in num_classes:
        if key not in keys:
            raise ValueError(
                f"num_classes names '{key}', but '{name}' has no targets of that name"
                f"{did_you_mean(key, keys)}"
            )
    return {key: num_classes.get(key) for key in keys}


def _integer(what: _What, array: np.ndarray) -> np.ndarray:
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(
            f"{what} have dtype {array.dtype}, expected an integer dtype; leave out integer_inputs"
        )
    _check_features(what, array)
    narrow = array.astype(np.int32)
    if (narrow != array).any():
        raise ValueError(f"{what} hold numbers that int32 cannot; stay below 2**31")
    return narrow


def _floating(what: _What, array: np.ndarray) -> np.ndarray:
    """Return floating features, finite, of a precision that jax has."""
    if not jnp.issubdtype(array.dtype, np.floating):
        raise TypeError(
            f"{what} have dtype {array.dtype}, expected a floating dtype; {_remedy(what, array)}"
        )
    _check_features(what, array)
    # float64 becomes float32 here, as jax would have it, unless 64-bit mode is on; what float32 cannot
    # hold becomes infinite and is told below
    with np.errstate(over="ignore"):
        array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype))
    finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if not finite.all():
        first = int(np.argmin(finite))
        raise ValueError(
            f"{what} hold NaN or infinity in {int((~finite).sum())} of {len(array)} examples, first in "
            f"example {first}; drop or mend them, or tell what is known by a mask, "
            f"(values, mask)"
        )
    return array


def _check_features(what: _What, array: np.ndarray) -> None:
    if array.ndim < 2 or array.size == 0:
        raise ValueError(f"{what} have shape {array.shape}, expected (examples, features)")


def _remedy(what: _What, array: np.ndarray) -> str:
    """Say what to write instead of an array that is not floating."""
    whole, role = np.issubdtype(array.dtype, np.integer), what.role
    if whole and role == "targets" and not is_image_bytes(array):
        return (
            f"give integer labels of shape (examples,), or (examples, length) with num_classes, or cast: "
            f"{role}.astype('float32')"
        )
    if whole and array.ndim == 1:
        return f"make labels one-hot: np.eye(num_classes, dtype='float32')[{role}]"
    if whole and role == "inputs":
        return (
            "scale and cast them: inputs.astype('float32') / 255; tokens stay whole numbers with "
            "integer_inputs=True"
        )
    return f"cast them: {role}.astype('float32')" + " / 255" * is_image_bytes(array)


def _remedy_of_row(what: _What, array: np.ndarray) -> str:
    """Say what to write instead of one value an example that is no label."""
    if array.dtype.kind in "US":
        return f"number the names: np.unique({what.role}, return_inverse=True)[1]"
    if array.dtype.kind == "b":
        return f"cast them: {what.role}.astype(int)"
    return (
        f"cast labels: {what.role}.astype(int); of one number an example make a column: "
        f"{what.role}[:, None]"
    )


def _masked(what: _What, given: Any, check: Callable[[_What, np.ndarray], np.ndarray]) -> Any:
    """Return checked values; of (values, mask) a clamp, whose unknown values are not looked at."""
    if not (isinstance(given, tuple) and len(given) == 2):
        return check(what, _as_numpy(what, given))
    values, mask = _as_numpy(what, given[0]), given[1]
    if mask is None:
        return check(what, values)
    mask = np.asarray(mask)
    if mask.dtype != np.bool_:
        raise TypeError(
            f"{what} have a mask of dtype {mask.dtype}, expected Boolean (True where known); compare: "
            f"mask > 0.5"
        )
    try:
        whole = np.broadcast_to(mask, values.shape)
    except ValueError:
        raise ValueError(
            f"{what} have shape {values.shape} and a mask of shape {mask.shape}; give a mask of that "
            f"shape, or one that broadcasts to it: mask[:, None] for one number an example"
        ) from None
    checked = check(what, np.where(whole, values, np.zeros((), values.dtype)))
    if checked.dtype.kind == "f":
        checked = np.where(whole, checked, values.astype(checked.dtype))  # as given, NaN included
    rows = (len(values), *[1] * (checked.ndim - 1))
    held: Any = mask if mask.shape == rows else whole.reshape(checked.shape)
    return Clamp(checked, held.copy())  # type: ignore[arg-type]  # arrays of NumPy's


def _clamp(what: _What, given: Any) -> Clamp:
    """Return values and mask of one layer, each with a row for every example."""
    values = _masked(what, given, _floating)
    if not isinstance(values, Clamp):
        return Clamp(values)
    return Clamp(values.value, np.broadcast_to(values.mask, values.value.shape).copy())  # type: ignore


def _values(tree: PyTree) -> PyTree:
    """Return the same without masks."""
    return jax.tree.map(
        lambda leaf: leaf.value if isinstance(leaf, Clamp) else leaf,
        tree,
        is_leaf=lambda leaf: isinstance(leaf, Clamp),
    )


def _weights(given: Any, name: str) -> np.ndarray | None:
    """Return one number of at least 0 for each example."""
    if given is None:
        return None
    what = _What("weights", None, name)
    array = _as_numpy(what, given)
    if array.ndim != 1 or array.dtype.kind not in "iuf":
        raise ValueError(
            f"{what} have shape {array.shape} and dtype {array.dtype}; expected one number for each "
            f"example, (examples,)"
        )
    if not (np.isfinite(array) & (array >= 0)).all() or not array.any():
        raise ValueError(
            f"{what} are to be finite, at least 0 and not all 0, got numbers from {array.min():.3g} to "
            f"{array.max():.3g}; mend them"
        )
    return array.astype(jax.dtypes.canonicalize_dtype(float))


def _num_classes(what: _What, labels: np.ndarray, width: int | None) -> int | None:
    """Return how many classes these labels have, all of which are in range; None for no labels."""
    if not np.issubdtype(labels.dtype, np.integer):
        return None
    if width is None:
        width = max(int(labels.max()), 0) + 1
    width = expect_count(f"data set '{what.name}'", "num_classes", width, least=1)
    wrong = (labels < 0) | (labels >= width)
    if wrong.any():
        first = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(
            f"label {int(labels[first])} of example {first[0]} in '{what.name}' is out of range; expected "
            f"0 to {width - 1} for num_classes={width}"
        )
    return width
