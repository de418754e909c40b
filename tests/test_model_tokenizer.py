"""Text to tokens and back; streamed text is the whole text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Library

from checkpoints import byte_tokenizer, make
from llmtrace.errors import Trouble
from llmtrace.model.checkpoint import Checkpoint
from llmtrace.model.tokenizer import TextStream, Tokenizer

GRINNING = "😀".encode()  # f0 9f 98 80


def opened(library, folder):
    make(folder, tokenizer=False)
    library.save(str(folder / "tokenizer.json"))
    return Tokenizer.open(Checkpoint.open(folder))


def pieces(decoder):
    """A tokenizer of the sentencepiece kind, with bytes to fall back to and a decoder to try."""
    words = [
        "<unk>",
        "<s>",
        "</s>",
        "▁",
        "▁▁",
        "▁a",
        "a",
        "b",
        "é",
        "😀",
        "▁the",
        "x▁y",
        "",
        "\ufffd",
    ]
    words += ["a</w>", "##b", "Ġ", "don", "'", "▁'s", " ", "  a"]
    words += [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {word: token for token, word in enumerate(words)}
    library = Library(models.BPE(vocabulary, [("▁", "a")], byte_fallback=True, unk_token="<unk>"))
    library.add_special_tokens([AddedToken(text, special=True) for text in ("<s>", "</s>")])
    library.add_tokens([AddedToken("[tool]", special=False)])
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    library.decoder = decoder
    return library


def merged():
    """A byte-level BPE with merges that cut characters in two."""
    base = byte_tokenizer()
    letters = [base.id_to_token(byte) for byte in range(256)]
    vocabulary = {letter: token for token, letter in enumerate(letters)}
    f0, x9f, x98, x80 = (letters[byte] for byte in GRINNING)
    pairs = [
        (f0, x9f),
        (x98, x80),
        (x80, letters[ord("a")]),
        (letters[ord("t")], letters[ord("h")]),
    ]
    for first, second in pairs:
        vocabulary[first + second] = len(vocabulary)
    library = Library(models.BPE(vocabulary, pairs))
    library.add_special_tokens([AddedToken("<s>", special=True)])
    library.add_tokens([AddedToken("😀é", special=False)])
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    return library


REPLACE = decoders.Replace("▁", " ")
LLAMA = [REPLACE, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
LIBRARIES = {
    "bytes": byte_tokenizer(),
    "merged": merged(),
    "llama": pieces(decoders.Sequence(LLAMA)),
    "gemma": pieces(decoders.Sequence(LLAMA[:3])),
    "strip-two": pieces(decoders.Sequence([*LLAMA[:3], decoders.Strip(" ", 2, 0)])),
    "metaspace": pieces(decoders.Metaspace()),
    "no-decoder": None,
    "wordpiece": pieces(decoders.WordPiece()),
    "bpe": pieces(decoders.BPEDecoder("</w>")),
    "strip-end": pieces(decoders.Sequence([*LLAMA[:3], decoders.Strip(" ", 1, 1)])),
    "late-replace": pieces(decoders.Sequence([decoders.Fuse(), decoders.Replace("a b", "c")])),
    "pattern": pieces(decoders.Sequence([decoders.Replace(Regex("a"), "<0xF0>"), *LLAMA[1:3]])),
    "byte-level-pieces": pieces(decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])),
}
INCREMENTAL = {"bytes", "merged", "llama", "gemma", "strip-two", "metaspace", "byte-level-pieces"}


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    LIBRARIES["no-decoder"] = pieces(decoders.Fuse())
    texts = {name: library.to_str() for name, library in LIBRARIES.items()}
    texts["no-decoder"] = texts["no-decoder"].replace('"decoder":{"type":"Fuse"}', '"decoder":null')
    folder = tmp_path_factory.mktemp("tokenizers")
    return {name: opened(Library.from_str(text), folder / name) for name, text in texts.items()}


def streamed(tokenizer, prompt, output):
    stream = TextStream(tokenizer, prompt)
    return [*(stream.push(token) for token in output), stream.finish()]


# --- tokenizer


def test_encode_adds_special_tokens_and_decode_skips_them(known):
    tokens = known["bytes"].encode("hé 😀")
    assert tokens == [256, *"hé 😀".encode()]
    assert known["bytes"].decode([*tokens, 257]) == "hé 😀"
    assert known["bytes"].encode("a</s>b") == [256, 97, 257, 98]


def test_a_prompt_is_neither_cut_nor_padded(tmp_path):
    library = byte_tokenizer()
    library.enable_truncation(5)
    library.enable_padding(length=20)
    tokenizer = opened(library, tmp_path)
    assert tokenizer.encode("0123456789") == [256, *b"0123456789"]
    assert tokenizer.encode("") == [256]


def test_tokens_are_those_of_transformers(tmp_path):
    from transformers import PreTrainedTokenizerFast

    make(tmp_path)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.open(Checkpoint.open(tmp_path))
    text = "One, two; три 😀\n\tfour</s>"
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode(ours.encode(text)) == theirs.decode(
        theirs.encode(text), skip_special_tokens=True
    )


def test_tokenizer_troubles(tmp_path):
    make(tmp_path, tokenizer=False)
    with pytest.raises(Trouble) as caught:
        Tokenizer.open(Checkpoint.open(tmp_path))
    assert str(caught.value) == f"no 'tokenizer.json' in '{tmp_path}'"
    assert caught.value.hints == ("use --prompt-tokens",)
    for content in (b"{", b"\xff", b'{"model": 3}'):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(Trouble) as caught:
            Tokenizer.open(Checkpoint.open(tmp_path))
        assert str(caught.value).startswith(f"cannot read '{tmp_path / 'tokenizer.json'}': ")
        assert caught.value.hints == ("use --prompt-tokens",)


def test_a_panic_of_the_library_is_trouble(known):
    tokenizer = known["strip-end"]
    with pytest.raises(Trouble, match=r"^the tokenizer of '.*/tokenizer.json' failed: "):
        tokenizer.decode([])


# --- continuation


@pytest.mark.parametrize(
    ("prompt", "output", "text"),
    [
        (b"ab", b"cd", "cd"),
        (b"", b"cd", "cd"),
        (b"ab", b"", ""),
        (b"ab", GRINNING, "😀"),
        (b"ab", GRINNING[:2], "\ufffd"),
        (b"a" + GRINNING[:2], GRINNING[2:3], ""),  # still the same broken character
        (b"a" + GRINNING[:2], GRINNING[2:], "\ufffd\ufffd"),  # the output alone
        (b"a" + GRINNING[:2], b"b", "b"),
    ],
)
def test_continuation_of_bytes(known, prompt, output, text):
    tokenizer = known["bytes"]
    assert tokenizer.continuation([256, *prompt], [*output, 257]) == text
    assert "".join(streamed(tokenizer, [256, *prompt], [*output, 257])) == text


def test_continuation_keeps_the_space_before_the_first_word(known):
    tokenizer = known["llama"]
    word = tokenizer.library.token_to_id("▁the")
    assert tokenizer.decode([word, word]) == "the the"
    assert tokenizer.continuation([1, word], [word]) == " the"
    assert streamed(tokenizer, [1, word], [word, word]) == [" the", " the", ""]
    assert streamed(tokenizer, [1], [word, word]) == ["the", " the", ""]


# --- streaming


def test_which_decoders_stream(known):
    assert {name for name, tokenizer in known.items() if tokenizer.is_incremental} == INCREMENTAL


def test_whole_characters_come_at_once(known):
    text = "A word, and más: 😀!"
    for name in ("bytes", "merged"):
        tokenizer = known[name]
        output = tokenizer.library.encode(text, add_special_tokens=False).ids
        got = streamed(tokenizer, tokenizer.encode("Say: "), output)
        assert "".join(got) == text
        assert got[-1] == ""
        assert got[0].startswith("A")
    assert streamed(known["bytes"], [256], GRINNING) == ["", "", "", "😀", ""]


def test_a_run_of_bytes_is_held_until_it_ends(known):
    tokenizer = known["llama"]
    a, *euro = (tokenizer.library.token_to_id(t) for t in ("a", "<0xE2>", "<0x82>", "<0xAC>"))
    assert streamed(tokenizer, [1], [a, *euro, a]) == ["a", "", "", "", "€a", ""]
    # one byte more and the library takes the whole run for broken
    assert tokenizer.decode([*euro, euro[0]]) == "\ufffd" * 4
    assert streamed(tokenizer, [1], [*euro, euro[0], a]) == ["", "", "", "", "\ufffd" * 4 + "a", ""]
    assert streamed(tokenizer, [1], euro) == ["", "", "", "€"]


def test_an_unknown_decoder_is_held_to_the_end(known):
    tokenizer = known["bpe"]
    word = tokenizer.library.token_to_id("a</w>")
    assert streamed(tokenizer, [], [word, word]) == ["", "", "a a"]


token_lists = st.lists(st.integers(0, 1 << 20), max_size=12)
broken = st.lists(st.sampled_from([*GRINNING, 0xE2, 0x82, 0xAC, 0xFF, 0x41, 0x20]), max_size=12)


@settings(deadline=None, max_examples=60)
@given(st.one_of(token_lists, broken), st.one_of(token_lists, broken, st.just([0, 0, 0])))
@pytest.mark.parametrize("name", sorted(LIBRARIES.keys() - {"strip-end"}))  # it panics on ""
def test_the_stream_is_exactly_the_continuation(known, name, prompt, output):
    tokenizer = known[name]
    # a few ids beyond the vocabulary; bytes of pieces by their names
    size = tokenizer.library.get_vocab_size() + 2
    first_byte = tokenizer.library.token_to_id("<0x00>") or 0
    prompt, output = (
        [(token + first_byte if token < 256 else token) % size for token in tokens]
        for tokens in (prompt, output)
    )
    assert "".join(streamed(tokenizer, prompt, output)) == tokenizer.continuation(prompt, output)


@settings(deadline=None, max_examples=60)
@given(st.data())
@pytest.mark.parametrize("name", sorted(INCREMENTAL))
def test_the_stream_is_exact_on_few_tokens_much_repeated(known, name, data):
    tokenizer = known[name]
    size = tokenizer.library.get_vocab_size()
    few = data.draw(st.lists(st.integers(0, min(size - 1, 40)), min_size=1, max_size=4))
    tokens = st.lists(st.sampled_from(few), max_size=12)
    prompt, output = data.draw(tokens), data.draw(tokens)
    assert "".join(streamed(tokenizer, prompt, output)) == tokenizer.continuation(prompt, output)


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=20), st.text(max_size=20))
@pytest.mark.parametrize("name", ["bytes", "merged", "llama"])
def test_text_goes_there_and_back(known, name, prompt, text):
    tokenizer = known[name]
    output = tokenizer.library.encode(text, add_special_tokens=False).ids
    got = streamed(tokenizer, tokenizer.encode(prompt), output)
    assert "".join(got) == tokenizer.continuation(tokenizer.encode(prompt), output)


@pytest.mark.parametrize("name", sorted(INCREMENTAL))
def test_a_token_costs_the_same_at_any_length(known, name, monkeypatch):
    tokenizer = known[name]
    decoded = []
    real = Tokenizer.decode
    monkeypatch.setattr(
        Tokenizer, "decode", lambda self, tokens: decoded.append(len(tokens)) or real(self, tokens)
    )
    vocabulary = tokenizer.library.get_vocab()
    space = vocabulary.get("▁", 32)
    word = vocabulary.get("▁the", 97)
    stream = TextStream(tokenizer, [word] * 3000)
    cost = []
    for token in [word] * 100 + [space] * 1000 + [word, space] * 500:
        decoded.clear()
        stream.push(token)
        cost.append(sum(decoded))
    assert max(cost[10:]) <= 12
