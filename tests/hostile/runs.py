"""Runs that would take hours to replay, and parts that are not what they should be; all signed."""

import json
import os
import struct
from typing import Any

from hostile.place import Case, Place, case, line
from hostile.servers import PAINT
from hostile.stranger import Stranger
from llmtrace.store.record import Record, node_id

SURE = "verified"


def handed(place: Place) -> Stranger:
    return place.stranger()


def verified(stranger: Stranger, status: int | tuple[int, ...], *says: str, **more: Any) -> Case:
    """The newest record of a store that somebody handed over, replayed: never verified."""
    never = (SURE,)
    words = ("--store", stranger.path, "verify", stranger.tip)
    return Case([line(*words, status=status, says=says, never=never, **more)])


# Beyond the caps


def _long(stranger: Stranger, **trace: Any) -> None:
    stranger.add(stranger.run(trace=trace))


@case("a prompt of a million tokens")
def _long_prompt(place: Place) -> Case:
    stranger = handed(place)
    _long(stranger, prompt_tokens=[104] * 1_000_000)
    return verified(stranger, 3, "inconclusive", "1000004 tokens", "--max-tokens")


@case("an output of a million tokens")
def _long_output(place: Place) -> Case:
    stranger = handed(place)
    limits = {"max_tokens": 1_000_000, "stop": []}
    _long(stranger, output_tokens=[104] * 1_000_000, limits=limits)
    return verified(stranger, 3, "inconclusive", "tokens", "--max-tokens")


@case("a million positions in a store whose HEAD is theirs")
def _as_if_own(place: Place) -> Case:
    stranger = handed(place)
    _long(stranger, prompt_tokens=[104] * 1_000_000)
    (stranger.path / "HEAD").write_text(f"ref: refs/heads/{stranger.branch}\n")
    return verified(stranger, 3, "inconclusive", "--max-tokens")


@case("max tokens of 2^31 - 1", read=True)
def _most_tokens(place: Place) -> Case:
    stranger = handed(place)
    _long(stranger, limits={"max_tokens": 2**31 - 1, "stop": []})
    return verified(stranger, (1, 3))


