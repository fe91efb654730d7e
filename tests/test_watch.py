import threading
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from hneurons.models.load import StudyModel
from hneurons.models.structure import backbone
from hneurons.neurons.scaling import scale
from hneurons.neurons.watch import Watcher, watch
from hneurons.types import NeuronId
from test_tokens import NEURONS, card_of

IDS = torch.tensor([[5, 9, 30, 44, 60, 71], [88, 90, 101, 7, 8, 9]])


def run(model: StudyModel) -> Any:
    with torch.inference_mode():
        return backbone(model.model)(input_ids=IDS, use_cache=False)


def hooks(model: StudyModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "mixtral"])
@pytest.mark.parametrize("watch_first", [True, False])
def test_what_scaling_does_to_the_neurons_themselves_is_left_out(kind: str, watch_first: bool):
    model = tiny.study(kind)
    if kind == "mixtral":
        chosen = [NeuronId(0, 0, 3), NeuronId(0, 1, 7), NeuronId(0, 2, 0), NeuronId(0, 3, 40)]
    else:
        chosen = [NeuronId(0, None, 3), NeuronId(0, None, 7)]
    card = card_of_ids(model, chosen)
    plain: list[Tensor] = []
    turned: list[Tensor] = []
    heights: list[Tensor] = []
    layer = model.ffns[0]

    def see_h(_: Any, __: Any, output: Any) -> None:
        out = output[0] if isinstance(output, tuple) else output
        heights.append(out.reshape(*IDS.shape, -1).norm(dim=-1))

    handle = (layer.block or layer.down).register_forward_hook(see_h)
    with watch(model, card, plain.append):
        run(model)
    alpha = torch.tensor([3.0, 0.0])
    if watch_first:
        with watch(model, card, turned.append), scale(model, chosen, alpha):
            run(model)
    else:
        with scale(model, chosen, alpha), watch(model, card, turned.append):
            run(model)
    handle.remove()
    # These neurons are in the first layer: turning them changes the layer's output, not what goes into them.
    expected = plain[0] * (heights[0] / heights[1])[..., None]
    assert (heights[0] - heights[1]).abs().max() > 1e-4
    torch.testing.assert_close(turned[0], expected.double(), atol=1e-5, rtol=1e-4)


def card_of_ids(model: StudyModel, ids: list[NeuronId]) -> Any:
    described = model.describe()
    base = card_of(tiny.study(), [])
    keys = ("id", "architecture", "layers", "width", "neurons", "experts", "shared")
    own = {key: described[key] for key in keys if key in described}
    neurons = [{"layer": n.layer, "expert": n.expert, "index": n.index, "weight": 2.0 + i} for i, n in enumerate(ids)]
    return type(base).model_validate({**base.model_dump(), "model": own, "neurons": neurons})


def test_terms_come_in_the_order_of_the_card(llama: StudyModel):
    forth: list[Tensor] = []
    back: list[Tensor] = []
    with watch(llama, card_of(llama, NEURONS), forth.append), watch(llama, card_of(llama, NEURONS[::-1]), back.append):
        run(llama)
    assert forth[0].shape == (2, 6, len(NEURONS))
    torch.testing.assert_close(forth[0], back[0].flip(-1))
    signs = torch.tensor([weight for *_, weight in NEURONS]).sign()
    assert bool((forth[0] * signs >= 0).all())


def test_a_layer_without_output_has_terms_of_zero():
    model = tiny.study()
    with torch.no_grad():
        model.model.model.layers[2].mlp.down_proj.weight.zero_()
    found: list[Tensor] = []
    with watch(model, card_of(model, [(2, 0, 1.0), (1, 0, 1.0)]), found.append):
        run(model)
    assert bool((found[0][..., 0] == 0).all())
    assert bool((found[0][..., 1] > 0).all())


def test_passes_of_other_threads_are_not_watched(llama: StudyModel):
    found: list[Tensor] = []
    with watch(llama, card_of(llama, NEURONS), found.append):
        other = threading.Thread(target=run, args=(llama,))
        other.start()
        other.join()
        assert not found
        run(llama)
    assert len(found) == 1


def test_a_pass_of_another_thread_amid_one_changes_nothing(llama: StudyModel):
    card = card_of(llama, NEURONS)
    alone: list[Tensor] = []
    with watch(llama, card, alone.append):
        run(llama)
    found: list[Tensor] = []
    owner = threading.get_ident()

    def interrupt(*_: Any) -> None:
        if threading.get_ident() == owner:
            other = threading.Thread(target=one_token, args=(llama,))
            other.start()
            other.join()

    # Between what the watcher sees of a layer's z and of its h.
    handle = llama.ffns[2].down.register_forward_pre_hook(interrupt)
    with watch(llama, card, found.append):
        run(llama)
    handle.remove()
    assert len(found) == 1
    assert torch.equal(found[0], alone[0])


def test_hooks_come_off_after_an_error(llama: StudyModel):
    before = hooks(llama)

    def fail() -> None:
        with watch(llama, card_of(llama, NEURONS), lambda _: None):
            assert hooks(llama) > before
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert hooks(llama) == before


def test_a_pass_that_failed_leaves_nothing_behind(llama: StudyModel):
    found: list[Tensor] = []
    with watch(llama, card_of(llama, NEURONS), found.append):

        def fail(*_: Any) -> None:
            raise RuntimeError("stop")

        handle = llama.model.model.layers[2].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="stop"):
            run(llama)
        handle.remove()
        assert not found
        run(llama)
    alone: list[Tensor] = []
    with watch(llama, card_of(llama, NEURONS), alone.append):
        run(llama)
    torch.testing.assert_close(found, alone)


def one_token(model: StudyModel) -> None:
    with torch.inference_mode():
        backbone(model.model)(input_ids=IDS[:, :1], use_cache=False)


def in_turn(model: StudyModel, watcher: Watcher) -> list[Tensor]:
    """The terms of a pass over whole rows and of three over one token each, by turns."""
    found: list[Tensor] = []
    with watcher.on(found.append):
        for work in (one_token, run, one_token, one_token):
            work(model)
    return found


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "mixtral"])
def test_passes_of_one_token_are_read_at_once_with_the_same_result(kind: str):
    model = tiny.study(kind)
    experts = (0, 3) if kind == "mixtral" else (None, None)
    ids = [NeuronId(layer, expert, index) for layer in (1, 0) for expert, index in zip(experts, (3, 7), strict=True)]
    card = card_of_ids(model, ids)
    quick, slow = Watcher(model, card), Watcher(model, card)
    slow.late = False
    for got, expected in zip(in_turn(model, quick), in_turn(model, slow), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-5)
    assert quick.late == (kind != "mixtral")


@pytest.mark.parametrize("what", ["h", "z"])
def test_a_model_that_writes_into_what_was_seen_is_read_layer_by_layer(what: str):
    model = tiny.study()
    card = card_of(model, NEURONS)

    def write(_: Any, inputs: Any, output: Tensor) -> None:
        (output if what == "h" else inputs[0]).mul_(2.0)

    def terms(watcher: Watcher) -> list[Tensor]:
        found: list[Tensor] = []
        with watcher.on(found.append):
            # After the watcher's hooks, so that these have seen z and h when it writes.
            handle = model.ffns[1].down.register_forward_hook(write)
            for _ in range(3):
                one_token(model)
            handle.remove()
        return found

    slow, watcher = Watcher(model, card), Watcher(model, card)
    slow.late = False
    assert all(torch.equal(*pair) for pair in zip(terms(watcher), terms(slow), strict=True))
    assert watcher.late is False
