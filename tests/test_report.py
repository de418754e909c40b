"""The report: its page in a real browser, on a terminal, and from real records."""

import contextlib
import html.parser
import itertools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from browser import CHROMIUM, Browser, browser
from commands import answer, call, forged, tell
from llmtrace.introspect import beside, palette, terminal
from llmtrace.introspect.cost import traffic
from llmtrace.introspect.glance import glance
from llmtrace.introspect.html import render
from llmtrace.introspect.lens import lens, streams
from llmtrace.introspect.paint import fit, wide, wrap
from llmtrace.introspect.words import visible
from llmtrace.probes.records import HEAD_FIELDS, field
from llmtrace.store.chain import Store
from llmtrace.verify.reading import Run
from pages import HOSTILE, empty, fake

STYLE = Path(terminal.__file__).parent / "report.css"
SGR = re.compile(r"\x1b\[[0-9;]*m")
PAGES = {
    "small": fake(),
    "hostile": fake(45, words=HOSTILE, seed=1),
    "long": fake(1001, seed=2),
    "deep": fake(30, layers=32, heads=32, seed=3),
    "one": fake(2, layers=1, heads=1, prompt=1, seed=4),
    "empty": empty(fake()),
}
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    texts = {name: render(page) for name, page in PAGES.items()}
    texts["two"] = beside.render(PAGES["small"], PAGES["hostile"])
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text)
    return {name: folder / f"{name}.html" for name in texts}


# In the browser


