"""From options and batch lines to requests."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmtrace.cli.input import read_lines
from llmtrace.engine.request import TOP_P_ALL, Request, Sampling, checked
from llmtrace.errors import LlmtraceError, Misuse, Trouble

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from llmtrace.cli.opening import Outline
    from llmtrace.cli.output import Output
    from llmtrace.model.tokenizer import Tokenizer

DEFAULT_TOKENS = 64
LARGEST = float.fromhex("0x1.fffffep+127")  # of float32
LINE_KEYS = {
    "prompt": "text",
    "prompt_tokens": "list of whole numbers",
    "max_tokens": "whole number",
    "temperature": "number",
    "top_k": "whole number",
    "top_p": "number",
    "seed": "whole number",
}
"""Keys of a batch line and what they hold; what is absent is as on the command line."""
LINE = '{"prompt": "Once upon a time"}'


@dataclass(frozen=True)
class Job:
    """A request, its text (None for token ids), and whether it is the only one."""

    request: Request
    text: str | None
    is_alone: bool


def jobs(
    prompt: str | None,
    options: Mapping[str, Any],
    model: Outline,
    tokenizer: Tokenizer | None,
    out: Output,
) -> Iterator[Job]:
    """Gives the requests of one command line, each checked against the model."""
    if options["batch"] is None:
        yield _job({**options, "prompt": prompt}, model, tokenizer, out, is_alone=True)
        return
    for number, line in enumerate(read_lines(options["batch"]), 1):
        where = f"line {number} of '{options['batch']}'"
        merged = {**options, "prompt": None, "prompt_tokens": None, **_read_line(line, where)}
        try:
            yield _job(merged, model, tokenizer, out, is_alone=False)
        except LlmtraceError as error:
            raise Trouble(f"{where}: {error}", *error.hints) from None


def _read_line(line: str, where: str) -> dict[str, Any]:
    """What a line of a batch asks for: keys of LINE_KEYS, each of its kind; Trouble for others."""
    try:
        asked = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Trouble(f"{where} is not JSON: {error}", LINE) from None
    if not isinstance(asked, dict) or len({"prompt", "prompt_tokens"} & set(asked)) != 1:
        raise Trouble(f"{where} is no object with one prompt", LINE)
    for key, value in asked.items():
        if key not in LINE_KEYS:
            raise Trouble(f"unknown key '{key}' in {where}", "the keys are " + ", ".join(LINE_KEYS))
        if not _is(LINE_KEYS[key], value):
            raise Trouble(f"'{key}' in {where} is no {LINE_KEYS[key]}")
    return asked


def _is(kind: str, value: object) -> bool:
    """Says whether a JSON value is of a kind; true and false are no numbers."""
    if kind == "list of whole numbers":
        return isinstance(value, list) and all(_is("whole number", each) for each in value)
    types = {"text": (str,), "whole number": (int,), "number": (int, float)}
    return type(value) in types[kind]


def _job(
    asked: Mapping[str, Any],
    model: Outline,
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
    else:
        tokens = _encoded(text, tokenizer)
    request = Request(
        tokens,
        _max_tokens(asked["max_tokens"], len(tokens), model, out),
        sampling(asked),
        model.architecture.end_tokens,
    )
    list(checked([request], model.architecture))
    return Job(request, text, is_alone)


def _encoded(text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half a pair in JSON, or bytes of the command line
        raise Trouble(f"the prompt is not UTF-8 text at character {error.start}") from None
    return tuple(tokenizer.encode(text))


def _max_tokens(asked: int | None, prompt: int, model: Outline, out: Output) -> int:
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

    if not 0 <= asked["temperature"] <= LARGEST:
        raise Misuse(f"temperature '{asked['temperature']}' is not from 0 up")
    if not 0 < asked["top_p"] <= 1:
        raise Misuse(f"top-p '{asked['top_p']}' is not between 0 and 1")
    if not 0 <= asked["top_k"] < 1 << 31:
        raise Misuse(f"top-k '{asked['top_k']}' is not from 0 up")
    if not 0 <= asked["seed"] < 1 << 64:
        raise Misuse(f"seed '{asked['seed']}' is not below 2^64")
    temperature, top_p = np.float32(asked["temperature"]), round(asked["top_p"] * TOP_P_ALL)
    return Sampling(temperature, asked["top_k"], top_p, asked["seed"])


def _ids(asked: str | list[int]) -> tuple[int, ...]:
    if not isinstance(asked, str):
        return tuple(asked)
    words = asked.replace(",", " ").split()
    if not all(re.fullmatch("[0-9]{1,9}", word) for word in words):
        raise Misuse(f"'{asked}' is no list of token ids", "--prompt-tokens '1 5 7'")
    return tuple(map(int, words))
