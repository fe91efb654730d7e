"""The transformers engine: batches, one prefill a prompt, finished rows leave the batch.

What is deterministic: the random numbers of a response depend on (seed, question id, sample number) alone. Logits
depend on the batch by rounding only, so in another batch size a token changes only where a random number falls
within rounding of a boundary between two tokens. With the same batches, threads and machine, runs are identical.

Rows of several alphas share a batch. The engine turns no neurons itself: before a forward pass it tells `on_rows` the
alpha of each of its rows, in the thread that makes the pass.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from hneurons.answers.decoding import close_thinking, draw, part_rows
from hneurons.answers.engine import Request, Sampling, uniforms
from hneurons.answers.kvcache import aligned, allows_gaps, fork, is_recurrent, merged, new_cache, padded
from hneurons.answers.prefill import Prefilled, Prompt, forward, prefill
from hneurons.answers.thinking import MARKS, Budget
from hneurons.answers.transcript import Transcript
from hneurons.errors import NumericError, UnsupportedModelError, UsageError
from hneurons.models.load import StudyModel
from hneurons.parallel import ordered, workers
from hneurons.types import Response

FEW_ROWS = 64
"""Prompts that are sampled in one batch even if they were prefilled in several."""


def usual_batch(device: torch.device) -> int:
    """Prompts that are prefilled together: a CPU is busy with few, spread over its workers; a GPU wants many."""
    return 64 if device.type == "cpu" else 256


class HFEngine:
    """Samples from a transformers model in the process.

    Args:
        model: the model under study.
        prompts_a_batch: prompts prefilled together.
        max_rows: responses sampled together.
        on_rows: gets the alpha of each row before a forward pass, in its thread: sets the dial of `scale`.
    """

    def __init__(
        self,
        model: StudyModel,
        *,
        prompts_a_batch: int | None = None,
        max_rows: int = 256,
        on_rows: Callable[[list[float]], None] | None = None,
    ) -> None:
        self.model = model
        self.on_rows = on_rows
        self.prompts_a_batch = prompts_a_batch or usual_batch(model.device)
        self.max_rows = max_rows
        self._transcript = Transcript(model)
        self._prefilled: dict[Prompt, Prefilled] = {}
        cache = new_cache(model.model.config)
        self._recurrent, self._merges = is_recurrent(cache), allows_gaps(model.model.config, cache)
        self._checked = False

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        """One response a request. The prefill of the last call is used again when it covers all prompts.

        Raises:
            NumericError: the model's logits are NaN.
            UsageError: an alpha other than 1, and no `on_rows` to turn it.
        """
        if self.on_rows is None and any(request.alpha != 1.0 for request in requests):
            raise UsageError("This engine turns no neurons.", "Make it with on_rows, inside a block of `scale`.")
        prompts = self.prepare(requests)
        responses: dict[int, Response] = {}
        alone = self.model.is_moved
        tasks = self._tasks(prompts)
        # After an error or an interrupt nobody wants what the others decode, which can take minutes.
        over, failed = threading.Event(), list[BaseException]()

        def decode_part(part: list[int]) -> list[Response]:
            try:
                return self._decode([prompts[place] for place in part], [requests[p] for p in part], sampling, over)
            except BaseException as error:
                failed.append(error)
                over.set()
                raise

        try:
            with workers(self.model.device, alone=alone, tasks=len(tasks)) as pool:
                try:
                    for part, made in zip(tasks, ordered(pool, decode_part, tasks), strict=True):
                        responses.update(zip(part, made, strict=True))
                except CancelledError:
                    raise failed[0] from None
                finally:
                    over.set()
        finally:
            failed.clear()  # an error's traceback holds this list, and the tensors of the failed pass
        return [responses[position] for position in range(len(requests))]

    def prepare(self, requests: Sequence[Request]) -> list[Prompt]:
        """The prompt of each request, prefilled; together with what the last call prefilled if that covers them all."""
        prompts: list[Prompt] = [(request.alpha, self._transcript.prompt(request)) for request in requests]
        if self._recurrent and prompts and not self._checked:
            self._check_state(prompts[0][1])
        if any(prompt not in self._prefilled for prompt in prompts):
            self._prefilled = {}  # free the old ones before the new ones are made
            groups = self._groups(list(dict.fromkeys(prompts)))
            with workers(self.model.device, alone=self.model.is_moved, tasks=len(groups)) as pool:
                for made in ordered(pool, self._prefill, groups, ahead=len(groups)):
                    self._prefilled.update(dict.fromkeys(made.rows, made))
        return prompts

    def _tasks(self, prompts: list[Prompt]) -> list[list[int]]:
        """Positions of the requests that are sampled together.

        A step with few rows takes as long as its weights take to be read, so the few that are left in later rounds go
        together, whichever batch their prompts were in.
        """
        by_batch: dict[int, list[int]] = {}
        for position, prompt in enumerate(prompts):
            by_batch.setdefault(id(self._prefilled[prompt]), []).append(position)
        if self._merges and len({*prompts}) <= FEW_ROWS:
            by_batch = {0: [position for part in by_batch.values() for position in part]}
        return [
            part[start : start + self.max_rows]
            for part in by_batch.values()
            for start in range(0, len(part), self.max_rows)
        ]

    def _groups(self, prompts: list[Prompt]) -> list[list[Prompt]]:
        """Prompts that are prefilled together, of similar length; of the same one where a recurrent state would run
        through padding."""
        kinds: dict[int, list[Prompt]] = {}
        for prompt in sorted(prompts, key=lambda prompt: len(prompt[1])):
            kinds.setdefault(len(prompt[1]) if self._recurrent else 0, []).append(prompt)
        size = self.prompts_a_batch
        return [kind[i : i + size] for kind in kinds.values() for i in range(0, len(kind), size)]

    @torch.inference_mode()
    def _check_state(self, prompt: tuple[int, ...]) -> None:
        """Refuse, once, a model that keeps part of its state outside of the cache: its rows would get mixed up."""
        if len(prompt) < 2:
            return
        ids, mask = padded([prompt], self.model.device)
        positions = mask.cumsum(-1) - 1
        self.turn([1.0])
        whole = forward(self.model, ids, mask, positions, new_cache(self.model.model.config))
        cache = new_cache(self.model.model.config)
        forward(self.model, ids[:, :-1], mask[:, :-1], positions[:, :-1], cache)
        twice = torch.zeros(2, dtype=torch.long, device=ids.device)
        self.turn([1.0, 1.0])
        last = forward(self.model, ids[twice, -1:], mask[twice], positions[twice, -1:], fork(cache, twice))
        tolerance = 1e-3 if self.model.model.dtype in (torch.float32, torch.float64) else 0.1
        if not float((last - whole).norm()) <= tolerance * float(whole.norm()) * 2:
            raise UnsupportedModelError(
                f"{type(self.model.model).__name__} keeps its recurrent state where it can't be copied for several "
                "samples of one prompt.",
                "Sample its responses with another engine.",
            )
        self._checked = True

    def turn(self, alphas: list[float]) -> None:
        """Set the dial for the rows of this thread's next forward passes."""
        if self.on_rows is not None:
            self.on_rows(alphas)

    def _prefill(self, prompts: list[Prompt]) -> Prefilled:
        return prefill(self.model, prompts, self.turn)

    @torch.inference_mode()
    def _decode(
        self, prompts: list[Prompt], requests: Sequence[Request], sampling: Sampling, over: threading.Event
    ) -> list[Response]:
        """Responses to `requests`. Samples of one prompt share a row of the batch until they draw different tokens.

        Once `over` is set nobody wants them any more.
        """
        place, cache, mask, logits = self._start(list(dict.fromkeys(prompts)))
        random = torch.from_numpy(np.stack([uniforms(sampling, request) for request in requests]))
        budgets = self._budgets(requests, sampling)
        transcript, ends = self._transcript, self._transcript.ends
        tokens: list[list[int]] = [[] for _ in requests]
        logprobs: list[list[float]] = [[] for _ in requests]
        reasons = ["length"] * len(requests)
        alive = list(range(len(requests)))  # the requests that go on
        rows = [place[prompt] for prompt in prompts]  # and the row of the batch each of them is in
        turned: list[float] = []
        for step in range(sampling.steps):
            if bool(torch.isnan(logits).any()):
                raise NumericError("The model's logits are NaN.", "Load the model with --dtype float32.")
            where = torch.tensor(rows, device=logits.device)
            chosen, logprob = draw(logits, random[alive, step].to(logits.device), sampling, where)
            if budgets:
                own = [budgets[request] for request in alive]
                chosen, logprob = close_thinking(own, logits, where, chosen, logprob)
            drawn = chosen.tolist()
            running: list[bool] = []
            for request, token, value in zip(alive, drawn, logprob.tolist(), strict=True):
                if transcript.ends_line(token):
                    reasons[request] = "stop"
                    running.append(False)
                    continue
                tokens[request].append(token)
                logprobs[request].append(value)
                if token in ends:
                    reasons[request] = "stop"
                elif budgets:
                    budgets[request].add(transcript.raw_piece(token))
                running.append(
                    token not in ends and not (budgets and budgets[request].is_full(sampling.max_new_tokens))
                )
            going = [(r, row, t) for r, row, t, on in zip(alive, rows, drawn, running, strict=True) if on]
            if not going or step + 1 == sampling.steps:
                break
            if over.is_set():
                raise CancelledError
            alive = [request for request, _, _ in going]
            rows, fed, mask = part_rows([(row, token) for _, row, token in going], cache, mask)
            alphas = [1.0] * len(mask)
            for request, row in zip(alive, rows, strict=True):
                alphas[row] = requests[request].alpha
            if alphas != turned:
                turned = alphas
                self.turn(turned)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)
            logits = forward(self.model, fed, mask, mask.sum(-1, keepdim=True) - 1, cache)
        return [transcript.response(request, tokens[i], logprobs[i], reasons[i]) for i, request in enumerate(requests)]

    def _start(self, prompts: list[Prompt]) -> tuple[dict[Prompt, int], DynamicCache, Tensor, Tensor]:
        """The row of each prompt, and cache, mask and logits of those rows, from wherever they were prefilled."""
        batches: dict[int, tuple[Prefilled, list[Prompt]]] = {}
        for prompt in prompts:
            made = self._prefilled[prompt]
            batches.setdefault(id(made), (made, []))[1].append(prompt)
        place = {prompt: row for row, prompt in enumerate(p for _, own in batches.values() for p in own)}
        picks = [
            (made, torch.tensor([made.rows[prompt] for prompt in own], device=made.mask.device))
            for made, own in batches.values()
        ]
        logits = torch.cat([made.logits[rows] for made, rows in picks])
        if len(picks) == 1:
            made, rows = picks[0]
            return place, fork(made.cache, rows), made.mask[rows], logits
        mask = aligned([made.mask[rows] for made, rows in picks])
        return place, merged([(made.cache, rows) for made, rows in picks], mask.shape[1]), mask, logits

    def _budgets(self, requests: Sequence[Request], sampling: Sampling) -> list[Budget]:
        if not sampling.thinking:
            return []
        force = {marks: self.model.tokenizer.encode(marks.force, add_special_tokens=False) for marks in MARKS}
        return [Budget(sampling.thinking, force, self._transcript.opened(request)) for request in requests]
