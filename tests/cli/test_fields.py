"""Options that come from the dataclasses: read from the source, and the same as what the classes say.

Oracles: `dataclasses.fields` of the classes themselves, and objects made without the command line.
"""

import ast
import dataclasses
import inspect

import diffrax
import lineax
import pytest

import pcflax as pc
from pcflax import recipes
from pcflax.cli import fields
from pcflax.cli.build import build_inference, build_learning
from pcflax.cli.checking import check_options
from pcflax.cli.main import _spelt_out, main
from pcflax.cli.options import RunOptions, TrainOptions, preset

WORDS = [("learning", word) for word in recipes.LEARNING]
WORDS += [("inference", word) for word in recipes.INFERENCE]


def class_of(option, word):
    words = {"learning": recipes.LEARNING, "inference": recipes.INFERENCE}[option]
    return getattr(getattr(pc, option), words[word][-1])


@pytest.mark.parametrize(("option", "word"), WORDS, ids=lambda word: word)
def test_what_is_read_from_the_source_is_what_the_class_has(option, word):
    kind = class_of(option, word)
    real = {field.name: field for field in dataclasses.fields(kind)}
    read = fields.settings(option, word)
    assert set(read) <= set(real)
    for name, setting in read.items():
        default = real[name].default
        assert setting.default == (None if default is dataclasses.MISSING else default)
        documented = " ".join(inspect.getdoc(kind).split())
        assert f"{name}: {setting.text}" in documented
    numbers = [name for name, field in real.items() if field.type in ("int", "float", "bool")]
    assert set(numbers) <= set(read)


def test_a_new_field_is_an_option_by_itself(monkeypatch):
    text = (
        "class Base:\n    num_steps: int | None = None\n\n"
        'class New(Base):\n    """New.\n\n'
        "    Args:\n        damping: how much, and\n        num_steps: of them.\n"
        '    """\n    damping: float = field(default=0.5, kw_only=True)\n    inner: Any = None\n'
    )
    classes = {node.name: node for node in ast.parse(text).body}
    monkeypatch.setattr(fields, "_classes", lambda folder: classes)
    monkeypatch.setitem(recipes.INFERENCE, "new", ("New",))
    found = fields.settings.__wrapped__("inference", "new")
    assert found == {
        "damping": fields.Setting("damping", float, 0.5, "how much"),
        "num_steps": fields.Setting("num_steps", int, None, "of them"),
    }
    assert [setting.option for setting in found.values()] == ["damping", "inference_steps"]


def test_no_setting_takes_the_name_of_a_runs_option():
    own = {field.name for field in dataclasses.fields(RunOptions)}
    assert own.isdisjoint(name for name, _, _ in fields.derived())


