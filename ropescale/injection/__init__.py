"""The doors into a live model. Each knows tensors and modules, and no method."""
