"""Secrets in texts: what kind of key or password a text seems to hold, never which one.

The patterns are those of detect-secrets, used as plain patterns: its own scan would ask the
services whose tokens it finds whether they are valid, and lets a text say that it holds none.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import NamedTuple

# Those whose patterns name what they look for. Left out: both entropy detectors (random words
# of a model, and digests in prompts, look like keys), IP addresses (no secret), Artifactory's
# (matches words in capitals), Cloudant's and SoftLayer's (slow, and both are gone).
_PLUGINS = {
    "aws": "AWSKeyDetector",
    "azure_storage_key": "AzureStorageKeyDetector",
    "basic_auth": "BasicAuthDetector",
    "discord": "DiscordBotTokenDetector",
    "github_token": "GitHubTokenDetector",
    "gitlab_token": "GitLabTokenDetector",
    "ibm_cloud_iam": "IbmCloudIamDetector",
    "ibm_cos_hmac": "IbmCosHmacDetector",
    "jwt": "JwtTokenDetector",
    "mailchimp": "MailchimpDetector",
    "npm": "NpmDetector",
    "openai": "OpenAIDetector",
    "private_key": "PrivateKeyDetector",
    "pypi_token": "PypiTokenDetector",
    "sendgrid": "SendGridDetector",
    "slack": "SlackDetector",
    "square_oauth": "SquareOAuthDetector",
    "stripe": "StripeDetector",
    "telegram_token": "TelegramBotTokenDetector",
    "twilio": "TwilioKeyDetector",
}
# What it does not know yet, in forms that their services document.
_NEWER = {
    "Anthropic Key": r"\bsk-ant-[a-z]+[0-9]+-[A-Za-z0-9_-]{32,}",
    "GitHub Token": r"\bgithub_pat_[A-Za-z0-9_]{36,}",
    "Google API Key": r"\bAIza[A-Za-z0-9_-]{35}",
    "Hugging Face Token": r"\bhf_[A-Za-z0-9]{34}",
    "OpenAI Token": r"\bsk-(?:proj|svcacct|admin)-[A-Za-z0-9_-]{40,}",
    "Private Key": r"BEGIN ENCRYPTED PRIVATE KEY",
    "Secret Keyword": r"(?m)^(?:export )?[A-Z0-9_]*(?:PASSWORD|PASSWD|SECRET|TOKEN|API_?KEY)"
    r"[A-Z0-9_]*=[^\s$<{]{8,}$",
}
_WORDS = re.compile(r"(?i)key|pass|pwd|secret|contrase")  # each pattern of a keyword has one
_QUOTE = re.compile(r"['\"`]")
# No pattern but those of keywords matches without one of these.
_HINT = re.compile(r"[A-Za-z0-9_/+.:=~-]{16}|://|PRIVATE KEY|PuTTY")
_SHORTEST = 6  # characters of a password in quotes
_WINDOW = 4096  # characters that a pattern sees at once: some are quadratic
_OVERLAP = 1024


class Secret(NamedTuple):
    """What a part of a record seems to hold."""

    commit: str
    part: str
    kind: str  # such as "AWS Access Key"


def kinds(text: str) -> list[str]:
    """The kinds of secrets that a text seems to hold, sorted; [] for none."""
    found: set[str] = set()
    for piece in _pieces(text):
        if _HINT.search(piece):
            found |= {kind for kind, find in _patterns() if any(True for _ in find(piece))}
    if _WORDS.search(text):
        lines = (line for line in text.splitlines() if _WORDS.search(line) and _QUOTE.search(line))
        found |= {"Secret Keyword" for line in lines if any(map(_is_keyword, _pieces(line)))}
    return sorted(found)


def _pieces(text: str) -> Iterator[str]:
    """The text in windows that overlap."""
    for start in range(0, max(1, len(text) - _OVERLAP), _WINDOW - _OVERLAP):
        yield text[start : start + _WINDOW]


def _is_keyword(line: str) -> bool:
    """Says whether a line gives a password in quotes: not a template, a variable or dots."""
    from detect_secrets.filters import heuristic

    return any(
        len(value) >= _SHORTEST
        and not heuristic.is_not_alphanumeric_string(value)
        and not heuristic.is_templated_secret(value)
        and not heuristic.is_prefixed_with_dollar_sign(value)
        for value in _keyword()(line)
    )


@cache
def _patterns() -> list[tuple[str, Callable[[str], Iterable[str]]]]:
    from importlib import import_module

    found: list[tuple[str, Callable[[str], Iterable[str]]]] = []
    for module, name in _PLUGINS.items():
        plugin = getattr(import_module(f"detect_secrets.plugins.{module}"), name)()
        found.append((plugin.secret_type, plugin.analyze_string))
    for kind, pattern in _NEWER.items():
        found.append((kind, re.compile(pattern).findall))
    return found


@cache
def _keyword() -> Callable[[str], Iterable[str]]:
    from detect_secrets.plugins.keyword import KeywordDetector

    return KeywordDetector().analyze_string
