"""The notebooks as a person sees them: JupyterLab in a headless browser, cells run, buttons pressed, a slider moved.

RLHF_SHOTS=FOLDER keeps screenshots, in the light and in the dark theme.
"""

import contextlib
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

from rlhf_lib import comparisons, labels, runs, widgets
from rlhf_lib.files import write_json

sync_api = pytest.importorskip("playwright.sync_api")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.browser, pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")]

ROOT = Path(__file__).resolve().parents[1]
CHAPTER = "00_start_here.ipynb"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
)
RUN_ALL = """async () => {
    const { commands, shell } = window.jupyterapp;
    const { context, sessionContext } = shell.currentWidget;
    await context.ready;
    await sessionContext.ready;
    await sessionContext.session.kernel.info;
    await commands.execute("notebook:run-all-cells");
    await commands.execute("docmanager:save");
}"""
TOKEN = secrets.token_hex()
PATIENCE = 60_000  # milliseconds, for a machine that is busy
TEXTS = ["Sweet love, welcome.", "He is dead.\nDead, I say!", "The door is <b>shut</b> & barred.", "O happy day."]
CELLS = (
    """
from pathlib import Path
from rlhf_lib import checkpoints, widgets
run = Path({run!r})
base, tokenizer = checkpoints.load(run / "base")
policy, _ = checkpoints.load(run / "policy")
reward_model, _ = checkpoints.load(run / "reward", kind="reward")
""",
    "widgets.labelling({texts!r}, 'labels.jsonl', reader='r1')",
    """
samples = {{
    name: [one.text for one in widgets.sample(model, tokenizer, max_new_tokens=24, count=2)]
    for name, model in (("base", base), ("policy", policy))
}}
widgets.blind_rating(samples, 'ratings.csv', rater='r1')
""",
    "widgets.sampler({{'base': base, 'tuned': policy}}, tokenizer, reward_model, count=1)",
    "widgets.explorer(run, count=2, max_new_tokens=24)",
    """
import math, time
with widgets.LiveCurves(["loss", "kl"], every=0.2) as live:
    for step in range(20):
        live.log(step, loss=3 * math.exp(-step / 8), kl=step / 5)
        time.sleep(0.02)
""",
)
TALK_CELLS = (
    """
import torch
from rlhf_lib import widgets
from rlhf_lib.models.llama import Llama, LlamaConfig
from rlhf_lib.tokenization import ChatTokenizer
tokenizer = ChatTokenizer.train(["why is the sky blue"], 300)
sizes = dict(context=400, layers=1, heads=2, kv_heads=1, width=16, hidden=32)
sides = {name: (Llama(LlamaConfig(tokenizer.vocab_size, **sizes)).eval(), tokenizer) for name in ("sft", "policy")}
""",
    "widgets.chat(sides, max_new_tokens=24)",
    "widgets.arena(sides, max_new_tokens=24, reader='r1', seed=0)",
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory, tiny_run):
    """The folder that JupyterLab serves, with chapter 00 and two notebooks of widgets, and its address."""
    folder, home = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("jupyter")
    shutil.copy(ROOT / "solutions" / CHAPTER, folder)
    sources = {
        "widgets.ipynb": [source.strip().format(run=str(tiny_run), texts=TEXTS) for source in CELLS],
        "talk.ipynb": [source.strip() for source in TALK_CELLS],
    }
    for name, cells in sources.items():
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
        notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, folder / name)
    settings = {"notebook-extension/tracker": {"windowingMode": "none"}}  # cells out of sight are drawn too
    settings["apputils-extension/notification"] = {"checkForUpdates": False, "fetchNews": "false"}
    for name, content in settings.items():
        write_json(home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings", content)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "RLHF_PRESET": "smoke", "JUPYTERLAB_SETTINGS_DIR": str(home / "settings")}
    environment |= {"JUPYTER_CONFIG_DIR": str(home), "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces")}
    environment |= {"JUPYTER_RUNTIME_DIR": str(home / "runtime"), "IPYTHONDIR": str(home / "ipython"), "JUPYTER_TOKEN": TOKEN}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    options = ["--no-browser", "--allow-root", "--expose-app-in-browser", f"--port={port}"]
    options += ["--ServerApp.port_retries=0", "--ServerApp.ip=127.0.0.1", f"--ServerApp.root_dir={folder}"]
    with open(home / "log.txt", "wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], cwd=folder, env=environment, stdout=log, stderr=log
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: answers(f"{url}/api/status?token={TOKEN}"), lambda: (home / "log.txt").read_text()[-2000:])
        yield folder, url
    finally:
        server.terminate()  # it stops its kernels too
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


def answers(url):
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as reply:
        return reply.status == 200


def wait_until(true, what=lambda: ""):
    end = time.monotonic() + PATIENCE / 1000
    while not true():
        assert time.monotonic() < end, what()
        time.sleep(0.1)


