"""A feed-forward layer (FFN) as an object: where its neurons are and what its down projection weighs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hneurons.models.weights import linear_bias, linear_weight, norms


@dataclass(frozen=True)
class FFN:
    """One feed-forward layer, or one part of it: z (tokens x width) goes into `down`, its output is added to h."""

    layer: int
    """Index of the decoder layer."""
    path: str
    """Module path of the down projection (routed experts: of the module that holds them)."""
    down: nn.Module
    width: int
    """Number of neurons, m; of routed experts all together."""
    hidden: int
    """Size of the residual stream, d."""
    block: nn.Module | None = None
    """The mixture that this is a part of; None when the FFN is the whole layer."""
    blocks: tuple[nn.Module, ...] = ()
    """The modules whose outputs add up to h, the output of the whole feed-forward layer; empty: `down` alone."""

    def columns(self, index: Tensor) -> Tensor:
        """W_down[:, index] as (hidden, len(index)), dequantised."""
        return self.weight()[:, index.to(self.device)]

    @property
    def device(self) -> torch.device:
        """Where the weight is."""
        return self.weight().device

    def weight(self) -> Tensor:
        """W_down as (hidden, width), whatever way the module stores it, dequantised."""
        return linear_weight(self.down)

    def bias(self) -> Tensor | None:
        """Bias of the down projection, (hidden,), or None. It belongs to h and to no neuron."""
        return linear_bias(self.down)

    def column_norms(self) -> Tensor:
        """||W_down[:, j]||_2 of every neuron j, float32 (width,)."""
        return norms(self.weight().detach(), dim=0)
