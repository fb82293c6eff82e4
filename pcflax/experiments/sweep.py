"""A sweep: trials of a training over settings, chosen by what was found before, through optuna.

Everything is in the sweep's folder: optuna's journal, and a folder a trial. A sweep that is killed, -9
included, goes on where it was: trials that had ended stay, and the one that was running goes on from its
checkpoint. The settings of a trial are a function of the seed and the trials before it, so the trials are
those of a sweep never interrupted. Next files to read: `trial.py`, `journal.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax

from pcflax.checks import expect_count, expect_kind, expect_local_path, expect_number
from pcflax.errors import NonFiniteEnergyError
from pcflax.sharding.processes import check_alone
from pcflax.training.callbacks import mode_of
from pcflax.training.checkpoints.lock import locked

from .journal import Journal, load_optuna, quiet
from .trial import Objective, Record, Trial

if TYPE_CHECKING:
    import optuna

# After so many trials compiled programs are forgotten: each maps memory, of which there is an end.
_PROGRAMS_OF = 20


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        number: counted from 0.
        settings: what it trained with.
        state: "complete"; "pruned", where others had done better at its age; "failed", where an energy was
            not finite, the memory did not suffice, or its settings were refused.
        value: the best value of its evaluations; None where it has none.
        metric: the metric there.
        step: the training step there.
        cost: of a batch, where the sweep has one.
        why: what a failed trial failed by.
        folder: its own.
    """

    number: int
    settings: Mapping[str, Any]
    state: Literal["complete", "pruned", "failed"]
    value: float | None
    metric: float | None
    step: int | None
    cost: float | None
    why: str
    folder: Path


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The trials of a sweep.

    Attributes:
        outcomes: of every trial, in the order of their numbers.
        mode: whether more of the value is better, "max", or less, "min".
    """

    outcomes: tuple[Outcome, ...]
    mode: Literal["max", "min"]

    @property
    def ranked(self) -> list[Outcome]:
        """The complete trials, the best first; of equal values the earlier."""
        complete = [one for one in self.outcomes if one.state == "complete"]
        sign = 1 if self.mode == "min" else -1
        return sorted(complete, key=lambda one: sign * one.value)  # type: ignore[operator]

    @property
    def best(self) -> Outcome:
        """The best complete trial.

        Raises:
            ValueError: where no trial is complete, with what the last one failed by.
        """
        if not self.ranked:
            why = next((one.why for one in reversed(self.outcomes) if one.why), "all were pruned")
            raise ValueError(f"none of {len(self.outcomes)} trials is complete; the last: {why}")
        return self.ranked[0]


def sweep(
    train: Callable[[Trial], Any],
    search: Mapping[str, Any],
    *,
    folder: str | Path,
    num_trials: int,
    metric: str = "eval/accuracy",
    mode: Literal["max", "min"] | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
    cost: Literal["gradients", "seconds"] | None = None,
    cost_weight: float = 0.01,
    seed: int = 0,
    on_trial: Callable[[Outcome], Any] | None = None,
) -> Sweep:
    """Train again and again with other settings, and return how each trial ended.

    Settings are proposed by the tree-structured Parzen estimator, the first ten at random. What stopped
    the sweep before its last trial, a kill or an error, costs no trial: the same call goes on, and a larger
    `num_trials` adds some. One process at a time.

    Args:
        train: makes a Trainer with `trial.settings` and calls `trial.fit` once; called again for the same
            trial after a kill.
        search: {name: distribution of optuna}, such as
            `optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)`. Choices are numbers, words,
            booleans or None.
        folder: of the sweep; a trial's is folder/trials/NNNN.
        num_trials: how many are to have ended, however; a total.
        metric: of evaluations; a trial's value is its best.
        mode: whether better is "max" or "min"; by the metric's name unless given, as in
            `pc.EarlyStopping`.
        pruner: stops trials early, such as `optuna.pruners.MedianPruner()`; none unless given. It
            counts evaluations, from 0.
        cost: what of a batch enters the value: "gradients", what the rule computes in units of
            backpropagation's gradient, by its compiled operations; "seconds", as measured, which no two
            runs repeat.
        cost_weight: how much of the metric twice the cost must bring.
        seed: of what is proposed.
        on_trial: called with each outcome.

    Raises:
        ModuleNotFoundError: without optuna; `pip install 'pcflax[tune]'`.
        ValueError: where the folder holds a sweep over other settings or by another value, or a journal
            that is no longer whole, for another cost, and for `trial.fit` with a test split.
        OSError: where the journal cannot be written; with room again, the same call goes on.
        FileExistsError: where another process works in the folder.
        TypeError: for an argument of another kind.

    Source: Akiba et al. (2019), optuna; Bergstra et al. (2011), the estimator.

    >>> import optax, optuna, pcflax as pc, tempfile
    >>> from flax import nnx
    >>> data = pc.data.load("digits", split="train[:90%]")
    >>> validation = pc.data.load("digits", split="train[90%:]")
    >>> def train(trial):
    ...     network = pc.PCNetwork([pc.PCDense(64, 10, rngs=nnx.Rngs(0))])
    ...     trainer = pc.Trainer(network, optax.adam(trial["rate"]), learning=pc.learning.Backprop(),
    ...                          checkpoints=pc.Checkpoints(trial.folder), progress=False)
    ...     trial.fit(trainer, data, num_steps=20, eval_data=validation, eval_every=10)
    >>> search = {"rate": optuna.distributions.FloatDistribution(1e-6, 1e-1, log=True)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = pc.experiments.sweep(train, search, folder=folder, num_trials=3)
    >>> len(found.outcomes), found.best.value == max(one.value for one in found.outcomes)
    (3, True)
    """
    check_alone("sweep")
    optuna = load_optuna()
    num_trials = expect_count("sweep", "num_trials", num_trials, least=1)
    if not metric.startswith("eval/"):
        raise ValueError(f"a sweep chooses by a metric of evaluations, 'eval/...', got '{metric}'")
    if cost not in (None, "gradients", "seconds"):
        raise ValueError(f"sweep expected cost 'gradients', 'seconds' or None, got {cost!r}")
    if pruner is not None:
        example = "optuna.pruners.MedianPruner()"
        expect_kind("sweep", "pruner", pruner, optuna.pruners.BasePruner, example)
    objective = Objective(
        metric, mode_of(metric, mode), cost, expect_number("sweep", "cost_weight", cost_weight)
    )
    if not search:
        raise ValueError("a sweep searches over something; give {name: distribution of optuna}")
    kind = optuna.distributions.BaseDistribution
    for name, one in search.items():
        expect_kind(
            "sweep", name, one, kind, "optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)"
        )
    folder = expect_local_path("sweep", "folder", folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder), quiet():
        journal = Journal(
            folder,
            search,
            mode=objective.mode,
            pruner=pruner,
            seed=expect_count("sweep", "seed", seed),
            objective=dataclasses.asdict(objective),
        )
        while len(ended := _outcomes(journal)) < num_trials:
            record = Record(journal.next_trial(), objective)
            trial = Trial(record, _folder(folder, record.told.number))
            trial.folder.mkdir(parents=True, exist_ok=True)
            _run(train, trial, record)
            _end(journal, record)
            if on_trial is not None:
                on_trial(_outcomes(journal)[-1])
            if trial.number % _PROGRAMS_OF == _PROGRAMS_OF - 1:
                jax.clear_caches()
    return Sweep(tuple(ended), objective.mode)


def _folder(folder: Path, number: int) -> Path:
    return folder / "trials" / f"{number:04d}"


def _run(train: Callable[[Trial], Any], trial: Trial, record: Record) -> None:
    """Train; note what is a trial's own fault, and raise what is not."""
    try:
        train(trial)
    except (NonFiniteEnergyError, load_optuna().TrialPruned) as error:
        record.why = _first_line(error) or "the function that trains pruned it"
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        told = isinstance(error, MemoryError)  # by the Trainer, which says how much it was
        if not told and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        record.why = f"out of memory: {_first_line(error)}".removesuffix(": ")
    else:
        if record.history is None:
            raise ValueError(
                "the function that a sweep trains by expected to call trial.fit(trainer, data, "
                "eval_data=...), and did not"
            )


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def _end(journal: Journal, record: Record) -> None:
    """Write how the trial ended, its state last: a kill before that has all of it written again."""
    values, objective = record.values(), record.objective
    best = objective.best(values)
    if best is None and not record.why:
        record.why = f"no evaluation has a finite {objective.metric}"
        if objective.cost == "seconds" and record.cost is None:
            record.why = "it was over before its seconds were measured; give more steps"
    record.told.set_user_attr("why", record.why)
    if best is not None and record.history is not None:
        found = {
            "value": values[best],
            "metric": record.history[objective.metric][best],
            "step": record.history.steps(objective.metric)[best],
        }
        for name, value in found.items():
            record.told.set_user_attr(name, value)
    if record.why or record.pruned or best is None:  # which are ranked behind all complete ones
        journal.study.tell(record.told.number, state=load_optuna().trial.TrialState.PRUNED)
    else:
        journal.study.tell(record.told.number, values[best])


def _outcomes(journal: Journal) -> list[Outcome]:
    """Return every trial that has ended."""
    found = []
    for one in journal.ended():
        told = one.user_attrs
        state = "failed" if told.get("why") else "pruned"
        found.append(
            Outcome(
                number=one.number,
                settings=one.params,
                state="complete" if one.state.name == "COMPLETE" else state,
                value=told.get("value"),
                metric=told.get("metric"),
                step=told.get("step"),
                cost=told.get("cost"),
                why=told.get("why", ""),
                folder=_folder(journal.folder, one.number),
            )
        )
    return found
