"""llama.cpp's server, in this process."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Server:
    url: str

    def post(self, path: str, **body: Any) -> Any:
        head = {"content-type": "application/json"}
        asked = urllib.request.Request(self.url + path, json.dumps(body).encode(), head)
        with urllib.request.urlopen(asked, timeout=60) as reply:
            return json.load(reply)


@contextmanager
def serving(file: Path, adapter: Path | None = None) -> Generator[Server]:
    """A GGUF file, computed in float32 as far as it is; an adapter is off unless a request turns it on."""
    import xllamacpp as llama

    params: Any = llama.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel, params.port, params.cpuparams.n_threads = 2048, 4, 0, 1
    params.warmup, params.verbosity = False, -1
    params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if adapter:
        loaded: Any = llama.CommonAdapterLoraInfo()
        loaded.path, loaded.scale = str(adapter), 0.0
        params.lora_adapters = [loaded]
    running: Any = llama.Server(params)
    yield Server(running.listening_address)
    del running
