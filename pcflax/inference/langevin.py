"""Langevin inference: activities are sampled from the posterior instead of settled at its peak."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import ArrayLike

from pcflax.checks import did_you_mean, expect_count, expect_kind, expect_number
from pcflax.dtypes import common_dtype, product
from pcflax.typing import Activities, PRNGKey, PyTree

from .base import AbstractIterativeInference
from .momentum import stable_curvature
from .problem import InferenceProblem, VectorField
from .result import InferenceResult
from .solve import StepInfo, finished, keep_place, keep_step, observe, way_of


@dataclasses.dataclass(frozen=True)
class Langevin(AbstractIterativeInference):
    """z <- z - step_size * M dF/dz + sqrt(2 * step_size * temperature * M) * noise (MCPC).

    Samples: exp(-F_i(z)/temperature), at temperature 1 the posterior over the free activities; the
    discretization biases it by an amount of the order of step_size. (On a Gaussian with precision p
    the variance is 1/(p (1 - step_size p / 2)), to which tests hold it.)

    M is the `preconditioner`, 1 unless given: positive numbers that the steps of an element and its noise
    are scaled by. The distribution that is sampled is the same for any that stays fixed; with M near the
    variance of each element all of them mix alike, and step_size is counted in these. One that follows the
    gradients, as Adam's does, is a function of the state, and leaves a bias that no small step removes: so
    settle by Adam and then sample, `Sequence(GradientDescent(optax.adam(0.1)), Langevin(...))`.

    Fixed point: none; at temperature 0 it is gradient descent, step for step.

    Rate: mixes in about 1/(step_size * lambda_min) steps; stable for step_size < 2/lambda_max.

    Cost a step: one gradient and one normal number for each free element.

    Fails: by bias where the step is large, by slow mixing where it is small or the Hessian is
    ill-conditioned.

    Source: Oliviers, Bogacz & Meulemans (2024), PLoS Computational Biology, whose code preconditions by
    Adam; that a preconditioner which depends on the state needs a further term: Li et al. (2016), AAAI.

    Example i draws from a key of its own, so that no example's samples depend on the others, and several
    chains of an example are several rows of it: `jnp.repeat(x, 4, axis=0)`. Whether they have mixed tells
    `pc.analysis.chain_diagnostics`.

    Args:
        step_size: positive, per example.
        temperature: at least 0.
        preconditioner: {layer name: M}, a positive number or an array of one example's shape; 1 for a layer
            that is not named.
        burn_in: steps before the first sample.
        num_samples: samples taken after the burn-in, `thinning` steps apart.
        thinning: steps for each sample.
        keep_samples: whether the result keeps every sample, (num_samples, batch, *features) for each
            layer; a rule then averages the weight gradient over them.
        statistic: a function of all activities whose mean over the samples the result reports as
            `expectation`, computed as they come, so that nothing has to be kept; in 32 bits at least.

    Raises:
        TypeError: for what are no Python numbers.
        ValueError: for numbers out of range; on use without a key, unless the temperature is 0, and for a
            preconditioner of no layer or of another shape.

    >>> import jax, jax.numpy as jnp, pcflax as pc
    >>> network = pc.PCNetwork({"root": pc.PCRoot(2)})
    >>> sampler = pc.inference.Langevin(0.1, burn_in=100, num_samples=400,
    ...                                 statistic=lambda z: z["root"] ** 2)
    >>> result = network.infer(clamps={"root": pc.Clamp(jnp.zeros((1, 2)), jnp.array([True, False]))},
    ...                        inference=sampler, key=jax.random.key(0))
    >>> result.expectation.shape, float(result.expectation[0, 0])
    ((1, 2), 0.0)
    """

    step_size: float
    temperature: float = dataclasses.field(default=1.0, kw_only=True)
    preconditioner: Mapping[str, ArrayLike] | None = dataclasses.field(default=None, kw_only=True)
    burn_in: int = dataclasses.field(default=0, kw_only=True)
    num_samples: int = dataclasses.field(default=1, kw_only=True)
    thinning: int = dataclasses.field(default=1, kw_only=True)
    keep_samples: bool = dataclasses.field(default=False, kw_only=True)
    statistic: Callable[[Activities], PyTree] | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        if self.tolerance is not None or self.max_steps is not None:
            raise ValueError("Langevin samples for a fixed number of steps and takes no tolerance")
        temperature = expect_number(self, "temperature", self.temperature, least=0)
        checked = {
            "step_size": expect_number(self, "step_size", self.step_size, above=0),
            # 0 is another algorithm, which draws nothing: part of the structure, as an int is
            "temperature": 0 if _is_zero(temperature) else temperature,
        }
        for name, least in (("burn_in", 0), ("num_samples", 1), ("thinning", 1)):
            checked[name] = expect_count(self, name, getattr(self, name), least)
        if self.preconditioner is not None:
            checked["preconditioner"] = _expect_positive(self.preconditioner)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        total = self.burn_in + self.num_samples * self.thinning
        if self.num_steps not in (None, total):
            raise ValueError(
                f"Langevin takes burn_in + num_samples * thinning = {total} steps, got num_steps="
                f"{self.num_steps}; leave it out"
            )
        object.__setattr__(self, "num_steps", total)
        super().__post_init__()

    @property
    def stable_curvature(self) -> float:
        """The step size times lambda_max below which it is stable."""
        return stable_curvature()

    def init(self, problem: VectorField) -> PyTree:
        """Return no state: samplers keep none."""
        del problem
        return ()

    def step(
        self, problem: VectorField, coordinates, state, *, step, key: PRNGKey | None
    ) -> tuple[PyTree, PyTree, StepInfo]:
        """Step down the gradient, and add noise."""
        del step  # the key is the step's own
        info, gradient = observe(problem, coordinates)
        scales = self._scales(problem, coordinates)
        if scales is not None:
            gradient = jax.tree.map(jnp.multiply, scales, gradient)
        moved = jax.tree.map(
            lambda z, g: z - product(self.step_size, g).astype(z.dtype), coordinates, gradient
        )
        if _is_zero(self.temperature) or not coordinates:
            return moved, state, info
        if key is None:
            raise ValueError("Langevin inference needs a key: pass key=jax.random.key(0)")
        scale = (2 * self.step_size * self.temperature) ** 0.5
        leaves, structure = jax.tree.flatten(moved)

        def noise(example):
            own = jax.random.fold_in(key, example)
            return [
                jax.random.normal(jax.random.fold_in(own, number), leaf.shape[1:], leaf.dtype)
                for number, leaf in enumerate(leaves)
            ]

        noises = jax.vmap(noise)(jnp.arange(problem.batch_size))
        if scales is not None:
            roots = map(jnp.sqrt, jax.tree.leaves(scales))
            noises = [root * draw for root, draw in zip(roots, noises, strict=True)]
        moved = [
            leaf + product(scale, draw).astype(leaf.dtype)
            for leaf, draw in zip(leaves, noises, strict=True)
        ]
        return jax.tree.unflatten(structure, moved), state, info

    def _scales(self, problem: VectorField, coordinates: PyTree) -> PyTree | None:
        """Return M, one number or of shape (1, *features) for each layer; None where all of it is 1."""
        if self.preconditioner is None:
            return None
        names = problem.network.names
        for name, scale in self.preconditioner.items():
            if name not in names:
                raise ValueError(
                    f"Langevin has a preconditioner of '{name}', which is none of the layers "
                    f"{', '.join(names)}{did_you_mean(name, names)}"
                )
            if name in coordinates and jnp.shape(scale) not in ((), coordinates[name].shape[1:]):
                raise ValueError(
                    f"Langevin has a preconditioner of shape {jnp.shape(scale)} for layer '{name}', of which "
                    f"one example has {coordinates[name].shape[1:]}; give that shape, or one number"
                )
        scales = {
            name: jnp.asarray(self.preconditioner.get(name, 1.0), start.dtype)
            for name, start in coordinates.items()
        }
        return {name: scale[None] if scale.ndim else scale for name, scale in scales.items()}

    def solve(
        self, problem: InferenceProblem, *, key=None, trace=False, record=None
    ) -> InferenceResult:
        """Burn in, then take samples; the activities returned are the last sample."""
        looks = trace or record is not None

        def walk(coordinates, steps):
            def body(coordinates, step):
                own = None if key is None else jax.random.fold_in(key, step)
                moved, _, info = self.step(problem.at(step), coordinates, (), step=step, key=own)
                kept = keep_step(problem, coordinates, info, trace, record) if looks else None
                return moved, kept

            return jax.lax.scan(body, coordinates, steps)

        def sample(carry, steps):
            coordinates, mean = carry
            coordinates, infos = walk(coordinates, steps)
            activities = problem.decode(coordinates)
            mean = jax.tree.map(lambda m, s: m + s / self.num_samples, mean, measured(activities))
            return (coordinates, mean), (infos, activities if self.keep_samples else None)

        def measured(activities):
            # in 32 bits at least: a mean of many is lost in fewer, and a Boolean has none
            found = self.statistic(activities) if self.statistic is not None else None
            return jax.tree.map(
                lambda leaf: leaf.astype(common_dtype(leaf.dtype, jnp.float32)), found
            )

        steps = jnp.arange(self.num_steps)
        coordinates, first = walk(problem.start, steps[: self.burn_in])
        zeros = jax.tree.map(jnp.zeros_like, measured(problem.decode(problem.start)))
        (coordinates, mean), (rest, samples) = jax.lax.scan(
            sample,
            (coordinates, zeros),
            steps[self.burn_in :].reshape(self.num_samples, self.thinning),
        )
        way = (None, None)
        problem = problem.at(len(steps))
        if looks:
            rest = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rest)
            end = keep_place(problem, coordinates, trace, record)
            way = way_of(first, rest, end)
        result = finished(problem, coordinates, self.num_steps, None, *way)
        return result._replace(samples=samples, expectation=mean)


def _is_zero(temperature: Any) -> bool:
    return not isinstance(temperature, Tracer) and temperature == 0


def _expect_positive(preconditioner: Any) -> dict[str, Any]:
    """Refuse what is no {layer name: positive numbers}."""
    expect_kind(Langevin, "preconditioner", preconditioner, Mapping, "{'latent': 0.1}")
    for name, scale in preconditioner.items():
        if not isinstance(scale, Tracer):
            values = np.asarray(scale)
            if values.dtype.kind not in "fiu" or not (np.isfinite(values) & (values > 0)).all():
                raise ValueError(
                    f"Langevin expected a preconditioner of positive numbers for '{name}', got {scale}"
                )
    return {n: float(m) if isinstance(m, int) else m for n, m in preconditioner.items()}
