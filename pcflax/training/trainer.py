"""The Trainer: objects outside, one compiled loop inside.

`fit` takes the network apart once, runs `loop.learn_batches` on donated state, and puts the parameters
back into the object wherever user code can look: at callbacks, at the end, and when something goes
wrong. When to log, evaluate and save is the `Calendar`'s, a function of step numbers only.
"""

from __future__ import annotations

import math
import operator
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from pcflax.data import Dataset
from pcflax.learning import AbstractLearning
from pcflax.networks import AbstractPCNetwork, split
from pcflax.typing import MetricFunction

from .arrays import (
    as_arrays,
    check_arrays,
    copied,
    flatten,
    network_arrays,
    unflatten,
    write_network_arrays,
)
from .calendar import Calendar
from .callbacks import CallbackList
from .checkpoints import Checkpoints, CheckpointWarning
from .checks import check_data, check_keep_best, check_metric_names, check_parts, total_steps
from .errors import NonFiniteEnergyError, non_finite_error
from .evaluation import evaluate, predict
from .history import History
from .loggers import ConsoleLogger
from .loop import (
    MetricFunctions,
    Recipe,
    TrainState,
    call_capacity,
    expanded,
    learn_batches,
    padded,
)
from .metrics import default_metrics, of_means
from .signals import SignalCatcher

# A call is made about this long: short enough for a smooth progress bar and a prompt stop, long enough
# that Python's share of the time is small.
_SECONDS_A_CALL = 0.25
# Where no callback reads the network it is written this often, so that a fault loses no more.
_SECONDS_A_WRITE = 1.0


class Written(NamedTuple):
    """What the objects were given last: of which step, which arrays, what was not yet logged, when."""

    step: int
    arrays: list
    pending: dict[str, list[float]]
    clock: float


