"""Text to tokens and back, as tokenizer.json says; streamed text equals whole text.

Its one surprise: what a token adds to the text is not a function of the token.
Bytes of one character may be spread over tokens, a leading space goes or stays,
and a byte that makes a run of bytes invalid changes characters already complete.
TextStream therefore holds text back until no later token can change it.
"""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmtrace.errors import Trouble

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import tokenizers

    from llmtrace.model.checkpoint import Checkpoint

HINT = "use --prompt-tokens"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
BYTE_TOKEN = re.compile("<0x.{1,2}>")  # all that the library may take for a byte
INCREMENTAL = (
    "ByteLevel( Fuse)?( Strip)?",
    "(Replace )?(ByteFallback )?Fuse( Strip)?",
    "Metaspace( Fuse)?",
)


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer of one checkpoint."""

    file: Path
    library: tokenizers.Tokenizer
    skipped: frozenset[str]
    """Special tokens, which leave no text."""
    is_incremental: bool
    """Whether what a token adds to a text can be told before the text ends."""

    @staticmethod
    def exists(checkpoint: Checkpoint) -> bool:
        """Says whether the checkpoint has a tokenizer at all."""
        return (checkpoint.path / "tokenizer.json").is_file()

    @classmethod
    def open(cls, checkpoint: Checkpoint) -> Tokenizer:
        """Reads tokenizer.json; raises Trouble where there is none or it is malformed."""
        import tokenizers

        file = checkpoint.path / "tokenizer.json"
        if not cls.exists(checkpoint):
            raise Trouble(f"no 'tokenizer.json' in '{checkpoint.path}'", HINT)
        try:
            with _panic_as_trouble(file):
                library = tokenizers.Tokenizer.from_str(file.read_text("utf-8"))
        except Trouble:
            raise
        except Exception as error:  # the library raises no narrower class
            raise Trouble(f"cannot read '{file}': {error}", HINT) from error
        # A prompt is neither cut nor filled, whatever the model was trained with.
        library.no_truncation()
        library.no_padding()
        added = library.get_added_tokens_decoder().values()
        return cls(
            file=file,
            library=library,
            skipped=frozenset(token.content for token in added if token.special),
            is_incremental=_is_incremental(json.loads(library.to_str()).get("decoder")),
        )

    def encode(self, text: str) -> list[int]:
        """Tokens of a prompt, with the special tokens that the model expects around it."""
        with _panic_as_trouble(self.file):
            return list(self.library.encode(text, add_special_tokens=True).ids)

    def following(self, prompt_tokens: Sequence[int], prompt: str | None, text: str) -> list[int]:
        """Tokens of a text that goes on after a prompt, without special tokens.

        Where both are not the prompt's tokens and more, the text stands by itself.
        """
        with _panic_as_trouble(self.file):
            whole = self.encode(prompt + text) if prompt is not None else []
            if whole[: len(prompt_tokens)] == [*prompt_tokens]:
                return whole[len(prompt_tokens) :]
            return list(self.library.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; special tokens and unknown ids leave none."""
        with _panic_as_trouble(self.file):
            return self.library.decode(list(tokens), skip_special_tokens=True)

    def continuation(self, prompt_tokens: Sequence[int], output_tokens: Sequence[int]) -> str:
        """The text that the output adds after the prompt.

        Where the output changes the prompt's own text (it completes a character
        that the prompt broke off), the text of the output alone.
        """
        prompt = self.decode(prompt_tokens)
        whole = self.decode([*prompt_tokens, *output_tokens])
        if whole.startswith(prompt):
            return whole[len(prompt) :]
        return self.decode(output_tokens)

    def leaves_text(self, token: int) -> bool:
        """Whether the decoder sees this token at all."""
        text = self.library.id_to_token(token)
        return text is not None and text not in self.skipped

    def is_settled(self, last_token: int, text: str) -> bool:
        """Whether a text that ends with this token stays as it is, whatever follows."""
        if text.endswith(REPLACEMENT):
            return False
        return not BYTE_TOKEN.fullmatch(self.library.id_to_token(last_token) or "")


