"""What a Trainer is told: optimizer, rule, reading, metrics and checkpoints, each checked where it is set.

What is set later counts from the next call on. Next file to read: `trainer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optax

from pcflax.checks import expect_kind
from pcflax.learning import AbstractLearning
from pcflax.networks import AbstractPCNetwork, split
from pcflax.sharding.layout import Layout
from pcflax.typing import MetricFunction

from .checkpoints import Checkpoints
from .checks import as_optimizer, check_rule
from .filtering import Forecast
from .freezing import restrict
from .metrics import by_node
from .reading import AbstractReading
from .run import Run
from .saving import Saving


class Choices:
    """The settings of a Trainer; see there what each of them is.

    Raises:
        TypeError, ValueError: for what is no such setting, here and where one is set.
    """

    def __init__(
        self,
        network: AbstractPCNetwork,
        optimizer: Any,
        *,
        learning: AbstractLearning,
        reads: AbstractReading | None,
        wrt: Any,
        checkpoints: Checkpoints | None,
        metrics: Mapping[str, MetricFunction] | None,
        seed: int,
        layout: Layout | None,
    ):
        self._saving, self._wrt = Saving(checkpoints), wrt
        optimizer = as_optimizer("Trainer", optimizer, split(network).parameters)
        self._optimizer = restrict(optimizer, network, wrt)
        self._run = Run(network, self._optimizer, seed, layout)
        self.learning, self.reads, self.metrics = learning, reads, metrics

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """What moves the parameters that `wrt` names.

        Another one goes on with the state as it is, where its own has that form (Adam with another rate);
        else it begins anew. Injected hyperparameters are part of the state; one that differs is a warning.
        Set while a fit trains, by a callback, it counts from the next fit on; the state stays until then.

        Raises:
            TypeError, ValueError: where it is set to what is none, or cannot train the network.
        """
        return self._optimizer

    @optimizer.setter
    def optimizer(self, value: Any) -> None:
        if value is self._optimizer:  # which `wrt` would restrict once more
            return
        network = self._run.network
        value = as_optimizer("Trainer", value, split(network).parameters)
        self._optimizer = restrict(value, network, self._wrt)
        self._run.go_on_with(self._optimizer)

    @property
    def learning(self) -> AbstractLearning:
        """The rule.

        Raises:
            TypeError, ValueError: where it is set to what is none, or cannot train the network.
        """
        return self._learning

    @learning.setter
    def learning(self, value: Any) -> None:
        self._learning = check_rule("Trainer", value, self._run.network)

    @property
    def passes(self) -> AbstractReading:
        """The reading of the pass upward, which rows of training measure."""
        return Forecast.of(self.learning)

    @property
    def reads(self) -> AbstractReading:
        """How evaluations and `predict` read an answer; None sets the pass upward.

        Raises:
            TypeError: where it is set to what is none.
        """
        return self.passes if self._reads is None else self._reads

    @reads.setter
    def reads(self, value: AbstractReading | None) -> None:
        self._reads = None if value is None else self._check_reading(value)

    def _check_reading(self, reads: AbstractReading | None) -> AbstractReading:
        if reads is None:
            return self.reads
        return expect_kind(
            "Trainer", "reads", reads, AbstractReading, "pc.Equilibrium(inference, read='label')"
        )

    @property
    def metrics(self) -> dict[str, MetricFunction] | None:
        """What is measured, those of a node as "node/name"; None where that follows from the data.

        Raises:
            TypeError, ValueError: where they are set to what are none.
        """
        return self._metrics

    @metrics.setter
    def metrics(self, value: Mapping[str, Any] | None) -> None:
        self._metrics = None if value is None else by_node(value)

    @property
    def checkpoints(self) -> Checkpoints | None:
        """Where and what to save; another run's are restored before they are trained over.

        Raises:
            TypeError: where they are set to what are none.
        """
        return self._saving.checkpoints

    @checkpoints.setter
    def checkpoints(self, value: Checkpoints | None) -> None:
        self._saving = Saving(value, self._saving.known)
