"""What is refused, from the outside: each a process of its own, as somebody would start it.

A refusal is one error line, hints where there is something to do, an exit status that is no
verdict and an empty standard output. Nothing is written, not even in part.
"""

import json
import os
import resource
import shlex
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from checkpoints import make
from llmtrace.store.chain import Store

ROOT = Path(__file__).parents[1]
PROGRAM = (sys.executable, "-m", "llmtrace")
NO_ZIG = "import sys; sys.modules['ziglang'] = None; from llmtrace.cli import main; "
WITHOUT_ZIG = (sys.executable, "-c", NO_ZIG + "sys.exit(main())")
Words = str | bytes | Path


class Answer(NamedTuple):
    status: int
    out: bytes
    err: str


class Home:
    """A home with its settings, its cache of kernels shared with all tests."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = path / ".local/share/llmtrace/store.git"
        self.env = os.environ | {
            "HOME": str(path),
            "PYTHONPATH": str(ROOT),
            "LLMTRACE_DEVICE": "cpu",
            "LLMTRACE_THREADS": "1",
        }
        path.mkdir(exist_ok=True)

    def call(
        self,
        *arguments: Words,
        env: dict[str, str] | None = None,
        program: tuple[str, ...] = PROGRAM,
        stdin: bytes = b"",
        **settings: Any,
    ) -> Answer:
        done = subprocess.run(
            [*program, *arguments],
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | settings,
            input=stdin,
            env=self.env | (env or {}),
            cwd=self.path,
            timeout=300,
            check=False,
        )
        return Answer(done.returncode, done.stdout or b"", (done.stderr or b"").decode())

    def files(self) -> dict[str, bytes | None]:
        """Everything here but the models: what a refusal leaves as it was."""
        found = (path for path in self.path.rglob("*") if "models" not in path.parts)
        return {str(p): p.read_bytes() if p.is_file() else None for p in found}

    def count(self) -> int:
        """How many records the store holds, sound ones all of them."""
        done = subprocess.run(
            ["git", "-C", self.store, "fsck", "--strict", "--no-dangling"],
            capture_output=True,
            check=True,
        )
        assert [line for line in done.stderr.splitlines() if b"notice" not in line] == []
        store = Store.open(self.store, self.path / ".config/llmtrace/keys")
        return len([entry.record for entry in store.log()])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with a model and a record."""
    home = Home(tmp_path_factory.mktemp("place"))
    make(home.path / "models" / "tiny", hidden=32, heads=2, kv_heads=1, ff=32)
    assert home.call(*RUN, "hi").status == 0
    assert home.count() == 2
    return home


RUN = ("run", "-m", "models/tiny", "-n", "2")


def refused(home: Home, *arguments: Words, status: int, said: str, hint: str, **how: Any) -> Answer:
    """Asserts that a command line is refused in this way, and that nothing happened."""
    before = home.files()
    answer = home.call(*arguments, **how)
    assert answer.status == status, answer
    errors, *hints = answer.err.splitlines()
    assert errors.startswith("llmtrace: error: "), answer.err
    assert said in errors
    assert all(line.startswith("llmtrace: hint: ") for line in hints), answer.err
    assert hint in "".join(hints) if hint else not hints
    assert "bug:" not in answer.err
    assert home.files() == before
    if "stdout" not in how and "--json" not in arguments:
        assert answer.out == b""
    return answer


# The command line

CONTEXT = 512
SEE = "see 'llmtrace run --help'"
OPTIONS: dict[str, tuple[int, str, str]] = {
    "-d nonsense": (2, "no device 'nonsense'", "cuda:N"),
    "-d cpu:1": (2, "no device 'cpu:1'", "cuda:N"),
    "-d cuda:x": (2, "no device 'cuda:x'", "cuda:N"),
    "-d cuda": (3, "no GPU 'cuda:0'", "use -d cpu"),
    "-d cuda:7": (3, "no GPU 'cuda:7'", "use -d cpu"),
    "--threads 0": (2, "invalid value for '--threads': 0", SEE),
    "--threads 2000": (2, "invalid value for '--threads': 2000", SEE),
    "--temperature -1": (2, "temperature '-1.0' is not from 0 up", ""),
    "--temperature nan": (2, "temperature 'nan'", ""),
    "--temperature inf": (2, "temperature 'inf'", ""),
    "--temperature 1e39": (2, "temperature '1e+39'", ""),
    "--temperature warm": (2, "invalid value for '--temperature'", SEE),
    "--top-p 0": (2, "top-p '0.0' is not between 0 and 1", ""),
    "--top-p 1.5": (2, "top-p '1.5'", ""),
    "--top-p nan": (2, "top-p 'nan'", ""),
    "--top-k -1": (2, "top-k '-1' is not from 0 up", ""),
    "--top-k 2147483648": (2, "top-k '2147483648'", ""),
    "--seed -1": (2, "seed '-1' is not below 2^64", ""),
    "--seed 18446744073709551616": (2, "seed '18446744073709551616'", ""),
    "-n 0": (2, "max tokens is '0'", "at least one token"),
    "-n -1": (2, "max tokens is '-1'", "at least one token"),
    "--keep nonsense": (2, "no point 'nonsense' in this model", "blocks.0.hook_resid_post"),
    "--numerics fast": (3, "no numerics 'fast' in this llmtrace", "it knows: accuracy"),
    "--numerics nonsense": (3, "no numerics 'nonsense'", "it knows: accuracy"),
    "--draft nowhere": (4, "no model 'nowhere'", "llmtrace model list"),
    "--draft sample": (2, "the draft model has 2048 tokens, the model 259", "with 'ngram'"),
    "--probe all": (2, "invalid value for '--probe'", SEE),
    "--format xml": (2, "invalid value for '--format'", SEE),
    "--file x": (2, "PROMPT and --file cannot be used together", ""),
    "--prompt-tokens 1": (2, "PROMPT and --prompt-tokens cannot be used together", ""),
    "--batch x": (2, "PROMPT and --batch cannot be used together", ""),
    "-q -v": (2, "--quiet and --verbose cannot be used together", ""),
    "more": (2, "got unexpected extra argument (more)", SEE),
}


