"""Charts show the numbers of the tables on their pages."""

import xml.etree.ElementTree as ElementTree

import speed_chart


def test_the_chart_of_speed_shows_the_numbers_of_its_tables():
    tables = speed_chart.tables(speed_chart.PAGE.read_text())
    expected = {
        f"{loss}, {size}: {name}": f"{ratio:.2f}"
        for (loss, size), rows in tables.items()
        for name, ratio in rows.items()
    }
    groups = ElementTree.parse(speed_chart.FIGURE).iter("{http://www.w3.org/2000/svg}g")
    drawn = {group.get("id"): "".join(group.itertext()).strip() for group in groups}
    shown = {name: text for name, text in drawn.items() if name in expected}
    assert len(tables) == 4
    assert shown == expected, "draw it again: python docs/snippets/speed_chart.py"
