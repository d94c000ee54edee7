"""The bug hunt: short, complete programs, most of them with a mistake that somebody has published.

CASES            their titles and curves, by number
run, figure      what a program records, and a figure of it
guess, score     what is wrong, said before the program is read or after, and the points
source           the text of a program, to read and to mend
table            symptoms, their causes, the number that gives them away, and a test: for one's own projects
"""

from rlhf_lib.hunt.cases import CASES, figure, run
from rlhf_lib.hunt.score import guess, score, source
from rlhf_lib.hunt.symptoms import CAUSES, SYMPTOMS, causes, table

__all__ = ["CASES", "CAUSES", "SYMPTOMS", "causes", "figure", "guess", "run", "score", "source", "table"]
