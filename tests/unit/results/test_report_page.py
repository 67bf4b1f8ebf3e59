"""The report in a browser: nothing overflows or is cut off, on a desk and on a phone; its script
finds and sorts, and no other runs."""

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import LONG, SIZES, chromium
from results import claim, found, sample, target
from scripts import SCRIPT

from opd.results import claims_page, report


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with long names in every place, and a file that was changed."""
    folder = tmp_path_factory.mktemp("report")
    results = sample(folder)
    results.cfg["title"] = f"A report of {LONG}"
    source = {LONG: "models/small-from-large/s0"}
    results.figure(LONG, LONG, source, title=LONG, caption=f"{LONG} " * 9)
    results.table(LONG, source, title=LONG, caption=LONG)
    results.run("distill", f"models/{LONG}", source, device=LONG, versions={LONG: LONG})
    claims = found()
    claims["claims"].append(claim(LONG, "not run", reason=LONG, statement=LONG, figure=LONG))
    claims["targets"].append(target(LONG, [LONG], [LONG], metric=LONG, status=LONG))
    # The table and the run of an arm of E04, and curves of that of a probe of E12.
    judged, drawn = "evaluations/held-out/small-from-large/s0", "models/small-from-large/s0"
    row = {"label": "small ← large", "evaluations": ["e"], "base": ["b"]}
    results.table("judged", {"e": judged}, title="Judged", rows=[row])
    probed = {"label": "a probe", "runs": ["p"]}
    curves = [{"label": "one", "runs": ["p"]}]
    probe = {"p": "probes/E11.success/s0"}
    results.figure("curves", "Others", probe, title="Of a probe", kind="curves", series=curves)
    of_claims = {"e": judged, "b": drawn, **probe}
    results.claims(claims, of_claims, arms={"E04.success": row}, probes={"E12.k": probed})
    (results.root / "tables" / LONG / "payload" / "table.csv").write_text("changed")
    report.run(results.cfg, results.inputs, results.root)
    (results.root / "claims.html").write_text(claims_page.page(claims))
    return results.root / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


# Elements that reach over the window's edge, unless they scroll by themselves or lie in one that
# does and that the keyboard reaches; and elements that hide a part of what they hold.
CUT = """() => {
  const scrolls = e => ['auto', 'scroll'].includes(getComputedStyle(e).overflowX);
  const reached = e => { for (let at = e; at; at = at.parentElement)
    if (scrolls(at) && at.tabIndex === 0) return true; return false; };
  return [...document.querySelectorAll('body *')].filter(e => {
    const box = e.getBoundingClientRect(), style = getComputedStyle(e);
    if (!e.checkVisibility() || !box.width || e.closest('svg')) return false;
    const over = (box.right > innerWidth + 1 || box.left < -1) && !reached(e);
    const hides = ['hidden', 'clip'].includes(style.overflowX) || style.textOverflow === 'ellipsis';
    const cut = hides && (e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 1);
    const spills = style.overflowX === 'visible' && style.display !== 'inline' && !reached(e)
      && e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0;
    return over || cut || spills;
  }).map(e => e.outerHTML.slice(0, 200));
}"""


# How far each figure reaches over its own box.
IMAGES = "[...document.querySelectorAll('.image')].map(e => e.scrollWidth - e.clientWidth)"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows(file, browser, tmp_path, size, scheme):
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(file.as_uri())
    # Everything that a reader can open, too.
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    wide, window = page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
    assert window == width and wide <= window
    assert page.evaluate(CUT) == []
    shown = page.evaluate(
        "[...document.querySelectorAll('img')].map(e => [e.complete !== false"
        " && e.naturalWidth !== 0, e.getBoundingClientRect().width,"
        " e.getBoundingClientRect().height])"
    )
    assert len(shown) == 4 and all(done and min(w, h) > 100 for done, w, h in shown)
    # Figures keep their shape and fit the page; a phone gets the narrow one, nearly in its size.
    shape = 240 / 252 if size == "phone" else 2
    assert all(abs(w / h - shape) < 0.02 and width * 0.6 < w <= width for _, w, h in shown)
    assert page.evaluate(IMAGES) == [0, 0, 0, 0]
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert said == []
    page.screenshot(path=tmp_path / f"{size}-{scheme}.png", full_page=True)
    page.close()


@pytest.mark.parametrize("size", SIZES)
def test_nothing_of_the_claims_page_overflows(file, browser, size):
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(file.with_name("claims.html").as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.locator("table").count() == 2 and page.locator(".claim").count() == 5
    wide, window = page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
    assert window == width and wide <= window
    assert page.evaluate(CUT) == []
    page.close()


def test_values_can_be_pointed_at_on_a_desk(file, browser):
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto(file.as_uri())
    page.locator(".image").first.scroll_into_view_if_needed()
    image, spot = (page.locator(of).first.bounding_box() for of in (".image img", ".image rect"))
    assert spot["x"] == pytest.approx(image["x"] + 0.4 * image["width"], abs=1)
    assert spot["y"] == pytest.approx(image["y"] + 0.5 * image["height"], abs=1)
    assert spot["width"] == pytest.approx(0.05 * image["width"], abs=1)
    title = "document.elementFromPoint(%f, %f).querySelector('title').textContent"
    middle = (spot["x"] + spot["width"] / 2, spot["y"] + spot["height"] / 2)
    assert page.evaluate(title % middle) == "small: 0.25 Recovery"
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.locator(".image rect").first.is_hidden()
    page.close()


def test_cut_text_would_be_found(browser):
    """The check above, on pages that are cut off."""
    page = browser.new_page(viewport={"width": 390, "height": 844})
    for style in ("width: 500px", "width: 9px; overflow: hidden", "width: 9px"):
        page.set_content(f"<p style='{style}'>{LONG}</p>")
        assert page.evaluate(CUT) != []
    page.set_content(f"<div style='overflow: auto'><p style='width: 500px'>{LONG}</p></div>")
    assert page.evaluate(CUT) != []  # the keyboard does not reach it
    page.close()


def shown(page: Any, selector: str) -> list[str]:
    """Ids of the elements that a reader sees of these."""
    return page.evaluate(
        "s => [...document.querySelectorAll(s)].filter(e => e.checkVisibility()).map(e => e.id)",
        selector,
    )


def test_words_papers_experiments_and_verdicts_are_found(file, browser):
    page = browser.new_page()
    page.goto(file.as_uri())
    claims = "article.claim, li[id^='claim:']"
    assert shown(page, claims) == []  # folded by experiment
    page.select_option("[name=verdict]", "reproduced")
    assert shown(page, claims) == ["claim:a_paper/E04-recovery"]
    assert shown(page, ".group") == ["experiment:a_paper/E04"]
    # Figures belong to the verdicts of their claims; what has no verdict is not what is looked for.
    exhibits = "figure, .table"
    assert shown(page, exhibits) == ["figure:a_paper/fig06"]
    assert shown(page, "#tables, #runs details") == []
    page.select_option("[name=verdict]", "inconclusive")
    assert shown(page, exhibits) == []
    page.select_option("[name=experiment]", "a_paper/E12")
    assert shown(page, claims) == []
    page.select_option("[name=verdict]", "")
    assert shown(page, claims) == ["claim:a_paper/E12-k"]
    # What a config shows of its own belongs to the experiments of what was measured for it, and not
    # to those of what that is compared with.
    assert shown(page, exhibits) == ["figure:curves"]
    assert shown(page, "#runs th[id]") == ["run:probes/E11.success/s0"]
    page.select_option("[name=experiment]", "a_paper/E04")
    assert shown(page, exhibits) == ["table:judged"]
    assert shown(page, "#runs th[id]") == ["run:evaluations/held-out/small-from-large/s0"]
    # All words, in any order and case.
    page.select_option("[name=experiment]", "")
    page.fill(".find input", "SAYS what e06")
    assert shown(page, claims) == ["claim:a_paper/E06-cold"] and shown(page, "figure") == []
    assert page.locator(".find output").inner_text().startswith("1 of ")
    # What is empty by itself is there again where nothing is looked for.
    page.fill(".find input", "")
    assert page.locator("section[hidden]").count() == 0
    # A link to what is hidden shows it, and nothing stays filtered.
    page.evaluate("location.hash = 'claim:a_paper/E04-failure'")
    assert page.locator("[id='claim:a_paper/E04-failure']").is_visible()
    assert page.input_value(".find input") == ""
    page.close()


def test_a_heading_sorts_its_table(file, browser):
    page = browser.new_page()
    page.goto(file.as_uri())
    table = page.locator("[id='table:headline'] table").first

    def first_cells() -> list[str]:
        return table.locator("tbody tr th").all_inner_texts()

    assert first_cells() == ["small | after SFT", "large"]
    score = table.get_by_role("button", name="avg@4")
    score.press("Enter")  # 21.2 before 36.3
    assert first_cells() == ["small | after SFT", "large"]
    score.click()
    assert first_cells() == ["large", "small | after SFT"]
    assert table.locator("[aria-sort=descending]").inner_text().startswith("avg@4")
    change = table.get_by_role("button", name="change")
    change.click()  # what has no number comes last
    assert first_cells() == ["large", "small | after SFT"]
    assert table.locator("[aria-sort]").count() == 1
    page.close()


def test_everything_is_there_without_a_script(file, browser):
    """With scripts off the text is the same, all of it can be opened, and nothing is dead."""
    texts = []
    for enabled in (True, False):
        context = browser.new_context(java_script_enabled=enabled)
        page = context.new_page()
        page.goto(file.as_uri())
        page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
        texts.append(sorted(page.locator("main").inner_text().replace("↕", "").split()))
        assert page.locator(".find").is_visible() is enabled
        assert page.locator("button").count() == 0 or enabled
        context.close()
    assert texts[0] == texts[1] and len(texts[0]) > 300


def test_only_the_script_of_the_package_runs(file, browser, tmp_path):
    """A browser refuses the same page with any other text in its script, and one more script."""
    html = file.read_text()
    policy = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert f"script-src 'sha256-{policy}'" in html and "default-src 'none'" in html
    planted = "document.title = 'planted'"
    pages = {
        "changed": html.replace('"use strict";', f'"use strict"; {planted};'),
        "added": html.replace("</main>", f"</main><script>{planted}</script>"),
        "handler": html.replace("<main>", f'<main><img src="x" onerror="{planted}">'),
    }
    for name, text in pages.items():
        assert planted in text
        (tmp_path / name).with_suffix(".html").write_text(text)
        page = browser.new_page()
        refused = []
        page.on("console", lambda message, refused=refused: refused.append(message.text))
        page.goto((tmp_path / name).with_suffix(".html").as_uri())
        assert page.title() != "planted"
        assert any("Content Security Policy" in text for text in refused)
        assert page.locator(".find").is_visible() is (name != "changed")
        page.close()


def test_contents_stay_in_sight(file, browser):
    for size in SIZES.values():
        page = browser.new_page(viewport=dict(zip(("width", "height"), size, strict=True)))
        page.goto(file.as_uri())
        page.evaluate("scrollTo(0, 3000)")
        link = page.get_by_role("link", name="Summary", exact=True).bounding_box()
        assert 0 <= link["y"] < size[1]
        page.evaluate("location.hash = 'runs'")
        heading = page.locator("#runs h2").bounding_box()
        bar = page.locator("nav").bounding_box()
        assert heading["y"] >= 0 and (heading["x"] > bar["width"] or heading["y"] >= bar["height"])
        page.close()


def test_print_shows_what_is_folded(file, browser):
    page = browser.new_page(viewport={"width": 794, "height": 1123})
    page.goto(file.as_uri())
    cell = page.get_by_role("cell", name="1 h 02 min", include_hidden=True).first
    folded = page.locator("#published table")
    assert not folded.is_visible() and cell.count()
    page.emulate_media(media="print")
    assert folded.is_visible()
    assert page.locator(".find").is_hidden() and page.locator("nav").is_hidden()
    page.close()
