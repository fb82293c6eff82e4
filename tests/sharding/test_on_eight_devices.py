"""What `eight/` says of eight devices, each file in a process of its own: jax counts devices as it starts."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("file", ["equality", "collectives", "places"])
def test_on_eight_devices(file):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", f"tests/sharding/eight/test_{file}.py"],
        cwd=ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
