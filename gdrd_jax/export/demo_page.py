"""The page of `gdrd demo` in the browser; everything stays on this computer."""

import base64
import html
import os

import numpy as np

from gdrd_jax.export.demo import RESOLUTIONS, Demo, Row
from gdrd_jax.galleries.gallery import Match
from gdrd_jax.utils.errors import GdrdError, require
from gdrd_jax.utils.pictures import png
from gdrd_jax.utils.ports import listening, port_error

HOST = "127.0.0.1"
FORGET = (600, 3600)  # seconds between two searches for old uploads, and seconds after which an upload is old
VERDICTS = {
    True: '<span class="same">the same person</span>',
    False: '<span class="other">not the same person</span>',
    None: "",
}

STYLE = """
.faces img { width: 128px; height: 128px; max-width: none; display: block; margin: 0; border-radius: 4px }
.faces img.low { image-rendering: pixelated }
.faces table { border-collapse: collapse; width: 100% }
.faces th, .faces td { padding: .5rem .75rem; text-align: left }
.faces table, .faces tr, .faces th, .faces td { border: 0 solid var(--border-color-primary) !important }
.faces tr + tr { border-top-width: 1px !important }
.faces b { font-size: 1.4rem; font-variant-numeric: tabular-nums; display: block }
.faces small { opacity: .75; display: block; font-size: .85rem; max-width: 24rem }
.faces p small { max-width: none }
.faces .same { color: #1a9641 } .faces .other { color: #e0402f }
.faces h3 { margin: 1.5rem 0 .5rem } .faces .matches { display: flex; flex-wrap: wrap; gap: 1rem }
.faces figure { margin: 0; width: 128px } .faces figcaption { overflow-wrap: anywhere }
.faces .sentence { border-left: 4px solid #d7301f; padding: .5rem 1rem; font-size: 1.1rem }
"""


def answer(demo: Demo, first: str | None, second: str | None) -> str:
    """The page's HTML for two files; a sentence if one of them cannot be used."""
    try:
        faces = demo.face(first, "the first picture"), demo.face(second, "the second picture")
        rows, matches = demo.compare(*faces), demo.matches(faces[0]) if demo.gallery else []
    except GdrdError as error:
        text = str(error)
        return f'<div class="faces"><p class="sentence">{html.escape(text[0].upper() + text[1:])}.</p></div>'
    return f'<div class="faces">{_table(demo, rows)}{_found(demo, matches) if matches else ""}</div>'


def _table(demo: Demo, rows: list[Row]) -> str:
    titles = ["pixels", "first", "second", "student", *([demo.teacher.name] if demo.teacher else [])]
    lines = ["<tr>" + "".join(f"<th>{html.escape(title)}</th>" for title in titles) + "</tr>"]
    for row in rows:
        scores = [f"<small>quality {score:.2f}</small>" for score in row.qualities or ()] or ["", ""]
        cells = [f"{row.resolution}x{row.resolution}" if row.resolution else "as they are"]
        cells += [f"{_image(face)}{score}" for face, score in zip(row.faces, scores)]
        cells += [_student(row), *([f"<b>{row.teacher:.3f}</b>"] if demo.teacher else [])]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table>{''.join(lines)}</table><p><small>{_legend(demo)}</small></p>"


def _student(row: Row) -> str:
    if row.student is None:
        return "<small>none of this size</small>" if row.resolution else ""
    return f"<b>{row.student:.3f}</b>{VERDICTS[row.same]}<small>{html.escape(row.remark)}</small>"


def _legend(demo: Demo) -> str:
    text = (
        "Similarities are cosines of embeddings, -1 to 1. At its threshold, a student falsely accepts at most a share "
        f"of {demo.far:g} of the pairs of different people that the threshold was learned on."
    )
    if any(student.quality for student in demo.students.values()):
        text += " Quality is how recognizable a face is to the student, 0 to 1."
    if demo.teacher:
        text += (
            f" {demo.teacher.name} gets the reduced faces enlarged again (bicubic). It has no threshold here, and its "
            "similarities have another scale than a student's."
        )
    return html.escape(text)


def _found(demo: Demo, matches: list[tuple[np.ndarray | None, Match]]) -> str:
    figures = [
        f"<figure>{'<small>its file is gone</small>' if face is None else _image(face)}"
        f"<figcaption>{html.escape(match.id)}<b>{match.similarity:.3f}</b></figcaption></figure>"
        for face, match in matches
    ]
    title = f"Most similar to the first face at {demo.searcher.resolution} pixels, of {len(demo.gallery)} faces"
    return f'<h3>{title}</h3><div class="matches">{"".join(figures)}</div>'


def _image(face: np.ndarray) -> str:
    low = ' class="low"' if len(face) <= max(RESOLUTIONS) else ""
    return f'<img{low} alt="" src="data:image/png;base64,{base64.b64encode(png(face)).decode()}">'


def check_server(port: int) -> None:
    """Checks, before galleries are read, that `serve` can work.

    Raises:
      GdrdError: the port is in use, or gradio is not installed.
    """
    listening(HOST, port).close()
    require("gradio", "demo")  # which takes seconds to import


def serve(demo: Demo, port: int):
    """Serves the page at http://127.0.0.1:PORT, to this computer alone, in a thread.

    Returns:
      The running `gradio.Blocks`; `block_thread()` waits for Ctrl-C, `close()` stops it.

    Raises:
      GdrdError: gradio is not installed, or the port is in use.
    """
    # Without these, Gradio sends usage data to its makers and keeps faces in the browser.
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_RUN_HISTORY="False")
    gradio = require("gradio", "demo")
    with gradio.Blocks(title="gdrd_jax", delete_cache=FORGET) as page:
        kind = "photographs of one person each" if demo.align else "aligned, square faces"
        gradio.Markdown(f"# Two faces at 8, 16 and 32 pixels\nAdd two pictures: {kind}.")
        with gradio.Row():
            pictures = [gradio.Image(label=label, type="filepath", height=220) for label in ("First", "Second")]
        button = gradio.Button("Compare", variant="primary")
        result = gradio.HTML(padding=False)
        button.click(lambda first, second: answer(demo, first, second), pictures, result)
    for picture in pictures:
        # Gradio's own function decodes the file, and reports a bad one only as "Error".
        picture.preprocess = lambda payload: payload and payload.path
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}  # others would be downloaded
    try:
        page.launch(
            server_name=HOST, server_port=port, share=False, ssr_mode=False, quiet=True, inbrowser=False,
            prevent_thread_lock=True, footer_links=[], css=STYLE, theme=gradio.themes.Default(**fonts),
        )  # fmt: skip
    except (OSError, OverflowError) as error:
        raise port_error(HOST, port) from error
    return page