@case("a text of 64 MiB")
def _long_text(place: Place) -> Case:
    stranger = handed(place)
    text = b"hi there " * ((64 << 20) // 9)
    stranger.add(stranger.run({**stranger.like.parts, "prompt.txt": text}))
    return verified(stranger, 3, "inconclusive", "--max-memory")


@case("a thousand kept points", read=True)
def _kept(place: Place) -> Case:
    stranger = handed(place)
    keep = [f"blocks.{n:04}.hook_resid_post" for n in range(1000)]
    stranger.add(stranger.run(probes={"keep": keep}))
    return verified(stranger, (1, 3))


@case("a kept point of a name of 5 MB", read=True)
def _kept_name(place: Place) -> Case:
    stranger = handed(place)
    stranger.add(stranger.run(probes={"keep": [PAINT + "x" * 5_000_000]}))
    return verified(stranger, (1, 3))


# Claims that have no meaning

CLAIMS: dict[str, dict[str, Any]] = {
    "a token outside of the vocabulary": {"output_tokens": [1, 2, 300, 4]},
    "a token of 2^31 - 1": {"prompt_tokens": [2**31 - 1] * 9},
    "a token below 0": {"prompt_tokens": [-1]},
    "a token of 2^53 - 1": {"prompt_tokens": [2**53 - 1]},
    "tokens that are words": {"prompt_tokens": ["a", True, None, {}]},
    "no tokens": {"prompt_tokens": []},
    "a temperature that is no number": {
        "sampling": {"temperature": "nan", "top_k": 0, "top_p": 1 << 32}
    },
    "a temperature of many digits": {
        "sampling": {"temperature": "0x1." + "0" * 1_000_000 + "p0", "top_k": 0, "top_p": 1 << 32}
    },
    "a seed of many digits": {"seed": "9" * 1_000_000},
    "a seed with escapes": {"seed": PAINT},
    "a finish reason with escapes": {"finish_reason": PAINT},
    "numerics with escapes": {"numerics": PAINT},
    "a model id that is a path": {"model": "../../../../etc"},
    "a model id with escapes": {"model": PAINT},
    "sampling that is a list": {"sampling": []},
    "a root that is none": {"activations": PAINT * 1000},
}
for _name, _trace in CLAIMS.items():

    @case(f"a claim: {_name}", read=True)
    def _of_claim(place: Place, trace: dict[str, Any] = _trace) -> Case:
        stranger = handed(place)
        _long(stranger, **trace)
        return verified(stranger, (1, 3))


@case("a model's name that is a path", read=True)
def _path(place: Place) -> Case:
    """The right model under a name that is a folder: a name here, or nothing."""
    stranger = handed(place)
    stranger.add(stranger.run(attested={"model": f"../../{place.template.model}"}))
    return verified(stranger, 3, "inconclusive")


# What is printed of them


@case("texts and names that paint", read=True)
def _painted(place: Place) -> Case:
    stranger = handed(place)
    text = f"{PAINT}\r\b\x00 words \x1b]52;c;cm0=\x07\ufeff".encode()
    parts = {**stranger.like.parts, "prompt.txt": text, "output.txt": text}
    names = {"model": PAINT, "device": PAINT, PAINT: {PAINT: PAINT}}
    first = stranger.tip
    stranger.add(stranger.run(parts, attested=names))
    before = stranger.tip
    stranger.add(stranger.run(attested={"model": PAINT * 10_000}))
    store = ("--store", stranger.path)
    words: list[tuple[str, ...]] = [
        ("log", "--all", stranger.branch),
        ("show", stranger.tip),
        ("show", before),
        ("show", first),
        ("diff", before, stranger.tip),
        ("bisect", before, stranger.tip),
        ("verify", before),
    ]
    status = {"diff": (0, 1), "bisect": (0, 1, 3), "verify": (1, 3)}
    return Case(
        [
            line(*store, *more, *one, status=status.get(one[0], 0))
            for one in words
            for more in ((), ("--json",))
        ]
    )


@case("a verdict of nonsense", read=True)
def _verdict(place: Place) -> Case:
    stranger = handed(place)
    section = {"_type": PAINT, "subject": [{}] * 1000, "predicate": {PAINT: [[[[]]]]}}
    stranger.add(stranger.other("verdict", section))
    store = ("--store", stranger.path)
    return Case(
        [
            line(*store, "audit", stranger.branch, status=(0, 1)),
            line(*store, "verify", stranger.tip, status=(1, 3), never=(SURE,)),
            line(*store, "show", stranger.tip, status=(0, 4)),
            line(*store, "log", "--all", stranger.branch, status=0),
        ]
    )


@case("branches that paint", read=True)
def _branches(place: Place) -> Case:
    stranger = handed(place)
    stranger.add(stranger.run())
    names = (f"node/{PAINT.replace('/', '')}", "node/..%2f", "node/" + "x" * 200, f"{PAINT[:5]}x")
    for name in names:
        stranger.publish(branch=name)
    packed = f"{stranger.tip} refs/heads/node/{PAINT}y\n{stranger.tip} refs/heads/node/z\n"
    (stranger.path / "packed-refs").write_text(packed)
    (stranger.path / "HEAD").write_text(f"ref: refs/heads/node/{PAINT}\n")
    store = ("--store", stranger.path)
    return Case(
        [
            line(*store, "audit", status=(0, 1, 4)),
            line(*store, "log", status=(0, 4)),
            line(*store, "log", "--all", f"node/{PAINT}", status=(0, 4)),
            line(*store, "show", f"{PAINT}", status=4),
            line(*store, "remote", "list", status=(0, 4)),
            line(*store, "push", status=(2, 4)),
        ]
    )


@case("addresses that paint", read=True)
def _addresses(place: Place) -> Case:
    """In an identity, whose digest is the node's id."""
    stranger = handed(place)
    identity = {**stranger.announce(0), "addresses": [PAINT * 20] * 64}
    link = {"format": 1, "kind": "identity", "node": "", "seq": 0, "prev": "", "time": 1}
    stranger.record = Record({"identity": identity, "link": link, "parts": []}, {})
    stranger.node = node_id(stranger.record.digest)
    stranger.tip = stranger.write(stranger.record, parents=())
    stranger.publish()
    store = ("--store", stranger.path)
    return Case(
        [
            line(*store, "show", stranger.tip, status=0),
            line(*store, "log", "--all", stranger.branch, status=0),
            line(*store, "--json", "show", stranger.tip, status=0),
        ]
    )


# Parts that are not what they should be


def _header(value: object, size: int | None = None) -> bytes:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text


def _tensor(start: int, end: int, shape: list[int]) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


POINT = "blocks.0.hook_resid_post"
KEPT: dict[str, bytes] = {
    "empty": b"",
    "shorter than its size": b"\x01\x02",
    "with a header of 2^64 - 1 bytes": _header(b"{}", 2**64 - 1),
    "with a header of 1 MB of brackets": _header(b"[" * (1 << 19)),
    "with tensors that overlap": _header(
        {POINT: _tensor(0, 64, [4, 4]), "b": _tensor(32, 96, [4, 4])}
    )
    + bytes(96),
    "with a tensor outside of the file": _header({POINT: _tensor(0, 1 << 40, [1 << 38])}),
    "with a shape of 2^63 squared": _header({POINT: _tensor(0, 64, [2**63, 2**63])}) + bytes(64),
    "with a tensor below 0": _header({POINT: _tensor(-64, 0, [4, 4])}) + bytes(64),
    "of another dtype": _header({POINT: {**_tensor(0, 64, [64]), "dtype": "U8"}}) + bytes(64),
}
for _name, _data in KEPT.items():

    @case(f"kept tensors {_name}", read=True)
    def _of_kept(place: Place, data: bytes = _data) -> Case:
        stranger = handed(place)
        stranger.add(stranger.run({**stranger.like.parts, "kept.000": data}))
        store = ("--store", stranger.path)
        target = place.root / "out.safetensors"
        return Case(
            [
                line(*store, "verify", stranger.tip, status=1, says="kept.000", never=(SURE,)),
                line(*store, "export", stranger.tip, "-o", target, status=4, says="kept.000"),
            ]
        )


FILES = {
    **KEPT,
    "of a name that paints": _header({PAINT * 100: _tensor(0, 64, [4, 4])}) + bytes(64),
    "of a width too much": _header({POINT: _tensor(0, 64, [1, 16])}) + bytes(64),
    "with a header of 90 MB": _header(b"{" + b'"a":{},' * (90_000_000 // 7) + b'"z":{}}'),
}
for _name, _data in FILES.items():

    @case(f"claimed activations {_name}", read=len(_data) < 1 << 20)
    def _of_file(place: Place, data: bytes = _data) -> Case:
        stranger = handed(place)
        stranger.add(stranger.run())
        path = place.root / "claimed.safetensors"
        path.write_bytes(data)
        words = ("--store", stranger.path, "bisect", stranger.tip, path)
        return Case([line(*words, status=4, says="claimed.safetensors")])


@case("claimed activations from a pipe")
def _of_pipe(place: Place) -> Case:
    stranger = handed(place)
    stranger.add(stranger.run())
    path = place.root / "claimed.safetensors"
    os.mkfifo(path)
    words = ("--store", stranger.path, "bisect", stranger.tip, path)
    return Case([line(*words, status=4, seconds=15)])


LARGE = 60 << 20
PARTS: dict[str, tuple[str, bytes]] = {
    "features of 60 MiB of brackets": ("features.json", b"[" + b"[]," * (LARGE // 3) + b"[]]"),
    "features 1,000,000 deep": ("features.json", b"[" * 1_000_000),
    "features of NaN": ("features.json", b'{"v":1,"logprob":NaN,"points":{},"positions":1}'),
    "features of large exponents": (
        "features.json",
        b'{"v":1,"logprob":"0x1p+99999999999999999999","points":{},"positions":1}',
    ),
    "an integer of a million digits": ("features.json", b'{"v":' + b"9" * 1_000_000 + b"}"),
    "digests of 60 MiB": ("digests.bin", bytes(LARGE)),
    "probes of 60 MiB": ("probes.bin", bytes(LARGE)),
    "probes that count to 2^32": ("probes.bin", b"\xff" * 64),
    "scores nobody made": ("scores.json", b"{" * 1000),
    "samples of a huge header": ("samples.safetensors", _header(b"{}", 2**63)),
    "text that is no text": ("prompt.txt", b"\xff\xfe" * 1000),
}
for _name, (_part, _data) in PARTS.items():

    @case(f"a part: {_name}", read=len(_data) < LARGE >> 1)
    def _of_part(place: Place, part: str = _part, data: bytes = _data) -> Case:
        stranger = handed(place)
        before = stranger.add(stranger.run())
        trace = {"activations": "0" * 64}  # so that diff looks for where they differ
        stranger.add(stranger.run({**stranger.like.parts, part: data}, trace=trace))
        store = ("--store", stranger.path)
        ended = (0, 1, 3, 4)
        return Case(
            [
                line(*store, "verify", stranger.tip, status=1, never=(SURE,)),
                line(*store, "show", stranger.tip, status=ended),
                line(*store, "diff", before, stranger.tip, status=ended),
                line(*store, "bisect", before, stranger.tip, status=ended),
            ]
        )


# Model folders


MODELS: dict[str, bytes] = {
    "a header of 2^64 - 1 bytes": _header(b"{}", 2**64 - 1),
    "tensors that overlap": _header({"a": _tensor(0, 64, [4, 4]), "b": _tensor(0, 64, [4, 4])})
    + bytes(64),
    "a header of 90 MB": _header(b"{" + b'"a":{},' * (90_000_000 // 7) + b'"z":{}}'),
    "nothing": b"",
}
for _name, _data in MODELS.items():

    @case(f"a model of {_name}", read=len(_data) < LARGE >> 1)
    def _of_model(place: Place, data: bytes = _data) -> Case:
        stranger = handed(place)
        stranger.add(stranger.run())
        folder = place.root / "model"
        folder.mkdir()
        for path in place.template.model.iterdir():
            if path.suffix == ".json":
                (folder / path.name).write_bytes(path.read_bytes())
        (folder / "model.safetensors").write_bytes(data)
        words = ("--store", stranger.path, "verify", "-m", folder, stranger.tip)
        return Case([line(*words, status=4, says="model.safetensors")])
