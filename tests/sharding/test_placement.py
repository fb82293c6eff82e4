"""Placements as values; what they do is in `eight/`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec

import pcflax as pc
from pcflax.sharding import data, features, layers, processes, rules
from pcflax.sharding.processes import connected


def test_placements_are_values():
    """Equal ones share a mesh, and so a compiled program."""
    both = data(1) | layers(1)
    assert both == data(1) | layers(1) != layers(1) | data(1)
    assert hash(both) == hash(data(1) | layers(1))
    assert both.mesh() is (layers(1) | data(1)).mesh()
    assert repr(data() | features(2)) == "data() | features(2)"
    assert repr(rules({"output": PartitionSpec()}) | data(2)).startswith(
        "data(2) | rules({'output': "
    )


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: data(0), ValueError, r"^data expected n of at least 1, got 0$"),
        (lambda: layers(1.5), TypeError, r"^layers expected an int n, got 1.5$"),
        (
            lambda: data(2) | data(2),
            ValueError,
            r"^data\(2\) \| data\(2\) has an axis twice; give it one number of devices$",
        ),
        (
            lambda: data() | features(),
            ValueError,
            r"^data\(\) \| features\(\) has two axes that take all devices that are left; give a number to "
            r"one of them$",
        ),
        (
            lambda: rules(["output"]),
            TypeError,
            r"^rules expected places such as \{'output': PartitionSpec\(\)\}, got \['output'\]$",
        ),
        (
            lambda: rules({"output": None}),
            TypeError,
            r"^rules expected a place for 'output' such as PartitionSpec\(\), got None$",
        ),
        (lambda: data(2) | 3, TypeError, r"unsupported operand"),
    ],
)
def test_what_is_no_placement(make, kind, text):
    with pytest.raises(kind, match=text):
        make()


def test_a_trainer_takes_placements_and_meshes():
    network = pc.models.mlp(4, 3, 2, rngs=nnx.Rngs(0))
    rule = pc.learning.PredictiveCoding(pc.inference.GradientDescent(0.1))
    with pytest.raises(
        TypeError, match=r"^Trainer expected mesh such as pc.sharding.data\(\), got 8$"
    ):
        pc.Trainer(network, optax.sgd(0.1), learning=rule, mesh=8)


def test_what_the_transport_says_of_a_lost_process_is_told_in_a_sentence(monkeypatch):
    """From then on nothing waits for it. Other errors are what they are."""
    monkeypatch.setattr(processes, "number_of_processes", lambda: 2)
    monkeypatch.setattr(processes, "_lost", [])
    with pytest.raises(jax.errors.JaxRuntimeError, match="^INTERNAL: a bug$"), connected():
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")
    assert not processes.is_lost()
    told = (
        r"^process 0 lost another of the 2, which has ended; start all of them again and restore the newest "
        r"checkpoint \(UNKNOWN: Gloo AllGather failed: Connection closed by peer\)$"
    )
    with pytest.raises(ConnectionError, match=told), connected():
        raise jax.errors.JaxRuntimeError(
            "UNKNOWN: Gloo AllGather failed: Connection closed by peer\nmore"
        )
    assert processes.largest(3.0) == (3.0,)
    with pytest.raises(KeyError, match="own"), processes.together():
        raise KeyError("own")


def test_several_processes_want_a_mesh(monkeypatch):
    """Each would rename, seal and prune the same checkpoint; two real ones are in `two/`."""
    network = pc.models.mlp(3, 2, rngs=nnx.Rngs(0))
    rule = pc.learning.PredictiveCoding(pc.inference.GradientDescent(0.1))
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr("jax.distributed.is_initialized", lambda: True)
    with pytest.raises(
        ValueError, match=r"^Trainer got no mesh, but jax.distributed joins 2 processes, and each"
    ):
        pc.Trainer(network, optax.sgd(0.1), learning=rule)


def test_near_steps_of_long_runs_are_told_apart(monkeypatch):
    given = []

    def gathered(value):
        given.append(np.asarray(jnp.asarray(value)))  # which process_allgather does, too
        return np.stack(given)

    monkeypatch.setattr(processes, "number_of_processes", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", gathered)
    one, other = 2**24, 2**24 + 1  # which are one number in float32
    processes.largest(one, -one, 0.1)
    assert processes.largest(other, -other, 0.0) == (other, -one, 0.1)