@needs_chromium
@pytest.mark.parametrize(
    ("name", "width", "dark"),
    [
        *((name, 1280, False) for name in ("small", "hostile", "long", "empty", "two")),
        *((name, 360, True) for name in ("small", "hostile", "deep", "one", "two")),
    ],
)
def test_file_opens_without_complaint_or_request(
    tab: Browser, files: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    tab.open(files[name], width=width, dark=dark)
    picture = tab.picture("body" if name == "small" else "header")
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 5_000
    assert tab.complaints == []
    assert tab.requests == [files[name].as_uri()]
    assert tab.run("document.documentElement.scrollWidth") <= width
    assert tab.run("performance.getEntriesByType('resource').length") == 0


@needs_chromium
@pytest.mark.parametrize("name", ["hostile", "two"])
def test_hostile_text_is_text(tab: Browser, files: dict[str, Path], name: str) -> None:
    tab.open(files[name])
    shown = tab.run("document.body.textContent")
    for text in HOSTILE:
        assert visible(text) in shown
    made = "document.querySelectorAll('img,iframe,object,embed,form,b,base,link').length"
    assert tab.run(made) == 0
    assert tab.run("document.scripts.length") == (2 if name == "hostile" else 0)
    assert tab.run("document.querySelectorAll('style').length") == 1
    attributes = "[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames())"
    assert not [n for n in tab.run(attributes) if n.startswith("on") or n in {"style", "src"}]
    assert tab.run("[...document.links].every(a => a.getAttribute('href').startsWith('#'))")
    assert not re.search("[\x00\u2028\u2029\u202a-\u202e\ud800-\udfff\ufeff]", shown)


@needs_chromium
def test_policy_refuses_what_was_not_there(tab: Browser, files: dict[str, Path]) -> None:
    """The page's own policy is in force: script, style and pictures that come later are refused."""
    for added in (
        "<img src='data:image/gif;base64,R0lGODlhAQABAAAAACw=' onerror='window.bad = 1'>",
        "<p style='color: red' id='styled'>text</p>",
        "<iframe src='data:text/html,x'></iframe>",
    ):
        tab.open(files["small"])
        tab.run(f"document.body.insertAdjacentHTML('beforeend', {json.dumps(added)})")
        tab.run("new Promise(done => setTimeout(done, 50))")
        assert any("Content Security Policy" in text for text in tab.complaints), added
        assert tab.run("window.bad") is None
    tab.open(files["small"])
    script = "const s = document.createElement('script'); s.textContent = 'window.bad = 1';"
    tab.run(f"{{ {script} document.body.append(s) }}")
    assert tab.run("window.bad") is None
    assert any("Content Security Policy" in text for text in tab.complaints)


@needs_chromium
def test_keyboard_reaches_everything(tab: Browser, files: dict[str, Path]) -> None:
    page, stops = PAGES["small"], []
    tab.open(files["small"])
    where = "(e => e.closest('#lens,#strip')?.id || e.id || e.tagName)(document.activeElement)"
    while stops[-1:] != ["BODY"]:
        tab.press("Tab")
        stops.append(tab.run(where))
        assert len(stops) < 60
    assert stops[0] == "A", "first the link that skips the header"
    assert stops.count("strip") == 1, "one tab stop for all tokens"
    assert stops.count("lens") == 1, "and one for all cells"
    assert {"copy", "SUMMARY", "INPUT"} <= {*stops}
    about = "document.getElementById('about-{}').textContent".format
    tab.run("document.querySelector('#strip [tabindex=\"0\"]').focus()")
    tab.press("ArrowRight", "ArrowRight")
    assert tab.run(about("token")).startswith("Position 2: “ king”, token ")
    tab.press("End")
    last = page["tokens"][-1]
    assert tab.run(about("token")).startswith(f"Position {last['position']}: ")
    assert "commits at" in tab.run(about("token"))
    tab.press("Home")
    assert tab.run(about("token")).startswith("Position 0: ")
    tab.run("document.querySelector('#lens [tabindex=\"0\"]').focus()")
    assert "L5 says" in tab.run(about("lens"))
    tab.press("ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft")
    said, lens_ = tab.run(about("lens")), page["lens"]
    assert "(position 2) L3 says" in said
    assert visible(lens_["top"][4][2], space="·") in said
    assert f"rank {lens_['rank'][4][2]}." in said
    tab.press("ArrowUp", "ArrowUp", "ArrowUp")
    assert "L5 says" in tab.run(about("lens")), "there is nothing above the last layer"
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert tab.run(outline) == "solid", "the focus is seen"


@needs_chromium
def test_lens_is_coloured_by_what_is_chosen(tab: Browser, files: dict[str, Path]) -> None:
    tab.open(files["small"])
    cell = "[...document.querySelectorAll('#lens tbody td')].map(c => +c.className.slice(1))"
    by_kl = np.array(tab.run(cell)).reshape(7, -1)[::-1]
    assert (by_kl[-1] == palette.LEVELS - 1).all(), "the last layer is as the last layer"
    kl = np.array(PAGES["small"]["lens"]["kl"])
    assert np.corrcoef(by_kl.ravel(), np.sqrt(kl).ravel())[0, 1] < -0.99
    tab.run("document.querySelector('input[value=entropy]').click()")
    by_entropy = np.array(tab.run(cell)).reshape(7, -1)[::-1]
    entropy = np.array(PAGES["small"]["lens"]["entropy"])
    assert np.corrcoef(by_entropy.ravel(), entropy.ravel())[0, 1] > 0.99
    assert "undecided" in tab.run("document.getElementById('lens-key').textContent")
    assert tab.complaints == []


@needs_chromium
def test_copy_gives_the_whole_checksum(tab: Browser, files: dict[str, Path]) -> None:
    tab.open(files["small"])
    checksum = PAGES["small"]["run"]["checksum"]
    assert tab.run("document.getElementById('copy').dataset.text") == checksum
    tab.run("document.getElementById('copy').click()")
    tab.run("new Promise(done => setTimeout(done, 100))")
    assert tab.run("document.getElementById('copied').textContent") in {"copied", checksum}


# The file


class _Reader(html.parser.HTMLParser):
    """What a page says to somebody who runs no script and sees no picture."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._skips = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._skips += tag in {"script", "style"}

    def handle_endtag(self, tag: str) -> None:
        self._skips -= tag in {"script", "style"}

    def handle_data(self, data: str) -> None:
        self.text += "" if self._skips else data


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_file_is_complete_without_script_and_pictures(page: dict[str, Any]) -> None:
    read = _Reader(render(page))
    for token in page["tokens"][-30:]:
        assert visible(token["text"])[:39] in read.text
    for each in page["invariants"]:
        assert each["why"] in read.text
    for tag, attributes in read.elements:
        if tag == "svg":
            is_told = attributes.get("role") == "img" and attributes["aria-label"]
            assert is_told or attributes.get("aria-hidden") == "true"
    headings = [int(tag[1]) for tag, _ in read.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(headings))
    tables = sum(tag == "table" for tag, _ in read.elements)
    assert sum(tag == "caption" for tag, _ in read.elements) == tables
    assert all(attributes.get("scope") in {"col", "row"} for tag, attributes in read.elements
               if tag == "th")  # fmt: skip
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len({*ids})
    assert read.text.count("Not computed.") == (9 if page is PAGES["empty"] else 0)


def test_file_names_no_other_place() -> None:
    text = render(PAGES["small"])
    assert not re.search(r"https?:|//[a-z]|url\(|@import", text.replace("http-equiv", ""))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    assert policy[1].startswith("default-src &#x27;none&#x27;; style-src &#x27;sha256-")
    assert "unsafe" not in policy[1]
    assert text.index("Content-Security-Policy") < text.index("<style>") < text.index("<script")


def test_file_of_a_thousand_tokens_is_small() -> None:
    assert len(render(PAGES["long"]).encode()) < 3 << 20


def test_words_of_the_lens_are_as_many_as_can_be_looked_at() -> None:
    page = fake(500, layers=60)
    text = render(page)
    cells = re.findall(r'<td class="c\d+">', text)
    shown = len(cells) // 61
    assert shown < 499
    assert len(cells) == 61 * shown <= 14_000
    assert f"Words are shown for the last {shown} of them; the map has them all." in text


def test_embedded_data_ends_where_it_should() -> None:
    page = fake(30, words=HOSTILE)
    page["lens"]["layers"][0] = "</script><script>alert(1)</script>"
    text = render(page)
    assert text.count("</script>") == 2
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text)
    assert data
    held = json.loads(data[1])
    assert held["lens"]["layers"][0] == "</script><script>alert(1)</script>"
    assert len(held["tokens"]) == 30


# Colours


def schemes() -> dict[str, dict[str, str]]:
    """The named colours of the style, in light and in dark."""
    text = STYLE.read_text()
    light, dark = (dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", part))
                   for part in text.split("@media (prefers-color-scheme: dark)")[:2])  # fmt: skip
    return {"light": light, "dark": light | {k: v for k, v in dark.items() if k in light}}


def test_contrast_is_what_its_definition_gives() -> None:
    assert palette.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert palette.contrast("#777777", "#ffffff") == pytest.approx(4.478, abs=1e-3)  # W3C's example


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough(scheme: str) -> None:
    colours = schemes()[scheme]
    assert len(colours) >= 18
    for text in ("ink", "soft", "link", "good", "bad"):
        for back in ("paper", "panel"):
            assert palette.contrast(colours[text], colours[back]) >= 4.5, (text, back)
    for mark in ("bar", "against", "mark", "focus", *(f"k{n}" for n in range(6))):
        assert palette.contrast(colours[mark], colours["paper"]) >= 3, mark
    for tint in palette.tints(dark=scheme == "dark"):
        assert palette.contrast(colours["ink"], tint) >= 4.5
    assert palette.contrast(colours["soft"], palette.tints(dark=scheme == "dark")[0]) >= 4.5


@pytest.mark.parametrize(
    "ramp", [palette.map_ramp(), palette.tints(dark=False)[::-1], palette.tints(dark=True)]
)
def test_ramps_grow_lighter_by_even_steps(ramp: list[str]) -> None:
    steps = [palette.contrast(b, a) for a, b in itertools.pairwise(ramp)]
    light = [palette.contrast(colour, "#000000") for colour in ramp]
    assert light == sorted(light)
    assert min(steps) > 1.03
    assert max(steps) < 1.6
    assert all(palette.contrast(palette.text_on(colour), colour) >= 4.5 for colour in ramp)


# The terminal


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_terminal_page_fits(page: dict[str, Any], columns: int, colour: bool) -> None:
    lines = [*terminal.lines(page, columns=columns, colour=colour)]
    bare = [SGR.sub("", line) for line in lines]
    assert max(map(wide, bare)) <= columns
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u202a-\u202e\ud800-\udfff]", "".join(bare))
    assert (lines != bare) == colour
    assert "".join(bare).count("not computed") == (9 if page is PAGES["empty"] else 0)


def test_terminal_page_says_the_same_without_colours() -> None:
    plain = [line.rstrip() for line in terminal.lines(PAGES["small"])]
    painted = terminal.lines(PAGES["small"], colour=True)
    coloured = [SGR.sub("", line).rstrip() for line in painted]
    different = [i for i, pair in enumerate(zip(plain, coloured, strict=True)) if len({*pair}) > 1]
    assert len(different) <= 8, "only the map of the lens, which has shades instead"
    assert "✗ redot" in "\n".join(plain)
    assert "a row is not the product of its inputs" in " ".join("\n".join(plain).split())


def test_width_of_text() -> None:
    assert [wide(text) for text in ("abc", "漢字", "e\u0301", "ｱ", "")] == [3, 4, 1, 1, 0]
    assert fit("漢字かな", 5) == "漢字…"
    assert fit("漢字かな", 4) == "漢… "
    assert fit("ab", 4) + "|" == "ab  |"
    assert wrap("漢字かな漢字", 5) == ["漢字", "かな", "漢字"]
    assert wrap("one two three", 7) == ["one two", "three"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\tc", "a↵b⇥c"),
        ("\x1b[31m\x00", "\\x1b[31m\\x00"),
        ("\u202eabc\u2066", "\\u202eabc\\u2066"),
        ("\ud800", "\\ud800"),
        ("\u0301a", "◌\u0301a"),
        ("👩\u200d👧", "👩\u200d👧"),
        ("a\u200db", "a\\u200db"),
        ("\U000e0041", "\\U000e0041"),
        ("漢字 שלום", "漢字 שלום"),
    ],
)
def test_what_hides_is_spelt(text: str, shown: str) -> None:
    assert visible(text) == shown


# Two runs


def test_two_runs_part_where_their_tokens_do() -> None:
    a, b = fake(seed=1), fake(seed=1)
    assert beside.parting(a, b) is None
    assert beside.features(a, b) == []
    assert beside.headline(a, b).startswith("The same run")
    b["run"] = {**b["run"], "checksum": "0" * 64}
    b["tokens"][20] = {**b["tokens"][20], "token": 5000, "text": " wolf"}
    b["layers"][2]["rms"] = {"mean": 100.0, "low": 99.0, "high": 101.0, "n": 53}
    assert beside.parting(a, b) == 20
    assert beside.headline(a, b).startswith("The outputs part at position 20: “·the” (")
    assert "“·wolf”" in beside.headline(a, b)
    (apart,) = beside.features(a, b)
    assert (apart.name, apart.size > 1) == ("Rms, layer 2", True)
    positions, rows = beside.lens(a, b) or ([], [])
    assert positions == a["lens"]["positions"]
    assert not np.array(rows).any()
    shorter = {**b, "tokens": a["tokens"][:30]}
    assert beside.parting(a, shorter) == 30
    lines = [*beside.lines(a, b)]
    assert max(map(wide, lines)) <= 80
    assert any(line.startswith("   20 ≠ ·the") for line in lines)
    assert beside.render(a, b).count("parted") == 2 + STYLE.read_text().count("parted")


# Real records


def test_report_of_a_run(
    place: Path, commits: dict[str, str], runs: dict[str, Any], tmp_path: Path
) -> None:
    said = call("report", "-d", "cpu", commits["drawn"])
    assert (said.status, said.err) == (0, "")
    checksum = runs["drawn"]["checksum"]
    assert said.lines[0].startswith(f"✓ verified  {checksum[:4]} {checksum[4:8]} ")
    assert "\x1b" not in said.out
    assert max(map(wide, said.lines)) <= 80
    for heading in ("Tokens", "Lens", "Layers", "Heads", "Attribution", "Scores", "Time"):
        assert heading in said.lines
    file = tmp_path / "page.html"
    written = call("report", "-d", "cpu", commits["drawn"], "-o", file)
    assert written.lines == [str(file)]
    assert _Reader(file.read_text()).text.count(checksum) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_numbers_of_the_page_are_those_of_the_run(
    commits: dict[str, str], runs: dict[str, Any]
) -> None:
    page, end = call("report", "--json", "--ablate", commits["drawn"]).objects
    assert end == {"v": 1, "type": "end", "status": 0}
    run = runs["drawn"]
    tokens = page["tokens"]
    assert [t["token"] for t in tokens] == [*run["prompt_tokens"], *run["output_tokens"]]
    outputs = [t for t in tokens if t["is_output"]]
    assert [t["logprob"] for t in outputs] == [*map(float.fromhex, run["logprobs"])]
    assert "".join(t["text"] for t in outputs) == run["output"] or "\ufffd" in run["output"]
    assert page["run"]["verdict"] == "verified"
    lens_, last = page["lens"], len(page["lens"]["layers"]) - 1
    assert lens_["layers"] == streams(last)
    assert not any(lens_["kl"][last])
    for token in outputs:
        at = token["position"] - 1
        assert lens_["rank"][last][at] == token["rank"]
        assert math.isclose(lens_["logprob"][last][at], token["logprob"], abs_tol=2e-5)
        assert (token["commit_layer"] is None) == (token["rank"] > 0)
    assert all(
        sum(row) == pytest.approx(1, abs=1e-3) for p in page["patterns"] for row in p["rows"]
    )
    for each in page["attribution"]:
        assert sum(c["share"] for c in each["components"]) == pytest.approx(1)
        assert all(c["ablation"] is not None for c in each["components"])
    assert page["ablation"]["n"] == len(page["attribution"][0]["components"])
    assert {e["verdict"] for e in page["invariants"]} == {"pass"}


@pytest.mark.parametrize("name", ["drawn", "kept", "detail"])
def test_page_of_the_replay_that_verifies_is_that_of_another(
    commits: dict[str, str], store: Store, place: Path, name: str
) -> None:
    """Who else observes a replay changes no number."""
    from llmtrace.introspect.page import Subject
    from llmtrace.introspect.page import page as make
    from running import load

    commit = (
        commits.get(name)
        or answer(
            "run", "-d", "cpu", "-m", "tiny", "-n", "9", "--probe", "detail", "Once on a time"
        )["commit"]
    )
    made, _ = call("report", "-d", "cpu", "--json", "--no-times", commit).objects
    run = Run.of(store.read(commit))
    subject = Subject(
        commit,
        run.record.checksum,
        run.model_name,
        run.claim,
        run.prompt,
        run.output,
        "verified",
        "",
        run.record.parts.get("digests.bin"),
        str,
    )
    model = load(place / "tiny-model", model_id=run.claim.model)
    alone = json.loads(json.dumps(make(model, subject, measures=False)))
    for part in ("layers", "run_features", "heads", "patterns", "scores", "invariants", "ablation"):
        assert made[part] == alone[part], part
    assert [t["logprob"] for t in made["tokens"]] == [t["logprob"] for t in alone["tokens"]]
    assert made["lens"]["kl"] == alone["lens"]["kl"]


def test_layers_have_the_effective_rank_of_their_stream(
    commits: dict[str, str], store: Store
) -> None:
    """The participation ratio of the singular values of the rows that the record keeps."""
    page, _ = call("report", "--json", "--no-times", commits["kept"]).objects
    kept = Run.of(store.read(commits["kept"])).kept
    assert len(page["layers"]) == 2
    for each in page["layers"]:
        rows = kept[f"blocks.{each['layer']}.hook_resid_post"].astype(np.float64)
        energy = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
        found = each["effective_rank"]
        assert found["mean"] == pytest.approx(energy.sum() ** 2 / (energy**2).sum())
        assert found["n"] == len(rows) == 13
    assert page["meanings"]["effective_rank"].startswith("How many directions")


def test_report_of_what_differs_says_so(store: Store, commits: dict[str, str]) -> None:
    said = call("report", "--no-times", forged(store, commits["kept"], 5, 9))
    assert said.status == 0, "a page is no verdict"
    assert said.lines[0].startswith("✗ differs")
    assert "this page shows the replay" in said.out
    assert "activations differ: position 5" in " ".join(said.out.split())


def test_report_of_two_runs(commits: dict[str, str], tmp_path: Path) -> None:
    said = call("report", "--no-times", commits["greedy"], commits["drawn"])
    assert said.status == 0
    assert said.lines[0].startswith("The outputs part at position ")
    file = tmp_path / "both.html"
    both = call("report", "--no-times", commits["greedy"], commits["again"], "-o", file)
    assert both.status == 0
    assert "The same run: both records have one checksum." in file.read_text()


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colours_are_for_terminals_that_want_them(
    commits: dict[str, str], variables: dict[str, str]
) -> None:
    ours, theirs = os.openpty()
    code = "import sys; from llmtrace.cli import main; sys.exit(main())"
    said = b""
    with subprocess.Popen(
        [sys.executable, "-c", code, "report", "--no-times", commits["drawn"]],
        cwd=Path(__file__).parents[1],
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm-256color", **variables},
    ):
        os.close(theirs)
        with contextlib.suppress(OSError):  # how the end of a terminal reads
            while piece := os.read(ours, 1 << 16):
                said += piece
    os.close(ours)
    assert b"verified" in said
    assert (b"\x1b[" in said) == (not variables)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["nowhere"], 4, "no record 'nowhere'"),
        (["{greedy}~"], 4, "is a record of kind 'identity', not of a run"),
        (["{greedy}", "-m", "sample"], 3, "the record needs model"),
        (["{greedy}", "-o", "{folder}"], 4, "cannot write '{folder}': not a regular file"),
        (["{greedy}", "-o", "{folder}/no/file"], 4, "cannot write '{folder}/no/file': No such"),
        ([], 2, "missing argument 'COMMIT'"),
    ],
)
def test_report_refuses(
    commits: dict[str, str], tmp_path: Path, arguments: list[str], status: int, said: str
) -> None:
    names = {**commits, "folder": str(tmp_path)}
    refused = call("report", "--no-times", *(text.format(**names) for text in arguments))
    assert (refused.status, refused.out) == (status, "")
    assert said.format(**names) in refused.err
    assert "Traceback" not in refused.err
    assert [*tmp_path.iterdir()] == []


def test_report_refuses_an_invalid_record(store: Store, commits: dict[str, str]) -> None:
    bad = tell(store, commits["greedy"], {"probes.bin": b"LTP2"})
    refused = call("report", bad)
    assert refused.status in {3, 4} or refused.lines[0].startswith("✗ differs")


def test_patterns_are_what_the_heads_saw(
    commits: dict[str, str], store: Store, place: Path
) -> None:
    """The entropy of a row made here is the one that the attention kernel recorded."""
    from llmtrace.introspect.inside import look
    from llmtrace.introspect.patterns import patterns
    from running import load

    model = load(
        place / "tiny-model",
        model_id=store.read(commits["drawn"]).record.sections["trace"]["model"],
    )
    inside = look(model, _claim(store, commits["drawn"]))
    words = ("induction", "previous", "sink", "distance", "entropy")
    every = [
        {"layer": n, "head": h, "kind": "mixed", **dict.fromkeys(words, 0.5)}
        for n in range(2)
        for h in range(4)
    ]
    found = [p for head in every for p in patterns(inside, [head])]
    assert len(found) == 8
    entropy = field(inside.heads, "entropy", HEAD_FIELDS)
    sink = field(inside.heads, "sink", HEAD_FIELDS)
    for pattern in found:
        for position, row in zip(pattern["positions"], pattern["rows"], strict=True):
            p = np.array(row)
            at = (position, pattern["layer"], pattern["head"])
            assert -(p[p > 0] * np.log(p[p > 0])).sum() == pytest.approx(entropy[at], abs=1e-3)
            assert p[0] == pytest.approx(sink[at], abs=2e-5)


def test_glance_is_the_lens(commits: dict[str, str], store: Store, place: Path) -> None:
    from llmtrace.introspect.inside import look
    from running import load

    model, claim = load(place / "tiny-model"), _claim(store, commits["drawn"])
    inside = look(model, claim)
    slow = lens(model, inside)
    drawn = [claim.output[p - inside.first_pick] if p >= inside.first_pick else -1
             for p in inside.positions]  # fmt: skip
    quick = glance(model, inside.rows, inside.positions, np.array(drawn))
    for name in ("final", "top", "rank", "commit_layer"):
        assert np.array_equal(getattr(slow, name), getattr(quick, name)), name
    for name in ("top_logprob", "logprob", "entropy", "kl"):
        assert np.allclose(getattr(slow, name), getattr(quick, name), rtol=1e-4, atol=1e-4), name


def test_bytes_of_a_token_are_those_of_the_weights(place: Path) -> None:
    """Each weight is read once but the embedding, of which a row is."""
    from llmtrace.blocks.block import Matrix
    from llmtrace.blocks.llama import blocks
    from running import load

    model = load(place / "tiny-model")
    made = blocks(model.architecture)
    linear = [b for b in made if b.kernel == "linear_"]
    tensors = model.checkpoint.tensors
    names = {
        name for b in linear for arg in b.args if isinstance(arg, Matrix) for name in arg.tensors
    }
    moved = sum(traffic(model, b, 9).nbytes for b in linear)
    rows = sum(4 * (b.args[0].width + b.args[2].width) for b in linear)
    assert moved - rows == sum(tensors[name].nbytes for name in names)
    operations = sum(traffic(model, b, 9).operations for b in linear)
    assert operations == 2 * sum(math.prod(tensors[name].shape) for name in names)
    attention = next(b for b in made if b.kernel.startswith("attention"))
    a = model.architecture
    more = traffic(model, attention, 10).nbytes - traffic(model, attention, 9).nbytes
    assert more == 2 * 4 * a.kv_head_count * a.head_size, "a position more: its key and its value"


def _claim(store: Store, commit: str) -> Any:
    from llmtrace.verify.reading import Run

    return Run.of(store.read(commit)).claim
