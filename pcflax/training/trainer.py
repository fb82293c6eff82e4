"""The Trainer: networks, data and settings in; a trained network, its history and its checkpoints out.

It checks what it is given and hands it on: a `Run` holds the state and the objects that show it, a `Fit`
trains, `Saving` saves. Next file to read: `fitting.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import optax
from jax.sharding import Mesh

from pcflax.checks import expect_kind, expect_seed
from pcflax.data import Dataset
from pcflax.learning import AbstractLearning
from pcflax.networks import AbstractPCNetwork
from pcflax.settings import Argument
from pcflax.sharding import Placement
from pcflax.typing import MetricFunction, PyTree

from .calendar import make_calendar
from .callbacks import CallbackList
from .checkpoints import Checkpoints
from .checks import check_data, measured_names, total_steps, warn_done
from .choices import Choices
from .evaluation import evaluate, predict
from .fitting import Fit, train
from .history import History
from .loaders import as_dataset
from .loggers import ConsoleLogger
from .loop import Recipe
from .measure import metrics_for
from .metrics import by_node
from .placement import layout_of
from .reading import AbstractReading, is_told_below
from .signals import SignalCatcher
from .staging import Pace
from .step_limit import StepLimit


class Trainer(Choices):
    """Trains a network on batches, measures it, saves it and restores it.

    Args:
        network: trained in place: it holds the newest parameters after `fit`, after an error, and
            whenever it is read as `trainer.network`.
        optimizer: an optax transformation of the parameters' gradients. One that wants the `value`, such
            as `optax.contrib.reduce_on_plateau()`, gets the batch-mean energy.
        learning: the rule, such as `pc.learning.PredictiveCoding(...)`.
        reads: how evaluations and `predict` read an answer: `pc.Feedforward()` unless given (along
            time `pc.Forecast`), or by inference, `pc.Equilibrium(...)` and `pc.Reconstruction(...)`. Training
            rows hold metrics of the pass upward, so with another reading, and of data that say nothing below
            the outputs, they hold energy and loss alone.
        wrt: which parameters learn; all unless given. Names or patterns of layers or paths, ("output",
            "*.bias"), or a filter of nnx such as `nnx.LoRAParam`. The others stay as they are.
        checkpoints: where and what to save; nothing is saved without.
        metrics: {name: function of (prediction, targets) -> (batch,)}; of a reading of several nodes,
            {node: {name: function}}. Unless given, accuracy for labeled data, with the perplexity for
            sequences, and the squared error for other data.
        callbacks: loggers and other callbacks, told in order.
        mesh: the devices that share the work, where the network is put: `pc.sharding.data()` or another
            placement, or a mesh of jax's with axes of those names; where the network lies, unless given.
        seed: every random choice is folded from (seed, step); from 0 to 2**32 - 1.
        progress: whether to show a progress bar and a line for each evaluation.

    Attributes:
        measures: the names of what the newest fit measures, energies of layers left out.
        optimizer: as given; it may be set anew, as `learning`, `reads`, `metrics` and `checkpoints` may.
            Another goes on with the state where its own has that form, and begins anew where not.

    Raises:
        TypeError, ValueError: for an argument of the wrong kind, or a name that fits nothing.

    >>> import optax, pcflax as pc
    >>> from flax import nnx
    >>> network = pc.models.mlp(64, 32, 10, rngs=nnx.Rngs(0))
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
        reads: AbstractReading | None = None,
        wrt: Any = None,
        checkpoints: Checkpoints | None = None,
        metrics: Mapping[str, MetricFunction] | None = None,
        callbacks: Iterable[Any] = (),
        mesh: Placement | Mesh | None = None,
        seed: int = 0,
        progress: bool = True,
    ):
        expect_kind("Trainer", "network", network, AbstractPCNetwork, "pc.PCNetwork([...])")
        self.callbacks = CallbackList([*callbacks, *([ConsoleLogger()] if progress else [])])
        self.measures: tuple[str, ...] = ()
        super().__init__(
            network,
            optimizer,
            learning=learning,
            reads=reads,
            wrt=wrt,
            checkpoints=checkpoints,
            metrics=metrics,
            seed=expect_seed("Trainer", seed),
            layout=layout_of("Trainer", mesh, network),
        )
        self._pace, self._limit = Pace(), StepLimit()

    def __repr__(self) -> str:
        kinds = f"{type(self.network).__name__}, learning={type(self.learning).__name__}"
        return f"Trainer({kinds}, step={self.step}, checkpoints={self.checkpoints})"

    @property
    def network(self) -> AbstractPCNetwork:
        """The network, with the parameters as of `step`; what is changed in it is trained on."""
        return self._run.network

    @property
    def optimizer_state(self) -> PyTree:
        """Optax's state as of `step`; what is changed in it is trained on."""
        return self._run.optimizer_state

    @optimizer_state.setter
    def optimizer_state(self, value: PyTree) -> None:
        self._run.optimizer_state = value

    @property
    def step(self) -> int:
        """Batches learned from so far."""
        return self._run.step

    @property
    def steps_per_second(self) -> float | None:
        """The newest rate; None before a program's second compiled call."""
        return self._pace.steps_per_second

    @property
    def history(self) -> History:
        """What was measured so far."""
        return self._run.record.history

    @property
    def seed(self) -> int:
        """What every random choice is folded from, together with the step."""
        return self._run.record.seed

    @property
    def began(self) -> int:
        """The step at which the newest fit began; of a restored one, as it was saved."""
        return self._run.record.began

    # Training.

    def fit(
        self,
        data: Dataset | Iterable[Any],
        *,
        epochs: int | None = None,
        num_steps: int | None = None,
        eval_data: Dataset | Iterable[Any] | None = None,
        eval_every: int | None = None,
        log_every: int = 50,
    ) -> History:
        """Train until a number of epochs or steps is reached, counted from step 0.

        The number is a total: after `restore()`, the same call ends where the uninterrupted run would
        have. Each epoch passes over the data in an order of its own; an incomplete last batch is left
        out. Another data set than that of the fit before begins with its first epoch. Layers are in
        training mode, whatever `network.eval()` said.

        Args:
            data: of `pc.data`; or grain's pipeline or torch's `DataLoader` itself, see `pc.data.from_loader`.
            epochs: total number of passes over `data`; or
            num_steps: total number of batches, of data without a length.
            eval_data: measured every `eval_every` steps and after the last.
            eval_every: steps between evaluations; an epoch unless given.
            log_every: steps over which training metrics are averaged into one row.

        Returns:
            The history of all measurements.

        Raises:
            TypeError, ValueError: for data that the network cannot take, before anything is compiled.
            NonFiniteEnergyError: naming step, layer and the last good checkpoint; `network` then holds
                the parameters before that step.
            Terminated: on SIGTERM (exit code 143) and SIGHUP (129), after saving. SIGUSR1 saves, and
                training goes on.
            KeyboardInterrupt: on Ctrl-C, after saving; a second one does not wait.
            RuntimeError: where a callback of this Trainer calls it, whose fit goes on.
            RuntimeError, ConnectionError: where another process fails, or has ended.
        """
        fit = self.prepare(data, epochs, num_steps, eval_data, eval_every, log_every)
        if fit is None:
            return self.history
        with SignalCatcher() as signals, fit.opened():  # until the last save is sealed
            train([fit], signals)
        signals.raise_caught()
        return self.history

    def prepare(
        self,
        data: Any,
        epochs: int | None,
        num_steps: int | None,
        eval_data: Any,
        eval_every: int | None,
        log_every: int,
        done_too: bool = False,
    ) -> Fit | None:
        """Check what `fit` is given, and return what trains.

        None, and a warning, where nothing is to do; with `done_too`, a fit that is over.

        Raises:
            TypeError, ValueError, RuntimeError: as `fit`, before anything is computed.
        """
        if self._run.trains:
            raise RuntimeError(
                "fit was called within a fit of the same Trainer, by a callback; let another "
                "Trainer do it, or call trainer.stop() and fit again when this one has ended"
            )
        network = self._run.state().network
        bound = network.bind()  # to be looked at
        data = as_dataset(data, network, self.passes, self._run.record.source)
        total = total_steps(data, epochs, num_steps)
        # rows of training measure the pass upward, where that is what is read
        passes = type(self.reads) is type(self.passes) and (
            self.passes.along_time or is_told_below(bound, data.spec())
        )
        find = functools.partial(metrics_for, self.metrics, self.reads, network)
        metrics = find(data) if passes else ()
        reads = self.passes if passes or self.passes.along_time else None
        check_data(network, bound, data, lambda _: metrics, "training data", reads)
        if eval_data is not None:
            eval_data = as_dataset(eval_data, network, self.passes, data)
            self.check_data(eval_data, "evaluation data")
        calendar = make_calendar(
            data, total, log_every, eval_every, eval_data, self.checkpoints, self.callbacks
        )
        recipe = Recipe(metrics, data.reader)
        measured = find(eval_data or data)
        self.measures = measured_names(recipe.metrics, None if eval_data is None else measured)
        if self.checkpoints is not None:
            self._saving.check_best(measured_names(None, measured), eval_data is not None)
            self._saving.check_folder(self._run)
        owes = self._run.owes(data)
        if self.step >= total and not (done_too or owes):
            warn_done(self.step, total, data)
            return None
        goes_on = self._run.record.begin(self.step, data)
        self._run.stop_asked = False
        keeps = self.checkpoints is not None and self.checkpoints.activities
        self._run.carry_activities(data.spec() if keeps else None, self.learning)
        self._run.carry_starts(self.learning, data, goes_on=goes_on)
        return Fit(
            trainer=self,
            run=self._run,
            data=data,
            recipe=recipe,
            rule=self.learning,
            optimizer=Argument(self.optimizer),
            calendar=dataclasses.replace(calendar, start=self._run.record.data_start),
            evaluate=lambda: self.evaluate(eval_data),
            callbacks=self.callbacks,
            saving=self._saving,
            pace=self._pace,
            limit=self._limit,
        )

    def stop(self) -> None:
        """Ask a running `fit` to end after the step at hand; for callbacks."""
        self._run.stop_asked = True

    # Measuring.

    def evaluate(
        self,
        data: Any,
        *,
        reads: AbstractReading | None = None,
        metrics: Mapping[str, MetricFunction] | None = None,
    ) -> dict[str, float]:
        """Return means over every example of a data set: the metrics, and the energy.

        Inference never sees what is read. With `pc.Feedforward()` the energy is F at the feedforward
        activities with the targets scored on top, which for a chain is the output's energy; with a
        reading that infers, F where inference ended.

        Args:
            data: as for `fit`; its incomplete last batch counts too.
            reads: another reading than the Trainer's.
            metrics: others than the Trainer's.

        Returns:
            {"accuracy": ..., "energy": ...} and whatever metrics there are; "converged", the
            share of examples, where the reading stops at a tolerance.

        Raises:
            TypeError, ValueError: for what is no reading, or data that the network cannot take.
            NonFiniteEnergyError: where a reading's inference ended at numbers that are not finite.
        """
        reads, network = self._check_reading(reads), self._run.state().network
        data = as_dataset(data, network, self.passes)
        given = self.metrics if metrics is None else by_node(metrics)
        find = functools.partial(metrics_for, given, reads, network)
        check_data(network, network.bind(), data, find, "evaluation data", reads)
        return evaluate(network, data, find(data), reads, self._run.key)

    def predict(
        self, inputs: Any, *, reads: AbstractReading | None = None, batch_size: int = 500
    ) -> Any:
        """Return what the network answers: its feedforward predictions, or what another reading reads.

        Args:
            inputs: (examples, *features), floating; a `pc.Evidence`; or data as for `fit`, in stored order.
            reads: another reading than the Trainer's.
            batch_size: examples in one compiled call, where `inputs` is no data set.

        Returns:
            (examples, *features), logits where the energy works on logits; of several nodes, by name.

        Raises:
            TypeError, ValueError: for what is no reading, or inputs that the network cannot take.
            NonFiniteEnergyError: where a reading's inference ended at numbers that are not finite.
        """
        reads, network = self._check_reading(reads), self._run.state().network
        inputs = as_dataset(inputs, network, self.passes)
        return predict(network, inputs, batch_size, reads, self._run.key)

    def check_data(
        self, data: Any, role: str = "data", *, reads: AbstractReading | None = None
    ) -> None:
        """See that a data set fits the network, by one batch's shapes, without computing anything.

        `fit` and `evaluate` do so first.

        Args:
            data: as for `fit`.
            role: what an error calls it.
            reads: another reading than the Trainer's.

        Raises:
            TypeError, ValueError: saying what does not fit, and in which layer.
        """
        reads, network = self._check_reading(reads), self._run.state().network
        find = functools.partial(metrics_for, self.metrics, reads, network)
        data = as_dataset(data, network, self.passes)
        check_data(network, network.bind(), data, find, role, reads)

    # Checkpoints.

    def save(self) -> Path:
        """Save a checkpoint now and return its folder.

        Raises:
            ValueError: where the Trainer has no `checkpoints`.
            NonFiniteEnergyError: where a parameter is NaN or infinite; nothing is written.
        """
        checkpoints = self._saving.needed()
        self._saving.check_folder(self._run)
        path = self._saving.save(self._run)
        self.callbacks.notify("on_checkpoint", self, self.step, path)
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
        self._saving.restore(self._run, step, best=best)
        return self.step
