"""A page of tools/report.py in a browser: its script runs, and nothing is loaded."""

import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from tests.tools import report_data as made
from tests.tools.load import load_tool

tool = load_tool("report")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MISSING = (
    f"no browser in PATH: {', '.join(BROWSERS)}. As root on Debian or Ubuntu, tools/test.sh "
    "installs chromium; elsewhere: apt-get install chromium, or google.com/chrome"
)
# Put at the end of a page: what the page's own script did, and what happens when it is used.
PROBE = """
<script>
const say = (name, value) => { document.documentElement.dataset[name] = value; };
const key = (target, name) => target.dispatchEvent(
  new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true }));
let blocked = 0;
document.addEventListener("securitypolicyviolation", () => { blocked += 1; });
const scatter = document.querySelector(".chart.scatter");
scatter.focus();
key(scatter, "ArrowRight");
say("tip", tip.textContent);
say("lit", document.querySelectorAll(".lit").length);
key(scatter, "End");
say("last", tip.textContent);
key(scatter, "Escape");
say("hidden", tip.hidden);
const box = scatter.querySelector('[data-key="4"]').getBoundingClientRect();
scatter.dispatchEvent(new PointerEvent("pointermove", {
  clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, bubbles: true }));
say("pointed", tip.textContent);
scatter.dispatchEvent(new PointerEvent("pointerleave", {}));
const lines = document.querySelector("#training .chart.lines");
lines.focus();
key(lines, "Home");
say("line", tip.textContent);
finder.value = "dog";
finder.dispatchEvent(new Event("input"));
say("found", [...document.querySelectorAll(".lit")].map((m) => m.dataset.key).join());
finder.value = "";
finder.dispatchEvent(new Event("input"));
const table = document.querySelector("table.sortable");
const column = [...table.tHead.rows[0].cells].findIndex((c) => c.textContent === "train images");
const cells = () => [...table.tBodies[0].rows].map((r) => r.cells[column].textContent).join();
table.tHead.rows[0].cells[column].click();
say("falling", cells());
table.tHead.rows[0].cells[column].click();
say("rising", cells());
say("loaded", performance.getEntriesByType("resource").length);
say("wide", document.documentElement.scrollWidth - window.innerWidth);
setTimeout(() => say("blocked", blocked), 0);
</script>
"""


@pytest.fixture(scope="module")
def browser():
    """Opens a page; gives what it came to, and its screenshot if that is asked for."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(MISSING)

    def show(page, *options):
        # Root has no sandbox; a container has little shared memory.
        fixed = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
        profile = f"--user-data-dir={page.parent / 'profile'}"
        command = [program, *fixed, profile, "--virtual-time-budget=4000", *options, page.as_uri()]
        run = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stderr[-2000:]
        return run.stdout

    return show


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of two detection runs, without the probe."""
    data = made.DetectionSet(tmp_path_factory.mktemp("browser"))
    runs = [f"first={data.run('worse', 1, 0.4)}", f"second={data.run('better', 2, 0.95)}"]
    file = data.folder / "report.html"
    file.write_text(tool.report(runs), encoding="utf-8")
    yield file
    data.remove()


@pytest.fixture(scope="module")
def probed(page):
    """The page with the probe."""
    file = page.with_name("probed.html")
    html = page.read_text(encoding="utf-8").replace("</body>", f"{PROBE}</body>")
    file.write_text(html, encoding="utf-8")
    return file


def seen_in(dom):
    """What the probe saw: attribute of the page -> value."""
    return dict(re.findall(r'data-([a-z]+)="([^"]*)"', re.search(r"<html[^>]*>", dom)[0]))


@pytest.fixture(scope="module")
def opened(browser, probed):
    """The page as the browser has it, and what the probe saw."""
    dom = browser(probed, "--window-size=1200,900", "--dump-dom")
    return dom, seen_in(dom)


def test_the_script_runs_to_its_end_without_an_error(opened):
    _, seen = opened
    assert seen["ready"] == "true" and "error" not in seen and "blocked" in seen


def test_nothing_is_loaded(opened, page):
    _, seen = opened
    assert seen["loaded"] == seen["blocked"] == "0"
    html = page.read_text(encoding="utf-8")
    addresses = re.findall(r'(?:src|href)="([^"]{1,40})', html)
    assert addresses and all(a.startswith(("#", "data:image/jpeg;base64,")) for a in addresses)
    assert "default-src &#x27;none&#x27;; img-src data:;" in html


def test_every_class_with_a_value_has_a_mark_in_the_scatter_of_each_run(opened):
    dom, _ = opened
    classes = re.search(r'<section id="classes".*?</section>', dom, re.S)[0]
    scatters = re.findall(r'<svg class="chart scatter".*?</svg>', classes, re.S)
    assert [len(re.findall('class="point', s)) for s in scatters] == [6, 6]


def test_arrow_keys_and_the_pointer_name_a_class(opened):
    _, seen = opened
    assert seen["tip"].startswith("&lt;b&gt;ant&lt;/b&gt;rare, 3 training images, box AP ")
    assert seen["last"].startswith("foxfrequent, 500 training images, box AP ")
    assert seen["pointed"].startswith("elkfrequent, 300 training images, box AP ")
    assert seen["hidden"] == "true"
    # The class in both scatters, in both charts of the gradient ratio of each run, and where it
    # stands among those that moved most.
    assert int(seen["lit"]) >= 6


def test_lines_tell_their_values(opened):
    _, seen = opened
    assert seen["line"] == "iteration 1first: 2second: 2"


def test_a_class_is_found_by_its_name(opened):
    _, seen = opened
    assert set(seen["found"].split(",")) == {"3"}


def test_the_table_of_classes_is_sorted_by_a_click(opened):
    _, seen = opened
    numbers = [str(n) for n in made.TRAIN_IMAGES]
    assert seen["rising"].split(",") == numbers
    assert seen["falling"].split(",") == numbers[::-1]


def test_the_page_is_no_wider_than_its_window(browser, probed, opened):
    narrow = browser(probed, "--window-size=500,900", "--dump-dom")
    assert seen_in(narrow)["ready"] == "true"
    assert int(opened[1]["wide"]) <= 0 and int(seen_in(narrow)["wide"]) <= 0


def test_marks_are_painted_in_the_colors_of_their_groups(browser, page):
    picture = page.with_name("page.png")
    browser(page, "--window-size=1300,2600", "--hide-scrollbars", f"--screenshot={picture}")
    pixels = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3).astype(int)
    # Those of plot_gradient_ratio.COLORS; the style sheet's amber is a little darker.
    for color in ((0xC8, 0x36, 0x4A), (0xD9, 0x82, 0x1A), (0x3B, 0x76, 0xAF)):
        near = (np.abs(pixels - color).max(axis=1) <= 2).sum()
        assert near > 50, color  # two marks or more
