"""The page in a real browser: nothing runs, nothing is fetched, nothing spills over the side of the window."""

from __future__ import annotations

import functools
import html as markup
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from reports import PIXEL, classification, hostile, regression

from hftl.results.report.page import html
from hftl.results.report.report import Report
from hftl.tasks.sections import Example, Gallery

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.launch,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)"),
]

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--v=0"]

# Measures the page in frames of several widths, so that the page itself stays as it was written. A window cannot be
# narrower than 500 pixels, a frame can.
WRAPPER = """<!DOCTYPE html><title>waiting</title>{frames}<pre id="found"></pre><script>
window.onload = () => {{
  const found = {{}};
  for (const frame of document.querySelectorAll("iframe")) {{
    const page = frame.contentDocument, root = page.documentElement, width = root.clientWidth;
    page.querySelectorAll("details").forEach(part => part.open = true);
    const boxed = part => part.closest(".scroll, .hidden");
    const beyond = [...page.querySelectorAll("main *, footer")].filter(
      part => !boxed(part) && part.getBoundingClientRect().right > width + 0.5);
    const style = frame.contentWindow.getComputedStyle(page.body);
    found[frame.width] = {{width, scroll: root.scrollWidth, title: page.title, height: root.scrollHeight,
      beyond: beyond.map(part => part.outerHTML.slice(0, 120)), paper: style.backgroundColor, ink: style.color,
      images: [...page.images].filter(image => !image.complete || !image.naturalWidth).length}};
  }}
  document.getElementById("found").textContent = JSON.stringify(found);
}};
</script>"""


def page_of(report: Report) -> str:
    return html(Report.from_dict(report.as_dict()))


def chromium(folder: Path, page: str, *flags: str) -> tuple[str, str]:
    """Open the page in a fresh profile; returns the document after its scripts ran, and the browser's console."""
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    profile = [
        f"--user-data-dir={tempfile.mkdtemp(dir=folder)}",
        "--window-size=1400,1000",
        "--virtual-time-budget=3000",
    ]
    command = [str(CHROMIUM), *FLAGS, *profile, *flags, "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def measured(folder: Path, report: Report, *flags: str) -> dict[str, dict]:
    source = markup.escape(page_of(report))
    frames = "".join(f'<iframe width="{w}" height="900" srcdoc="{source}"></iframe>' for w in (390, 1280))
    document, console = chromium(folder, WRAPPER.format(frames=frames), *flags)
    assert console == ""
    return json.loads(markup.unescape(re.findall(r'<pre id="found">(.*?)</pre>', document, re.DOTALL)[0]))


def images() -> Report:
    report = classification(labels=list("0123456789"), task="image-classification")
    wrong = Example(images=[PIXEL], label="3", prediction="8", words="with 0.970")
    report.of(Gallery)[0].examples = [wrong] * 12
    return report


CASES = {
    "six classes": classification,
    "twenty long names": functools.partial(
        classification, labels=[f"{i} {'a long name of a class ' * 3}" for i in range(20)]
    ),
    "seventy-seven classes": functools.partial(classification, labels=[f"class_{i}_{'x' * 60}" for i in range(77)]),
    "words without spaces": functools.partial(
        classification, text="x" * 5000, command="y" * 500, model="org/" + "z" * 90
    ),
    "regression": regression,
    "images": images,
    "hostile": hostile,
}


@pytest.mark.parametrize("case", CASES)
def test_no_page_scrolls_sideways_on_a_phone_or_a_desk(case: str, tmp_path: Path) -> None:
    for width, found in measured(tmp_path, CASES[case]()).items():
        assert found["scroll"] <= found["width"], width
        assert found["beyond"] == [], width
        assert found["height"] > 1000
        assert found["images"] == 0


def test_the_page_follows_dark_and_light(tmp_path: Path) -> None:
    papers = {}
    for name, scheme in (("dark", 0), ("light", 1)):
        (tmp_path / name).mkdir()
        found = measured(tmp_path / name, regression(), f"--blink-settings=preferredColorScheme={scheme}")["1280"]
        papers[name] = [int(part) for part in re.findall(r"\d+", found["paper"])[:3]]
    assert max(papers["dark"]) < 60
    assert min(papers["light"]) > 230


def test_a_hostile_page_runs_no_script_and_the_console_stays_empty(tmp_path: Path) -> None:
    page = page_of(hostile())
    document, console = chromium(tmp_path, page)
    assert console == ""
    assert "<script>" not in document
    assert document.count("<tr>") == page.count("<tr>")


def test_the_content_policy_stops_a_script_that_got_past_the_escaping(tmp_path: Path) -> None:
    """The second lock, tried alone: without it this very script renames the page."""
    script = "<script>document.title = 'taken over'</script></body>"
    locked = page_of(regression()).replace("</body>", script)
    unlocked = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", locked)
    document, console = chromium(tmp_path, locked)
    assert "<title>taken over</title>" not in document
    assert "Content Security Policy" in console
    assert "<title>taken over</title>" in chromium(tmp_path, unlocked)[0]
