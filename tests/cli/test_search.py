"""What --search may say, and the command line of options.

Oracles: the options' types, and tyro's own parser.
"""

import dataclasses
import shlex

import pytest
import tyro

from pcflax.cli.command import command_of
from pcflax.cli.options import TrainOptions, preset
from pcflax.cli.search import SearchedOption, drawn, parse_search

optuna = pytest.importorskip("optuna")
distributions = optuna.distributions


def search(*texts, **options):
    return parse_search(texts, TrainOptions(**options))


class TestParse:
    @pytest.mark.parametrize(
        ("text", "expected", "values"),
        [
            (
                "learning-rate=1e-4:1e-2:log",
                distributions.FloatDistribution(1e-4, 1e-2, log=True),
                [1e-4, 1e-2],
            ),
            ("momentum=0:0.9", distributions.FloatDistribution(0.0, 0.9), [0.0, 0.9]),
            ("inference-steps=4:32", distributions.IntDistribution(4, 32), [4, 32]),
            ("batch_size=8:64:log", distributions.IntDistribution(8, 64, log=True), [8, 64]),
            ("tolerance=1e-4:1e-2", distributions.FloatDistribution(1e-4, 1e-2), [1e-4, 1e-2]),
            ("--step-size=0.1:0.2", distributions.FloatDistribution(0.1, 0.2), [0.1, 0.2]),
            (
                "activation=tanh,relu",
                distributions.CategoricalDistribution(["tanh", "relu"]),
                ["tanh", "relu"],
            ),
            (
                "batch-size=32,64",
                distributions.CategoricalDistribution(["32", "64"]),
                [32, 64],
            ),
            (
                "widths=300x300,128",
                distributions.CategoricalDistribution(["300x300", "128"]),
                [(300, 300), (128,)],
            ),
            (
                "nesterov=true,false",
                distributions.CategoricalDistribution(["true", "false"]),
                [True, False],
            ),
            (
                "optimizer=sgd,adamw(weight_decay=0.01, b1=0.8)",
                distributions.CategoricalDistribution(["sgd", "adamw(weight_decay=0.01, b1=0.8)"]),
                ["sgd", "adamw(weight_decay=0.01, b1=0.8)"],
            ),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_ranges_and_choices_are_those_of_the_option(self, text, expected, values):
        (one,) = search(text)
        assert one.distribution() == expected
        assert one.all() == values

    @pytest.mark.parametrize(
        ("texts", "message"),
        [
            ((), "a sweep searches over something; add --search learning-rate="),
            (
                ("num-inference-steps=4:32",),
                "no option --num-inference-steps of pcflax train; did you mean 'inference-steps'",
            ),
            (("seed=0:9",), "--seed is no setting to choose by"),
            (("data=digits,mnist",), "--data is no setting to choose by"),
            (("learning-rate",), "expected learning-rate=low:high, low:high:log or 1,2,3"),
            (("activation=",), "expected activation=one,another"),
            (("learning-rate=1:0.1",), "expected a low end below the high one"),
            (("learning-rate=0:inf",), "expected a low end below the high one"),
            (("learning-rate=0:1:log",), "a range in the logarithm begins above 0"),
            (("learning-rate=1:2:ln",), "expected low:high or low:high:log"),
            (("learning-rate=a:b",), "--search learning-rate: expected a number, got 'a'"),
            (("inference-steps=1:2.5",), "expected a whole number, got '2.5'"),
            (("widths=3,a",), "expected whole numbers such as 300x300, got 'a'"),
            (("nesterov=yes,no",), "expected true or false, got 'yes'"),
            (("activation=tanh,rleu",), "got 'rleu'; did you mean 'relu'?"),
            (("activation=tanh",), "expected at least two choices; or give --activation"),
            (("momentum=0:1.5",), "expected --momentum from 0 to below 1, got 1.5"),
            (("beta=0.1:0.5",), "--search --beta does nothing with --learning pc; leave it out"),
            (("depth=2,3",), "--search --depth does nothing with --model mlp"),
            (("seed=1,2", "x=1"), "--seed is no setting"),
            (
                ("learning-rate=1:2", "learning-rate=1:3"),
                "--search names --learning-rate twice; give all choices at once",
            ),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
    )
    def test_refusals(self, texts, message):
        with pytest.raises(ValueError, match=message.replace("?", r"\?")):
            search(*texts)

    def test_what_is_given_is_not_searched_over_too(self):
        with pytest.raises(ValueError, match="--learning-rate 0.5 is given and searched over"):
            search("learning-rate=0.1:1", learning_rate=0.5)

    def test_a_setting_that_one_of_the_rules_has_may_be_searched(self):
        found = search("learning=pc,nudged,backprop", "beta=0.1:0.9", "inference-steps=2:4")
        assert [one.name for one in found] == ["learning", "beta", "inference_steps"]


class TestDrawn:
    def test_a_trial_has_what_was_drawn_but_for_what_does_nothing_there(self):
        base = TrainOptions()
        found = search("learning=pc,nudged,backprop", "beta=0.1:0.9", "inference-steps=2:4")
        for rule, counts in (
            ("pc", {"inference_steps": 3}),
            ("nudged", {"inference_steps": 3, "beta": 0.7}),
            ("backprop", {}),
        ):
            options = drawn(base, found, {"learning": rule, "beta": 0.7, "inference_steps": 3})
            assert options == dataclasses.replace(base, learning=rule, **counts)

    def test_choices_become_the_options_values(self):
        one = SearchedOption("widths", tuple[int, ...], choices=("3x4", "5"))
        assert drawn(TrainOptions(), [one], {"widths": "3x4"}).widths == (3, 4)


class TestCommand:
    @pytest.mark.parametrize(
        "options",
        [
            preset("notebook"),
            preset("pc", "residual-mlp"),
            dataclasses.replace(preset("fast"), decay="constant", widths=(3,), momentum=0.5),
            TrainOptions(step_size={"hidden_1": 0.1, "*": 0.0123456789012345}, nesterov=True),
            TrainOptions(optimizer="adamw(weight_decay=0.01)", validation=20, health=True),
            dataclasses.replace(preset("pc"), learning="nudged", beta=0.25, centred=True),
        ],
        ids=range(6),
    )
    def test_what_it_says_is_read_as_the_same_options(self, options):
        words = shlex.split(command_of(options))
        assert words[:2] == ["pcflax", "train"]
        default = preset(options.preset, options.model)
        assert tyro.cli(TrainOptions, args=words[2:], default=default) == options

    def test_it_says_no_more_than_it_must(self):
        assert command_of(TrainOptions(learning_rate=0.5)) == (
            "pcflax train --data digits --learning-rate 0.5"
        )
        told = command_of(preset("fast"), run_dir="runs/a b")
        assert told == "pcflax train --data digits --preset fast --run-dir 'runs/a b'"
