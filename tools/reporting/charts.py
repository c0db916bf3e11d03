"""Charts of tools/report.py, as SVG that the page's style sheet colours.

Every chart can be read without its script. What the script shows for a mark stands in the
attributes: ``data-name`` and ``data-text`` of a point, ``data-name``, ``data-x`` and ``data-y`` of
a line. ``data-key`` is the class id; marks of one class in several charts light up together.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from reporting.html import Html, element, escaped

WIDTH, HEIGHT = 560, 350
# Charts with rows: pixels of the whole, above the first row, and between the marks of a row.
NARROW, EDGE, LANE = 460, 6, 13
TOP, RIGHT, BOTTOM, LEFT = 32, 16, 44, 46
# Pixels of a bar, and from one bar to the next.
BAR, BAR_STEP = 22, 38
# Shapes tell the groups apart where colours do not: diamond, circle, square.
SHAPES = {
    "r": "M0-5.2L5.2 0 0 5.2-5.2 0Z",
    "c": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0Z",
    "f": "M-3.6-3.6h7.2v7.2h-7.2Z",
}
PLAIN_SHAPE = SHAPES["c"]
# More classes than this and points cover each other: they are drawn smaller.
MANY_POINTS = 150
# Points of a drawn line; more are not seen on so few pixels.
MAX_LINE_POINTS = 240


# ---- axes ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """From values to pixels.

    Attributes:
        low, high: values at the ends of the axis.
        start, end: their pixels.
        log: positive values, in decades.
        zero: on a log axis, the value that stands for 0, which has no place there; None: none.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    zero: float | None = None

    def __call__(self, value: float) -> float:
        """Pixels, to a tenth."""
        if self.log and self.zero is not None:
            value = max(value, self.zero)
        low, high, at = (
            map(math.log10, (self.low, self.high, value))
            if self.log
            else (self.low, self.high, value)
        )
        return round(self.start + (at - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self) -> list[tuple[float, str]]:
        """(value, text) of the marks inside the axis."""
        values = log_ticks(self.low, self.high) if self.log else linear_ticks(self.low, self.high)
        if self.log and self.zero is not None and self.low <= self.zero <= self.high:
            return [(self.zero, "0"), *((v, tick_text(v)) for v in values if v > self.zero)]
        return [(v, tick_text(v)) for v in values]


def linear_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten inside [low, high], at most `most`."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten inside [low, high], with 2 and 5 times them on a short axis."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1,)):
        ticks = [m * 10.0**d for d in decades for m in steps]
        ticks = [t for t in ticks if low * (1 - 1e-9) <= t <= high * (1 + 1e-9)]
        if len(ticks) <= 8:
            break
    return ticks[:: math.ceil(len(ticks) / 8)]


def tick_text(value: float) -> str:
    """Short: 0.05, 20, 5,000, 20k, 1.5M."""
    if 1000 <= abs(value) < 10_000 and value == int(value):
        return f"{value:,.0f}".replace("-", "−")
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}".replace("-", "−")
    return f"{value:g}".replace("-", "−")


def log_range(values: np.ndarray, pad: float = 1.25) -> tuple[float, float]:
    """Ends of a log axis around positive `values`, at least a factor of two apart."""
    low, high = float(np.min(values)), float(np.max(values))
    if high < 2 * low:
        low, high = low / 1.5, high * 1.5
    return low / pad, high * pad


def linear_range(values: np.ndarray, pad: float = 0.06) -> tuple[float, float]:
    """Ends of an axis around `values`, with some room."""
    low, high = float(np.min(values)), float(np.max(values))
    room = pad * (high - low) or 0.5 * abs(high) or 1.0
    return low - room, high + room


def _axes(x: Scale, y: Scale, x_title: str, y_title: str) -> list[Html]:
    """Grid, numbers and titles."""
    bottom, left, right, top = y.start, x.start, x.end, y.end
    parts = []
    for value, text in y.ticks():
        at = y(value)
        parts.append(element("line", class_="grid", x1=left, x2=right, y1=at, y2=at))
        parts.append(element("text", text, class_="tick end", x=left - 8, y=at + 4))
    for value, text in x.ticks():
        at = x(value)
        parts.append(element("line", class_="tickmark", x1=at, x2=at, y1=bottom, y2=bottom + 5))
        parts.append(element("text", text, class_="tick middle", x=at, y=bottom + 18))
    parts.append(element("line", class_="axis", x1=left, x2=right, y1=bottom, y2=bottom))
    centre = (left + right) / 2
    parts.append(element("text", x_title, class_="title middle", x=centre, y=bottom + 37))
    parts.append(element("text", y_title, class_="title", x=0, y=top - 14))
    return parts


