"""The chart of the page "Speed", drawn from its tables: ``python docs/snippets/speed_chart.py``."""

import re
from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt

DOCS = Path(__file__).parents[1]
PAGE, FIGURE = DOCS / "speed.md", DOCS / "_static" / "speed.svg"
TITLE = re.compile(r"^(\w+), .*two layers of (\d+), batch (\d+):$", re.MULTILINE)
COLOURS = {"DDPG": "#2f7fd1", "TD3": "#e07b39"}
GREY = "#808080"  # reads on white and on black
Setting = tuple[str, str]  # loss and size


def tables(text: str) -> dict[Setting, dict[str, float]]:
    """The rows of each table of one update: times of hand-written PyTorch's, means of the runs."""
    found = {}
    for title in TITLE.finditer(text):
        loss, width, batch = title.groups()
        rows = text[title.end() :].strip().split("\n\n")[0].splitlines()[2:]
        cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
        ratios = {name: mean(map(float, ratio.split(","))) for name, _, ratio, _ in cells}
        found[loss, f"layers of {width}, batch {batch}"] = ratios
    return found


def draw(found: dict[Setting, dict[str, float]]) -> plt.Figure:
    """One panel for each size, one bar for each row of its tables; its number has the row as id."""
    sizes = list(dict.fromkeys(size for _, size in found))
    names = list(dict.fromkeys(name for rows in found.values() for name in rows))
    figure, panels = plt.subplots(
        1, len(sizes), figsize=(6, 5.2), sharey=True, layout="constrained"
    )
    for panel, size in zip(panels, sizes, strict=True):
        for offset, (loss, colour) in zip((-0.2, 0.2), COLOURS.items(), strict=True):
            rows = found[loss, size]
            places = [names.index(name) + offset for name in rows]
            bars = panel.barh(places, list(rows.values()), 0.36, color=colour, label=loss)
            for label, name in zip(panel.bar_label(bars, fmt=" %.2f"), rows, strict=True):
                label.set_gid(f"{loss}, {size}: {name}")
        panel.axvline(1, color=GREY, alpha=0.5, linewidth=1, linestyle="--")
        panel.set(title=size, xlim=(0, 3.6))
        panel.set_yticks(range(len(names)), [name.replace(", ", ",\n") for name in names])
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    panels[0].legend(frameon=False, loc="lower right")
    figure.supxlabel("time of one update, hand-written PyTorch = 1", fontsize=11)
    return figure


def main() -> None:
    """Draw the figure of the page's numbers."""
    greys = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    style = {**dict.fromkeys(greys, GREY), "font.size": 11, "axes.titlesize": 11}
    with plt.rc_context({**style, "svg.hashsalt": "speed", "svg.fonttype": "none"}):
        figure = draw(tables(PAGE.read_text()))
        figure.savefig(FIGURE, transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main()
