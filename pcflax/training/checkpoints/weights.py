"""Weights in a file that other tools read, safetensors, and from dictionaries of arrays.

Parameters and batch statistics alone, by path, "hidden_1.linear.kernel". A run that is to go on is saved by
`Checkpoints`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from pcflax.checks import wanting
from pcflax.errors import CheckpointError
from pcflax.networks import AbstractPCNetwork

from .arrays import FlatArrays, flatten, network_arrays
from .disk import replacing
from .fingerprint import describe, differences
from .partial import PartialReport, load_fitting

_ARCHITECTURE = "pcflax.architecture"


def save_weights(network: AbstractPCNetwork, path: str | Path) -> None:
    """Write a network's parameters and batch statistics into a safetensors file.

    The file also tells the architecture, in its metadata. Wants `pip install 'pcflax[safetensors]'`.

    Args:
        network: whose arrays are written, by path: "hidden_1.linear.kernel".
        path: the file; one that is there is replaced.

    Raises:
        ModuleNotFoundError: without safetensors.
        ValueError: for two arrays of one path.
        OSError: where the file cannot be written; one that is there stays as it was.

    >>> import tempfile, pcflax as pc
    >>> from flax import nnx
    >>> network = pc.models.mlp(64, 8, 10, rngs=nnx.Rngs(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pc.save_weights(network, f"{folder}/digits.safetensors")
    ...     print(pc.load_weights(pc.models.mlp(64, 8, 10, rngs=nnx.Rngs(1)), f"{folder}/digits.safetensors"))
    hidden_1.linear.bias    loaded
    hidden_1.linear.kernel  loaded
    output.linear.bias      loaded
    output.linear.kernel    loaded
    """
    architecture = json.dumps(describe(network))
    written = _safetensors().save(_weights(network), metadata={_ARCHITECTURE: architecture})
    with replacing(Path(path)) as file:
        file.write_bytes(written)


def load_weights(
    network: AbstractPCNetwork,
    source: str | Path | Mapping[Any, Any],
    *,
    rename: Mapping[str, str] | None = None,
    partial: bool = False,
) -> PartialReport:
    """Load parameters and batch statistics from a safetensors file or from a dictionary of arrays.

    Args:
        network: gets the arrays.
        source: a file, of `save_weights` or of another tool; arrays by path; or a nested dictionary or
            `nnx.State`, such as `nnx.state(module, nnx.Param)` of a plain Flax module.
        rename: {beginning of a path in the source: beginning of one in the network}, such as
            {"layers.0": "hidden_1.linear"}; the others keep their name.
        partial: take what fits, and do not ask whether the layers compute what they did when saved.

    Returns:
        A report, which prints as a table.

    Raises:
        CheckpointError: where something is missing, left over or of another shape or dtype, or where the
            file tells of another architecture, unless `partial`.
        FileNotFoundError, ModuleNotFoundError: without the file, or without safetensors to read it.
        ValueError: for a name in `rename` that is not there, or where nothing fits. Nothing is changed on
            any error.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> rngs = nnx.Rngs(0)
    >>> plain = nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), jnp.tanh, nnx.Linear(4, 2, rngs=rngs))
    >>> network = pc.models.mlp(3, 4, 2, rngs=nnx.Rngs(1))
    >>> names = {"layers.0": "hidden_1.linear", "layers.2": "output.linear"}
    >>> report = pc.load_weights(network, nnx.state(plain, nnx.Param), rename=names)
    >>> x = jnp.ones((1, 3))
    >>> bool((network.predict(x) == plain(x)).all())
    True
    """
    if isinstance(source, nnx.State):
        stored, told = flatten(nnx.to_pure_dict(source)), {}
    elif isinstance(source, Mapping):
        stored, told = flatten(dict(source)), {}
    else:
        stored, told = _read(Path(source))
    title = "source" if isinstance(source, Mapping) else "file"

    def refuse_misfits(report: PartialReport) -> None:
        wrong = differences(told, describe(network))
        wrong += [f"it lacks '{path}'" for path in report.missing]
        wrong += [f"'{path}' is {why}" for path, why in report.skipped.items()]
        wrong += [f"the network has no '{path}'" for path in report.unused]
        if wrong:
            more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
            raise CheckpointError(
                f"the {title} is of another network: {'; '.join(wrong[:3])}{more}; give rename={{old: new}}, "
                f"or partial=True to load what fits"
            )

    accept = None if partial else refuse_misfits
    return load_fitting(stored, _weights(network), network, rename, title, accept=accept)


def _weights(network: AbstractPCNetwork) -> FlatArrays:
    """Return arrays by path but for the state of random numbers."""
    random = nnx.to_flat_state(nnx.state(network, nnx.RngState))
    left_out = {
        ".".join(str(part) for part in (path[1:] if path[0] == "layers" else path))
        for path, _ in random
    }
    parameters, other = network_arrays(network)
    found = {path: array for path, array in (parameters | other).items() if path not in left_out}
    return {path: jnp.asarray(array) for path, array in found.items() if array.size > 0}


def _read(path: Path) -> tuple[FlatArrays, dict[str, Any]]:
    """Return the arrays of a file, and the architecture it tells of, {} for another tool's."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    library = _safetensors()
    import safetensors

    try:
        with safetensors.safe_open(path, framework="flax") as opened:
            metadata = opened.metadata() or {}
        return library.load_file(path), json.loads(metadata.get(_ARCHITECTURE, "{}"))
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is no safetensors file, or damaged: {error}") from error


def _safetensors() -> Any:
    with wanting("a file of weights", "safetensors", "safetensors"):
        import safetensors.flax
    return safetensors.flax
