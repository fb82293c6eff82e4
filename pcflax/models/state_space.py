"""Temporal predictive coding: a state that is predicted from the step before, and what is seen of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from pcflax.checks import expect_count
from pcflax.energies import Energy
from pcflax.layers import PCDense, PCLayer
from pcflax.layers.affine import check_activation
from pcflax.networks import PCGraph, Previous


def lasting(key: Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
    """Return 0.9 times the identity, as an initializer of the weights of a state from one step to the next.

    Source: Le, Jaitly & Hinton (2015), arXiv 1504.00941, with a factor that lets the past fade.
    """
    del key  # deterministic
    return 0.9 * jnp.eye(*shape, dtype=dtype)


class Transition(PCLayer):
    """mu_t = A f(z_{t-1}) + B u_t: a state predicted from the step before, and from what controls it.

    Args:
        features: of the state.
        controls: of u; 0 for a system that nothing controls.
        activation: f, or None for a linear system.
        kernel_init: an initializer of A; 0.9 times the identity unless given, so that a state lasts and does
            not turn. A random orthogonal start now and then ends in a bad minimum.
        energy: of the state; `Gaussian()` unless given.
        rngs: source of the initial weights.

    Raises:
        TypeError: for sizes that are not ints, an activation that is no function, or controls that are
            missing or too many.
        ValueError: for sizes that are too small.

    Attributes:
        recurrent: `nnx.Linear`, A transposed.
        control: `nnx.Linear`, B transposed; only with controls.

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> transition = pc.models.Transition(3, controls=1, rngs=nnx.Rngs(0))
    >>> transition.predict(jnp.ones((2, 3)), jnp.ones((2, 1))).shape
    (2, 3)
    """

    def __init__(
        self,
        features: int,
        *,
        controls: int = 0,
        activation: Callable[[Array], Array] | None = None,
        kernel_init: Callable[..., Array] | None = None,
        energy: Energy | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(energy=energy)
        features = expect_count(self, "features", features, least=1)
        controls = expect_count(self, "controls", controls)
        check_activation(self, activation)
        self.recurrent = nnx.Linear(
            features, features, use_bias=False, kernel_init=kernel_init or lasting, rngs=rngs
        )
        if controls:
            self.control = nnx.Linear(controls, features, use_bias=False, rngs=rngs)
        self.activation = activation

    def predict(self, before: Array, *controls: Array) -> Array:  # type: ignore[override]
        """Predict the state from the step before, and from the control where there is one."""
        controlled = hasattr(self, "control")
        if len(controls) != controlled:
            raise TypeError(
                f"a Transition {'with' if controlled else 'without'} controls expected the step before"
                f"{' and the controls' if controlled else ''}, got {1 + len(controls)} activities"
            )
        moved = self.recurrent(before if self.activation is None else self.activation(before))
        return moved + self.control(*controls) if controls else moved


def temporal(
    features: int,
    observed: int,
    *,
    controls: int = 0,
    activation: Callable[[Array], Array] | None = None,
    kernel_init: Callable[..., Array] | None = None,
    state_energy: Energy | None = None,
    energy: Energy | None = None,
    rngs: nnx.Rngs,
    **options: Any,
) -> PCGraph:
    """Return a state z and what is seen of it, x: z_t is predicted from z_{t-1} and u_t, x_t from z_t.

    F_t = E_z(z_t, A f(z_{t-1}) + B u_t) + E_x(x_t, C f(z_t)). Targets are x, (batch, time, observed), inputs
    are u, (batch, time, controls), if there are controls. Train with `pc.learning.Temporal`, read with
    `pc.Filter`, `pc.Smoother` and `pc.Forecast`. With Gaussian energies, a linear network and exact inference
    these are Kalman's filter and smoother; see there.

    Args:
        features: of the state.
        observed: features of what is seen.
        controls: features of u; 0 for a system that nothing controls.
        activation: f, or None for a linear system.
        kernel_init: an initializer of A; see `pc.models.Transition`.
        state_energy: of the state; `Gaussian()` unless given, whose precision is that of the transition.
        energy: of what is seen; `Gaussian()` unless given.
        rngs: source of the initial weights.
        **options: compute_dtype and remat, as in `PCGraph`.

    Raises:
        TypeError, ValueError: for sizes that are not counts.

    Source: Millidge et al. (2024), PLoS Computational Biology 20(4).

    >>> import jax.numpy as jnp, pcflax as pc
    >>> from flax import nnx
    >>> network = pc.models.temporal(3, 2, controls=1, activation=jnp.tanh, rngs=nnx.Rngs(0))
    >>> network.names, network.wiring.outside
    (('z', 'x'), ('u', 'z@-1'))
    """
    features = expect_count("temporal", "features", features, least=1)
    observed = expect_count("temporal", "observed", observed, least=1)
    controls = expect_count("temporal", "controls", controls)
    before = Previous("z")
    transition = Transition(
        features,
        controls=controls,
        activation=activation,
        kernel_init=kernel_init,
        energy=state_energy,
        rngs=rngs,
    )
    seen = PCDense(
        features,
        observed,
        activation=activation,
        activation_first=True,
        use_bias=False,
        energy=energy,
        rngs=rngs,
    )
    return PCGraph(
        {"z": transition, "x": seen},
        parents={"z": (before, "u") if controls else before, "x": "z"},
        inputs={"u": controls} if controls else {},
        output="x",
        shapes={"z": features},
        **options,
    )
