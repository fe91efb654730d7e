import queue
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from hneurons.answers.text import decode
from hneurons.errors import BusyError, ClosedError, PromptTooLongError, UsageError
from hneurons.live.jobs import Done, Event, Failed, Job, Message, Piece, Policy
from hneurons.live.service import BatchService, events
from hneurons.models.load import StudyModel
from hneurons.neurons.scaling import scale
from test_tokens import NEURONS, card_of

CARD = [(layer, index, 0.1) for layer in range(3) for index in range(0, 40, 2)] + [(2, 47, -2.5)]
QUESTIONS = ["Who?", "Where is Paris? " * 3, "What is the capital of France?", "When?", "Why is that so, then?"]


def service(kind: str = "llama", *, intercept: float = -0.7, **options: Any) -> BatchService:
    # In double precision the size of the batch doesn't move a token.
    model = tiny.study(kind, double=True)
    return BatchService(model, card_of(model, CARD, intercept), **options)


def ask(text: str, **options: Any) -> Job:
    return Job((Message("user", text),), **{"max_tokens": 8, "seed": 5, **options})


def run(made: BatchService, jobs: Sequence[Job]) -> list[list[Event]]:
    """What becomes of jobs that are handed in together."""
    heard: list[list[Event]] = [[] for _ in jobs]
    over: queue.SimpleQueue[int] = queue.SimpleQueue()

    def listener(number: int) -> Any:
        def hear(event: Event) -> None:
            heard[number].append(event)
            if isinstance(event, Done | Failed):
                over.put(number)

        return hear

    for number, job in enumerate(jobs):
        made.submit(job, listener(number))
    for _ in jobs:
        over.get(timeout=60)
    return heard


def ids(heard: list[Event]) -> list[int]:
    return [token.id for event in heard if isinstance(event, Piece) for token in event.tokens]


def done(heard: list[Event]) -> Done:
    assert isinstance(heard[-1], Done)
    return heard[-1]


def greedy(model: StudyModel, card: Any, job: Job) -> list[int]:
    """What transformers' own generate says, with the neurons turned by `scale`."""
    assert isinstance(job.prompt, tuple)
    asked = torch.tensor([model.encode(model.chat([{"role": "user", "content": job.prompt[-1].content}]))])
    with scale(model, card, job.alpha):
        out = model.model.generate(asked, max_new_tokens=job.max_tokens, do_sample=False)
    said = out[0, asked.shape[1] :].tolist()
    return said[:-1] if said[-1] == 2 else said


def logprobs(model: StudyModel, card: Any, job: Job, said: list[int]) -> list[float]:
    """Of these tokens, in one pass over the whole text."""
    assert isinstance(job.prompt, tuple)
    asked = model.encode(model.chat([{"role": "user", "content": job.prompt[-1].content}]))
    with scale(model, card, job.alpha), torch.inference_mode():
        logits = model.model(torch.tensor([[*asked, *said]])).logits[0, len(asked) - 1 : -1].float()
    return torch.log_softmax(logits, dim=-1)[range(len(said)), said].tolist()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "gemma3", "falcon", "mixtral"])
def test_rows_of_several_alphas_say_what_each_says_alone(kind: str):
    jobs = [
        ask(question, alpha=alpha, temperature=0.0, max_tokens=4 + 3 * number)
        for number, question in enumerate(QUESTIONS)
        for alpha in (1.0, 0.0, 30.0)
    ]
    if kind == "mixtral":
        model = tiny.study(kind)  # its experts know no double precision
        keys = ("id", "architecture", "layers", "width", "neurons", "experts", "shared")
        own = {key: value for key, value in model.describe().items() if key in keys}
        base = card_of(tiny.study(), []).model_dump()
        neurons = [{"layer": 0, "expert": e, "index": i, "weight": 2.0} for e in range(4) for i in range(20)]
        card: Any = type(card_of(tiny.study(), [])).model_validate({**base, "model": own, "neurons": neurons})
        made = BatchService(model, card, max_batch=4)
    else:
        made = service(kind, max_batch=4)
    with made:
        heard = run(made, jobs)
    said = [ids(each) for each in heard]
    assert said == [greedy(made.monitor.model, made.card, job) for job in jobs]
    for job, each in zip(jobs, heard, strict=True):
        expected = logprobs(made.monitor.model, made.card, job, ids(each))
        own = [token.logprob for event in each if isinstance(event, Piece) for token in event.tokens]
        np.testing.assert_allclose(own, expected, atol=1e-4)
    firsts = [each[0].tokens[0].logprob for each in heard if isinstance(each[0], Piece) and each[0].tokens]
    assert len(set(firsts)) > len(QUESTIONS)  # alpha does change something
    assert {done(each).alpha for each in heard} == {0.0, 1.0, 30.0}


