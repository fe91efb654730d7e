"""What a driver can call in an engine's workers, by `worker_extension_cls` and `collective_rpc`.

Answers are bytes or text: a tensor would come back as nested lists. A refusal is an answer too, since an exception
would reach the driver without its type.
"""

from __future__ import annotations

import json
from typing import Any

from hneurons.errors import HNeuronsError
from hneurons.layout import Layout
from hneurons.vllm.locate import find_downs
from hneurons.vllm.pooling import Pooler
from hneurons.vllm.rows import Passes


class Extension:
    """Mixed into vLLM's worker class, which has the `model_runner`."""

    def hneurons_measure(self, layout: str) -> str:
        """Hook the down projections, once; JSON: null, or [problem, remedy]."""
        worker: Any = self
        told = json.loads(layout)
        try:
            downs = find_downs(worker.model_runner.model, Layout(**{name: tuple(told[name]) for name in told}))
        except HNeuronsError as error:
            return json.dumps([error.problem, error.remedy])
        if getattr(worker, "_hneurons_pooler", None) is None:
            pooler = Pooler(downs)
            Passes(worker.model_runner, pooler.begin, pooler.end)
            worker._hneurons_pooler = pooler
        return json.dumps(None)

    def hneurons_pooled(self, numbers: list[int]) -> bytes:
        """`Pooler.take`."""
        worker: Any = self
        return worker._hneurons_pooler.take(numbers)
