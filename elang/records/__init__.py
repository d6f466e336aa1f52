"""What is stored of a model: its answers to a data set, and a Swift's thresholds."""
