"""What `identify` would cost on Llama-3.3-70B and eight GPUs, on paper: an estimate, never measured on a GPU.

A pass of many tokens (a prompt, a passage) is bounded by arithmetic, 2 operations a parameter and token. A step of
sampling writes one token of each row of its batch and reads all weights for that, so it is bounded by memory, unless
the batch is so large that arithmetic takes longer. What bounds each of them is in `Machine`; how many tokens a question
takes is measured (benchmarks/cost.py), on a smaller model that writes longer answers than it was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Model card and config.json of meta-llama/Llama-3.3-70B-Instruct.
PARAMETERS, LAYERS, KV_HEADS, HEAD_SIZE = 70.6e9, 80, 8, 128
BYTES = 2  # bfloat16
EXAMPLES = 1000
"""Of each class: the paper's training set."""
ROWS = 128
"""Rows of a batch on average: 256 at its start on a GPU, and they leave as they end."""
SHARES = ((0.125, 0.125), (0.40, 0.10), (0.25, 0.05))
"""Shares of the questions that are consistently right, and consistently wrong: a quarter in all, as in the target for
sampling, half and half; and two guesses at a model that knows more and seldom errs ten times out of ten."""


@dataclass(frozen=True)
class Machine:
    """Eight NVIDIA H100 SXM, and how many of them work at a time."""

    at_work: int
    gpus: int = 8
    # NVIDIA H100 Tensor Core GPU data sheet: dense bfloat16, and HBM3.
    operations: float = 989e12
    bytes: float = 3.35e12
    # Assumed. 0.38 to 0.43 were reached in training (Llama Team 2024, "The Llama 3 Herd of Models", table 4).
    share_of_operations: float = 0.4
    # Assumed. About what well-made servers reach in decoding; plain transformers may stay below.
    share_of_bytes: float = 0.6

    def whole_pass(self, tokens: float) -> float:
        """Seconds for passes over so many tokens in large batches."""
        return 2 * PARAMETERS * tokens / (self.operations * self.share_of_operations * self.at_work)

    def step(self, rows: float, context: float) -> float:
        """Seconds to write one token in each row of a batch, after `context` tokens."""
        read = PARAMETERS * BYTES + rows * context * 2 * LAYERS * KV_HEADS * HEAD_SIZE * BYTES
        return max(read / (self.bytes * self.share_of_bytes * self.at_work), self.whole_pass(rows))


# accelerate's `device_map` puts the layers on all GPUs and works on one at a time (its guide to big models, "Limits").
# All eight at a time is what servers do, every layer cut in eight; what the GPUs must tell one another isn't counted.
HERE, ALL = Machine(at_work=1), Machine(at_work=8)


def hours(machine: Machine, tokens: dict[str, float], right: float, wrong: float) -> dict[str, float]:
    """GPU hours of sampling and of extraction, and the number of questions, for shares that are right and wrong.

    Args:
        machine: what does it.
        tokens: as cost.py measures them: `prompt`, `response`, and generated for a `consistent` and a `mixed` question.
        right: share of the questions that are consistently right.
        wrong: share that are consistently wrong.
    """
    # Until the rarer class is full. That the fuller one needs no more samples then is left out.
    questions = EXAMPLES / min(right, wrong)
    consistent = right + wrong
    generated = questions * (consistent * tokens["consistent"] + (1 - consistent) * tokens["mixed"])
    length = tokens["prompt"] + tokens["response"]
    sampling = machine.whole_pass(questions * tokens["prompt"]) + generated / ROWS * machine.step(ROWS, length)
    # Two passes over the kept examples: contributions, and hidden states for the comparison with other predictors.
    extraction = machine.whole_pass(2 * 2 * EXAMPLES * length)
    # All samples of every question, one row at a time: the public code's way.
    steps = questions * 10 * tokens["response"]
    one_by_one = machine.whole_pass(steps / tokens["response"] * tokens["prompt"]) + steps * machine.step(1, length)
    of_gpus = machine.gpus / 3600
    return {
        "questions": questions,
        "sampling": sampling * of_gpus,
        "extraction": extraction * of_gpus,
        "one by one": one_by_one * of_gpus,
    }


def table(tokens: dict[str, Any]) -> str:
    """Markdown: GPU hours for several shares of consistent questions."""
    lines = [
        "*An estimate on paper, never measured on a GPU:* GPU hours for 1,000 + 1,000 examples, Llama-3.3-70B, 8 H100.",
        "",
        "| consistently right, wrong | questions | GPUs at work | sampling | extraction | all samples, one by one |",
        "|---|---|---|---|---|---|",
    ]
    for right, wrong in SHARES:
        for machine in (HERE, ALL):
            found = hours(machine, tokens, right, wrong)
            lines.append(
                f"| {100 * right:g} %, {100 * wrong:g} % | {found['questions']:,.0f} | {machine.at_work} of 8 "
                f"| {found['sampling']:.1f} | {found['extraction']:.2f} | {found['one by one']:,.0f} |"
            )
    lines += [
        "",
        f"Tokens measured here: {tokens['prompt']:.0f} a prompt, {tokens['response']:.0f} a response, "
        f"{tokens['consistent']:.0f} generated for a consistent question and {tokens['mixed']:.0f} for another "
        f"({tokens['questions']} starter questions, {tokens['consistent of them']} of them consistent, "
        f"{tokens['model']} at temperature 1).",
    ]
    return "\n".join(lines)
