"""The page in a real browser: it works, and nothing in it runs. Skipped where there is no Chromium."""

import dataclasses
import random
import re

import pytest
from browsing import open_page
from report_data import TASK, metric, records, result, write_many, write_run
from report_pages import NASTY, nasty_run

from unlearn_eval.results.files import read_result, write_result
from unlearn_eval.results.report.figures import pareto
from unlearn_eval.results.report.page import write_page
from unlearn_eval.results.runs import NO_EDIT, read_runs

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("runs")
    write_many(made, 6, 30)
    write_run(made, "without", [{"id": 1, "forget_accuracy": 0.5}, {"id": 2, "forget_accuracy": 0.5}], "npo")
    return made


def column(page, name):
    """The cells of a metric's column, without intervals; of `run` the runs' names."""
    rows = page.locator("#leaderboard tbody tr")
    if name == "run":
        return [row.get_attribute("data-run") for row in rows.all()]
    heads = [head.get_attribute("data-name") for head in page.locator("#leaderboard thead tr:last-child th").all()]
    cells = page.locator(f"#leaderboard tbody tr td:nth-child({heads.index(name) + 1})").all_inner_texts()
    return [cell.split("\n")[0] for cell in cells]


def test_the_table_shows_the_numbers_of_the_files(opened, folder):
    shown = dict(zip(column(opened, "run"), column(opened, "forget_accuracy"), strict=True))
    paths = {str(p.relative_to(folder).with_suffix("")): p for p in folder.rglob("*.json")}
    assert shown.keys() == paths.keys()
    for name, path in paths.items():
        assert shown[name] == f"{read_result(path).metrics[TASK]['forget_accuracy'].value:.3f}"
    assert "[" in opened.locator("#leaderboard tbody td small").first.inner_text()


@pytest.mark.parametrize(("name", "lowest_first"), [("forget_accuracy", True), ("retain_accuracy", False)])
def test_sorting_puts_the_best_first_and_what_is_missing_last(opened, name, lowest_first):
    head = opened.locator(f"#leaderboard th[data-name='{name}'] button")
    for presses in (1, 2):
        head.focus()
        opened.keyboard.press("Enter")
        cells = [cell for cell in column(opened, name) if cell]
        numbers = [float(cell) for cell in cells]
        assert numbers == sorted(numbers, reverse=(presses == 1) != lowest_first)
        if name == "retain_accuracy":
            assert column(opened, "run")[-1] == "without"
    assert opened.locator("#leaderboard th[aria-sort]").count() == 1


def test_filters_keep_the_run_that_others_are_compared_with(opened):
    opened.select_option("#method", "emmet")
    assert [row.get_attribute("data-row") for row in opened.locator("#leaderboard tbody tr").all()] == [
        "unedited",
        "emmet",
    ]
    opened.select_option("#method", "")
    opened.fill("#name", "RUN-003")
    assert column(opened, "run") == ["base", "rome/run-003"]
    assert opened.locator("#frontier .point").count() == 2
    opened.fill("#name", "nothing like it")
    assert "no run fits" in opened.inner_text("#leaderboard tbody")
    assert "No run fits the filters: task unlearn_facts, “nothing like it” in its name." in opened.inner_text(
        "#nothing"
    )
    assert all("No run fits" in opened.inner_text(place) for place in ("#frontier", "#metrics", "#provenance"))
    opened.click("#nothing button")
    assert opened.locator("#nothing").is_hidden()
    assert len(column(opened, "run")) == 7


def test_a_meaning_shows_on_focus_and_on_hover(opened):
    opened.locator("#leaderboard th button", has_text="refuses").first.focus()
    assert "decline" in opened.inner_text("#help")
    opened.keyboard.press("Escape")
    assert opened.locator("#help").is_hidden()
    opened.locator("#frontier .mark").first.hover()
    assert "forget_accuracy: " in opened.inner_text("#help")


def test_arrows_go_from_number_to_number(opened):
    for place in ("#leaderboard td.value", "#frontier .point", "#metrics .bar"):
        assert opened.locator(f"{place}[tabindex='0']").count() in (1, opened.locator("#metrics .group").count())
    second_row = opened.locator("#leaderboard tbody tr").nth(1).get_attribute("data-row")
    opened.locator("#leaderboard td.value").first.focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown"):
        opened.keyboard.press(key)
    assert opened.inner_text("#help").startswith(f"{second_row}, forget_accuracy: ")
    opened.locator("#frontier .point").first.focus()
    opened.keyboard.press("ArrowRight")
    first, second = opened.locator("#frontier .point").all()[:2]
    assert opened.inner_text("#help").splitlines()[0] == second.get_attribute("data-help").splitlines()[0]
    assert (first.get_attribute("tabindex"), second.get_attribute("tabindex")) == ("-1", "0")