class Trainer:
    """Trains a network on batches, measures it, saves it and restores it.

    Args:
        network: trained in place; `trainer.network` holds the newest parameters after `fit` and in
            callbacks that read it.
        optimizer: an optax transformation of the parameters' gradients.
        learning: the rule, such as `pc.learning.PredictiveCoding(...)`.
        checkpoints: where and what to save; nothing is saved without.
        metrics: {name: function of (prediction, targets) -> (batch,)}; unless given, accuracy for
            labelled data, with the perplexity for sequences, and the squared error for other data.
        callbacks: loggers and other callbacks, told in order.
        seed: every random choice is folded from (seed, step).
        progress: whether to show a progress bar and a line for each evaluation.

    Attributes:
        step: batches learned from so far.
        history: what was measured so far, a `History`.
        optimizer_state: optax's state.
        steps_per_second: the newest rate, None before a program's second compiled call.

    Raises:
        TypeError: for an argument of the wrong kind.

    >>> import jax.numpy as jnp, optax, pcflax as pc
    >>> from flax import nnx
    >>> rngs = nnx.Rngs(0)
    >>> network = pc.PCNetwork([pc.PCDense(64, 32, activation=jnp.tanh, rngs=rngs),
    ...                         pc.PCDense(32, 10, rngs=rngs)])
    >>> rule = pc.learning.PredictiveCoding(pc.inference.GradientDescent(optax.sgd(0.1)))
    >>> trainer = pc.Trainer(network, optax.adam(1e-2), learning=rule, progress=False)
    >>> history = trainer.fit(pc.data.load("digits"), epochs=5)
    >>> trainer.evaluate(pc.data.load("digits", split="test"))["accuracy"] > 0.9
    True
    """

    def __init__(
        self,
        network: AbstractPCNetwork,
        optimizer: optax.GradientTransformation,
        *,
        learning: AbstractLearning,
        checkpoints: Checkpoints | None = None,
        metrics: Mapping[str, MetricFunction] | None = None,
        callbacks: Iterable[Any] = (),
        seed: int = 0,
        progress: bool = True,
    ):
        check_parts(network, optimizer, learning, checkpoints)
        self.network = network
        self.optimizer = optimizer
        self.learning = learning
        self.checkpoints = checkpoints
        self.metrics = None if metrics is None else dict(metrics)
        check_metric_names(self.metrics or ())
        self.callbacks = CallbackList([*callbacks, *([ConsoleLogger()] if progress else [])])
        self.seed = operator.index(seed)
        self.step = 0
        self.history = History()
        self.optimizer_state = optimizer.init(split(network).parameters)
        self.steps_per_second: float | None = None
        self._pending: dict[str, list[float]] = {}  # measured since the last training row
        self._measured: MetricFunctions = ()  # the metrics among them
        self._data_description: dict | None = None
        self._restored_data: dict | None = None  # what the checkpoint was made on, until fit begins
        self._knows_folder = False  # whether the checkpoints there are ours: restored or written
        self._activities: dict = {}
        self._stop_asked = False
        self._written = Written(0, [], {}, 0.0)
        self._program: tuple | None = None  # what the newest fit ran: recipe and shapes
        self._shows_network = True  # whether a callback may read the network at a row of metrics

    # Training.

    def fit(
        self,
        data: Dataset,
        *,
        epochs: int | None = None,
        num_steps: int | None = None,
        eval_data: Dataset | None = None,
        eval_every: int | None = None,
        log_every: int = 50,
    ) -> History:
        """Train until a number of epochs or steps is reached, counted from step 0.

        The number is a total: after `restore()`, the same call ends where the uninterrupted run would
        have. Each epoch passes over the data in an order of its own; an incomplete last batch is left
        out.

        Args:
            data: from `pc.data.load` or `pc.data.from_arrays`.
            epochs: total number of passes over `data`; or
            num_steps: total number of batches.
            eval_data: measured every `eval_every` steps and after the last.
            eval_every: steps between evaluations; an epoch unless given.
            log_every: steps over which training metrics are averaged into one row.

        Returns:
            The history of all measurements.

        Raises:
            TypeError, ValueError: for data that the network cannot take, before anything is compiled.
            NonFiniteEnergyError: naming step, layer and the last good checkpoint; `network` then holds
                the parameters before that step.
            Terminated: on SIGTERM (exit code 143), after saving.
            KeyboardInterrupt: on Ctrl-C, after saving; a second one does not wait.
        """
        total = total_steps(data, epochs, num_steps)
        self.check_data(data, "training data")
        if eval_data is not None:
            self.check_data(eval_data, "evaluation data")
        for name, value in (("log_every", log_every), ("eval_every", eval_every)):
            if value is not None and value < 1:
                raise ValueError(f"expected {name} of at least 1 step, got {value}")
        before, now = self._restored_data, data.description()
        # what 0.1 did not store, a checksum, is not compared
        if before and any(now.get(key) != before.get(key) for key in {*before, "augment"}):
            warnings.warn(
                f"the checkpoint was made on {before}, and training goes on with {now}: it will not end as the uninterrupted run would have",
                CheckpointWarning,
                stacklevel=2,
            )
        self._restored_data, self._data_description = None, now
        if self.checkpoints is not None:
            measured = [name for name, _ in self._metric_functions(eval_data or data)]
            check_keep_best(self.checkpoints.keep_best, measured)
            self.checkpoints.prepare()
            self._check_folder()
        if self.step >= total:
            warnings.warn(
                f"nothing to do: {self.step} steps are done and {total} were asked for (epochs and "
                f"num_steps are totals, counted from step 0)",
                UserWarning,
                stacklevel=2,
            )
            return self.history
        eval_every = eval_every or data.num_batches
        calendar = Calendar(
            total=total,
            log=log_every,
            evaluate=eval_every if eval_data is not None else None,
            save=None if self.checkpoints is None else self.checkpoints.every or eval_every,
            epoch=data.num_batches if self.callbacks.listens("on_epoch_end") else None,
        )
        self._stop_asked = False
        self._shows_network = self.callbacks.listens("on_log", "on_measure", to_network=True)
        self.callbacks.notify("on_fit_start", self, total)
        with SignalCatcher() as signals:  # until the last save is sealed
            try:
                self._run(data, eval_data, calendar, signals)
            finally:
                self.callbacks.notify("on_fit_end", self)
                if self.checkpoints is not None:
                    self.checkpoints.close()
        signals.raise_caught()
        return self.history

    def stop(self) -> None:
        """Ask a running `fit` to end after the step at hand; for callbacks."""
        self._stop_asked = True

    def _run(
        self, data: Dataset, eval_data: Dataset | None, calendar: Calendar, signals: SignalCatcher
    ) -> None:
        recipe = Recipe(
            learning=self.learning,
            optimizer=self.optimizer,
            metrics=self._metric_functions(data),
            reader=data.reader,
            keep_activities=self.checkpoints is not None and self.checkpoints.activities,
        )
        self._measured = recipe.metrics
        key, constants, capacity = jax.random.key(self.seed), data.constants(), call_capacity(data)
        state = self._initial_state(data, recipe)
        if (recipe, data.spec()) != self._program:
            self._program, self.steps_per_second = (recipe, data.spec()), None
        first_step = self.step
        try:
            while self.step < calendar.total and not self._stop_asked:
                # The first call, which compiles, is short; the others follow the machine's speed.
                rate = self.steps_per_second
                length = 8 if rate is None else max(1, int(_SECONDS_A_CALL * rate))
                count = min(calendar.next(self.step) - self.step, capacity, length)
                items = padded(data.items(self.step, count), capacity)
                begin = time.perf_counter()
                state, measured = learn_batches(
                    state, constants, items, jnp.int32(count), key, recipe=recipe
                )
                values, done, failed = jax.device_get(measured)
                done = int(done) - int(failed)  # a failed step was not applied
                if self.step > first_step and done:
                    self.steps_per_second = done / (time.perf_counter() - begin)
                self.step += done
                values = expanded(values)
                for name, column in values.items():
                    self._pending.setdefault(f"train/{name}", []).extend(column[:done].tolist())
                if failed:
                    found = {name: float(column[done]) for name, column in values.items()}
                    raise non_finite_error(self.step + 1, found, self._last_good())
                if self._tell(state, eval_data, calendar, signals):
                    break
                if self._written.step == self.step and self._objects_changed():
                    # callbacks were told, and acted: on parameters, or by going back
                    state, key = self._initial_state(data, recipe), jax.random.key(self.seed)
        except BaseException:
            self._recover(state)
            raise

    def _tell(
        self,
        state: TrainState,
        eval_data: Dataset | None,
        calendar: Calendar,
        signals: SignalCatcher,
    ) -> bool:
        """Log, evaluate and save what is due after this step; returns whether to stop here."""
        step = self.step
        self.callbacks.notify("on_progress", self, step)
        if self.step != step:  # a callback went back by restore(): what is due here is not any more
            return self._stop_asked
        due = {
            event for event in ("log", "evaluate", "save", "epoch") if calendar.is_due(event, step)
        }
        waited = time.perf_counter() - self._written.clock > _SECONDS_A_WRITE
        ending = self._stop_asked or step >= calendar.total
        if ending or waited or due - {"log"} or (due and self._shows_network):
            self._write_back(state)  # who is told next sees the network as of this step
        if "log" in due:
            self._log()
        if eval_data is not None and "evaluate" in due and self.step == step:
            self._evaluate_and_tell(eval_data)
        if "epoch" in due and self.step == step:
            self.callbacks.notify("on_epoch_end", self, step // calendar.epoch - 1)  # type: ignore
        if self.step != step:
            return self._stop_asked
        stopping = self._stop_asked or signals.caught is not None
        if stopping and self._written.step != step:
            self._write_back(state)  # the stop was asked for since
        if "save" in due or (stopping and calendar.save is not None):
            self._save()
        return stopping

    def _recover(self, state: TrainState) -> None:
        """After an error: network, optimizer state and step agree, on the newest state there is."""
        if self._objects_changed():
            return  # a callback changed them before it failed
        if not any(leaf.is_deleted() for leaf in jax.tree.leaves(state)):
            self.step = int(state.step)
            self._write_back(state)
            return
        # Interrupted within a call, whose input was donated: back to what was written last.
        self.step, rows = self._written.step, self.history.rows
        self.history.rows = [row for row in rows if row["step"] <= self.step]
        at_step = {name for row in rows if row["step"] == self.step for name in row}
        logged = any(name.startswith("train/") for name in at_step)
        self._pending = {} if logged else self._written.pending

    def _objects_changed(self) -> bool:
        """Whether user code has changed network, optimizer state or step since they were written."""
        now, then = self._object_leaves(), self._written.arrays
        return bool(then) and (len(now) != len(then) or any(map(operator.is_not, now, then)))

    def _object_leaves(self) -> list:
        network = split(self.network)
        return jax.tree.leaves((network.parameters, network.other, self.optimizer_state))

    # Measuring.

    def evaluate(self, data: Dataset) -> dict[str, float]:
        """Means over every example of a data set: the metrics, and the energy.

        The energy is F at the feedforward activities with the targets scored on top, which for a
        chain is the output's energy. Inference never sees the targets.

        Args:
            data: from `pc.data.load` or `pc.data.from_arrays`; its incomplete last batch counts too.

        Returns:
            {"accuracy": ..., "energy": ...} and whatever metrics the Trainer was given.
        """
        self.check_data(data, "evaluation data")
        return evaluate(split(self.network), data, self._metric_functions(data))

    def predict(self, inputs: Any, *, batch_size: int = 500) -> np.ndarray:
        """The network's feedforward predictions.

        Args:
            inputs: (examples, *features), floating; or a data set, whose stored order is kept.
            batch_size: examples in one compiled call, where `inputs` is an array.

        Returns:
            (examples, *out); logits where the last layer's energy works on logits.
        """
        return predict(split(self.network), inputs, batch_size)

    # Checkpoints.

    def save(self) -> Path:
        """Save a checkpoint now and return its folder.

        Raises:
            ValueError: where the Trainer has no `checkpoints`.
            NonFiniteEnergyError: where a parameter is NaN or infinite; nothing is written.
        """
        checkpoints = self._needs_checkpoints()
        checkpoints.prepare()
        self._check_folder()
        path = self._save()
        checkpoints.close()
        return path

    def restore(self, step: int | None = None, *, best: bool = False) -> int:
        """Go back to a checkpoint: parameters, optimizer state, step, seed, history.

        Args:
            step: of that step; the newest good one unless given.
            best: the best by `keep_best`.

        Returns:
            The step that training will go on from.

        Raises:
            FileNotFoundError: where there is no checkpoint.
            CheckpointError: where it is damaged, or made by a network or optimizer of another shape;
                the first difference is named and nothing is changed.
            ValueError: where the Trainer has no `checkpoints`.
        """
        stored = self._needs_checkpoints().read(step, best=best)
        parameters, other = network_arrays(self.network)
        check_arrays("parameter", stored.sections["parameters"], parameters)
        check_arrays("state", stored.sections["other"], other)
        optimizer_state = as_arrays(self.optimizer_state)
        check_arrays(
            "optimizer state",
            stored.sections["optimizer"],
            flatten(optimizer_state),
            owner="optimizer",
        )
        write_network_arrays(
            self.network, {**stored.sections["parameters"], **stored.sections["other"]}
        )
        self._activities = {
            name: jnp.array(value, copy=True) for name, value in stored.activities.items()
        }
        self.network.set_activities(self._activities)
        self.optimizer_state = unflatten(optimizer_state, stored.sections["optimizer"])
        self.step, self.seed = stored.step, stored.meta["seed"]
        self._written = self._written._replace(step=self.step)
        self.history = History(stored.meta["history"])
        self._pending = {name: list(column) for name, column in stored.meta["pending"].items()}
        self._data_description = self._restored_data = stored.meta["data"]
        self._knows_folder = True
        return self.step

    def _check_folder(self) -> None:
        """Refuse to train over another run's checkpoints."""
        later = [step for step in self._needs_checkpoints().steps() if step > self.step]
        if later and not self._knows_folder:
            raise FileExistsError(
                f"{self.checkpoints.directory} holds checkpoints up to step {later[-1]}, but this "  # type: ignore
                f"Trainer is at step {self.step} and has restored none; call trainer.restore() to go on "
                f"with that run, or choose another folder"
            )

    def _save(self) -> Path:
        checkpoints = self._needs_checkpoints()
        parameters, other = network_arrays(self.network)
        for name, array in parameters.items():
            if not bool(jnp.isfinite(array).all()):
                raise NonFiniteEnergyError(
                    f"parameter '{name}' is not finite after step {self.step}, so nothing was saved; "
                    f"{self._last_good()}"
                )
        evaluated: dict[str, float] = {}
        for row in reversed(self.history.rows):
            if row["step"] != self.step:
                break
            evaluated |= {name: value for name, value in row.items() if name.startswith("eval/")}
        path = checkpoints.save(
            self.step,
            {
                "parameters": parameters,
                "optimizer": flatten(as_arrays(self.optimizer_state)),
                "other": other,
                "activities": dict(self._activities),
            },
            {
                "seed": self.seed,
                "data": self._data_description,
                "metrics": self.history.last(),
                "evaluated": evaluated,
                "history": self.history.rows,
                "pending": self._pending,
                "versions": {"jax": jax.__version__, "device": jax.local_devices()[0].device_kind},
            },
        )
        self._knows_folder = True
        self.callbacks.notify("on_checkpoint", self, self.step, path)
        return path

    def _needs_checkpoints(self) -> Checkpoints:
        if self.checkpoints is None:
            raise ValueError(
                "this Trainer has no checkpoints; make it with checkpoints=pc.Checkpoints('runs/...')"
            )
        return self.checkpoints

    # Parts.

    def _initial_state(self, data: Dataset, recipe: Recipe) -> TrainState:
        network = split(self.network)
        activities = {}
        if recipe.keep_activities:
            spec = data.spec()
            shapes = jax.eval_shape(
                lambda *batch: network.bind().start(*batch), spec.inputs, spec.targets
            )
            activities = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
        state = TrainState(
            network, as_arrays(self.optimizer_state), jnp.int32(self.step), activities
        )
        self._remember_written()
        # The loop's state is donated: what the network and its user hold must not go with it.
        return copied(state)

    def _write_back(self, state: TrainState) -> None:
        """Copies of the loop's arrays into the objects, which outlive the next donation."""
        copy = copied(state)
        nnx.update(self.network, copy.network.parameters, copy.network.other)
        self.optimizer_state = copy.optimizer_state
        self._activities = copy.activities
        self.network.set_activities(copy.activities)
        self._remember_written()

    def _remember_written(self) -> None:
        pending = {name: list(column) for name, column in self._pending.items()}
        self._written = Written(self.step, self._object_leaves(), pending, time.perf_counter())

    def _log(self) -> None:
        columns = {name: column for name, column in self._pending.items() if column}
        means = {name: math.fsum(column) / len(column) for name, column in columns.items()}
        row, self._pending = of_means(means, self._measured, "train/"), {}
        if row:
            row |= self.callbacks.measure(self, self.step)
            self.history.append(self.step, row)
            self.callbacks.notify("on_log", self, self.step, row)

    def _evaluate_and_tell(self, eval_data: Dataset) -> None:
        row = {f"eval/{name}": value for name, value in self.evaluate(eval_data).items()}
        self.history.append(self.step, row)
        self.callbacks.notify("on_evaluate", self, self.step, row)

    def _metric_functions(self, data: Dataset) -> tuple[tuple[str, MetricFunction], ...]:
        metrics = self.metrics
        if metrics is None:
            metrics = default_metrics(data.num_classes, sequences=data.has_sequences)
        return tuple(metrics.items())

    def check_data(self, data: Dataset, role: str = "data") -> None:
        """See that a data set fits the network, by one batch's shapes, without computing anything.

        `fit` and `evaluate` do so first.

        Args:
            data: from `pc.data.load` or `pc.data.from_arrays`.
            role: what an error calls it.

        Raises:
            TypeError, ValueError: saying what does not fit, and in which layer.
        """
        check_data(split(self.network), data, self._metric_functions, role)

    def _last_good(self) -> str:
        path = self.checkpoints.latest_good() if self.checkpoints is not None else None
        return f"the last good checkpoint is {path}" if path else "there is no checkpoint"