def test_a_response_does_not_depend_on_who_shares_the_batch():
    jobs = [ask(q, seed=n, temperature=0.5 + n / 4, top_p=0.9, top_k=(0, 5)[n % 2]) for n, q in enumerate(QUESTIONS)]
    with service() as made:
        together = [ids(each) for each in run(made, jobs * 2)]
        alone = [ids(run(made, [job])[0]) for job in jobs]
    assert together == alone * 2
    with service() as made:
        other = [ids(each) for each in run(made, [ask(q, seed=77 + n) for n, q in enumerate(QUESTIONS)])]
    assert other != alone


def test_jobs_join_while_others_are_being_made():
    with service() as made:
        heard: list[Event] = []
        started, late = threading.Event(), queue.SimpleQueue[Event]()

        def hear(event: Event) -> None:
            heard.append(event)
            started.set()

        made.submit(ask("Who?", max_tokens=200, seed=1), hear)
        assert started.wait(30)
        made.submit(ask("When?", max_tokens=3), late.put)
        while not isinstance(late.get(timeout=30), Done):
            pass
        assert not any(isinstance(event, Done) for event in heard)
    assert isinstance(heard[-1], Done)  # closing lets those begun finish


def test_log_probabilities_are_those_of_the_model():
    with service() as made:
        job = ask("Where is Paris?", temperature=1.3, top_p=0.8, top_logprobs=3)
        heard = run(made, [job])[0]
        model = made.monitor.model
        asked = model.encode(model.chat([{"role": "user", "content": "Where is Paris?"}]))
        full = torch.tensor([[*asked, *ids(heard)]])
        with torch.inference_mode():
            logits = model.model(full).logits[0, len(asked) - 1 : -1].float()
    expected = torch.log_softmax(logits, dim=-1)
    tokens = [token for event in heard if isinstance(event, Piece) for token in event.tokens]
    for row, token in zip(expected, tokens, strict=True):
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)
        values, order = row.topk(3)
        assert [entry[0] for entry in token.top] == order.tolist()
        np.testing.assert_allclose([entry[2] for entry in token.top], values, atol=1e-4)
        assert token.text == decode(model, [token.id])


def test_pieces_make_up_the_text_and_usage_counts():
    with service() as made:
        for heard in run(made, [ask(q, seed=n) for n, q in enumerate(QUESTIONS)]):
            end = done(heard)
            assert "".join(event.text for event in heard if isinstance(event, Piece)) == end.text
            assert end.text == decode(made.monitor.model, ids(heard))
            extra = end.completion_tokens - len(ids(heard))
            assert extra == (1 if end.reason == "stop" else 0)  # the end of turn is a token too
            assert end.reading is not None
            assert len(end.reading.scores) == len(ids(heard))


