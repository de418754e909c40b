"""What a record says of a trace: sections and parts, made by run and made again by verify.

Hides the formats of everything that a replay proves. Reading takes nothing for granted:
a stranger wrote it.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmtrace.engine.request import TOP_P_ALL, Request, Sampling
from llmtrace.errors import Trouble
from llmtrace.probes import first
from llmtrace.probes.records import LEVELS
from llmtrace.probes.scheme import NONE, Scheme
from llmtrace.probes.scheme import read as read_scheme

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from llmtrace.engine.sequence import Trace
    from llmtrace.model.tokenizer import Tokenizer

CHUNK = 1 << 20
"""Bytes of a ``kept.000`` part; the last may be shorter."""
MOST_CHUNKS = 1000
PROBES_FORMATS = (1, 2)
"""Of ``probes.bin``, ``features.json`` and ``scores.json``. New records have the last; those of the
others are made again for ever."""


@dataclass(frozen=True)
class Claim:
    """What a run record claims, in the engine's terms."""

    model: str
    numerics: str
    request: Request
    output: tuple[int, ...]
    finish_reason: str
    level: str
    keep: tuple[str, ...]
    leaves: bool = False
    probes: int = PROBES_FORMATS[-1]
    """Their format; 0 at level ``off``."""
    scheme: Scheme = NONE


def trace_section(trace: Trace, model_id: str, numerics: str) -> dict[str, Any]:
    """Makes the ``trace`` section: all that a replay proves. Its BLAKE3 is the checksum."""
    request, sampling = trace.request, trace.request.sampling
    return {
        "model": model_id,
        "numerics": numerics,
        "prompt_tokens": list(request.prompt),
        "sampling": {
            "temperature": float(sampling.temperature).hex(),
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
        },
        "seed": str(sampling.seed),
        "limits": {"max_tokens": request.max_tokens, "stop": list(request.stop)},
        "output_tokens": list(trace.output),
        "finish_reason": trace.finish_reason,
        "activations": trace.commitment.root.hex(),
    }


def probes_section(
    level: str, keep: tuple[str, ...], *, leaves: bool = False, scheme: Scheme | None = None
) -> dict[str, Any]:
    """Makes the ``probes`` section: what the probe parts hold.

    ``leaves`` and ``scheme`` stand there only where there are any, so that a record without is as
    ever.
    """
    form = PROBES_FORMATS[-1]
    section: dict[str, Any] = {"format": form, "level": level, "keep": sorted(keep)}
    section |= {"leaves": True} if leaves else {}
    return section | ({"scheme": scheme.json()} if scheme and scheme.rules else {})


class TooMuchKept(Trouble):
    """The kept or sampled tensors are more than a record can hold."""


def parts(
    trace: Trace,
    *,
    level: str,
    tokenizer: Tokenizer | None,
    prompt: str | None,
    leaves: bool = False,
    keep: Mapping[str, np.ndarray] | None = None,
) -> dict[str, bytes]:
    """Makes every part of the record. ``prompt`` is None where token ids were given.

    What the probes tell is the trace's observer's, if it has one. ``keep``: the kept tensors that
    go in, None for all of the trace. Raises TooMuchKept.
    """
    made = {"digests.bin": trace.commitment.stored()}
    if prompt is not None:
        made["prompt.txt"] = prompt.encode()
    if tokenizer is not None:
        made["output.txt"] = tokenizer.continuation(trace.request.prompt, trace.output).encode()
    if trace.observer:
        made |= trace.observer.parts()
    elif level != "off":
        made["probes.bin"] = first.probes_bin(level, trace.logprobs, trace.records)
        text = json.dumps(first.features(trace.logprobs, trace.records), indent=1, sort_keys=True)
        made["features.json"] = text.encode() + b"\n"
    if leaves:
        made["leaves.bin"] = trace.leaves()
    kept = trace.kept if keep is None else keep
    if kept:
        packed = pack_tensors(kept)
        if len(packed) > CHUNK * MOST_CHUNKS:
            raise TooMuchKept(
                f"the kept tensors need {len(packed)} bytes", "keep fewer points with --keep"
            )
        for i in range(0, len(packed), CHUNK):
            made[f"kept.{i // CHUNK:03}"] = packed[i : i + CHUNK]
    return made


