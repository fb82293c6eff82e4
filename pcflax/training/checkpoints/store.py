"""Checkpoints: written by Orbax, sealed by us, kept while they are needed.

A checkpoint is a folder `<step>/` that Orbax writes, and a file `<step>.sha256` beside it with the SHA-256
of each file inside, in the format of the sha256sum tool (`cd <step> && sha256sum -c ../<step>.sha256` checks
it too). The seal is written first and the folder renamed to its place last, so at every instant either
both are there or neither counts. Orbax alone restores an array with a flipped byte as if nothing had
happened.

Old checkpoints are deleted only after a newer one is sealed and on the disk, and the latest is never deleted
for the best. Saving runs in the background; the arrays are copied before `save` returns. What else lies in
the folder is not touched: `folder.py`. Reading is in `reading.py`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pcflax.checks import expect_count, expect_local_path
from pcflax.sharding.processes import is_first, is_lost, number_of_processes, together

from ..plain_json import dumps
from .arrays import FlatArrays
from .disk import move, sync, telling
from .folder import Folder, plain_name, remove
from .lock import expect_shared, keep, locked
from .reading import Checkpoint, read
from .rows import sync_rows
from .seals import find_damage, seal, seal_of

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

# Orbax holds a file, compressed, in memory until it is whole: without a bound most of a checkpoint.
_FILE_BYTES = 64 * 2**20


class Checkpoints:
    """A folder of checkpoints, and which of them to keep.

    Args:
        directory: a folder on this machine, `~` expanded; made on the first save.
        keep_latest: how many of the newest to keep, at least 1.
        keep_best: (metric, "max" or "min"): also keep the one with the best value of that metric,
            such as ("eval/accuracy", "max"). Only checkpoints of a step that was evaluated compete; a
            NaN never wins.
        every: save every so many steps; at each evaluation, or else each epoch, unless given. The
            last step of a fit is always saved.
        activities: whether a checkpoint also holds the last batch's inferred activities.

    Raises:
        TypeError: for a count that is no whole number.
        ValueError: for a keep_latest or every below 1, another mode, or the address of a bucket.

    >>> import pcflax as pc
    >>> pc.Checkpoints("runs/mnist", keep_latest=3, keep_best=("eval/accuracy", "max")).keep_latest
    3
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep_latest: int = 3,
        keep_best: tuple[str, str] | None = None,
        every: int | None = None,
        activities: bool = False,
    ):
        self.directory = expect_local_path("Checkpoints", "directory", directory)
        self.keep_latest = expect_count("Checkpoints", "keep_latest", keep_latest, least=1)
        self.every = None if every is None else expect_count("Checkpoints", "every", every, least=1)
        match keep_best:
            case None | (str(), "max" | "min"):
                self.keep_best = keep_best
            case _:
                raise ValueError(
                    f"expected keep_best as (metric, 'max' or 'min'), such as ('eval/accuracy', 'max'), "
                    f"got {keep_best!r}"
                )
        self.activities = activities
        self._folder = Folder(self.directory)
        self._opened: contextlib.ExitStack | None = None  # the lock, and what writing needs
        self._checkpointer: ocp.AsyncCheckpointer | None = None
        self._place = self.directory  # the folder by a name that Orbax takes
        self._sealing: threading.Thread | None = None
        self._failure: BaseException | None = None

    def __repr__(self) -> str:
        shown = f"keep_latest={self.keep_latest}, keep_best={self.keep_best}, every={self.every}"
        return f"Checkpoints('{self.directory}', {shown})"

    def prepare(self) -> None:
        """Make the folder, lock it and see that it can be written, before any work is done.

        Raises:
            FileExistsError: where another process writes there.
            FileNotFoundError: where a process does not see what the first one writes there.
            OSError: where the folder cannot be written, naming it.
            RuntimeError: where another process fails.
        """
        with together() as first:
            if first:
                self._take()
        expect_shared(self.directory)
        if self._opened is None:
            self._opened = contextlib.ExitStack()

    def _take(self) -> None:
        with telling(f"checkpoints to {self.directory}", "choose another folder"):
            self._probe()
        if self._opened is None:
            opened = contextlib.ExitStack()
            opened.enter_context(locked(self.directory))
            self._opened = opened

    def _probe(self) -> None:
        """Make the folder where there is none, and write into it: Orbax would wait for ever if it cannot."""
        self.directory.mkdir(parents=True, exist_ok=True)
        # as long as the paths below a checkpoint
        probe = self.directory / f".probe-{os.getpid()}-".ljust(140, "x")
        probe.touch()
        probe.unlink()

    def save(
        self,
        step: int,
        sections: Mapping[str, FlatArrays],
        meta: dict[str, Any],
        add_rows: Callable[[Path], Any] = lambda directory: [],
    ) -> Path:
        """Write a checkpoint in the background; returns the folder it will be in.

        A checkpoint of the same step is replaced when the new one is complete. Later ones are of a
        future that is not taken; they are then moved aside to `<step>.superseded`.

        Args:
            step: its name and place in time.
            sections: arrays by section and path, from `flatten`.
            meta: what json can hold.
            add_rows: writes the history's rows beside the checkpoints, where it is given the folder, and
                returns what to store of them.

        Raises:
            FileExistsError: where something else has the step's name, or another process writes.
            RuntimeError: where another process fails.
        """
        stored = {
            section: {name: array for name, array in flat.items() if np.size(array) > 0}
            for section, flat in sections.items()
        }
        meta = {
            # a copy: Orbax writes in the background, while the run goes on
            **json.loads(dumps(meta, spell=True)),
            "step": step,
            "keep_best": self.keep_best,
            "arrays": {
                section: {
                    name: [list(array.shape), str(array.dtype)] for name, array in flat.items()
                }
                for section, flat in stored.items()
            },
        }
        import orbax.checkpoint as ocp

        self.wait()
        checkpointer = self._open()
        with together() as first:
            if first:
                self._look_again(step)
        try:
            with together() as first:
                meta["history"] = add_rows(self.directory) if first else []
            with together():
                checkpointer.save(
                    self._place / self._folder.writing(step).name,
                    args=ocp.args.Composite(
                        state=ocp.args.PyTreeSave(
                            {n: flat for n, flat in stored.items() if flat},
                            ocdbt_target_data_file_size=_FILE_BYTES,
                        ),
                        meta=ocp.args.JsonSave(meta),
                    ),
                )
        except Exception as error:
            self._give_up(step)
            raise _in_words(error, step, self.directory)  # noqa: B904  # it tells the cause itself
        self._sealing = threading.Thread(target=self._finish, args=(step,), daemon=False)
        self._sealing.start()
        return self.path(step)

    def _look_again(self, step: int) -> None:
        """See that the folder is as it was: it may have been closed, deleted or taken meanwhile."""
        self.refuse_taken(lambda taken: taken == step)
        if (writing := self._folder.writing(step)).exists():  # what was ours is gone
            raise FileExistsError(
                f"{writing} is no checkpoint of pcflax, and that of step {step} is written there; "
                f"move it, or choose another folder for the checkpoints"
            )
        try:
            self._probe()
        except OSError as error:
            raise _in_words(error, step, self.directory)  # noqa: B904  # it tells the cause itself
        keep(self.directory)

    def refuse_taken(self, is_due: Callable[[int], bool]) -> None:
        """See that nothing of the user's has the name of a checkpoint that is due.

        Raises:
            FileExistsError: naming it.
        """
        for step in self._folder.taken_steps(is_due):
            raise FileExistsError(
                f"{self.path(step)} or its .sha256 is no checkpoint of pcflax, and that of step "
                f"{step} needs the name; move it, or choose another folder for the checkpoints"
            )

    def wait(self) -> None:
        """Return when the last save is complete and sealed.

        Raises:
            Exception: what went wrong while it was written; a RuntimeError where it was in another process.
        """
        if self._sealing is None:
            return
        self._sealing.join()
        self._sealing = None
        failure, self._failure = self._failure, None
        with together():  # so that none goes on before the first has sealed it
            if failure is not None:
                raise failure

    def close(self) -> None:
        """Wait, and let the folder and Orbax's threads go."""
        if is_lost():  # what is being written will never be complete
            return
        try:
            self.wait()
        finally:
            opened, self._opened, self._checkpointer = self._opened, None, None
            if opened is not None:
                opened.close()

    def _open(self) -> ocp.AsyncCheckpointer:
        if self._checkpointer is None:
            import orbax.checkpoint as ocp  # a fifth of a second, which only saving needs

            self.prepare()
            assert self._opened is not None
            with together() as first:
                if first:
                    self._folder.discard_unfinished()
                    self._folder.put_back()
            self._place = self._opened.enter_context(plain_name(self.directory))
            # named, they wait at the coordination service; else on devices, between calls of the loop
            processes = number_of_processes()
            several = set(range(processes)) if processes > 1 else None
            options = ocp.options.MultiprocessingOptions(active_processes=several)
            handler = ocp.CompositeCheckpointHandler(
                composite_options=ocp.CompositeOptions(multiprocessing_options=options)
            )
            self._checkpointer = ocp.AsyncCheckpointer(handler, multiprocessing_options=options)
            self._opened.callback(self._checkpointer.close)
        return self._checkpointer

    def _finish(self, step: int) -> None:
        """Do what follows when Orbax is done: seal the folder, put it in its place, delete the old."""
        try:
            self._checkpointer.wait_until_finished()  # type: ignore[union-attr]
            if not is_first():
                return
            path, replaced = self.path(step), None
            if path.exists():
                replaced = self._folder.move_aside(step, "replaced")
            writing = self._folder.writing(step)
            sync_rows(self.directory)
            seal(writing, path)
            move(writing, path)
            sync(self.directory)
            # Only now is anything older given up: a kill before this line loses nothing, since what
            # is replaced counts until the new one is in its place.
            if replaced is not None:
                remove(replaced)
            found = self.all_steps()  # once: it reads every seal
            for later in found:
                if later > step:
                    self._folder.move_aside(later, "superseded")
            self._prune([kept for kept in found if kept <= step])
        except BaseException as error:  # raised again by wait() in the caller's thread
            self._failure = _in_words(error, step, self.directory)
            self._give_up(step)

    def _give_up(self, step: int) -> None:
        """Remove what there is of a checkpoint that could not be written: a full disk needs the room.

        The one that it would have replaced is put back.
        """
        if not is_first():
            return
        with contextlib.suppress(OSError):
            self._folder.discard_unfinished()
            if not self.path(step).exists():
                seal_of(self.path(step)).unlink(missing_ok=True)
            self._folder.put_back()

    def _prune(self, steps: list[int]) -> None:
        sealed = [step for step in steps if self._folder.is_sealed(step)]
        keep = set(sealed[-self.keep_latest :])
        if (best := self._best_of(sealed)) is not None:
            keep.add(best)
        for step in steps:
            if step not in keep:  # too old, or never sealed because its writing was interrupted
                remove(self.path(step))
        for old in self._folder.superseded()[self.keep_latest :]:
            remove(old)

    # Reading.

    def all_steps(self) -> list[int]:
        """Return every step with a folder or a seal of ours, good or not, in order."""
        return self._folder.all_steps()

    def steps(self) -> list[int]:
        """Return every sealed step, in order; whether each is good is seen on restoring."""
        return self._folder.steps()

    def best_step(self) -> int | None:
        """Return the sealed step with the best value of `keep_best`'s metric, or None."""
        return None if self.keep_best is None else self._best_of(self.steps())

    def _best_of(self, steps: list[int]) -> int | None:
        return self.keep_best and self._folder.best_step(steps, *self.keep_best)

    def path(self, step: int) -> Path:
        """Return the folder of a step."""
        return self._folder.path(step)

    def latest_good(self) -> Path | None:
        """Return the newest checkpoint that matches its seal, or None."""
        self.wait()
        paths = map(self._folder.found, reversed(self.all_steps()))
        return next((path for path in paths if find_damage(path) is None), None)

    def read(self, step: int | None = None, *, best: bool = False) -> Checkpoint:
        """Return the newest good checkpoint, or the best, or that of one step.

        Args:
            step: read this one and no other.
            best: read the best by `keep_best`; a damaged one is named in a warning and does not compete.

        Raises:
            FileNotFoundError: where there is none.
            CheckpointError: where all are damaged, or the one asked for is.
            ValueError: for both step and best, or best without `keep_best`.
        """
        self.wait()
        return read(self._folder, step=step, best=best, keep_best=self.keep_best)


def _in_words(error: BaseException, step: int, directory: Path) -> BaseException:
    """Return the error, or where the system is its reason, one sentence; libraries have their own terms."""
    found = re.search(r"(?:OS error |os_error_code=')([0-9]+)", str(error))  # TensorStore's
    number = getattr(error, "errno", None) or (int(found[1]) if found else None)
    if number is None:
        return error
    full = number in (errno.ENOSPC, errno.EDQUOT)
    remedy = "make room" if full else "mend that"
    told = OSError(
        f"cannot write the checkpoint of step {step} to {directory}: {os.strerror(number)}; those before are "
        f"not touched; {remedy} and restore"
    )
    told.__cause__ = error
    return told