def test_the_line_joins_the_runs_that_none_beats(opened, folder):
    points = {}
    for run in read_runs(folder).runs:
        metrics = run.result.metrics[TASK]
        if "retain_accuracy" in metrics and run.method != NO_EDIT:
            points[run.name] = (metrics["retain_accuracy"].value, -metrics["forget_accuracy"].value)
    expected = [points[list(points)[i]] for i in pareto(list(points.values()))]
    corners = opened.locator("#frontier .pareto").get_attribute("points").split()
    assert len(expected) > 1
    assert len(corners) == len(expected)
    drawn = [tuple(map(float, corner.split(","))) for corner in corners]
    assert sorted(drawn, reverse=True) == drawn, "from right to left"
    assert [y for _, y in drawn] == sorted((y for _, y in drawn), reverse=True), "and upwards, as they forget more"


def test_questions_are_found_by_text_and_by_what_became_of_them(opened):
    assert opened.inner_text("#found") == "15 of 30 questions"
    opened.fill("#search", "NUMBER 12?")
    assert opened.inner_text("#found") == "1 of 30 questions"
    assert opened.inner_text("#questions mark").lower() == "number 12?"
    assert "answer 12" in opened.inner_text("#questions .truth")
    opened.fill("#search", "")
    opened.select_option("#split", "")
    assert opened.locator("#questions > li").count() == 20
    opened.click("#more")
    assert opened.locator("#questions > li").count() == 30
    opened.select_option("#class", "l")
    for card in opened.locator("#questions > li").all():
        assert card.locator(".answer.leak").count() >= 1
    before = opened.locator("#questions > li").first.locator(".answer").count()
    opened.click("#shown summary")
    opened.locator("#shown input").last.uncheck()
    opened.locator("#shown input:checked").last.uncheck()
    assert opened.locator("#questions > li").first.locator(".answer").count() == before - 1


def test_provenance_opens_from_the_name(opened):
    opened.locator("#leaderboard tbody a").nth(1).click()
    assert "a" * 64 in opened.inner_text("#provenance details[open] dl")


def test_changes_are_drawn_beside_the_bars(opened):
    row = opened.locator("#metrics .bar").filter(has_text="alphaedit").first
    assert "better" in row.locator(".change").inner_text()
    row.focus()
    assert "McNemar" in opened.inner_text("#help")


