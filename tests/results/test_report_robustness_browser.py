"""Attacks and localizations on the page in a real browser: right numbers, keys, a phone, and nothing in it runs."""

import random

import pytest
from attack_data import LAYERS, PROBE, RELEARN, placed, probing, relearning, write_attacked, write_study
from browsing import open_page, unfold
from report_data import records, write_run
from report_pages import NASTY

from unlearn_eval.results.files import read_result
from unlearn_eval.results.report.page import write_page
from unlearn_eval.results.runs import read_runs

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("attacked"), random.Random(0))


def row(page, name):
    return page.locator("#comebacks tbody tr").filter(has=page.locator("td.run", has_text=name))


def test_before_and_after_are_the_files_numbers(opened, folder):
    metrics = read_result(folder / "npo-causal_tracing_mlps.json").metrics[RELEARN]
    names = {"before": "forget_accuracy", "after": "forget_attacked_accuracy", "recovery": "forget_accuracy_recovery"}
    for measure in ("accuracy", "probability"):
        opened.select_option("#measure", measure)
        heads = [text.split("\u00a0")[0] for text in opened.locator("#comebacks thead th").all_inner_texts()]
        cells = row(opened, "causal_tracing").locator("td").all_inner_texts()
        shown = dict(zip(heads, cells, strict=True))
        for column, name in names.items():
            value = metrics[name.replace("accuracy", measure)].value
            assert shown[column].split("\n")[0] == f"{value:.3f}".replace("-", "−")


def test_marks_stand_where_the_numbers_are(opened, folder):
    def place(mark):
        plot = row(opened, "causal_tracing").locator("svg")
        (x,) = [plot.locator(mark).get_attribute("cx")]
        return (float(x.removesuffix("%")) - 2) / 96

    metrics = read_result(folder / "npo-causal_tracing_mlps.json").metrics[RELEARN]
    assert place(".mark") == pytest.approx(metrics["forget_attacked_accuracy"].value, abs=1e-3)
    assert place(".hollow") == pytest.approx(metrics["forget_accuracy"].value, abs=1e-3)


def test_numbers_and_points_say_what_they_mean(opened):
    row(opened, "causal_tracing").locator("td.plot").focus()
    said = opened.inner_text("#help")
    assert "relearn at step 20" in said
    assert "before: 0." in said
    opened.keyboard.press("ArrowRight")
    assert "forget_accuracy: " in opened.inner_text("#help")
    opened.locator("#comebacks thead th", has_text="recovery").focus()
    assert "0 is a model that never knew" in opened.inner_text("#help")
    opened.locator("#curves .point[tabindex='0']").focus()
    first = opened.inner_text("#help")
    opened.keyboard.press("ArrowRight")
    second = opened.inner_text("#help")
    assert "before training: " in first
    assert "step 5: " in second
    assert "over 12 items" in second


def test_every_attack_has_its_stop_of_the_tab_key(chromium, tmp_path):
    generator = random.Random(0)
    parts = {RELEARN: relearning(6, generator), "attack_later": relearning(6, generator)}
    write_attacked(tmp_path, "run", parts)
    page = open_page(chromium, write_page(read_runs(tmp_path), tmp_path / "r.html"))
    for body in page.locator("#comebacks tbody").all():
        assert body.locator("td.value[tabindex='0']").count() == 1
    assert page.locator("#comebacks tbody").count() == 2
    page.locator("#curves .legend li", has_text="chance").focus()
    assert "dealt to the questions at random: 0.120 to 0.120" in page.inner_text("#help")
    page.close()


def test_what_has_no_value_says_why(chromium, tmp_path):
    write_attacked(tmp_path, "run", {RELEARN: relearning(6, random.Random(0), reference=False)})
    page = open_page(chromium, write_page(read_runs(tmp_path), tmp_path / "r.html"))
    cell = page.locator("#comebacks td", has_text="–").first
    cell.focus()
    assert "no value, because no reference model" in page.inner_text("#help")
    page.close()


def test_what_could_not_be_measured_is_named(opened):
    assert row(opened, "grace").count() == 0
    opened.locator("#unmeasured summary").focus()
    opened.keyboard.press("Enter")
    assert "relearn, grace: relearn cannot treat memory edits" in opened.inner_text("#unmeasured ul")


def test_curves_join_the_means_and_have_their_controls(opened, folder):
    legend = opened.locator("#curves .legend li").all_inner_texts()
    for text in ("before unlearning", "never knew", "after unrelated facts", "chance"):
        assert text in legend
    assert opened.locator("#curves .band").count() == 3
    colors = {one.get_attribute("class") for one in opened.locator("#curves .band").all()}
    assert len(colors) == 3, "three places of one method are told apart"
    part = read_result(folder / "npo-fact_lookup.json").robustness[RELEARN]
    (curve,) = [
        c for c in part["curves"] if (c["model"], c["value"], c["condition"]) == ("unlearned", "accuracy", "attack")
    ]
    lines = [own.get_attribute("points") for own in opened.locator("#curves polyline.curve").all()]
    bottom, top = (float(opened.locator("#curves .grid").nth(i).get_attribute("y1")) for i in (0, 4))
    heights = [[(float(p.split(",")[1]) - bottom) / (top - bottom) for p in points.split()] for points in lines]
    assert any(own == pytest.approx(curve["mean"], abs=1e-3) for own in heights if len(own) == len(curve["mean"]))
    opened.select_option("#measure", "probability")
    assert "chance" not in opened.locator("#curves .legend").inner_text(), "chance is of answers, not of probabilities"


