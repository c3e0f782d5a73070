"""Pictures are arrays too: colours at known places, ids that survive the trip to disk, pages that hold everything they show."""
import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from seglite.charts import (
    LINES, SMALL, Canvas, _Axes, _column_widths, bar_chart, line_chart, number, numbers, percent,
    plain, scatter, shorten, table, text_width, ticks, wrap)
from seglite.html import report_html
from seglite.metrics import Confusion
from seglite.pictures import (
    PREDICTED_EDGE, TRUE_EDGE, WRONG_COLOUR, Report, boundary_map, class_table, colourise, error_map, full_palette, legend, mask_image,
    overlay, panels, report_png, save_mask_png, scaled, tiles, voc_palette)

IMAGE = np.full((4, 6, 3), 200, np.uint8)
TRUTH = np.array([[0, 0, 0, 1, 1, 1]] * 4, np.uint8)
TRUTH[0, 0] = 255
PREDICTION = np.array([[0, 0, 1, 1, 1, 1]] * 4, np.uint8)
PALETTE = np.array([[10, 20, 30], [200, 100, 0]], np.uint8)
SAMPLE = {"name": "a <b>", "image": IMAGE, "truth": TRUTH, "prediction": PREDICTION}


def has_colour(picture: Image.Image, colour) -> int:
    """How many pixels have exactly this colour."""
    if isinstance(colour, str):
        colour = tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return int((np.asarray(picture.convert("RGB")) == colour).all(-1).sum())


# ---- label maps -----------------------------------------------------------------------------------------------------------------------


def test_voc_palette_has_the_published_colours():
    palette = voc_palette()
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {k: tuple(palette[k]) for k in known} == known
    assert len({tuple(c) for c in palette}) == 256


@pytest.mark.realdata
def test_voc_palette_equals_the_one_stored_in_voc_files(data_root):
    folder = data_root / "voc_mini" / "SegmentationClass"
    with Image.open(sorted(folder.glob("*.png"))[0]) as picture:
        stored = np.array(picture.getpalette(), np.uint8).reshape(-1, 3)
    np.testing.assert_array_equal(stored, voc_palette(len(stored)))


def test_colours_of_every_id():
    np.testing.assert_array_equal(colourise(np.array([[0, 1, 254, 255]]), PALETTE), [[[10, 20, 30], [200, 100, 0], [235, 70, 200], [224, 224, 192]]])
    assert full_palette(PALETTE).shape == (256, 3)


@given(st.integers(0, 2**31), st.integers(1, 20), st.integers(1, 20))
def test_mask_files_give_the_ids_back(tmp_path_factory, seed, height, width):
    labels = np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.uint8)
    path = tmp_path_factory.mktemp("mask") / "a.png"
    save_mask_png(labels, PALETTE, path)
    with Image.open(path) as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.asarray(picture), labels)
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), colourise(labels, PALETTE))
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]  # no temporary file stays


def test_overlay_blends_and_leaves_background_clear():
    labels = np.zeros((5, 5), int)
    labels[:, 3:] = 1
    mixed = overlay(np.full((5, 5, 3), 100, np.uint8), labels, PALETTE, alpha=0.5, clear=(0,))
    assert mixed[0, 0].tolist() == [100, 100, 100] and mixed[0, 4].tolist() == [150, 100, 50]
    assert mixed[0, 2].tolist() == [35, 35, 35]  # the dark line between the classes
    assert IMAGE.max() == 200  # inputs stay as they were


def test_error_map_marks_wrong_pixels_and_only_those():
    picture = error_map(IMAGE, TRUTH, PREDICTION)
    wrong = (picture == WRONG_COLOUR).all(-1)
    expected = np.zeros((4, 6), bool)
    expected[:, 2] = True
    np.testing.assert_array_equal(wrong, expected)
    assert picture[0, 0].tolist() == [205, 205, 190]  # ignored: hatched
    void = np.full((4, 6), 255, np.uint8)
    assert not (error_map(IMAGE, void, PREDICTION) == WRONG_COLOUR).all(-1).any()  # anything goes where the truth is ignored


