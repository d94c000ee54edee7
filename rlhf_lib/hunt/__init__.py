"""The bug hunt: short, complete programs, most of them with a mistake that somebody has published.

CASES            their titles and curves, by number
run              what a program records
tell, figure     that in figures, and as a figure
guess, score     what is wrong, said before the program is read or after, and the points
read, source     the text of a program, to read and to mend
table            symptoms, their causes, the number that gives them away, and a test: for one's own projects
"""

from rlhf_lib.hunt.cases import CASES, figure, run, tell
from rlhf_lib.hunt.score import guess, read, score, source
from rlhf_lib.hunt.symptoms import CAUSES, SYMPTOMS, causes, table

__all__ = ["CASES", "CAUSES", "SYMPTOMS", "causes", "figure", "guess", "read", "run", "score", "source", "table", "tell"]
