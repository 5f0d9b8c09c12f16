"""The curves of a training as it runs: dvclive's by epoch always, TensorBoard's by step too if asked for.

The checkpoint, not the curves, decides what is finished: a training that resumes passes its history, and the curves are
made to agree with it. A run that was killed between saving and logging loses no point and repeats none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from dvclive import Live
from scmrepo.exceptions import SCMError

from stores import ParameterError, TrainingError
from stores.ownership import Kinds, is_plain, remove_ours
from train.fit.epoch import Epoch, StepMetrics


def _is_curve(path: Path) -> bool:
    with path.open("rb") as stream:
        first = stream.readline()
    return not first or first.startswith(b"step\t")  # empty: killed before it was written


_DVCLIVE: Final = {
    r"dvclive/metrics\.json": is_plain,  # which a kill may cut off
    **{
        rf"dvclive/plots/metrics/{group}.+\.tsv": _is_curve
        for group in ("", "loss/", "temperature/", "validation/", "terms/")
    },
}
_MARK: Final = "DVCLIVE_STEP_COMPLETED"
"""In .dvc/tmp, where dvclive tells editors of a step."""
CURVES: Final[Kinds] = _DVCLIVE | {
    rf"tensorboard/{writer}/events\.out\.tfevents\..+": is_plain for writer in ("steps", "epochs")
}
"""The files of a training's curves in its folder."""


class Curves(ExitStack):
    """The curves of one training in its folder; a context manager, for the main process alone."""

    def __init__(
        self, folder: Path, history: Sequence[Epoch], steps_per_epoch: int, tensorboard: bool, first_step: int = 0
    ) -> None:
        """Open the curves, and bring them to where the `history` ends.

        TensorBoard's abscissa is the step of the whole training. Of the unfinished epoch, points after `first_step`
        steps are purged: a run that was stopped takes them again.

        Raises:
            ParameterError: TensorBoard is asked for and not installed.
            TrainingError: dvclive cannot work here.
        """
        super().__init__()
        self._steps_per_epoch = steps_per_epoch
        self._tensorboard: tuple[Any, Any] | None = None
        if tensorboard:
            kept = len(history) * steps_per_epoch + first_step
            self._tensorboard = self._writer(folder, "steps", kept + 1), self._writer(folder, "epochs", 0)
        self._dvclive = self.enter_context(_until_the_end(_live(folder)))
        for figures in history:
            self.epoch(figures)

    def step(self, epoch: int, metrics: StepMetrics) -> None:
        """Add the figures within `epoch` (from 0) to TensorBoard."""
        if self._tensorboard:
            _add(self._tensorboard[0], metrics.by_name(), epoch * self._steps_per_epoch + metrics.step)

    def epoch(self, figures: Epoch) -> None:
        """Add the figures of a finished epoch."""
        named = figures.by_name()
        for name, value in named.items():
            self._dvclive.log_metric(name, value)
        self._dvclive.next_step()
        if self._tensorboard:
            _add(self._tensorboard[1], named, (figures.epoch + 1) * self._steps_per_epoch)

    def _writer(self, folder: Path, name: str, purge_step: int) -> Any:
        """Open a folder of event files, in which points from `purge_step` on, of an earlier run, no longer count."""
        return self.enter_context(event_writer()(str(folder / "tensorboard" / name), purge_step=purge_step))


def event_writer() -> Any:
    """Return the class that writes TensorBoard's event files.

    Raises:
        ParameterError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        advice = "In the checkout: pip install -c constraints.txt -e '.[tensorboard]'."
        raise ParameterError("TensorBoard is not installed", where="train.tensorboard", advice=advice) from None
    return SummaryWriter


def _live(folder: Path) -> Live:
    """Open the training's `dvclive` folder, emptied of what was logged before.

    By itself Live would empty it of all that it could have logged, and so of a person's plots; resumed, it removes
    nothing, and begins at step 0 where no metrics.json is.
    """
    remove_ours(folder, _DVCLIVE)
    try:
        return Live(str(folder / "dvclive"), report=None, save_dvc_exp=False, dvcyaml=None, resume=True)
    except SCMError as error:
        advice = "Make a first commit, or train outside of it."
        raise TrainingError(f"dvclive cannot work in this git repository ({error})", advice=advice) from None


@contextmanager
def _until_the_end(live: Live) -> Iterator[Live]:
    """Enter `live`; several trainings in one repository share the mark that it removes at its end."""
    try:
        with live:
            yield live
    except FileNotFoundError as error:
        if Path(error.filename or "").name != _MARK:
            raise


def _add(writer: Any, named: dict[str, float], step: int) -> None:
    for name, value in named.items():
        writer.add_scalar(name, value, step)
    # Otherwise a kill loses up to two minutes of points of steps that the checkpoint counts as done.
    writer.flush()