def test_boundary_map_draws_both_borders():
    image, truth, prediction = np.full((9, 20, 3), 90, np.uint8), np.zeros((9, 20), int), np.zeros((9, 20), int)
    truth[:, 5:], prediction[:, 15:] = 1, 1
    picture = boundary_map(image, truth, prediction)
    blue, amber = ((picture == colour).all((0, 2)).nonzero()[0].tolist() for colour in (TRUE_EDGE, PREDICTED_EDGE))
    assert blue == [3, 4, 5, 6] and amber == [14, 15]
    both = boundary_map(image, truth, truth)
    assert (both[0, 4] == PREDICTED_EDGE).all() and (both[0, 3] == TRUE_EDGE).all()  # agreement: amber inside blue


def test_tiles_show_what_the_sample_allows():
    assert list(tiles(SAMPLE, PALETTE)) == ["image", "truth", "prediction", "error", "boundary"]
    assert list(tiles({"image": IMAGE}, PALETTE)) == ["image"]
    assert list(tiles({"image": IMAGE, "prediction": PREDICTION}, PALETTE)) == ["image", "prediction", "overlay"]
    extra = tiles({**SAMPLE, "extra": {"pseudo label": TRUTH, "heat": IMAGE}}, PALETTE, (12, 8))
    assert list(extra) == ["image", "truth", "pseudo label", "heat", "prediction", "error", "boundary"]
    assert {t.shape for t in extra.values()} == {(8, 12, 3)}
    assert list(tiles({**SAMPLE, "called": "with CRF"}, PALETTE)) == ["image", "truth", "with CRF", "error", "boundary"]


def test_enlarged_pixels_stay_squares():
    big = scaled(colourise(TRUTH, PALETTE), (24, 16))
    np.testing.assert_array_equal(big, np.repeat(np.repeat(colourise(TRUTH, PALETTE), 4, 0), 4, 1))


def test_panels_hold_every_row_and_column():
    sheet = panels([SAMPLE, {"image": IMAGE, "name": "b"}], PALETTE, width=500)
    assert sheet.width == 500
    tile, top = (500 - 4 * 12) // 5, 48  # the key of the borders does not fit beside "boundary" in so narrow a column
    height = round(4 * tile / 6)
    assert sheet.height == top + 2 * (height + 34)
    pixels = np.asarray(sheet)
    assert pixels[top + height // 2, 2].tolist() == [200, 200, 200]  # the photograph, unaltered
    assert pixels[top + height // 2, 2 * (tile + 12) + tile - 3].tolist() == [200, 100, 0]  # class 1 at the right of the prediction
    assert has_colour(sheet, WRONG_COLOUR) >= tile // 6 * (height - 4)
    assert (pixels[top + height + 34 + 2 : -34, tile + 2 :] == 255).all()  # the second sample has a photograph only


@pytest.mark.parametrize("columns,width,top", [(5, 1472, 28), (8, 1472, 48), (5, 500, 48)])
def test_captions_and_the_key_of_the_borders_keep_apart(columns, width, top):
    """Every heading stays over its own column; "true" and "predicted" stand beside "boundary" where they fit, else below it."""
    extra = {f"a row with a very long name {i}" * 3: TRUTH for i in range(columns - 5)}
    sheet = panels([{**SAMPLE, "extra": extra}], PALETTE, width=width)
    tile = min((width - 12 * (columns - 1)) // columns, 420)
    ink = (np.asarray(sheet)[:top] != 255).any(-1)  # [top, W]
    for i in range(columns - 1):
        assert not ink[:24, i * (tile + 12) + tile + 1 : (i + 1) * (tile + 12) - 1].any(), "a heading runs into the next column"
    assert sheet.height == top + round(4 * tile / 6) + 34
    last, wide = (columns - 1) * (tile + 12), text_width("boundary", SMALL)
    first_line, second_line = ink[:24], ink[24:]
    if top == 48:
        assert not first_line[:, int(last + wide + 4) :].any() and second_line.any()
    else:
        key = np.flatnonzero((np.asarray(sheet)[:top] == TRUE_EDGE).all(-1).any(0))
        assert key.min() > last + wide + 4 and not second_line.any()


@pytest.mark.parametrize("call,words", [
    (lambda: colourise(np.zeros((2, 2)), PALETTE), "integers"),
    (lambda: colourise(np.zeros((1, 2, 2), int), PALETTE), "[H, W]"),
    (lambda: colourise(np.array([[300]]), PALETTE), "from 300 to 300"),
    (lambda: full_palette(np.zeros((3, 4))), "[K, 3]"),
    (lambda: overlay(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 3), int), PALETTE), "2x2 and its label map 2x3"),
    (lambda: error_map(np.zeros((2, 2, 3)), np.zeros((2, 2), int), np.zeros((2, 2), int)), "uint8 [H, W, 3], got float64"),
    (lambda: panels([], PALETTE), "at least one sample"),
    (lambda: line_chart({"a": ([1, 2], [1])}), "2 x values and 1 y values"),
    (lambda: line_chart({"a": ([1, 2], [1, 2])}, y_range=(3, 1)), "low <= high"),
    (lambda: table(["a", "b"], [[1]]), "has 1 cells, expected 2: a, b"),
])
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


# ---- charts -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values,texts", [
    ([0.81, 0.831, 0.89], ["0.810", "0.831", "0.890"]), ([92.93, 81.0, 88.8], ["92.93", "81.00", "88.80"]),
    ([0.5, None, float("nan")], ["0.5", "-", "-"]),
    ([3, 0.25], ["3", "0.25"]), ([1.0, 2.0], ["1", "2"]), ([0.5, 7.1e-5], ["0.5", "7.1e-05"]), ([0.5, 43.6e6], ["0.5", "43.6 M"]),
    ([12.5, 0.0001236], ["12.5", "0.0001236"]), (["a", 0.5], ["a", "0.5"]), ([], []), ([np.float32(0.25), 0.5], ["0.25", "0.50"])])
