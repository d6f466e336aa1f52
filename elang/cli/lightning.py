"""The verbs that Lightning runs: ``fit``, ``validate``, ``test`` and ``score``."""

import logging
import os
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from typing_extensions import override

from elang.backends.loading.checkpoints import CHECKPOINT_KEY, read_checkpoint
from elang.cli.arguments import note_replaced
from elang.cli.messages import class_at
from elang.cli.options import MODE, given_options, last_value, refuse_nulls, texts_in, with_checkpoint, with_lists
from elang.cli.progress import LogsEachEpoch, ProgressLines, new_folders, remove_logs
from elang.cli.verb_help import OursFirst, chosen_class, with_classes
from elang.data.benchmarks import TaskData
from elang.data.seq2seq import Seq2SeqData
from elang.data.text_classification import TextClassificationData
from elang.errors import InputError, first_line, printable
from elang.evaluation.report.files import EVALUATION_FILES
from elang.files import check_folder, check_output_file
from elang.locks import output_lock
from elang.models.finetune import FinetuneModule
from elang.models.joint import JointModule
from elang.models.scoring import ScoreModule
from elang.models.swift import SwiftModule
from elang.notices import notice
from elang.terminal import at_sigterm, tell

__all__ = ["FinetuneModule", "JointModule", "ScoreModule", "Seq2SeqData", "SwiftModule", "TaskData", "run"]

_MODELS: dict[str, type] = {"fit": FinetuneModule, "validate": JointModule, "test": JointModule, "score": ScoreModule}
_EPOCHS = 3
# Values of --ckpt_path that Lightning finds itself.
_KEYWORDS = ("best", "last", "hpc")
# Arguments of a model that come from the data.
LINKED = {"label_names": "label_names", "task": "task_fields"}
_NOT_OPTIONS = {"model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders"}
_LOGGERS = [
    {"class_path": f"lightning.pytorch.loggers.{name}", "init_args": {"save_dir": "runs", "name": None}}
    for name in ("CSVLogger", "TensorBoardLogger")
]


class Trainer(pl.Trainer):
    """Lightning's trainer with one more verb, ``score``."""

    def score(self, model: pl.LightningModule, datamodule: Any = None, verbose: bool = False) -> None:
        """Run one model over every example of every split and write its records."""
        with datamodule.all_splits():
            self.validate(model, datamodule=datamodule, verbose=verbose)


class _LightningParser(LightningArgumentParser, OursFirst):
    """Lightning's parser, which suggests the nearest option for an unknown one, and shows ours first."""


class _SaveConfig(SaveConfigCallback):
    """Saves the parsed configuration of a training run that has a folder."""

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.loggers:
            super().setup(trainer, pl_module, stage)