def test_a_stop_string_ends_the_response_and_is_not_part_of_it():
    with service() as made:
        free = done(run(made, [ask("Who?", max_tokens=30, seed=8)])[0]).text
        word = free[len(free) // 2 :][:2]
        heard = run(made, [ask("Who?", max_tokens=30, seed=8, stop=(word, "never said"))])[0]
    end = done(heard)
    assert end.reason == "stop"
    assert end.text == free[: free.find(word)]
    assert end.reading is not None
    assert len(end.reading.scores) <= len(ids(heard))


def test_a_text_is_gone_on_from_as_it_is():
    with service() as made:
        end = done(run(made, [Job("The capital of France is", max_tokens=3, temperature=0.0)])[0])
        model = made.monitor.model
        asked = torch.tensor([model.tokenizer.encode("The capital of France is", add_special_tokens=False)])
        out = model.model.generate(asked, max_new_tokens=3, do_sample=False)
    assert end.text == decode(model, out[0, asked.shape[1] :].tolist())
    assert end.prompt_tokens == asked.shape[1]


def test_without_the_monitor_nothing_is_read():
    with service() as made:
        heard = run(made, [ask("Who?", monitor=False), ask("Who?")])
    assert ids(heard[0]) == ids(heard[1])
    assert done(heard[0]).reading is None
    assert not any(event.marks for event in heard[0] if isinstance(event, Piece))


@pytest.mark.parametrize("waiting", [True, False])
def test_a_cancelled_job_ends_and_others_go_on(waiting: bool):
    with service(max_batch=1 if waiting else 8) as made:
        over, first = queue.SimpleQueue[Event](), queue.SimpleQueue[Event]()
        began = made.submit(ask("Who?", max_tokens=200, seed=1), first.put)
        first.get(timeout=30)
        ticket = made.submit(ask("When?", max_tokens=200, seed=2), over.put)
        if not waiting:
            over.get(timeout=30)
        ticket.cancel()
        ticket.cancel()
        while not isinstance(end := over.get(timeout=30), Done):
            pass
        assert end.reason == "cancelled"
        began.cancel()
        while not isinstance(end := first.get(timeout=30), Done):
            pass
        assert end.reason == "cancelled"
        assert done(run(made, [ask("Who?")])[0]).reason != "cancelled"
        assert made.waiting == made.running == 0 or _soon(lambda: made.waiting == made.running == 0)


def _soon(condition: Any) -> bool:
    for _ in range(3000):
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_an_abandoned_generator_cancels_its_job():
    with service() as made:
        stream = events(made, ask("Who?", max_tokens=200, seed=1))
        next(stream)
        stream.close()
        assert _soon(lambda: made.running == 0)


def test_too_many_jobs_are_refused_and_a_closed_service_takes_none():
    made = service(max_batch=1, max_waiting=2)
    heard: queue.SimpleQueue[Event] = queue.SimpleQueue()
    made.submit(ask("Who?", max_tokens=200, seed=1), heard.put)
    heard.get(timeout=30)
    for _ in range(2):
        made.submit(ask("When?", max_tokens=200, seed=1), heard.put)
    assert made.waiting == 2
    with pytest.raises(BusyError, match="2 jobs wait"):
        made.submit(ask("Why?"), heard.put)
    made.close(drain=False)
    ends = []
    while not heard.empty():
        if isinstance(event := heard.get(), Done):
            ends.append(event.reason)
    assert ends == ["cancelled"] * 3
    with pytest.raises(ClosedError):
        made.submit(ask("Why?"), heard.put)


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (ask("Who?", alpha=-1.0), "alpha must be between"),
        (ask("Who?", alpha=float("nan")), "alpha must be between"),
        (ask("Who?", policy=Policy("regenerate", alpha=1e9)), "alpha must be between"),
        (ask("Who?", max_tokens=0), "max_tokens"),
        (Job(""), "empty"),
        (Job(()), "empty"),
    ],
)
def test_bad_jobs_are_refused_at_once(job: Job, message: str):
    with service() as made, pytest.raises(UsageError, match=message):
        made.submit(job, lambda _: None)


def test_a_prompt_without_room_for_a_response_is_refused():
    with service() as made, pytest.raises(PromptTooLongError, match="reads 256"):
        made.submit(ask("word " * 300), lambda _: None)


def test_a_response_ends_where_the_context_does():
    with service(max_tokens=1000) as made:
        job = ask("word " * 50, max_tokens=None, seed=3)
        end = done(run(made, [job])[0])
    assert end.prompt_tokens + end.completion_tokens <= 256
    assert end.reason == "stop" or end.prompt_tokens + end.completion_tokens == 256


RISKY, SAFE = 50.0, -500.0


def test_warn_says_so_and_changes_nothing():
    job = ask("Who?", policy=Policy("warn"))
    with service(intercept=RISKY) as made:
        risky, plain = run(made, [job, ask("Who?")])
    assert done(risky).action == "warn"
    assert done(risky).text == done(plain).text
    assert done(plain).action is None
    with service(intercept=SAFE) as made:
        assert done(run(made, [job])[0]).action is None


def test_abstain_says_its_text_instead_and_shows_nothing_of_the_first():
    job = ask("Who?", policy=Policy("abstain", text="No idea."))
    with service(intercept=RISKY) as made:
        heard = run(made, [job])[0]
    assert done(heard).text == "No idea."
    assert done(heard).action == "abstain"
    assert "".join(event.text for event in heard if isinstance(event, Piece)) == "No idea."
    assert ids(heard) == []
    assert done(heard).reading is not None
    with service(intercept=SAFE) as made:
        heard, plain = run(made, [job, ask("Who?")])
    assert done(heard).text == done(plain).text
    assert done(heard).action is None
    assert ids(heard) == ids(plain)


