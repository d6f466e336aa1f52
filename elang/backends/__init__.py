"""Who answers: the models of every family, how they are loaded, what they cost and how they are made fast."""

from typing import Literal

DType = Literal["float32", "bfloat16", "float16"]
"""Precisions that a model's weights may have in inference."""
