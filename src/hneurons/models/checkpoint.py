"""A model's weights on the disk: read one by one from safetensors, without ever holding the model.

The architecture comes from the config, as an empty model; so the locator says where its feed-forward neurons are, and
transformers' own rules say which tensors of the files make up each parameter (renamed, merged from single experts...).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from hneurons.errors import DamagedModelError, HNeuronsError, UnsupportedModelError
from hneurons.layout import Layout
from hneurons.models.demo import Say
from hneurons.models.ffn import find_ffns, layout_of
from hneurons.models.load import explain, locate
from hneurons.models.outline import empty
from hneurons.models.parts import FFN
from hneurons.models.quiet import quiet_transformers

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
NEEDED = ["*.safetensors", INDEX, "*.json", "*.jinja", "*.model", "*.txt"]
"""Files of a hub model that are fetched: weights, config, tokenizer."""
SAMPLES, BLOCK = 1024, 4096
"""Places of each file that its fingerprint reads, and bytes at each."""


@dataclass(frozen=True)
class _Source:
    """Where one tensor of a file goes."""

    file: Path
    key: str
    pattern: str | None
    """The rule of transformers that it takes part in; None where it is the parameter itself."""


@dataclass(frozen=True)
class Checkpoint:
    """The files of a model, and where its feed-forward neurons are."""

    name: str
    source: str
    """`hub`, `folder`, `gguf` or `demo`."""
    folder: Path
    revision: str | None
    network: PreTrainedModel
    """Without weights: every parameter is on the meta device."""
    files: Mapping[str, Path] = field(repr=False)
    """Tensor -> the file that holds it."""
    ffns: Sequence[FFN] = field(default_factory=list[FFN], repr=False)

    @cached_property
    def layout(self) -> Layout:
        """Where each neuron's column is."""
        return layout_of(self.network, self.ffns)

    @cached_property
    def quantised(self) -> str | None:
        """The method that packed the weights; None for plain ones."""
        packed: Any = getattr(self.network.config, "quantization_config", None)
        if packed is None:
            return None
        return str(packed.get("quant_method") if isinstance(packed, dict) else getattr(packed, "quant_method", packed))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of samples of every file: tells checkpoints apart without reading them whole."""
        digest = hashlib.sha256()
        for path in sorted(set(self.files.values())):
            size = path.stat().st_size
            digest.update(f"{size}/".encode())
            with path.open("rb") as file:
                for place in range(SAMPLES):
                    file.seek(place * max(size - BLOCK, 0) // (SAMPLES - 1))
                    digest.update(file.read(BLOCK))
        return digest.hexdigest()

    @cached_property
    def dtype(self) -> str:
        """Type of the stored numbers of the first down projection."""
        names = {id(value): name for name, value in self.network.named_parameters()}
        for module in (part.down for part in self.ffns):
            for value in module.parameters():
                for one in self._sources.get(names.get(id(value), ""), ())[:1]:
                    with _opened(one.file) as file:
                        return str(file.get_slice(one.key).get_dtype())
        return "unknown"

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(path.stat().st_size for path in set(self.files.values()))

    def tensor(self, name: str) -> Tensor:
        """The parameter of that name in memory, as transformers would load it, in the type it is stored in.

        Raises:
            DamagedModelError: a tensor is missing or of another shape.
            UnsupportedModelError: its numbers are packed.
        """
        sources = self._sources.get(name, ())
        if not sources:
            raise DamagedModelError(f"{self.name} has no weight {name!r}.", "Fetch or convert the model again.")
        if sources[0].pattern is None:
            value = self._read(sources[0])
        else:
            value = self._converted(name, sources)
        wanted = self.network.get_parameter(name).shape
        if value.shape != wanted:
            raise DamagedModelError(
                f"{name} of {self.name} is {tuple(value.shape)} in its files, {tuple(wanted)} by its config.",
                "Fetch or convert the model again.",
            )
        if not value.is_floating_point() or value.dtype.itemsize < 2:
            raise UnsupportedModelError(
                f"{name} of {self.name} is stored as {str(value.dtype).removeprefix('torch.')}, which packs weights.",
                "Give a checkpoint in float16, bfloat16 or float32.",
            )
        return value

    def _converted(self, name: str, sources: Sequence[_Source]) -> Tensor:
        converters = {pattern: rule for rule in self._rules[1] for pattern in rule.source_patterns}
        rule = deepcopy(converters[str(sources[0].pattern)])
        for one in sources:
            rule.collected_tensors[str(one.pattern)].append(self._read(one))  # pyright: ignore[reportArgumentType]
        made = rule.convert(name, model=self.network, config=self.network.config)
        found = made.get(name)
        value = found[0] if isinstance(found, list) else found
        if not isinstance(value, Tensor):
            raise DamagedModelError(f"{name} of {self.name} can't be put together from its files.", "Convert it again.")
        return value

    def _read(self, one: _Source) -> Tensor:
        # Closed after each tensor: an open file stays mapped, and what was read of it would pile up.
        try:
            with _opened(one.file) as file:
                return file.get_tensor(one.key)
        except SafetensorError as error:
            raise _damaged(one.file, error) from error

    @cached_property
    def _rules(self) -> tuple[list[WeightRenaming], list[WeightConverter]]:
        rules = get_model_conversion_mapping(self.network)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        return renamings, [rule for rule in rules if isinstance(rule, WeightConverter)]

    @cached_property
    def _sources(self) -> dict[str, list[_Source]]:
        """Parameter -> the tensors that it is made of, in the order in which transformers takes them."""
        known, prefix = self.network.state_dict(), self.network.base_model_prefix
        renamings, converters = self._rules
        targets = {pattern: rule.target_patterns for rule in converters for pattern in rule.source_patterns}
        found: dict[str, list[_Source]] = defaultdict(list)
        for key in sorted(self.files, key=_natural):
            name, pattern = rename_source_key(key, renamings, converters, prefix, known)
            if name not in known and key in known:
                name, pattern = key, None
            names = [name]
            if pattern is not None:  # a rule may make several parameters of one tensor
                names = [name.replace(targets[pattern][0], target) for target in targets[pattern]]
            for each in names:
                found[each].append(_Source(self.files[key], key, pattern))
        return dict(found)


def open_checkpoint(
    model: str | Path,
    *,
    revision: str | None = None,
    ffn: str | None = None,
    trust_remote_code: bool = False,
    say: Say = lambda _: None,
) -> Checkpoint:
    """The checkpoint of a model named as for `load_model`; nothing but its config and the files' headers is read.

    Raises:
        ModelNotFoundError: no such model, or no network.
        DamagedModelError: a file is missing or cut.
        UnsupportedModelError: no decoder, no feed-forward layer that the locator knows, or no safetensors.
    """
    name, source, where = locate(str(model), say)
    try:
        with quiet_transformers():
            folder = _fetched(where, revision) if source == "hub" else Path(where)
            options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
            config = AutoConfig.from_pretrained(folder, **options)
            network = empty(name, config, **options)
    except HNeuronsError:
        raise
    except Exception as error:
        # Configs and model classes raise whatever a wrong value leads them to.
        raise explain(name, source, error) from error
    return Checkpoint(name, source, folder, revision, network, _files(name, folder), find_ffns(network, ffn))


def _fetched(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo, revision=revision, allow_patterns=NEEDED))


def _files(name: str, folder: Path) -> dict[str, Path]:
    """Tensor -> its file; every file is there and as long as its header says."""
    index = folder / INDEX
    if index.is_file():
        try:
            listed: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            found = {key: folder / Path(file).name for key, file in listed.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedModelError(f"{index} is damaged ({error}).", "Fetch the model again.") from error
        shards = sorted(set(found.values()))
        missing = [path.name for path in shards if not path.is_file()]
        if missing:
            raise DamagedModelError(
                f"{name} lacks {len(missing)} of {len(shards)} shards ({', '.join(missing[:3])}).",
                "Fetch the model again.",
            )
    elif (folder / WHOLE).is_file():
        found, shards = dict[str, Path](), [folder / WHOLE]
    else:
        raise UnsupportedModelError(
            f"{name} has no {WHOLE}.", "Weights are read from safetensors: load the model and save it again."
        )
    inside: dict[str, Path] = {}
    for path in shards:
        try:
            with _opened(path) as file:
                inside |= dict.fromkeys(file.keys(), path)
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error
    lost = sorted(key for key, path in found.items() if inside.get(key) != path)
    if lost:
        raise DamagedModelError(
            f"{name}: {found[lost[0]].name} lacks {lost[0]}, which the index names.", "Fetch the model again."
        )
    return inside


def _opened(path: Path) -> Any:
    return safe_open(os.fspath(path), framework="pt", device="cpu")


def _damaged(path: Path, error: Exception) -> DamagedModelError:
    return DamagedModelError(f"{path.name} is damaged ({' '.join(str(error).split())[:120]}).", "Fetch it again.")


def _natural(key: str) -> list[tuple[int, int, str]]:
    """Sorts experts 2 and 10 as numbers."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in key.split(".")]
