"""tools/reporting: html.py and charts.py: escaping, axes, and where marks are drawn."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.tools.load import load_tool

load_tool("report")  # its folder is then among those that are searched
from reporting import charts, html  # noqa: E402

NAN = float("nan")


def parse(svg):
    """Our charts are XML as well."""
    return ElementTree.fromstring(svg)


def of_class(svg, name):
    return [e for e in parse(svg).iter() if name in e.get("class", "").split()]


def place(mark):
    return tuple(map(float, re.search(r"translate\((.+),(.+?)\)", mark.get("transform")).groups()))


# ---- HTML ------------------------------------------------------------------------------------


def test_text_and_attributes_are_escaped_and_elements_are_not():
    inner = html.element("b", "1 < 2 & 3")
    outer = html.element("p", "<i>", inner, ["&", None, 4], title='"><script>', class_="a")
    assert inner == "<b>1 &lt; 2 &amp; 3</b>"
    expected = (
        '<p title="&quot;&gt;&lt;script&gt;" class="a">&lt;i&gt;<b>1 &lt; 2 &amp; 3</b>&amp;4</p>'
    )
    assert outer == expected


def test_attributes_that_are_left_out_or_have_no_value():
    made = html.element("input", data_key=0, hidden=True, list=None, checked=False, for_="x")
    assert made == '<input data-key="0" hidden for="x">'


def test_numbers():
    assert [html.fixed(v) for v in (1.25, -3.0, NAN, None)] == ["1.2", "−3.0", "–", "–"]
    assert [html.signed(v) for v in (1.0, 0.0, -2.5)] == ["+1.0", "0.0", "−2.5"]
    assert html.count(1, "class", "classes") == "1 class"
    assert html.count(1203, "class", "classes") == "1,203 classes"
    assert html.sentence("no file x.") == html.sentence("no file x") == "No file x."


def test_a_table_escapes_its_cells_and_keeps_cells_of_its_own_making():
    own = html.element("td", "x", class_="main")
    made = html.table(["a", "b"], [["<", own], ["1", 2]])
    assert '<td class="text">&lt;</td><td class="main">x</td>' in made
    assert '<td class="text">1</td><td class="number">2</td>' in made


# ---- axes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (0, 61, [0, 10, 20, 30, 40, 50, 60]),
        (-1.2, 1.05, [-1, -0.5, 0, 0.5, 1]),
        (0.024, 0.041, [0.025, 0.03, 0.035, 0.04]),
    ],
)
def test_linear_ticks_are_round_and_inside(low, high, expected):
    np.testing.assert_allclose(charts.linear_ticks(low, high), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (2.4, 675, [5, 10, 20, 50, 100, 200, 500]),
        (0.8, 3e6, [1, 10, 100, 1e3, 1e4, 1e5, 1e6]),
        (1e-9, 1e9, [10.0**d for d in range(-9, 10, 3)]),
    ],
)
def test_logarithmic_ticks_are_few(low, high, expected):
    np.testing.assert_allclose(charts.log_ticks(low, high), expected, rtol=1e-12)


@pytest.mark.parametrize("values", [[0.001], [0.0, 0.0], [-3.0], [1.0, 2.0]])
def test_a_range_has_room_on_both_sides(values):
    low, high = charts.linear_range(np.array(values))
    size = max(map(abs, values)) or 1
    assert low < min(values) <= max(values) < high and high - low <= 2 * size


def test_a_scale_is_linear_in_the_logarithm_and_has_a_place_for_zero():
    scale = charts.Scale(0.4, 400, 0, 300, log=True, zero=0.5)
    assert scale(40) - scale(4) == pytest.approx(100, abs=0.11)  # rounded to a tenth
    assert scale(0) == scale(0.5) > 0
    assert scale.ticks()[0] == (0.5, "0")


def test_ticks_are_short():
    texts = [charts.tick_text(v) for v in (0.05, -2, 20, 1000, 20_000, 1.5e6)]
    assert texts == ["0.05", "−2", "20", "1,000", "20k", "1.5M"]


def test_thinned_lines_keep_their_mean_and_their_last_point():
    x, y = np.arange(1001.0), np.random.default_rng(0).normal(size=1001)
    few_x, few_y = charts.thinned(x, y, 101)
    assert len(few_x) == 101 and few_x[-1] == 1000 and few_y[-1] == y[-1]
    assert few_y[:-1].mean() == pytest.approx(y[:-1].mean(), abs=1e-12)  # equal parts
    same_x, same_y = charts.thinned(x[:50], y[:50], 101)
    assert same_x is not few_x and len(same_x) == 50 and (same_y == y[:50]).all()


# ---- marks -----------------------------------------------------------------------------------


def points(values):
    return [
        charts.Point(k, x, y, group, f"class <{k}>", f"value {y}")
        for k, (x, y, group) in enumerate(values)
    ]


def test_scatter_has_a_mark_for_each_class_at_its_value():
    x = charts.Scale(1, 1000, 46, 544, log=True)
    y = charts.Scale(0, 100, 306, 32)
    values = [(500, 80, "f"), (5, 20, "r"), (0, 0, "r"), (50, 101, "c")]
    svg = charts.scatter(points(values), x, y, "images", "AP", label="a & b")
    marks = of_class(svg, "point")
    assert [m.get("data-key") for m in marks] == ["2", "1", "3", "0"]  # by size, for the arrow keys
    by_key = {int(m.get("data-key")): m for m in marks}
    assert place(by_key[0]) == (x(500), y(80)) and place(by_key[1]) == (x(5), y(20))
    # What is outside the axes stands at their edge.
    assert place(by_key[2]) == (x(1), y(0)) and place(by_key[3]) == (x(50), y(100))
    assert by_key[1].get("data-name") == "class <1>" and by_key[1].get("data-text") == "value 20"
    shapes = {by_key[k].get("d") for k in (0, 1, 3)}
    assert len(shapes) == 3  # groups differ in more than their colour


def test_lines_leave_gaps_where_there_is_no_value():
    line = charts.Line("a", np.arange(5), np.array([1, 10, 0, 100, NAN]), "run-0")
    (path,) = of_class(charts.line_chart([line], "y", label="l", log=True), "line")
    assert path.get("d").count("M") == 2 and path.get("d").count("L") == 1
    assert path.get("data-x") == "0,1,3" and path.get("data-y") == "1,10,100"
    assert charts.line_chart([charts.Line("a", [1], [NAN], "")], "y", label="l") is None


def test_a_line_of_one_value_is_a_dot():
    svg = charts.line_chart([charts.Line("a", [7], [3.0], "run-1")], "y", label="l")
    assert len(of_class(svg, "dot")) == 1


def marks(*values):
    return [charts.Mark(*v, "run-0", "a", "t") for v in values]


def test_intervals_lie_around_their_values_on_one_axis():
    rows = [("one", marks((10, 8, 13)), ""), ("two", marks((20, None, None), (NAN, 1, 2)), "+1")]
    svg = charts.interval_chart(rows, "AP", label="l", from_zero=True)
    (whisker,), (first, second) = of_class(svg, "whisker"), of_class(svg, "point")
    left, right, zero = (float(whisker.get(k)) for k in ("x1", "x2", "y1"))
    assert left < place(first)[0] < right and zero == place(first)[1]
    unit = (place(second)[0] - place(first)[0]) / 10
    assert right - left == pytest.approx(5 * unit, abs=0.2)  # pixels are rounded to a tenth
    assert "+1" in svg


def test_bars_are_divided_as_the_numbers_are():
    rows = [("rare", [("found", 30), ("missed", 10), ("none", 0)])]
    parts = of_class(charts.stacked_bars(rows, lambda name: name, "objects", label="l"), "part")
    widths = [float(p.get("width")) for p in parts]
    assert widths[0] == pytest.approx(3 * widths[1], abs=0.3) and len(parts) == 2
    assert parts[1].get("data-text") == "10 of 40 objects (25.0 %)"
