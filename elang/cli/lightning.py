"""The verbs that Lightning runs: ``fit``, ``validate``, ``test`` and ``score``."""

import logging
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from typing_extensions import override

from elang.backends.loading.checkpoints import CHECKPOINT_KEY, read_checkpoint
from elang.cli.arguments import suggest
from elang.cli.options import MODE, own_defaults, refuse_nulls, texts_in
from elang.data.benchmarks import TaskData
from elang.data.seq2seq import Seq2SeqData
from elang.data.text_classification import TextClassificationData
from elang.errors import InputError, printable
from elang.evaluation.report.files import EVALUATION_FILES
from elang.files import check_folder, check_output_file
from elang.models.finetune import FinetuneModule
from elang.models.joint import JointModule
from elang.models.scoring import ScoreModule
from elang.models.swift import SwiftModule
from elang.notices import notice

_DEFAULT_MODELS: dict[str, type] = {
    "fit": FinetuneModule,
    "validate": JointModule,
    "test": JointModule,
    "score": ScoreModule,
}
_EPOCHS = 3
# They come from the data.
_LINKED = ("label_names", "task")
_NOT_ARGUMENTS = {"model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders"}
_LOGGERS = [
    {"class_path": f"lightning.pytorch.loggers.{name}", "init_args": {"save_dir": "runs", "name": None}}
    for name in ("CSVLogger", "TensorBoardLogger")
]


class Trainer(pl.Trainer):
    """Lightning's trainer, with one more verb."""

    def score(self, model: pl.LightningModule, datamodule: Any = None, verbose: bool = False) -> None:
        """Run one model over every example of every split and write its records."""
        with datamodule.all_splits():
            self.validate(model, datamodule=datamodule, verbose=verbose)


class ElangCLI(LightningCLI):
    """A LightningCLI that builds only the parser of the verb that was asked for.

    Args:
        verb: The verb.
        parse_only: Only check the arguments.
        callbacks: More of them for the trainer.
        args: As on the command line, behind the verb.
    """

    def __init__(self, verb: str, parse_only: bool, callbacks: Sequence[pl.Callback], args: list[str]) -> None:
        self._verb, self._parse_only = verb, parse_only
        super().__init__(
            pl.LightningModule,
            pl.LightningDataModule,
            trainer_class=Trainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_callback=_SaveConfig,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"callbacks": list(callbacks)} if callbacks else None,
            parser_kwargs={
                "prog": "elang",
                "allow_abbrev": False,
                "parser_mode": MODE,
                verb: {"prog": f"elang {verb}", "parser_mode": MODE},
            },
            args=[verb, *_with_class(verb, args)],
        )

    @override
    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning's are the same for all
        return {self._verb: _NOT_ARGUMENTS}

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
            super()._run_subcommand(subcommand)
        except SIGTERMException:
            # It is a SystemExit without a code, so the process would end as if all were done.
            _note(_stopped("SIGTERM", subcommand, self.trainer))
            raise SystemExit(128 + signal.SIGTERM) from None
        except SystemExit as end:
            # Lightning's own end, with the code 1.
            if isinstance(end.__context__, KeyboardInterrupt):
                _note(_stopped("Ctrl-C", subcommand, self.trainer))
            raise

    @override
    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = super().init_parser(**kwargs)
        suggest(parser)
        return parser

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults(
            {
                "model": {"class_path": _path(_DEFAULT_MODELS[self._verb])},
                "data": {"class_path": _path(TextClassificationData)},
                "trainer.num_sanity_val_steps": 0,
                # It counts FLOPs, and finds none.
                "trainer.enable_model_summary": False,
                "trainer.logger": _LOGGERS if self._verb == "fit" else False,
            }
        )
        parser.link_arguments("data.label_names", "model.init_args.label_names", apply_on="instantiate")
        parser.link_arguments("data.task_fields", "model.init_args.task", apply_on="instantiate")

    @override
    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand != "fit":
            parser.set_defaults({"verbose": False})  # our own table says more
        return parser

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        self._given = own_defaults(parser, args, ("model", "data"), self._subcommand_parsers)
        super().parse_arguments(parser, args)
        refuse_nulls(self.config[self._verb], self._given)

    @override
    def _parse_ckpt_path(self) -> None:
        """Take from a checkpoint what was not said explicitly, and say every difference."""
        config = self.config[self.config.subcommand]
        ckpt_path = config.get("ckpt_path")
        if not ckpt_path or ckpt_path in ("best", "last", "hpc"):
            self._end(bool(ckpt_path), None)
            return
        checkpoint = read_checkpoint(ckpt_path)
        model = config["model"]
        theirs, ours = checkpoint[CHECKPOINT_KEY]["class"], model["class_path"].rsplit(".", 1)[-1]
        if theirs != ours:
            raise InputError(
                f"'{ckpt_path}' is a checkpoint of another class, {theirs}, and {ours} was asked for. Set --model "
                f"{theirs} to go on with it; to evaluate it, give its path as --model.swift_model, "
                "--model.super_model or --model.model."
            )
        known = model["init_args"]
        for name, value in checkpoint.get("hyper_parameters", {}).items():
            if name not in known or known[name] == value or name in _LINKED:
                continue
            if name in self._given["model"]:
                notice("checkpoint-options", f"{name} is {known[name]!r}, as given; the checkpoint has {value!r}")
            else:
                said = f"{name} is {value!r}, as in the checkpoint; the default is {known[name]!r}"
                notice("checkpoint-options", said)
                known[name] = value
        self._end(True, checkpoint[CHECKPOINT_KEY].get("max_epochs"))

    def _end(self, goes_on: bool, epochs: int | None) -> None:
        """Say when a training ends that has no end: of one that goes on after so many ``epochs``, as it was to."""
        verb = self.config.subcommand
        trainer = self.config[verb]["trainer"]
        ends = [trainer[name] is not None for name in ("max_epochs", "max_time", "min_epochs", "min_steps")]
        ends += [name in str(trainer["callbacks"]) for name in ("EarlyStopping", "Timer")]
        if verb != "fit" or any(ends) or trainer["max_steps"] != -1 or trainer["fast_dev_run"]:
            return
        if goes_on and epochs is None:
            raise InputError("How long that training was to go on is not known. Set --trainer.max_epochs as it had it.")
        # Lightning's own is 1,000, over which the learning rate would fall.
        trainer["max_epochs"] = _EPOCHS if epochs is None else epochs
        _note(f"training for {trainer['max_epochs']} epochs; --trainer.max_epochs sets others")

    @override
    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        for logger in trainer.loggers:
            if isinstance(logger, (CSVLogger, TensorBoardLogger)):
                # Each takes the next free number when asked: asked before either makes its folder, they share one.
                _ = logger.version
        return trainer

    @override
    def before_instantiate_classes(self) -> None:
        name = self.config[self.config.subcommand]["model"]["class_path"].rsplit(".", 1)[-1]
        if self.config.subcommand == "fit" and name in ("JointModule", "ScoreModule"):
            raise InputError(f"{name} only evaluates. Set --model FinetuneModule or --model SwiftModule to fit.")
        self._check_output()

    def _check_output(self) -> None:
        """Refuse an output in which a model, records or data that are read would be lost."""
        config = self.config[self.config.subcommand]
        output = (config["model"].get("init_args") or {}).get("output")
        if not isinstance(output, str):
            return
        given = [config.get("ckpt_path"), config["model"]["init_args"], config["data"].get("init_args")]
        inputs = [*texts_in(given), *map(str, config.get("config") or [])]
        if output.endswith(".parquet"):
            check_output_file(output, inputs, "--model.output")
        elif self.config.subcommand == "fit":
            check_folder(output, inputs, None, "--model.output")
        else:
            check_folder(output, inputs, EVALUATION_FILES, "--model.output")


