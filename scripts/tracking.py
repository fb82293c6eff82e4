"""Temporal predictive coding follows a linear system, beside a Kalman filter; it learns one, and a pendulum.

    python scripts/tracking.py     about a minute on 2 CPU cores

Position, velocity and acceleration, A = [[1, dt, dt^2/2], [0, 1, dt], [0, 0, 1]] with dt = 1e-3, are seen
through a random C under noise, Q = R = I, 1,000 steps, 16 sequences for each of five noise seeds. C is the
first of NumPy's whose least singular value is above 0.7: of what is hardly seen, no filter that knows no
uncertainty of its past can tell much. Expected:

- latent error at equilibrium over the Kalman filter's (`tracking_ratio`): at most 1.10; its gain is fixed;
- with the precision of the steady state, which SciPy solves for, the largest difference from the Kalman
  filter with its steady-state gain, in 64 bits (`tracking_gain_error`): at most 1e-6;
- A, B and C learned from observations and controls alone, 300 batches of 16 sequences of 200 steps: the error
  of the next observation over that of the Kalman filter, which knows the system (`tracking_learned`), on new
  sequences: at most 1.10. The rate was chosen on sequences of other seeds. A starts at 0.9 times the
  identity: from a random orthogonal matrix, one run of thirteen ended at 21 times the error;
- a pendulum, seen as (sin, cos) under noise, whose gravity is learned: the error of the next observation over
  that of an extended Kalman filter, which knows it (`tracking_pendulum`): at most 1.05.

The task is that of Millidge et al. (2024), PLoS Computational Biology 20(4). Writes answers and a figure.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import optax
from flax import nnx
from scipy.linalg import solve_discrete_are

import pcflax as pc

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.answers import answer_parser, record_answer
from benchmarks.options import run_main
from benchmarks.records import RESULTS

DT = 1e-3
A = np.array([[1, DT, DT * DT / 2], [0, 1, DT], [0, 0, 1]])
B = np.array([0.0, 0.0, 1.0])
CANDIDATES = (np.random.default_rng(seed).standard_normal((3, 3)) for seed in range(99))
C = next(c for c in CANDIDATES if np.linalg.svd(c)[1][-1] > 0.7)
EYE = np.eye(3)
EXACT = pc.inference.LinearSolve(lineax.Cholesky())

SWING, NOISE, GRAVITY = (
    0.05,
    0.1,
    9.8,
)  # of the pendulum: a step in seconds, all standard deviations
WEIGHTLESS = np.array([[1, SWING], [0, 1]])  # a pendulum of which no gravity is known


# The systems, and their Kalman filters, in NumPy.


def steady_covariance(moves: np.ndarray, sees: np.ndarray) -> np.ndarray:
    """Return the covariance with which a Kalman filter predicts in the end, of noise of unit variance."""
    size = np.eye(len(moves))
    return solve_discrete_are(moves.T, sees.T, size, size)


def simulate(seed: int, count: int, steps: int) -> tuple[np.ndarray, ...]:
    """Return states, observations and controls, (count, steps, features)."""
    random = np.random.default_rng(seed)
    u = np.exp(-0.01 * np.arange(steps))
    z, states, seen = np.zeros((count, 3)), [], []
    for control in u:
        z = z @ A.T + control * B + random.standard_normal(z.shape)
        states.append(z)
        seen.append(z @ C.T + random.standard_normal(z.shape))
    controls = np.broadcast_to(u[:, None], (count, steps, 1))
    return np.stack(states, 1), np.stack(seen, 1), controls


def kalman(seen: np.ndarray, controls: np.ndarray, gain: np.ndarray | None = None):
    """Return the Kalman filter's states, and what it predicted of each observation."""
    z, covariance, states, ahead = np.zeros((len(seen), 3)), np.zeros((3, 3)), [], []
    for t in range(seen.shape[1]):
        z, covariance = z @ A.T + controls[:, t] * B, A @ covariance @ A.T + EYE
        now = covariance @ C.T @ np.linalg.inv(C @ covariance @ C.T + EYE)
        ahead.append(z @ C.T)
        z = z + (seen[:, t] - z @ C.T) @ (now if gain is None else gain).T
        covariance = (EYE - now @ C) @ covariance
        states.append(z)
    return np.stack(states, 1), np.stack(ahead, 1)


def swing(z: np.ndarray) -> np.ndarray:
    """Return the pendulum's angle and velocity one step later."""
    velocity = z[:, 1] - SWING * GRAVITY * np.sin(z[:, 0])
    return np.stack([z[:, 0] + SWING * velocity, velocity], 1)


def look(z: np.ndarray) -> np.ndarray:
    """Return sine and cosine of the angle."""
    return np.stack([np.sin(z[:, 0]), np.cos(z[:, 0])], 1)


