"""Tasks: how they put their questions to a model, and what an answer is worth."""

from elang.tasks import kinds as kinds
