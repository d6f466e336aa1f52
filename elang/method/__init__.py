"""The equations: tensors in, tensors out. Nothing of elang is imported here but its errors."""
