"""dashboard.html and compare.html in a real browser: they draw, fit a phone, ask no host, and can be used."""

import pytest
from browser import Browser, chromium
from made_run import change_rollouts, healthy_rows, make_run, write_lines

from radflow.dashboard.build import build_dashboard
from radflow.dashboard.compare import compare_runs

pytestmark = pytest.mark.skipif(chromium() is None, reason="needs Chromium; on Debian: apt install chromium")
EVIL = "<script>window.hacked = 1</script><img src=http://example.org/x onerror='window.hacked = 2'> \u2028 </script>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("runs") / "made", text=EVIL)
    rows = [
        row | {f"reward_{EVIL}": 0.5, "clip_low_critical": 0.0, "clip_high_critical": 0.0} for row in healthy_rows(30)
    ]
    write_lines(folder / "rl/metrics.jsonl", rows)
    change_rollouts(folder, 0, lambda rows: rows[0]["reports"][1].update(edited=f"missed {EVIL}: added"))
    return build_dashboard(folder)


def check_quiet(browser):
    assert not browser.problems
    assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []
    assert browser.run("typeof window.hacked") == "undefined"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_dashboard_is_drawn_and_fits(browser, dashboard, width, dark):
    browser.open(dashboard, width=width, dark=dark)
    check_quiet(browser)
    assert browser.run("document.documentElement.scrollWidth") == width
    drawn = (
        "[...document.querySelectorAll('figure.chart')].filter(f => !f.closest('details')).map(f => "
        "f.querySelectorAll('.plot svg .line, .plot svg .area, .plot svg .bar').length)"
    )
    counts = browser.run(drawn)
    assert len(counts) > 15 and all(counts)
    paper, ink = browser.run("['backgroundColor', 'color'].map(k => getComputedStyle(document.body)[k])")
    brightness = [sum(map(int, color[4:-1].split(","))) for color in (paper, ink)]
    assert (brightness[0] < brightness[1]) == dark
    assert browser.run("document.querySelectorAll('#studies .study').length") == 4
    assert browser.run("Promise.all([...document.images].map(i => i.decode())).then(all => all.length)") >= 16
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    browser.frame()
    assert all(browser.run("[...document.querySelectorAll('.plot')].map(p => p.querySelectorAll('svg').length)"))
    assert browser.run("document.documentElement.scrollWidth") == width


def test_the_first_screen_shows_a_study_and_its_marks_are_not_told_apart_by_colour_alone(browser, dashboard):
    browser.open(dashboard, width=1280, height=800)
    assert browser.run("document.querySelector('.compared').getBoundingClientRect().bottom") <= 800
    kinds = ("right", "inexact", "wrong", "denied", "stated")
    style = (
        "(s => [s.borderBottomStyle, s.borderBottomWidth].join())(getComputedStyle(document.querySelector('mark.{}')))"
    )
    looks = [browser.run(style.format(kind)) for kind in kinds]
    assert (
        len(set(looks[:4])) == 4 and looks[4] == looks[0]
    )  # what is stated is in the reference, where nothing is right
    assert browser.run("[...document.querySelectorAll('.compared mark')].every(mark => mark.title)")
    check_quiet(browser)


def test_an_edited_report_has_a_badge_that_says_what_was_changed(browser, dashboard):
    browser.open(dashboard)
    badges = browser.run("[...document.querySelectorAll('#studies .badge.edited')].map(e => [e.textContent, e.title])")
    assert badges == [["edited", f"missed {EVIL}: added"]]
    check_quiet(browser)


def change(browser, selector, value):
    browser.run(
        f"(e => {{ e.value = {value!r}; e.dispatchEvent(new Event('input', {{bubbles: true}})) }})"
        f"(document.querySelector({selector!r}))"
    )


def heads(browser):
    """The advantages of the first study's reports, in the order shown."""
    found = browser.run(
        "[...document.querySelectorAll('.study:first-child .reports .muted')].map(e => e.textContent.slice(5))"
    )
    return [float(text.replace("\N{MINUS SIGN}", "-")) for text in found]


