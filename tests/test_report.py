"""The report: whole, escaped, self-contained pages from run folders; then in a real browser."""

import functools
import json
import os
import re
import shutil
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from command_line import assert_one_line, call

from experiments import figures, report, run_folder
from experiments.page import svg as report_figures
from experiments.page import tables as report_tables

LSTM = {"model": {"cell": "lstm"}}
VERSIONS = {"python": "3.11", "jax": "0.10", "corpus": {"name": "austen", "sha256": "2ea1"}}


def make_run(folder, command=("throughput", "--repeats=5"), config=None, results=None, metrics=()):
    """A run's folder as an experiment leaves it."""
    (folder / "figures").mkdir(parents=True)
    config = {"cells": ["rnn"], "repeats": 5, "run": ""} if config is None else config
    run_folder.write_json(folder / "config.json", {"command": list(command), "config": config})
    run_folder.write_json(folder / "versions.json", VERSIONS)
    if results is not None:
        run_folder.write_json(folder / "results.json", results)
    log = run_folder.MetricsLog(folder)
    for line in metrics:
        log.write(**line)
    return folder


def draw(folder, name, title="A panel", heat=False):
    """A figure in a run's folder."""
    for kind, content in drawn(title, heat).items():
        (folder / "figures" / f"{name}.{kind}").write_bytes(content)


@functools.cache
def drawn(title, heat):
    """A figure with a clip path, a marker and a legend, each of which has ids: kind -> bytes."""
    figure, (axis,) = figures.new_figure(1, width=8)
    if heat:
        axis.imshow(np.eye(3))
    else:
        axis.plot([1, 2, 3], [3, 1, 2], "o-", label="LSTM <1>")
        axis.legend()
    axis.set(title=title, xlabel="step", ylabel="loss")
    figure.suptitle("The finding & more", fontweight="bold")
    with tempfile.TemporaryDirectory() as folder:
        paths = figures.save(figure, Path(folder), "figure")
        return {path.suffix[1:]: path.read_bytes() for path in paths}


