"""A pair as a service: what comes in while a model is busy is its next batch, and no request outlasts its deadline."""