@pytest.mark.parametrize("options", OPTIONS)
def test_options_without_meaning(place: Home, options: str) -> None:
    status, said, hint = OPTIONS[options]
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    words = options.split()
    refused(place, *RUN, "hi", *words, status=status, said=said, hint=hint, env=hidden)


PROMPTS: dict[str, tuple[tuple[Words, ...], bytes, int, str, str]] = {
    "too long": (("a" * CONTEXT,), b"", 2, "the prompt has 513 tokens", "shorten the prompt"),
    "too long, from stdin": ((), b"a" * CONTEXT, 2, "the prompt has 513 tokens", "shorten"),
    "no UTF-8, argument": ((b"\xe9t\xe9",), b"", 4, "the prompt is not UTF-8", ""),
    "no UTF-8, stdin": ((), b"ab\xff", 4, "standard input is not UTF-8 text at byte 2", ""),
    "no UTF-8, file": (("-f", "latin1"), b"", 4, "'latin1' is not UTF-8 text at byte 1", ""),
    "no file": (("-f", "nowhere"), b"", 4, "cannot read 'nowhere': No such file", ""),
    "folder": (("-f", "."), b"", 4, "cannot read '.': Is a directory", ""),
    "file of a name that is no text": (("-f", b"\xff"), b"", 4, "cannot read '\\udcff'", ""),
    "ids": (("--prompt-tokens", "1 x"), b"", 2, "'1 x' is no list of token ids", "'1 5 7'"),
    "ids, fractions": (("--prompt-tokens", "1.5"), b"", 2, "'1.5' is no list", "'1 5 7'"),
    "ids, other digits": (("--prompt-tokens", "\uff11"), b"", 2, "is no list", "'1 5 7'"),
    "ids, underscores": (("--prompt-tokens", "1_0"), b"", 2, "is no list", "'1 5 7'"),
    "ids, no text": (("--prompt-tokens", b"\xff"), b"", 2, "is no list", "'1 5 7'"),
    "ids, negative": (("--prompt-tokens", "-1"), b"", 2, "'-1' is no list", "'1 5 7'"),
    "ids, endless": (("--prompt-tokens", "9" * 5000), b"", 2, "is no list", "'1 5 7'"),
    "ids, beyond": (("--prompt-tokens", "259"), b"", 2, "no token '259' in a vocabulary", ""),
    "ids, none": (("--prompt-tokens", ""), b"", 2, "the prompt has no tokens", "at least one"),
    "ids, too many": (("--prompt-tokens", "1 " * 513), b"", 2, "513 tokens", "shorten"),
}


@pytest.mark.parametrize("case", PROMPTS)
def test_prompts_that_are_none(place: Home, case: str) -> None:
    arguments, stdin, status, said, hint = PROMPTS[case]
    (place.path / "latin1").write_bytes("né".encode("latin1"))
    refused(place, *RUN, *arguments, stdin=stdin, status=status, said=said, hint=hint)


def test_an_empty_prompt_is_what_the_tokenizer_makes_of_it(place: Home) -> None:
    folder = broken(place, lambda folder: edit(folder / "tokenizer.json", post_processor=None))
    run = ("run", "-m", folder, "-n", "2")
    refused(place, *run, "", status=2, said="the prompt has no tokens", hint="at least one")
    refused(place, *run, "-", status=2, said="the prompt has no tokens", hint="at least one")
    assert place.call(*RUN, "--no-commit", "").status == 0  # this one begins every text with <s>