def page_of(*folders, out):
    done = call("report", *folders, f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert not list(out.parent.glob("*.partial"))
    return out.read_text(encoding="utf-8")


class Elements(HTMLParser):
    """All elements of a page with their attributes."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def count(self, tag):
        return sum(name == tag for name, _ in self.found)


def assert_self_contained(page):
    """Nothing on the page points outside it; every id is there once, and what refers, resolves."""
    elements = Elements(page).found
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in elements:
        for name in ("src", "href", "xlink:href", "action", "data", "srcset"):
            target = attributes.get(name)
            if target is None:
                continue
            assert target.startswith(("#", "data:")), (tag, target)
            if target.startswith("#"):
                assert target[1:] in ids, target
    for target in re.findall(r"url\(([^)]*)\)", page):
        assert target.startswith("#"), target
        assert target[1:] in ids, target
    assert "@import" not in page


def train_metrics(steps=(50, 100, 150, 200)):
    for step in steps:
        flow = {"log10_lag": [[0.0, -1.5, -777.25]]}  # curves of their own, not for a cell
        rate = {"clipped": 0.5, "tokens_per_second": 1e4}
        yield {"step": step, "loss": 7 - step / 100, **rate, **flow}
        if step % 100 == 0:
            yield {"step": step, "valid": 300 - step}


TRAINED = {
    "step": 200,
    "parameters": 2_513_460,
    "valid": {"nats": 214_478.7, "tokens": 42_371, "perplexity": 157.89365},
    "test": {"nats": 218_425.4, "tokens": 42_725, "perplexity": 166.06105},
}
CLAIMS = {
    "claims": [
        {
            "name": name,
            "statement": f"statement of {name} <b>",
            "measured": {"solved": "10 of 10", "mse": 0.00123},
            "threshold": ">= 9 of 10",
            "passed": passed,
            "seconds": 12.5,
            "figure": name.lower(),
            "table": {"columns": ["seed", "mse"], "rows": [[0, 0.5], [1, float("inf")]]},
        }
        for name, passed in (("C2", True), ("C5", False))
    ]
}
ROWS = [
    {"cell": cell, "hidden_size": size, "engine_ms": ms, "reach": reach}
    for cell, size, ms, reach in [
        ("lstm", 128, 8.0, float("inf")),
        ("rnn", 128, 2.6, 34.5),
        ("lstm", 1024, 94.5, None),
        ("rnn", 1024, 22.1, 9.25),
    ]
]


def test_a_run_of_train(tmp_path):
    config = {"steps": 200, "seed": 0, "model": {"cell": "lstm", "layers": 1}, "optim": {}}
    folder = make_run(
        tmp_path / "mine",
        ("train", "--steps=200", "--corpus=my book.txt"),
        {**config, "data": {"corpus": "my book.txt"}},
        TRAINED,
        train_metrics(),
    )
    draw(folder, "perplexity")
    done = call("report", folder)
    assert done.returncode == 0, done.stderr
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert str(folder / "report.html") in done.stdout
    assert_self_contained(page)
    command = re.search(r"<pre[^>]*><code>(.*?)</code>", page, re.DOTALL).group(1)
    text = re.sub("<[^>]*>", "", command).replace("&#39;", "'")
    assert text == "./launch.sh train --steps=200 '--corpus=my book.txt'"
    for shown in ("157.9", "166.1", "2,513,460", "The finding &amp; more", "austen", "Versions"):
        assert shown in page
    assert "777" not in page
    assert "loss from 6.5 at step 50 to 5 at step 200" in page  # the curve, in words
    rows = re.findall(r'<tr( class="default")?>\s*<th scope="row">(\w+)', page)
    changed = {name for dimmed, name in rows if not dimmed}
    assert changed == {"steps", "corpus"}
    assert "training steps; 0: as many as epochs makes" in page
    assert page.count('aria-label="Figure perplexity. The finding &amp; more. A panel') == 1


def test_what_a_run_holds_is_text_and_never_markup(tmp_path):
    bad = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    folder = make_run(
        tmp_path / "<script>alert(1)<&script>",
        ("train", f"--corpus={bad}", "--data_dir=caf\udce9"),  # bytes of a shell that are no text
        {"data": {"corpus": bad}, bad: bad},
        {bad: bad, "rows": [{bad: bad, "number": 1}], "valid": {"perplexity": 3.0}, "finding": bad},
        [{"step": 1, "loss": 2.0, "cell": bad}],
    )
    run_folder.write_json(folder / "versions.json", {bad: bad})
    draw(folder, "x", title=bad)
    (folder / "figures" / "x.svg").rename(folder / "figures" / "a<script>'\"&.svg")
    page = page_of(folder, folder, out=tmp_path / "out.html")
    elements = Elements(page)
    assert elements.count("script") == 1
    assert elements.count("img") == 1  # x.png, left without its SVG
    assert not [a for _, attributes in elements.found for a in attributes if a.startswith("on")]
    assert page.count("alert(1)") == page.count("&lt;script&gt;alert(1)") + page.count(
        "onerror=alert(1)&gt;"
    )
    assert_self_contained(page)


def test_a_hostile_figure_is_only_drawn(tmp_path):
    path = tmp_path / "x.svg"
    path.write_text(
        '<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" '
        'xmlns:xlink="http://www.w3.org/1999/xlink" width="100pt" height="50pt" onload="a()">'
        "<script>a()</script><style>* {color: red}</style><metadata>m</metadata>"
        '<foreignObject><p xmlns="http://www.w3.org/1999/xhtml">p</p></foreignObject>'
        '<a xlink:href="javascript:a()"><text>t</text></a>'
        '<image xlink:href="http://example.org/a.png"/><use xlink:href="other.svg#a"/>'
        '<rect id="r" onclick="a()" fill="url(http://example.org/a)" width="5"/>'
        '<path id="p" style="fill: #ffffff; stroke: #0072b2"/><use xlink:href="#p"/></svg>'
    )
    figure = report_figures.inline_svg(path, "z-")
    elements = Elements(figure.markup)
    assert [tag for tag, _ in elements.found] == ["svg", "image", "use", "rect", "path", "use"]
    root = elements.found[0][1]
    assert (root["viewbox"], "width" in root, root["role"]) == ("0 0 100 50", False, "img")
    assert figure.width == pytest.approx(100 * 4 / 3)
    assert elements.found[3][1] == {"width": "5"}
    assert elements.found[4][1]["id"] == "z-p"
    assert elements.found[5][1] == {"href": "#z-p"}
    for word in ("a()", "example", "other.svg", "red", "<p>"):
        assert word not in figure.markup


def test_figures_share_a_page(tmp_path):
    for name in ("one", "two"):
        folder = make_run(tmp_path / name, results={"rows": ROWS})
        for figure in ("curve", "again"):
            draw(folder, figure)
        draw(folder, "field", heat=True)
    page = page_of(tmp_path / "one", tmp_path / "two", out=tmp_path / "page.html")
    assert_self_contained(page)
    clips = re.findall(r'<clipPath id="([^"]*)', page)
    assert len(clips) == len(set(clips)) >= 4
    assert page.count('<figure class="figure dark">') == 4
    assert page.count('<figure class="figure">') == 2  # a heat map keeps its white paper
    assert "var(--figure-ink)" in page
    assert "<?xml" not in page
    assert "DOCTYPE svg" not in page
    assert "LSTM &lt;1&gt;</text>" in page  # text is text


def test_a_png_stands_in_for_a_huge_figure(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run")
    draw(folder, "curve")
    monkeypatch.setattr(report_figures, "LARGEST_SVG", 1000)
    (figure,) = report_figures.load_figures(folder / "figures", "a")
    assert figure.width == pytest.approx(8 * 96)
    assert figure.markup.startswith('<img alt="curve" src="data:image/png;base64,')
    (folder / "figures" / "curve.png").unlink()
    (figure,) = report_figures.load_figures(folder / "figures", "a")
    assert figure.markup.startswith("<svg")


def test_what_a_figure_says(tmp_path):
    folder = make_run(tmp_path / "run")
    figure, (left, right) = figures.new_figure(2)
    left.plot([1, 2], [3, 4], label="LSTM")
    left.set(title="A title", xlabel="lag $T - t$", ylabel=r"$\Vert h_t \Vert$")
    left.annotate("a note", (1, 3))
    left.legend()
    right.plot([1, 2], [3, 4])
    right.annotate("only a note", (1.5, 3.5))
    figure.suptitle("A finding")
    figure.supxlabel("conditions")
    figures.save(figure, folder / "figures", "two_panels")
    (found,) = report_figures.load_figures(folder / "figures", "a")
    assert (found.title, found.caption) == ("A finding", "A title")
    assert found.description == (
        "Figure two panels. A finding. A title (‖ht‖ against lag T−t): LSTM. conditions"
    )


def test_a_page_for_several_runs(tmp_path):
    def config(cell, clip):
        return {"seed": 0, "model": {"cell": cell}, "optim": {"clip": clip}, "run": "x"}

    make_run(tmp_path / "a", ("train",), config("lstm", 0.25), TRAINED)
    make_run(tmp_path / "b", ("train",), config("gru", "inf"))
    found = {"rnn": 273.5, "lstm": 240.75}
    rows = [{"cell": cell, "valid": v, "test": v + 9} for cell, v in found.items()]
    both = {"cells": ["rnn", "lstm"], "seeds": 4}
    make_run(tmp_path / "c", ("gradient_flow",), both, {"rows": rows})
    runs = [report.read_run(tmp_path / name, f"run{name}") for name in "abc"]
    table = report.compare(runs)
    shown = [dict(zip(table.columns, (v.text for v in row), strict=True)) for row in table.rows]
    assert [row["run"] for row in shown] == ["a", "b", "c"]
    assert [row["state"] for row in shown] == ["finished", "unfinished", "finished"]
    assert [row["cell"] for row in shown] == ["lstm", "gru", "rnn, lstm"]
    assert [row["seeds"] for row in shown] == ["1", "1", "4"]
    assert [row["validation perplexity"] for row in shown] == ["157.9", "-", "240.8"]
    assert [row["clip"] for row in shown] == ["0.25", "inf", "-"]  # where the runs differ
    assert "corpus" not in table.columns  # no run has one
    best = table.rows[2][table.columns.index("test perplexity")]
    assert (best.text, best.note, best.number) == ("249.8", "lstm", 249.75)
    page = page_of(*(tmp_path / name for name in "abc"), out=tmp_path / "page.html")
    assert_self_contained(page)
    assert [page.count(f'href="#run{n}"') for n in (1, 2, 3)] == [2, 2, 2]  # contents and table


def test_claims_have_verdicts(tmp_path):
    folder = make_run(tmp_path / "claims", ("claims",), {"only": ""}, CLAIMS)
    draw(folder, "c2")
    page = page_of(folder, out=tmp_path / "page.html")
    assert_self_contained(page)
    assert "1 of 2 claims hold" in page
    verdicts = re.findall(r'class="verdict (\w+)">(.*?)<', page)
    assert sorted(set(verdicts)) == [("fails", "✗ fails"), ("holds", "✓ holds")]
    assert len(verdicts) == 4  # in the table and beside each claim
    assert page.count("<figure") == 1
    assert "statement of C2 &lt;b&gt;" in page
    assert "&gt;= 9 of 10" in page


@pytest.mark.parametrize("experiment", ["train", "claims", "an_older_experiment"])
def test_a_run_that_was_killed_has_a_page(experiment, tmp_path):
    measured = train_metrics((50, 100))
    folder = make_run(tmp_path / "killed", (experiment,), LSTM, metrics=measured)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 150, "los')
    shutil.rmtree(folder / "figures")
    page = page_of(folder, out=tmp_path / "page.html")
    assert_self_contained(page)
    assert "Unfinished." in page
    assert "its last logged step is 100" in page
    assert (f"--run={folder} --resume" in page) == (experiment == "train")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("results.json", '{"rows": [{"a"'),
        ("results.json", "[1, 2]"),
        ("results.json", '{"claims": [{"name": "C1"}]}'),
        ("results.json", '{"claims": [3]}'),
        ("results.json", '{"claims": 3}'),
        ("results.json", b"\xff\xfe"),
        ("config.json", "{"),
        ("config.json", '{"config": {}}'),
        ("versions.json", "nothing"),
        ("evaluation.json", "nothing"),
        ("metrics.jsonl", b"\xff\xfe"),
        ("figures/x.svg", "<svg"),
        ("figures/x.svg", "<html></html>"),
        ("figures/x.png", "<svg"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(file, content, tmp_path):
    folder = make_run(tmp_path / "run", results={"rows": ROWS})
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_one_line(call("report", folder), str(folder / file), "damaged")
    assert not (folder / "report.html").exists()


def test_where_runs_are_found_and_pages_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_one_line(call("report"), "no run below runs/")
    assert_one_line(call("report", "nowhere"), "nowhere", "no run")
    assert_one_line(call("report", "--sort=3"), "sort")
    old, new = (make_run(Path("runs") / name, results={}) for name in ("old", "new"))
    for age, folder in enumerate((new, old)):
        stamp = 1e9 - age
        os.utime(folder / "config.json", (stamp, stamp))
    assert "runs/new/report.html" in call("report").stdout
    assert "runs/report.html" in call("report", "runs/old", "runs/new").stdout
    assert "runs/old/report.html" in call("report", "runs/old", "runs/old").stdout
    assert "deep/er/page.html" in call("report", "runs/old", "--out=deep/er/page.html").stdout
    assert_one_line(call("report", "runs/old", "--out=runs"), "runs", "--out")
    assert_one_line(call("report", "--out=deep/er/page.html/x.html", "runs/old"), "--out")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (0.8, "0.8"),
        (2_513_460, "2,513,460"),
        (157.89365, "157.9"),
        (0.00123456, "0.001235"),
        (5.1e-7, "5.1e-07"),
        (1234.5678, "1,235"),
        (-0.46417, "-0.4642"),
        (float("inf"), "inf"),
        (float("nan"), "-"),
    ],
)
def test_numbers_as_a_person_reads_them(number, text):
    assert report_tables.value(number).text == text


def test_tables_are_found_in_any_results():
    results = {
        "seconds": 3.0,
        "rows": [{"a": 1, "none": None}, {"a": 2, "b": [1, 2]}],
        "valid": {"perplexity": 3.0},
        "test": {"perplexity": 4.0},
        "deep": [{"name": "x", "points": [{"t": 1}, {"t": 2}]}],
        "curve": list(range(100)),
    }
    tables = list(report_tables.find_tables(results))
    assert [(t.title, t.columns) for t in tables] == [
        ("", ["", "perplexity"]),
        ("", ["a", "none", "b"]),
        ("deep 1", ["name"]),
        ("deep 1, points", ["t"]),
        ("curve", ["values"]),
    ]
    cells = [[cell.text for cell in row] for row in tables[1].rows]
    assert cells == [["1", "-", "-"], ["2", "-", "1, 2"]]
    assert tables[1].without_empty().columns == ["a", "b"]
    assert tables[4].rows[0][0].text.endswith("11, ... (100 in all)")
    many = report_tables.table_of("many", [{"i": i} for i in range(1200)])
    assert len(many.rows) == report_tables.MOST_ROWS
    assert "1,200" in many.note
    nested = {"a": {"x": 1, "in": {"table": {"columns": ["p", "q"], "rows": [[1, 2]]}}}}
    assert [t.title for t in report_tables.find_tables(nested)] == ["a", "a, in, table"]


# In a browser.

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# The lowest contrast of any text with what lies behind it (WCAG 2.2, 1.4.3), and that text.
CONTRAST = """
const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1});
const context = canvas.getContext("2d", {willReadFrequently: true});
function rgba(colour) {
  context.clearRect(0, 0, 1, 1); context.fillStyle = colour; context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data];
}
function luminance([r, g, b]) {
  const [x, y, z] = [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
}
function behind(element) {
  for (; element; element = element.parentElement) {
    const colour = rgba(getComputedStyle(element).backgroundColor);
    if (colour[3] === 255) return colour;
  }
  return [255, 255, 255];
}
let worst = [99, ""];
for (const element of document.body.querySelectorAll("*")) {
  const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  if (!own || !element.getClientRects().length || element.tagName === "SCRIPT") continue;
  const style = getComputedStyle(element);
  const drawn = element.closest("svg") ? style.fill : style.color;
  const pair = [luminance(rgba(drawn)), luminance(behind(element))].sort((a, b) => b - a);
  const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
  if (contrast < worst[0]) worst = [contrast, element.outerHTML.slice(0, 200)];
}
return worst;
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not (CHROMIUM and DRIVER):
        pytest.skip("no chromium and chromedriver here: apt-get install chromium chromium-driver")
    selenium = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = selenium.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with everything on it: results, figures, claims, a killed run."""
    root = tmp_path_factory.mktemp("runs")
    one = make_run(root / "one", results={"rows": ROWS})
    draw(one, "curve")
    draw(one, "field", heat=True)
    two = make_run(root / "two", ("claims",), {"only": "x" * 300}, CLAIMS)
    draw(two, "c2")
    three = make_run(root / ("three" * 20), ("train",), LSTM, metrics=train_metrics())
    out = root / "page.html"
    page_of(one, two, three, out=out)
    return out


def show(browser, page, width=1280, scheme="light"):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    browser.get(page.as_uri())


def test_it_loads_without_an_error_or_a_request(browser, page):
    browser.get_log("performance")
    show(browser, page)
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    asked = [r["request"]["url"] for r in requests if r["documentURL"] == page.as_uri()]
    assert asked[0] == page.as_uri()
    assert [url for url in asked[1:] if not url.startswith("data:")] == []
    # And the policy holds: the page could not ask if it wanted to.
    browser.execute_script("new Image().src = 'http://127.0.0.1:9/x.png'")
    assert "Content Security Policy" in browser.get_log("browser")[0]["message"]


@pytest.mark.parametrize("width", [360, 1280])
def test_figures_are_seen_and_the_page_never_scrolls_sideways(browser, page, width):
    show(browser, page, width)
    sizes = browser.execute_script(
        "document.querySelectorAll('details').forEach((part) => (part.open = true));"
        "return [...document.querySelectorAll('.figure svg')].map((svg) => {"
        "const {width, height} = svg.getBoundingClientRect(); return [width, height];})"
    )
    assert len(sizes) == 3
    assert all(w > 250 and h > 120 for w, h in sizes)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    wide = browser.execute_script(
        "return [...document.body.querySelectorAll('*')].filter((e) => !e.closest('.scroll, svg')"
        " && e.getBoundingClientRect().right > innerWidth + 0.5).map((e) => e.outerHTML)"
    )
    assert wide == []
    stops = browser.execute_script(
        "return [...document.querySelectorAll('.scroll')].map((box) =>"
        " [box.scrollWidth > box.clientWidth, box.tabIndex === 0])"
    )
    assert width > 600 or any(scrolls for scrolls, _ in stops)


def read_column(browser, column):
    """(texts of a column of the first results table, aria-sort of its header)."""
    return browser.execute_script(
        "const table = document.querySelector('#run1-tables table');"
        "return [[...table.tBodies[0].rows].map((row) => row.cells[arguments[0]].innerText),"
        " table.tHead.rows[0].cells[arguments[0]].getAttribute('aria-sort')]",
        column,
    )


def test_tables_sort_by_mouse_and_by_keyboard(browser, page):
    from selenium.webdriver.common.keys import Keys

    show(browser, page)
    buttons = browser.find_elements("css selector", "#run1-tables thead button")
    assert [b.text for b in buttons] == ["cell", "hidden size", "engine ms", "reach"]
    assert read_column(browser, 2) == [["8", "2.6", "94.5", "22.1"], None]
    buttons[2].click()
    assert read_column(browser, 2) == [["2.6", "8", "22.1", "94.5"], "ascending"]  # as numbers
    buttons[2].click()
    assert read_column(browser, 2) == [["94.5", "22.1", "8", "2.6"], "descending"]
    buttons[0].click()  # equal cells keep their order
    assert read_column(browser, 2)[0] == ["94.5", "8", "22.1", "2.6"]
    assert read_column(browser, 2)[1] is None
    buttons[3].send_keys(Keys.ENTER)  # infinite and missing come last, either way
    assert read_column(browser, 3) == [["9.25", "34.5", "inf", "-"], "ascending"]
    buttons[3].send_keys(Keys.SPACE)
    assert read_column(browser, 3) == [["34.5", "9.25", "inf", "-"], "descending"]
    buttons[1].send_keys(Keys.TAB)
    assert browser.switch_to.active_element == buttons[2]


def test_light_and_dark_can_be_read(browser, page):
    seen = {}
    for scheme in ("light", "dark"):
        show(browser, page, scheme=scheme)
        seen[scheme] = browser.execute_script(
            "document.querySelectorAll('details').forEach((part) => (part.open = true));"
            "return getComputedStyle(document.body).backgroundColor"
        )
        contrast, where = browser.execute_script(CONTRAST)
        assert contrast >= 4.5, (scheme, where)
    assert seen["light"] != seen["dark"]


def test_the_command_is_copied(browser, page):
    show(browser, page)
    button = browser.find_element("css selector", ".copy")
    button.click()
    text = browser.execute_async_script(
        "const done = arguments[0], button = document.querySelector('.copy');"
        "setTimeout(() => done([button.textContent, String(getSelection())]), 200)"
    )
    assert text[0] == "Copied" or (text[0] == "Selected" and text[1].startswith("./launch.sh"))
