"""Recording one model's answers to a whole data set, in one file or in parts that a restarted run does not repeat."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from elang.backends import DType
from elang.data.examples import source_of
from elang.errors import InputError, counted, printable
from elang.method.scores import ASKED_SCORES, AskedScore
from elang.models.answering import EvaluationModule
from elang.models.course import note_by_heart
from elang.notices import made
from elang.records.merging import check_same, merge_files
from elang.records.table import EXAMPLES, Records, check_output, join_records, write_records
from elang.tables import is_table
from elang.tasks.sampling import Sampling
from elang.tasks.text_task import TaskFields

# What to do where the course of the training is not known.
_NEW_TEXTS = (
    "Where the validation loss that `elang fit` printed rose, train for fewer epochs (--trainer.max_epochs); where it "
    "fell to the end, let it answer new texts, too (--data.transfer)."
)


class ScoreModule(EvaluationModule):
    """Runs one model over every example of every file and writes its records (:mod:`elang.records.table`).

    Args:
        model: A folder, a ``.ckpt``, a hub id, or the address of a server or of a model behind an API (docs/super.md).
        label_names: The data's classes; the command line takes them from the data.
        task: :meth:`elang.tasks.text_task.TextTask.plain`; the command line takes it from the data.
        output: The parquet file to write.
        parts: Number of parts to cut the data into. Each part is written into the folder ``<output>.parts`` as soon as
            it is answered, a restarted run answers only the missing ones, and the last step merges them.
        part: Answer only this part, counted from 0, for example in each job of a scheduler's array; ``elang merge``
            merges them.
        generate: A text-to-text model answers by free generation, matched with the task's answers.
        num_beams: Beams of generated texts; by default the model's own setting.
        top_k: For models that generate texts: number of most probable tokens to record at each position of the
            references. Distillation from tokens needs them.
        static_cache: Generate with a cache of fixed size.
        sampling: Draw texts instead of the most probable tokens, as ``"{temperature: 0.7, top_p: 0.9, seed: 1}"``.
        asked_scores: Scores of generated texts that take passes of their own, to record too: ``p_true`` (one more),
            ``agreement`` (five answers). A Swift that was trained for one of them has it anyway.
        dtype: Precision of the weights; logits are always float32.
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
        sampling: Sampling | None = None,
        asked_scores: list[AskedScore] | None = None,
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
        options |= {"sampling": sampling, "asked_scores": asked_scores}
        super().__init__({"model": model}, label_names, task, dtype=dtype, **options)
        self.save_hyperparameters()
        if top_k < 0 or (top_k and not self.task.kind.generates):
            raise InputError(f"--model.top_k {top_k} must be 0, or positive for models that generate texts.")
        if top_k and not self.models:
            raise InputError(f"--model.top_k {top_k} is for a model that runs here. Leave it out.")
        self.output, self.generate, self.top_k = output, generate, top_k
        self.parts, self.part, self.dtype_name = parts, part, dtype
        self._current_part = 0
        self._folder = Path(f"{output}.parts")
        self.asked_file = f"{output if part is None else self._path(part)}.asked.jsonl"

    def _path(self, part: int) -> Path:
        if self.parts == 1:
            return Path(self.output)
        return self._folder / f"{part:0{len(str(self.parts - 1))}}-of-{self.parts}.parquet"

    def _metadata(self, part: int) -> dict[str, Any]:
        """The metadata of a part's file. A file that exists must have the same."""
        model, data = self.text_models.get("model"), self.data
        metadata: dict[str, Any] = {"model": self.paths["model"]}
        if model is None:
            metadata |= {"generated": True}
            for backend in self.asked.values():
                metadata |= backend.describe()
        else:
            metadata |= {"weights_sha256": model.weights_sha256, "generated": self.generate and model.text_to_text}
            metadata |= model.described_answers(self.top_k)
            if model.shown_examples is not None:
                metadata[EXAMPLES] = model.shown_examples
            if model.manifest is not None:
                metadata |= {name: getattr(model.manifest, name) for name in ("routing_fraction", "drop_overlap")}
        if self.parts > 1:
            keys = hashlib.sha256()
            for split in data.eval_splits:
                keys.update(data.examples(split).key[data.part(split, part)].numpy().tobytes())
            how = {"dtype": self.dtype_name, "precision": str(self.trainer.precision), "task": self.task.plain()}
            how |= {"max_length": data.max_length, "max_target_length": data.max_target_length}
            # Parts of versions before it have none.
            asked = [name for name in (model.head_scores if model else ()) if name in ASKED_SCORES]
            how |= {"asked_scores": asked} if asked else {}
            metadata |= {"part": [part, self.parts], "examples": keys.hexdigest(), "how": json.loads(json.dumps(how))}
        return metadata

    def setup(self, stage: str) -> None:
        """Lock the output against other runs, and choose the parts to answer."""
        if stage == "test":
            raise InputError("`elang test` writes no records. Run `elang score`, which answers all splits.")
        super().setup(stage)
        if stage == "predict":
            return
        if self.data is None:
            raise InputError(
                "Records are of the rows of a file: give ScoreModule one of elang's data modules. Trainer.predict of a "
                "FinetuneModule gives the logits of a loader's examples."
            )
        self.lock(Path(self.output) if self.part is None else self._path(self.part))
        parts = list(range(self.parts)) if self.part is None else [self.part]
        if self.parts > 1:
            existing = self._existing(parts)
            if existing:
                rank_zero_info(f"{len(existing)} of {len(parts)} parts are in '{self._folder}' and are not repeated")
            parts = [part for part in parts if part not in existing]
        self.data.choose_parts(self.parts, parts)

    def _existing(self, parts: list[int]) -> list[int]:
        """The parts whose files exist, after checking that they are of this run."""
        if not self.runs_all_batches:
            raise InputError("A part must be complete: leave out --trainer.limit_val_batches, or --model.parts.")
        data = self.data
        if self.parts > (largest := max(len(data.examples(split)) for split in data.eval_splits)):
            raise InputError(f"--model.parts {self.parts} is more than the {largest} examples of the largest split.")
        data.choose_parts(self.parts, parts)
        existing, message = [part for part in parts if self._path(part).is_file()], None
        try:
            for part in existing:
                check_same(self._path(part), self._metadata(part) | {"label_names": self.label_names})
        except InputError as error:
            message = str(error)
        # What the first process sees counts: others may be on hosts that do not share its disk.
        existing, message = self.trainer.strategy.broadcast((existing, message))
        if message is not None:
            raise InputError(message)
        return existing

    def on_validation_epoch_start(self) -> None:
        """Make the tables of the first part."""
        self._plan: list[tuple[int, str]] = self.data.plan
        self.split_names = [split for _, split in self._plan]
        self._start_part(self._plan[0][0])

    def _start_part(self, part: int) -> None:
        self._current_part = part
        self.make_tables([split for other, split in self._plan if other == part])

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Write a part when the first batch of the next one comes."""
        part = self._plan[dataloader_idx][0]
        if part != self._current_part:
            self.on_validation_epoch_end()
            self._start_part(part)

    def num_examples(self, split: str) -> int:
        """The number of examples of a split in the current part."""
        return len(self.data.part(split, self._current_part))

    def on_validation_epoch_end(self) -> None:
        """Gather the current part from all processes, and write it."""
        tables = self.gather_tables()
        if not self.writes:
            return
        records: dict[str, list[Records]] = {}
        self._qualities = dict[str, float]()
        for split, table in tables.items():
            answers = self.answers("model", split, table)
            records.setdefault(source_of(split), []).append(answers)
            if self.parts == 1:
                self.print(printable(self._result(split, table["label"], answers)))
        held_out = next((split for split in ("routing", "validation") if split in self._qualities), "train")
        if "train" in self._qualities:
            counts = {split: len(tables[split]["id"]) for split in ("train", held_out)}
            found = self._qualities["train"], self._qualities[held_out], held_out, min(counts.values())
            note_by_heart(self.task.qualities[0], *found, remedy=_NEW_TEXTS)
        path = self._path(self._current_part)
        joined = {source: join_records(some) for source, some in records.items()}
        write_records(path, joined, self.label_names, **self._metadata(self._current_part), made=made())
        self.print(printable(f"the records are in {path}"))
        if self.parts == 1:
            self.forget_asked()

    def teardown(self, stage: str) -> None:
        """Merge the parts if all are there, and unlock the output."""
        try:
            paths = [self._path(part) for part in range(self.parts)]
            whole = self.parts > 1 and self.part is None and self.trainer.is_global_zero
            if whole and all(path.is_file() for path in paths):
                merge_files(paths, self.output)
                shutil.rmtree(self._folder)
                self.forget_asked()
        finally:
            super().teardown(stage)

    def _result(self, split: str, label: Tensor, answers: Records) -> str:
        """A line about the answers to a split: how many there are and how good they are."""
        line = f"{split}: {counted(len(answers.id), 'examples')}"
        if self.generate and self.task.kind.chooses:
            line += f", {int((answers.prediction < 0).sum())} generated answers are none of the task's"
        if not self.data.examples(split).labelled:
            return f"{line}, no {'labels' if answers.texts is None else 'references'}"
        values = self.measure_answers(split, answers, label, self.task.qualities)
        self._qualities[split] = values[self.task.qualities[0]]
        return line + "".join(f", {name} {value:.4f}" for name, value in values.items())
