"""What is asked: how a task puts its question, and what an answer to it is worth."""

from elang.tasks import kinds as kinds
