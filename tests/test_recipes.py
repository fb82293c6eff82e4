"""Recipes: words, schedules and optimizers by name, against the classes and optax themselves."""

import math

import jax.numpy as jnp
import optax
import pytest

import pcflax as pc
from pcflax import recipes


@pytest.mark.parametrize("word", recipes.INFERENCE)
def test_every_word_makes_its_algorithm(word):
    needed = {"step_size": 0.1} if word in ("gradient", "error-coordinates", "langevin") else {}
    made = recipes.inference(word, **needed)
    for name in recipes.INFERENCE[word]:
        assert type(made) is getattr(pc.inference, name)
        made = getattr(made, "inference", None)


@pytest.mark.parametrize("word", recipes.LEARNING)
def test_every_word_makes_its_rule(word):
    infers = word not in ("zil", "backprop")
    rule = recipes.learning(word, recipes.inference("gradient", step_size=0.1) if infers else None)
    assert type(rule) is getattr(pc.learning, recipes.LEARNING[word][0])
    assert hasattr(rule, "inference") == infers


@pytest.mark.parametrize(
    ("name", "halfway", "end"),
    [
        ("linear", 0.5, 0.0),
        ("cosine", 0.5, 0.0),
        ("exponential", 0.1, 0.01),
        # 55 of 100 steps: half of a cosine's way from 1.1 at step 10 to 0.1
        ("warmup-cosine", 0.6, 0.1),
    ],
)
def test_schedules_fall_as_they_say(name, halfway, end):
    schedule = recipes.schedule(name, 0.2, 100)
    assert float(schedule(0)) == pytest.approx(0.2)
    middle = 55 if name == "warmup-cosine" else 50
    assert float(schedule(middle)) == pytest.approx(0.2 * halfway, rel=1e-5)
    assert float(schedule(100)) == pytest.approx(0.2 * end, abs=1e-7)


def test_a_constant_rate_is_a_number():
    assert recipes.schedule("constant", 0.2, 100) == 0.2


@pytest.mark.promotes("optax's Adam, called alone, mixes dtypes")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sgd", optax.sgd(0.1)),
        ("adamw(weight_decay=0.5)", optax.adamw(0.1, weight_decay=0.5)),
        ("Nadam( b1 = 0.5 )", optax.nadam(0.1, b1=0.5)),
    ],
)
def test_an_optimizer_by_name_is_optaxs(text, expected):
    weight, slope = jnp.array([2.0]), jnp.array([3.0])
    updates = []
    for optimizer in (recipes.optimizer(text, 0.1), expected):
        update, _ = optimizer.update(slope, optimizer.init(weight), weight)
        updates.append(float(update[0]))
    assert updates[0] == updates[1]
    assert math.isfinite(updates[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adm", "expected a name of optax, got 'adm'; did you mean 'adam'?"),
        ("clip", "expected an optimizer of optax that takes a learning rate, such as adam, adamw"),
        ("adamw(weight_decay=x)", "its arguments are not plain numbers, words in quotes or tuples"),
        ("adamw(weight_decay=0.1", "its arguments are not plain"),
        (
            "adamw(decay=1)",
            "got an unexpected keyword argument 'decay'; write it as adamw(argument=number)",
        ),
        ("sgd(__import__('os'))", "its arguments are not plain"),
    ],
)
def test_other_optimizers_are_refused(text, message):
    with pytest.raises(ValueError) as told:
        recipes.optimizer(text, 0.1)
    assert message in str(told.value)
