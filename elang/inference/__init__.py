"""A pair at work: texts in, answers out."""