def pack_tensors(tensors: Mapping[str, np.ndarray]) -> bytes:
    """Gives a safetensors file of float32 and int32 tensors: equal tensors, equal bytes."""
    header, at = {}, 0
    for name in sorted(tensors):
        size = tensors[name].nbytes
        header[name] = {
            "dtype": "I32" if tensors[name].dtype.kind == "i" else "F32",
            "shape": list(tensors[name].shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    kinds = {"i": "<i4", "f": "<f4"}
    data = (t.astype(kinds[t.dtype.kind]).tobytes() for _, t in sorted(tensors.items()))
    return struct.pack("<Q", len(text)) + text + b"".join(data)


def kept_tensors(parts_of: Mapping[str, bytes]) -> bytes:
    """Joins the chunks ``kept.000 …`` of a record to the safetensors file that they hold."""
    return b"".join(parts_of[name] for name in sorted(parts_of) if name.startswith("kept."))


def claim(sections: Mapping[str, Any]) -> Claim:
    """Reads what a record claims; raises Trouble naming the first thing that is malformed."""
    try:
        return _claim(sections["trace"], sections["probes"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise Trouble(f"malformed claim: {error}") from None


def _claim(trace: Any, probes: Any) -> Claim:
    _exactly(
        trace,
        "model numerics prompt_tokens sampling seed limits output_tokens finish_reason activations",
    )
    _exactly(trace["sampling"], "temperature top_k top_p")
    _exactly(trace["limits"], "max_tokens stop")
    extra = [name for name in ("leaves", "scheme") if name in probes]
    _exactly(probes, " ".join(("format level keep", *extra)))
    if type(probes["format"]) is not int or probes["format"] not in PROBES_FORMATS:
        raise ValueError("format of the probes is unknown")
    if probes["level"] not in LEVELS:
        raise ValueError("level of the probes is unknown")
    if "leaves" in probes and probes["leaves"] is not True:
        raise ValueError("leaves is not true")
    scheme = read_scheme(probes["scheme"]) if "scheme" in probes else NONE
    if "scheme" in probes and (probes["format"] < 2 or probes["level"] == "off"):
        raise ValueError("a scheme without probes of format 2")
    sampling = Sampling(
        _temperature(trace["sampling"]["temperature"]),
        _whole(trace["sampling"]["top_k"], 1 << 31),
        _whole(trace["sampling"]["top_p"], TOP_P_ALL + 1),
        _seed(trace["seed"]),
    )
    output = _tokens(trace["output_tokens"])
    if not output:
        raise ValueError("output_tokens is empty")
    limits = trace["limits"]
    request = Request(
        _tokens(trace["prompt_tokens"]),
        _whole(limits["max_tokens"], 1 << 31),
        sampling,
        _tokens(limits["stop"]),
        output,
    )
    keep = tuple(_text(name) for name in probes["keep"])
    if list(keep) != sorted(set(keep)):
        raise ValueError("keep is not sorted, each name once")
    return Claim(
        _text(trace["model"]),
        _text(trace["numerics"]),
        request,
        output,
        _text(trace["finish_reason"]),
        probes["level"],
        keep,
        "leaves" in probes,
        probes["format"] if probes["level"] != "off" else 0,
        scheme,
    )


def _exactly(section: Any, names: str) -> None:
    if not isinstance(section, dict) or set(section) != set(names.split()):
        raise ValueError(f"a section does not hold exactly: {names}")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a text is no string")
    return value


def _whole(value: Any, end: int) -> int:
    if type(value) is not int or not 0 <= value < end:
        raise ValueError("a number is out of range")
    return value


def _tokens(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise TypeError("tokens are no list")
    return tuple(_whole(token, 1 << 31) for token in value)


def _seed(value: Any) -> int:
    seed = (
        int(_text(value)) if _text(value).isascii() and value.isdigit() and len(value) <= 20 else -1
    )
    if not 0 <= seed < 1 << 64 or str(seed) != value:
        raise ValueError("seed is no number below 2^64")
    return seed


def _temperature(value: Any) -> np.float32:
    import numpy as np

    temperature = np.float32(float.fromhex(_text(value)))
    if not (np.isfinite(temperature) and temperature >= 0) or float(temperature).hex() != value:
        raise ValueError("temperature is no float32 from 0 up")
    return temperature
