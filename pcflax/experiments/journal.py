"""The journal of a sweep: every trial's settings and evaluations, in a file that no kill can break.

A line of optuna's journal is written at once and synced, so a killed process leaves whole lines, and the
machine's crash at most a torn one at the end, which is cut off. The next settings are a function of the
seed, the trial's number and the trials before it: a sweep that was killed proposes what it would have.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pcflax.checks import wanting
from pcflax.training.checkpoints.disk import telling

if TYPE_CHECKING:
    import optuna

_NAME = "sweep"


def load_optuna() -> Any:
    """Return optuna.

    Raises:
        ModuleNotFoundError: with the line that installs it.
    """
    with wanting("a sweep", "optuna", "tune"):
        import optuna
    return optuna


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep optuna from telling what the sweep tells."""
    logging = load_optuna().logging
    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(before)


class Journal:
    """The study in a folder, begun if there is none; the caller holds the folder's lock.

    Args:
        folder: of the sweep.
        search: {name: distribution of optuna}.
        mode: "max" or "min".
        pruner: optuna's, or None.
        seed: of what is proposed.
        objective: what a sweep cannot change while it goes on, beside search and seed.

    Raises:
        ValueError: where the folder's sweep was begun with others, naming the first difference, and for a
            journal that is no longer whole.
        TypeError: for choices that JSON cannot hold.
        OSError: here and later, where a line cannot be written; what is left of it is cut off next time.
    """

    def __init__(
        self,
        folder: Path,
        search: Mapping[str, Any],
        *,
        mode: str,
        pruner: Any,
        seed: int,
        objective: Mapping[str, Any],
    ):
        optuna = load_optuna()
        self.folder, self._search, self._seed = folder, dict(search), seed
        path = folder / "journal.log"
        if path.exists():
            _cut_torn_line(path)
        backend = _backend(path)
        try:
            self._storage = optuna.storages.JournalStorage(backend)
        except ValueError as error:  # a line is not JSON
            raise ValueError(
                f"{path} cannot be read as the journal of a sweep ({error}); give another folder, or the "
                f"file as it was written"
            ) from error
        self.study = optuna.create_study(
            study_name=_NAME,
            storage=self._storage,
            load_if_exists=True,
            direction=f"{mode}imize",
            sampler=optuna.samplers.RandomSampler(0),  # never asked: `_propose` is
            pruner=pruner or optuna.pruners.NopPruner(),
        )
        searched = {name: _plain(name, one) for name, one in self._search.items()}
        self._expect({"search": searched, "objective": dict(objective), "seed": seed})
        # settings are drawn one after the other: in the order in which the sweep was begun
        self._search = {name: search[name] for name in self.study.user_attrs["search"]}

    def _expect(self, facts: Mapping[str, Any]) -> None:
        """Note what the sweep is, or see that it is the same."""
        known = self.study.user_attrs
        for name, value in facts.items():
            if name not in known:
                self.study.set_user_attr(name, value)
            elif known[name] != value:
                raise ValueError(
                    f"the sweep in {self.folder} was begun with {name} {known[name]}, got {value}; give what "
                    f"it was begun with, or another folder"
                )

    def ended(self) -> list[optuna.trial.FrozenTrial]:
        """Return every trial that has ended, in the order of their numbers."""
        trials = self.study.get_trials(deepcopy=False)
        return [trial for trial in trials if trial.state.is_finished()]

    def next_trial(self) -> optuna.Trial:
        """Return the trial that was running when the sweep was stopped, or else a new one."""
        trial = load_optuna().trial
        if not (found := self._running()):
            # whole at once: no kill leaves a trial with some of its settings
            settings = {"params": self._propose(), "distributions": self._search}
            self.study.add_trial(trial.create_trial(state=trial.TrialState.RUNNING, **settings))
            found = self._running()
        study_id = self._storage.get_study_id_from_name(_NAME)
        number = found[0].number
        own = self._storage.get_trial_id_from_study_id_trial_number(study_id, number)
        return trial.Trial(self.study, own)

    def _running(self) -> list[optuna.trial.FrozenTrial]:
        return [one for one in self.study.get_trials(deepcopy=False) if not one.state.is_finished()]

    def _propose(self) -> dict[str, Any]:
        """Return the settings of the next trial, by the tree-structured Parzen estimator."""
        optuna, ended = load_optuna(), self.ended()
        state = np.random.SeedSequence([self._seed, len(ended)]).generate_state(1)[0]
        copy = optuna.create_study(
            direction=self.study.direction, sampler=optuna.samplers.TPESampler(seed=int(state))
        )
        copy.add_trials(ended)
        return copy.ask(self._search).params


def _held(path: str) -> Any:
    """Return the folder's lock in the place of optuna's, which a killed process would leave behind."""

    class Held(load_optuna().storages.journal.JournalFileOpenLock):
        def acquire(self) -> bool:
            return True

        def release(self) -> None:
            pass

    return Held(path)


def _backend(path: Path) -> Any:
    """Return optuna's file, which says so where a line cannot be written."""

    class File(load_optuna().storages.journal.JournalFileBackend):
        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            with telling(str(path)):
                super().append_logs(logs)

    return File(str(path), lock_obj=_held(str(path)))


def _plain(name: str, distribution: Any) -> Any:
    """Return a distribution as JSON's own values; refuse choices that do not come back as they are."""
    module, text = load_optuna().distributions, None
    with contextlib.suppress(TypeError):
        text = module.distribution_to_json(distribution)
    if text is None or module.json_to_distribution(text) != distribution:
        raise TypeError(
            f"sweep expected choices of {name} that its journal can hold, numbers, words, booleans or None, "
            f"got {distribution}; give names, and look up what they stand for where you train"
        )
    return json.loads(text)


def _cut_torn_line(path: Path) -> None:
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole != len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
