"""From options and batch lines to requests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmtrace.cli.input import read_lines
from llmtrace.engine.request import TOP_P_ALL, Request, Sampling
from llmtrace.errors import Misuse, Trouble

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from llmtrace.cli.output import Output
    from llmtrace.engine.trace import Model
    from llmtrace.model.tokenizer import Tokenizer

DEFAULT_TOKENS = 64
LINE_KEYS = ("prompt", "prompt_tokens", "max_tokens", "temperature", "top_k", "top_p", "seed")
"""Keys of a batch line; what is absent is as on the command line."""


@dataclass(frozen=True)
class Job:
    """A request, its text (None for token ids), and whether it is the only one."""

    request: Request
    text: str | None
    is_alone: bool


def jobs(
    prompt: str | None,
    options: Mapping[str, Any],
    model: Model,
    tokenizer: Tokenizer | None,
    out: Output,
) -> Iterator[Job]:
    """Gives the requests of one command line, each checked against the model."""
    if options["batch"] is None:
        yield _job({**options, "prompt": prompt}, model, tokenizer, out, is_alone=True)
        return
    for number, line in enumerate(read_lines(options["batch"]), 1):
        where = f"line {number} of '{options['batch']}'"
        try:
            asked = json.loads(line)
        except ValueError as error:
            raise Trouble(f"{where} is not JSON: {error}") from None
        if not isinstance(asked, dict) or not ({"prompt", "prompt_tokens"} & set(asked)):
            raise Trouble(f"{where} is no object with a prompt", '{"prompt": "Once upon a time"}')
        unknown = sorted(set(asked) - set(LINE_KEYS))
        if unknown:
            raise Trouble(
                f"unknown key '{unknown[0]}' in {where}", "the keys are " + ", ".join(LINE_KEYS)
            )
        merged = {**options, "prompt": None, "prompt_tokens": None, **asked}
        try:
            yield _job(merged, model, tokenizer, out, is_alone=False)
        except (Misuse, TypeError, ValueError) as error:
            raise Trouble(f"{where}: {error}") from None


def _job(
    asked: Mapping[str, Any],
    model: Model,
    tokenizer: Tokenizer | None,
    out: Output,
    *,
    is_alone: bool,
) -> Job:
    text = asked["prompt"]
    if asked["prompt_tokens"] is not None:
        tokens = _ids(asked["prompt_tokens"])
    elif tokenizer is None:
        raise Misuse(
            f"model '{model.checkpoint.path}' has no tokenizer.json", "use --prompt-tokens"
        )
    elif not isinstance(text, str):
        raise Misuse("prompt is no text")
    else:
        tokens = tuple(tokenizer.encode(text))
    request = Request(
        tokens,
        _max_tokens(asked["max_tokens"], len(tokens), model, out),
        sampling(asked),
        model.architecture.end_tokens,
    )
    list(model.checked([request]))
    return Job(request, text, is_alone)


def _max_tokens(asked: int | None, prompt: int, model: Model, out: Output) -> int:
    """Gives what fits the context; says so where that is less than was asked for."""
    room = model.architecture.context_length - prompt + 1
    wanted = DEFAULT_TOKENS if asked is None else asked
    if room < 1:
        raise Misuse(
            f"the prompt has {prompt} tokens, the model's context is {room + prompt - 1}",
            "shorten the prompt",
        )
    if wanted > room and asked is not None:
        out.warn(
            f"only {room} tokens fit the model's context of {model.architecture.context_length}"
        )
    return min(wanted, room)


def sampling(asked: Mapping[str, Any]) -> Sampling:
    """Reads temperature, top-k, top-p and seed; raises Misuse for what has no meaning."""
    import numpy as np

    temperature, top_p = np.float32(asked["temperature"]), float(asked["top_p"])
    if not (np.isfinite(temperature) and temperature >= 0):
        raise Misuse(f"temperature '{asked['temperature']}' is not from 0 up")
    if not 0 < top_p <= 1:
        raise Misuse(f"top-p '{asked['top_p']}' is not between 0 and 1")
    if not 0 <= asked["top_k"] < 1 << 31:
        raise Misuse(f"top-k '{asked['top_k']}' is not from 0 up")
    if not 0 <= asked["seed"] < 1 << 64:
        raise Misuse(f"seed '{asked['seed']}' is not below 2^64")
    return Sampling(temperature, int(asked["top_k"]), round(top_p * TOP_P_ALL), int(asked["seed"]))


def _ids(asked: str | list[int]) -> tuple[int, ...]:
    words = asked.replace(",", " ").split() if isinstance(asked, str) else asked
    try:
        return tuple(int(word) for word in words)
    except ValueError:
        raise Misuse(f"'{asked}' is no list of token ids", "--prompt-tokens '1 5 7'") from None
