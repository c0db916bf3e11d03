"""HTML of tools/report.py: elements whose text is escaped, and the pieces that sections share."""

import html
import math
from collections.abc import Sequence

# Elements without an end tag.
_VOID = {"br", "col", "hr", "input", "meta"}
NO_VALUE = "–"


class Html(str):
    """Text that is HTML already. All other text is escaped when it becomes part of an element."""


def escaped(content) -> Html:
    """`content` as HTML: escaped unless it is `Html`; a list is joined, None is nothing."""
    if isinstance(content, Html):
        return content
    if content is None:
        return Html()
    if isinstance(content, (list, tuple)):
        return Html("".join(escaped(part) for part in content))
    return Html(html.escape(str(content)))


def element(tag: str, /, *children, **attributes) -> Html:
    """One element.

    Args:
        tag: its name.
        *children: see `escaped`.
        **attributes: "class_" is class, "data_key" is data-key, "viewBox" stays. None and False
            leave an attribute out, True gives one without a value.
    """
    parts = [tag]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(key)
        elif value is not None and value is not False:
            parts.append(f'{key}="{html.escape(str(value))}"')
    start = f"<{' '.join(parts)}>"
    return Html(start if tag in _VOID else f"{start}{escaped(children)}</{tag}>")


def sentence(text: str, capital: bool = True) -> str:
    """`text` with a full stop, and a capital letter at its start."""
    first = text[:1].upper() if capital else text[:1]
    return f"{first}{text[1:].rstrip('.')}."


def note(text: str) -> Html:
    """A sentence about something that is missing, or that limits what is shown."""
    return element("p", text, class_="note")


def figure(content, caption=None, **attributes) -> Html:
    """A chart or picture with a caption below."""
    below = element("figcaption", caption) if caption else None
    return element("figure", content, below, **attributes)


def table(head: Sequence, rows: Sequence[Sequence], *, text_columns: int = 1, **attributes) -> Html:
    """A table that scrolls on its own where it is wider than the page.

    Args:
        head: titles of the columns.
        rows: cells; an `Html` that begins with ``<t`` is a cell of its own making.
        text_columns: so many columns at the left hold text, the others numbers.
        **attributes: of the table.
    """
    kinds = ["text" if i < text_columns else "number" for i in range(len(head))]

    def cell(kind, content):
        if isinstance(content, Html) and content.startswith("<t"):
            return content
        return element("td", content, class_=kind)

    titles = [element("th", t, class_=k, scope="col") for t, k in zip(head, kinds, strict=True)]
    body = [element("tr", [cell(k, c) for k, c in zip(kinds, row, strict=True)]) for row in rows]
    content = element("thead", element("tr", titles)), element("tbody", body)
    return element("div", element("table", content, **attributes), class_="scroll")


def fixed(value: float | None, digits: int = 1) -> str:
    """A number with so many digits after the point; a dash for None and NaN."""
    if value is None or math.isnan(value):
        return NO_VALUE
    return f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 1) -> str:
    """`fixed` with the sign of what is above 0."""
    text = fixed(value, digits)
    return f"+{text}" if value is not None and value > 0 else text


def count(number: float, word: str, plural: str | None = None) -> str:
    """ "1 class", "1,203 classes": a number with its noun."""
    return f"{number:,.0f} {word if number == 1 else plural or word + 's'}"
