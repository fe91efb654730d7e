"""Measure the weight with which each part of a mixture enters its output, without knowing the mixture's code.

The mixture runs again on the same input with every part replaced by a unit vector of its own; what comes out in that
direction is the part's weight for each token. This covers routers of any kind, scaling factors before and after the
sum, and gates of shared experts.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hneurons.errors import UnsupportedModelError
from hneurons.models.weights import linear_shape

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named arguments of a module's forward."""

_probing = False


def probing() -> bool:
    """Whether a mixture runs to measure its weights, not to compute: hooks must look away."""
    return _probing


def hidden_states(args: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    """The hidden states that a module was called with: its first argument."""
    return args[0] if args else next(iter(named.values()))


def container(block: nn.Module, down: nn.Module) -> nn.Module:
    """The module around `down`, or `down` itself when it lies in the block."""
    for module in block.modules():
        if module is not block and any(child is down for child in module.children()):
            return module
    return down


@torch.no_grad()
def measure(
    block: nn.Module, parts: Sequence[nn.Module], call: Inputs, silent: Sequence[nn.Module] = ()
) -> list[Tensor]:
    """The weight with which each part's output enters the block's output, for each token: (batch * tokens,) a part.

    Runs the block with every part replaced by a unit vector in a direction of its own, and the modules of `silent`
    by zero.

    Raises:
        UnsupportedModelError: the block does more than to add weighted outputs.
    """
    weights: list[Tensor] = []
    size = hidden_states(*call).shape[-1]
    for start in range(0, len(parts), size):
        now = parts[start : start + size]
        quiet = (*parts[:start], *parts[start + size :], *silent)
        with ExitStack() as stack:
            for direction, part in enumerate(now):
                stack.enter_context(_stubbed(part, direction))
            for part in quiet:
                stack.enter_context(_stubbed(part, None))
            output: Any = block.forward(*call[0], **call[1])
        out: Tensor = (output[0] if isinstance(output, tuple) else output).reshape(-1, size)
        if bool(out[:, len(now) :].ne(0).any()):
            raise UnsupportedModelError(
                f"{type(block).__name__} does more with its experts' outputs than to add them with weights.",
                "docs/add-a-model.md says how to add such a mixture.",
            )
        weights += list(out[:, : len(now)].unbind(dim=1))
    return weights


@contextmanager
def _stubbed(module: nn.Module, direction: int | None) -> Generator[None]:
    """Make `module` return the unit vector of that direction for every row of its input (None: zero)."""

    def forward(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        shape = linear_shape(module)
        out = hidden.new_zeros(*hidden.shape[:-1], shape[1] if shape else hidden.shape[-1])
        if direction is not None:
            out[..., direction] = 1
        return out

    global _probing
    # accelerate too puts its forward on the instance.
    own, before = module.__dict__.get("forward"), _probing
    module.forward = forward
    _probing = True
    try:
        yield
    finally:
        _probing = before
        if own is None:
            del module.forward
        else:
            module.forward = own
