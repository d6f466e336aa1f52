"""The LightningModules: training a Super or a Swift, recording a model's answers, and evaluating a pair."""
