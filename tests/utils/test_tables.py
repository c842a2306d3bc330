"""Tables of text cells."""

from gdrd_jax.utils.tables import html_table, markdown_table, text_table

LINES = [["row", "AUC %"], ["student", "9.50"], ["<b>", "100.00"]]


def test_text_is_aligned_by_column():
    assert text_table(LINES) == "row       AUC %\nstudent    9.50\n<b>      100.00"


def test_markdown_has_a_rule_below_the_heading():
    assert markdown_table(LINES) == "| row | AUC % |\n| --- | --- |\n| student | 9.50 |\n| <b> | 100.00 |\n"


def test_html_is_escaped_and_notes_stand_in_their_cells():
    page = html_table(LINES, {(2, 1): "90 & 100"})
    assert "<tr><th>row</th><th>AUC %</th></tr>" in page
    assert "<tr class=first><td>student</td><td>9.50</td></tr>" in page
    others = html_table(LINES, {(1, 1): "theirs"}, {1})
    assert "<td>student</td><td class=quoted>9.50<span>theirs</span></td>" in others
    assert "<tr><td>&lt;b&gt;</td><td>100.00<span>90 &amp; 100</span></td></tr>" in page
