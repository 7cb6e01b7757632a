"""The door for a factor that belongs into the softmax: the scale that attention layers were built with.

Multi-head latent attention rotates a part of each head, so that an attention factor on cos and sin would sharpen that
part alone. Transformers multiplies YaRN's `mscale_all_dim` into the scale of every layer when it builds the model,
where no later change of a config reaches.
"""

from torch import nn


class Sharpening:
    """Scales put into attention layers, and what was there before."""

    def __init__(self, layers: list[nn.Module], scalings: list[float]) -> None:
        self.layers = layers
        self.originals: list[float] = [layer.scaling for layer in layers]  # type: ignore[misc]
        for layer, scaling in zip(layers, scalings, strict=True):
            layer.__dict__["scaling"] = scaling

    def undo(self) -> None:
        """Put back what was there before."""
        for layer, scaling in zip(self.layers, self.originals, strict=True):
            layer.__dict__["scaling"] = scaling