class ElangCLI(LightningCLI):
    """A LightningCLI that builds only the parser of the verb that is run, or only checks its arguments."""

    def __init__(
        self, verb: str, parse_only: bool, callbacks: Sequence[pl.Callback], args: list[str], until_end: ExitStack
    ) -> None:
        self._verb, self._parse_only, self._until_end = verb, parse_only, until_end
        self._checkpoint: dict[str, Any] | None = None
        path = last_value(args, "--ckpt_path")
        if verb != "score" and path and path not in _KEYWORDS:
            self._checkpoint = read_checkpoint(path)
            model = self._checkpoint.get("hyper_parameters", {}).get("model")
            args = with_checkpoint(args, self._checkpoint[CHECKPOINT_KEY], model)
        verb_parser = {"prog": f"elang {verb}", "parser_mode": MODE}
        self._defaults = {"model": _class_path(_MODELS[verb]), "data": _class_path(TextClassificationData)}
        self._shown = {part: chosen_class(part, args, path) for part, path in self._defaults.items()}
        self._logs: list[Path] = []
        made_by = {"trainer": Trainer} | {part: class_at(path) for part, path in self._shown.items()}
        super().__init__(
            pl.LightningModule,
            pl.LightningDataModule,
            trainer_class=Trainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_callback=_SaveConfig,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"callbacks": [ProgressLines(), *callbacks]},
            parser_class=_LightningParser,
            parser_kwargs={"prog": "elang", "allow_abbrev": False, "parser_mode": MODE, verb: verb_parser},
            args=[verb, *with_lists(with_classes(args, self._shown), made_by)],
        )

    @override
    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning's are the same for all
        return {self._verb: _NOT_OPTIONS}

    @override
    def _set_seed(self) -> None:
        if not self._parse_only:
            super()._set_seed()

    @override
    def instantiate_classes(self) -> None:
        if not self._parse_only:
            super().instantiate_classes()

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        if self._parse_only:
            return
        try:
            with at_sigterm(_end_unless_handled):
                super()._run_subcommand(subcommand)
        except SIGTERMException:
            # This SystemExit has no code, so the process would end as if it had succeeded.
            self._report_stop("SIGTERM")
            remove_logs(self.trainer, self._logs)
            raise SystemExit(128 + signal.SIGTERM) from None
        except BaseException as end:
            # Lightning exits with the code 1 after Ctrl-C.
            if isinstance(end, SystemExit) and isinstance(end.__context__, KeyboardInterrupt):
                self._report_stop("Ctrl-C")
            remove_logs(self.trainer, self._logs)
            raise

    def _report_stop(self, cause: str) -> None:
        message = f"{cause} stopped `elang {self._verb}` before its end, so it has written no result."
        saver: Any = self.trainer.checkpoint_callback if self._verb == "fit" else None
        if path := getattr(saver, "last_model_path", "") or getattr(saver, "best_model_path", ""):
            message += f" Go on with --ckpt_path {path}"
        _tell(message)

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults(
            {
                **{part: {"class_path": path} for part, path in self._defaults.items()},
                "trainer.num_sanity_val_steps": 0,
                # The summary would count FLOPs, and find none.
                "trainer.enable_model_summary": False,
                "trainer.logger": _LOGGERS if self._verb == "fit" else False,
            }
        )
        for argument, source in LINKED.items():
            parser.link_arguments(f"data.{source}", f"model.init_args.{argument}", apply_on="instantiate")

    @override
    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser: Any = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand != "fit":
            parser.set_defaults({"verbose": False})  # our own table says more
        parser.show_first(subcommand, self._shown, set(LINKED))
        prepared: LightningArgumentParser = parser
        return prepared

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        self._given = given_options(parser, args, ("model", "data"), verbs=self._subcommand_parsers)
        super().parse_arguments(parser, args)
        self._options = self.config[self._verb]
        refuse_nulls(self._options, self._given)
        self._model_name: str = self._options["model"]["class_path"].rsplit(".", 1)[-1]

    @override
    def _parse_ckpt_path(self) -> None:
        """Take options that were not given from the checkpoint, and report every difference."""
        ckpt_path = self._options.get("ckpt_path")
        if not ckpt_path or ckpt_path in _KEYWORDS:
            self._set_epochs(bool(ckpt_path), None)
            return
        checkpoint, self._checkpoint = self._checkpoint or read_checkpoint(ckpt_path), None
        saved_class, options = checkpoint[CHECKPOINT_KEY]["class"], self._options["model"]["init_args"]
        if saved_class != self._model_name:
            raise InputError(
                f"'{ckpt_path}' is a checkpoint of another class, {saved_class}, and {self._model_name} was asked for. "
                f"Set --model {saved_class} to go on with it; to evaluate it, give its path as --model.swift_model, "
                "--model.super_model or --model.model."
            )
        for name, value in checkpoint.get("hyper_parameters", {}).items():
            if name not in options or options[name] == value or name in LINKED:
                continue
            if name in self._given["model"]:
                notice("checkpoint-options", f"{name} is {options[name]!r}, as given; the checkpoint has {value!r}")
            else:
                message = f"{name} is {value!r}, as in the checkpoint; the default is {options[name]!r}"
                notice("checkpoint-options", message)
                options[name] = value
        self._set_epochs(True, checkpoint[CHECKPOINT_KEY].get("max_epochs"))

    def _set_epochs(self, resumes: bool, saved_epochs: int | None) -> None:
        """Set the end of a training that was given none: the checkpoint's if it resumes, else our default."""
        trainer = self._options["trainer"]
        ends = [trainer[name] is not None for name in ("max_epochs", "max_time", "min_epochs", "min_steps")]
        ends += [name in str(trainer["callbacks"]) for name in ("EarlyStopping", "Timer")]
        if self._verb != "fit" or any(ends) or trainer["max_steps"] != -1 or trainer["fast_dev_run"]:
            return
        if resumes and saved_epochs is None:
            raise InputError("How long that training was to go on is not known. Set --trainer.max_epochs as it had it.")
        # Lightning's default is 1,000, and the learning rate would decay over all of them.
        trainer["max_epochs"] = _EPOCHS if saved_epochs is None else saved_epochs
        if not self._parse_only:
            _tell(f"training for {trainer['max_epochs']} epochs; --trainer.max_epochs sets others")

    @override
    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (TypeError, ValueError, MisconfigurationException) as error:
            raise InputError(f"Lightning's trainer refuses an option of --trainer: {first_line(error)}") from error
        if self._options["trainer"]["log_every_n_steps"] is None:
            trainer.callbacks.insert(0, LogsEachEpoch())  # type: ignore[attr-defined]
        for logger in trainer.loggers:
            if isinstance(logger, (CSVLogger, TensorBoardLogger)):
                # The version is chosen when first read: read before either makes its folder, both get the same.
                _ = logger.version
        self._logs = new_folders(trainer)
        return trainer

    @override
    def before_instantiate_classes(self) -> None:
        """Refuse a model that cannot be fitted, and an output in which something that is read would be lost."""
        if self._verb == "fit" and self._model_name in ("JointModule", "ScoreModule"):
            raise InputError(
                f"{self._model_name} only evaluates. Set --model FinetuneModule or --model SwiftModule to fit."
            )
        options = self._options
        output = (options["model"].get("init_args") or {}).get("output")
        if not isinstance(output, str):
            return
        read = [options.get("ckpt_path"), options["model"]["init_args"], options["data"].get("init_args")]
        inputs = [*texts_in(read), *map(str, options.get("config") or [])]
        if output.endswith(".parquet"):
            check_output_file(output, inputs, "--model.output")
            # A part goes beside it.
            if self._model_name == "ScoreModule" and options["model"]["init_args"].get("part") is None:
                note_replaced(output)
        else:
            names = None if self._verb == "fit" else EVALUATION_FILES
            check_folder(output, inputs, names, option="--model.output")
        writes = self._verb == "fit" or self._model_name in ("JointModule", "ScoreModule")
        # The parts of one output are written at the same time.
        if writes and options["model"]["init_args"].get("part") is None and not options["trainer"]["fast_dev_run"]:
            self._lock(output)

    def _lock(self, output: str) -> None:
        """Keep other runs from the output before data are read and models loaded.

        The modules lock it, too: of several processes, of which all must end if the first one cannot lock it, they are
        the first that can tell the others.
        """
        if not self._parse_only and not {"RANK", "LOCAL_RANK", "SLURM_PROCID"} & os.environ.keys():
            self._until_end.enter_context(output_lock(output))


def run(verb: str, args: list[str], parse_only: bool = False, callbacks: Sequence[pl.Callback] = ()) -> dict[str, Any]:
    """Parse the arguments of a verb, run it unless ``parse_only``, and return the arguments."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_make_printable)
    with ExitStack() as until_end:
        cli = ElangCLI(verb, parse_only, callbacks=callbacks, args=args, until_end=until_end)
        config: dict[str, Any] = cli.config[verb].as_dict()
        return config


def _class_path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _end_unless_handled(number: int, frame: Any) -> None:
    """Exit at SIGTERM, so that logs are removed, until Lightning handles it; its handler calls this one, too."""
    if signal.getsignal(number) is _end_unless_handled:
        raise SystemExit(128 + number)


def _make_printable(record: logging.LogRecord) -> bool:
    """Escape control characters, which names and paths may contain."""
    record.msg, record.args = printable(record.getMessage()), ()
    return True


_tell = rank_zero_only(tell)
