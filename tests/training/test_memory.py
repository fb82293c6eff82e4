"""Too little memory: one sentence with the sizes, at whatever moment. Oracle: sizes worked out by hand."""

import gc

import jax
import numpy as np
import pytest

import pcflax as pc
from pcflax.training import evaluation, fitting, run
from tests.conftest import digits_trainer, parameters_of


def exhausted(*arguments, **options):
    raise jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: Out of memory allocating 1739479904 bytes."
    )


def test_training_that_does_not_fit_is_told_with_sizes_and_can_go_on(monkeypatch):
    trainer, data = digits_trainer(), pc.data.load("digits", batch_size=50)
    trainer.fit(data, num_steps=1)
    before = parameters_of(trainer.network)
    # 1,510 numbers of 4 bytes, three times for Adam, and its count and ours
    told = (
        r"there is no memory for 1\.74 GB more on cpu for training: the state takes 0\.02 MB, and a batch "
        r"has 50 examples of 'digits/train'; take a smaller batch_size"
    )
    with monkeypatch.context() as patched:
        patched.setattr(fitting, "learn_batches", exhausted)
        with pytest.raises(MemoryError, match=told):
            trainer.fit(data, num_steps=3)
    assert trainer.step == 1
    for found, expected in zip(parameters_of(trainer.network), before, strict=True):
        assert (found == expected).all()
    trainer.fit(data, num_steps=3)


def test_memory_holds_a_state_twice(monkeypatch):
    """What a call begins with and what it returns: no third that the objects had, nor one to take back."""
    trainer = digits_trainer(widths=(64, 800, 800, 10))
    size = 3 * sum(leaf.nbytes for leaf in parameters_of(trainer.network))  # three times for Adam
    images, labels = np.zeros((60, 64), np.float32), np.zeros((60, 10), np.float32)
    labels[50:] = 1e30
    data = pc.data.from_arrays(images, labels, batch_size=10, shuffle=False)
    real, held = fitting.learn_batches, []

    def learn(*arguments, **options):
        found = jax.block_until_ready(real(*arguments, **options))
        held.append(states())
        return found

    def states():
        gc.collect()
        return sum(leaf.nbytes for leaf in jax.live_arrays()) / size

    before = states() - 1
    monkeypatch.setattr(fitting, "learn_batches", learn)
    monkeypatch.setattr(run, "_LARGE", 2**20)
    with pytest.raises(pc.NonFiniteEnergyError, match="step 6"):
        trainer.fit(data, num_steps=6, log_every=2)
    np.testing.assert_allclose(np.array(held) - before, 2, atol=0.1)


def test_evaluation_that_does_not_fit_is_told(monkeypatch):
    monkeypatch.setattr(evaluation, "measure_batches", exhausted)
    with pytest.raises(MemoryError, match=r"on cpu for evaluation: the state takes 0\.01 MB"):
        digits_trainer().evaluate(pc.data.load("digits", split="test"))


def test_other_errors_of_the_device_stay_as_they_are(monkeypatch):
    def lost(*arguments, **options):
        raise jax.errors.JaxRuntimeError("INTERNAL: the device is lost")

    monkeypatch.setattr(fitting, "learn_batches", lost)
    with pytest.raises(jax.errors.JaxRuntimeError, match="the device is lost"):
        digits_trainer().fit(pc.data.load("digits"), num_steps=1)