def test_more_tokens_than_fit_are_cut_with_a_warning(place: Home) -> None:
    answer = place.call(*RUN, "--no-commit", "-n", "1" + "0" * 30, "a" * (CONTEXT - 4))
    assert answer.status == 0
    assert answer.err == f"llmtrace: warning: only 4 tokens fit the model's context of {CONTEXT}\n"


GOOD = '{"prompt": "hi"}'
LINES: dict[str, tuple[str, str]] = {
    "{": ("line 2 of '-' is not JSON: ", GOOD[:10]),
    "[" * 100_000: ("line 2 of '-' is not JSON: ", GOOD[:10]),
    "1" * 5000: ("line 2 of '-' is not JSON: ", GOOD[:10]),
    "[]": ("line 2 of '-' is no object with one prompt", GOOD[:10]),
    "{}": ("line 2 of '-' is no object with one prompt", GOOD[:10]),
    '{"prompt": "a", "prompt_tokens": [1]}': ("no object with one prompt", GOOD[:10]),
    '{"prompt": "a", "stop": 1}': ("unknown key 'stop' in line 2 of '-'", "the keys are prompt"),
    '{"prompt": null}': ("'prompt' in line 2 of '-' is no text", ""),
    '{"prompt": 5}': ("'prompt' in line 2 of '-' is no text", ""),
    '{"prompt": "\\ud83d"}': ("line 2 of '-': the prompt is not UTF-8", ""),
    '{"prompt": "\udcff"}': ("line 2 of standard input is not UTF-8 text", ""),
    '{"prompt_tokens": "1 2"}': ("'prompt_tokens' in line 2 of '-' is no list of", ""),
    '{"prompt_tokens": [1.5]}': ("'prompt_tokens' in line 2 of '-' is no list of", ""),
    '{"prompt_tokens": [true]}': ("'prompt_tokens' in line 2 of '-' is no list of", ""),
    '{"prompt_tokens": []}': ("line 2 of '-': the prompt has no tokens", "at least one"),
    '{"prompt_tokens": [-1]}': ("line 2 of '-': no token '-1' in a vocabulary of 259", ""),
    '{"prompt": "a", "max_tokens": "3"}': ("'max_tokens' in line 2 of '-' is no whole", ""),
    '{"prompt": "a", "max_tokens": 2.5}': ("'max_tokens' in line 2 of '-' is no whole", ""),
    '{"prompt": "a", "max_tokens": 0}': ("line 2 of '-': max tokens is '0'", "at least one"),
    '{"prompt": "a", "seed": 1.5}': ("'seed' in line 2 of '-' is no whole number", ""),
    '{"prompt": "a", "temperature": null}': ("'temperature' in line 2 of '-' is no num", ""),
    '{"prompt": "a", "temperature": NaN}': ("line 2 of '-': temperature 'nan'", ""),
    '{"prompt": "a", "temperature": 1%s}' % ("0" * 400): ("line 2 of '-': temperature '1", ""),
    '{"prompt": "a", "top_p": 2}': ("line 2 of '-': top-p '2' is not between 0 and 1", ""),
    '{"prompt": "%s"}' % ("a" * CONTEXT): ("line 2 of '-': the prompt has 513", "shorten"),
}


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[:40])
def test_one_bad_line_of_a_batch_stops_all_of_it(place: Home, line: str) -> None:
    stdin = "\n".join([GOOD, line, GOOD]).encode("utf-8", "surrogateescape")
    said, hint = LINES[line]
    refused(place, *RUN, "--batch", "-", stdin=stdin, status=4, said=said, hint=hint)


def test_a_batch_of_one_line_prints_its_text_once(place: Home) -> None:
    alone = place.call(*RUN, "--no-commit", "hi").out
    assert place.call(*RUN, "--no-commit", "--batch", "-", stdin=GOOD.encode()).out == alone


def test_a_line_that_overflows_leaves_the_others_alone(tmp_path: Path) -> None:
    """They are recorded and printed, and then it is said which one failed."""
    home = Home(tmp_path / "home")
    make(home.path / "models" / "tiny", hidden=32, heads=2, kv_heads=1, ff=32)
    infinite = tensors(lambda t: t["model.embed_tokens.weight"][ord("z")].fill_(float("inf")))
    folder = broken(home, infinite)
    lines = "".join(json.dumps({"prompt": text}) + "\n" for text in ("hi", "a z", "ho", "z"))
    run = ("run", "-m", folder, "-n", "3", "--batch", "-", "--json")
    answer = home.call(*run, stdin=lines.encode())
    assert answer.status == 4
    found = [json.loads(line) for line in answer.out.splitlines()]
    assert [line.get("prompt") for line in found] == ["hi", "ho", None]
    said, hint = answer.err.splitlines()[-2:]
    assert said == ("llmtrace: error: line 2: value at 'hook_embed', position 3, is not finite")
    assert hint.startswith("llmtrace: hint: tensor 'model.embed_tokens.weight' of '")
    assert home.count() == 3


