"""The output of a feed-forward layer, built again from its neurons: the proof that none is missing or misread."""

from __future__ import annotations

import torch
from torch import Tensor

from hneurons.errors import UnsupportedModelError
from hneurons.models.moe import RoutedFFN
from hneurons.models.parts import FFN
from hneurons.neurons.capture import Routed

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Largest ||rebuilt - h|| / ||h|| that rounding explains, by the model's dtype."""


def rebuild(ffn: FFN, z: Tensor | Routed, rows: Tensor) -> Tensor:
    """sum_j z_j W_down[:, j] + bias for the tokens of `rows`, float32 (len(rows), hidden).

    Args:
        ffn: a layer or a part of one.
        z: as a `Capture` gets it.
        rows: tokens, numbered through the batch.
    """
    if not isinstance(z, Routed):
        # Wider than the model: in its own type this would be the very product that made h.
        wide = torch.float32 if z.device.type == "mps" else torch.float64
        flat = z.reshape(-1, z.shape[-1])[rows].to(wide)
        out = flat @ ffn.weight().to(wide).T.to(flat.device)
        bias = ffn.bias()
        return (out if bias is None else out + bias.to(wide).to(out.device)).float()
    routed: RoutedFFN = z.ffn
    out = torch.zeros(len(rows), routed.hidden, device=rows.device)
    for piece in z.pieces():
        here, there = (piece.rows[:, None] == rows[None, :].to(piece.rows.device)).nonzero(as_tuple=True)
        if not len(here):
            continue
        wrote = piece.z[here].float() @ routed.expert_weight(piece.expert).float().T.to(piece.z.device)
        bias = routed.expert_bias(piece.expert)
        wrote = wrote if bias is None else wrote + bias.float().to(wrote.device)
        out.index_add_(0, there.to(out.device), (wrote * piece.weight[here].float()[:, None]).to(out.device))
    return out


class MixtureCheck:
    """Compares the mixtures of a model with their neurons once, on some tokens of the first batch."""

    def __init__(self, ffns: list[FFN], tokens: int = 4) -> None:
        self.tokens = tokens
        self._waiting = {ffn.path for ffn in ffns if ffn.block is not None}
        self._members = {
            tuple(id(b) for b in ffn.blocks): sum(other.blocks == ffn.blocks for other in ffns)
            for ffn in ffns
            if ffn.block is not None
        }
        self._sums: dict[tuple[int, ...], tuple[int, Tensor]] = {}

    def see(self, _: int, ffn: FFN, z: Tensor | Routed, h: Tensor) -> None:
        """Take in a part, as a `Capture`; the batch must be without padding.

        Raises:
            UnsupportedModelError: the parts of a mixture don't add up to its output.
        """
        if ffn.path not in self._waiting:
            return
        self._waiting.remove(ffn.path)
        flat = h.reshape(-1, h.shape[-1])
        rows = torch.linspace(0, len(flat) - 1, min(self.tokens, len(flat))).long().to(h.device)
        key = tuple(id(block) for block in ffn.blocks)
        seen, total = self._sums.pop(key, (0, torch.zeros(len(rows), flat.shape[-1], device=h.device)))
        total = total + rebuild(ffn, z, rows).to(h.device)
        if seen + 1 < self._members[key]:
            self._sums[key] = (seen + 1, total)
            return
        wanted = flat[rows].float()
        error = float(((total - wanted).norm(dim=-1) / wanted.norm(dim=-1).clamp_min(1e-30)).max())
        if not error <= TOLERANCE.get(h.dtype, 3e-2):
            raise UnsupportedModelError(
                f"The neurons found in layer {ffn.layer} ({ffn.path}) make up its output only to {100 * error:.2g} %: "
                "this mixture of experts works otherwise than the locator thinks.",
                "Run `hneurons verify` on it and report the architecture; docs/add-a-model.md says how to add it.",
            )
