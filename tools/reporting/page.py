"""The page of tools/report.py around its sections."""

from collections.abc import Sequence
from pathlib import Path

from reporting.html import Html, count, element, fixed
from reporting.parts import Section, chip, groups_with_classes
from reporting.runs import Run

HERE = Path(__file__).parent
STYLE, SCRIPT = "page.css", "page.js"
# Nothing may be loaded: all that is shown is in the page.
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)
NAMED_RUNS = 4  # in the title
TASKS = {
    "instance": "Detection",
    "classification": "Image classification",
    "sem_seg": "Semantic segmentation",
}


def page(runs: Sequence[Run], sections: Sequence[Section], title: str | None = None) -> str:
    """The whole HTML document.

    Args:
        runs: at least one.
        sections: in the order of the page.
        title: None: the labels of the runs, or their number if there are many.
    """
    if not title:
        named = len(runs) <= NAMED_RUNS
        title = ", ".join(r.label for r in runs) if named else f"{len(runs)} runs compared"
    head = [
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", _asset(STYLE)),
    ]
    links = [element("li", element("a", s.short, href=f"#{s.key}")) for s in sections]
    contents = element("nav", element("ol", links), aria_label="contents")
    parts = [
        element("section", element("h2", s.title), s.content, id=s.key, aria_label=s.short)
        for s in sections
    ]
    body = [
        contents,
        element("main", _header(runs, title), parts),
        element("div", id="tip", role="status", aria_live="polite", hidden=True),
        element("script", _asset(SCRIPT)),
    ]
    document = element("html", element("head", head), element("body", body), lang="en")
    return f"<!doctype html>\n{document}\n"


def _asset(name: str) -> Html:
    return Html("\n" + (HERE / name).read_text(encoding="utf-8"))


def _header(runs: Sequence[Run], title: str) -> Html:
    return element(
        "header",
        element("p", f"{TASKS[runs[0].task]} on {runs[0].record['dataset']}", class_="eyebrow"),
        element("h1", title),
        element("p", _about(runs), class_="about"),
        _figures(runs[0]) if len(runs) == 1 else None,
    )


def _about(runs: Sequence[Run]) -> str:
    first = runs[0].record
    parts = [count(len(runs[0].names), "class", "classes")]
    if first["protocol"].get("images"):
        parts.append(count(first["protocol"]["images"], "test image"))
    if len(runs) > 1:
        return ", ".join([count(len(runs), "run"), *parts])
    run = first["run"]
    if run.get("loss"):
        parts.append(f"trained with {run['loss']}")
    if run.get("iteration") is not None:
        parts.append(count(run["iteration"], "iteration"))
    return ", ".join(parts)


def _figures(run: Run) -> Html | None:
    """The numbers that a reader looks for first."""
    if not run.measures:
        return None
    measure = run.measures[0]
    shown = [("all", measure.total), *((g, measure.groups[g]) for g in groups_with_classes(run))]
    cells = [
        element(
            "div",
            element("dt", measure.title, " ", chip(run, g)),
            element("dd", fixed(run.total(m))),
        )
        for g, m in shown
    ]
    return element("dl", cells, class_="figures")
