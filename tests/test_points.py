"""Names of points: every point has one, aliases are the same value, the rest is refused."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import checkpoints
from llmtrace.blocks.llama import aliases, blocks, names
from llmtrace.cli.opening import points as keep
from llmtrace.errors import Misuse
from llmtrace.model.architecture import Architecture
from llmtrace.model.checkpoint import Checkpoint
from llmtrace.probes.points import PLACES, REFUSED, Names

ROOT = Path(__file__).parents[1]
LAYERS = 3
ALL = [
    place.name.format(i=layer)
    for layer in range(-1, LAYERS + 1)
    for number, place in enumerate(PLACES)
    if (0 <= layer < LAYERS if "{i}" in place.name else (layer < 0) == (number == 0))
    and ("{i}" in place.name or layer in {-1, LAYERS})
]
NAMES = Names(ALL)


@pytest.fixture(scope="module")
def architecture(tmp_path_factory: pytest.TempPathFactory) -> Architecture:
    folder = checkpoints.make(tmp_path_factory.mktemp("model"), layers=LAYERS)
    return Architecture.of(Checkpoint.open(folder))


def test_table_is_the_points_of_the_plan_in_their_order(architecture: Architecture) -> None:
    a = architecture
    sizes = {"1": 1, "d": a.hidden_size, "ff": a.ff_size, "V": a.vocab_size}
    sizes |= {"HD": a.head_count * a.head_size, "GD": a.kv_head_count * a.head_size}
    width = {p.name.format(i=i): sizes[p.width] for p in PLACES for i in range(LAYERS)}
    made = [point for block in blocks(a) for point in block.points]
    assert [point.name for point in made] == ALL == list(names(a).points)
    assert {point.name: point.rows.width for point in made} == {n: width[n] for n in ALL}


def test_aliases_that_were_there_before_stay(architecture: Architecture) -> None:
    known = aliases(architecture)
    assert known["blocks.0.hook_resid_pre"] == "hook_embed"
    assert known["blocks.2.hook_resid_pre"] == "blocks.1.hook_resid_post"
    assert known == NAMES.aliases


@pytest.mark.parametrize(
    ("alias", "point"),
    [
        ("model.layers.2.self_attn.q_proj", "blocks.2.attn.hook_q"),
        ("model.layers.0.self_attn", "blocks.0.hook_attn_out"),
        ("model.layers.1.mlp.down_proj", "blocks.1.hook_mlp_out"),
        ("model.layers.1", "blocks.1.hook_resid_post"),
        ("model.embed_tokens", "hook_embed"),
        ("model.norm", "unembed.hook_in"),
        ("lm_head", "unembed.hook_out"),
        ("blocks.1.hook_in", "blocks.0.hook_resid_post"),
        ("blocks.1.attn.o.hook_in", "blocks.1.attn.hook_z"),
        ("blocks.1.attn.hook_out", "blocks.1.hook_attn_out"),
        ("blocks.0.mlp.in.hook_out", "blocks.0.mlp.hook_pre_linear"),
        ("blocks.2.attn.hook_rot_k", "blocks.2.attn.hook_rot_k"),
    ],
)
def test_alias_is_resolved(alias: str, point: str) -> None:
    assert NAMES.resolve(alias) == point
    assert NAMES.match([alias]) == (point,)


def test_no_name_has_two_meanings() -> None:
    assert not {*NAMES.aliases} & {*ALL}
    assert {*NAMES.aliases.values()} <= {*ALL}
    patterns = [a for p in PLACES for a in (p.name, *p.bridge, *p.modules)] + [*REFUSED]
    assert len(patterns) == len({*patterns})


@pytest.mark.parametrize("pattern", REFUSED)
def test_what_has_no_value_is_refused_with_the_reason(pattern: str) -> None:
    name = pattern.format(i=1)
    for asked in (NAMES.resolve, lambda n: NAMES.match([n])):
        with pytest.raises(Misuse, match="cannot be read") as caught:
            asked(name)
        assert caught.value.hints == (REFUSED[pattern].format(i=1),)
    # a glob over many leaves it out, one that names only such is refused like it
    assert name not in NAMES.match([name.rpartition(".")[0] + "*", "*"])


def test_globs_are_tried_on_points_first() -> None:
    assert NAMES.match(["*"]) == tuple(ALL)
    assert NAMES.match(["blocks.1.ln1.*"]) == (
        "blocks.1.ln1.hook_scale",
        "blocks.1.ln1.hook_normalized",
    )  # and not the stream, which is ln1.hook_in
    assert NAMES.match(["blocks.*.hook_resid_pre"]) == (
        "hook_embed",
        "blocks.0.hook_resid_post",
        "blocks.1.hook_resid_post",
    )
    assert NAMES.match(["model.layers.?.self_attn.[qk]_proj"]) == tuple(
        f"blocks.{i}.attn.hook_{n}" for i in range(LAYERS) for n in "qk"
    )
    with pytest.raises(Misuse, match="cannot be read"):
        NAMES.match(["blocks.*.hook_pattern"])


@pytest.mark.parametrize("name", ["blocks.3.hook_resid_post", "nonsense", "", "model.layers.9"])
def test_what_is_no_name_is_refused(name: str) -> None:
    for asked in (NAMES.resolve, lambda n: NAMES.match([n])):
        with pytest.raises(Misuse, match=re.escape(f"no point '{name}' in this model")) as caught:
            asked(name)
        assert "blocks.0.hook_resid_post" in caught.value.hints[0]


@given(st.sampled_from(sorted({*ALL, *NAMES.aliases})), st.data())
def test_a_star_for_any_part_of_a_name_still_finds_it(name: str, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, len(name)))
    end = data.draw(st.integers(begin, len(name)))
    glob = name[:begin] + "*" + name[end:]
    found = NAMES.match([glob])
    assert list(found) == sorted({*found}, key=ALL.index)
    if name in ALL:
        assert name in found
    elif not any(
        re.fullmatch(re.escape(name[:begin]) + ".*" + re.escape(name[end:]), n)
        for n in [*ALL, *(f"blocks.{i}.hook_resid_pre" for i in range(LAYERS))]
    ):
        assert NAMES.aliases[name] in found


@given(st.text(max_size=40))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    try:
        assert NAMES.resolve(text) in ALL
    except Misuse:
        assert text not in ALL


def test_a_model_without_layers_or_with_fewer_points_has_names() -> None:
    assert Names([]).match([]) == ()
    few = Names(["hook_embed", "blocks.0.hook_resid_post"])
    assert few.match(["*"]) == few.points
    with pytest.raises(Misuse):
        few.resolve("blocks.0.attn.q.hook_out")


def test_command_line_takes_aliases(architecture: Architecture) -> None:
    kept = keep(architecture, ("lm_head", "blocks.0.hook_resid_pre"))
    assert kept == ("hook_embed", "unembed.hook_out")


def test_page_shows_the_table() -> None:
    """llmtrace-points(7) has every name, width, meaning, alias and reason of the code."""
    page = (ROOT / "man" / "llmtrace-points.7").read_text()
    plain = page.replace("\\-", "-").replace("\\(aq", "'").replace("\\&", "")
    for place in PLACES:
        entry = plain.split(f"\n.B {place.name.replace('{i}', 'i')}\n")[1].split("\n.TP")[0]
        entry = " ".join(entry.split("\n.SH")[0].replace("\n.br", "").split())
        assert entry.lower().startswith(f"{place.meaning} ({place.width})".lower())
        listed = entry.partition("Also: ")[2].rstrip(".").split(", ")
        assert [n for n in listed if n] == [
            n.replace("{i}", "i") for n in (*place.bridge, *place.modules)
        ]
    assert plain.count("\n.B ") == len(PLACES) + len(REFUSED)
    for name, reason in REFUSED.items():
        entry = plain.split(f"\n.B {name.replace('{i}', 'i')}\n")[1].split("\n.TP")[0]
        entry = " ".join(entry.split("\n.SH")[0].split())
        assert entry.lower() == f"{reason.replace('{i}', 'i')}.".lower()