def test_depth_is_drawn_by_layer(opened):
    assert opened.locator("#depth polyline.curve").count() == 4, "three edits and the model before"
    assert "0.5" in opened.locator("#depth .point.full").last.get_attribute("data-help")
    opened.select_option("#layered", label="probe: accuracy")
    assert "shuffled labels" in opened.locator("#depth .legend").inner_text()
    assert opened.locator("#depth tbody tr").count() == 3
    opened.select_option("#method", "grace")
    assert opened.locator("#depth").is_hidden()


def test_localizations_mark_what_was_chosen(opened):
    names = opened.locator("#places .label b").all_inner_texts()
    assert sorted(names) == ["causal_tracing_mlps", "fact_lookup", "random_mlps"]
    assert names[-1] == "random_mlps", "the control stands next to what is read against it"
    own = opened.locator("#places .place").filter(has_text="fact_lookup")
    cells = own.locator(".point")
    cells.first.wait_for()  # drawn in the next frame
    assert cells.count() == LAYERS
    assert [i for i in range(LAYERS) if cells.nth(i).locator(".chosen").count()] == [1, 2]
    assert cells.nth(0).locator(".hot.c0").count() == 1
    assert cells.nth(11).locator(".hot.c1").count() == 1, "below 0 in another color"
    strengths = [float(cells.nth(i).locator(".hot").get_attribute("fill-opacity")) for i in (0, 3, 5)]
    assert strengths == sorted(strengths, reverse=True)
    assert "4.0 k weights (10.0 %)" in own.inner_text()
    cells.nth(0).focus()
    opened.keyboard.press("ArrowRight")
    assert opened.inner_text("#help").startswith("layer 1, MLP: 0.500, 2. of 12")
    assert "trained or edited here: 2 linear maps" in opened.inner_text("#help")
    random_one = opened.locator("#places .place").filter(has_text="random_mlps").locator(".point")
    assert random_one.nth(3).locator(".chosen").count() == 1
    assert "no score" in random_one.nth(3).get_attribute("data-help")


def test_effects_by_position_unfold(chromium, tmp_path):
    where = placed("causal_tracing_mlps", [1], n_layers=3) | {
        "effects": {"roles": ["last subject token", "last token"], "mlp": [[0.5, 0.1], [0.2, None], [-0.1, 0.4]]}
    }
    write_attacked(tmp_path, "run", {PROBE: probing(4, random.Random(0))}, where=where)
    page = open_page(chromium, write_page(read_runs(tmp_path), tmp_path / "r.html"))
    details = page.locator("#places details")
    details.locator("summary").click()
    details.locator(".point").first.wait_for()  # browsers announce an opened part in a later task
    assert details.locator("text").all_text_contents()[:2] == ["last subject token", "last token"]
    cells = details.locator(".point")
    assert cells.count() == 6
    assert "layer 1, last token: no score" in cells.nth(4).get_attribute("data-help")
    assert page.mistakes == []
    page.close()


def test_questions_show_before_after_and_attacked(opened):
    card = opened.locator("#questions > li").first
    column = card.locator(".column").first
    tried = column.locator(".answer.tried")
    assert tried.count() == 2
    assert "after relearn, step 20" in tried.nth(0).inner_text()
    assert "probability 0." in tried.nth(0).inner_text()
    assert tried.nth(1).inner_text().split()[:3] == ["probe", "probe", "accuracy"]
    opened.select_option("#attacked", RELEARN)
    assert card.locator(".column").first.locator(".answer.tried").count() == 1
    opened.select_option("#attacked", "none")
    assert opened.locator("#questions .tried").count() == 0
    opened.select_option("#attacked", "")
    opened.select_option("#task", RELEARN)
    column = opened.locator("#questions .column").first
    assert column.locator(".answer").count() == 4, "without the edit, with it, attacked, probed"
    assert "without the edit" in column.locator(".answer").nth(0).inner_text()
    assert "step 20" in column.locator(".answer").nth(2).inner_text()
    said = column.locator(".answer p").nth(2).inner_text()
    opened.fill("#search", said)
    assert opened.inner_text("#found").startswith("1 of "), "what was said under attack is found"
    assert opened.locator("#questions mark").first.inner_text() == said


