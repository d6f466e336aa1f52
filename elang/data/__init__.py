"""Labelled text: files, batches, the data module and the demo's data."""
