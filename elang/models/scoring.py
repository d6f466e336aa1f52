"""One model's answers to a whole data set, kept as records: at once, or in parts that are not asked again."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from elang.backends import DType
from elang.data.examples import source_of
from elang.errors import InputError, printable
from elang.locks import lock_for_all, unlock_output
from elang.method.quality.registry import QUALITIES
from elang.models.answering import EvaluationModule
from elang.notices import made
from elang.records.merging import check_same, merge_files
from elang.records.table import Records, check_output, join_records, write_records
from elang.tables import is_table
from elang.tasks.kinds import measure, measure_texts
from elang.tasks.text_task import TaskFields


class ScoreModule(EvaluationModule):
    """Runs one model over every example of every file and writes its records (:mod:`elang.records.table`).

    Args:
        model: A folder, a ``.ckpt`` or a hub id.
        label_names: The data's classes; the command line takes them from the data, like the next.
        task: What is asked, :meth:`elang.tasks.text_task.TextTask.plain`.
        output: The parquet file to write.
        parts: Cut the data into so many parts. Each is written into the folder ``<output>.parts`` when it is answered,
            a run that is started again goes on with those that are not there, and the last one puts them together.
        part: Answer only this part, from 0, for instance in each job of a scheduler's array; ``elang merge`` puts all
            together.
        generate: A text-to-text model answers by free generation, matched with the task's answers.
        num_beams: Hypotheses that generated texts are chosen from; by default the model's own setting.
        top_k: Of a model that generates texts, keep so many of the most probable tokens at each place of the
            references: the distillation of tokens needs them.
        static_cache: Generate with a cache of fixed size.
        dtype: Precision of the weights; logits are float32 in any.
    """

    def __init__(
        self,
        model: str,
        label_names: list[str],
        task: TaskFields | None = None,
        output: str = "records.parquet",
        parts: int = 1,
        part: int | None = None,
        generate: bool = False,
        num_beams: int | None = None,
        top_k: int = 0,
        static_cache: bool = False,
        dtype: DType = "float32",
    ) -> None:
        if is_table(model):
            raise InputError(f"'{model}' is already a file of records; give --model.model a model.")
        check_output(output, "--model.output")
        if parts < 1 or (part is not None and not 0 <= part < parts):
            raise InputError(
                f"--model.parts {parts} must be at least 1, and --model.part {part} one of them, from 0 to "
                f"{max(1, parts) - 1}."
            )
        options: dict[str, Any] = {"generate": generate, "num_beams": num_beams, "static_cache": static_cache}
        super().__init__({"model": model}, label_names, task, dtype=dtype, **options)
        self.save_hyperparameters()
        if top_k < 0 or (top_k and not self.task.kind.generates):
            raise InputError(f"--model.top_k {top_k} is for models that generate texts, and 0 or more; leave it out.")
        self.output, self.generate, self.top_k = output, generate, top_k
        self.parts, self.part = parts, part
        self.dtype_name = dtype
        self._current = 0
        self._locked: str | Path = output

    @property
    def _folder(self) -> Path:
        return Path(f"{self.output}.parts")

    def _path(self, part: int) -> Path:
        if self.parts == 1:
            return Path(self.output)
        return self._folder / f"{part:0{len(str(self.parts - 1))}}-of-{self.parts}.parquet"

    def _about(self, part: int) -> dict[str, Any]:
        """What a part says of itself; a part that is there already has to say the same."""
        model, data = self.model("model"), self.trainer.datamodule  # type: ignore[attr-defined]
        about: dict[str, Any] = {"model": self.paths["model"], "weights_sha256": model.weights_sha256}
        about["generated"] = self.generate and model.text_to_text
        about |= model.described_answers(self.top_k)
        if model.manifest is not None:
            about["routing_fraction"] = model.manifest.routing_fraction
        if self.parts > 1:
            keys = hashlib.sha256()
            for split in data.eval_splits:
                keys.update(data.examples(split).key[data.part(split, part)].numpy().tobytes())
            how = {"dtype": self.dtype_name, "precision": str(self.trainer.precision), "task": self.task.plain()}
            how |= {"max_length": data.max_length, "max_target_length": data.max_target_length}
            about |= {"part": [part, self.parts], "examples": keys.hexdigest(), "how": json.loads(json.dumps(how))}
        return about

    def setup(self, stage: str) -> None:
        """Find out which parts are to be answered, and keep other runs from writing them."""
        super().setup(stage)
        self._locked = self.output if self.part is None else self._path(self.part)
        lock_for_all(self.trainer, self._locked)
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        wanted = list(range(self.parts)) if self.part is None else [self.part]
        data.choose_parts(self.parts, wanted)
        if self.parts == 1:
            return
        trainer: Any = self.trainer
        if not self._whole():
            raise InputError("A part is kept as if it were whole: leave out --trainer.limit_val_batches, or the parts.")
        if self.parts > (most := max(len(data.examples(split)) for split in data.eval_splits)):
            raise InputError(f"--model.parts {self.parts} is more than the {most} examples of the largest split.")
        there = [part for part in wanted if self._path(part).is_file()]
        bad = None
        try:
            for part in there:
                check_same(self._path(part), self._about(part) | {"label_names": self.label_names})
        except InputError as error:
            bad = str(error)
        # As the first process sees it, for others may be on hosts that do not share its disk.
        there, bad = trainer.strategy.broadcast((there, bad))
        if bad is not None:
            raise InputError(bad)
        data.choose_parts(self.parts, [part for part in wanted if part not in there])
        if there:
            rank_zero_info(f"{len(there)} of {len(wanted)} parts are in '{self._folder}' and are not answered again")

    def on_validation_epoch_start(self) -> None:
        """Prepare for the first part."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self._plan: list[tuple[int, str]] = data.plan
        self.split_names = [split for _, split in self._plan]
        self._begin(self._plan[0][0])

    def _begin(self, part: int) -> None:
        self._current = part
        self._start([split for own, split in self._plan if own == part])

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Write a part when the first batch of the next one comes."""
        part = self._plan[dataloader_idx][0]
        if part != self._current:
            self._write()
            self._begin(part)

    def on_validation_epoch_end(self) -> None:
        """Write the last part."""
        self._write()

    def _expected(self, split: str) -> int:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        return len(data.part(split, self._current))

    def _write(self) -> None:
        """Gather a part from all processes, and write it."""
        tables = self._gather()
        if not self.trainer.is_global_zero:
            return
        found: dict[str, list[Records]] = {}
        for split, table in tables.items():
            answers = self.answers("model", split, table)
            found.setdefault(source_of(split), []).append(answers)
            if self.parts == 1:
                self.print(printable(self._line(split, table["label"], answers)))
        path = self._path(self._current)
        joined = {source: join_records(own) for source, own in found.items()}
        write_records(path, joined, self.label_names, **self._about(self._current), made=made())
        self.print(printable(f"the records are in {path}"))

    def teardown(self, stage: str) -> None:
        """Put the parts together when all are there."""
        super().teardown(stage)
        try:
            self._put_together()
        finally:
            unlock_output(self._locked)

    def _put_together(self) -> None:
        if self.parts == 1 or self.part is not None or not self.trainer.is_global_zero:
            return
        paths = [self._path(part) for part in range(self.parts)]
        if all(path.is_file() for path in paths):
            merge_files(paths, self.output)
            shutil.rmtree(self._folder)

    def _line(self, split: str, label: Tensor, found: Records) -> str:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        said = f"{split}: {len(found.id)} examples"
        if found.texts is not None:
            if not data.examples(split).labelled:
                return f"{said}, no references"
            values = measure_texts(self.task.qualities, found.texts, data.references(split, found.id))
            return said + "".join(f", {name} {value:.4f}" for name, value in values.items())
        prediction = found.prediction
        if self.generate and self.task.kind.chooses:
            said += f", {int((prediction < 0).sum())} generated answers are none of the task's"
        if not data.examples(split).labelled:
            return f"{said}, no labels"
        quality = QUALITIES[self.task.qualities[0]](len(self.label_names))  # type: ignore[index]
        value = measure(quality, prediction, label, targets=data.targets(split, found.id))
        return f"{said}, {quality.name} {value:.4f}"
