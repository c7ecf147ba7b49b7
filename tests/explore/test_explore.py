"""The page computes attention as attend() does: read from a browser while its sliders and switches are moved."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import VOCABULARY, write_tokenizer
from families import drawn
from tiny import reference
from torch import Tensor
from typer.testing import CliRunner

import minibeft
from minibeft.cli.main import app
from minibeft.errors import BadInput
from minibeft.explore.explore import TEXT, explore
from minibeft.theory.draws import Draws
from minibeft.theory.instance import Instance
from minibeft.theory.rotary import Rotary
from minibeft.theory.variants import AttentionSpec, attend_variant, random_parameters

LAYER, HEAD = 2, 11
AGREES = 1e-9  # what the page promises; the logits are below 1,000 and float64 keeps 16 digits


def numbers(page: str) -> dict[str, Any]:
    """What is written into the page."""
    found = re.search(r'<script type="application/json" id="numbers">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


@pytest.fixture(scope="module")
def layer() -> Instance:
    model = minibeft.load_model("minilm", dtype=torch.float64)
    batch = minibeft.encode(minibeft.load_tokenizer("minilm"), [TEXT], pad=model.config.pad)
    return minibeft.probe(model, batch)[LAYER]


@pytest.fixture(scope="module")
def page() -> str:
    return explore("minilm", layer=LAYER, head=HEAD)


def test_it_needs_nothing_else(page: str):
    assert not re.search(r"(src|href)=\"(?!#)|https?://|@import|url\((?!#)", page)
    assert "written by minibeft" in page[:100]
    assert {"K1", "Q3", "V1"} < set(numbers(page)["theorems"])


def test_a_text_is_data():
    page = explore("minilm", text='</script><script>alert(1)</script> <img src=x onerror="alert(2)">')
    assert page.count("<script") == 2
    assert "<img" not in page
    assert numbers(page)["text"].startswith("</script>")


@pytest.mark.parametrize(
    ("given", "why"),
    [({"layer": 6}, "--layer 6"), ({"head": -1}, "--head -1"), ({"text": 60 * "dull "}, "has 62 tokens")],
)
def test_what_is_refused(given: dict[str, Any], why: str):
    with pytest.raises(BadInput, match=why):
        explore("minilm", **given)


def test_the_command_writes_it(tmp_path: Path):
    file = tmp_path / "page.html"
    assert CliRunner().invoke(app, ["explore", "--html", str(file)]).exit_code == 0
    assert numbers(file.read_text())["model"] == "minilm"


class Page:
    """The page in a browser: its controls, and what it computes."""

    def __init__(self, browser: Any):
        self.browser = browser

    def move(self, bias: str, slider: str, share: float) -> None:
        """A slider to this share of its way, as a hand would: its value, then the event."""
        self.browser.execute_script(
            "const s = document.querySelector(`#${arguments[0]} .${arguments[1]}`);"
            "s.value = Number(s.min) + arguments[2] * (s.max - s.min); s.dispatchEvent(new Event('input'))",
            *(bias, slider, share),
        )

    def switch(self, name: str) -> None:
        self.browser.find_element("name", name).click()

    def preset(self, name: str) -> None:
        self.browser.find_element("xpath", f'//nav/button[text()="{name}"]').click()

    def said(self, card: str) -> str:
        return self.browser.find_element("css selector", f"#{card} .finding").text

    def now(self) -> dict[str, Tensor]:
        """The biases, P and O."""
        seen = self.browser.execute_script("return now()")
        return {name: torch.tensor(seen[name], dtype=torch.float64) for name in ("b_q", "b_k", "b_v", "p", "o")}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (pip install .[browser])")
    chrome, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if chrome is None or driver is None:
        pytest.skip("no Chromium with its driver (apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chrome
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as browser:
        yield browser
        assert browser.get_log("browser") == []


@pytest.fixture
def opened(browser: Any, page: str, tmp_path: Path) -> Page:
    return open_page(browser, page, tmp_path)


def open_page(browser: Any, page: str, folder: Path) -> Page:
    file = folder / "page.html"
    file.write_text(page, "utf-8")
    browser.get(file.as_uri())
    return Page(browser)


def of_head(layer: Instance, b: dict[str, Tensor], **mechanism: Any) -> tuple[Tensor, Tensor]:
    """P and O of the one head with these biases: by attend(), or with a mechanism by attend_variant()."""
    size = len(layer.w_q) // layer.heads
    w_q, w_k, w_v = (weight[HEAD * size : (HEAD + 1) * size] for weight in (layer.w_q, layer.w_k, layer.w_v))
    given: dict[str, Any] = {name: b[name] for name in ("b_q", "b_k", "b_v")}
    if not mechanism:
        found = minibeft.attend(layer.x, w_q, w_k, w_v, heads=1, mask=layer.mask, weights=True, **given)
    else:
        spec = AttentionSpec(heads=1, kv_heads=1, head_size=size, width=layer.x.shape[-1], **mechanism)
        ones = {"q_gain": torch.ones(size).double(), "k_gain": torch.ones(size).double()}
        drawn = random_parameters(spec, Draws(0))
        parameters = replace(drawn, w_q=w_q, w_k=w_k, w_v=w_v, w_o=None, **given, **ones)
        found = attend_variant(spec, parameters, layer.x, mask=layer.mask)
    assert found.weights is not None
    return found.weights[0, 0], found.output[0]


def rounded(layer: Instance, b: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The same with q, k, v and the logits rounded to bfloat16."""
    short = lambda x: x.float().bfloat16().double()  # noqa: E731
    q, k, v = layer.q(None)[0, HEAD], layer.k(None)[0, HEAD], layer.v(None)[0, HEAD]
    p = short(short(q + b["b_q"]) @ short(k + b["b_k"]).mT * layer.factor).softmax(-1)
    return p, p @ short(v + b["b_v"])


