"""A process that `test_on_two_processes.py` starts: `worker.py FOLDER both|eight ADDRESS NUMBER`."""

import sys
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)
folder, job, address, number = Path(sys.argv[1]), *sys.argv[2:]
if job == "both":
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, 2, int(number), heartbeat_timeout_seconds=20)

from pcflax.sharding import data, layers  # jax counts processes as it starts
from tests.sharding.two import jobs

if job == "both":
    jobs.both(folder)
else:
    jobs.deep(folder / "eight", layers(4) | data(2), 6, jobs.Killed())
