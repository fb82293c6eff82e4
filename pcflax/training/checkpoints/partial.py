"""Partial loading: those arrays of a checkpoint that a network has a place for, with a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pcflax.checks import did_you_mean
from pcflax.networks import AbstractPCNetwork

from .arrays import by_place, network_arrays, renamed, write_network_arrays
from .reading import load_checkpoint


class PartialReport(NamedTuple):
    """What became of each array, by path.

    Attributes:
        loaded: written into the network.
        renamed: of these, {path in the network: path in the checkpoint} of those that have another name.
        missing: of the network, which the checkpoint lacks; they keep their values.
        skipped: {path: why} of arrays in both that do not fit; the network's keep their values.
        unused: of the checkpoint, which the network has no place for.
    """

    loaded: tuple[str, ...]
    renamed: dict[str, str]
    missing: tuple[str, ...]
    skipped: dict[str, str]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        rows = [(path, "loaded") for path in self.loaded if path not in self.renamed]
        rows += [(path, f"loaded from {old}") for path, old in self.renamed.items()]
        rows += [(path, "missing") for path in self.missing]
        rows += [(path, f"skipped: {why}") for path, why in self.skipped.items()]
        rows += [(path, "unused") for path in self.unused]
        width = max((len(path) for path, _ in rows), default=0)
        return "\n".join(f"{path:{width}}  {what}" for path, what in rows)


def load_partial(
    path: str | Path,
    network: AbstractPCNetwork,
    *,
    rename: Mapping[str, str] | None = None,
    step: int | None = None,
    best: bool = False,
) -> PartialReport:
    """Load the arrays of a checkpoint that a network has a place for; say what became of each.

    Whether the layers compute what they did when saved is not asked: activations and energies may differ.

    Args:
        path: a run folder, its `checkpoints` folder, or one checkpoint's own folder.
        network: gets parameters and other state (batch statistics).
        rename: {layer in the checkpoint: layer of the network}, or beginnings of paths such as
            "hidden_1.linear"; those that are not named keep their name.
        step: a step; the newest good one unless given.
        best: the best by the metric that the run kept its best by.

    Returns:
        A report, which prints as a table.

    Raises:
        FileNotFoundError, CheckpointError: as `load_checkpoint`.
        ValueError: for a name in `rename` that is not there, or where nothing fits; nothing is changed.
        TypeError: for what is no path or step.

    >>> import tempfile, optax, pcflax as pc
    >>> from flax import nnx
    >>> old = pc.models.mlp(64, 8, 10, rngs=nnx.Rngs(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     trainer = pc.Trainer(old, optax.sgd(0.1), learning=pc.learning.Backprop(), progress=False,
    ...                          checkpoints=pc.Checkpoints(folder))
    ...     path = trainer.save()
    ...     print(pc.load_partial(folder, pc.models.mlp(64, 8, 2, rngs=nnx.Rngs(1))))
    hidden_1.linear.bias    loaded
    hidden_1.linear.kernel  loaded
    output.linear.bias      skipped: float32[10], not float32[2]
    output.linear.kernel    skipped: float32[8, 10], not float32[8, 2]
    """
    checkpoint = load_checkpoint(path, step=step, best=best)
    stored = {**checkpoint.sections["parameters"], **checkpoint.sections["other"]}
    if by_place(stored):
        stored = renamed(stored, tuple(checkpoint.meta.get("layers") or network.layer_names))
    expected = {k: v for kind in network_arrays(network) for k, v in kind.items() if v.size > 0}
    return load_fitting(stored, expected, network, rename, "checkpoint", str(checkpoint.path))


def load_fitting(
    stored: Mapping[str, Any],
    expected: Mapping[str, Any],
    network: AbstractPCNetwork,
    rename: Mapping[str, str] | None,
    source: str,
    whole: str | None = None,
    accept: Callable[[PartialReport], None] | None = None,
) -> PartialReport:
    """Write those stored arrays that are expected into a network; `source` is what errors call theirs.

    `accept` is given the report before anything is written, and may raise.

    Raises:
        ValueError: for a name in `rename` that is not there, or where nothing fits; nothing is changed.
    """
    places, displaced = _places(stored, expected, dict(rename or {}), source)
    skipped, found = {}, {}
    for name, array in expected.items():
        if name not in places:
            continue
        own = stored[places[name]]
        if own.shape == array.shape and own.dtype == array.dtype:
            found[name] = own
        else:
            skipped[name] = f"{own.dtype}{list(own.shape)}, not {array.dtype}{list(array.shape)}"
    if not found:
        there = dict.fromkeys(name.partition(".")[0] for name in stored)
        raise ValueError(
            f"no array of {whole or f'the {source}'} fits the network; it has {', '.join(there)} and the "
            f"network {', '.join(network.layer_names)}; give rename={{old: new}}"
        )
    unused = [old for name, old in places.items() if name not in expected]
    report = PartialReport(
        loaded=tuple(found),
        renamed={name: places[name] for name in found if places[name] != name},
        missing=tuple(name for name in expected if name not in places),
        skipped=skipped,
        unused=(*unused, *displaced),
    )
    if accept is not None:
        accept(report)
    write_network_arrays(network, found)
    return report


def _places(
    stored: Mapping[str, Any], expected: Mapping[str, Any], rename: Mapping[str, str], source: str
) -> tuple[dict[str, str], list[str]]:
    """Return {path in the network: path where stored}, and what gives way to an array of a new name."""
    for old, new in rename.items():
        for name, paths, whose in ((old, stored, source), (new, expected, "network")):
            if not any(_is_in(path, name) for path in paths):
                layers = dict.fromkeys(path.partition(".")[0] for path in paths)
                raise ValueError(
                    f"rename names the layer '{name}', which the {whose} does not have"
                    f"{did_you_mean(name, layers)}"
                )
    moved: dict[str, str] = {}
    for path in stored:
        prefixes = [old for old in rename if _is_in(path, old)]
        if not prefixes:
            continue
        old = max(prefixes, key=len)
        new = rename[old] + path[len(old) :]
        if new in moved:
            raise ValueError(f"rename brings both '{moved[new]}' and '{path}' to '{new}'; drop one")
        moved[new] = path
    others = [path for path in stored if not any(_is_in(path, old) for old in rename)]
    displaced = [path for path in others if path in moved]
    return moved | {path: path for path in others if path not in moved}, displaced


def _is_in(path: str, prefix: str) -> bool:
    return f"{path}.".startswith(f"{prefix}.")