def require_same(now: dict[str, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for name, value in zip("po", expected, strict=True):
        assert (now[name] - value).abs().max().item() < AGREES, name


def test_every_slider_computes_what_attend_does(opened: Page, layer: Instance):
    opened.preset("the model's own biases")
    rows = slice(HEAD * 32, (HEAD + 1) * 32)
    own = opened.now()
    for name in ("b_q", "b_k", "b_v"):
        assert (own[name] - getattr(layer, name)[rows]).abs().max().item() < AGREES
    require_same(own, of_head(layer, own))
    for bias in ("b_q", "b_k", "b_v"):
        for slider, share in (("size", 0.7), ("angle", 0.9)):
            before = opened.now()[bias]
            opened.move(bias, slider, share)
            now = opened.now()
            assert (now[bias] - before).norm().item() > 0.01
            require_same(now, of_head(layer, now))


@pytest.mark.parametrize(
    ("name", "mechanism"),
    [
        ("rotary", {"rotary": Rotary(32)}),
        ("sink", {"sink": "one"}),
        ("qk_norm", {"qk_norm": "rms"}),
        ("softcap", {"softcap": 5.0}),
        ("bfloat16", None),
    ],
)
def test_every_switch_wakes_b_k(opened: Page, layer: Instance, name: str, mechanism: dict[str, Any] | None):
    opened.preset("why b_k is null")
    assert "nothing, but for the last digits" in opened.said("b_k")
    still = opened.now()["p"]
    opened.switch(name)
    now = opened.now()
    require_same(now, rounded(layer, now) if mechanism is None else of_head(layer, now, **mechanism))
    opened.move("b_k", "size", 0)
    without = opened.now()["p"]
    assert (now["p"] - without).abs().max().item() > 1e-3
    opened.switch(name)
    assert (opened.now()["p"] - still).abs().max().item() < AGREES


def test_the_lessons(opened: Page):
    """b_v moves all outputs alike; at 90° b_q moves nothing (Q5); far out one key has everything (Q6)."""
    opened.preset("b_v folds")
    now = opened.now()
    opened.move("b_v", "size", 0)
    assert (now["o"] - opened.now()["o"] - now["b_v"]).abs().max().item() < AGREES
    bare = opened.now()["p"]
    opened.preset("b_q's null direction")
    assert opened.now()["b_q"].norm().item() > 1
    assert (opened.now()["p"] - bare).abs().max().item() < AGREES
    opened.preset("b_q saturates")
    saturated = opened.now()["p"]
    assert (saturated.amax(-1) > 0.9).all()
    assert len(saturated.argmax(-1).unique()) == 1


def test_a_model_starts_with_its_own_mechanisms(browser: Any, tmp_path: Path):
    """Qwen3 turns and normalises queries and keys, the norms with gains of their own, and shares keys among heads."""
    folder, heads = tmp_path / "model", {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 16}
    reference(drawn("qwen3", "lm", 0) | heads | {"vocab_size": len(VOCABULARY)}, 0).save_pretrained(folder)
    write_tokenizer(folder)
    held = numbers(page := explore(str(folder), head=1))
    assert (held["rotation"]["own"], held["norms"]["own"], held["cap"]["own"]) == (True, True, False)
    assert held["model"] == "model"
    model = minibeft.load_model(folder, dtype=torch.float64)
    layer = minibeft.probe(model, minibeft.encode(minibeft.load_tokenizer(folder), [TEXT]))[0]
    now = open_page(browser, page, tmp_path).now()
    require_same(now, (layer.weights()[0, 1], layer.outputs()[0, 1]))
