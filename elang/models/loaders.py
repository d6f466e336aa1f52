"""Batches of loaders that are not elang's own, as users of Lightning make them (docs/lightning.md)."""

from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from elang.backends.text_model import TextModel
from elang.data.batches import IGNORE_INDEX
from elang.data.encoding import pad_of, pads_left, same_tokens
from elang.data.examples import content_key
from elang.errors import InputError, listed
from elang.notices import notice
from elang.tasks.text_task import TextTask

_NEEDED = ("input_ids", "attention_mask")
_CHOICES = ("num_choices", "answer_ids")
# A data set of the hub has "label", and the collator of transformers makes "labels" of it.
_LABELS = ("labels", "label")
_COLLATE = "Give the DataLoader a collate_fn that pads, such as DataCollatorWithPadding(tokenizer) of transformers."

# How often labels on a GPU are looked at: those of one batch, before and after the Super's answers replace some.
_LOOKS = 2


class LoaderBatches:
    """Turns a loader's batches into those of :class:`elang.data.batches.SplitBatches`, which stay as they are."""

    def __init__(self, task: TextTask) -> None:
        self.task, self.kind = task, task.kind
        self._first, self._looks = True, _LOOKS
        self._seen: dict[str, int] = {}

    def begin(self) -> None:
        """Number the examples of each split from 0 again, and look at the first batches."""
        self._seen, self._looks = {}, _LOOKS

    def read(self, batch: Any, models: dict[str, TextModel], labelled: bool = True) -> dict[str, Any]:
        """A batch with a ``label`` and, under its name, the inputs of each model.

        ``id`` and ``super_logits`` are there if the loader gives them. Labels may be unknown unless it is ``labelled``.

        Raises:
            InputError: If something is missing, or has another shape or type.
        """
        if not isinstance(batch, Mapping):
            raise InputError(
                f"A batch must be a dictionary with {listed([*_NEEDED, 'labels'])}, but the loader gives a "
                f"{type(batch).__name__}. {_COLLATE}"
            )
        # One of elang's own, or read already.
        if "targets" in batch and "repeated" in batch:
            return dict(batch)
        own = {name: batch[name] for name in models if isinstance(batch.get(name), Mapping)}
        if self._first:
            self._check_readers({name: model for name, model in models.items() if name not in own})
            known = {*_NEEDED, "token_type_ids", *_CHOICES, *_LABELS, "id", "super_logits", *models}
            if unread := [name for name in batch if name not in known]:
                notice("unread-columns", f"The loader's batches have {listed(unread)}, which no model reads.")
        inputs = {name: self._inputs(own.get(name, batch), model) for name, model in models.items()}
        first = next(iter(inputs.values()))
        size = len(first.get("num_choices", first["input_ids"]))
        rows: dict[str, Any] = {"targets": {}, "repeated": False, **inputs}
        rows["label"] = self._references(batch, inputs) if self.kind.generates else self._label(batch, size, first)
        if self._first and self.kind.generates:
            _check_texts([inputs[name] for name, model in models.items() if model.reader.end is not None])
        self.check_labels(rows["label"], labelled)
        if "id" in batch:
            rows["id"] = _column(batch, "id", size, whole=True).long()
        if "super_logits" in batch:
            rows["super_logits"] = self._super_logits(batch, size)
        self._first = False
        return rows

    def number(
        self, batch: dict[str, Any], split: str, trainer: Trainer, *, loader: Any, keyed: bool
    ) -> dict[str, Any]:
        """Add what an evaluation needs: ``id``, if it is missing, ``key`` and ``unit``.

        Ids count the examples in the loader's order over all processes. Those that a sampler repeats at the end, so
        that all processes have equally many, are left out; a batch of them alone is ``repeated``.
        """
        if "key" in batch:
            return batch
        label, begin = batch["label"], self._seen.get(split, 0)
        self._seen[split] = begin + len(label)
        rank, step = trainer.global_rank, trainer.world_size
        rows = {"id": rank + step * torch.arange(begin, begin + len(label), device=label.device), **batch}
        if isinstance(loader, DataLoader):
            sampler: Any = getattr(loader.batch_sampler, "sampler", loader.sampler)
            if isinstance(sampler, DistributedSampler):
                left = max(0, -(-(len(sampler.dataset) - rank) // step) - begin)  # type: ignore[arg-type]
                rows = _first_rows(rows, left, len(label)) if left else rows | {"repeated": True}
        if keyed:
            key = _keys(next(part for part in rows.values() if isinstance(part, Mapping) and "input_ids" in part))
            rows |= {"key": key.to(label), "unit": key.to(label)}
        return rows

    def _check_readers(self, models: dict[str, TextModel]) -> None:
        """Refuse one set of inputs for models that read differently."""
        readers = [model.reader for model in models.values()]
        forms = {(reader.text_to_text, reader.prompt) for reader in readers}
        if len(forms) > 1 or not all(same_tokens(readers[0].tokenizer, reader.tokenizer) for reader in readers[1:]):
            raise InputError(
                f"The models {listed(list(models))} read texts differently, so each needs its own inputs: put what its "
                "tokenizer returns into the batch as a dictionary under the model's name."
            )

    def _inputs(self, given: Mapping[str, Any], model: TextModel) -> dict[str, Tensor]:
        """A model's inputs, without columns that it does not know."""
        if missing := [column for column in _NEEDED if column not in given]:
            raise InputError(
                f"The loader's batches have no {listed(missing)}, only {listed(list(map(str, given)))}. Give what the "
                "model's tokenizer returns, with padding=True and return_tensors='pt'."
            )
        wanted = {*_NEEDED, *_CHOICES, *pad_of(model.tokenizer), *(["labels"] if self.kind.generates else [])}
        inputs = {column: values for column, values in given.items() if column in wanted}
        if wrong := [column for column, values in inputs.items() if not isinstance(values, Tensor)]:
            raise InputError(
                f"'{wrong[0]}' of the loader's batches is a {type(inputs[wrong[0]]).__name__}, not a tensor. {_COLLATE}"
            )
        if pads_left(model.tokenizer):
            # The tokenizer in its files may pad on the right; then prompts would not end where answers begin.
            order = inputs["attention_mask"].argsort(dim=1, stable=True)
            inputs |= {name: inputs[name].gather(1, order) for name in inputs.keys() & {*_NEEDED, "token_type_ids"}}
        # A text-to-text model whose examples share their answers reads a prompt for each.
        has_own = self.kind.has_candidates and not (model.text_to_text and model.task.answers)
        if missing := [name for name in _CHOICES[: 1 + model.text_to_text] if has_own and name not in inputs]:
            raise InputError(
                f"Each example of a choice has its own candidates, and the loader's batches have no {listed(missing)}: "
                "give their number as 'num_choices', and a row for each candidate in 'input_ids' or, of a text-to-text "
                "model, in 'answer_ids'."
            )
        return inputs

    def _label(self, batch: Mapping[str, Any], size: int, inputs: dict[str, Tensor]) -> Tensor:
        """Class indices or values ``(B,)``; unknown ones are :attr:`~elang.tasks.kind.Kind.unknown`."""
        kind, name = self.kind, next((name for name in _LABELS if name in batch), None)
        unknown = inputs["input_ids"].new_full((size,), kind.unknown, dtype=kind.answer_type)
        if name is None:
            return unknown
        label = _column(batch, name, size, whole=kind.chooses).to(kind.answer_type)
        return torch.where(kind.is_unknown(label), unknown, label)

    def _references(self, batch: Mapping[str, Any], inputs: dict[str, dict[str, Tensor]]) -> Tensor:
        """Give every model the tokens of the references; 0 for each of them, -1 where there is none, ``(B,)``."""
        for columns in inputs.values():
            if "labels" in batch:
                columns.setdefault("labels", batch["labels"])
        first = next(iter(inputs.values()))
        return first["input_ids"].new_full((len(first["input_ids"]),), 0 if "labels" in first else -1)

    def check_labels(self, label: Tensor, labelled: bool) -> None:
        """Refuse labels that are no classes and, in a ``labelled`` batch, unknown ones."""
        # On a GPU, looking at the values means waiting for all that is queued.
        if label.device.type != "cpu":
            self._looks -= 1
            if self._looks < 0:
                return
        names = self.task.label_names
        if not self.kind.chooses and label.isinf().any():
            raise InputError("A label of the loader's batches is infinite. Correct it, or leave the example out.")
        if self.kind.chooses and int(label.max()) >= len(names):
            raise InputError(
                f"A label of the loader's batches is {int(label.max())}, but there are {len(names)} classes, "
                f"{listed(names)}, which count from 0."
            )
        if labelled and self.kind.is_unknown(label).any():
            what = "references' tokens, padded with -100" if self.kind.generates else "class index, or value, of each"
            raise InputError(
                f"The loader's batches have examples without 'labels'. Give the {what}, or leave them out; only a "
                "SwiftModule with 'super_logits' learns from unlabelled texts."
            )

    def _super_logits(self, batch: Mapping[str, Any], size: int) -> Tensor:
        """The Super's logits, float32 ``(B, C)``."""
        logits = _column(batch, "super_logits", size, dimensions=2)
        width = self.task.num_outputs if self.kind.has_classes else logits.shape[1]
        if self.kind.generates or logits.shape[1] != width:
            raise InputError(
                f"'super_logits' has the shape {tuple(logits.shape)}. It must have a logit of the Super for each "
                "class, in the order of label_names; generated texts are learned from --model.super_records instead."
            )
        return logits.float()


def loader_at(trainer: Trainer, index: int) -> Any:
    """The loader that a trainer evaluates, or predicts with, by its number."""
    loaders: Any = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    loaders = trainer.predict_dataloaders if trainer.predicting else loaders
    parts = list(loaders.values()) if isinstance(loaders, Mapping) else loaders
    return parts[index] if isinstance(parts, list | tuple) else parts


def padded_references(labels: Tensor, width: int) -> Tensor:
    """Tokens of references ``(B, T)``, padded with -100, as ``(B, width)``, padded with -1."""
    if labels.shape[1] > width:
        raise InputError(
            f"References of {labels.shape[1]} tokens are longer than the {width} that the model generates. Cut them "
            "with the tokenizer's max_length."
        )
    return F.pad(labels.masked_fill(labels == IGNORE_INDEX, -1), (0, width - labels.shape[1]), value=-1)


def _check_texts(inputs: list[dict[str, Tensor]]) -> None:
    """Refuse labels that repeat the inputs, as language models are trained on: here they are what follows a prompt."""
    for columns in inputs:
        ids, labels = columns["input_ids"], columns.get("labels")
        if labels is not None and labels.shape == ids.shape and ((labels == ids) | (labels < 0)).all():
            raise InputError(
                "'labels' of the loader's batches repeat the 'input_ids'. Give the tokens of the prompt alone as "
                "'input_ids', and those of the text that follows it, with its end, as 'labels'."
            )


def _column(batch: Mapping[str, Any], name: str, size: int, *, dimensions: int = 1, whole: bool = False) -> Tensor:
    """A column of a batch with ``size`` rows: of integers, if it must be ``whole``."""
    values = batch[name]
    if not isinstance(values, Tensor) or values.ndim != dimensions or len(values) != size:
        what = f"the shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"the type {type(values).__name__}"
        raise InputError(
            f"'{name}' of the loader's batches must be a tensor with {size} rows and {dimensions} dimension"
            f"{'s' * (dimensions > 1)}, but has {what}."
        )
    if whole and values.is_floating_point():
        raise InputError(f"'{name}' must be integers, but has the type {values.dtype}. Convert it.")
    return values


def _first_rows(batch: dict[str, Any], count: int, size: int) -> dict[str, Any]:
    """The first examples of a batch with ``size`` of them."""
    if count >= size:
        return batch

    def cut(values: Any, candidates: int) -> Any:
        if isinstance(values, Mapping):
            candidates = int(values["num_choices"][:count].sum()) if "num_choices" in values else count
            return {name: cut(column, candidates) for name, column in values.items()}
        return values[: count if len(values) == size else candidates] if isinstance(values, Tensor) else values

    return {name: cut(values, count) for name, values in batch.items()}


def _keys(inputs: Mapping[str, Tensor]) -> Tensor:
    """A hash of each example's tokens, int64 ``(B,)``: equal texts have equal ones."""
    ids, mask = inputs["input_ids"].cpu(), inputs["attention_mask"].cpu().bool()
    texts = [row[real] for row, real in zip(ids, mask, strict=True)]
    # An encoder has a row for each candidate of an example.
    counts = inputs["num_choices"].tolist() if len(texts) != len(inputs.get("num_choices", texts)) else [1] * len(texts)
    rows = [torch.cat(texts[begin:end]) for begin, end in pairwise([0, *accumulate(counts)])]
    return torch.tensor([content_key(tuple(map(str, row.tolist()))) for row in rows], dtype=torch.int64)
