"""The Lightning modules, and the classifier that they share with the predictor."""
