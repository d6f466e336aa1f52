"""A pair as a service.

A request asks the Swift, then the Super, and never longer than its deadline. Whatever has come in while a model was
busy is its next batch.
"""
