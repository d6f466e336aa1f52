"""Energy-based joint inference: a small Swift answers the inputs that it can be trusted with, a large Super the rest.

Names are imported when they are first used, so that ``import elang`` is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from elang._version import __version__ as __version__

_HOME = {
    "FinetuneModule": "elang.models.finetune",
    "InputError": "elang.errors",
    "JointModule": "elang.models.joint",
    "JointPredictor": "elang.inference.predictor",
    "RoutingCurve": "elang.metrics",
    "SCORES": "elang.method.scores",
    "ScoreModule": "elang.models.scoring",
    "Seq2SeqData": "elang.data.seq2seq",
    "ShardedStrategy": "elang.models.sharding",
    "SwiftModule": "elang.models.swift",
    "TaskData": "elang.data.benchmarks",
    "TextClassificationData": "elang.data.text_classification",
    "operating_curve": "elang.method.curve.exact",
    "route": "elang.method.deferral",
}

if TYPE_CHECKING:
    from elang.data.benchmarks import TaskData as TaskData
    from elang.data.seq2seq import Seq2SeqData as Seq2SeqData
    from elang.data.text_classification import TextClassificationData as TextClassificationData
    from elang.errors import InputError as InputError
    from elang.inference.predictor import JointPredictor as JointPredictor
    from elang.method.curve.exact import operating_curve as operating_curve
    from elang.method.deferral import route as route
    from elang.method.scores import SCORES as SCORES
    from elang.metrics import RoutingCurve as RoutingCurve
    from elang.models.finetune import FinetuneModule as FinetuneModule
    from elang.models.joint import JointModule as JointModule
    from elang.models.scoring import ScoreModule as ScoreModule
    from elang.models.sharding import ShardedStrategy as ShardedStrategy
    from elang.models.swift import SwiftModule as SwiftModule
else:
    __all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'elang' has no attribute '{name}'")