def test_the_controls_of_the_rollouts_work(browser, dashboard):
    browser.open(dashboard)
    assert browser.run("document.getElementById('step-shown').textContent") == "1 of 30"
    assert heads(browser) == [-1.2, -0.4, 0.4, 1.2]
    change(browser, "#report-order", "advantage")
    assert heads(browser) == [1.2, 0.4, -0.4, -1.2]
    change(browser, "#step", "29")
    assert browser.run("document.getElementById('step-shown').textContent") == "30 of 30"
    browser.run("document.getElementById('step-back').click()")
    assert browser.run("document.getElementById('step-shown').textContent") == "29 of 30"
    assert "28 0 3" in browser.run(
        "document.querySelector('.study .reports .report').textContent"
    )  # step 29, best first
    for kind, count in (("critical", 2), ("normal", 2), ("all", 4)):
        browser.run(f"document.querySelector('input[name=kind][value={kind}]').click()")
        kinds = browser.run("[...document.querySelectorAll('.study')].map(e => e.dataset.kind)")
        assert len(kinds) == count and (kind == "all" or set(kinds) == {kind})
    browser.run("document.getElementById('mark').click()")
    assert browser.run("document.querySelectorAll('.report .extra').length") > 0
    assert "★" in browser.run("document.querySelector('.reports .first').textContent")
    check_quiet(browser)


def test_values_are_read_with_pointer_and_keys(browser, dashboard):
    browser.open(dashboard)
    tip = "document.querySelector('figure.chart .tip')"
    browser.run("document.querySelector('figure.chart').scrollIntoView({behavior: 'instant', block: 'center'})")
    browser.run("document.querySelector('figure.chart .plot svg').focus({preventScroll: true})")
    browser.key("End")
    assert browser.run(f"{tip}.textContent").startswith("step 30reward: ")
    browser.key("ArrowLeft")
    assert browser.run(f"{tip}.textContent").startswith("step 29reward: ") and not browser.run(f"{tip}.hidden")
    browser.key("Escape")
    assert browser.run(f"{tip}.hidden")
    box = browser.run(
        "(b => ({x: b.x, y: b.y, width: b.width}))"
        "(document.querySelector('figure.chart .plot svg').getBoundingClientRect())"
    )
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=box["x"] + box["width"] - 12, y=box["y"] + 60)
    browser.frame()
    assert browser.run(f"{tip}.textContent").startswith("step 30")
    # the charts of one stage share the line that marks the step
    marked = browser.run("document.querySelectorAll('#rl .cross[visibility=visible]').length")
    assert marked == browser.run("[...document.querySelectorAll('#rl .plot svg')].length")


def test_lines_are_switched_and_smoothed(browser, dashboard):
    browser.open(dashboard)
    first = "[...document.querySelectorAll('figure.chart')].find(f => f.querySelector('.legend button'))"
    before = browser.run(f"{first}.querySelectorAll('.line').length")
    browser.run(f"{first}.querySelector('.legend button').click()")
    assert browser.run(f"{first}.querySelectorAll('.line').length") == before - 1
    assert browser.run(f"{first}.querySelector('.legend button').getAttribute('aria-pressed')") == "false"
    change(browser, "#smoothing", "0.9")
    assert browser.run(f"{first}.querySelectorAll('.line.raw').length") == before - 1
    check_quiet(browser)


def test_a_comparison_is_drawn(browser, tmp_path):
    runs = [make_run(tmp_path / name / "run", steps=steps) for name, steps in (("a", 20), ("b", 12))]
    compare_runs(runs, tmp_path / "compare.html")
    for width in (1280, 390):
        browser.open(tmp_path / "compare.html", width=width)
        check_quiet(browser)
        assert browser.run("document.documentElement.scrollWidth") == width
        counts = browser.run("[...document.querySelectorAll('.chart')].map(f => f.querySelectorAll('.line').length)")
        assert len(counts) > 10 and set(counts) == {2}
