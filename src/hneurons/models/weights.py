"""Weights as plain tensors, whatever way a module keeps them: transposed, quantised, or moved off by accelerate."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hneurons.errors import UnsupportedModelError


@contextmanager
def onloaded(module: nn.Module) -> Generator[None]:
    """Bring back the parameters that accelerate keeps in CPU memory or on disk, for the time of the block."""
    away = any(parameter.device.type == "meta" for parameter in module.parameters(recurse=False))
    if not away or getattr(module, "_hf_hook", None) is None:
        yield  # also inside another such block, whose end would come too early
        return
    from accelerate.utils.modeling import align_module_device

    with align_module_device(module):
        yield


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear map, None for any other module."""
    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    inputs, outputs = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(inputs, int) and isinstance(outputs, int) and (hasattr(module, "weight") or _is_hqq(module)):
        return inputs, outputs
    return None


def norms(values: Tensor, dim: int) -> Tensor:
    """Euclidean norms along `dim`, accumulated in float32 or better, as float32."""
    if values.dtype is torch.float64:
        return torch.linalg.vector_norm(values, dim=dim).float()
    return torch.linalg.vector_norm(values, dim=dim, dtype=torch.float32)


def linear_weight(module: nn.Module) -> Tensor:
    """The matrix of a linear map as (outputs, inputs), dequantised."""
    shape = linear_shape(module)
    assert shape is not None
    with onloaded(module):
        if _is_hqq(module):
            dense: Any = module
            return dense.dequantize().detach()
        weight: Any = module.weight
        if isinstance(module, Conv1D):
            return weight.detach().T
        weight = dequantised(weight)
        plain = isinstance(weight, Tensor) and weight.is_floating_point() and weight.shape == (shape[1], shape[0])
        return weight.detach() if plain else _by_probing(module, shape)


def is_quantised(module: nn.Module) -> bool:
    """Whether a linear map stores its weight in fewer bits than it computes with."""
    weight: Any = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return True
    return _packs(weight) or not weight.is_floating_point()


def dequantised(weight: Any) -> Any:
    """The same numbers as a plain tensor, where a library's tensor class packs them."""
    return weight.dequantize() if _packs(weight) else weight


def _packs(weight: Any) -> bool:
    # torchao and quanto bring a tensor class with a `dequantize` of its own.
    return getattr(type(weight), "dequantize", Tensor.dequantize) is not Tensor.dequantize


def linear_bias(module: nn.Module) -> Tensor | None:
    """The bias of a linear map, or None."""
    with onloaded(module):
        bias: Any = getattr(module, "bias", None)
        return bias.detach() if isinstance(bias, Tensor) else None


def _is_hqq(module: nn.Module) -> bool:
    return type(module).__name__ == "HQQLinear"


@torch.no_grad()
def _by_probing(module: nn.Module, shape: tuple[int, int]) -> Tensor:
    """The matrix of a module that packs its weight: column j is what the unit vector of input j writes."""
    inputs, outputs = shape
    weight: Any = module.weight
    if weight.device.type == "meta":
        raise UnsupportedModelError(
            f"A {type(module).__name__} has no weights in memory.", "Load the model with its weights."
        )
    dtype = torch.float32 if weight.device.type == "cpu" else torch.float16
    columns: list[Tensor] = []
    try:
        # Not module(...): hooks that look at the model's own passes must not see these.
        zero = module.forward(torch.zeros(1, inputs, dtype=dtype, device=weight.device))
        for start in range(0, inputs, 1024):
            unit = torch.zeros(min(1024, inputs - start), inputs, dtype=dtype, device=weight.device)
            unit[torch.arange(len(unit)), torch.arange(start, start + len(unit))] = 1
            columns.append((module.forward(unit).float() - zero.float()).T)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedModelError(
            f"Can't read the quantised weight of a {type(module).__name__} ({' '.join(str(error).split())[:120]}).",
            "Load the model without quantisation.",
        ) from error
    result = torch.cat(columns, dim=1)
    assert result.shape == (outputs, inputs)
    return result
