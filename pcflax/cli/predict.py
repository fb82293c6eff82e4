"""`pcflax predict RUN FILE`: what a trained network answers for examples of a file.

The file's whole numbers are examples as the run's data set stores them, and are scaled and normalized as
those are; its floating numbers go into the network as they are.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import pcflax as pc
from pcflax.training.checkpoints.disk import replacing
from pcflax.training.plain_json import dumps
from pcflax.training.reading import mean_of

from .build import infers_labels, load_data, rebuilt
from .options import TrainOptions, read_run
from .tables import show_table
from .usage import UsageError
from .verbs import PredictOptions

_ENDINGS = (".npz", ".csv", ".json")
# Of a table on the screen.
_ROWS, _COLUMNS = 10, 10


class Predictions(NamedTuple):
    """What a network answers, an example a row.

    Attributes:
        kind: what the numbers are: "probability" of a class, else "output".
        values: (examples, features).
        classes: (examples,), the largest output of each; None where outputs are no classes.
        names: of the classes, where the data set has them.
    """

    kind: str
    values: np.ndarray
    classes: np.ndarray | None
    names: tuple[str, ...] | None

    def columns(self) -> list[str]:
        """Return the names of a row's cells."""
        told = ["example"]
        if self.classes is not None:
            told += ["class", "name"] if self.names else ["class"]
        return told + [f"{self.kind}_{number}" for number in range(self.values.shape[1])]

    def rows(self) -> Iterator[list[Any]]:
        """Yield the cells of each example."""
        for number, values in enumerate(self.values):
            row: list[Any] = [number]
            if self.classes is not None:
                label = int(self.classes[number])
                row += [label, self.names[label]] if self.names else [label]
            yield [*row, *values.tolist()]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the same as arrays by name."""
        plural = "probabilities" if self.kind == "probability" else "outputs"
        found = {plural: self.values}
        if self.classes is not None:
            found["classes"] = self.classes
            if self.names:
                found["names"] = np.asarray(self.names)[self.classes]
        return found


def predict(options: PredictOptions) -> None:
    """Restore the run's network, predict, and write or show the answers."""
    path = options.output
    if path is not None and path.suffix not in _ENDINGS:
        raise UsageError(f"expected --output to end in {', '.join(_ENDINGS)}, got {path}")
    stored = read_run(options.run, data_dir=options.data_dir, mesh=options.mesh)
    if stored.model == "transformer":
        raise ValueError(
            f"the run in {options.run} predicts the characters of a text, which is no array of examples; "
            f"take pcflax.cli.load_run({str(options.run)!r}).predict"
        )
    array = _read(options.file, options.array)
    data = load_data(stored, "test", batch_size=1)
    trainer = rebuilt(stored, data, options.run)
    step = trainer.restore(options.step, best=options.best)
    found = _predictions(trainer, stored, data, array, options)
    if path is not None:
        _write(path, found)
    if options.json:
        told: dict[str, Any] = {"step": step, "examples": len(array)}
        if path is not None:
            told["output"] = str(path)
        else:
            told |= {name: values.tolist() for name, values in found.arrays().items()}
        print(dumps(told))
    elif path is not None:
        print(f"predictions  {path}")
    else:
        _show(found, f"{options.run} at step {step} on {options.file} ({len(array):,} examples)")


def _read(path: Path, name: str | None) -> np.ndarray:
    """Return the examples of a file."""
    if path.suffix not in (".npy", ".npz"):
        raise UsageError(f"expected a file of examples that ends in .npy or .npz, got {path}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; expected examples in .npy or .npz")
    try:
        stored = np.load(path)
        arrays = {key: stored[key] for key in stored.files} if path.suffix == ".npz" else None
    except Exception as error:  # damage has many: of zip, of zlib, of NumPy's header
        raise ValueError(f"{path} cannot be read as arrays; write it anew with np.save") from error
    if arrays is None:
        if name is not None:
            raise ValueError(f"{path} holds one array without a name; leave --array out")
        found = stored
    else:
        if name is None and len(arrays) != 1:
            raise ValueError(
                f"{path} holds {', '.join(arrays) or 'nothing'}; say which with --array NAME"
            )
        if name is not None and name not in arrays:
            raise ValueError(f"{path} holds {', '.join(arrays)} but not --array {name}")
        found = arrays[name or next(iter(arrays))]
    if found.dtype.kind not in "fiu":
        raise ValueError(f"{path} holds {found.dtype}, expected whole or floating numbers")
    return found