@pytest.fixture(scope="module")
def browser(lab):
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture
def opened(lab, browser):
    """`opened(name, height)`: the notebook's page, with all its cells run, saved."""
    pages = []

    def open_(name, height):
        page = browser.new_page(viewport={"width": 1100, "height": height})
        pages.append(page)
        page.set_default_timeout(PATIENCE)
        page.goto(f"{lab[1]}/doc/tree/{name}?token={TOKEN}")
        page.wait_for_function("window.jupyterapp && window.jupyterapp.shell.currentWidget?.sessionContext")
        page.evaluate(RUN_ALL)
        return page

    yield open_
    for page in pages:
        page.close()


def errors_in(path):
    """What went wrong in the cells of a saved notebook."""
    outputs = [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])]
    return [output.evalue for output in outputs if output.output_type == "error"]


def shoot(page, name):
    """With RLHF_SHOTS, a screenshot in each theme; the light one is left."""
    folder = os.environ.get("RLHF_SHOTS")
    for theme in ("Dark", "Light") if folder else ():
        theme_of(page, theme)
        page.screenshot(path=Path(folder) / f"{name}_{theme.lower()}.png")


def theme_of(page, theme):
    page.evaluate(f"window.jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {theme}'}})")
    page.wait_for_selector(f"body[data-jp-theme-name='JupyterLab {theme}']", state="attached")
    page.wait_for_timeout(500)  # the style sheet follows


# ----------------------------------------------------------------------------------------- contrast

COLORS = """element => {
    const layers = [];
    for (let one = element; one; one = one.parentElement) layers.push(getComputedStyle(one).backgroundColor);
    return [getComputedStyle(element).color, ...layers];
}"""


def rgba(text):
    numbers = [float(number) for number in re.findall(r"[\d.]+", text)]
    return (*numbers[:3], numbers[3] if len(numbers) > 3 else 1.0)


def over(top, below):
    return tuple(top[3] * a + (1 - top[3]) * b for a, b in zip(top[:3], below))


