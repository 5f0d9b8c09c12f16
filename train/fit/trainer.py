"""One training: from a store and parameters to a best checkpoint; stopped at any step, it goes on as if never stopped.

1. The stream deals the pairs of an epoch; workers decode and tokenise; teachers' features are joined by row.
2. The objective, such as InfoNCE + α·CSA + β·USA, over the whole batch of all processes, gradient clipping, AdamW,
   cosine schedule with warm-up; temperatures stay in bounds.
3. After each epoch the validation split is measured. `last.safetensors` holds everything to go on from (written after
   each epoch, every `save_every` steps and on a stop), `best.safetensors` the weights with the highest validation RSUM.

Everything random in a step follows from (seed, epoch, step, process): a checkpoint needs no generator's state.
"""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from models.aligned import AlignedModel
from models.checkpoint import frozen_parameters
from models.students import as_student, load_student
from models.trained import begin_with
from stores import Store, TrainingError, TrainParameters
from stores.clean import FILE_NAME, write_clean
from stores.console import console
from stores.layout import teacher_slug
from train.data.batches import Batch, TrainingData
from train.data.judged import check_weighable
from train.data.mixture import opened
from train.data.seeds import derived_seed
from train.evaluation.embed import embed_split, measuring
from train.evaluation.evaluate import compare_split, retrieval
from train.evaluation.kept_parts import parts_policy
from train.evaluation.ranked_modalities import check_enriched
from train.evaluation.second_stage import own_second_stage
from train.evaluation.set_figures import collapse, spread_of_sets
from train.fit.checkpoints import Checkpoints
from train.fit.curves import Curves
from train.fit.epoch import Epoch, EpochProgress, StepMetrics
from train.fit.frozen_towers import read_frozen_outputs
from train.fit.grad_cache import check_cacheable
from train.fit.live import LiveView
from train.fit.optimisation import Optimisation, check_schedule
from train.fit.processes import Processes, precision_of
from train.fit.run_folder import Facts, describe
from train.fit.stops import Stop, Stopped
from train.fit.unreached import freeze_unreached
from train.losses.comparison import matched_by
from train.losses.objective import GRADIENT, TOTAL, check_modalities, make_objective

LOOK_EVERY: Final = 10
"""Steps between two looks at the losses: each look waits for the device."""