def test_regenerate_answers_once_more_with_its_alpha():
    with service(intercept=RISKY) as made:
        first = done(run(made, [ask("Who?")])[0])
        heard = run(made, [ask("Who?", policy=Policy("regenerate", alpha=0.5))])[0]
    end = done(heard)
    assert (end.action, end.alpha) == ("regenerate", 0.5)
    assert end.text == "".join(event.text for event in heard if isinstance(event, Piece))
    assert end.text != first.text
    assert end.completion_tokens > len(ids(heard))
    assert end.reading == first.reading
    # The second answer is that of its alpha and seed.
    with service(intercept=RISKY) as made:
        again = run(made, [ask("Who?", policy=Policy("regenerate", alpha=0.5))])[0]
    assert ids(again) == ids(heard)


def test_stop_ends_the_response_at_the_token_that_is_too_risky():
    with service(intercept=RISKY) as made:
        end = done(run(made, [ask("Who?", policy=Policy("stop"))])[0])
    assert (end.action, end.reason) == ("stop", "stop")
    assert end.completion_tokens == 1
    with service(intercept=SAFE) as made:
        end, plain = (done(x) for x in run(made, [ask("Who?", policy=Policy("stop")), ask("Who?")]))
    assert end.action is None
    assert end.text == plain.text


def test_a_policys_threshold_is_its_own():
    with service(intercept=SAFE) as made:
        end = done(run(made, [ask("Who?", policy=Policy("warn", threshold=0.0))])[0])
    assert end.action == "warn"
    assert end.reading is not None
    assert end.reading.flagged
    assert end.reading.threshold == 0.0


def test_a_failing_pass_fails_its_rows_and_the_service_goes_on(caplog: pytest.LogCaptureFixture):
    with service() as made:
        model: Any = made.monitor.model.model

        def fail(*_: Any) -> None:
            raise RuntimeError("secret internals")

        hook = model.model.layers[1].register_forward_pre_hook(fail)
        heard = run(made, [ask("Who?"), ask("When?")])
        hook.remove()
        assert all(isinstance(each[-1], Failed) for each in heard)
        assert "secret" not in str(heard)
        assert done(run(made, [ask("Who?")])[0]).text
    assert "secret internals" in caplog.text


def test_a_listener_that_fails_ends_its_own_row_alone(caplog: pytest.LogCaptureFixture):
    heard: list[Event] = []

    def fail(event: Event) -> None:
        heard.append(event)
        raise RuntimeError("the loop is closed")

    with service() as made:
        made.submit(ask("Who?", max_tokens=200, seed=1), fail)
        other = done(run(made, [ask("When?", max_tokens=12)])[0])
        assert _soon(lambda: made.running == 0)
    assert other.completion_tokens == 12 or other.reason == "stop"
    assert len(heard) <= 4  # what its first step said, and the end
    assert isinstance(heard[-1], Done)
    assert "the loop is closed" in caplog.text


def test_nan_fails_the_row_that_has_it():
    with service() as made:
        network: Any = made.monitor.model.model
        bad = made.monitor.model.tokenizer.encode("X", add_special_tokens=False)[0]
        with torch.no_grad():
            network.model.embed_tokens.weight[bad] = float("nan")
        broken, fine = run(made, [Job("aXb", max_tokens=3), Job("abc", max_tokens=3, temperature=0.0)])
    assert isinstance(broken[-1], Failed)
    assert "NaN" in broken[-1].message
    assert isinstance(fine[-1], Done)


def test_a_card_without_neurons_still_serves():
    model = tiny.study(double=True)
    with BatchService(model, card_of(model, [], 0.25)) as made:
        end = done(run(made, [ask("Who?", alpha=3.0)])[0])
    assert end.reading is not None
    assert set(end.reading.scores) == {0.25}
    assert end.reading.top == ()


def test_several_cards_can_be_served_side_by_side():
    model = tiny.study(double=True)
    with BatchService(model, card_of(model, NEURONS)) as one, BatchService(model, card_of(model, CARD)) as other:
        first, second = done(run(one, [ask("Who?")])[0]), done(run(other, [ask("Who?")])[0])
    assert first.text == second.text
    assert first.reading is not None
    assert second.reading is not None
    assert first.reading.scores != second.reading.scores
