"""Pages of results that may be anybody's: every value is shown as text."""

import html
import json
import math
import re
from html.parser import HTMLParser
from xml.dom import minidom

import numpy as np
import pytest
from etils import epath

from can_jax.evaluate import page
from can_jax.evaluate.reports import markdown
from can_jax.evaluate.reports.charts import metric_chart, scatter
from can_jax.evaluate.reports.comparison import comparison, matrix
from can_jax.evaluate.reports.report import report_of
from can_jax.evaluate.reports.results import read_results
from can_jax.export.model_card import result_rows, warnings_of
from can_jax.utils.errors import UserError, printable

EVIL = "<img src=x onerror=alert(1)>\"'><script>x</script>\n# a | b `c` [d](javascript:e) ![f](g)"


class ScanResult(HTMLParser):
    """Collects tags and attributes."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes = set(), set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def results(text):
    """What an evaluation writes, with a text in place of every text and key that can be one."""
    return {
        "metrics": {text: 50.0, f"{text}/1/top1": 3.0, "clean/top1": 4.0},
        "examples": {text: text, f"{text}/test": 3},
        "warnings": [text],
        "protocol": {"protocol": text, "features": text},
        "chosen": {text: text},
        "checkpoint": {"path": text, "step": text, "sha256": text},
        "data": dict.fromkeys(("source", "path", "name"), text)
        | {"fingerprints": {f"{text}/test": text}},
        "tables": {text: [{text: text, "value": 1.5}]},
    }  # fmt: skip


def found_in(text):
    parser = ScanResult()
    parser.feed(text)
    return parser.tags, parser.attributes


def test_no_value_becomes_part_of_a_page():
    for pages in (
        lambda text: report_of(results(text), {text: page.picture(b"png", text)}),
        lambda text: comparison({text: results(text), f"{text}2": results(text)}),
        lambda text: scatter(np.eye(2), np.array([0, 1]), (text, "other")),
    ):
        tags, attributes = found_in(pages(EVIL))
        assert (tags, attributes) == found_in(pages("plain"))
        assert "script" not in tags and "onerror" not in attributes


def measured(path, digest, **metrics):
    """What an evaluation of some weights on some test examples writes."""
    found = results("plain") | {"metrics": metrics, "intervals": {"knn/top1": [40.0, 60.0]}}
    found["checkpoint"] = {"path": path, "step": 3, "sha256": path * 12}
    found["data"] = found["data"] | {"fingerprints": {"test": digest}}
    return found


def test_comparison_is_a_matrix_of_weights_by_protocol_and_data():
    rows = matrix(
        {
            "one": measured("a", "test:1", **{"knn/top1": 50.0, "linear/nll": 2.0}),
            "two": measured("b", "test:1", **{"knn/top1": 60.0, "linear/nll": 3.0}),
            "three": measured("b", "test:2", **{"knn/top1": 99.0}),
        }
    )
    assert [row["evaluations"]["text"] for row in rows] == ["one", "two, three"]
    _, _, knn, nll, other = rows[0]
    assert knn.startswith("knn/top1 %") and "test:1" in knn and "test:2" in other
    assert [row[knn]["best"] for row in rows] == [False, True]
    assert [row[nll]["best"] for row in rows] == [True, False]  # less is better
    assert [row[other] for row in rows] == [
        {"text": "", "best": False},
        {"text": "99.00 (40.00 to 60.00)", "best": False},  # alone in its column
    ]


def corrupted(weights, digest, *examples):
    """The means over corruptions of the test images and of a distributed test set."""
    metrics = {f"{prefix}corrupted/top1": 50.0 for prefix in ("", "imagenet_c/")}
    results = measured(weights, "test:1", **metrics, **{"imagenet_v2/top1": 70.0})
    results["data"]["fingerprints"] |= {"imagenet_v2": f"train:{digest}"}
    return results | {"examples": dict.fromkeys(examples, 9)}


def test_comparison_keeps_other_images_of_a_metric_apart():
    runs = {
        "one": corrupted("a", 1, "test", "fog/1", "imagenet_c/fog/1"),
        "harder": corrupted("b", 2, "test", "snow/5", "fog/5", "imagenet_c/fog/5"),
        "same": corrupted("c", 1, "test", "fog/1", "imagenet_c/fog/1"),
    }
    one, harder, same = matrix(runs)
    filled = [{key for key, cell in row.items() if cell["text"]} for row in (one, harder, same)]
    assert filled[0] == filled[2] and filled[0] & filled[1] == {"weights", "evaluations"}
    assert {key.split()[0] for key in filled[0]} == {key.split()[0] for key in filled[1]}
    assert any(key.endswith("fog, snow, severity 5 test:1") for key in filled[1])
    assert any("imagenet_v2" in key and key.endswith("train:2") for key in filled[1])


def test_comparison_keeps_values_of_the_same_weights_apart():
    rows = matrix(
        {
            "patches": measured("a", "test:1", **{"knn/top1": 50.0}),
            "linear": measured("a", "test:1", **{"linear/top1": 70.0}),
            "class": measured("a", "test:1", **{"knn/top1": 60.0}),
        }
    )
    assert [row["evaluations"]["text"] for row in rows] == ["patches, linear", "class"]
    _, _, knn, linear = rows[0]
    assert [row[knn]["text"][:5] for row in rows] == ["50.00", "60.00"]
    assert [row[knn]["best"] for row in rows] == [False, True]
    assert [row[linear]["text"][:5] for row in rows] == ["70.00", ""]


def test_page_says_first_what_was_evaluated():
    found = measured("a", "val:1", **{"knn/top1": 50.0}) | {"examples": {"test": 1234}}
    found["chosen"] = {"k": 5}
    text = report_of(found, {})
    lead = text[text.index('class="lead"') :][:500]
    assert "test split &#39;val&#39;, 1,234 images" in lead and "k = 5" in lead
    assert "50.00 %" in text and "40.00 to 60.00" in text


def test_training_time_is_not_a_selected_setting():
    found = results("x")
    found["chosen"] = {"seconds": 58.8}
    text = report_of(found, {})
    lead = text[text.index('class="lead"') :][:500]
    assert "Trained in 58.8 s." in lead and "Chosen" not in lead


def test_page_loads_and_runs_nothing():
    text = report_of(results("plain"), {})
    assert "default-src 'none'" in text and "style-src 'unsafe-inline'; img-src data:" in text


@pytest.mark.parametrize("name", ["$\\frac$", "_hidden", "a\0b\nc", "caf\udce9", "鹿", "</svg>"])
def test_any_name_is_shown_in_charts(name):
    """Matplotlib would read some as formulas, or leave them out."""
    runs = {name: results("plain") | {"metrics": {"fog/1/top1": 3.0, "clean/top1": 4.0}}}
    legend = re.search(r'<p class="legend">.*?</p>', comparison(runs))[0]
    assert printable(name) in html.unescape(legend)
    svg = re.search(
        r"<svg.*</svg>", scatter(np.eye(2), np.array([1, 0]), (name, "other")), re.DOTALL
    )
    dots = minidom.parseString(svg[0])
    titles = [node.firstChild.data for node in dots.getElementsByTagName("title")]
    assert titles == ["other", printable(name)]  # in the order of the examples


@pytest.mark.parametrize("values", [(0.01, 300.0), (0.55, 2.3), (1e-6, 2e-6), (0.002, 0.002)])
def test_labels_of_a_logarithmic_axis_are_plain_numbers(values):
    points = [(float(step), value) for step, value in enumerate(values)]
    chart = metric_chart({"a": points}, {}, title="t", xlabel="x", ylabel="", log=True)
    texts = [node.firstChild.data for node in texts_of(chart)]
    assert not [text for text in texts if "$" in text or "mathdefault" in text]
    assert len([text for text in texts if re.fullmatch(r"[0-9.]+(e-[0-9]+)?", text)]) >= 4


def texts_of(chart):
    return minidom.parseString(chart).getElementsByTagName("text")


def test_metric_that_is_constant_keeps_its_scale():
    points = [(0.0, 1e-3), (9.0, 1e-3)]
    chart = metric_chart({"a": points}, {}, title="t", xlabel="x", ylabel="")
    texts = [node.firstChild.data for node in texts_of(chart)]
    assert "0.0010" in texts and "1.00" not in texts


def test_legends_are_text_outside_of_the_charts():
    """The charts shrink with the page, and their text with them."""
    chart = scatter(np.eye(12, 2), np.arange(12), [f"kind {i}" for i in range(12)])
    legend, svg = chart.split("<svg", 1)
    assert "kind 9" in legend and "kind 10" not in legend and "2 other classes" in legend
    assert "<text" not in svg


def test_weights_without_a_step_are_shown_without_one():
    found = measured("a", "val:1", **{"knn/top1": 50.0})
    assert ", step 3 (" in report_of(found, {})
    found["checkpoint"]["step"] = None
    assert "None" not in report_of(found, {})


def test_headlines_are_explained():
    names = ["knn/top1_fixed", "fewshot/pets/5shot", "health/width", "novel"]
    text = report_of(measured("a", "val:1", **dict.fromkeys(names, 1.0)), {})
    assert re.findall("<dt>(.*)</dt>", text) == names[:3]
    assert "of 5-shot ridge regression" in text
    assert "<dt>health/width</dt>" in comparison(
        {"a": measured("a", "v:1", **{"health/width": 1.0})}
    )


def test_cells_break_long_words_alone():
    assert page.wrapping("/data/" + "x" * 30) == "long"
    assert page.wrapping("two words of a sentence") == "text"
    assert page.wrapping("2026-11-27T06:51:09+0000") == page.wrapping("43.0 to 57.0") == ""
    assert page.number(True) == "true" and page.columns([{"a": True}]) == [("a", False)]


def test_chart_leaves_out_what_is_no_percentage():
    metrics = {"fog/1/top1": math.nan, "fog/2/top1": 10**400, "fog/\u00b2/top1": 1.0}
    text = comparison({"a": results("plain") | {"metrics": metrics | {"clean/top1": math.inf}}})
    assert "<svg" not in text
    text = comparison({"a": results("plain") | {"metrics": metrics | {"snow/3/top1": 30.0}}})
    assert text.count("<svg") == 1


def test_columns_of_numbers_are_right_aligned():
    rows = [("CAN", 0, "45.0 ± 0.4", "", markdown.code("1.json")), ("MAE", 1, "", "+0.3", "")]
    rule = markdown.table(rows, "abcde", right=True).splitlines()[1]
    assert rule == "|---|--:|--:|--:|---|"
    assert markdown.table([], "ab", right=True).splitlines()[1] == "|---|--:|"


def test_markdown_keeps_its_lines_and_cells():
    table = markdown.table([(EVIL, markdown.code(EVIL))], ("a", "b"))
    assert table.count("\n") == 2 and table.splitlines()[2].replace("\\|", "").count("|") == 3
    for text in (table, markdown.fill("{x}", x=EVIL), *warnings_of([results(EVIL)])):
        outside = text.split("`")[0] if "`c`" not in text else text
        for mark in ("<img", "<script", "](", "!["):
            bare = outside.replace(markdown.code(EVIL), "")
            assert not re.search(r"(?<!\\)" + re.escape(mark), bare)
    assert markdown.link(EVIL, "a b)<c").endswith("(a%20b%29%3Cc)")
    (row, *_) = result_rows([results(EVIL)])
    assert markdown.table([row], "abcd").count("\n") == 2


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"metrics": []}, "metrics"), ({"metrics": {"a": "b"}}, "metrics"),
        ({"checkpoint": {"path": 1}}, "checkpoint.path"), ({"tables": {"a": [1]}}, "tables"),
        ({"warnings": "text"}, "warnings"), ({"protocol": None}, "protocol"),
        ({"data": {"source": "folder", "fingerprints": [1]}}, "data.fingerprints"),
    ],
)  # fmt: skip
def test_results_that_are_none_are_refused(tmp_path, changes, named):
    (tmp_path / "results.json").write_text(json.dumps(results("plain") | changes))
    with pytest.raises(UserError, match=f"{named} is missing or malformed"):
        read_results(epath.Path(tmp_path))


def test_names_that_are_not_utf8_are_shown():
    report_of(results("caf\udce9"), {}).encode()
    markdown.escape("caf\udce9").encode()
