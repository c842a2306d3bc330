"""Check whether a student's decision thresholds hold for your own people.

FOLDER has aligned faces, PERSON/IMAGE, of any size, or is a tar, a store of gdrd prepare or a .rec. All faces are
compared with each other (at most 10 of a person, and 6,000 in all and in each group). For each nominal false accept
rate (FAR) the command prints the share of pairs of different people (FAR) and of one person (TAR) that the stored
threshold accepts, with 95 % intervals over people. A threshold holds if the interval of its FAR contains the nominal
rate; "too loose" and "too strict" say on which side it is. Where there are too few people, only "too loose" can be
seen.

The people must be others than those whom the student was trained on, and all with one name: the same person in two
folders looks like a false accept. The exit status is 0 if all judged thresholds hold, 3 if one does not or none could
be judged, and 2 for a mistake.

With --teacher faces are compared as probes with a gallery that the teacher embeds at full size. With groups, folders
GROUP/PERSON/IMAGE or lines PERSON,GROUP of --groups, the thresholds are also judged on pairs within each group.
--blur, --motion, --noise and --jpeg degrade all faces first, or with --teacher only the probes.

Examples:
  gdrd check-thresholds MY_PEOPLE
  gdrd check-thresholds MY_PEOPLE --model exported --groups groups.csv --json
"""

import argparse
import json

from gdrd_jax.cli.common import ArgumentParser, add_degradation, guarded
from gdrd_jax.inference.pretrained import DEFAULT
from gdrd_jax.utils.files import user_path

NOT_HELD = 3  # exit status


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("faces", type=user_path, metavar="FOLDER", help="aligned faces, PERSON/IMAGE or GROUP/PERSON/IMAGE")
    add("--model", default=DEFAULT, help=f"a student with thresholds (default: {DEFAULT})")
    add("--teacher", default="", metavar="T", help="FILE.onnx: check the thresholds against galleries of the teacher")
    add("--far", type=float, nargs="+", metavar="F", help="nominal rates (default: 0.1 to 0.0001, as far as supported)")
    add("--groups", type=user_path, metavar="FILE.csv", help="lines PERSON,GROUP")
    add_degradation(parser)
    add("--json", action="store_true", help="print JSON")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit status."""
    failed = []

    def work() -> None:
        given = arguments(argv)
        from gdrd_jax.data.degradation import STRENGTHS
        from gdrd_jax.evaluation.threshold_report import check, text, verdicts

        found = check(
            given.faces, given.model, given.far, teacher=given.teacher, groups=given.groups,
            strengths={name: getattr(given, name) for name in STRENGTHS},
        )  # fmt: skip
        judged = verdicts(found)
        failed.append(not all(judged) or not judged)
        print(json.dumps(found, indent=1) if given.json else text(found))

    return guarded(work, resumes=False) or NOT_HELD * any(failed)
