"""What the answers of a pair are worth; no model is run."""