def test_attacks_in_files_of_their_own_join_the_answers_of_their_edit(chromium, tmp_path):
    generator = random.Random(0)
    write_run(tmp_path, "base", records(8, generator))
    write_attacked(tmp_path, "edited", {}, seed=1, answers=records(8, generator))
    write_attacked(tmp_path, "other", {}, seed=2, answers=records(8, generator))
    write_attacked(tmp_path, "attack", {RELEARN: relearning(4, generator, 0.2)}, seed=1)
    page = open_page(chromium, write_page(read_runs(tmp_path), tmp_path / "r.html"))
    card = page.locator("#questions > li").first
    heads = card.locator(".answer header span:first-child").all_inner_texts()
    assert heads == ["unedited", "npo, edited, seed 1", "after relearn, step 20", "npo, edited, seed 2"]
    page.select_option("#class", "n")
    assert page.locator("#questions > li .tried").count() >= 1
    for one in page.locator("#questions > li").all():
        assert one.locator(".tag", has_text="not given").count() >= 1
    assert page.mistakes == []
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_both_modes(chromium, page_file, scheme):
    page = open_page(chromium, page_file, viewport={"width": 390, "height": 844}, color_scheme=scheme)
    assert page.locator("#curves").is_hidden(), "a phone begins with the leaderboard"
    unfold(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    ink = page.evaluate("getComputedStyle(document.querySelector('#robustness h3')).color")
    assert (ink == "rgb(232, 234, 236)") == (scheme == "dark")
    for place in ("#curves svg", "#depth svg", "#places .heat svg"):
        box = page.locator(place).first.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    texts = page.locator("#curves .chart > svg > text").evaluate_all(
        "all => all.map((one) => { const b = one.getBoundingClientRect(); return [b.left, b.right, b.top, b.bottom]; })"
    )
    for i, a in enumerate(texts):
        for b in texts[i + 1 :]:
            assert a[1] <= b[0] + 1 or b[1] <= a[0] + 1 or a[3] <= b[2] + 3 or b[3] <= a[2] + 3, "labels overlap"
    assert page.mistakes == []
    page.close()


def test_it_prints(opened):
    opened.emulate_media(media="print")
    assert opened.locator("#comebacks").is_visible()
    assert opened.locator("#places").is_visible()
    assert opened.locator("#robustness .controls").first.is_hidden()


def test_without_attacks_there_is_no_section(chromium, tmp_path):
    write_run(tmp_path, "base", records(4, random.Random(0)))
    page = open_page(chromium, write_page(read_runs(tmp_path), tmp_path / "r.html"))
    for place in ("#robustness", "#places", "nav [href='#robustness']", "nav [href='#places']", "#attacked"):
        assert page.locator(place).is_hidden()
    assert page.mistakes == []
    page.close()


def test_of_many_runs_those_that_tell_least_are_shown(chromium, tmp_path):
    generator = random.Random(0)
    for i in range(16):
        parts = {RELEARN: relearning(12, generator, i / 16), PROBE: probing(4, generator)}
        write_attacked(tmp_path, f"run-{i:02d}", parts, seed=i)
    page = open_page(chromium, write_page(read_runs(tmp_path), tmp_path / "r.html"))
    shown = page.locator("#comebacks td.run").all_inner_texts()
    assert len(shown) == 12
    assert "run-15" not in shown
    page.locator("#comebacks button").click()
    assert page.locator("#comebacks td.run").count() == 16
    page.locator("#depth tbody button").click()
    assert page.locator("#depth tbody tr").count() == 16
    assert page.locator("#curves .band").count() == 0, "many bands hide each other"
    assert page.mistakes == []
    page.close()


def test_what_a_model_wrote_under_attack_is_shown_and_does_nothing(chromium, tmp_path):
    parts = {RELEARN: relearning(6, random.Random(0), texts=[NASTY] * 6)}
    part = parts[RELEARN][1]
    part["does"] = part["axis"] = NASTY
    part["skipped"] = [{"what": NASTY, "reason": NASTY}]
    for curve in part["curves"]:
        curve["condition"] = NASTY if curve["condition"] == "format" else "attack"
    where = placed(NASTY, [1]) | {"notes": {NASTY: NASTY}, "settings": {NASTY: NASTY}}
    write_attacked(tmp_path, "run", parts, where=where)
    page = open_page(chromium, write_page(read_runs(tmp_path), tmp_path / "nasty.html", title=NASTY))
    for section in page.locator("details").all():
        section.evaluate("one => { one.open = true; }")
    for place in page.locator("[data-help]").all()[:60]:
        place.dispatch_event("focusin")
    page.wait_for_timeout(200)
    assert page.locator("script").count() == 3
    assert page.locator("img, iframe, object, embed, [onmouseover], [onerror]").count() == 0
    assert "<script>alert(1)</script>" in page.locator("#questions .tried p").last.inner_text()
    assert "<script>alert(1)</script>" in page.inner_text("#places")
    assert "<script>alert(1)</script>" in page.inner_text("#unmeasured ul")
    assert page.mistakes == []
    page.close()
