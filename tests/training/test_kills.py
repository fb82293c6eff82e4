"""Every kind of model, killed with -9 and resumed, ends bitwise as the run that was never stopped."""

import numpy as np
import pytest

import pcflax as pc
from tests.conftest import kill_once_saved
from tests.training.families import FAMILIES, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder of runs, one a family, that one SIGKILL ended while all were training."""
    folder = tmp_path_factory.mktemp("killed")
    kill_once_saved(
        ["-m", "tests.training.families", str(folder)], [folder / name for name in FAMILIES]
    )
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_a_killed_run_ends_as_the_one_never_stopped(name, killed, tmp_path):
    resumed = train(name, killed / name, 7, resume=True, every=10**6)
    whole = train(name, tmp_path, resumed.step, every=10**6)
    assert resumed.step >= 12  # of which the killed run had saved 5 or more
    found, expected = (pc.load_checkpoint(folder) for folder in (killed / name, tmp_path))
    assert found.step == expected.step
    assert found.digest() == expected.digest()
    assert found.sections.keys() == expected.sections.keys()
    for section, arrays in expected.sections.items():
        for path, array in arrays.items():
            np.testing.assert_array_equal(found.sections[section][path], array)
    for metric in whole.history.names():
        np.testing.assert_array_equal(resumed.history[metric], whole.history[metric])
