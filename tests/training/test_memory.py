"""Too little memory: one sentence with the sizes, at whatever moment. Oracle: sizes worked out by hand."""

import jax
import pytest

import pcflax as pc
from pcflax.training import evaluation, fitting
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
