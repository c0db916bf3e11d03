"""Where errors of the runs of tools/report.py go, by group: to which classes, or to background."""

from collections.abc import Sequence

from lt_det.data import dataset_info
from lt_det.errors import LtDetError
from lt_det.evaluation.classification_metrics import confusion_matrix
from lt_det.evaluation.classification_predictions import PREDICTIONS_FILE, read_class_predictions
from lt_det.evaluation.error_analysis import confusion_errors, detection_errors
from lt_det.evaluation.groups import GROUPS
from lt_det.evaluation.lvis_ground_truth import load_ground_truth
from reporting.charts import stacked_bars
from reporting.detections import read_matches
from reporting.html import Html, element, figure, note
from reporting.maps import kept_maps
from reporting.parts import Section, group_word, groups_with_classes
from reporting.pictures import register_sets
from reporting.runs import Run, said_of

# What the numbers count, by task.
UNITS = {"instance": "objects or detections", "classification": "images", "sem_seg": "pixels"}
# Outcomes that are not a class -> words, class of the style sheet.
OUTCOMES = {
    "found": ("found", "found"),
    "right": ("right", "found"),
    "localisation": ("wrong place", "near"),
    "duplicate": ("second detection", "twice"),
    "background": ("nothing there", "background"),
}
TITLES = {
    "instance": ("What became of the objects of a group", "What detections of a group are on"),
    "classification": (
        "What images of a group were taken for",
        "What images taken for a group are",
    ),
    "sem_seg": ("What pixels of a group were taken for", "What pixels taken for a group are"),
}


def errors_of(run: Run) -> dict:
    """See `lt_det.evaluation.error_analysis`.

    Raises:
        MissingFileError, DataError: the run did not keep what this needs.
    """
    if run.task == "instance":
        register_sets(run)
        info = dataset_info(run.record["dataset"])
        predictions, matches = read_matches(run)
        gt = load_ground_truth(info.json_file, info.category_ids)
        return detection_errors(gt, predictions, matches, run.groups)
    number = len(run.names)
    if run.task == "classification":
        found = read_class_predictions(run.inference / PREDICTIONS_FILE, number)
        confusion = confusion_matrix(found["labels"], found["top_classes"][:, 0], number)
    else:
        register_sets(run)
        confusion = sum(confusion_matrix(*pair, number) for pair in kept_maps(run))
    return confusion_errors(confusion, run.groups)


def errors_section(runs: Sequence[Run]) -> Section:
    """Bars of what was missed and of what was wrongly found, for each run."""
    shown, missing = [], []
    for run in runs:
        try:
            errors = errors_of(run)
        except LtDetError as error:
            missing.append((run, f"no errors by group: {error}"))
            continue
        shown += [element("h3", run.label) if len(runs) > 1 else None, *error_charts(run, errors)]
    if shown:
        shown = [element("p", _about(runs[0]), class_="muted"), _legend(runs[0]), *shown]
    notes = [note(text) for text in said_of(missing, runs)]
    return Section("errors", "Why: where errors go", "Errors", shown + notes)


def _legend(run: Run) -> Html:
    """What the colours of the parts mean."""
    outcomes = ["found", *(f"class_{g}" for g in groups_with_classes(run) or ["all"])]
    if run.task == "instance":
        outcomes += ["localisation", "duplicate", "background"]
    marks = [
        element("li", element("i", class_=f"swatch {_style(o)}"), outcome_word(run, o))
        for o in outcomes
    ]
    return element("ul", marks, class_="legend")


def _about(run: Run) -> str:
    if run.task != "instance":
        return f"The numbers beside the bars are {UNITS[run.task]}."
    return (
        "Boxes at an IoU of 0.5. Left, what became of each object: a detection of another class at "
        "its place, one of its own class out of place, or nothing at all; what is right for "
        "another object does not count. Right, what the best detections of each class are on, as "
        "many as it has objects. Detections of classes that are not annotated for their image are "
        "left out on the right."
    )


def error_charts(run: Run, errors: dict) -> list:
    """A chart of either kind.

    Args:
        run: for the names of the groups.
        errors: see `errors_of`.
    """
    cells = []
    for kind, title in zip(("missed", "false_positives"), TITLES[run.task], strict=True):
        rows = [
            (group_word(run, letter), [(outcome_word(run, o), n) for o, n in outcomes.items()])
            for letter, outcomes in errors[kind].items()
            if sum(outcomes.values())
        ]
        styles = {outcome_word(run, o): _style(o) for own in errors[kind].values() for o in own}
        if rows:
            chart = stacked_bars(rows, styles.__getitem__, UNITS[run.task], label=title)
            cells.append(figure([element("h4", title), chart], class_="cell"))
    return [element("div", cells, class_="cells")]


def outcome_word(run: Run, outcome: str) -> str:
    """ "wrong place", "a rare class"."""
    if outcome in OUTCOMES:
        return OUTCOMES[outcome][0]
    letter = outcome.removeprefix("class_")
    return f"another {group_word(run, letter)} class" if letter in GROUPS else "another class"


def _style(outcome: str) -> str:
    if outcome in OUTCOMES:
        return OUTCOMES[outcome][1]
    return f"g-{outcome.removeprefix('class_')}"