def test_a_column_of_floats_shares_its_digits(values, texts):
    assert numbers(values) == texts



@pytest.mark.parametrize("value,text", [
    (None, "-"), (float("nan"), "-"), (float("inf"), "inf"), ("54.5 %", "54.5 %"), (True, "yes"), (0, "0"), (12345, "12,345"), (43_600_000, "43.6 M"),
    (1.5e9, "1.5 G"), (2e12, "2 T"), (0.54497, "0.545"), (7.1e-5, "7.1e-05"), (1234.56, "1,234.6"), (np.float32(0.5), "0.5"), (np.int64(7), "7")])
def test_numbers_for_readers(value, text):
    assert number(value) == text


def test_percent():
    assert [percent(v) for v in (0.5449735, 1, 0, None, float("nan"))] == ["54.5", "100.0", "0.0", "-", "-"]


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 9))
def test_ticks_are_round_and_inside(low, span, wanted):
    high = low + span
    marks = ticks(low, high, wanted)
    assert len(marks) <= wanted + 2
    assert all(low - 1e-6 * span - 1e-9 <= m <= high + 1e-6 * span + 1e-9 for m in marks)
    if len(marks) > 1:
        step = marks[1] - marks[0]
        assert min(abs(step / 10.0 ** np.floor(np.log10(step) + 1e-3) - r) for r in (1, 2, 5)) < 1e-2


