"""Temporal predictive coding beside the Kalman filter: follow a linear system.

    python scripts/tracking.py          about a minute on 2 CPU cores

The tracking task of Millidge et al. (2024): position, velocity and acceleration, A = [[1, dt, dt^2/2], [0,
1, dt], [0, 0, 1]] with dt = 1e-3, B = [0, 0, 1], u = exp(-t/100), one normal C of which no singular value
is below 0.7, noise of unit variance, 1,000 steps, three noise seeds. First with the true matrices:
predictive coding at equilibrium knows each step's noise and not how uncertain the step before was, so its
gain is fixed; expected, mean squared error of the state at most 1.10 times that of the Kalman filter
(`tracking_ratio`). With the precision that the Kalman filter has in its steady state, its gain is Kalman's:
at most 1e-6 apart in float64 (`tracking_gain_error`). The Kalman filter is NumPy's and SciPy's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from flax import nnx

import pcflax as pc

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.answers import record_answer
from benchmarks.records import RESULTS

DT = 1e-3
A = np.array([[1, DT, DT**2 / 2], [0, 1, DT], [0, 0, 1]])
B = np.array([0.0, 0.0, 1.0])
SOLVE = pc.inference.LinearSolve()


def observation() -> np.ndarray:
    """The first normal C whose least singular value is 0.7: else a direction of the state is hardly seen."""
    drawn = (np.random.default_rng(number).normal(size=(3, 3)) for number in range(99))
    return next(c for c in drawn if np.linalg.svd(c)[1][-1] > 0.7)


C = observation()


def simulate(seed: int, steps: int, count: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return controls, states and what is seen of them, (count, time, features)."""
    random = np.random.default_rng(seed)
    u = np.exp(-0.01 * np.arange(steps))
    z, states = np.zeros((count, 3)), []
    for now in u:
        z = z @ A.T + B * now + random.normal(size=z.shape)
        states.append(z)
    found = np.stack(states, axis=1)
    seen = found @ C.T + random.normal(size=found.shape)
    return np.broadcast_to(u[:, None], (count, steps, 1)), found, seen


def kalman(c: np.ndarray, u: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return the filtered states."""
    mean, covariance, states = np.zeros(3), np.zeros((3, 3)), []
    for now, x in zip(u[0, :, 0], seen[0], strict=True):
        mean, covariance = A @ mean + B * now, A @ covariance @ A.T + np.eye(3)
        gain = covariance @ c.T @ np.linalg.inv(c @ covariance @ c.T + np.eye(3))
        mean, covariance = mean + gain @ (x - c @ mean), (np.eye(3) - gain @ c) @ covariance
        states.append(mean)
    return np.array(states)[None]


def known_system(c: np.ndarray, state_energy: pc.Energy | None = None) -> pc.PCGraph:
    """The network with the true matrices."""
    network = pc.models.temporal(3, 3, controls=1, state_energy=state_energy, rngs=nnx.Rngs(0))
    transition, output = network.layer("z"), network.layer("x")
    transition.recurrent.kernel.set_value(jnp.asarray(A.T))
    transition.control.kernel.set_value(jnp.asarray(B[None]))
    output.linear.kernel.set_value(jnp.asarray(c.T))
    return network


def gain_error(c: np.ndarray) -> float:
    """The largest difference of the network's gain and Kalman's, in float64."""
    before = scipy.linalg.solve_discrete_are(A.T, c.T, np.eye(3), np.eye(3))
    gain = before @ c.T @ np.linalg.inv(c @ before @ c.T + np.eye(3))
    network = known_system(c, pc.energies.FullGaussian(np.linalg.inv(before)))
    # from 0, without a control, the state that unit observations are explained by
    rest = {"u": jnp.zeros((3, 1)), "z@-1": jnp.zeros((3, 3))}
    found = network.infer(rest, jnp.eye(3), inference=SOLVE).activities["z"]
    return float(np.abs(np.asarray(found).T - gain).max())


def error(found: np.ndarray, truth: np.ndarray) -> float:
    """The mean squared error."""
    return float(np.mean((found - truth) ** 2))


def draw(states, followed, best, path: Path) -> None:
    """Draw each component of the state, of one run, and both estimates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    names = ("position", "velocity", "acceleration")
    last = slice(-100, None)
    for axes, number in zip(figure.subplots(3, 1, sharex=True), range(3), strict=True):
        time_axis = np.arange(states.shape[1])[last]
        axes.plot(time_axis, states[0, last, number], color="black", lw=1, label="true state")
        axes.plot(time_axis, best[0, last, number], label="Kalman filter")
        axes.plot(time_axis, followed[0, last, number], ls="--", label="predictive coding")
        axes.set_ylabel(names[number])
        axes.grid(alpha=0.3)
        if number == 0:
            axes.legend(fontsize=8, ncols=3)
    axes.set_xlabel("step")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Follow with the true matrices, compare gains, write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="200 steps")
    parser.add_argument(
        "--output", type=Path, help="the answers file; the committed one unless given"
    )
    options = parser.parse_args()
    steps = 200 if options.quick else 1000
    found: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        u, states, seen = simulate(seed, steps)
        best = kalman(C, u, seen)
        with jax.enable_x64(True):
            gap = gain_error(C)
            question = pc.Evidence(jnp.asarray(u), jnp.asarray(seen))
            network, reading = known_system(C), pc.Filter(SOLVE, "z")
            followed = np.asarray(pc.training.answer(network, question, reading).values)
            begin = time.perf_counter()
            jax.block_until_ready(pc.training.answer(network, question, reading).values)
            micro = 1e6 * (time.perf_counter() - begin) / steps
        values = {
            "tracking_ratio": error(followed, states) / error(best, states),
            "tracking_gain_error": gap,
        }
        for name, value in values.items():
            found.setdefault(name, []).append(value)
        told = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
        print(f"seed {seed}: {told}; {micro:.0f} microseconds a step of the filter", flush=True)
    for name, values in found.items():
        print(f"{name}: median {statistics.median(values):.3g}, worst {max(values):.3g}")
        command = "python scripts/tracking.py"
        record_answer(name, values, unit="1", command=command, path=options.output)
    draw(states, followed, best, (options.output or RESULTS / "x").parent / "tracking.png")


if __name__ == "__main__":
    main()
