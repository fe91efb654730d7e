"""What a model knows of its own response besides the neurons: hidden states, log-probabilities and entropies.

One teacher-forced pass an example. The LM head runs on the tokens that predict the response only, inside the model's
own forward, so that whatever a model does to its logits (a cap, a scale) is done here too.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hneurons.errors import NumericError, RunError, UnsupportedModelError
from hneurons.models.load import StudyModel
from hneurons.neurons.cett import Passage, batches, usual_tokens
from hneurons.parallel import ordered, workers
from hneurons.runfolder import Journal, dumps, storage_errors, write_text
from hneurons.types import Region

Floats = NDArray[np.float64]
MOST_LOGITS = 1 << 26
"""Logits that a batch may have, vocabulary times response tokens: 256 MiB in float32. One example may have more."""
INSTEAD = "Compare without hidden states and entropies."
AT_ONCE = 256  # tokens whose logits are widened and normalised together


@dataclass(frozen=True)
class Readout:
    """Hidden states and token statistics of examples, in the order they were given."""

    names: tuple[str, ...]
    """What the passages are called."""
    hidden: NDArray[np.float32]
    """Mean over the answer tokens of the residual stream, before the first layer and after each: (examples, layers + 1,
    hidden), the `hidden_states` of transformers, whose last is after the final norm in most models."""
    logprobs: tuple[Floats, ...]
    """Of each example, natural-log probability of each response token at temperature 1: (tokens,). The thinking block
    is no part of the response."""
    entropies: tuple[Floats, ...]
    """Of each example, entropy in nats of the distribution that each response token was drawn from: (tokens,)."""
    answers: tuple[tuple[int, int], ...]
    """Of each example, its answer tokens as a half-open range of those."""

    def __post_init__(self) -> None:
        assert self.hidden.ndim == 3
        assert len(self.names) == len(self.hidden) == len(self.logprobs) == len(self.entropies) == len(self.answers)

    @property
    def mean_logprob(self) -> Floats:
        """Mean log-probability of the response tokens: (examples,)."""
        return np.array([values.mean() for values in self.logprobs])

    @property
    def min_logprob(self) -> Floats:
        """Log-probability of the least likely response token: (examples,)."""
        return np.array([values.min() for values in self.logprobs])

    @property
    def answer_mean_logprob(self) -> Floats:
        """Mean log-probability of the answer tokens: (examples,)."""
        return np.array([values[slice(*a)].mean() for values, a in zip(self.logprobs, self.answers, strict=True)])

    @property
    def mean_entropy(self) -> Floats:
        """Mean entropy over the response tokens, in nats: (examples,)."""
        return np.array([values.mean() for values in self.entropies])

    @property
    def max_entropy(self) -> Floats:
        """Entropy at the most open response token, in nats: (examples,)."""
        return np.array([values.max() for values in self.entropies])

    def save(self, folder: Path) -> None:
        """Write `hidden.npy`, then `readout.jsonl` with a line an example; without the second file nothing is read."""
        rows = [
            {"name": name, "answer": list(answer), "logprobs": logprobs.tolist(), "entropies": entropies.tolist()}
            for name, answer, logprobs, entropies in zip(
                self.names, self.answers, self.logprobs, self.entropies, strict=True
            )
        ]
        temporary = folder / f".hidden.npy.{os.getpid()}.tmp"
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # A kill between the two files must not leave new states beside old lines.
            (folder / "readout.jsonl").unlink(missing_ok=True)
            try:
                with temporary.open("wb") as file:
                    np.save(file, self.hidden, allow_pickle=False)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(folder / "hidden.npy")
            finally:
                temporary.unlink(missing_ok=True)
        write_text(folder / "readout.jsonl", "".join(dumps(row) + "\n" for row in rows))

    @classmethod
    def load(cls, folder: Path) -> Readout:
        """What `save` wrote; hidden states are mapped, not read.

        Raises:
            RunError: a file is missing or damaged.
        """
        remedy = f"Delete {folder} and run the same command again."
        if not (folder / "readout.jsonl").exists():
            raise RunError(f"{folder} holds no readout.", remedy)
        rows = Journal(folder / "readout.jsonl").read()
        try:
            hidden = np.load(folder / "hidden.npy", mmap_mode="r", allow_pickle=False)
            if hidden.ndim != 3 or len(hidden) != len(rows) or hidden.dtype != np.float32:
                raise ValueError("hidden.npy and readout.jsonl don't fit together")
            return cls(
                tuple(str(row["name"]) for row in rows),
                hidden,
                tuple(np.array(row["logprobs"], dtype=np.float64) for row in rows),
                tuple(np.array(row["entropies"], dtype=np.float64) for row in rows),
                tuple((int(row["answer"][0]), int(row["answer"][1])) for row in rows),
            )
        except (OSError, ValueError, EOFError, KeyError, IndexError, TypeError) as error:
            raise RunError(f"The readout in {folder} is damaged ({error}).", remedy) from error


def read_out(
    model: StudyModel,
    passages: Sequence[Passage],
    batch_tokens: int | None = None,
    tick: Callable[[int], None] = lambda _: None,
) -> Readout:
    """Hidden states and token statistics of each passage, by one teacher-forced pass in padded batches.

    Args:
        model: the model under study.
        passages: prompts with responses; each has a prompt and an answer outside the thinking block.
        batch_tokens: tokens of a batch, padding included; as many as suit the device by default.
        tick: called with the number of passages that were read.

    Raises:
        NumericError: a hidden state or a log-probability is NaN or infinite; names the passage.
        UnsupportedModelError: the model has no LM head, or doesn't hand out its hidden states.
    """
    for passage in passages:
        said = len(passage.ids) - passage.prompt_tokens
        assert passage.prompt_tokens > 0
        assert passage.thinking <= passage.answer[0] < passage.answer[1] <= said
    reader = _Reader(model)
    plan = _plan(passages, batch_tokens or usual_tokens(model.device), MOST_LOGITS // reader.vocabulary)
    found: dict[int, tuple[NDArray[np.float32], Floats, Floats]] = {}
    with reader, workers(model.device, alone=model.is_moved) as pool:
        groups = [[passages[row] for row in rows] for rows in plan]
        for rows, parts in zip(plan, ordered(pool, reader.forward, groups), strict=True):
            found.update(zip(rows, parts, strict=True))
            tick(len(rows))
    ordered_parts = [found[row] for row in range(len(passages))]
    return Readout(
        tuple(passage.name for passage in passages),
        np.stack([hidden for hidden, _, _ in ordered_parts]) if ordered_parts else np.zeros((0, 0, 0), np.float32),
        tuple(logprobs for _, logprobs, _ in ordered_parts),
        tuple(entropies for _, _, entropies in ordered_parts),
        tuple((passage.answer[0] - passage.thinking, passage.answer[1] - passage.thinking) for passage in passages),
    )


def _plan(passages: Sequence[Passage], batch_tokens: int, said_tokens: int) -> list[list[int]]:
    """Batches of similar length, cut again where their response tokens would be more than `said_tokens`."""
    plan: list[list[int]] = []
    for rows in batches([len(passage.ids) for passage in passages], batch_tokens):
        total = said_tokens + 1
        for row in rows:
            said = int(passages[row].mask(Region.RESPONSE).sum())
            total += said
            if total > said_tokens:
                plan.append([])
                total = said
            plan[-1].append(row)
    return plan


class _Reader:
    """The model with a hook that lets its LM head see only the tokens that predict the response."""

    def __init__(self, model: StudyModel) -> None:
        self.model = model
        head = model.model.get_output_embeddings()
        if head is None:
            raise UnsupportedModelError(f"{model.name} has no LM head.", INSTEAD)
        self.head = head
        config: Any = model.model.config.get_text_config()
        self.vocabulary = int(config.vocab_size)
        # Gemma 3n keeps several residual streams and predicts from one.
        self.stream = int(getattr(config, "altup_active_idx", 0))
        self._running = threading.local()

    def __enter__(self) -> _Reader:
        self._handle = self.head.register_forward_pre_hook(self._only_needed)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _only_needed(self, _: object, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        needed: Tensor | None = getattr(self._running, "needed", None)
        if needed is None:  # somebody else's forward pass
            return None
        hidden = inputs[0]
        return (hidden[needed.to(hidden.device)][None], *inputs[1:])

    @torch.inference_mode()
    def forward(self, passages: Sequence[Passage]) -> list[tuple[NDArray[np.float32], Floats, Floats]]:
        """Of each passage: hidden states (layers + 1, hidden), log-probabilities and entropies (response tokens,)."""
        device = self.model.device
        longest = max(len(passage.ids) for passage in passages)
        pad = self.model.tokenizer.pad_token_id
        ids = torch.full((len(passages), longest), pad if isinstance(pad, int) else 0)
        mask, response, answer = (torch.zeros(len(passages), longest, dtype=torch.bool) for _ in range(3))
        for row, passage in enumerate(passages):
            length = len(passage.ids)
            ids[row, :length] = torch.tensor(passage.ids)
            mask[row, :length] = True
            response[row, :length] = torch.from_numpy(passage.mask(Region.RESPONSE))
            answer[row, :length] = torch.from_numpy(passage.mask(Region.ANSWER))
        self._running.needed = torch.roll(response, -1, dims=1)  # each token is predicted at the one before it
        output: Any = self.model.model(
            input_ids=ids.to(device), attention_mask=mask.long().to(device), use_cache=False, output_hidden_states=True
        )
        if not output.hidden_states:
            raise UnsupportedModelError(f"{self.model.name} doesn't hand out its hidden states.", INSTEAD)
        hidden = torch.stack([self._mean(state, answer) for state in output.hidden_states], dim=1)
        logprobs, entropies = _statistics(output.logits[0], ids[response])
        counts = response.sum(dim=1).tolist()
        parts = list(zip(hidden, logprobs.split(counts), entropies.split(counts), strict=True))
        for passage, part in zip(passages, parts, strict=True):
            if not all(bool(torch.isfinite(values).all()) for values in part):
                raise NumericError(
                    f"NaN or infinite hidden state or log-probability on example {passage.name!r}.",
                    "Load the model with --dtype float32, or leave that question out.",
                )
        # Rounded as the run folder's other log-probabilities, so that what is read equals what was saved.
        return [(states.numpy(), p.double().numpy().round(6), e.double().numpy().round(6)) for states, p, e in parts]

    def _mean(self, state: Tensor, answer: Tensor) -> Tensor:
        """Mean of one layer's state over the answer tokens: (passages, hidden), float32, on the CPU."""
        state = state[self.stream] if state.dim() == 4 else state
        answer = answer.to(state.device)
        # Padding may hold anything, NaN included.
        inside = torch.where(answer[..., None], state, torch.zeros((), dtype=state.dtype, device=state.device))
        return (inside.float().sum(dim=1) / answer.sum(dim=1, keepdim=True)).cpu()


def _statistics(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each token and entropy of its distribution: logits (tokens, vocabulary) -> (tokens,) twice."""
    assert len(logits) == len(tokens)
    logprobs: list[Tensor] = []
    entropies: list[Tensor] = []
    for part, chosen in zip(logits.split(AT_ONCE), tokens.to(logits.device).split(AT_ONCE), strict=True):
        logp = torch.log_softmax(part.float(), dim=-1)
        logprobs.append(logp.gather(-1, chosen[:, None])[:, 0].cpu())
        entropies.append(torch.special.entr(logp.exp()).sum(dim=-1).cpu())
    return torch.cat(logprobs), torch.cat(entropies)
