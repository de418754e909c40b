"""Models of the Hugging Face hub, `hf:org/name@revision`: the one place that downloads any.

Only `model add` comes here. What is downloaded lies in the hub's own cache, where other programs
find it too; its identity is its content, so it does not matter that a revision may move.
"""

from __future__ import annotations

import re
from pathlib import Path

from llmtrace.errors import Misuse, Trouble

PREFIX = "hf:"
FORM = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
    "model*.safetensors",
]


def download(reference: str, endpoint: str | None = None, cache: Path | None = None) -> Path:
    """The folder of a model after what is missing of it was downloaded.

    `endpoint` and `cache` stand in for the hub and for its cache. Raises Misuse for a reference of
    another form and Trouble, with the hub's reason, for whatever keeps the files from coming.
    """
    form = FORM.fullmatch(reference)
    if form is None:
        raise Misuse(f"'{reference}' names no model of the hub", "use hf:org/name@revision")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            form["repo"],
            revision=form["revision"],
            allow_patterns=FILES,
            endpoint=endpoint,
            cache_dir=cache,
        )
    except LocalEntryNotFoundError as error:
        hint = "is there a network? a folder needs none: 'llmtrace model add NAME DIR'"
        raise Trouble(f"cannot reach the hub for '{reference}'", hint) from error
    except (HFValidationError, OSError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise Trouble(f"cannot download '{reference}': {reason}") from error
    return Path(folder)