def _predictions(
    trainer: pc.Trainer,
    stored: TrainOptions,
    data: Any,
    array: np.ndarray,
    options: PredictOptions,
) -> Predictions:
    images_are_targets = stored.model in ("hybrid", "generator")
    images = _images(data, array, "targets" if images_are_targets else "inputs", options.file)
    evidence = pc.Evidence(targets=images) if images_are_targets else pc.Evidence(images)
    values = trainer.predict(evidence, batch_size=options.batch_size)
    kind = "output"
    network = trainer.network
    if not images_are_targets:
        energy = network.layer(network.output).top_node_layer().energy
        kind = "probability" if isinstance(energy, pc.energies.Categorical) else kind
        values = mean_of(network, network.output, values)
    values = np.asarray(values)
    role = "inputs" if infers_labels(stored) else "targets"
    classes = values.argmax(axis=-1) if data.classes_of(role) else None
    return Predictions(kind, values, classes, data.class_names)


def _images(data: Any, array: np.ndarray, role: str, path: Path) -> np.ndarray:
    """Return a file's examples as the network takes them."""
    decoder = data.reader.decoder
    shape = getattr(data.spec(), role).shape[1:]
    stored = np.asarray(data.inputs)  # the images, whichever role they have
    own = array.shape[1:]
    fits = math.prod(own) == math.prod(shape) if decoder.flatten else own in (shape, shape[:-1])
    if array.ndim < 2 or not len(array) or not fits:
        told = f"(examples, {', '.join(map(str, shape))})"
        one = "; one example wants a first axis too: x[None]" if array.shape == shape else ""
        raise ValueError(f"{path} holds an array of shape {array.shape}, expected {told}{one}")
    if array.dtype.kind in "iu" and stored.dtype.kind in "iu":
        most = round(1 / decoder.scale)
        if decoder.scale != 1 and (array.min() < 0 or array.max() > most):
            raise ValueError(
                f"{path} holds numbers from {array.min()} to {array.max()}, expected images from 0 to {most} "
                f"as '{data.name}' stores them"
            )
        whole = array.reshape(len(array), *stored.shape[1:])
        return np.asarray(getattr(decoder(whole, None), role))
    floating = array.reshape(len(array), *shape).astype(np.float32)
    if not np.isfinite(floating).all():
        row = int(np.argwhere(~np.isfinite(floating))[0][0])
        raise ValueError(f"example {row} of {path} is not finite; drop or mend it")
    return floating


def _write(path: Path, found: Predictions) -> None:
    with replacing(path, "choose another --output") as place:
        if path.suffix == ".npz":
            with place.open("wb") as file:
                np.savez(file, allow_pickle=False, **found.arrays())
        elif path.suffix == ".csv":
            with place.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(found.columns())
                writer.writerows(found.rows())
        else:
            arrays = {name: values.tolist() for name, values in found.arrays().items()}
            place.write_text(dumps(arrays) + "\n", encoding="utf-8")


def _show(found: Predictions, title: str) -> None:
    """Print the first rows, each with its first numbers."""
    leading = len(found.columns()) - found.values.shape[1]
    columns = found.columns()[: leading + _COLUMNS]
    rows = []
    for row in found.rows():
        if len(rows) == _ROWS:
            break
        cells = [f"{one:.4g}" if isinstance(one, float) else str(one) for one in row]
        rows.append(cells[: len(columns)])
    show_table(title, [name + (" " if name == "name" else "") for name in columns], rows)
    hidden = [
        f"{count:,} more {what}"
        for count, what in (
            (len(found.values) - _ROWS, "examples"),
            (found.values.shape[1] - _COLUMNS, "columns"),
        )
        if count > 0
    ]
    if hidden:
        print(f"and {' and '.join(hidden)}: --output FILE.csv, .npz or .json has all")
