"""The contenders of a benchmark must do one job, or their times mean nothing."""

import importlib

import numpy as np
import pytest

from benchmarks.contenders import Job
from benchmarks.notebook_job import make_batches, make_parameters

# Unequal widths; float32, and Adam turns rounding of tiny gradients into differences near 1e-4.
JOB = Job(widths=(12, 9, 7, 4), batch_size=8, num_inference_steps=6, activity_step_size=0.05)


def trained(module):
    contender = importlib.import_module(f"benchmarks.contenders.{module}").Contender(
        JOB, make_parameters(JOB, 1)
    )
    contender.run(*make_batches(JOB, 5, 0))
    return contender.parameters()


@pytest.mark.parametrize("module", ["trainer", "notebook_loop", "notebook_equinox"])
def test_predictive_coding_contenders_end_at_one_place(module):
    start, expected = make_parameters(JOB, 1), trained("bare_scan")
    for before, got, want in zip(start, trained(module), expected, strict=True):
        for name in ("kernel", "bias"):
            np.testing.assert_allclose(got[name], want[name], atol=3e-4)
            assert np.abs(want[name] - before[name]).max() > 1e-3  # it has learned


def test_backprop_is_another_rule():
    same = [
        np.allclose(got["kernel"], want["kernel"], atol=1e-6)
        for got, want in zip(trained("backprop"), trained("bare_scan"), strict=True)
    ]
    assert not all(same)


def test_the_page_on_choosing_inference_holds_the_results():
    """Its tables are those that benchmarks/tables.py makes from the committed JSON."""
    from benchmarks import tables

    text = tables.PAGE.read_text()
    assert tables.page(text) == text
    assert tables.measured() in text
    assert tables.mlp() in text