def test_of_many_runs_the_best_bars_are_shown(chromium, tmp_path):
    generator = random.Random(0)
    write_run(tmp_path, "base", records(40, generator, leak=1.0))
    for i in range(15):
        write_run(tmp_path, f"run-{i:02d}", records(40, generator, leak=1 - i / 15), "memit")
    page = open_page(chromium, write_page(read_runs(tmp_path), tmp_path / "r.html"))
    group = page.locator("#metrics .group").first
    shown = [float(text.split(" ")[0]) for text in group.locator(".number").all_inner_texts()]
    assert len(shown) == 12
    assert group.locator(".label").first.inner_text() == "unedited"
    values = [run.result.metrics[TASK]["forget_accuracy"].value for run in read_runs(tmp_path).runs[1:]]
    assert shown[1:] == [float(f"{value:.3f}") for value in sorted(values)[:11]]
    group.locator("button").click()
    assert page.locator("#metrics .group").first.locator(".bar").count() == 16
    assert page.mistakes == []
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_both_modes(chromium, page_file, scheme):
    page = open_page(chromium, page_file, viewport={"width": 390, "height": 844}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(18, 20, 22)") == (scheme == "dark")
    assert page.mistakes == []
    page.close()


def test_it_prints_without_its_controls(opened):
    opened.emulate_media(media="print")
    assert opened.locator("#filters").is_hidden()
    assert opened.locator("#leaderboard table").is_visible()
    assert opened.pdf(format="A4").startswith(b"%PDF")


def test_what_a_model_wrote_is_shown_and_does_nothing(chromium, tmp_path):
    nasty_run(tmp_path / "runs")
    write_run(tmp_path / "runs", "base", records(6, random.Random(0)))
    file = write_page(read_runs(tmp_path / "runs"), tmp_path / "nasty.html", title=NASTY)
    page = open_page(chromium, file)
    for section in page.locator("details").all():
        section.evaluate("one => { one.open = true; }")
    page.check("#all")
    page.fill("#search", "<img src=x")
    for place in page.locator("[data-help]").all()[:40]:
        place.dispatch_event("focusin")
    page.wait_for_timeout(200)
    assert page.mistakes == []
    assert page.locator("img, iframe, object, embed, [onmouseover], [onerror]").count() == 0
    assert page.locator("script").count() == 3
    assert "onerror=alert(3)>" in page.locator("#questions .answer p").last.inner_text()
    assert "onerror=alert(3)>" in page.inner_text("h1")
    assert "onerror=alert(3)>" in page.inner_text("#leaderboard")
    assert "<img src=x onerror=alert(4)>" in page.inner_text("#provenance")
    page.close()


def several_ways(folder):
    """Two runs of which each item was asked in five ways; the edited one leaks when it is reworded."""
    ways = [
        "Who wrote {}?",
        "Which writer is the author of {}?",
        "Complete this sentence: {} was written by ...",
        "ROLE {}",
        "SURE {}",
    ]
    for name, method in (("before", None), ("after", "memit")):
        made = records(6, random.Random(0), leak=0.0)
        for i, record in enumerate(made):
            asked = [way.format(f"book {i}") for way in ways]
            record["doc"] |= {"question": asked[0], "paraphrases": [asked[1]], "cloze": f"book {i} was written by"}
            record["arguments"] = [[f"<user>{text}<model>", {}] for text in asked]
            record["resps"] = [[f"{name} {j} of {i}"] for j in range(len(asked))]
            record["forget_paraphrase_accuracy"] = None if i % 2 else float(method is not None)
        write_run(folder, name, made, method)
    return write_page(read_runs(folder), folder / "ways.html")


def test_every_text_of_an_item_is_shown_with_its_answers(chromium, tmp_path):
    page = open_page(chromium, several_ways(tmp_path))
    card = page.locator("#questions > li").first
    assert card.locator("h3").inner_text() == "Who wrote book 0?"
    assert card.locator(".asked").count() == 5
    assert card.locator("details .asked").count() == 2
    second = card.locator(".asked").nth(1)
    assert second.locator(".way").inner_text().split() == "paraphrase Which writer is the author of book 0?".split()
    assert second.locator(".answer p").all_inner_texts() == ["before 1 of 0", "after 1 of 0"]
    assert second.locator(".answer .tag").all_inner_texts() == ["wrong", "leak"]
    assert card.locator(".asked").nth(3).locator(".answer .tag").first.text_content() == "not judged"

    page.select_option("#way", "cloze")
    card = page.locator("#questions > li").first
    assert card.locator(".asked").count() == 1
    assert "Complete this sentence" in card.locator(".way").inner_text()
    assert "4 ways of asking not shown" in card.locator(".truth").inner_text()
    page.select_option("#way", "")
    page.select_option("#class", "l")
    assert page.locator("#questions > li .way").all_inner_texts()[0].startswith("paraphrase")
    assert page.locator("#questions > li").first.locator(".asked").count() == 1
    page.select_option("#class", "")
    page.fill("#search", "ROLE book 2")
    assert page.inner_text("#found") == "1 of 6 questions"
    assert page.locator("#questions mark").first.inner_text() == "ROLE book 2"
    assert page.mistakes == []
    page.close()


def test_one_way_of_asking_needs_no_choice(opened):
    assert opened.locator("#way").is_hidden()


def test_answers_are_unpacked_by_browsers_without_a_decoder_of_base64(chromium, page_file):
    page = chromium.new_page()
    page.add_init_script("Uint8Array.fromBase64 = undefined;")
    page.goto(page_file.as_uri())
    page.wait_for_selector("body[data-ready]")
    assert page.inner_text("#found") == "15 of 30 questions"
    assert page.locator("#questions .answer p").first.inner_text()
    page.close()


def test_a_task_may_be_called_constructor_and_notes_be_long(chromium, tmp_path):
    """Names from files are looked up in tables that inherit nothing."""
    for name, method in (("before", None), ("toString", "memit")):
        made = records(4, random.Random(0))
        own = result(name, {"valueOf": metric([0.0, 1.0], True)}, method, notes=["x" * 10_000_000])
        own = dataclasses.replace(own, metrics={"constructor": own.metrics["unlearn_facts"]}, data={})
        write_result(own, tmp_path / "runs" / f"{name}.json", {"constructor": made})
        write_run(tmp_path / "runs", f"other {name}", made, method)
    file = write_page(read_runs(tmp_path / "runs"), tmp_path / "page.html")
    assert file.stat().st_size < 1_000_000
    page = open_page(chromium, file)
    for task in ("constructor", "unlearn_facts"):
        page.select_option("#task", task)
        page.check("#all")
        page.wait_for_timeout(100)
        assert page.locator("#questions h3").count() > 0
    assert page.mistakes == []
    page.close()


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """A page of two methods with three seeds each."""
    made = tmp_path_factory.mktemp("seeds")
    generator = random.Random(1)
    write_run(made, "base", records(20, generator, leak=1.0))
    for method, leak in (("memit", 0.0), ("rome", 0.6)):
        for seed in (1, 2, 3):
            write_run(made, f"{method}-{seed}", records(20, generator, leak=leak), method, seed=seed)
    return made


def test_seeds_are_one_row_that_opens(chromium, seeds):
    page = open_page(chromium, write_page(read_runs(seeds), seeds / "r.html"))
    assert [row.get_attribute("data-row") for row in page.locator("#leaderboard tbody tr").all()] == [
        "unedited",
        "memit",
        "rome",
    ]
    values = [read_result(seeds / f"rome-{i}.json").metrics[TASK]["forget_accuracy"].value for i in (1, 2, 3)]
    shown = column(page, "forget_accuracy")
    assert shown[2] == f"{sum(values) / 3:.3f}"
    page.locator("#leaderboard button", has_text="3 seeds").last.click()
    assert column(page, "forget_accuracy")[3:] == [f"{value:.3f}" for value in values]
    assert page.locator("#frontier .point").count() == 3
    assert page.locator("#frontier .seed-point").count() == 6
    assert page.locator("#frontier .pareto").get_attribute("points").count(",") == 1, (
        "the unedited model is not on the line"
    )
    labels = " · ".join(page.locator("#frontier .tag-label").all_text_contents())
    assert sorted(labels.split(" · ")) == ["memit", "rome", "unedited"]
    assert page.locator("#outcome li b").all_inner_texts() == ["memit", "rome"]
    assert page.mistakes == []
    page.close()


def test_tables_are_saved_as_text(chromium, seeds):
    page = open_page(chromium, write_page(read_runs(seeds), seeds / "r.html", title="a </style> \\ b"))

    def saved(table, kind):
        with page.expect_download() as download:
            page.locator(f".export[data-table={table}] button", has_text=kind).click()
        return download.value.path().read_text(encoding="utf-8")

    lines = saved("leaderboard", "CSV").splitlines()
    head, unedited = (line.split(",") for line in lines[:2])
    value = read_result(seeds / "base.json").metrics[TASK]["retain_accuracy"].value
    assert float(unedited[head.index("retain_accuracy")]) == value
    assert {"retain_accuracy low", "retain_accuracy high", "retain_accuracy deviation"} <= set(head)
    assert [line.split(",")[0] for line in lines[1:]] == ["unedited", "memit", "rome"]
    assert saved("leaderboard", "Markdown").splitlines()[1].startswith("| --- | ---: |")
    latex = saved("metrics", "LaTeX")
    assert r"forget\_accuracy & memit & " in latex
    assert latex.count(r"\\") == 1 + 3 * len(page.locator("#metrics .group").all())
    assert page.mistakes == []
    page.close()


def test_the_address_holds_the_filters_and_a_question(chromium, seeds):
    file = write_page(read_runs(seeds), seeds / "r.html")
    page = open_page(chromium, file)
    page.select_option("#method", "rome")
    page.select_option("#metric", "retain_probability")
    page.fill("#search", "number")
    page.locator("#leaderboard th[data-name='forget_accuracy'] button").click()
    card = page.locator("#questions > li").nth(1)
    question = card.locator("h3").inner_text().rstrip("#").strip()
    card.hover()
    card.locator("a.link").click()
    assert page.inner_text("#found") == "1 of 20 questions"
    address = page.url
    page.close()
    again = open_page(chromium, file)
    again.goto(address)
    again.reload()
    again.wait_for_selector("body[data-ready]")
    assert [again.input_value(own) for own in ("#method", "#metric", "#search")] == [
        "rome",
        "retain_probability",
        "number",
    ]
    assert again.locator("#leaderboard th[aria-sort]").get_attribute("data-name") == "forget_accuracy"
    assert again.locator("#questions h3").inner_text().rstrip("#").strip() == question
    again.click("#unlink")
    assert again.inner_text("#found") != "1 of 20 questions"
    again.click("nav a[href='#cost']")
    assert again.url.split("#")[1].startswith("cost?method=rome")
    assert again.mistakes == []
    again.close()


def test_most_leaks_come_first(chromium, seeds):
    page = open_page(chromium, write_page(read_runs(seeds), seeds / "r.html"))
    leaks = [
        int(re.search(r"(\d+) leak", text)[1]) if "leak" in text else 0
        for text in page.locator("#questions .truth").all_inner_texts()
    ]
    assert leaks == sorted(leaks, reverse=True)
    assert leaks[0] > leaks[-1]
    page.select_option("#order", "file")
    assert page.locator("#questions h3").first.inner_text().startswith("What is the answer to question number 0?")
    page.close()


def test_a_small_study_prints_on_two_numbered_pages(chromium, seeds):
    page = open_page(chromium, write_page(read_runs(seeds), seeds / "r.html"))
    made = page.pdf(prefer_css_page_size=True, print_background=True)
    assert len(re.findall(rb"/Type\s*/Page[^s]", made)) == 2
    style = page.locator("style").text_content()
    assert 'counter(page) " of " counter(pages)' in style
    assert "2026-01-02" in style
    page.close()
