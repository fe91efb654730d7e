"""The dial of a `scale` block: the alpha of a forward pass, one number or one a row, each thread with its own."""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

from hneurons.errors import UsageError
from hneurons.settings import LARGEST_ALPHA

Alpha = float | Tensor
"""One factor, or one for each row of the batch: (batch,)."""


class Dial(threading.local):
    """The alpha of a `scale` block. Turning it takes effect from the next forward pass of the same thread on.

    A thread that never turned it has the alpha that the block was opened with. So workers that share a model each
    scale their own batch, and a batch that loses a row only needs `dial.alpha = dial.alpha[kept]`.
    """

    batch: int | None = None
    """Rows of the batch that runs in this thread; None where the model doesn't embed token ids."""

    def __init__(self, alpha: Alpha, *, fixed: bool = False) -> None:
        self._fixed = False
        self.alpha = alpha
        self._fixed = fixed

    @property
    def alpha(self) -> Alpha:
        """A number, or a tensor (batch,) with one for each row of the next forward passes.

        Raises (when set):
            UsageError: a bad alpha, or a block that was opened with alpha = 1 and therefore set no hooks.
        """
        return self._alpha

    @alpha.setter
    def alpha(self, alpha: Alpha) -> None:
        checked = checked_alpha(alpha)
        ones = bool((checked == 1).all()) if isinstance(checked, Tensor) else checked == 1
        if self._fixed and not ones:
            raise UsageError(
                "This block was opened with alpha = 1, so that nothing is scaled in it.",
                "Open it with a tensor of ones, one a row, to turn it later.",
            )
        self._alpha = checked
        self._idle = ones
        self._moved: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def factors(self, tokens: int, like: Tensor) -> Tensor | None:
        """What to multiply the rows of a batch by, on the device of `like`: (rows, 1, 1), or (1, 1, 1) for one number.

        None when nothing is to be done because every alpha is 1. float64 for a `like` of float64, else float32.

        Args:
            tokens: tokens of the batch, all rows together.
            like: activations.

        Raises:
            UsageError: there are more or fewer alphas than rows, and not all are 1.
        """
        if self._idle:
            return None  # of whatever size: a dial of ones may wait in another thread
        if isinstance(self._alpha, Tensor):
            size = len(self._alpha)
            if (self.batch is not None and self.batch != size) or tokens % size:
                raise UsageError(
                    f"alpha has {size} entries, the batch has {self.batch or tokens} rows.", "Give one alpha a row."
                )
        key = (like.device, torch.float64 if like.dtype is torch.float64 else torch.float32)
        found = self._moved.get(key)
        if found is None:
            values = torch.as_tensor(self._alpha, dtype=key[1], device=key[0])
            found = self._moved[key] = values.reshape(-1, 1, 1)
        return found

    def __repr__(self) -> str:
        shown = self._alpha.tolist() if isinstance(self._alpha, Tensor) else self._alpha
        return f"Dial(alpha={shown})"


def checked_alpha(alpha: Alpha) -> Alpha:
    """A number between 0 and `LARGEST_ALPHA`, or a tensor (batch,) of such: float32, in CPU memory, a copy.

    Raises:
        UsageError: anything else.
    """
    try:
        values = torch.as_tensor(alpha, dtype=torch.float32, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"alpha must be a number or a tensor, not {alpha!r:.60}.", "1 changes nothing.") from error
    if values.dim() > 1 or not len(values.reshape(-1)):
        raise UsageError("alpha must be a number or one number a row of the batch.", "Give a tensor (batch,).")
    if not bool(((values >= 0) & (values <= LARGEST_ALPHA)).all()):  # NaN is neither
        bad = next(v for v in values.reshape(-1).tolist() if not (math.isfinite(v) and 0 <= v <= LARGEST_ALPHA))
        raise UsageError(
            f"alpha must be between 0 and {LARGEST_ALPHA:g}, not {bad:g}.", "0 silences, 1 changes nothing."
        )
    return values.clone() if values.dim() else float(alpha)