@given(st.text(st.characters(codec="ascii", categories=("L", "N", "P")), max_size=60).map(lambda t: re.sub("(.{7})", r"\1 ", t)), st.integers(30, 300))
def test_wrapped_lines_fit_and_lose_nothing(text, width):
    lines = wrap(text, 16, width)
    assert all(text_width(line, 16) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == plain(text).replace(" ", "")


def test_letters_the_font_lacks_are_spelled_out():
    assert plain("mIoU \u2192 54.5 \u00d7 2 \u2264 \u03c4") == "mIoU -> 54.5 x 2 <= tau"
    assert plain("\u732b") == "?"
    assert shorten("short", 16, 500) == "short"
    assert shorten("a much longer sentence", 16, 60).endswith("...") and text_width(shorten("a much longer sentence", 16, 60), 16) <= 60


def test_points_land_where_the_axes_say():
    axes = _Axes(Canvas(400, 300), (50, 20, 350, 250), (0, 10), (1, 100), "x", "y", log_y=True)
    assert axes.at(0, None)[0] == 50 and axes.at(10, None)[0] == 350 and axes.at(5, None)[0] == 200
    y1, y10, y100 = (axes.at(None, v)[1] for v in (1, 10, 100))
    assert y1 - y10 == pytest.approx(y10 - y100) and 20 < y100 < y1 < 250
    chart = line_chart({"a": ([0, 1, 2], [5, 5, 5]), "b": ([0, 1, 2], [1, 1, 1])}, size=(300, 240))
    rows = [np.flatnonzero((np.asarray(chart) == [int(LINES[i][j : j + 2], 16) for j in (1, 3, 5)]).all(-1).sum(1) > 150) for i in (0, 1)]
    assert len(rows[0]) and len(rows[1]) and rows[0].max() < rows[1].min()  # the larger value is drawn higher up


def test_missing_values_break_a_curve():
    whole = has_colour(line_chart({"a": ([0, 1, 2, 3], [1, 1, 1, 1])}), LINES[0])
    gap = has_colour(line_chart({"a": ([0, 1, 2, 3], [1, 1, None, 1])}), LINES[0])
    assert 0 < gap < 0.6 * whole


@pytest.mark.parametrize("lines", [
    {}, {"a": ([], [])}, {"a": ([1], [2])}, {"a": ([1, 1], [2, 2])}, {"a": ([1, 2], [float("nan")] * 2)}, {"a": ([1, 2], [float("inf"), 1])},
    {"a": ([0, 1e9], [-1e-9, 1e9])}, {str(i): ([0, 1], [i, i]) for i in range(12)}, {"long " * 60: ([0, 1], [0, 1]), "b": ([0, 1], [0, 1])}])
@pytest.mark.parametrize("log", [False, True], ids=["linear", "log"])
def test_odd_curves_still_draw(lines, log):
    assert line_chart(lines, "title", "x", "y", size=(500, 300), log_y=log, log_x=log).size == (500, 300)


def test_chart_for_fine_screens_is_twice_as_large():
    assert line_chart({"a": ([0, 1], [0, 1])}, size=(300, 200), zoom=2).size == (600, 400)


def test_long_noisy_curves_get_their_mean():
    xs = np.arange(1000)
    ys = np.where(xs % 2, 1.0, -1.0)
    rows = (np.asarray(line_chart({"a": (xs, ys)}, size=(700, 300))) == [0x00, 0x72, 0xB2]).all(-1).sum(1)
    assert rows.argmax() == pytest.approx((30 + 6 + 250) / 2, abs=6) and rows.max() > 400  # a flat line through the middle


def test_bars_are_as_long_as_their_values():
    bars = [{"name": "a", "value": 0.5}, {"name": "b", "value": 1.0, "spread": 0.1, "points": [0.9, 1.1]}, {"name": "c", "value": None}]
    chart = np.asarray(bar_chart(bars))
    tint = np.abs(chart.astype(int) - [64, 149, 197]).max(-1) < 3
    lengths = [tint[44 + 38 * i + 10].sum() for i in (0, 1, 2)]
    assert lengths[2] == 0 and lengths[0] == pytest.approx(0.5 * lengths[1], abs=4) and lengths[0] > 100
    broken = bar_chart([{"name": "a", "value": 0.5, "strong": True}], x_range=(0.4, None), title="t", x="mIoU")
    assert has_colour(broken, LINES[0]) == 0  # the strong bar has the accent colour


def test_scatter_has_a_mark_for_every_group():
    chart = scatter({"ours": [(1e6, 0.5), (1e7, 0.6)], "theirs": [(3e6, 0.55)]}, log_x=True, names={(1e7, 0.6): "net"})
    assert has_colour(chart, LINES[0]) > 50 and has_colour(chart, LINES[1]) > 25


@given(st.lists(st.lists(st.integers(0, 80).map(lambda n: "x" * n), min_size=1, max_size=3), min_size=1, max_size=5), st.integers(200, 1200))
def test_columns_share_the_width(columns, width):
    need = [max(text_width(v, 16) for v in column) + 24 for column in columns]
    widths = _column_widths(columns, width)
    assert sum(widths) == pytest.approx(width, abs=0.1)
    assert all(w >= min(n, width / len(columns)) - 0.1 for w, n in zip(widths, need))  # a narrow column never pays for a wide one


def test_long_cells_wrap():
    short, long = (table(["verdict", "claim"], [["holds", "word " * n]], width=400).height for n in (3, 60))
    assert long >= short + 3 * 22


# ---- the report -------------------------------------------------------------------------------------------------------------------------


def full_report() -> Report:
    confusion = Confusion(("road", "tree")).add(TRUTH, PREDICTION)
    return Report(
        title="A <method> on scenes", subtitle="Someone & others, 2024", command='python -m seglite.train method=a out="x y"',
        headline={"mIoU": f"{percent(confusion.miou())} %", "pixel accuracy": 0.8261}, classes=("road", "tree"), palette=PALETTE,
        samples=[SAMPLE, {"name": "b", "image": np.zeros((300, 400, 3), np.uint8), "prediction": np.zeros((300, 400), int)}],
        per_class=[*confusion.rows()], curves=[{"lines": {"loss": ([0, 1], [2, 1])}, "title": "Loss", "x": "step", "y": "loss"}],
        figures=[{"title": "Figure one", "image": IMAGE, "note": "why"}],
        tables=[{"title": "T", "columns": ["row", "v"], "rows": [["a", 1], ["b", None]], "strong": [1]}],
        costs={"parameters": 1_234_567}, notes={"seed": "one only"})


class Page(HTMLParser):
    """Checks nesting, collects text and pictures."""

    VOID = {"meta", "img", "br", "link", "input"}

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.words, self.pictures = [], [], [], []
        self.feed(text)
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        if tag == "img":
            assert attributes["src"].startswith("data:image/") and attributes["alt"]
            self.pictures.append(Image.open(io.BytesIO(base64.b64decode(attributes["src"].split(",", 1)[1]))))
        assert not {"href", "onclick", "onload"} & set(attributes)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_page_is_whole_and_needs_nothing_else():
    text = report_html(full_report())
    page = Page(text)
    words = " ".join(page.words)
    for expected in ("A <method> on scenes", "Someone & others", 'out="x y"', "69.3 %", "road", "tree", "a <b>", "82.6 % of pixels right",
                     "1.23 M", "seed", "Figure one"):
        assert expected in words, expected
    assert "script" not in page.tags and "http" not in text and "url(" not in text
    assert len(page.pictures) == 5 + 3 + 1 + 1
    np.testing.assert_array_equal(np.asarray(page.pictures[2]), colourise(PREDICTION, PALETTE))  # label maps are exact, not JPEG


def test_miou_of_the_sample_by_hand():
    confusion = Confusion(2).add(TRUTH, PREDICTION)
    assert confusion.miou() == pytest.approx((7 / 11 + 12 / 16) / 2) and percent(confusion.miou()) == "69.3"


def test_report_picture_shows_every_part():
    whole = report_png(full_report())
    assert whole.width == 1560
    assert has_colour(whole, WRONG_COLOUR) > 1000 and has_colour(whole, LINES[0]) > 1000
    for part in ("headline", "samples", "per_class", "curves", "figures", "tables", "costs", "notes"):
        smaller = full_report()
        setattr(smaller, part, type(getattr(smaller, part))())
        assert report_png(smaller).height < whole.height - 50, part
        Page(report_html(smaller))


def test_report_with_a_title_only():
    assert report_png(Report("nothing yet")).height < 200
    assert "nothing yet" in " ".join(Page(report_html(Report("nothing yet"))).words)


def test_absent_classes_are_named_as_absent():
    report = Report("t", classes=("a", "b", "c"), palette=voc_palette(3), per_class=Confusion(("a", "b", "c")).add([[0, 1]], [[0, 0]]).rows())
    words = Page(report_html(report)).words
    assert words.count("absent") == 1 and "50.0" in words
    report_png(report)


@pytest.mark.parametrize("classes", [1, 9, 21, 150])
def test_class_tables_and_legends_of_every_length(classes):
    names = [f"class number {k}" for k in range(classes)]
    rows = Confusion(names).add(np.arange(classes)[None], np.arange(classes)[None]).rows()
    assert class_table(rows, voc_palette(classes)).width == legend(names, voc_palette(classes)).width == 1472
    assert class_table(rows, voc_palette(classes)).height < 36 + 28 * 60


def test_masks_as_palette_pictures():
    assert mask_image(TRUTH, PALETTE).getpalette()[:6] == PALETTE.ravel().tolist()


def test_a_report_without_truth_does_not_explain_errors():
    for sample, words in ((SAMPLE, "wrong pixels"), ({"name": "a", "image": IMAGE, "prediction": PREDICTION}, "laid over the picture")):
        report = Report(title="t", classes=("a", "b"), palette=PALETTE, samples=[sample])
        page = report_html(report)
        assert (words in page) and ("wrong pixels" in page) is (sample is SAMPLE) and report.has_truth() is (sample is SAMPLE)
