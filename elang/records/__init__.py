"""What is stored of a model: its answers to a data set, and a Swift's thresholds."""

DEFAULT_THRESHOLD = "1-SE"
"""The name of the threshold that routes by default."""

WORTH_NAMING = 1.05
"""The speed-up above which a threshold is offered where the chosen one saves nothing."""
