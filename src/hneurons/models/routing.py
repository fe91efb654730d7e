"""Measure the weight with which each part of a mixture enters its output, without knowing the mixture's code.

The mixture runs again on the same input with every part replaced by a unit vector of its own; what comes out in that
direction is the part's weight for each token. This covers routers of any kind, scaling factors before and after the
sum, and gates of shared experts.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hneurons.errors import UnsupportedModelError
from hneurons.models.weights import linear_shape

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named arguments of a module's forward."""

Forward = Callable[..., Tensor]
_thread = threading.local()
_lock = threading.Lock()
_installed: dict[int, tuple[int, Any]] = {}


def probing() -> bool:
    """Whether this thread runs a mixture to measure its weights, not to compute: hooks must look away."""
    return bool(getattr(_thread, "instead", None))


@contextmanager
def replaceable(modules: Iterable[nn.Module]) -> Generator[None]:
    """Let `replaced` stand in for these modules inside the block, in each thread for itself.

    Passes of other threads, and of this one outside of `replaced`, run the modules' own code.
    """
    own = list({id(module): module for module in modules}.values())
    with _lock:
        for module in own:
            count, before = _installed.get(id(module), (0, module.__dict__.get("forward")))
            if not count:
                module.forward = _dispatch(module)
            _installed[id(module)] = (count + 1, before)
    try:
        yield
    finally:
        with _lock:
            for module in own:
                count, before = _installed.pop(id(module))
                if count > 1:
                    _installed[id(module)] = (count - 1, before)
                elif before is None:
                    del module.forward
                else:  # accelerate too puts its forward on the instance
                    module.forward = before


def _dispatch(module: nn.Module) -> Forward:
    original: Forward = module.forward

    @functools.wraps(original)
    def forward(*args: Any, **named: Any) -> Tensor:
        instead: Forward | None = getattr(_thread, "instead", {}).get(id(module))
        return original(*args, **named) if instead is None else instead(*args, **named)

    return forward


@contextmanager
def replaced(instead: dict[nn.Module, Forward]) -> Generator[None]:
    """Run those functions instead of those modules, in this thread; the modules must be `replaceable`."""
    before: dict[int, Forward] = getattr(_thread, "instead", {})
    _thread.instead = before | {id(module): forward for module, forward in instead.items()}
    try:
        yield
    finally:
        _thread.instead = before


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
        stubs = {part: _unit(part, direction) for direction, part in enumerate(now)}
        stubs |= {part: _unit(part, None) for part in quiet}
        with replaceable(stubs), replaced(stubs):
            output: Any = block.forward(*call[0], **call[1])
        out: Tensor = (output[0] if isinstance(output, tuple) else output).reshape(-1, size)
        if bool(out[:, len(now) :].ne(0).any()):
            raise UnsupportedModelError(
                f"{type(block).__name__} does more with its experts' outputs than to add them with weights.",
                "docs/add-a-model.md says how to add such a mixture.",
            )
        weights += list(out[:, : len(now)].unbind(dim=1))
    return weights


def _unit(module: nn.Module, direction: int | None) -> Forward:
    """Returns the unit vector of that direction for every row of its input (None: zero)."""

    def forward(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        shape = linear_shape(module)
        out = hidden.new_zeros(*hidden.shape[:-1], shape[1] if shape else hidden.shape[-1])
        if direction is not None:
            out[..., direction] = 1
        return out

    return forward