def luminance(color):
    """Relative luminance (WCAG 2.1) of red, green and blue from 0 to 255."""
    parts = [part / 255 / 12.92 if part / 255 <= 0.04045 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in color]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(element):
    """Contrast of an element's text with what lies behind it (WCAG 2.1: at least 4.5 to be read)."""
    text, *layers = map(rgba, element.evaluate(COLORS))
    behind = (255, 255, 255)
    for layer in reversed(layers):
        behind = over(layer, behind)
    light, dark = sorted((luminance(over(text, behind)), luminance(behind)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


# ----------------------------------------------------------------------------------------- the tests


def test_chapter_00_runs_from_first_to_last_cell(lab, opened):
    folder, _ = lab
    page = opened(CHAPTER, 4200)
    shoot(page, "chapter_00")
    assert errors_in(folder / CHAPTER) == []
    cells = [cell for cell in nbformat.read(folder / CHAPTER, 4).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells if cell.source.strip())
    assert page.get_by_text("parameters").count() and page.get_by_text("the gold judge prefers").count()
    picture = page.locator(".jp-OutputArea-output img").first
    assert picture.evaluate("image => image.naturalWidth") > 200


def test_widgets_answer_a_person(lab, opened, tiny_run):
    folder, _ = lab
    page = opened("widgets.ipynb", 3300)
    assert errors_in(folder / "widgets.ipynb") == []
    label, rate, samples, explore, live = (page.locator(".jp-OutputArea").nth(place) for place in range(1, 6))

    # Labelling: buttons, keys, undo; the file keeps up.
    label.get_by_role("button", name="positive (p)").click()
    label.get_by_text("1 of 4 labelled by r1").wait_for()
    label.get_by_placeholder("click here").click()
    page.keyboard.type("n0")
    label.get_by_text("3 of 4 labelled by r1").wait_for()
    label.get_by_role("button", name="undo (u)").click()
    label.get_by_text("2 of 4 labelled by r1").wait_for()
    label.get_by_text("The door is <b>shut</b> & barred.").wait_for()
    given = labels.read(folder / "labels.jsonl")
    assert [(one.text, one.label, one.reader) for one in given] == [
        (TEXTS[0], "positive", "r1"),
        (TEXTS[1], "negative", "r1"),
    ]

    # Blind rating: buttons and digits; no source on the page or on disk before it is asked for.
    rate.get_by_role("button", name="4", exact=True).first.click()
    rate.get_by_role("button", name="2", exact=True).last.click()
    rate.get_by_text("1 of 4 rated by r1").wait_for()
    rate.get_by_placeholder("or type two digits").click()
    page.keyboard.type("3512")
    rate.get_by_text("3 of 4 rated by r1").wait_for()
    assert "policy" not in rate.inner_text() and {row["source"] for row in widgets.read_ratings(folder / "ratings.csv")} == {""}
    shoot(page, "widgets")
    rate.get_by_placeholder("or type").press_sequentially("55")
    rate.get_by_role("button", name="show who wrote what").click()
    rate.get_by_text("policy beats base").wait_for()
    rows = widgets.read_ratings(folder / "ratings.csv")
    assert [(row["positivity"], row["sense"]) for row in rows] == [(4, 2), (3, 5), (1, 2), (5, 5)]
    assert sorted(row["source"] for row in rows) == ["base", "base", "policy", "policy"]

    # Sampler: another temperature gives other samples, tinted and readable in both themes.
    frame = samples.locator(".widget-html, .jupyter-widget-html").last
    before = frame.inner_text()
    slider = samples.locator(".noUi-handle").first
    slider.focus()
    for _ in range(8):
        slider.press("ArrowUp")
    page.wait_for_function("([element, text]) => element.innerText != text", arg=[frame.element_handle(), before])
    for theme in ("Dark", "Light"):
        theme_of(page, theme)
        tokens = samples.locator("span[title$=nats]").all()
        assert len(tokens) >= 2
        assert min(map(contrast, tokens)) >= 4.5
        for cell in (label, rate, explore):
            assert min(map(contrast, cell.locator(".widget-html-content td, .widget-html-content span").all()[:40])) >= 4.5
        assert min(map(contrast, label.get_by_role("button").all())) >= 3

    # Explorer: the slider's figures are the run's.
    records = {record["step"]: record for record in runs.Metrics(tiny_run).read("policy")}
    explore.get_by_text(f"{records[0]['kl']:.4f}", exact=True).first.wait_for()
    explore.locator(".noUi-handle").focus()
    explore.locator(".noUi-handle").press("ArrowUp")
    explore.get_by_text(f"{records[2]['kl']:.4f}", exact=True).wait_for()
    explore.get_by_text(f"{records[2]['gold']:.4f}", exact=True).wait_for()

    # Live curves: one picture, drawn.
    assert live.locator("img").count() == 1
    assert live.locator("img").evaluate("image => image.complete && image.naturalWidth") > 200
    shoot(page, "widgets_after")


def test_chat_and_arena_answer_a_person(lab, opened):
    folder, _ = lab
    page = opened("talk.ipynb", 2200)
    assert errors_in(folder / "talk.ipynb") == []
    talk, arena = (page.locator(".jp-OutputArea").nth(place) for place in (1, 2))

    # Chat: all that was typed arrives, however fast; leaving the box says nothing; a text is no markup.
    box, log = talk.get_by_placeholder("then press Enter"), talk.get_by_role("log")
    box.click()
    page.keyboard.type("why <b>is</b> it?")
    page.keyboard.press("Enter")
    log.get_by_text("why <b>is</b> it?", exact=True).wait_for()
    log.get_by_text("sft", exact=True).wait_for()
    log.get_by_text("is writing").wait_for(state="detached")
    page.keyboard.type("And who says")
    talk.get_by_label("model").select_option("policy")
    assert log.get_by_text("you", exact=True).count() == 1
    box.click()
    page.keyboard.press("End")
    page.keyboard.type(" so?")
    page.keyboard.press("Enter")
    log.get_by_text("And who says so?", exact=True).wait_for()
    log.get_by_text("policy", exact=True).wait_for()
    log.get_by_text("is writing").wait_for(state="detached")
    assert box.input_value() == ""

    # Arena: by keys; the names stand there after the vote, and the vote in the file.
    arena.get_by_placeholder("click here").click()
    page.keyboard.type("n")
    arena.get_by_text("first answer", exact=True).wait_for()
    page.keyboard.type("k2")
    arena.get_by_text("second answer, by").wait_for()
    arena.get_by_text("policy against sft").wait_for()
    arena.get_by_label("prompt").fill("my <i>own</i>")
    arena.get_by_role("button", name="next question").click()
    arena.get_by_text("my <i>own</i>", exact=True).wait_for()
    arena.get_by_text("first answer", exact=True).wait_for()
    arena.get_by_role("button", name="tie (0)").click()
    arena.get_by_text("first answer, by").wait_for()
    votes = comparisons.read_comparisons(folder / "arena.jsonl", comparisons.read_prompts())
    assert [(vote.verdict, vote.reason, vote.reader) for vote in votes] == [("second", "kind", "r1"), ("tie", "", "r1")]
    assert votes[1].prompt == "my <i>own</i>"

    # Readable in both themes, and at 800 pixels: nothing sticks out to the right.
    page.set_viewport_size({"width": 800, "height": 2200})
    for theme in ("Dark", "Light"):
        theme_of(page, theme)
        for cell in (talk, arena):
            parts = cell.locator(".widget-html-content div, .widget-html-content td, button, label").all()
            assert min(map(contrast, [part for part in parts if part.is_visible() and part.inner_text().strip()])) >= 3
            assert cell.evaluate("element => element.scrollWidth - element.clientWidth") <= 1
    shoot(page, "talk")