class TestBuilt:
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            (
                {"inference": "langevin", "burn_in": 3, "thinning": 2, "keep_samples": True},
                pc.inference.Langevin(
                    0.003125, num_samples=7, burn_in=3, thinning=2, keep_samples=True
                ),
            ),
            (
                {"inference": "newton", "linear_solver": "cg(rtol=1e-3, atol=1e-6)"},
                pc.inference.NewtonCG(num_steps=7, linear_solver=lineax.CG(rtol=1e-3, atol=1e-6)),
            ),
            (
                {"inference": "flow", "solver": "heun", "tolerance": 0.1, "max_time": 5.0},
                pc.inference.GradientFlow(diffrax.Heun(), tolerance=0.1, max_time=5.0, max_steps=7),
            ),
            (
                {"inference": "linear", "solver": "Cholesky", "refinements": 1},
                pc.inference.LinearSolve(lineax.Cholesky(), refinements=1),
            ),
            (
                {"step_size": {"hidden_1": 0.1, "*": 0.02}, "momentum": 0.5, "nesterov": True},
                pc.inference.GradientDescent(
                    {"hidden_1": 0.1, "*": 0.02}, momentum=0.5, nesterov=True, num_steps=7
                ),
            ),
            (
                {"step_size": 0.1, "momentum": "auto"},
                pc.inference.GradientDescent(0.1, momentum="auto", num_steps=7),
            ),
            (
                {"inference": "sweeps", "order": "sequential"},
                pc.inference.Sweeps(order="sequential", num_steps=7),
            ),
            (
                {"step_size": 0.1, "guard": "clip", "backoff": 0.5},
                pc.inference.GradientDescent(0.1, guard="clip", backoff=0.5, num_steps=7),
            ),
        ],
        ids=["langevin", "newton", "flow", "linear", "gradient", "auto", "sweeps", "guarded"],
    )
    def test_every_setting_of_an_algorithm_reaches_it(self, options, expected):
        assert build_inference(TrainOptions(inference_steps=7, **options)) == expected

    def test_every_setting_of_a_rule_reaches_it(self):
        options = TrainOptions(learning="nudged", weighted=True, initializer="normal(0.1)")
        expected = pc.learning.Nudged(
            pc.inference.GradientDescent(0.003125, num_steps=20),
            weighted=True,
            initializer=pc.initializers.Normal(0.1),
        )
        assert build_learning(options) == expected

    @pytest.mark.parametrize("word", recipes.LEARNING)
    def test_settings_that_a_rule_has_are_taken_and_others_refused(self, word):
        """By the fields of the class alone."""
        has = "initializer" in {
            field.name for field in dataclasses.fields(class_of("learning", word))
        }
        options = TrainOptions(learning=word, initializer="zeros")
        if has:
            check_options(options)
            return
        message = f"--initializer does nothing with --learning {word}; leave it out, or take"
        with pytest.raises(ValueError, match=f"{message} --learning pc or ipc or nudged$"):
            check_options(options)

    def test_an_algorithms_setting_wants_a_rule_that_infers(self):
        options = TrainOptions(learning="backprop", step_size=0.1)
        with pytest.raises(ValueError, match="--step-size does nothing with --learning backprop"):
            check_options(options)


class TestDefaults:
    @pytest.mark.parametrize("model", recipes.MODELS)
    def test_a_model_brings_its_own_and_a_preset_goes_over_them(self, model):
        options = preset("notebook", model)
        assert options.model == model
        for name, value in recipes.MODELS[model].items():
            assert getattr(options, name) == value
        fast = preset("fast", model)
        for name, value in recipes.PRESETS["fast"].items():
            assert getattr(fast, name) == value

    def test_every_default_counts(self):
        """A default that the model does not have would be refused with it."""
        for model in recipes.MODELS:
            data = "text:book.txt" if model == "transformer" else "digits"
            check_options(dataclasses.replace(preset("notebook", model), data=data))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("train --decay --seed 1", "train --decay linear --seed 1"),
        ("train --decay", "train --decay linear"),
        ("train --decay cosine", "train --decay cosine"),
        ("train --preset fast --no-decay", "train --preset fast --decay constant"),
    ],
)
def test_decay_alone_is_a_line_to_zero(typed, meant):
    assert _spelt_out(typed.split()) == meant.split()


def help_of(verb, monkeypatch, capsys):
    """What a wide terminal shows."""
    monkeypatch.setenv("COLUMNS", "2000")
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", ["train", "sweep"])
def test_help_breaks_lines_where_the_terminal_ends(monkeypatch, capsys, verb):
    """It broke them where those of the source end."""
    told = help_of(verb, monkeypatch, capsys)
    documented = " ".join(inspect.getsource(RunOptions).split())
    for begin in (
        "Defaults to start from,",
        "Go on with the run in",
        "How activities are inferred:",
    ):
        sentence = documented[documented.index(begin) :].partition('"""')[0]
        assert sentence in told


@pytest.mark.parametrize("verb", ["train", "sweep"])
def test_help_shows_choices(monkeypatch, capsys, verb):
    """It said STR."""
    told = help_of(verb, monkeypatch, capsys)
    for choices in (
        "--guard {None,clip,warn}",
        "--order {red-black,sequential}",
        "--credit {before,after}",
    ):
        assert choices in told


def test_help_cuts_no_brace():
    """`--weights` said no more than a brace."""
    for option, word in WORDS:
        for setting in fields.settings(option, word).values():
            assert setting.text.count("{") == setting.text.count("}")