def _svg(kind: str, label: str, content, width=WIDTH, height=HEIGHT) -> Html:
    return element(
        "svg",
        content,
        class_=f"chart {kind}",
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=label,
        # The script makes its points reachable with the arrow keys.
        tabindex="0",
    )


# ---- points ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A class in a scatter.

    Attributes:
        key: class id.
        x, y: values.
        group: letter, or "" without groups.
        name: of the class.
        text: what is shown with the name.
    """

    key: int
    x: float
    y: float
    group: str
    name: str
    text: str


def scatter(
    points: Sequence[Point],
    x: Scale,
    y: Scale,
    x_title: str,
    y_title: str,
    *,
    label: str,
    levels: Sequence[tuple[str, float, float, float]] = (),
    references: Sequence[float] = (),
) -> Html:
    """One mark a class.

    Args:
        points: classes.
        x, y: axes, which end `RIGHT` and `BOTTOM` before the drawing does; values outside are
            drawn at the edge.
        x_title, y_title: of the axes.
        label: of the chart, for readers that do not see it.
        levels: (group, left, right, value): a line over a range of x, such as the group's mean.
        references: values of horizontal lines over the whole chart.
    """
    marks = []
    marks += [_reference(x, y, value) for value in references]
    for group, left, right, value in levels:
        ends = {"x1": x(left) - 5, "x2": x(right) + 5, "y1": y(value), "y2": y(value)}
        marks.append(element("line", class_=f"level g-{group}", **ends))
    small = len(points) > MANY_POINTS
    for p in sorted(points, key=lambda p: (p.x, p.key)):
        at = f"translate({x(min(max(p.x, x.low), x.high))},{y(min(max(p.y, y.low), y.high))})"
        marks.append(
            element(
                "path",
                class_=f"point g-{p.group}",
                d=SHAPES.get(p.group, PLAIN_SHAPE),
                transform=at + (" scale(.62)" if small else ""),
                data_key=p.key,
                data_name=p.name,
                data_text=p.text,
            )
        )
    content = [*_axes(x, y, x_title, y_title), marks]
    return _svg("scatter", label, content, x.end + RIGHT, y.start + BOTTOM)


def _reference(x: Scale, y: Scale, value: float) -> Html:
    at = y(value)
    return element("line", class_="reference", x1=x.start, x2=x.end, y1=at, y2=at)


# ---- lines -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A series over iterations.

    Attributes:
        name: shown for the line.
        x, y: (T,) values; NaN and, on a log axis, values that are not positive are gaps.
        style: classes of the style sheet.
        key: class id of a line that belongs to a class.
        digits: significant, of the values shown.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    style: str
    key: int | None = None
    digits: int = 4
    marks: bool = field(default=False)


def thinned(x: np.ndarray, y: np.ndarray, most: int = MAX_LINE_POINTS):
    """At most `most` points: means of neighbours; the last point stays as it is."""
    if len(x) <= most:
        return x, y
    parts = np.array_split(np.arange(len(x) - 1), most - 1)
    with np.errstate(invalid="ignore"):
        means = [np.array([v[p].mean() for p in parts] + [v[-1]]) for v in (x, y)]
    return means[0], means[1]


def line_chart(
    lines: Sequence[Line],
    y_title: str,
    *,
    label: str,
    log: bool = False,
    zero_based: bool = False,
    references: Sequence[float] = (),
    width: int = WIDTH,
    height: int = HEIGHT,
) -> Html | None:
    """Lines over iterations; None if there is nothing to draw.

    Args:
        lines: the ones behind first.
        y_title: of the axis.
        label: of the chart, for readers that do not see it.
        log: the y axis is in decades.
        zero_based: a linear y axis begins at 0.
        references: values of horizontal lines.
        width, height: of the drawing.
    """
    drawn = [(line, *_drawable(line, log)) for line in lines]
    drawn = [(line, x, y) for line, x, y in drawn if np.isfinite(y).any()]
    if not drawn:
        return None
    all_y = np.concatenate([y[np.isfinite(y)] for _, _, y in drawn] + [list(references)])
    all_x = np.concatenate([x for _, x, _ in drawn])
    low, high = log_range(all_y, 1.15) if log else linear_range(all_y)
    first, last = float(all_x.min()), float(all_x.max())
    if last <= first:
        first, last = first - 1, last + 1
    x_scale = Scale(first, last, LEFT, width - RIGHT)
    y_scale = Scale(0.0 if zero_based else low, high, height - BOTTOM, TOP, log)
    marks = [_reference(x_scale, y_scale, value) for value in references]
    marks += [_line(line, x, y, x_scale, y_scale) for line, x, y in drawn]
    content = [*_axes(x_scale, y_scale, "iteration", y_title), marks]
    return _svg("lines", label, content, width, height)


def _drawable(line: Line, log: bool) -> tuple[np.ndarray, np.ndarray]:
    x, y = thinned(np.asarray(line.x, float), np.asarray(line.y, float))
    return x, np.where(y > 0, y, np.nan) if log else y


def _line(line: Line, x, y, x_scale: Scale, y_scale: Scale) -> list[Html | None]:
    steps, pen = [], "M"
    for a, b in zip(x, y, strict=True):
        if not np.isfinite(b):
            pen = "M"
            continue
        steps.append(f"{pen}{x_scale(a):g} {y_scale(b):g}")
        pen = "L"
    valid = np.isfinite(y)
    single = valid.sum() == 1 or line.marks
    path = element(
        "path",
        class_=f"line {line.style}",
        d="".join(steps),
        data_key=line.key,
        data_name=line.name,
        # Those of classes say their name alone.
        data_x=_numbers(x[valid], 6) if line.key is None else None,
        data_y=_numbers(y[valid], line.digits) if line.key is None else None,
    )
    dots = [
        element("circle", class_=f"dot {line.style}", cx=x_scale(a), cy=y_scale(b), r=3)
        for a, b in zip(x[valid], y[valid], strict=True)
        if single
    ]
    # A border keeps a line apart from many behind it.
    border = element("path", class_="border", d="".join(steps)) if "thick" in line.style else None
    return [border, path, *dots]


def _numbers(values: np.ndarray, digits: int) -> str:
    return ",".join(f"{v:.{digits}g}" for v in values)


# ---- values with intervals -------------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """A value on a row.

    Attributes:
        value: NaN: nothing is drawn.
        low, high: ends of its interval; None: none is known.
        style: classes of the style sheet.
        name, text: shown for the mark.
        key: class id, if it belongs to a class.
    """

    value: float
    low: float | None
    high: float | None
    style: str
    name: str
    text: str
    group: str = ""
    key: int | None = None


def interval_chart(
    rows: Sequence[tuple[str, Sequence[Mark], str]],
    x_title: str,
    *,
    label: str,
    zero: bool = False,
    joined: bool = False,
    from_zero: bool = False,
    left: int = 90,
    width: int = NARROW,
) -> Html:
    """Rows of values with their intervals along one axis.

    Args:
        rows: (title, marks, text at the right end); the marks of a row stand below each other.
        x_title: of the axis.
        label: of the chart, for readers that do not see it.
        zero: a line at 0.
        joined: the marks of a row stand at one height, with a line from the first to the last.
        from_zero: the axis begins at 0.
        left: pixels for the titles of the rows.
        width: of the drawing.
    """
    heights = [LANE * (1 + (1 if joined else max(1, len(marks)))) for _, marks, _ in rows]
    tops = np.cumsum([EDGE, *heights]).tolist()
    low, high = _mark_range(rows, zero)
    beside = max((len(aside) for *_, aside in rows), default=0)
    x = Scale(0.0 if from_zero else low, high, left, width - RIGHT - 8 * beside)
    content = _row_axis(x, x_title, tops[-1])
    if zero:
        content.append(element("line", class_="zero", x1=x(0), x2=x(0), y1=EDGE, y2=tops[-1]))
    for (title, marks, aside), top, height in zip(rows, tops, heights, strict=False):
        middle = top + height / 2
        content.append(element("text", title, class_="rowname end", x=left - 12, y=middle + 4))
        content.append(element("text", aside, class_="tick end", x=width, y=middle + 4))
        content += _joined(marks, x, middle) if joined else _below_each_other(marks, x, middle)
    return _svg("intervals", label, content, width, tops[-1] + BOTTOM)


def _row_axis(x: Scale, title: str, bottom: int) -> list[Html]:
    """Vertical lines with their numbers and the title of the axis below."""
    content = []
    for value, text in x.ticks():
        at = x(value)
        content.append(element("line", class_="grid", x1=at, x2=at, y1=EDGE, y2=bottom))
        content.append(element("text", text, class_="tick middle", x=at, y=bottom + 17))
    centre = (x.start + x.end) / 2
    return [*content, element("text", title, class_="title middle", x=centre, y=bottom + 36)]


def _below_each_other(marks: Sequence[Mark], x: Scale, middle: float) -> list[Html | None]:
    first = middle - LANE * (len(marks) - 1) / 2
    return [_mark(mark, x, first + LANE * k) for k, mark in enumerate(marks)]


def _joined(marks: Sequence[Mark], x: Scale, middle: float) -> list[Html | None]:
    drawn = [m for m in marks if not math.isnan(m.value)]
    if not drawn:
        return []
    ends = {"x1": x(drawn[0].value), "x2": x(drawn[-1].value), "y1": middle, "y2": middle}
    return [element("line", class_="join", **ends), *(_mark(m, x, middle) for m in drawn)]


def _mark_range(rows, zero: bool) -> tuple[float, float]:
    values = [v for _, marks, _ in rows for m in marks for v in (m.value, m.low, m.high)]
    values = [v for v in values if v is not None and not math.isnan(v)] + [0.0] * zero
    return linear_range(np.array(values or [0.0, 1.0]))


def _mark(mark: Mark, x: Scale, at: float) -> Html | None:
    if math.isnan(mark.value):
        return None
    whisker = None
    if mark.low is not None and mark.high is not None:
        ends = {"x1": x(mark.low), "x2": x(mark.high), "y1": at, "y2": at}
        whisker = element("line", class_=f"whisker {mark.style}", **ends)
    point = element(
        "path",
        class_=f"point {mark.style}",
        d=SHAPES.get(mark.group, PLAIN_SHAPE),
        transform=f"translate({x(mark.value)},{at:g})",
        data_key=mark.key,
        data_name=mark.name,
        data_text=mark.text,
    )
    return Html(escaped(whisker) + point)


# ---- parts of a whole ------------------------------------------------------------------------


def stacked_bars(
    rows: Sequence[tuple[str, Sequence[tuple[str, float]]]],
    style_of: Callable[[str], str],
    unit: str,
    *,
    label: str,
    left: int = 90,
) -> Html:
    """One bar a row, divided in parts of its sum.

    Args:
        rows: (title, [(part, number)]).
        style_of: class of the style sheet of a part.
        unit: what the numbers count, in the plural.
        label: of the chart, for readers that do not see it.
        left: pixels for the titles of the rows.
    """
    x = Scale(0, 100, left, NARROW - 64)
    content = []
    for k, (title, parts) in enumerate(rows):
        top, total = BAR_STEP * k, sum(number for _, number in parts)
        y = top + BAR_STEP / 2 + 4
        content.append(element("text", title, class_="rowname end", x=left - 12, y=y))
        content += _bar(title, parts, x, top + (BAR_STEP - BAR) / 2, style_of, unit)
        content.append(element("text", f"{total:,.0f}", class_="tick", x=x.end + 8, y=y))
    return _svg("bars", label, content, NARROW, BAR_STEP * len(rows))


def _bar(title: str, parts, x: Scale, top: float, style_of, unit: str) -> list[Html]:
    content, total, done = [], sum(number for _, number in parts), 0.0
    for name, number in parts:
        if not number:
            continue
        share = 100 * number / total
        begin, end = x(done), x(done + share)
        done += share
        place = {"x": begin, "y": top, "width": round(max(end - begin, 0.5), 1), "height": BAR}
        told = {
            "data_name": f"{title}: {name}",
            "data_text": f"{number:,.0f} of {total:,.0f} {unit} ({share:.1f} %)",
        }
        content.append(element("rect", class_=f"part {style_of(name)}", **place, **told))
        if end - begin > 38:  # room for "88 %"
            at = {"x": (begin + end) / 2, "y": top + BAR / 2 + 4}
            style = f"inbar middle on-{style_of(name)}"
            content.append(element("text", f"{share:.0f} %", class_=style, **at))
    return content