class _SaveConfig(SaveConfigCallback):
    """Keeps the parsed configuration with a training run, where the run has a folder."""

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.loggers:
            super().setup(trainer, pl_module, stage)


def run(
    verb: str, args: list[str] | None, parse_only: bool = False, callbacks: Sequence[pl.Callback] = ()
) -> dict[str, Any]:
    """Parse a verb's arguments, by default the process's own, and run it unless they are only to be checked.

    Returns:
        The configuration, as plain values.
    """
    # Lightning's own use of torch and of its loaders; nothing a user could act on.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    # Where all parts are answered already.
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
    # It advertises a logger and an uploader.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_tips)

    cli = ElangCLI(verb, parse_only, callbacks, sys.argv[2:] if args is None else args)
    config: dict[str, Any] = cli.config[verb].as_dict()
    return config


def _stopped(who: str, verb: str, trainer: pl.Trainer) -> str:
    said = f"{who} stopped `elang {verb}` before its end, so it has written no result."
    saver: Any = trainer.checkpoint_callback
    kept = (getattr(saver, "last_model_path", "") or getattr(saver, "best_model_path", "")) if verb == "fit" else ""
    return said + (f" Go on with --ckpt_path {kept}" if kept else "")


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _with_class(verb: str, args: list[str]) -> list[str]:
    """Name a class behind a bare ``--model.help`` or ``--data.help``: the base classes have no options to show.

    It is the one that was asked for before it, or the verb's default.
    """
    found = list(args)
    for option, kind in (("--model", _DEFAULT_MODELS[verb]), ("--data", TextClassificationData)):
        place = found.index(f"{option}.help") + 1 if f"{option}.help" in found else 0
        if place and (place == len(found) or found[place].startswith("-")):
            before = [*found[:place], ""]
            asked = before[before.index(option) + 1] if option in before else ""
            found.insert(place, asked or _path(kind))
    return found


def _no_tips(record: logging.LogRecord) -> bool:
    said = record.getMessage()
    # Names and paths may hold control characters.
    record.msg, record.args = printable(said), ()
    return "Tip:" not in said


@rank_zero_only
def _note(text: str) -> None:
    sys.stderr.write(f"elang: {printable(text)}\n")


__all__ = ["FinetuneModule", "JointModule", "ScoreModule", "Seq2SeqData", "SwiftModule", "TaskData", "run"]
