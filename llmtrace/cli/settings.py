"""What the environment and `config.toml` say; nothing else reads either of them.

Order: command line > LLMTRACE_* > `$XDG_CONFIG_HOME/llmtrace/config.toml` > default. Nothing
here may move a bit of a run that its record does not hold.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llmtrace.errors import Trouble

# What git may see of the environment: what a user needs to reach remotes of his own.
NETWORK = (
    *("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"),
    *("GIT_SSH_COMMAND", "SSH_AUTH_SOCK", "KRB5CCNAME", "DBUS_SESSION_BUS_ADDRESS"),
    *("http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_CONFIG_NOSYSTEM"),
)
# What git tells a hook of a push: the repository, and where the pushed objects wait.
PUSH = ("GIT_DIR", "GIT_OBJECT_DIRECTORY")
KEYS = ("store", "model", "device", "threads", "numerics")  # of config.toml; LLMTRACE_KEY each


def is_debugging() -> bool:
    """Says whether a bug should show its traceback."""
    return os.environ.get("LLMTRACE_DEBUG", "") not in {"", "0"}


def wants_colour() -> bool:
    """Says whether colours are welcome on a terminal (https://no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in {None, "", "dumb"}


def completion_request() -> str | None:
    """The shell's question, such as `bash_complete`, when a shell asks for completions."""
    return os.environ.get("_LLMTRACE_COMPLETE") or None


@dataclass(frozen=True)
class Settings:
    """Folders, defaults and compilers of this user.

    A class so that they are read and checked only once.
    """

    store: Path  # a bare repository; need not exist yet
    config: Path  # ours in $XDG_CONFIG_HOME: keys, names, config.toml, models.toml
    cache: Path  # ours in $XDG_CACHE_HOME: compiled kernels
    data: Path  # ours in $XDG_DATA_HOME: the default store
    model: str | None  # None: the sample model
    device: str
    threads: int | None  # None: as many as there are cores
    numerics: str
    compiler: str | None  # CXX
    cpu: str | None  # LLMTRACE_CPU: native, x86-64-v3 or x86-64-v2
    network: Mapping[str, str]  # the variables of NETWORK that are set
    push: Mapping[str, str]  # the variables of PUSH that are set

    @property
    def models(self) -> Path:
        """The file that gives models their names."""
        return self.config / "models.toml"

    @classmethod
    def read(cls, *, store: str | None = None) -> "Settings":
        """Reads environment and configuration; `store` is what the command line says.

        Raises Trouble for a configuration that cannot be read or has an unknown key.
        """
        config = _folder("XDG_CONFIG_HOME", ".config")
        data = _folder("XDG_DATA_HOME", ".local/share")
        chosen = _Chosen.read(config / "config.toml")
        store = store or chosen.text("store")
        return cls(
            store=Path(store).expanduser() if store else data / "store.git",
            config=config,
            cache=_folder("XDG_CACHE_HOME", ".cache"),
            data=data,
            model=chosen.text("model"),
            device=chosen.text("device") or "auto",
            threads=chosen.count("threads"),
            numerics=chosen.text("numerics") or "accuracy",
            compiler=os.environ.get("CXX") or None,
            cpu=os.environ.get("LLMTRACE_CPU") or None,
            network={name: os.environ[name] for name in NETWORK if name in os.environ},
            push={name: os.environ[name] for name in PUSH if name in os.environ},
        )


def _folder(variable: str, default: str) -> Path:
    """Our folder in an XDG folder; their specification says to ignore relative paths."""
    path = Path(os.environ.get(variable, ""))
    if path.is_absolute():
        return path / "llmtrace"
    try:
        return Path.home() / default / "llmtrace"
    except RuntimeError:
        hint = f"set HOME or {variable} to an absolute path"
        raise Trouble("no home directory for this user", hint) from None


class _Chosen(dict[str, tuple[str, object]]):
    """What was chosen for each key, beside the place that says so, for errors."""

    @classmethod
    def read(cls, path: Path) -> "_Chosen":
        chosen = cls()
        for key, value in _table(path).items():
            if key not in KEYS:
                hint = f"the keys are {', '.join(KEYS)}"
                raise Trouble(f"unknown key '{key}' in '{path}'", hint)
            chosen[key] = f"'{key}' in '{path}'", value
        for key in KEYS:
            variable = f"LLMTRACE_{key.upper()}"
            if os.environ.get(variable):
                chosen[key] = f"'{variable}'", os.environ[variable]
        return chosen

    def text(self, key: str) -> str | None:
        if key not in self:
            return None
        place, value = self[key]
        if not isinstance(value, str) or not value:
            raise Trouble(f"{place} must be a text, is {value!r}")
        return value

    def count(self, key: str) -> int | None:
        if key not in self:
            return None
        place, value = self[key]
        if isinstance(value, str) and value.isascii() and value.isdigit():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise Trouble(f"{place} must be a number from 1, is {value!r}")
        return value


def _table(path: Path) -> Mapping[str, object]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise Trouble(f"cannot read '{path}': {error.strerror}") from error
    import tomli

    try:
        return tomli.loads(content.decode())
    except ValueError as error:  # no UTF-8, or no TOML
        raise Trouble(f"cannot read '{path}': {error}") from error
