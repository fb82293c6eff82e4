"""Run by `test_on_eight_devices.py`, where there are eight; nowhere else is a module so much as imported."""

import os

import jax

if os.environ.get("JAX_NUM_CPU_DEVICES") == "8":
    jax.config.update("jax_enable_x64", True)
else:
    collect_ignore_glob = ["*.py"]
