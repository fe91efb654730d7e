"""See z and h of every feed-forward layer in a forward pass, dense or mixture of experts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from hneurons.models.moe import Call, Piece, RoutedFFN, part_weights
from hneurons.models.parts import FFN
from hneurons.models.routing import probing, replaceable
from hneurons.neurons.scaling import factors


@dataclass(frozen=True)
class Routed:
    """z of routed experts, for the tokens that were sent to them only."""

    ffn: RoutedFFN
    call: Call
    shape: tuple[int, ...]
    """(batch, tokens), or (batch * tokens,) where the model lays them out so."""
    unscaled: bool = False
    """Whether `scale` is left out of z."""

    def pieces(self, only: Collection[int] | None = None) -> Iterator[Piece]:
        """What each expert did, computed as it is asked for; `only` some experts if given."""
        if self.unscaled:
            yield from self.ffn.pieces(self.call, only)
            return
        for piece in self.ffn.pieces(self.call, only):
            factor = factors(self.ffn.down, piece.expert, piece.rows, len(self.call.hidden), self.ffn.expert_width)
            yield piece if factor is None else replace(piece, z=(piece.z * factor).to(piece.z.dtype))


Capture = Callable[[int, FFN, Tensor | Routed, Tensor], None]
"""Called with (position of the FFN, the FFN, z, h (batch, tokens, hidden)).

z is (batch, tokens, width), or a `Routed` for routed experts. The z of a shared expert with a gate holds the gate. h is
the output of the whole layer. Models that lay batch and tokens out in one dimension have z and h so, too."""


@contextmanager
def capture(
    ffns: Sequence[FFN], callback: Capture, *, every_thread: bool = False, unscaled: bool = False
) -> Generator[None]:
    """Call `callback` with z and h of every FFN in each forward pass inside the block; hooks always come off.

    Args:
        ffns: the FFNs to see.
        callback: see `Capture`.
        every_thread: also passes of other threads, in which the callback then runs. Several workers may run the
            model at once: without this, only the passes of the thread that opened the block are seen.
        unscaled: z as it is before the `scale` blocks around turn it, for mixtures alone; h is that of the turned
            neurons all the same.
    """
    owner = None if every_thread else threading.get_ident()

    def call(position: int, ffn: FFN, z: Tensor | Routed, h: Tensor) -> None:
        if owner is None or threading.get_ident() == owner:
            callback(position, ffn, z, h)

    with ExitStack() as stack:
        groups: dict[tuple[int, ...], _Mixture] = {}
        for position, ffn in enumerate(ffns):
            if ffn.block is None:
                assert not unscaled, "what goes into a dense down projection needs no more than a hook on it"
                handle = ffn.down.register_forward_hook(_dense_hook(position, ffn, call))
                stack.callback(handle.remove)
            else:
                key = tuple(id(block) for block in ffn.blocks)
                groups.setdefault(key, _Mixture(ffn.blocks, call, unscaled)).parts.append((position, ffn))
        for group in groups.values():
            group.attach(stack)
        yield


def _dense_hook(position: int, ffn: FFN, callback: Capture) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def see(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        callback(position, ffn, inputs[0], output[0] if isinstance(output, tuple) else output)

    return see


class _Seen(threading.local):
    """What has run so far of a mixture; passes of several threads don't mix."""

    def __init__(self) -> None:
        self.inputs: dict[int, tuple[Any, ...]] = {}
        self.calls: dict[int, tuple[tuple[Any, ...], dict[str, Any], Tensor]] = {}


class _Mixture:
    """The parts of one layer whose outputs add up to h, seen together once all have run."""

    def __init__(self, blocks: tuple[nn.Module, ...], callback: Capture, unscaled: bool) -> None:
        self.blocks = blocks
        self.callback = callback
        self.unscaled = unscaled
        self.parts: list[tuple[int, FFN]] = []
        self._seen = _Seen()

    def attach(self, stack: ExitStack) -> None:
        """Register the hooks; `stack` takes them off."""
        routed = [ffn for _, ffn in self.parts if isinstance(ffn, RoutedFFN)]
        stack.enter_context(replaceable(module for ffn in routed for module in ffn.replaced()))
        for position, ffn in self.parts:
            module = ffn.recorded if isinstance(ffn, RoutedFFN) else ffn.down
            if module is None:
                continue
            if self.unscaled:
                handle = module.register_forward_pre_hook(self._record(position), with_kwargs=True, prepend=True)
            else:
                handle = module.register_forward_hook(self._record(position), with_kwargs=True)
            stack.callback(handle.remove)
        for number, block in enumerate(self.blocks):
            handle = block.register_forward_hook(self._finish(number), with_kwargs=True)
            stack.callback(handle.remove)

    def _record(self, position: int) -> Callable[..., None]:
        def see(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any], *__: Any) -> None:
            if not probing():
                self._seen.inputs[position] = (*args, *named.values())

        return see

    def _finish(self, number: int) -> Callable[..., None]:
        def see(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            if probing():
                return
            seen = self._seen
            seen.calls[number] = (args, named, output[0] if isinstance(output, tuple) else output)
            if len(seen.calls) == len(self.blocks):
                calls, inputs = seen.calls, seen.inputs
                seen.calls, seen.inputs = {}, {}
                self._hand_over(calls, inputs)

        return see

    def _hand_over(
        self, calls: dict[int, tuple[tuple[Any, ...], dict[str, Any], Tensor]], inputs: dict[int, tuple[Any, ...]]
    ) -> None:
        shape = Call(calls[0][:2]).shape
        h = sum(output.reshape(*shape, output.shape[-1]) for *_, output in calls.values())
        assert isinstance(h, Tensor)
        for number, block in enumerate(self.blocks):
            own = [(position, ffn) for position, ffn in self.parts if ffn.block is block]
            args, named, _ = calls[number]
            weights = part_weights([ffn for _, ffn in own], (args, named))
            for position, ffn in own:
                weight = weights.get(ffn.path)
                if isinstance(ffn, RoutedFFN):
                    call = Call((args, named), inputs.get(position, ()), weight)
                    self.callback(position, ffn, Routed(ffn, call, shape, self.unscaled), h)
                    continue
                z: Tensor = inputs[position][0]
                z = z if weight is None else z.reshape(len(weight), -1) * weight[:, None]
                self.callback(position, ffn, z.reshape(*shape, z.shape[-1]), h)