def simulate_pendulum(seed: int, count: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where pendulums are let go, (count, 2), and what is seen of them, (count, steps, 2)."""
    random = np.random.default_rng(seed)
    z = start = np.stack([random.uniform(-2, 2, count), np.zeros(count)], 1)
    seen = []
    for _ in range(steps):
        z = swing(z) + NOISE * random.standard_normal(z.shape)
        seen.append(look(z) + NOISE * random.standard_normal(z.shape))
    return start, np.stack(seen, 1)


def extended_kalman(start: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return what an extended Kalman filter predicts of each observation of a pendulum."""
    z, covariance, ahead = start, np.zeros((len(start), 2, 2)), []
    noise = NOISE**2 * np.eye(2)
    for t in range(seen.shape[1]):
        pull = SWING * GRAVITY * np.cos(z[:, 0])
        one = np.ones_like(pull)
        moves = np.stack([one - SWING * pull, SWING * one, -pull, one], 1).reshape(-1, 2, 2)
        z, covariance = swing(z), moves @ covariance @ moves.transpose(0, 2, 1) + noise
        sees = np.zeros_like(moves)
        sees[:, 0, 0], sees[:, 1, 0] = np.cos(z[:, 0]), -np.sin(z[:, 0])
        ahead.append(look(z))
        spread = sees @ covariance @ sees.transpose(0, 2, 1) + noise
        gain = covariance @ sees.transpose(0, 2, 1) @ np.linalg.inv(spread)
        z = z + np.einsum("nij,nj->ni", gain, seen[:, t] - ahead[-1])
        covariance = covariance - gain @ sees @ covariance
    return np.stack(ahead, 1)


# What is built and trained.


def known_system(energy: pc.Energy | None = None) -> pc.PCGraph:
    """A network of one step with the true A, B and C."""
    network = pc.models.temporal(3, 3, controls=1, state_energy=energy, rngs=nnx.Rngs(0))
    network.layer("z").recurrent.kernel.set_value(jnp.asarray(A.T))
    network.layer("z").control.kernel.set_value(jnp.asarray(B[None]))
    network.layer("x").linear.kernel.set_value(jnp.asarray(C.T))
    return network


def follow(network: pc.PCGraph, inference, seen: np.ndarray, controls: np.ndarray) -> np.ndarray:
    """Return what is inferred of z_t from x_1..t."""
    evidence = pc.Evidence(jnp.asarray(controls), jnp.asarray(seen))
    return np.asarray(pc.training.answer(network, evidence, pc.Filter(inference, "z")).values)


def learn(seed: int, num_steps: int, steps: int) -> float:
    """Learn A, B and C; return the error of the next observation over the Kalman filter's."""
    _, seen, controls = simulate(100 + seed, 64, steps)
    _, new, new_controls = simulate(200 + seed, 64, steps)
    rate = optax.cosine_decay_schedule(1e-3, num_steps * steps)  # an update at every step of time
    trainer = pc.Trainer(
        pc.models.temporal(3, 3, controls=1, rngs=nnx.Rngs(seed)),
        optax.adam(rate),
        learning=pc.learning.Temporal(EXACT, every="step"),
        seed=seed,
        progress=False,
    )
    trainer.fit(pc.data.from_sequences(controls, seen, batch_size=16), num_steps=num_steps)
    found = trainer.evaluate(pc.data.from_sequences(new_controls, new, batch_size=16))
    return found["squared_error"] / np.mean((kalman(new, new_controls)[1] - new) ** 2)


class Swing(pc.PCLayer):
    """The pendulum's step, with a gravity that is learned."""

    def __init__(self, gravity: float):
        # what is seen of the angle corrects the velocity by what both have in common
        spread = steady_covariance(WEIGHTLESS, np.diag([1.0, 0.0]))
        super().__init__(energy=pc.energies.FullGaussian(np.linalg.inv(spread)))
        self.gravity = nnx.Param(jnp.asarray(gravity))

    def predict(self, z):
        """Predict angle and velocity one step later."""
        velocity = z[:, 1] - SWING * self.gravity[...] * jnp.sin(z[:, 0])
        return jnp.stack([z[:, 0] + SWING * velocity, velocity], 1)


class Look(pc.PCLayer):
    """Sine and cosine of the angle."""

    def predict(self, z):
        """Predict what is seen."""
        return jnp.stack([jnp.sin(z[:, 0]), jnp.cos(z[:, 0])], 1)


def learn_pendulum(seed: int, num_steps: int, steps: int) -> tuple[float, float]:
    """Learn gravity from 3; return it, and the error of the next observation over the extended filter's."""
    start, seen = simulate_pendulum(100 + seed, 64, steps)
    new_start, new = simulate_pendulum(200 + seed, 64, steps)
    network = pc.PCGraph(
        {"z": Swing(3.0), "x": Look()},
        parents={"z": pc.networks.Previous("z"), "x": "z"},
        output="x",
        shapes={"z": 2},
    )
    trainer = pc.Trainer(
        network,
        optax.adam(0.1),
        learning=pc.learning.Temporal(pc.inference.GradientDescent(0.4, num_steps=60)),
        seed=seed,
        progress=False,
    )
    given = {"z@-1": start.astype("float32")}  # where it was let go
    data = pc.data.from_arrays(given, seen.astype("float32"), batch_size=16)
    trainer.fit(data, num_steps=num_steps)
    new_given = {"z@-1": new_start.astype("float32")}
    found = trainer.evaluate(pc.data.from_arrays(new_given, new.astype("float32"), batch_size=16))
    error = found["squared_error"] / np.mean((extended_kalman(new_start, new) - new) ** 2)
    return float(network.layer("z").gravity[...]), error


# Figures.

READERS = {
    "1 step": pc.inference.GradientDescent(0.1, num_steps=1),
    "10 steps": pc.inference.GradientDescent(0.1, num_steps=10),
    "equilibrium": EXACT,
}


def track(seed: int, steps: int) -> dict[str, float]:
    """Return errors of the latent state over the Kalman filter's, by inference, and the gain's error."""
    states, seen, controls = simulate(seed, 16, steps)
    best = np.mean((kalman(seen, controls)[0] - states) ** 2)
    found = {}
    for name, inference in READERS.items():
        begin = time.perf_counter()
        follow(known_system(), inference, seen, controls)
        first = time.perf_counter()
        z = follow(known_system(), inference, seen, controls)
        took = time.perf_counter() - first
        found[name] = np.mean((z - states) ** 2) / best
        print(
            f"seed {seed}, {name}: latent error {found[name]:.4f} of the Kalman filter's {best:.4f}, "
            f"{1e6 * took / steps:.0f} us a step ({first - begin:.1f} s with compiling)",
            flush=True,
        )
    covariance = steady_covariance(A, C)
    gain = covariance @ C.T @ np.linalg.inv(C @ covariance @ C.T + EYE)
    with jax.enable_x64(True):
        steady = known_system(pc.energies.FullGaussian(np.linalg.inv(covariance)))
        z = follow(steady, EXACT, seen, controls)
    found["steady precision"] = np.mean((z - states) ** 2) / best
    found["gain error"] = np.abs(z - kalman(seen, controls, gain)[0]).max()
    print(f"seed {seed}, steady state: at most {found['gain error']:.1e} from Kalman's", flush=True)
    return found


def draw(found: list[dict[str, float]], steps: int, path: Path) -> None:
    """Draw the error of one state along time, and the error of each inference over the Kalman filter's."""
    from matplotlib.figure import Figure

    states, seen, controls = simulate(0, 1, min(steps, 100))
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    found_by = {
        "1 step": follow(known_system(), READERS["1 step"], seen, controls),
        "Kalman filter": kalman(seen, controls)[0],
        "equilibrium": follow(known_system(), EXACT, seen, controls),
    }
    for (name, z), line in zip(found_by.items(), ("C2:", "C0-", "C1--"), strict=True):
        left.plot((z - states)[0, :, 0], line, label=name)
    left.set(xlabel="step of time", ylabel="error of the position")
    left.legend(frameon=False, ncols=3)
    names = [*READERS, "steady precision"]
    right.barh(names, [statistics.mean(run[name] for run in found) for name in names], color="C1")
    right.axvline(1, color="C0", label="Kalman filter")
    right.set(xlabel="latent error / Kalman's")
    right.invert_yaxis()
    right.legend(frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Follow and learn with each seed, write the answers and the figure."""
    options = answer_parser(
        __doc__, quick="short sequences, little learning", seeds=5, data=False
    ).parse_args()
    steps, length, batches, swings = (60, 20, 2, 2) if options.quick else (1000, 200, 300, 150)
    found = [track(seed, steps) for seed in range(options.seeds)]
    learned, pendulum = [], []
    for seed in range(options.seeds):
        learned.append(learn(seed, batches, length))
        gravity, error = learn_pendulum(seed, swings, length)
        pendulum.append(error)
        print(
            f"seed {seed}: next observation {learned[-1]:.4f} of the Kalman filter's error, learned; "
            f"pendulum {error:.4f} of the extended one's, gravity {gravity:.2f} of {GRAVITY}",
            flush=True,
        )
    answers = {
        "tracking_ratio": [run["equilibrium"] for run in found],
        "tracking_gain_error": [run["gain error"] for run in found],
        "tracking_learned": learned,
        "tracking_pendulum": pendulum,
    }
    for answer, values in answers.items():
        unit = "difference" if answer == "tracking_gain_error" else "of the Kalman filter's error"
        print(f"{answer}: median {statistics.median(values):.4g}")
        path = record_answer(
            answer, values, unit=unit, command="python scripts/tracking.py", path=options.output
        )
    draw(found, steps, (options.output or RESULTS / "x").parent / "tracking.png")
    print(f"wrote {path}")


if __name__ == "__main__":
    run_main(main)
