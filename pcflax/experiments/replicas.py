"""Many seeds as one training: a Trainer for each, and one loop that drives them all.

    replicas = replicate(make_trainer, seeds=range(8))
    runs = replicas.fit(train, epochs=10, eval_data=test)

Each seed has the Trainer that `make_trainer` gives it, with its own state, history, callbacks and
checkpoints: what works with one run works with each of these. The loop of `pcflax.training.fitting` plans and
tells one by one; the call between is one compiled program for all where that is faster (`mapped.py`).
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from pcflax.checks import expect_kind, expect_seed
from pcflax.data import Dataset
from pcflax.errors import CheckpointWarning
from pcflax.training import Checkpoints, ConsoleLogger, History, Trainer
from pcflax.training.fitting import Fit, learn_alone, train
from pcflax.training.signals import SignalCatcher

from .folders import check_settings, folder_name, read_record, within, write_record
from .mapped import MappedFits
from .plan import now
from .progress import Progress
from .runs import OneRun, Runs
from .structure import check_separate, difference

How = Literal["auto", "mapped", "in turn"]

# On CPUs a product that is mapped over seeds is a loop of XLA's own; of larger matrices, one seed's product
# alone goes to a library that is faster than that. Measured: docs/decisions.md.
_MAPPED_SIZE = 4096


class Replicas:
    """Trainers of several seeds, trained together; made by `replicate`, whose arguments are described there.

    Attributes:
        trainers: one a seed, those of one setting together.
        seeds: the seed of each.
        points: the settings of each, {} unless there are several.
        how: "mapped" or "in turn"; "auto" until the first fit.
        folder: where the seeds' folders of checkpoints are, or None.

    Raises:
        TypeError, ValueError: as `replicate`.
    """

    def __init__(
        self,
        make_trainer: Callable[..., Trainer],
        seeds: Iterable[int],
        *,
        over: Mapping[str, Sequence[Any]],
        how: How,
        checkpoints: Checkpoints | None,
        name: str,
        progress: bool,
    ):
        if how not in ("auto", "mapped", "in turn"):
            raise ValueError(f"replicate expected how 'auto', 'mapped' or 'in turn', got {how!r}")
        chosen = tuple(expect_seed("replicate", seed) for seed in seeds)
        if not chosen or len(set(chosen)) < len(chosen):
            raise ValueError(f"replicate expected seeds, each once, got {list(chosen)}")
        over = {name: _values(name, values) for name, values in over.items()}
        grid = [
            dict(zip(over, values, strict=True)) for values in itertools.product(*over.values())
        ]
        if not grid:
            raise ValueError(f"replicate expected values of each of {list(over)}, got {dict(over)}")
        self.how: How = how
        self.name, self._over, self._progress = name, over, progress
        self.seeds = tuple(seed for _ in grid for seed in chosen)
        self.points = tuple(point for point in grid for _ in chosen)
        self.trainers = tuple(
            _made(make_trainer, seed, point)
            for seed, point in zip(self.seeds, self.points, strict=True)
        )
        self._ended: dict[int, str] = {}  # by place
        self._begun = ""
        check_separate(self.trainers, self._titles())
        self.folder = self._place(checkpoints)

    # Training.

    def fit(
        self,
        data: Dataset | Callable[..., Dataset],
        *,
        epochs: int | None = None,
        num_steps: int | None = None,
        eval_data: Dataset | None = None,
        eval_every: int | None = None,
        log_every: int = 50,
    ) -> Runs:
        """Train every seed as its Trainer's `fit` would, and return what they measured.

        A seed whose numbers are not finite keeps the state before that step, and is named in a warning
        when the others are done.

        Args:
            data: each seed trains on `data.with_seed(seed)`, in an order of its own; or a function that
                returns a seed's data, of the same arguments as `make_trainer`.
            epochs: as of `Trainer.fit`, like all that follow.
            num_steps: the total of each.
            eval_data: the same for all.
            eval_every: steps between evaluations.
            log_every: steps over which training metrics are averaged.

        Raises:
            TypeError, ValueError: as of `Trainer.fit`; with `how="mapped"`, where the Trainers or their
                data differ in more than numbers, naming the first difference.
            Terminated, KeyboardInterrupt, RuntimeError: as of `Trainer.fit`, after saving where it can.

        Warns:
            UserWarning: of each seed that ended because its numbers were not finite.
        """
        fits = []
        for place, trainer in enumerate(self.trainers):
            own = self._data_of(data, place)
            fit = trainer.prepare(
                own, epochs, num_steps, eval_data, eval_every, log_every, done_too=True
            )
            assert fit is not None  # done_too
            fits.append(fit)
        if not any(fit.goes_on() or fit.run.owed for fit in fits):
            warnings.warn(
                f"nothing to do: all {len(fits)} runs are at step {self.trainers[0].step} or later (epochs "
                f"and num_steps are totals, counted from step 0)",
                UserWarning,
                stacklevel=2,
            )
            return self.runs
        learn = self._learning(fits)
        progress = Progress(fits, self.points) if self._progress else None
        with SignalCatcher() as signals, contextlib.ExitStack() as opened:
            self._begun = self._begun or self._beginning()
            self._write_record()
            for fit in fits:
                opened.enter_context(fit.opened())
            if progress is not None:
                opened.enter_context(progress)
            train(fits, signals, learn, told=progress.tell if progress else lambda: None)
        self._tell_failures(fits)
        signals.raise_caught()
        return self.runs

    def restore(self, step: int | None = None, *, best: bool = False) -> tuple[int, ...]:
        """Take every seed back to a checkpoint; the same `fit` then ends as the one never interrupted.

        Args:
            step: of that step; each seed's newest good one unless given. A seed that was stopped before
                its first then begins at step 0.
            best: the best by `keep_best`.

        Returns:
            The step of each.

        Raises:
            FileNotFoundError: where there is no checkpoint.
            CheckpointError, ValueError: as of `Trainer.restore`.
        """
        missing = []
        for trainer in self.trainers:
            try:
                trainer.restore(step, best=best)
            except FileNotFoundError as error:
                missing.append(error)
        newest = step is None and not best
        if missing and not (newest and len(missing) < len(self.trainers)):
            raise missing[0]
        return tuple(trainer.step for trainer in self.trainers)

    # Measuring.

    @property
    def runs(self) -> Runs:
        """What was measured so far."""
        return self._runs([trainer.history for trainer in self.trainers])

    def evaluate(self, data: Dataset, **options: Any) -> Runs:
        """Measure every seed as its Trainer's `evaluate` does: runs of one row, by the same names.

        A seed that ended because its numbers were not finite has none.

        Args:
            data: the same for all.
            options: as of `Trainer.evaluate`.
        """
        histories = []
        for place, trainer in enumerate(self.trainers):
            row = {} if place in self._ended else trainer.evaluate(data, **options)
            histories.append(History([{"step": trainer.step, **row}]))
        return self._runs(histories)

    def _runs(self, histories: Sequence[History]) -> Runs:
        places = zip(self.seeds, histories, self.points, strict=True)
        runs = [OneRun(*own, self._ended.get(place)) for place, own in enumerate(places)]
        return Runs(runs, name=self.name, how=self.how, begun=self._begun)

    def __repr__(self) -> str:
        steps = sorted({trainer.step for trainer in self.trainers})
        return (
            f"Replicas({len(self.trainers)} seeds and settings, at step "
            f"{'-'.join(map(str, sorted({steps[0], steps[-1]})))}, {self.how})"
        )

    # What fit is made of.

    def _data_of(self, data: Any, place: int) -> Dataset:
        seed, point = self.seeds[place], self.points[place]
        if isinstance(data, Dataset):
            return data.with_seed(seed)
        expect_kind("fit", "data", data, Callable, "pc.data.load('digits')")
        return data(seed, **point)

    def _learning(self, fits: Sequence[Fit]) -> Any:
        """Return what makes the calls, by `how`, which is settled here."""
        told = difference(fits)
        if self.how == "mapped" and told is not None:
            raise ValueError(
                f"the runs cannot share a program: {told}; make them alike, or give replicate how='in turn'"
            )
        if self.how == "auto":
            record = read_record(self.folder) if self.folder is not None else None
            stored = (record or {}).get("how")
            small = _largest(fits[0]) <= _MAPPED_SIZE or jax.default_backend() != "cpu"
            chosen: How = "mapped" if told is None and small else "in turn"
            self.how = stored if stored in ("mapped", "in turn") and told is None else chosen
        return MappedFits(fits) if self.how == "mapped" else learn_alone

    def _tell_failures(self, fits: Sequence[Fit]) -> None:
        for place, (fit, title) in enumerate(zip(fits, self._titles(), strict=True)):
            self._ended.pop(place, None)
            if fit.failure is not None:
                self._ended[place] = str(fit.failure)
                warnings.warn(f"{title} ended: {fit.failure}", UserWarning, stacklevel=3)
        self._write_record()

    # Folders.

    def _titles(self) -> list[str]:
        places = zip(self.seeds, self.points, strict=True)
        return [OneRun(seed, History(), point).title for seed, point in places]

    def _place(self, checkpoints: Checkpoints | None) -> Path | None:
        """Give each Trainer a folder of its own, and return the one of all."""
        own = [trainer.checkpoints for trainer in self.trainers]
        if checkpoints is not None:
            expect_kind(
                "replicate", "checkpoints", checkpoints, Checkpoints, "pc.Checkpoints('runs/mnist')"
            )
            if any(own):
                raise ValueError(
                    "checkpoints were given to replicate and by make_trainer, too; leave one of them out"
                )
            own = [checkpoints] * len(own)
        given = [one for one in own if one is not None]
        folders = {one.directory for one in given}
        if not given or len(folders) == len(own) > 1:  # none, or its own for each
            return None
        if len(folders) > 1 or len(given) < len(own):
            raise ValueError(
                f"make_trainer gave {len(given)} of {len(own)} runs checkpoints, in {len(folders)} folders; "
                f"give each its own, or all the same, in which each gets its subfolder"
            )
        seen: dict[str, str] = {}
        for place, title in enumerate(self._titles()):
            name = self._folder_name(place)
            if name in seen:
                raise ValueError(
                    f"{seen[name]} and {title} would have one folder, {name}; give replicate values that "
                    f"differ as text, each once"
                )
            seen[name] = title
        folder = given[0].directory
        for name, point in zip(seen, self.points, strict=True):
            check_settings(folder, name, point)
        for trainer, one, name in zip(self.trainers, given, seen, strict=True):
            trainer.checkpoints = within(one, name)
        return folder

    def _folder_name(self, place: int) -> str:
        return folder_name(self.seeds[place], self.points[place], self._over)

    def _beginning(self) -> str:
        """Return when the first step is made, or was."""
        record = read_record(self.folder) if self.folder is not None else None
        if record is not None:
            return record.get("begun", "")
        return now() if not any(trainer.step for trainer in self.trainers) else ""

    def _write_record(self) -> None:
        if self.folder is None:
            return
        record = read_record(self.folder) or {}
        if record.get("how", self.how) != self.how:
            warnings.warn(
                f"the runs in {self.folder} were trained {record['how']} and go on {self.how}: they will end "
                f"as the uninterrupted ones up to rounding only",
                CheckpointWarning,
                stacklevel=3,
            )
        runs = {
            self._folder_name(place): {
                "seed": seed,
                "settings": point,
                "ended": self._ended.get(place),
            }
            for place, (seed, point) in enumerate(zip(self.seeds, self.points, strict=True))
        }
        runs = record.get("runs", {}) | runs  # with those of other seeds
        written = {"name": self.name, "how": self.how, "begun": self._begun, "runs": runs}
        write_record(self.folder, written)


def _made(make_trainer: Callable[..., Any], seed: int, point: Mapping[str, Any]) -> Trainer:
    trainer = make_trainer(seed, **point)
    expect_kind("replicate", "make_trainer's result", trainer, Trainer, "pc.Trainer(...)")
    if trainer.seed != seed:
        raise ValueError(
            f"make_trainer({seed}) returned a Trainer of seed {trainer.seed}; give it seed=seed"
        )
    callbacks = trainer.callbacks.callbacks  # one progress for all
    trainer.callbacks.callbacks = [own for own in callbacks if not isinstance(own, ConsoleLogger)]
    return trainer


def _values(name: str, values: Any) -> list[Any]:
    """Return the values of one setting; two that are equal would be one setting with each seed twice."""
    expect_kind("replicate", f"values of {name}", values, Iterable, "[0.1, 0.2]")
    found: list[Any] = []
    for value in values:
        if np.ndim(value) and hasattr(value, "dtype"):
            raise TypeError(
                f"replicate expected values of {name} such as numbers, words, tuples or functions, got an "
                f"array of shape {np.shape(value)}; give names, and make the arrays in make_trainer"
            )
        if value in found:
            raise ValueError(f"replicate expected values of {name}, each once, got {value} twice")
        found.append(value)
    return found


def _largest(fit: Fit) -> int:
    """Return elements of the largest array of parameters."""
    return max(map(np.size, jax.tree.leaves(fit.run.state().network.parameters)), default=0)