@contextmanager
def _panic_as_trouble(file: Path) -> Iterator[None]:
    # The library is in Rust: where it panics it raises a BaseException, which no
    # 'except Exception' sees, and the process would end with status 1, a verdict's.
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise Trouble(f"the tokenizer of '{file}' failed: {error}", HINT) from error


def _is_incremental(decoder: dict[str, Any] | None) -> bool:
    """Whether we know of this decoder that a settled text only grows.

    So it is where bytes are joined (GPT-2, Llama 3), and where pieces are changed
    one by one and joined, and then spaces taken from the front (sentencepiece).
    """
    steps = [decoder or {"type": "none"}]
    if steps[0]["type"] == "Sequence":
        steps = list(steps[0]["decoders"])
    kinds = " ".join(step["type"] for step in steps)
    if not any(re.fullmatch(known, kinds) for known in INCREMENTAL):
        return False
    return all(
        (step["pattern"], step["content"]) == ({"String": "\u2581"}, " ")
        if step["type"] == "Replace"
        else step.get("stop", 0) == 0
        for step in steps
    )


class TextStream:
    """The continuation of a prompt, token by token.

    All that ``push`` and ``finish`` return, joined, is exactly
    ``tokenizer.continuation(prompt_tokens, pushed tokens)``.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_tokens: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._prompt = list(prompt_tokens)
        self._output: list[int] = []
        self._emitted_size = 0
        self._window: _Window | None = None
        self._decide()

    def push(self, token: int) -> str:
        """Takes one output token; returns the text that is certain by now."""
        self._output.append(token)
        if not self._tokenizer.is_incremental:
            return ""
        if self._window is None:
            return self._count(self._decide())
        return self._count(self._window.push(token))

    def finish(self) -> str:
        """The text that was held back; nothing may be pushed after it."""
        whole = self._tokenizer.continuation(self._prompt, self._output)
        return whole[self._emitted_size :]

    def _count(self, text: str) -> str:
        self._emitted_size += len(text)
        return text

    def _decide(self) -> str:
        # Until the text of prompt and output is settled and covers the prompt's,
        # it is open whether it continues the prompt's or the output stands alone.
        tokenizer = self._tokenizer
        seen = [each for each in self._prompt + self._output if tokenizer.leaves_text(each)]
        prompt, whole = tokenizer.decode(self._prompt), tokenizer.decode(seen)
        if seen and not tokenizer.is_settled(seen[-1], whole):
            return ""
        if whole.startswith(prompt):
            self._window = _Window(tokenizer, seen)
            return whole[len(prompt) :]
        if prompt.startswith(whole):
            return ""
        self._window = _Window(tokenizer, [])
        return "".join(self._window.push(token) for token in self._output)


class _Window:
    """The last few tokens, decoded on their own.

    Starts with tokens whose text is settled. Earlier ones are dropped as soon as
    the rest leave text of their own, so that a decoder which strips the start of
    a text finds there what it may strip.
    """

    def __init__(self, tokenizer: Tokenizer, settled: list[int]) -> None:
        self._tokenizer = tokenizer
        self._tokens = settled
        self._text_size = len(tokenizer.decode(settled))
        self._boundary = len(settled)  # the text before this token is settled

    def push(self, token: int) -> str:
        """Takes a token; returns text that no later token can change."""
        if not self._tokenizer.leaves_text(token):
            return ""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens)
        if not self._tokenizer.is_settled(token, text):
            return ""
        new = text[self._text_size :]
        self._text_size = len(text)
        late = self._tokens[self._boundary :]
        late_text = self._tokenizer.decode(late)
        if late_text:
            self._tokens, self._text_size = late, len(late_text)
            self._boundary = len(late)
        return new