class Training:
    """The state of one training, in the folder `run`."""

    def __init__(
        self,
        run: Path,
        store: Store,
        parameters: TrainParameters,
        title: str,
        accelerator: Accelerator,
        stop: Stop,
    ) -> None:
        self._run, self._store, self._parameters = run, store, parameters
        self._title, self._accelerator, self._stop = title, accelerator, stop
        self._processes: Processes = stop.processes
        self._settings = parameters.train
        check_weighable(parameters)
        check_schedule(self._settings)
        set_seed(derived_seed(self._settings.seed))
        teachers = parameters.teachers
        slugs = {"image": teacher_slug(teachers.image, "image"), "text": teacher_slug(teachers.text, "text")}
        student = load_student(parameters.student)
        inputs = as_student(student).inputs
        check_enriched(parameters.eval.enriched, inputs)
        check_modalities(parameters.loss, inputs)
        taught = tuple(modality for modality in slugs if modality in inputs)
        self.objective = make_objective(parameters.loss, taught, tuple(inputs))
        self.model = AlignedModel(student, uni_modal=self.objective.unimodal)
        if parameters.student.weights is not None:
            begin_with(self.model, Path(parameters.student.weights))
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # convolutions run faster so
        self._second = own_second_stage(parameters.eval.rerank, self.model, accelerator)
        matching = matched_by(inputs, parameters.loss.match)
        rank, processes = self._processes.rank, self._processes.count
        measured = (parameters.eval.validation, parameters.eval.test)
        splits = [(one, ("train",)) for one in opened(store, self._settings.mix_in, slugs)[1:]]
        self.model.to(accelerator.device)
        read_frozen_outputs(self.model, parameters, [(store, ("train", *measured)), *splits], accelerator, stop)
        place, classed = (accelerator.device, rank, processes), "class" in matching.values()
        inputs, soft = self.model.interface.inputs, self.objective.soft
        self.data = TrainingData(store, self._settings, slugs, inputs, *place, classed, soft)
        self.model.train()  # pretrained towers may come in evaluation mode
        check_cacheable(self.model, self._settings.micro_batch, self._settings.batch_size // processes)
        self.objective.begin(self.data.pairs)
        self.objective.to(accelerator.device)
        modules = {"model": self.model, "objective": self.objective}
        frozen = frozen_parameters(modules)
        self._unreached = freeze_unreached(self.model, self.objective)
        self._steps = len(self.data.stream)
        self._optimisation = Optimisation(
            self.model, self.objective, self.data, self._settings, accelerator, self._processes, matching
        )
        self.checkpoints = Checkpoints(run, parameters, modules, self._optimisation.optimizer, frozen)
        self.history: list[Epoch] = []
        self._done = EpochProgress()

    def fit(self) -> list[Epoch]:
        """Train, from the last checkpoint if there is one, and return every epoch's figures.

        Raises:
            Stopped: a stop was asked for; the state is saved.
            TrainingError: the loss is no longer finite.
        """
        self._resume()
        self._announce()
        settings, steps = self._settings, self._steps
        best = max((epoch.validation_rsum for epoch in self.history), default=None)
        with ExitStack() as stack:
            view = stack.enter_context(LiveView(self._title, settings.epochs, steps, settings.batch_size, best))
            step = self._done.step
            opened = self._processes.alone(lambda: Curves(self._run, self.history, steps, settings.tensorboard, step))
            curves = stack.enter_context(opened) if opened else None
            stack.callback(self.data.close)
            self._processes.alone(self.describe)
            try:
                while len(self.history) < settings.epochs:
                    self._epoch(view, curves)
            except Stopped:
                # All wait: a launcher ends every process, the one that saves as well, as soon as one has ended.
                self._processes.alone(self._save)
                raise Stopped(
                    f"{self._title} after step {self._done.step} of {steps} of epoch {len(self.history) + 1}, "
                    f"saved in {self.checkpoints.last}"
                ) from None
        return self.history

    def describe(self) -> None:
        """Write the page that explains the training's folder."""
        describe(self._run, self.facts(), self.history)

    def facts(self) -> Facts:
        """Return what the page of the training's folder says beside figures."""
        return Facts(
            title=self._title,
            parameters=self._parameters,
            store=self._store.root,
            fingerprint=self._store.manifest.source_fingerprint,
            data=self.data.announce(),
            device=self._accelerator.device.type,
            precision=self._precision,
            processes=self._processes.count,
        )

    def _resume(self) -> None:
        self.history, self._done = self.checkpoints.load()
        place = (len(self.history), self._done.step)
        if self._processes.any(place != self._processes.once(lambda: place)):
            raise TrainingError(
                f"The processes do not see the same {self.checkpoints.last}: this one goes on after epoch {place[0]} "
                f"and step {place[1]}. Choose a folder that all machines share with --run."
            )

    def _announce(self) -> None:
        done, step = len(self.history), self._done.step
        epochs = self._settings.epochs
        place = f"; resumed after epoch {done} of {epochs}" if 0 < done < epochs else ""
        place = f"; resumed in epoch {done + 1} after step {step} of {self._steps}" if step else place
        processes = f"{self._processes.count} processes on " if self._processes.count > 1 else ""
        console.print(
            f"{self._title}: {self.data.announce()}; {processes}{self._accelerator.device.type}, {self._precision}"
            f"{place}"
        )
        if self._unreached:
            console.print(self._unreached)

    @property
    def _learning_rate(self) -> float:
        """The rate of the step to come."""
        return self._optimisation.rate(len(self.history), self._done.step)

    @property
    def _precision(self) -> str:
        return precision_of(self._accelerator)

    def _epoch(self, view: LiveView, curves: Curves | None) -> None:
        epoch = len(self.history)
        view.begin(epoch, self._done.step)
        if self._done.step < self._steps:
            self._train(epoch, view, curves)
        view.measuring()
        done, (rsum, sets) = self._done, self._validated()
        figures = Epoch(
            epoch=epoch,
            loss={name: total / done.step for name, total in done.sums.items()},
            temperatures=self.objective.temperatures(),
            learning_rate=self._learning_rate,
            validation_rsum=rsum,
            samples_per_second=done.step * self._settings.batch_size / done.seconds,
            wait=done.waited / done.seconds,
            terms=self.objective.figures(),
            sets=sets,
        )
        self.history.append(figures)
        remarks = self.objective.remarks(figures.loss, self._settings.batch_size)
        for remark in [*remarks, *filter(None, [collapse(sets)])]:
            console.print(f"Epoch {epoch + 1}: {remark}", style="yellow")
        self._done = EpochProgress()
        self._processes.alone(lambda: self._keep(figures, curves))
        view.end(figures)

    def _train(self, epoch: int, view: LiveView, curves: Curves | None) -> None:
        """Take the steps that the epoch still wants."""
        stream = self.data.stream
        self.objective.before_epoch(epoch)
        if surveying := self.objective.surveying(epoch):
            self._optimisation.survey(surveying, epoch, self._stop.check)
        stream.epoch, stream.first_step = epoch, self._done.step
        self.model.train()
        self._take_steps(epoch, view, curves)

    def _take_steps(self, epoch: int, view: LiveView, curves: Curves | None) -> None:
        waiting: list[dict[str, Tensor]] = []
        looked = asked = time.monotonic()
        waited = 0.0
        for step, batch in zip(range(self._done.step, self._steps), self.data.loader, strict=True):
            waited += time.monotonic() - asked
            waiting.append(self.step(batch, epoch, step))
            stop, last = self._stop.asked(), step + 1 == self._steps
            save = (step + 1) % self._settings.save_every == 0 and not last
            if len(waiting) == LOOK_EVERY or stop or save or last:
                latest = self._look(waiting, epoch, step)
                now = time.monotonic()
                metrics = self._figures(latest, len(waiting), now - looked, waited)
                view.step(metrics)
                if curves:
                    curves.step(epoch, metrics)
                waiting.clear()
                looked, waited = now, 0.0
            if stop:
                raise Stopped
            if save:
                self._processes.alone(self._save)
            asked = time.monotonic()

    def step(self, batch: Batch, epoch: int = 0, step: int = 0) -> dict[str, Tensor]:
        """Take one optimiser step; return what it gave (`Optimisation.step`)."""
        return self._optimisation.step(batch, epoch, step)

    def try_step(self) -> None:
        """Take the first epoch's first step and keep nothing: what cannot be trained fails before it costs anything.

        Raises:
            CusaError: the loss and the student do not go together, a batch cannot be had, or the loss is not finite.
        """
        self.objective.before_epoch(0)
        try:
            self._look([self.step(next(iter(self.data.loader)))], 0, 0)
        finally:
            self.data.close()

    def _look(self, waiting: list[dict[str, Tensor]], epoch: int, last_step: int) -> dict[str, float]:
        """Fetch the losses of the latest steps from the device, add them up, and stop at one that is not finite."""
        fetched = self._processes.mean(torch.stack([torch.stack(list(losses.values())) for losses in waiting]))
        first = last_step - len(waiting) + 1
        for step, row in enumerate(fetched.tolist(), first):
            values = dict(zip(waiting[0], row, strict=True))
            finite = all(map(math.isfinite, row))
            norm = values.pop(GRADIENT)
            if not finite:
                raise TrainingError(
                    f"The loss, or its gradient (norm {norm:.3g}), is not finite at step {step + 1} of epoch "
                    f"{epoch + 1}: {_written(values)}. {self.checkpoints.last_good()} Lower train.learning_rate, or "
                    f"look at the data of that step."
                )
            for name, value in values.items():
                self._done.sums[name] = self._done.sums.get(name, 0.0) + value
        self._done.step = last_step + 1
        return values

    def _figures(self, latest: dict[str, float], steps: int, seconds: float, waited: float) -> StepMetrics:
        self._done.seconds += seconds
        self._done.waited += waited
        return StepMetrics(
            step=self._done.step,
            loss=latest,
            temperatures=self.objective.temperatures(),
            learning_rate=self._learning_rate,
            samples_per_second=steps * self._settings.batch_size / seconds,
            wait=waited / seconds,
        )

    def _validated(self) -> tuple[float, dict[str, float]]:
        """Return the validation RSUM, and how spread a student's sets are."""
        settings = self._parameters.eval
        self._processes.share_buffers(self.model)
        with measuring(self.model):
            encoded = embed_split(
                self.model,
                self._store,
                settings.validation,
                self._accelerator,
                settings.batch_size,
                self._settings.workers,
                self._stop.check,
                parts_policy(self.model, self._second is not None, settings, self._run),
            )

            def measured() -> tuple[float, dict[str, float]]:
                second, pause = self._second, self._stop.check_alone
                scorer = second.first_scorer(self.model) if second else None
                found = compare_split(self.model, encoded, self._run, pause, scorer)
                found = second.over(found, encoded, self._run, pause) if second else found
                figures = retrieval(self.model, encoded, found, self._store, settings.validation)
                return float(figures["RSUM"]), spread_of_sets(self.model, encoded)

            return self._processes.once(measured)

    def _keep(self, figures: Epoch, curves: Curves | None) -> None:
        """Write down a finished epoch; for the main process alone."""
        # The best weights first: a run that is killed in between measures this epoch again, and loses nothing.
        self.checkpoints.keep(self.history)
        self._save()
        if (clean := self.objective.clean()) is not None:
            captions = self._store.rows("train", "caption")
            write_clean(self._run / FILE_NAME, self._store, captions, clean[: len(captions)].cpu().numpy())
        if curves:
            curves.epoch(figures)
        self.describe()

    def _save(self) -> None:
        """Write everything to go on from; for the main process alone."""
        self.checkpoints.save(self.history, self._done)


def _written(losses: dict[str, float]) -> str:
    return " · ".join(f"{name} {value:.3f}" for name, value in losses.items() if name != TOTAL or len(losses) > 2)
