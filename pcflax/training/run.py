"""A run: its newest state, the objects that show it, and its record.

The truth is one `TrainState`. The network object and the optimizer state that users see are views of it: the
state is written into them when they are read, and read from them again before the next compiled call, since
the reader may have changed them. Next file to read: `fitting.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pcflax.data import Dataset
from pcflax.errors import CheckpointWarning
from pcflax.inference.trajectory import make_trajectory
from pcflax.initializers import AbstractKeptStart
from pcflax.layers import Evidence
from pcflax.learning import AbstractLearning
from pcflax.networks import AbstractPCNetwork
from pcflax.sharding.arrays import put
from pcflax.sharding.layout import Layout
from pcflax.typing import Activities, PyTree

from .checkpoints import Checkpoint
from .checkpoints.arrays import (
    FlatArrays,
    as_arrays,
    copied,
    flatten,
    network_arrays,
    unflatten,
    write_network_arrays,
)
from .checkpoints.fingerprint import describe
from .placement import initial_optimizer_state, placed, places_of
from .record import Record
from .step import TrainState, in_training

# Bytes of a state from which on a third one costs more than writing the objects at each call.
_LARGE = 256 * 2**20


class Run:
    """What `fit` goes on with, a checkpoint stores, and `trainer.network` shows.

    `step` counts the batches learned from so far. The network is trained in place.
    """

    def __init__(
        self,
        network: AbstractPCNetwork,
        optimizer: optax.GradientTransformation,
        seed: int,
        layout: Layout | None = None,
    ):
        self.step, self.record, self.stop_asked = 0, Record(seed), False
        # What follows a step, "log" and the like, and was not done after the newest: an error came between.
        self.owed: set[str] = set()
        # Rows that are not in the history: the step, means of training, and what callbacks measured.
        self.untold: list[tuple[int, dict[str, float], dict[str, float]]] = []
        self.key = jax.random.key(seed)
        self._network = network
        self.layout = layout  # None: one device
        parameters = in_training(network).parameters
        self._optimizer_state = initial_optimizer_state(optimizer, parameters, layout)
        self._activities: Activities = {}
        self._starts: PyTree = {}  # right after a restore by path, as a checkpoint has them
        self._state: TrainState | None = None
        # Whether somebody has the objects who may change them: then they are the truth.
        self._shown = True
        self._written = 0  # the step at which the objects were written last
        self.trains = False  # a fit does
        self._next_optimizer: optax.GradientTransformation | None = None  # that a callback has set

    @property
    def network(self) -> AbstractPCNetwork:
        """The network as of `step`; what the reader changes in it is trained on from here."""
        self.show()
        return self._network

    @property
    def optimizer_state(self) -> PyTree:
        """Optax's state as of `step`, likewise."""
        self.show()
        return self._optimizer_state

    @optimizer_state.setter
    def optimizer_state(self, value: PyTree) -> None:
        self.show()
        self._optimizer_state = value

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Keep the optimizer's state in its form while a fit trains, which goes on with its optimizer."""
        self.trains = True
        try:
            yield
        finally:
            self.trains = False
            if (optimizer := self._next_optimizer) is not None:
                self._next_optimizer = None
                self.go_on_with(optimizer)

    def go_on_with(self, optimizer: optax.GradientTransformation) -> None:
        """Begin another optimizer's state, where that has another form than the state that there is.

        While a fit trains, that waits for its end.

        Warns:
            UserWarning: where an injected hyperparameter stays another than the optimizer has.
        """
        if self.trains:
            self._next_optimizer = optimizer
            return
        self.show()
        parameters = in_training(self._network).parameters
        begun = initial_optimizer_state(optimizer, parameters, self.layout)
        if _form(begun) != _form(as_arrays(self._optimizer_state)):
            self._optimizer_state = begun
        else:
            _warn_of_injected(begun, self._optimizer_state, "state's", UserWarning, 4)

    def state(self) -> TrainState:
        """Return the newest state; where the objects are shown, theirs, whose arrays it shares."""
        if self._shown or self._state is None:
            state = TrainState(
                in_training(self._network),
                as_arrays(self._optimizer_state),
                jnp.int32(self.step),
                self._activities,
                self._starts,
            )
            self._state = state if self.layout is None else placed(state, self.layout)
        return self._state

    def places(self) -> tuple | None:
        """Return where each array of the state lies on the mesh, leaf by leaf; None on one device."""
        if self.layout is None:
            return None
        return tuple(jax.tree.leaves(places_of(self.state(), self.layout)))

    def take(self, *, as_read: bool = False) -> TrainState:
        """Return the newest state for a call, which consumes its starts; `put` follows.

        Args:
            as_read: nobody has changed the objects since a state was read.
        """
        if as_read and self._shown and self._state is not None and self.layout is None:
            kept = {"activities": self._activities, "starts": self._starts}
            self._state, self._shown = dataclasses.replace(self._state, **kept), False
        state = self.state()
        if sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) > _LARGE:
            self.write()  # so that the objects hold no third state beside this one and the next
        self._shown = False
        return state

    def put(self, state: TrainState) -> None:
        """Hold the state that a call returned; `learned` says how far it is."""
        self._state, self._starts = state, state.starts

    def learned(self, values: dict[str, np.ndarray], count: int) -> None:
        """Count the steps of a call and record what they measured."""
        self.record.add(values, count)
        self.step += count

    def owes(self, data: Dataset) -> bool:
        """Return whether something is due after the newest step; to another data set nothing is."""
        if not self.record.is_on(data):
            self.owed.clear()
        return bool(self.owed)

    def write(self) -> None:
        """Write the state into the objects, unless they hold it."""
        if self._written == self.step:
            return
        state = self.state()
        state.lend_to(self._network)
        self._optimizer_state, self._activities = state.optimizer_state, state.activities
        self._starts = state.starts
        self._written = self.step

    def show(self) -> None:
        """Write the objects for somebody who may change them."""
        self.write()
        self._shown = True

    def carry_activities(self, spec: Evidence | None, rule: AbstractLearning) -> None:
        """Let the state carry the activities of such batches from one to the next, or none."""
        shapes = {}
        if spec is not None:
            network = self.state().network

            def start(batch: Evidence) -> Activities:
                if not rule.along_time:
                    return network.bind().start(batch)
                problem = make_trajectory(network, batch)
                return problem.decode(problem.start)

            shapes = jax.eval_shape(start, spec)
        self.show()
        self._activities = {k: jnp.zeros(leaf.shape, leaf.dtype) for k, leaf in shapes.items()}

    def carry_starts(self, rule: AbstractLearning, data: Dataset, *, goes_on: bool) -> None:
        """Let the state carry what the rule's initializer keeps; what it kept where the data go on."""
        self.show()
        initializer = getattr(rule, "initializer", None)
        stored, self._starts = flatten(self._starts), {}
        if isinstance(initializer, AbstractKeptStart):
            # a copy, since a call consumes it: the initializer may hold what it began with
            self._starts = copied(initializer.begin(self.state().network, data))
            specs = [
                {n: (a.shape, a.dtype) for n, a in flat.items()}
                for flat in (stored, flatten(self._starts))
            ]
            if goes_on and specs[0] == specs[1]:
                self._starts = unflatten(self._starts, stored)

    def settle(self) -> None:
        """Show the newest state there is, after a fit or an error within it."""
        if not self._shown:
            state = self.state()
            if any(leaf.is_deleted() for leaf in jax.tree.leaves(state.starts)):
                warnings.warn(
                    "the kept starts were lost with the call that failed; they begin anew in the next fit",
                    UserWarning,
                    stacklevel=6,  # where fit was called
                )
                self.put(dataclasses.replace(state, starts={}))
            self.step = int(state.step)
        self.show()
        self._state = None  # the objects hold it
        self.record.restored = None

    def sections(self) -> dict[str, FlatArrays]:
        """Return the arrays of a checkpoint, by section and path."""
        self.write()
        parameters, other = network_arrays(self._network)
        optimizer_state = as_arrays(self._optimizer_state)
        activities, starts = dict(self._activities), self._starts
        if self.layout is not None:  # what was restored lies on the host
            activities = put(activities, self.layout.places_of_activities(activities))
            starts = self.layout.put(starts)
        return {
            "parameters": parameters,
            "optimizer": flatten(optimizer_state),
            "other": other,
            "activities": activities,
            "starts": flatten(starts),
        }

    def meta(self) -> dict[str, Any]:
        """Return what a checkpoint stores beside its arrays."""
        return {
            **self.record.to_meta(self.step),
            "layers": list(self._network.layer_names),
            "architecture": describe(self._network),
        }

    def restore(self, stored: Checkpoint) -> None:
        """Go to a checkpoint, or change nothing.

        Warns:
            CheckpointWarning: where an injected hyperparameter is another than the optimizer had.
        """
        optimizer_state = as_arrays(self._optimizer_state)
        arrays, optimizer_arrays = stored.arrays_for(self._network, optimizer_state)
        record = Record.of_checkpoint(stored)
        write_network_arrays(self._network, arrays)
        self._optimizer_state = unflatten(optimizer_state, optimizer_arrays)
        _warn_of_injected(
            optimizer_state, self._optimizer_state, "checkpoint's", CheckpointWarning, 5
        )
        self._activities = copied(dict(stored.activities))
        self._starts = copied(dict(stored.sections["starts"]))
        self._network.set_activities(self._activities)
        self.step, self.record, self.owed = stored.step, record, set()
        self.untold = []
        self.key = jax.random.key(self.record.seed)
        self._written, self._shown, self._state = self.step, True, None


def _warn_of_injected(
    before: PyTree, after: PyTree, whose: str, kind: type[Warning], level: int
) -> None:
    """Tell which hyperparameters of `optax.inject_hyperparams` are those of the state and not the user's."""
    told = []
    for old, new in zip(_injected(before), _injected(after), strict=True):
        for name, value in new.hyperparams.items():
            given = old.hyperparams[name]
            if name not in new.hyperparams_states and bool(jnp.any(value != given)):
                told.append(f"{name} {value}, and not {given}")
    if told:
        warnings.warn(
            f"the optimizer goes on with the {whose} {', '.join(told)}: what "
            f"optax.inject_hyperparams injects is part of the state; to change it, write it into "
            f"trainer.optimizer_state",
            kind,
            stacklevel=level,  # where restore was called, or the optimizer set
        )


def _injected(state: PyTree) -> list:
    kind = optax.InjectStatefulHyperparamsState
    leaves = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]


def _form(tree: PyTree) -> tuple:
    leaves = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]
    return jax.tree.structure(tree), leaves
