"""What a resumed run is told: other data, another jax, another device."""

import re
import warnings

import pytest

import pcflax as pc
from pcflax.training.checkpoints import reading
from pcflax.training.checkpoints.reading import warn_of_changes

DATA = {"name": "own/train", "num_examples": 9, "seed": 0, "checksum": "crc32:00000001"}
OLD = {"name": "own/train", "num_examples": 9, "seed": 0}  # as 0.1 described it


def told(stored, given, versions=None):
    """The warnings of a run that was saved on `stored` and goes on with `given`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_changes({"data": stored, "versions": versions or {}}, given)
    assert all(one.category is pc.CheckpointWarning for one in caught)
    return [str(one.message) for one in caught]


@pytest.mark.parametrize(
    ("stored", "given"),
    [
        (DATA, DATA),
        (DATA, {**DATA, "name": "moved/train"}),  # the file has another name now
        (OLD, DATA),
        ({**DATA, "checksum": None}, DATA),  # read from disk then, in memory now
        (None, DATA),
    ],
)
def test_the_same_data_are_not_told(stored, given):
    assert told(stored, given) == []


@pytest.mark.parametrize(
    ("stored", "given", "words"),
    [
        (DATA, {**DATA, "checksum": "crc32:00000002"}, "of other examples: it will not end as"),
        (DATA, {**DATA, "seed": 1}, "'seed': 1}: it will not end as"),
        (OLD, {**DATA, "name": "moved/train"}, "goes on with {'name': 'moved/train'"),
        ({**OLD, "augment": "Flip()"}, DATA, "was made on .*'augment'"),
        (OLD, {**DATA, "augment": "Flip()"}, "goes on with .*'augment'"),
    ],
)
def test_other_data_are_told(stored, given, words):
    (message,) = told(stored, given)
    assert re.search(words, message), message


def test_another_jax_or_device_is_told(monkeypatch):
    """Their programs round differently, so a run does not end bitwise as it would have."""
    now = reading.versions()
    assert told(DATA, DATA, now) == []
    then = {"jax": "0.9.0", "device": "TPU v7"}
    (message,) = told(DATA, DATA, then)
    assert (
        f"made with jax 0.9.0, now {now['jax']} and device TPU v7, now {now['device']}" in message
    )
    assert told(DATA, DATA, {"flax": "0.1"}) == []  # which decides no bit