ENDS = {
    "-n 0": 2,
    "-d nonsense": 2,
    "-m nowhere": 4,
    "--numerics fast": 3,
    "-m models/tiny/config.json": 4,
}


@pytest.mark.parametrize("options", ENDS)
@pytest.mark.parametrize("json_", [("--json",), ("--format", "json")], ids=" ".join)
def test_json_ends_with_an_end_whatever_is_refused(
    place: Home, options: str, json_: tuple[str, ...]
) -> None:
    answer = place.call(*RUN, "hi", *json_, *options.split())
    assert answer.status == ENDS[options]
    assert json.loads(answer.out) == {"v": 1, "type": "end", "status": answer.status}


# Models


def broken(home: Home, change: Callable[[Path], object]) -> Path:
    """A copy of the model, changed."""
    folder = home.path / "models" / "broken"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(home.path / "models" / "tiny", folder)
    change(folder)
    return folder


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_bytes()) | changes))


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", **changes)


def gone(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def text(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def cut(size: int) -> Callable[[Path], None]:
    """Keeps so many bytes of the weights."""

    def change(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:size])

    return change


def header(content: bytes, size: int | None = None) -> Callable[[Path], object]:
    length = struct.pack("<Q", len(content) if size is None else size)
    return text("model.safetensors", length + content)


def tensors(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        file = folder / "model.safetensors"
        stored = load_file(file)
        change(stored)
        save_file(stored, file)

    return rewrite


NORM = "model.norm.weight"
UP = "model.layers.1.mlp.up_proj.weight"


def as_type(name: str) -> Callable[[Path], None]:
    def change(stored: dict[str, Any]) -> None:
        import torch

        stored[NORM] = stored[NORM].to(getattr(torch, name))

    return tensors(change)


def no_shard(folder: Path) -> None:
    shutil.rmtree(folder)
    make(folder, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()


CONVERT = "convert it: llmtrace reads BF16, F16 and F32"
MODELS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no folder": (shutil.rmtree, "no model '", "llmtrace model list"),
    "no config": (gone("config.json"), "no 'config.json' in '", "a model is a Hugging Face folder"),
    "config cut": (text("config.json", b'{"a": '), "/config.json': Expecting", "fetch the model"),
    "config no UTF-8": (text("config.json", b"\xff"), "/config.json': ", "fetch the model"),
    "config deep": (text("config.json", b"[" * 10**5), "/config.json': maximum", "fetch the"),
    "no weights": (gone("model.safetensors"), "no 'model.safetensors' or '", "fetch the model"),
    "weights empty": (cut(0), "/model.safetensors': ", "fetch the model again"),
    "header cut": (cut(100), "/model.safetensors': ", "fetch the model again"),
    "data cut": (cut(-100), "/model.safetensors': ", "fetch the model again"),
    "header garbage": (header(b'{"a": nonsense}'), "/model.safetensors': ", "fetch the model"),
    "header no UTF-8": (header(b"\xff" * 64), "/model.safetensors': ", "fetch the model again"),
    "header huge": (header(b"{}", 2**60), "/model.safetensors': ", "fetch the model again"),
    "no shard": (no_shard, "shard '", "fetch the model again"),
    "no tensor": (tensors(lambda t: t.pop(NORM)), f"no tensor '{NORM}' in '", "shape [32]"),
    "tensor's shape": (
        tensors(lambda t: t.update({NORM: t[NORM][:31].clone()})),
        "has shape [31], expected [32]",
        "",
    ),
    "tensor unknown": (
        tensors(lambda t: t.update(more=t[NORM].clone())),
        "tensor 'more' of '",
        "",
    ),
    "I8": (as_type("int8"), "has dtype 'I8'", CONVERT),
    "F64": (as_type("float64"), "has dtype 'F64'", CONVERT),
    "F8": (as_type("float8_e4m3fn"), "has dtype 'F8_E4M3'", CONVERT),
    "NaN": (
        tensors(lambda t: t[UP][3, 4].fill_(float("nan"))),
        "value at 'blocks.1.mlp.hook_pre_linear', position 0, is not finite",
        f"tensor '{UP}' of '",
    ),
    "NaN embedding": (
        tensors(lambda t: t["model.embed_tokens.weight"].fill_(float("inf"))),
        "value at 'hook_embed', position 0, is not finite",
        "tensor 'model.embed_tokens.weight' of '",
    ),
    "family": (config(model_type="gpt2"), "model type 'gpt2' is not supported", "runs llama"),
    "class": (config(architectures=["Other"]), "architectures '['Other']'", "runs llama"),
    "rope": (
        config(rope_parameters={"rope_type": "spiral"}),
        "rope type 'spiral' is unknown",
        "llmtrace reads default, linear",
    ),
    "quantised": (
        config(quantization_config={"quant_method": "gptq"}),
        "option 'quantization_config' of 'config.json' is not supported",
        "",
    ),
    "layers": (config(num_hidden_layers=10**9), "num_hidden_layers '1000000000'", ""),
    "vocabulary": (config(vocab_size=10**12), "expected [1000000000000, 32]", ""),
    "tokenizer cut": (text("tokenizer.json", b"{}"), "/tokenizer.json': ", "use --prompt-tokens"),
    "tokenizer no UTF-8": (text("tokenizer.json", b"\xff"), "/tokenizer.json': ", "--prompt-"),
}


@pytest.mark.parametrize("case", MODELS)
def test_models_that_cannot_run(place: Home, case: str) -> None:
    change, said, hint = MODELS[case]
    folder = broken(place, change)
    refused(place, "run", "-m", folder, "hi", "-n", "2", status=4, said=said, hint=hint)


def test_no_tokenizer_needs_token_ids(place: Home) -> None:
    folder = broken(place, gone("tokenizer.json"))
    run = ("run", "-m", folder, "-n", "2", "--no-commit")
    refused(place, *run, "hi", status=2, said="has no tokenizer.json", hint="use --prompt-tokens")
    assert place.call(*run, "--prompt-tokens", "1 2").status == 0


def test_a_run_beyond_all_memory_is_no_bug(place: Home) -> None:
    folder = broken(place, config(max_position_embeddings=10**14))
    run = ("run", "-m", folder, "-n", str(10**13), "hi")
    refused(place, *run, status=4, said="no room for ", hint="fewer tokens")


# Stores


@pytest.fixture(scope="module")
def foreign(place: Home) -> Path:
    """A git repository of somebody's own with one commit, and a bare clone of it."""
    folder = place.path / "theirs"
    quiet = {"GIT_CONFIG_GLOBAL": os.devnull, "HOME": str(place.path)}
    names = {
        f"GIT_{who}_{what}": "a" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    for arguments in (
        ["init", folder],
        ["-C", folder, "commit", "-m", "first", "--allow-empty"],
        ["clone", "--bare", folder, place.path / "bare.git"],
    ):
        command = ["git", *arguments, "--quiet"]
        subprocess.run(command, check=True, env=os.environ | quiet | names)
    (place.path / "file").write_text("not a store\n")
    return folder


STORES = {
    "file": ("cannot make the store 'file': not a directory", ""),
    "file/store.git": ("cannot make the store 'file/store.git': not a directory", ""),
    "/proc/nowhere/store.git": ("cannot make the store '/proc/nowhere/store.git': no such", ""),
    "theirs": ("cannot make the store 'theirs': directory not empty", ""),
    "theirs/.git": ("'theirs/.git' is a git repository, but no store", "with --store DIR"),
    "bare.git": ("'bare.git' is a git repository, but no store", "with --store DIR"),
    "models/tiny": ("cannot make the store 'models/tiny': directory not empty", ""),
}


@pytest.mark.parametrize("path", STORES)
@pytest.mark.usefixtures("foreign")
def test_what_is_no_store_is_not_touched(place: Home, path: str) -> None:
    said, hint = STORES[path]
    refused(place, *RUN, "hi", "--store", path, status=4, said=said, hint=hint)


def test_keys_that_are_elsewhere_or_cannot_be_written(place: Home, tmp_path: Path) -> None:
    other = {"XDG_CONFIG_HOME": str(tmp_path)}
    refused(place, *RUN, "hi", env=other, status=4, said="no key of ", hint="llmtrace init")
    fresh = Home(tmp_path / "home")
    nowhere = {"XDG_CONFIG_HOME": "/proc/nowhere"}
    answer = fresh.call("init", env=nowhere)
    assert answer.status == 4
    assert answer.err.startswith("llmtrace: error: cannot write '/proc/nowhere/llmtrace/keys/")
    assert (fresh.call("init").status, fresh.count()) == (0, 1)


REVISIONS = [
    "nonsense",
    "HEAD~99",
    "HEAD^{tree}",
    "HEAD:record.json",
    "nowhere..else",
    "",
    b"\xe9",
    "0" * 40,
]


@pytest.mark.parametrize("revision", REVISIONS, ids=ascii)
def test_verify_of_what_is_no_record(place: Home, revision: Words) -> None:
    refused(place, "verify", "--", revision, status=4, said="no record '", hint="llmtrace log")


@pytest.mark.parametrize("name", ["HEAD^{tree}", "HEAD:record.json"])
def test_verify_of_the_id_of_a_tree_or_a_blob(place: Home, name: str) -> None:
    command = ["git", "-C", place.store, "rev-parse", name]
    oid = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    answer = refused(
        place, "verify", "--json", oid, status=4, said=f"no record '{oid}'", hint="llmtrace log"
    )
    assert json.loads(answer.out) == {"v": 1, "type": "end", "status": 4}


VERIFIED: dict[str, tuple[int, str, str]] = {
    "": (2, "missing argument 'COMMIT...'", "see 'llmtrace verify --help'"),
    "HEAD --store nowhere": (4, "no store at 'nowhere'", "llmtrace init --store nowhere"),
    "HEAD --store file": (4, "no store at 'file'", "llmtrace init"),
    "HEAD --store theirs": (4, "no store at 'theirs'", "llmtrace init"),
    "HEAD -m nowhere": (4, "no model 'nowhere'", "llmtrace model list"),
    "HEAD -m models/tiny -d nonsense": (2, "no device 'nonsense'", "cuda:N"),
    "HEAD -d nonsense": (2, "no device 'nonsense'", "cuda:N"),
    "HEAD --threads 0": (2, "invalid value for '--threads'", "see 'llmtrace verify --help'"),
    "-": (4, "line 2 of standard input is not UTF-8 text", ""),
}


@pytest.mark.parametrize("arguments", VERIFIED)
@pytest.mark.usefixtures("foreign")
def test_verify_that_cannot_begin(place: Home, arguments: str) -> None:
    status, said, hint = VERIFIED[arguments]
    words = arguments.split()
    refused(place, "verify", *words, stdin=b"\n\xff\n", status=status, said=said, hint=hint)


def test_verify_of_a_foreign_commit_is_invalid(place: Home, foreign: Path) -> None:
    before = place.files()
    answer = place.call("verify", "HEAD", "--store", foreign / ".git")
    assert (answer.status, answer.err) == (1, "")
    assert answer.out.startswith(b"invalid ")
    assert place.files() == before


def test_verify_where_no_gpu_is_is_inconclusive(place: Home) -> None:
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    answer = place.call("verify", "HEAD", "-m", "models/tiny", "-d", "cuda", env=hidden)
    assert (answer.status, answer.err) == (3, "")
    assert answer.out.startswith(b"inconclusive ")
    assert b"no GPU 'cuda:0'" in answer.out


# Compilers


def script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\nfor last; do :; done\n{body}\n")  # $last: what is to be written
    path.chmod(0o755)
    return str(path)


COMPILERS: dict[str, tuple[str, int, str, str]] = {
    "nonexistent": ("", 3, "no C++ compiler 'nonexistent'", "install g++ or clang"),
    "fails": ("echo an error: no >&2; exit 7", 4, "exited 7: an error: no", "set CXX to another"),
    "says nothing": ("exit 7", 4, "exited 7: it said nothing", "set CXX to another"),
    "writes nothing": ("exit 0", 4, "exited 0: it said nothing", "set CXX to another"),
    "writes half": ('echo junk >"$last"; exit 1', 4, "exited 1: it said nothing", "set CXX"),
    "is killed": ('echo junk >"$last"; kill -9 $$', 4, "was killed: it said nothing", "set CXX"),
    "fills the disk": (
        'exec head -c 1000000 /dev/zero >"$last"',
        4,
        "was killed: it said nothing",
        "set CXX",
    ),
}


@pytest.mark.parametrize("case", COMPILERS)
def test_compilers_that_do_not_compile(place: Home, tmp_path: Path, case: str) -> None:
    body, status, said, hint = COMPILERS[case]
    cxx = script(tmp_path / "cxx", body) if body else case
    refused(
        place,
        *RUN,
        "-q",
        "hi",
        status=status,
        said=said,
        hint=hint,
        env={"XDG_CACHE_HOME": str(tmp_path / "cache"), "CXX": cxx},
        preexec_fn=small_files(100_000),
    )
    assert not list((tmp_path / "cache" / "llmtrace").glob("kernels/*"))


def test_a_compiler_that_is_no_program(place: Home, tmp_path: Path) -> None:
    (tmp_path / "cxx").write_text("junk")
    (tmp_path / "cxx").chmod(0o755)
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "CXX": str(tmp_path / "cxx")}
    said = f"cannot run '{tmp_path / 'cxx'}': Exec format error"
    refused(place, *RUN, "-q", "hi", status=4, said=said, hint="set CXX", env=env)


def test_no_compiler_at_all(place: Home, tmp_path: Path) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PATH": str(tmp_path), "CXX": ""}
    hint = "pip install 'llmtrace[compiler]'"
    how = {"status": 3, "said": "no C++ compiler found", "hint": hint}
    refused(place, *RUN, "hi", **how, env=env, program=WITHOUT_ZIG)


def test_no_such_host_build(place: Home) -> None:
    env = {"LLMTRACE_CPU": "nonsense"}
    said, hint = "no host build 'nonsense'", "native, x86-64-v3, x86-64-v2"
    refused(place, *RUN, "hi", status=4, said=said, hint=hint, env=env)


def test_a_cache_that_cannot_be_made(place: Home, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    env = {"XDG_CACHE_HOME": str(tmp_path / "file"), "CXX": script(tmp_path / "cxx", "exit 1")}
    said, hint = f"cannot write '{tmp_path}/file/llmtrace/kernels'", "set XDG_CACHE_HOME"
    refused(place, *RUN, "-q", "hi", status=4, said=said, hint=hint, env=env)


# Full disks


def small_files(size: int) -> Callable[[], None]:
    """For a process that cannot write more into a file, as if the disk were full there."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def unfinished(folder: Path) -> list[str]:
    """What a writer that gave up should have removed."""
    names = {path.name for path in folder.rglob("*")}
    return [name for name in names if name.endswith((".new", ".part")) or name.startswith("tmp")]


@pytest.mark.parametrize("size", [0, 60, 150, 500])
def test_a_record_that_finds_no_room_leaves_the_chain_as_it_was(place: Home, size: int) -> None:
    count, before = place.count(), place.files()
    answer = place.call(*RUN, "--format", "id", "hi", preexec_fn=small_files(size))
    assert (answer.status, answer.out) == (4, b"")
    assert answer.err.startswith("llmtrace: error: cannot write the store '")
    assert answer.err.count("\n") == 1
    assert place.files() == before
    assert place.call(*RUN, "hi").status == 0
    assert place.count() == count + 1


@pytest.mark.parametrize("size", [0, 200, 300, 400])
def test_a_store_that_finds_no_room_can_be_made_later(tmp_path: Path, size: int) -> None:
    home = Home(tmp_path / "home")
    answer = home.call("init", preexec_fn=small_files(size))
    assert (answer.status, answer.out) == (4, b"")
    assert answer.err.startswith("llmtrace: error: cannot write ")
    assert answer.err.count("\n") == 1
    assert not unfinished(home.path)
    assert home.call("init").status == 0
    assert home.count() == 1


def mounted(home: Home, mount: str, *lines: str) -> list[str]:
    """What a shell with a mount of its own prints; `llmtrace` is a command there."""
    program = " ".join(map(shlex.quote, PROGRAM))
    begin = [f'llmtrace() {{ {program} "$@"; }}', f"{mount} || exit 99"]
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if not shutil.which("unshare"):
        pytest.skip("no unshare")
    done = subprocess.run(
        [*command, "\n".join([*begin, *lines])],
        cwd=home.path,
        env=home.env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode == 99 or done.stderr.startswith("unshare: "):
        pytest.skip(f"no mount here: {done.stderr.strip()}")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_a_full_disk_leaves_the_chain_sound(place: Home, tmp_path: Path) -> None:
    """Files of 4 KiB each: a record needs about ten, so these end at different steps."""
    home = Home(tmp_path / "home")
    run = f"llmtrace run -m {place.path}/models/tiny -n 2 --probe off --format id hi"
    lines = mounted(
        home,
        'mount -t tmpfs -o size=1M tmpfs "$HOME" && cd "$HOME"',
        run,
        "for free in 0 2 5 8 12; do",
        "  head -c 2M /dev/zero >filler 2>/dev/null",
        '  truncate -s "-$((free * 4096))" filler',
        f"  {run} 2>&1; rm filler",
        "  git --git-dir .local/share/llmtrace/store.git fsck --strict --no-dangling 2>&1",
        "done",
        run,
        f"find . -name '*.new' -o -name 'tmp*'; cp -r . {home.path}.copy",
    )
    copy = Home(Path(f"{home.path}.copy"))
    made = [line for line in lines if len(line) == 40]
    errors = [line for line in lines if len(line) != 40]
    assert errors
    assert all(line.endswith("': no space left on device") for line in errors), errors
    assert len(made) + len(errors) == 7
    assert copy.count() in range(1 + len(made), 1 + 7)  # a record may be completed afterwards
    ids = {entry.id for entry in Store.open(copy.store, Path("unused")).log()}
    assert {*made} <= ids


def test_a_read_only_store(place: Home) -> None:
    before = place.files()
    store = shlex.quote(str(place.store))
    lines = mounted(
        place,
        f"mount --bind {store} {store} && mount -o remount,bind,ro {store}",
        f"llmtrace {' '.join(RUN)} --format id hi 2>&1; echo $?",
        "llmtrace verify -m models/tiny HEAD; echo $?",
    )
    error, status, verdict, verified = lines
    assert error.startswith("llmtrace: error: cannot ")
    assert error.endswith(": read-only file system")
    assert (status, verdict[:9], verified) == ("4", "verified ", "0")
    assert place.files() == before


def test_a_full_disk_takes_nothing_of_a_fetch(place: Home, tmp_path: Path) -> None:
    """The disk ends at different steps: the scratch repository, the transfer, the pack, the ref."""
    home = Home(tmp_path / "home")
    store = ".local/share/llmtrace/store.git"
    listed = f"find {store} -type f -exec sha256sum {{}} + | sort | sha256sum"
    lines = mounted(
        home,
        'mount -t tmpfs -o size=1M tmpfs "$HOME" && cd "$HOME" && export TMPDIR="$HOME"',
        f"llmtrace init; {listed}",
        "for free in 0 3 8 14 20 26; do",
        "  head -c 2M /dev/zero >filler 2>/dev/null",
        '  truncate -s "-$((free * 4096))" filler',
        f"  llmtrace fetch -q {shlex.quote(str(place.store))} >said 2>&1",
        f"  echo $?; rm filler; {listed}; find {store} -name '.scratch*'",
        f"  git --git-dir {store} fsck --strict --no-dangling 2>&1",
        "done",
        f"llmtrace fetch -q {shlex.quote(str(place.store))}",
    )
    _, before, *rounds, last = lines
    statuses, after = rounds[::2], rounds[1::2]
    assert len(rounds) == 12
    assert statuses[0] == "4"
    failed = [store for status, store in zip(statuses, after, strict=True) if status != "0"]
    assert {*failed} <= {before}
    assert last.startswith("fetched node/" if {*statuses} == {"4"} else "up to date node/")


def test_nothing_is_fetched_into_a_read_only_store(place: Home, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    assert home.call("init").status == 0
    before, store = home.files(), shlex.quote(str(home.store))
    error, status = mounted(
        home,
        f"mount --bind {store} {store} && mount -o remount,bind,ro {store}",
        f"llmtrace fetch -q {shlex.quote(str(place.store))} 2>&1; echo $?",
    )
    assert error.startswith("llmtrace: error: cannot ")
    assert error.endswith(": read-only file system")
    assert (status, home.files()) == ("4", before)


# Streams and signals


@pytest.mark.parametrize(
    "arguments",
    [RUN, (*RUN, "--no-commit", "--json"), ("verify", "-m", "models/tiny", "HEAD")],
    ids=["run", "json", "verify"],
)
def test_standard_output_that_takes_nothing(place: Home, arguments: tuple[str, ...]) -> None:
    count = place.count()
    with Path("/dev/full").open("wb") as full:
        answer = place.call(*arguments, stdin=b"hi", stdout=full)
    said = "llmtrace: error: cannot write to standard output: No space left on device\n"
    assert (answer.status, answer.err) == (4, said)
    closed = place.call(*arguments, stdin=b"hi", stdout=None, preexec_fn=lambda: os.close(1))
    assert (closed.status, closed.err) == (4, "llmtrace: error: standard output is closed\n")
    assert place.count() == count


def test_standard_input_that_is_closed(place: Home) -> None:
    command = f"{shlex.join([*PROGRAM, *RUN])} <&-"
    refused(
        place, command, program=("sh", "-c"), status=4, said="standard input is closed", hint=""
    )


@pytest.fixture(scope="module")
def slow(place: Home) -> list[str]:
    """A run of seconds."""
    make(place.path / "models" / "slow", hidden=256, layers=8, ff=1024, context=1 << 15)
    return ["run", "-m", "models/slow", "-n", "32000", "hi"]


def test_a_reader_that_has_seen_enough(place: Home, slow: list[str]) -> None:
    before = place.files()
    command = f"{shlex.join([*PROGRAM, *slow])} | head -c 1; echo ${{PIPESTATUS[0]}}"
    answer = place.call(command, program=("bash", "-c"))
    assert answer.out.endswith(b"141\n")
    assert answer.err == ""
    assert place.files() == before


def interrupted(home: Home, arguments: list[str], env: dict[str, str] | None = None) -> Answer:
    """Ctrl-C at the first byte that a process says, on either stream."""
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [*PROGRAM, *arguments],
        cwd=home.path,
        env=home.env | (env or {}),
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=writing,
    )
    os.close(writing)
    with os.fdopen(reading, "rb", 0) as stream:
        said = stream.read(1)
        process.send_signal(signal.SIGINT)
        said += stream.read()
    return Answer(process.wait(), said, "")


def test_interrupt_leaves_no_record(place: Home, slow: list[str]) -> None:
    before = place.files()
    answer = interrupted(place, slow)
    assert answer.status == 130
    assert b"llmtrace: " not in answer.out
    assert place.files() == before


def test_interrupt_while_compiling_leaves_no_library(place: Home, tmp_path: Path) -> None:
    before = place.files()
    cxx = script(tmp_path / "cxx", 'echo junk >"$last"; exec sleep 60 >/dev/null 2>&1')
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "CXX": cxx}
    answer = interrupted(place, [*RUN, "hi"], env)
    assert answer.status == 130
    assert answer.out == b"llmtrace: compiling the kernels for this CPU, once\n"
    assert not list((tmp_path / "cache" / "llmtrace").glob("kernels/*"))
    assert place.files() == before
