"""Checkpoints on disk, their identity, and the names of models."""

import json
import os
import re
import shutil
import struct
import time

import numpy as np
import pytest
import torch
from blake3 import blake3

from checkpoints import make, reference_logits, write_tensors
from llmtrace.errors import LlmtraceError, Misuse, Trouble
from llmtrace.model import identity, registry
from llmtrace.model.architecture import Architecture
from llmtrace.model.checkpoint import Checkpoint
from llmtrace.model.identity import identify


def trouble(message, hint=""):
    """Expects one Trouble with this message, its paths shortened to their names, and this hint."""
    return _Expected(Trouble, message, hint)


class _Expected:
    def __init__(self, kind, message, hint):
        self.kind, self.message, self.hint = kind, message, hint

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        assert kind is self.kind, f"expected {self.kind.__name__}: {self.message}"
        assert isinstance(error, LlmtraceError)
        assert re.sub(r"'/[^']*/([^/']*)'", r"'\1'", str(error)) == self.message
        assert self.hint in "\n".join(error.hints)
        return True


def raw_safetensors(file, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def entry(start, end, dtype="F32", shape=(1,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


# --- checkpoint


@pytest.mark.parametrize(
    ("dtype", "name"), [("bfloat16", "BF16"), ("float16", "F16"), ("float32", "F32")]
)
def test_tensors_have_the_bits_that_were_saved(tmp_path, dtype, name):
    values = torch.tensor([[1.0, -0.0, 3.14159], [1e-7, -65504.0, 0.1]]).to(getattr(torch, dtype))
    make(tmp_path)
    write_tensors(
        tmp_path, {"some.weight": values, "none": values[:0], "one": values[1, 2].clone()}
    )
    checkpoint = Checkpoint.open(tmp_path)
    assert list(checkpoint.tensors) == ["none", "one", "some.weight"]
    tensor = checkpoint.tensors["some.weight"]
    assert (tensor.dtype, tensor.shape, tensor.nbytes) == (name, (2, 3), values.nbytes)
    array = tensor.array()
    assert array.dtype == (np.float32 if name == "F32" else np.uint16)
    assert array.tobytes() == values.view(torch.uint8).numpy().tobytes()
    assert checkpoint.tensors["one"].array().shape == ()
    assert checkpoint.tensors["one"].array().tobytes() == array[1, 2].tobytes()
    assert checkpoint.tensors["none"].array().shape == (0, 3)
    for each in checkpoint.tensors.values():
        assert not each.array().flags.writeable
        assert type(each.array()) is np.ndarray
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 0


def test_a_tensor_at_an_odd_offset_is_aligned(tmp_path):
    make(tmp_path)
    header = json.dumps({"a": entry(0, 8, shape=(2,))}).encode()
    header += b" " * (1 - len(header) % 2)  # odd in length
    raw_safetensors(tmp_path / "model.safetensors", header, np.float32([1.5, -2]).tobytes())
    tensor = Checkpoint.open(tmp_path).tensors["a"]
    assert tensor.offset % 2 == 1
    assert tensor.array().tolist() == [1.5, -2]
    assert tensor.array().flags.aligned
    assert not tensor.array().flags.writeable


def test_chosen_rows_are_those_of_the_whole(tmp_path):
    for kind in (torch.bfloat16, torch.float16, torch.float32):
        write_tensors(make(tmp_path), {"a": torch.randn(9, 5).to(kind), "b": torch.ones(3, 2)})
        tensor = Checkpoint.open(tmp_path).tensors["a"]
        index = np.array([8, 0, 3, 3])
        assert tensor.rows(index).dtype == tensor.array().dtype
        assert tensor.rows(index).tobytes() == tensor.array()[index].tobytes()
        assert tensor.rows(index[:0]).shape == (0, 5)
        for wrong in (9, -1):
            with pytest.raises(IndexError, match="'a' has 9 rows"):
                tensor.rows(np.array([0, wrong]))
    os.truncate(tensor.file, tensor.offset + 7 * 5 * 4 + 3)
    assert np.isfinite(tensor.rows(np.arange(7))).all()
    with pytest.raises(Trouble, match="it is shorter now"):
        tensor.rows(np.array([0, 7]))


def test_shards_hold_the_same_tensors(tmp_path):
    one, many = (Checkpoint.open(make(tmp_path / str(n), shards=n)) for n in (1, 3))
    assert list(one.tensors) == list(many.tensors)
    for name, tensor in one.tensors.items():
        assert np.array_equal(tensor.array(), many.tensors[name].array())
    assert [file.name for file in one.files()] == ["model.safetensors"]
    assert len(many.files()) == 3


def test_a_single_file_wins_over_an_index(tmp_path):
    make(tmp_path, shards=2, seed=1)
    make(tmp_path, seed=2)
    assert [file.name for file in Checkpoint.open(tmp_path).files()] == ["model.safetensors"]


def test_generation_config_is_empty_without_its_file(tmp_path):
    make(tmp_path)
    assert Checkpoint.open(tmp_path).generation_config["eos_token_id"] == [257]
    (tmp_path / "generation_config.json").unlink()
    assert Checkpoint.open(tmp_path).generation_config == {}


def test_folder_troubles(tmp_path):
    with trouble("model folder 'absent' does not exist", "llmtrace model list"):
        Checkpoint.open(tmp_path / "absent")
    file = tmp_path / "file"
    file.write_text("")
    with trouble("model folder 'file' is not a folder", "llmtrace model list"):
        Checkpoint.open(file)
    with trouble(f"no 'config.json' in '{tmp_path.name}'", "config.json, model.safetensors"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b"[]", "not a JSON object"),
        (b'{"a": 1, "a": 2}', "'a' is there twice"),
        (
            b'{"a": "\xff"}',
            "'utf-8' codec can't decode byte 0xff in position 7: invalid start byte",
        ),
        (b"[" * 100_000, "maximum recursion depth exceeded"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_json_troubles(tmp_path, name, content, why):
    make(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Trouble) as caught:
        Checkpoint.open(tmp_path)
    assert str(caught.value).startswith(f"cannot read '{tmp_path / name}': {why}")


def test_missing_weights_troubles(tmp_path):
    make(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    message = f"no 'model.safetensors' or 'model.safetensors.index.json' in '{tmp_path.name}'"
    with trouble(message, "fetch the model again"):
        Checkpoint.open(tmp_path)
    (tmp_path / "pytorch_model.bin").write_text("")
    with trouble(message, "convert its .bin files to safetensors"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    ("header", "data", "why"),
    [
        ({"a": entry(0, 4)}, bytes(3), "file not fully covered"),
        ({"a": entry(0, 4)}, bytes(5), "file not fully covered"),
        ({"a": entry(0, 4), "b": entry(2, 6)}, bytes(6), "invalid offset for tensor `b`"),
        ({"a": entry(0, 4, shape=(2,))}, bytes(4), "invalid shape, data type, or offset"),
        ({"a": entry(0, 4, "Q9")}, bytes(4), "unknown variant `Q9`"),
        (b'{"a": 1', b"", "invalid JSON in header"),
        (
            f'{{"a": {json.dumps(entry(0, 4))}, "a": {json.dumps(entry(0, 4))}}}'.encode(),
            bytes(4),
            "'a' is there twice",
        ),
    ],
)
def test_header_troubles(tmp_path, header, data, why):
    make(tmp_path)
    file = tmp_path / "model.safetensors"
    raw_safetensors(file, header, data)
    with pytest.raises(Trouble) as caught:
        Checkpoint.open(tmp_path)
    assert str(caught.value).startswith(f"cannot read '{file}': ")
    assert why in str(caught.value)
    assert caught.value.hints == ("fetch the model again",)


@pytest.mark.parametrize("size", [0, 4, 40])
def test_a_truncated_file_is_trouble(tmp_path, size):
    make(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(Trouble, match=r"^cannot read '.*/model.safetensors': "):
        Checkpoint.open(tmp_path)


def test_unread_dtypes_are_trouble(tmp_path):
    make(tmp_path)
    raw_safetensors(tmp_path / "model.safetensors", {"a": entry(0, 1, "F8_E4M3")}, bytes(1))
    message = "tensor 'a' of 'model.safetensors' has dtype 'F8_E4M3'"
    with trouble(message, "llmtrace reads BF16, F16 and F32"):
        Checkpoint.open(tmp_path)


def test_a_file_that_shrinks_later_is_trouble(tmp_path):
    tensor = Checkpoint.open(make(tmp_path)).tensors["model.norm.weight"]
    tensor.file.write_bytes(b"")
    with pytest.raises(Trouble, match=r"^cannot read tensor 'model.norm.weight' of '"):
        tensor.array()
    tensor.file.unlink()
    with pytest.raises(Trouble, match=r"^cannot read tensor 'model.norm.weight' of '"):
        tensor.array()


def test_shard_troubles(tmp_path):
    make(tmp_path, shards=2)
    index = tmp_path / "model.safetensors.index.json"
    first, second = sorted(tmp_path.glob("model-*"))
    weight_map = json.loads(index.read_text())["weight_map"]

    def rewrite(**changes):
        index.write_text(json.dumps({"weight_map": weight_map | changes}))

    index.write_text('{"weight_map": {"a": 1}}')
    with trouble(f"no 'weight_map' of names to files in '{index.name}'", "fetch the model again"):
        Checkpoint.open(tmp_path)
    rewrite(extra=first.name)
    with trouble(f"no tensor 'extra' in '{first.name}'", "fetch the model again"):
        Checkpoint.open(tmp_path)
    rewrite(extra="../secret.safetensors")
    with trouble(f"'{index.name}' names shard '../secret.safetensors', which is not in its folder"):
        Checkpoint.open(tmp_path)
    name = next(name for name, file in weight_map.items() if file == first.name)
    rewrite(**{name: second.name})
    with trouble(f"'{index.name}' does not list tensor '{name}' of '{first.name}'"):
        Checkpoint.open(tmp_path)
    rewrite()
    shutil.copy(first, tmp_path / "model-00003.safetensors")
    rewrite(extra="model-00003.safetensors")
    with pytest.raises(
        Trouble, match=rf"^tensor '.*' is both in '{first.name}' and in 'model-00003"
    ):
        Checkpoint.open(tmp_path)
    rewrite()
    second.unlink()
    with trouble(f"shard '{second.name}' does not exist", "fetch the model again"):
        Checkpoint.open(tmp_path)


# --- identity


def test_identity_is_what_the_format_says(tmp_path):
    make(tmp_path, layers=1, tied=True)
    checkpoint = Checkpoint.open(tmp_path)
    files = ("config.json", "generation_config.json", "tokenizer.json")
    digests = [blake3((tmp_path / name).read_bytes()).hexdigest() for name in files]
    tensors = [
        json.dumps(
            [name, "BF16", list(each.shape), blake3(each.array().tobytes()).hexdigest()],
            separators=(",", ":"),
        )
        for name, each in sorted(checkpoint.tensors.items())
    ]
    assert "lm_head.weight" not in checkpoint.tensors
    content = (
        f'{{"config":"{digests[0]}","generation_config":"{digests[1]}",'
        f'"tensors":[{",".join(tensors)}],"tokenizer":"{digests[2]}"}}'
    )
    assert identify(checkpoint, None) == blake3(content.encode()).hexdigest()


def test_identity_survives_sharding_and_a_move(tmp_path):
    ids = {identify(Checkpoint.open(make(tmp_path / str(n), shards=n)), None) for n in (1, 2, 5)}
    shutil.move(tmp_path / "1", tmp_path / "moved")
    ids.add(identify(Checkpoint.open(tmp_path / "moved"), None))
    assert len(ids) == 1
    assert re.fullmatch("[0-9a-f]{64}", ids.pop())


def test_identity_differs_for_every_part(tmp_path):
    folder = make(tmp_path / "m")
    ids = [identify(Checkpoint.open(folder), None)]
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        file = folder / name
        before = file.read_bytes()
        file.write_bytes(before + b"\n")
        ids.append(identify(Checkpoint.open(folder), None))
        if name != "config.json":
            file.unlink()
            ids.append(identify(Checkpoint.open(folder), None))
        file.write_bytes(before)
    file = folder / "model.safetensors"
    before = file.read_bytes()
    file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    ids.append(identify(Checkpoint.open(folder), None))
    renamed = before.replace(b"layers.1.mlp.up_proj", b"layers.1.mlp.uq_proj")
    file.write_bytes(renamed)
    ids.append(identify(Checkpoint.open(folder), None))
    file.write_bytes(before.replace(b"[96,64]", b"[64,96]"))
    ids.append(identify(Checkpoint.open(folder), None))
    file.write_bytes(before.replace(b'"BF16"', b'"F16" '))
    ids.append(identify(Checkpoint.open(folder), None))
    assert len(set(ids)) == len(ids) == 10


@pytest.fixture
def counted(monkeypatch):
    """Counts how often a model is digested."""
    calls = []
    real = identity._model_id
    monkeypatch.setattr(identity, "_model_id", lambda each: calls.append(1) or real(each))
    return calls


def test_identity_is_cached_until_a_file_changes(tmp_path, counted):
    folder, cache = make(tmp_path / "m"), tmp_path / "cache" / "models"
    time.sleep(0.05)
    first = identify(Checkpoint.open(folder), cache)
    assert identify(Checkpoint.open(folder), cache) == first
    assert len(counted) == 1
    assert len(list(cache.iterdir())) == 1  # no partial files stay
    shutil.copytree(folder, tmp_path / "copy")
    time.sleep(0.05)
    assert identify(Checkpoint.open(tmp_path / "copy"), cache) == first
    assert len(counted) == 2
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    time.sleep(0.05)
    second = identify(Checkpoint.open(folder), cache)
    assert second != first
    assert identify(Checkpoint.open(folder), cache) == second
    assert len(counted) == 3
    (folder / "tokenizer.json").unlink()
    assert identify(Checkpoint.open(folder), cache) not in {first, second}


def test_a_file_of_this_instant_is_not_cached(tmp_path, counted, monkeypatch):
    monkeypatch.setattr(identity, "CLOCK_TICK_NS", 10**15)
    checkpoint = Checkpoint.open(make(tmp_path / "m"))
    assert identify(checkpoint, tmp_path / "c") == identify(checkpoint, tmp_path / "c")
    assert len(counted) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"files": 3, "id": 4}', "same, no id"])
def test_a_corrupt_cache_is_ignored(tmp_path, counted, content):
    checkpoint = Checkpoint.open(make(tmp_path / "m"))
    time.sleep(0.05)
    first = identify(checkpoint, tmp_path / "cache")
    (entry,) = (tmp_path / "cache").iterdir()
    if content == "same, no id":
        content = entry.read_text().replace(first, "../" + first[3:])
    entry.write_text(content)
    assert identify(checkpoint, tmp_path / "cache") == first
    assert identify(checkpoint, tmp_path / "cache") == first
    assert len(counted) == 2


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    checkpoint = Checkpoint.open(make(tmp_path / "m"))
    time.sleep(0.05)
    (tmp_path / "file").write_text("")
    assert identify(checkpoint, tmp_path / "file") == identify(checkpoint, None)


def test_identity_of_a_vanished_file_is_trouble(tmp_path):
    checkpoint = Checkpoint.open(make(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with trouble("cannot read 'model.safetensors': No such file or directory"):
        identify(checkpoint, tmp_path / "cache")
    with pytest.raises(Trouble, match=r"^cannot read tensor '"):
        identify(checkpoint, None)


# --- names


def test_names_resolve(tmp_path, monkeypatch):
    models, sample = tmp_path / "etc" / "models.toml", tmp_path / "samples"
    folder = make(tmp_path / 'odd "näme"\\ 😀 \x7f\n')
    registry.add("tiny-1.5", folder, models)
    registry.add("other", tmp_path, models)
    assert registry.resolve("tiny-1.5", models, sample) == folder
    assert registry.resolve(str(folder), models, sample) == folder
    assert registry.resolve("sample", models, sample) == sample
    listed = [("sample", sample), ("other", tmp_path), ("tiny-1.5", folder)]
    assert registry.listing(models, sample) == listed
    registry.add("other", folder, models)
    assert registry.resolve("other", models, sample) == folder
    assert [file.name for file in models.parent.iterdir()] == ["models.toml"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    assert registry.resolve("other", models, sample) == folder
    (tmp_path / "other" / "config.json").write_text("{}")
    assert registry.resolve("other", models, sample) == registry.Path("other")
    assert registry.resolve("./other", models, sample) == registry.Path("other")


def test_relative_folders_are_added_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    registry.add("here", registry.Path("here"), tmp_path / "models.toml")
    assert registry.listing(tmp_path / "models.toml", tmp_path)[1] == ("here", tmp_path / "here")


def test_name_troubles(tmp_path):
    models, sample = tmp_path / "models.toml", tmp_path / "samples"
    for name in ("unknown", "", "/no/such/folder"):
        with pytest.raises(Trouble) as caught:
            registry.resolve(name, models, sample)
        assert str(caught.value) == f"no model '{name}'"
        assert caught.value.hints == ("llmtrace model list",)
    for name in ("sample", "a/b", "", "-m", "a b"):
        with _Expected(Misuse, f"'{name}' cannot be the name of a model", "use letters"):
            registry.add(name, tmp_path, models)
    with trouble("model folder 'absent' does not exist"):
        registry.add("absent", tmp_path / "absent", models)
    (tmp_path / "gone").mkdir()
    registry.add("gone", tmp_path / "gone", models)
    (tmp_path / "gone").rmdir()
    message = "model 'gone' was in 'gone', which is no folder now"
    with trouble(message, "llmtrace model add gone DIR"):
        registry.resolve("gone", models, sample)
    for content in ("models = 1", "[models]\na = 1"):
        models.write_text(content)
        with trouble("'models.toml' does not map names to folders", "mend or delete '"):
            registry.listing(models, sample)
    models.write_text("models = ")
    with pytest.raises(Trouble, match=r"^cannot read '.*/models.toml': Invalid value"):
        registry.listing(models, sample)
    with pytest.raises(Trouble, match=r"^cannot read '.*': Not a directory"):
        registry.add("a", tmp_path, models / "models.toml")


def test_a_name_that_cannot_be_written_leaves_the_old_ones(tmp_path):
    models = tmp_path / "models.toml"
    registry.add("a", tmp_path, models)
    not_utf8 = tmp_path / os.fsdecode(b"\xff")
    not_utf8.mkdir()
    with pytest.raises(Trouble, match=r"^cannot write '.*/models.toml': "):
        registry.add("b", not_utf8, models)
    assert registry.listing(models, tmp_path)[1:] == [("a", tmp_path)]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["models.toml", not_utf8.name]


def test_the_sample_lies_in_the_checkout_or_the_wheel(tmp_path, monkeypatch):
    package = registry.Path(registry.__file__).parent.parent
    assert registry.sample_folder() == package.parent / "samples" / "model"
    monkeypatch.setattr(registry, "__file__", str(tmp_path / "llmtrace" / "model" / "registry.py"))
    installed = tmp_path / "llmtrace" / "_samples" / "model"
    assert registry.sample_folder() == tmp_path / "samples" / "model"
    installed.mkdir(parents=True)
    assert registry.sample_folder() == installed


# --- the factory of test checkpoints


@pytest.mark.parametrize(
    "options", [{}, {"tied": True, "shards": 2}, {"attention_bias": True, "mlp_bias": True}]
)
def test_the_reference_agrees_with_plain_transformers(tmp_path, options):
    from transformers import LlamaForCausalLM

    make(tmp_path, dtype="float32", **options)
    architecture = Architecture.of(Checkpoint.open(tmp_path))
    tokens = [256, *b"a prompt of some length"]
    ours = reference_logits(tmp_path, tokens, architecture.inverse_frequencies(64))
    model = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        theirs = model(torch.tensor([tokens])).logits[0].numpy()
    assert ours.shape == theirs.shape == (len(tokens), 259)
    assert np.abs(ours - theirs).max() < 3e-6 * np.abs(ours).max()
    assert 1.5 < ours.std() < 8  # lively, so that an error shows


def test_factory_is_deterministic(tmp_path):
    same = [make(tmp_path / name, seed=3, shards=2) for name in "ab"]
    names = sorted(file.name for file in same[0].iterdir())
    assert all((same[0] / n).read_bytes() == (same[1] / n).read_bytes() for n in names)
    assert len(names) == 6
