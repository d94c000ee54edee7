"""Figures in prose: what a reading of the chapters or a table of a page quotes, a stored output or summary has printed.

A figure is a number in the text of a worked notebook, outside of cards, code, formulas, headings and references. A bare digit
is none, and outside of a reading (a text that folds) no whole number below a thousand or tenth, which are settings there.

It is tied when one line has a number that rounds to it. The lines are what the cells since the last folded reading have printed
or hold, and the next cell's. Where a number one higher or lower in the last digit stands there too, the line must hold another
figure of the same sentence, row or column as well. What is tied in another way stands in ALSO, DERIVED or GIVEN, as often as it
is quoted.
"""

import functools
import json
import math
import re
from collections import Counter
from decimal import Decimal
from itertools import chain, pairwise
from pathlib import Path
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import lower as board
from rlhf_lib import blind, checkpoints, comparisons, corpus, labels
from rlhf_lib.files import read_json
from rlhf_lib.pairwise import summary as of_pairs
from rlhf_lib.pipelines import assistant_settings

ROOT = Path(__file__).resolve().parents[1]
ASSISTANT = ROOT / "data" / "checkpoints" / "assistant"
RESULTS = ROOT / "benchmarks" / "results"
PUBLISHED = ROOT / "data" / "checkpoints" / "laptop-0"
LARGE = ROOT / "data" / "checkpoints" / "large"
CHAPTERS = {path.name[:2]: path for path in sorted((ROOT / "solutions").glob("[01]*.ipynb")) if "report" not in path.name}

PAGES = ("README", "NEGATIVE_RESULTS")

# Other lines that a text quotes: of a cell, or of what `stored` gathers.
ALSO = {
    "01/leak-reading": "summary",
    "01/found-b": "02/sizes",
    "01/found-c": "settings",
    "01/questions": "settings",
    "02/depth-read": "02/train",
    "03/loss-reading": "03/ladder-figure",
    "03/positions-reading": "settings",
    "03/overfitting-reading": "03/ladder-figure",
    "03/invest-b-found": "03/investigation-a",
    "03/published": "settings 03/data",
    "03/invest-c-found": "03/ladder-figure 03/published-score lower settings",
    "03/questions": "settings 02/sizes",
    "04/same-text-read": "settings",
    "04/questions": "settings",
    "05/agreement-reading": "05/counts",
    "05/intervals": "summary",
    "05/active-reading": "summary",
    "05/investigation-5B-found": "05/active-figure",
    "05/questions": "05/second-reading",
    "06/what": "settings",
    "06/line-read": "06/recalibrate",
    "06/loss-question": "06/data 06/calibration-picture",
    "06/test-read": "05/second-reading",
    "06/curve-why": "06/data 06/frozen",
    "06/curve-read": "06/data 06/test 06/frozen 09/weak-reward",
    "06/words-read": "06/curve",
    "06/frozen-read": "06/test",
    "06/found-6C": "06/curve",
    "06/found-6A": "06/investigation-6C 09/weak-reward",
    "06/found-6B": "06/curve 06/frozen",
    "07/healthy-note": "07/healthy-panels",
    "08/kl-why": "06/data settings",
    "08/form-why": "settings",
    "08/root-kl-read": "08/train",
    "08/found-8-B": "08/read-samples",
    "08/found-8-C": "08/train",
    "09/proxy-gold-read": "09/weak-reward 09/interval-picture",
    "09/form-read": "summary settings 09/form-table",
    "09/best-of-n-read": "09/interval-picture",
    "09/estimate-why": "09/interval-picture",
    "09/push-why": "labels settings",
    "09/push-read": "06/test",
    "12/own-round-why": "09/strict-best-of-n",
    "12/own-round-read": "09/strict-best-of-n",
    "12/frontier-ask": "12/frontier-table",
    "12/frontier-read": "12/frontier-table",
    "12/readers-read": "12/frontier-table 12/investigation-12-B",
    "09/frontier-read": "09/push-compare 09/best-of-n-curve 09/strict-best-of-n",
    "09/push-along-why": "pushed blind",
    "09/investigation-9-A-found": "09/readers-table 09/frontier 09/push-along 09/large-read",
    "09/gao-seen": "09/frontier 09/push-along 09/large-read",
    "09/sense-why": "blind",
    "09/sense-seen": "09/push-along 09/readers-table",
    "09/negative-read": "09/frontier settings",
    "09/readers-why": "blind",
    "09/readers-read": "blind 09/readers-table",
    "10/compare-read": "10/leak",
    "10/found-10-C": "10/read-before",
    "09/large-read-why": "read-large summary large",
    "09/large-read-seen": "09/readers-table",
    "08/large-why": "large",
    "08/large-seen": "large card settings",
    "09/blind-read": "09/readers-table",
    "09/questions": "09/readers-test 09/frontier",
    "README/What-it-reaches": "runs card summary blind 09/readers-table 09/readers-test",
    "README/A-larger-writer,-to-read": "large 09/large-read",
    "README/Seven-ways,-one-reward": "12/readers 12/frontier-table",
    "README/How-fast-it-is": "speed",
    "08/kl-read": "summary",
    "11/verdicts-read": "10/agreement",
    "README/The-assistant": "assistant 11/blind 11/kinds 11/question 11/ranks",
    "NEGATIVE_RESULTS/The-language-model": "03/investigation-a 03/investigation-b 03/overfitting-run 02/investigation-2C "
    "10/sense 03/ladder-figure 03/investigation-c 10/read-before 10/investigation-10-C 06/test summary runs card large lower",
    "NEGATIVE_RESULTS/Labels-and-the-reward-model": "06/investigation-6A 06/test 06/frozen 06/curve 06/investigation-6B "
    "05/investigation-5B-answer 05/active-figure 10/leak 10/compare 10/investigation-10-A 10/absolute 09/sense-judge",
    "NEGATIVE_RESULTS/PPO-and-its-relatives": "08/investigation-8-A 08/investigation-8-B 08/investigation-8-C 08/read-samples "
    "09/investigation-9-A 09/push-along 09/gao-fit 09/frontier 09/best-of-n-curve 09/strict-best-of-n 07/investigation-7-A "
    "12/frontier-table 12/investigation-12-B 12/readers",
    "NEGATIVE_RESULTS/The-assistant": "11/investigation-11-A 11/investigation-11-B 11/investigation-11-C "
    "11/blind 11/kinds 11/heads assistant",
    "NEGATIVE_RESULTS/The-bug-hunt": "13/investigation-13-A 13/investigation-13-B",
}

# Arithmetic: every number in it, but for single digits and powers of ten, is itself printed or given.
DERIVED = {
    "12/assistant-read": "0.15=0.79-0.64 0.20=1.15-0.95",
    "12/falling-read": "3.6=158.6-155.0 5.0=160.0-155.0",
    "13/found-13-B": "0.50=5.75-5.25",
    "12/frontier-ask": "0.15=0.49-0.34",
    "01/found-a": "0.03=2.145-2.115 0.019=2.115-2.096 0.063=2.115-2.052",
    "01/found-b": "11%=2.19/1.97-1 9%=2.39/2.19-1 0.29=1.97-1.68 0.15=2.54-2.39 0.15=2.69-2.54 1.0=(524,288+524,288)/1000/1000",
    "01/questions": "2.06=ln(15)/ln(2)/1.9 1.61=ln(40)/ln(2)/3.3",
    "02/size-read": "85=12*12*768**2/1000/1000 39=50,257*768/1000/1000",
    "02/reversal-idea": "2.77=ln(16)",
    "02/found-2A": "2.77=ln(16) 2.77=ln(16)",
    "02/found-2C": "2.83=ln(17) 58=184-126",
    "03/adam-rare-reading": "1,000=1/(1-0.999) 10=1/(1-0.9)",
    "03/invest-a-found": "0.06=5.42-5.36 0.21=5.96-5.75 0.1=5.50-5.42 0.5=5.96-5.42",
    "03/invest-b-found": "480=1920/4 30=1920/64 6e-3=3e-3*sqrt(64/16) 0.04=5.54-5.50 480=1920/4 30=1920/64 30=1920/64",
    "03/published": "2.9=700*32*128/1000/1000 1.7=700*32*128/1,651,060",
    "03/invest-c-found": "0.4=2.563-2.165 0.01=2.576-2.563 0.07=2.238-2.165 0.068=1.85553-1.78788 13=211.08-198.46",
    "03/questions": "3.7=(4,196,608-524,288)/1000/1000 2.9=700*32*128/1000/1000",
    "04/tail-read": "30%=(100-70)/100",
    "04/window-read": "0.03=3.347-3.315",
    "04/questions": "1,048,576=2*4*128*256*4",
    "05/examples-reading": "73%=2,400/3,297",
    "05/crowd-reading": "90%=1-0.1",
    "05/agreement-reading": "23=10+7+1+5 28%=1,800/6,539",
    "05/interval-reading": "40%=1-0.95**10",
    "05/kappa-reading": "0.05=(0.91-0.80)/2",
    "05/investigation-5A-found": "115=1,150*(100-90)/100",
    "05/gold-reading": "64.6%=3,289/5,088",
    "05/your-labels-reading": "81.5%=(1-1/10)**2+2*(1/10/2)**2 90%=1-1/10",
    "05/investigation-5B-found": "350=1,050/3",
    "05/questions": "1.55=ln(1+exp(-3))+3/2 0.69=ln(2) 0.86=0.860",
    "06/padding-read": "99%=1/(1+exp(-4.7))",
    "06/loss-question": "43%=658/1525 0.676=entropy((292+658/2)/1525)",
    "06/test-read": "102=70+32 117=70+10+5+32 94%=(70+32+(10+5)/2)/(70+10+5+32)",
    "06/calibration-read": "8%=7/(7+81) 0.95=61/(61+3) 0.84=(61+22/2)/(61+22+3) 0.68=41/(41+19) 0.58=(41+71/2)/(41+71+19) "
    "0.08=7/(7+81) 0.26=(7+68/2)/(7+68+81) 0.10=15/(15+131) 0.22=(15+59/2)/(15+59+131)",
    "06/curve-read": "2.8=8311/3000 15,000=8311*8311/3000-8311 2.8=8311/3000 68%=68/100",
    "06/found-6A": "6.6=100*(0.669-0.603) 64.6%=(0.669+0.615+0.603+0.647+0.694)/5 68%=68/100",
    "06/found-6C": "1,080=3000*(1-2*0.2)**2",
    "07/healthy-note": "14=(16+13+13)/3 16=4*4 17=(18+17+17)/3",
    "08/advantage-why": "0.08=(7*ln(7/5)+3*ln(3/5))/10 0.18=3*7*ln(7/3)/100 0.18=3*7*ln(7/3)/100",
    "08/first-minibatch-read": "0.21=0.038+1-0.824",
    "08/form-why": "0.009=0.08*(1.5*ln(1.5)-1/2)",
    "08/found-8-A": "0.06=1/sqrt(3*96)",
    "08/found-8-B": "0.08=sqrt(1.19/192)",
    "08/found-8-C": "0.10=1/sqrt(96)",
    "09/investigation-9-B-found": "0.03=0.18-0.15",
    "09/negative-read": "0.29=0.14+0.15 0.49=0.63-0.14",
    "09/readers-read": "0.30=0.77-0.47 0.15=0.62-0.47 76%=81/106",
    "09/questions": "0.09=sqrt((1/10/2+1/10/2)/3/4)",
    "10/turns-read": "63%=1-exp(-1)",
    "10/pairs-question": "36=9*8/2 36=9*8/2",
    "10/ppo-read": "0.82=0.91-0.09",
    "10/found-10-B": "2.8=12.7-9.9 0.39=0.08*4.9",
    "10/found-10-C": "0.149=2.093-1.944 0.045=1.624-1.579",
    "11/one-order-read": "10=100-90 44%=88/2/100 94%=(100+88)/2/100",
    "README/The-assistant": "135=134,515,008/1000/1000 22=30-8",
    "NEGATIVE_RESULTS/The-language-model": "0.04=5.54-5.50 58=184-126 2.4=100*1.96*sqrt(84.4/100*(1-84.4/100)/867)",
    "NEGATIVE_RESULTS/Labels-and-the-reward-model": "66.3%=575/867 6.6=100*(0.669-0.603) 3.0=100*1.96*sqrt(0.728*(1-0.728)/867) "
    "2.9=100*1.96*sqrt(0.736*(1-0.736)/867) 3.1=100*1.96*sqrt(0.662*(1-0.662)/867) 7.4=100*(0.736-0.662) 0.005=0.013/sqrt(8) "
    "0.075=(0.65-0.50)/2 0.03=1.96*sqrt(0.695*(1-0.695)/958) 0.59=2.66-2.07",
    "NEGATIVE_RESULTS/PPO-and-its-relatives": "0.06=1/sqrt(3*96)",
    "NEGATIVE_RESULTS/The-assistant": "0.18=1/sqrt(32) 0.18=1/sqrt(32) 4.3=100*1.96*sqrt(0.6966*(1-0.6966)/445)",
    "NEGATIVE_RESULTS/The-bug-hunt": "0.009=0.649-0.640",
}

# What nothing prints: settings, made-up examples, other people's results, bounds that a text sets.
GIVEN = {
    "00/models": "90%",  # of every play is training text
    "00/question": "7,500",  # words of VADER's
    "01/questions": "8,192 1.9 3.3 15 40 1.9 3.3",  # two friends' models
    "02/size-read": "12 50,257 768 12",  # GPT-2
    "02/choices-idea": "0.02",
    "02/reversal-idea": "16",
    "02/found-2A": "16",
    "03/compare-reading": "5%",
    "03/adam": "0.95 0.999 1,000",
    "03/adam-rare-reading": "30",
    "03/invest-a-found": "1.3",
    "03/invest-c-found": "1e-2 1e-3",
    "03/questions": "3.30 3.20",
    "03/next": "0.999",
    "04/read-after": "0.9",
    "04/ratio-read": "0.2",
    "04/found-4-B": "0.7",
    "05/intro": "4.3",  # a section of a paper
    "05/kappa": "90% 81%",  # two readers who do not look
    "05/kappa-reading": "0.83",
    "05/investigation-5A-found": "0.12 100",  # what is asked for; about 37 % of 275
    "05/gold": "7,500",
    "05/questions": "5% 95%",
    "06/test-why": "95%",
    "06/calibration-why": "80% 80%",
    "06/calibration-read": "85% 95% 25%",  # the middles of bins
    "06/dropout-read": "0.1",
    "06/found-6C": "15%",
    "07/clip-note": "1.2 0.8 0.5",
    "07/table": "20%",
    "07/own-note": "100 300",
    "07/healthy-note": "1e-2",
    "07/panels-note": "0.9",
    "07/broken-answer": "1e-2 3e-3 253 273 0.1",  # lines of minChatGPT's
    "07/questions": "3e-3 1.2",
    "08/rules-why": "20% 1% 1% 1%",
    "08/form-why": "1.5",
    "08/run-read": "10",
    "08/large-seen": "29",  # million weights of the gpu preset
    "README/How-fast-it-is": "69% 55%",  # of the operators' time, as `make bench ROWS="decode ppo" --profile` prints it
    "README/A-larger-writer,-to-read": "19 3.0",  # million weights; the sense that was aimed at
    "08/questions": "0.08 0.65",
    "09/interval-why": "95% 97.5%",
    "09/interval-read": "55%",
    "09/best-of-n-kl-why": "90%",
    "09/form-read": "0.1",
    "09/push-read": "0.03",
    "09/investigation-9-A-found": "150 0.7% 10.0%",  # good lines of the policy in data/labels/large.jsonl, 15 of 150
    "09/large-read-seen": "3.0",  # the sense that was aimed at
    "09/investigation-9-B-found": "0.02",
    "09/questions": "2,000 60% 60% 50%",
    "10/agree-why": "70% 80%",
    "10/agreement-read": "73%",  # Stiennon et al. 2020
    "10/length-read": "0.65",
    "10/strength-zero": "1.3",
    "10/ppo-read": "100%",
    "10/checkpoints-read": "0.15 280",
    "10/found-10-B": "0.08",  # the default of PPOConfig.kl_coef
    "10/questions": "70%",
    "10/sense-read": "200 70",  # benchmarks/read_before.py
    "README/What-is-where": "3.0",  # the version of a package
    "07/probe-idea": "0.3 0.3 0.3 0.3",
    "07/noise-note": "0.95",
    "11/intro": "96%",  # minChatGPT's
    "11/sft-run-why": "49,152",  # tokens of SmolLM2's
    "11/published-read": "10",  # the limit
    "11/blind-read": "16 16",
    "11/heads-read": "69.7%",  # README
    "11/mistakes-read": "28 386 501",  # lines of minChatGPT's
    "11/next": "11.7",  # an exercise
    "11/found-11-A": "0.03 32",
    "11/question-read": "16 16",
    # lines, pull requests and numbers of published programs, and of worked examples
    "13/found-13-A": "13 17 19 19",  # the numbers of cases
    "13/found-13-B": "12",
    "13/place-01": "386 390 480 484",
    "13/place-02": "166 192 218 88 96%",
    "13/place-03": "253 273",
    "13/place-04": "497 504 506 451",
    "13/place-05": "300 304",
    "13/place-07": "19 83 275",
    "13/place-08": "175 177 217 218",
    "13/place-09": "819 154 264 273",
    "13/place-10": "68 79 33 48",
    "13/place-11": "501 417",
    "13/place-12": "125 0.1 0.005",
    "13/place-13": "639 156 157 315 327",
    "13/place-14": "361 207 235 620 134 139",
    "13/place-15": "82 84",
    "13/place-16": "181 195 30 42 52",
    "13/place-18": "0.0 501 102 103 80 480 484",
    "13/place-19": "620 157 163 208 219 1000",
    "12/group-read": "0.98 49 92% 52%",  # (1 - p) / p and p**G + (1 - p)**G at p = 0.02
    "12/silent-read": "85% 1%",
    "12/denominators-why": "10 100",
    "12/sequence-why": "3% 1.03",
    "12/bias-why": "0.1 0.9 0.0576 81",
    "12/expected-read": "0.5 0.5",
    "12/own-read": "64",
    "12/falling-read": "100% 50%",
    "12/investigation-12-C-found": "95% 128 1,024",
    "12/frontier-why": "6,144 6,144 3,072 0.08 3e-4 2e-4 1e-4",
    "12/frontier-read": "48",
    "12/investigation-12-A-found": "512",
    "12/readers-why": "1,125",
    "12/rounded-read": "1.5 0.2",
    "12/questions": "70% 70% 0.80 0.84 0.71 99%",
    "12/next": "6,144",
    "README/The-assistant": "0.1 30 95% 16 12 24 25 58.0%",  # the version of a package, SmolLM2's blocks
    "NEGATIVE_RESULTS/The-language-model": "29 200 200 22 19",  # sizes of models, pieces and an interval; steps; passes
    "NEGATIVE_RESULTS/Labels-and-the-reward-model": "2,593 1.96",
    "NEGATIVE_RESULTS/PPO-and-its-relatives": "0.08 0.08 96 96 0.04 2,048",
    "NEGATIVE_RESULTS/The-assistant": "32 1.96",
    "NEGATIVE_RESULTS/Measured-once,-not-repeatable-by-a-command": "70% 0.84 1e-4 55% 3e-4 63% 79% 83% 2,500 10,000 1.39 1.73 "
    "1.37 1.49 74.8% 79.8% 1.07 1.27 1.49 0.96 0.42 0.49 69% 72% 2.2 1e-3 0.03 7e-4 69.4% 58.0% 76.2% 67.6% 4,096 8,192 20% "
    "2,751 65% 67% 67.7% 2,000 70%",
    "06/found-6A": "4.7",
    "07/baseline-note": "150",
    "07/found-7-B": "0.01",
    "03/ladder-reading": "1.85 0.85",
}


# ----------------------------------------------------------------------------------------- figures of a text

NUMBER = re.compile(r"(?<![\w.,^])(?!0\d)(\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?)(?!\w)(\s?%)?")
FIGURES = r"\d[\d.]*(?:(?:,|\s+and|\s+to|\s+or)\s+\d[\d.]*)*"
NO_FIGURES = (
    r"```.*?```|^    (?! *(?:[-|]|\d\. )).*?$",  # code, but for paragraphs of a list
    r"\$\$.*?\$\$|\$[^$]*\$|`[^`]*`|\]\([^)]*\)|https?://\S+|^#+ .*?$",  # formulas, names, links, headings
    r"^(?:\*\*)?\d\d?\.(?=\*| )|\(\d+\.\d+\)|\b(?:19|20)\d\d\b",  # the numbers of a list, of an exercise, of a year
    rf"\b(?:[Cc]hapter|[Ss]ection|[Ee]xercise|[Qq]uestion|[Ii]nvestigation|(?:Build|Mend) it|[Ss]eed|[Hh]ead)s?\s+{FIGURES}",
)


def figures(text):
    """The numbers of a text, each as (digits, whether a per cent sign follows)."""
    return [(digits, bool(percent)) for digits, percent in NUMBER.findall(text.replace("_000", ",000"))]


def is_figure(digits, percent, reading):
    setting = digits.isdigit() or re.fullmatch(r"0\.\d", digits)
    return percent or (len(digits) > 1 and (reading or not setting))


def groups(text):
    """The sentences, rows and columns of a text, each as a list of (place, figure)."""
    reading = "<details>" in text and not text.startswith("## Questions")
    for pattern in NO_FIGURES:
        text = re.sub(pattern, "", text, flags=re.DOTALL | re.MULTILINE)
    place, found = 0, []
    for block in re.split(r"((?:^ *\|.*\n?)+)", text, flags=re.MULTILINE):
        table = [row.strip().strip("|").split("|") for row in block.splitlines()] if block.lstrip().startswith("|") else []
        rows = []
        for row in table or [[part] for part in re.split(r"(?<=[.:;?!])\s+|\n\s*- |\n\n", block)]:
            rows.append([])
            for cell in row:
                here = [one for one in figures(cell) if is_figure(*one, reading)]
                rows[-1].append([(place + number, one) for number, one in enumerate(here)])
                place += len(here)
        found += [[*chain(*row)] for row in [*rows, *(zip(*rows) if table else ())]]
    return [group for group in found if group]


# ----------------------------------------------------------------------------------------- when a figure is tied


def value(digits):
    return Decimal(digits.replace(",", ""))


def decimals(digits):
    """How many digits stand behind the point; of a number from 1,000 on also minus the zeros at its end, but for two digits."""
    if "," in digits and digits.endswith("0"):
        plain = digits.replace(",", "")
        return -min(len(plain) - len(plain.rstrip("0")), len(plain) - 2)
    return max(0, -value(digits).as_tuple().exponent)


@functools.cache
def prints(printed, quoted):
    """Whether a printed number rounds to the quoted one. A share may be quoted in per cent, and a digit only exactly."""
    (there, as_percent), (here, percent) = printed, quoted
    number, places = value(there), decimals(there)
    if percent and not as_percent:
        number, places = 100 * number, places - 2
    if number == value(here):
        return "e" in here or places >= decimals(here)
    rounds = percent or decimals(here) > 0 or value(here) >= 10
    return rounds and places >= decimals(here) and abs(number - value(here)) <= Decimal(5).scaleb(-decimals(here) - 1)


def neighbours(figure):
    """The figure with one more and one less in its last digit."""
    digits, percent = figure
    digits, *power = digits.split("e")
    changed = [value(digits) + sign * Decimal(1).scaleb(min(0, value(digits).as_tuple().exponent)) for sign in (1, -1)]
    return [("e".join([str(one), *power]), percent) for one in changed]


def untied(found, lines):
    """The figures in the groups `found` that `lines`, each a list of printed figures, do not hold."""
    tied, spots = set(), [((n, k), one) for n, line in enumerate(lines) for k, one in enumerate(line)]
    for group in found:
        on = {place: {spot for spot, one in spots if prints(one, its)} for place, its in group}
        crowded = set()  # lines on which more of these figures are than there are numbers for them
        for line in {n for its in on.values() for n, _ in its}:
            here = [{spot for spot in its if spot[0] == line} for its in on.values()]
            if sum(map(bool, here)) > len(set().union(*here)):
                crowded.add(line)
        for place, its in group:
            beside = {n for other, another in group if another != its for n, _ in on[other]} - crowded
            company = any(n in beside for n, _ in on[place])
            doubtful = any(prints(one, near) for near in neighbours(its) for _, one in spots)
            as_often = len(on[place]) >= sum(another == its for _, another in group)
            if on[place] and as_often and (company or not doubtful):
                tied.add(place)
    return [its for place, its in sorted({place: its for group in found for place, its in group}.items()) if place not in tied]


def binary_entropy(p):
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


NAMES = {"ln": math.log, "exp": math.exp, "sqrt": math.sqrt, "entropy": binary_entropy}


def entries(table, name):
    """A table's entry for a text, as {figure: expression}; the expression is "" in GIVEN."""
    for entry in table.get(name, "").split():
        quoted, _, expression = entry.partition("=")
        yield (quoted.rstrip("%"), quoted.endswith("%")), expression


def derived(name, lines):
    """The figures of a text that follow from others by DERIVED."""
    every, given = [one for line in lines for one in line], [one for one, _ in entries(GIVEN, name)]
    for figure, expression in entries(DERIVED, name):
        for operand in figures(re.sub(r"[-+*/()]", " ", expression)):
            known = len(operand[0]) == 1 or operand[0].rstrip("0") == "1" or operand in given
            assert known or any(value(one[0]) == value(operand[0]) for one in every), (name, expression, operand)
        result = eval(expression.replace(",", ""), {"__builtins__": {}}, NAMES)
        assert prints((f"{result:.12f}", False), figure), (name, figure, expression, result)
        yield figure


# ----------------------------------------------------------------------------------------- texts and lines


def cells(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        outputs = [(one.get("text", ""), one.get("data", {}).get("text/markdown", "")) for one in cell.get("outputs", [])]
        printed = "\n".join("".join(part) for output in outputs for part in output if part)
        yield cell["id"], cell["cell_type"] == "code", "".join(cell["source"]), printed


def as_lines(text):
    return [found for line in text.splitlines() if not line.startswith("✓") and (found := figures(line))]


def read_blind(path):
    """What a file of blind readings counts: all, those of the second readers, and each model's labels."""
    first = labels.first_readings(readings := labels.read(path))
    again = labels.agreement(first, readings[len(first) :])
    yield f"{len(first):,} read"
    yield f"{again['passages']} again: {again['agreement']:.4f}, kappa {again['kappa']:.4f}"
    for model in {label.source[1] for label in first}:
        some = [label.label for label in first if label.source[1] == model]
        counts = [some.count(label) for label in labels.LABELS]
        yield f"{len(some):,}: {counts}, {[f'{count / len(some):.4f}' for count in counts]}"


def all_labels():
    every = labels.hand_made(corpus.load())
    yield f"{len(every):,} in all"


def laptop_runs():
    """The runs of three seeds: the first one's time and memory, and the others' median, lowest and highest."""
    every = [*read_json(RESULTS / "laptop.json").values()]
    yield f"{every[0]['seconds']['total'] / 60:.4f} minutes, {every[0]['peak_memory_bytes'] / 1e9:.4f} GB"
    for key in ("val_bits_per_char", "reward_accuracy", "gold_win_rate", "kl_nats", "distinct_2_ratio", "separator_ratio"):
        some = [run[key] for run in every]
        yield f"{median(some):.6f} {min(some):.6f} {max(some):.6f} of {every[0]['reward_passages']}"
    clone = read_json(RESULTS / "laptop_clone.json")
    yield f"{clone['seconds']['total'] / 60:.4f} minutes"
    yield " ".join(f"{clone[key]:.6f}" for key in ("val_bits_per_char", "reward_accuracy", "gold_win_rate", "kl_nats"))
    yield " ".join(
        f"{number:.6f}" for number in (*clone["gold_win_rate_interval"], clone["distinct_2_ratio"], clone["separator_ratio"])
    )


def on_card():
    """What was measured on a card."""
    found = read_json(RESULTS / "gpu.json")
    run, small = found["run"], found["assistant"]
    yield " ".join(f"{run['seconds'][stage] / 60:.4f}" for stage in ("total", "pretrain", "policy"))
    yield f"{run['peak_card_bytes'] / 1e9:.4f} GB"
    rates = [run[key] for key in ("val_bits_per_char", "reward_accuracy", "gold_win_rate", "kl_nats")]
    yield " ".join(f"{rate:.4f}" for rate in [*rates, *run["gold_win_rate_interval"]])
    yield f"{found['busy']['pretrain']} {found['busy']['policy']} {small['busy']}"
    yield f"{' '.join(map(str, small['seconds'].values()))} seconds, {small['peak_card_megabytes'] / 1000:.4f} GB"
    yield from (f"{row['work']}: {row['median']:.4f} {row['gain']:.4f}" for row in found["decode"]["rows"])
    chapter = found["chapters"]["08"]
    yield f"{chapter['seconds'] / 60:.4f} minutes, {chapter['card_megabytes'] / 1000:.4f} GB"


def larger():
    """The larger writer: its run in a line, its settings, and what else was tried for it."""
    found = {key: number for key, number in read_json(LARGE / "summary.json").items() if key not in ("raters", "command")}
    yield json.dumps(found)
    yield f"{found['seconds']['total'] / 60:.4f} minutes, {found['reward_passages']} passages"
    yield from (LARGE / "settings.json").read_text(encoding="utf-8").splitlines()
    yield from (f"{path.stat().st_size / 1e6:.4f} MB" for path in sorted(LARGE.rglob("model.safetensors")))
    yield f"{sum(one.numel() for one in checkpoints.read_tensors(LARGE / 'base').values()) / 1e6:.4f} million weights"
    tried = read_json(RESULTS / "gpu.json")["large"]
    yield from (json.dumps(one) for one in [*tried["bases"], *tried["policies"]])


def lower():
    """The board of fewer bits per character."""
    for row in read_json(RESULTS / "lower.json").values():
        bits, seconds = row["bits_per_char"], sum(row["processor_seconds"]) / len(row["processor_seconds"])
        yield f"{row['mean']:.5f} {seconds:.2f} {max(bits) - min(bits):.5f} {row['weights'] / 1e6:.4f} million"
        yield f"{row['steps']} steps of {row['batch']}"
    yield f"{board.SIZE} rows"


def speed():
    for path in (RESULTS / "intel" / "results.json", RESULTS / "results.json"):
        measured = read_json(path)["cpu"]
        yield from measured["machine"]["versions"].values()
        for row in chain(*measured["groups"].values()):
            ours, theirs = row["median"], median(row["theirs"] or [0])
            minutes = f"{ours / 60:.4f} {theirs / 60:.4f} minutes" if row["unit"] == "seconds" else ""
            yield f"{row['work']}: {ours:.4f} {theirs:.4f} {row['gain']:.4f} {minutes} {row['note']}"
        judged = [row for row in chain(measured["groups"]["decode"], measured["groups"]["ppo"]) if row["wanted"] is not None]
        yield "wanted " + " ".join(f"{row['wanted']:.4f}" for row in judged)
        yield "times as fast " + " ".join(f"{row['gain']:.4f}" for row in judged)


PAIRS = ("sft", "start"), ("best_of", "start"), ("policy", "start"), ("policy", "sft")


def assistant():
    """The assistant: the published run's summary, settings and size, the medians of three runs, and their blind reading."""
    for name in ("summary.json", "settings.json"):
        yield from json.dumps(read_json(ASSISTANT / name), indent=0).splitlines()
    yield f"{sum(path.stat().st_size for path in ASSISTANT.rglob('*') if path.is_file()) / 1e6:.4f} MB"
    found = read_json(RESULTS / "assistant.json")
    every = [*found["runs"].values()]
    for clone in found["clones"]:
        yield f"{clone['seconds']['total'] / 60:.4f} minutes, {clone['peak_memory_bytes'] / 1e9:.4f} GB"
        yield f"{clone['kl_nats']:.4f} nats, iteration {clone.get('iteration')}"
    ppo = assistant_settings.PRESETS["laptop"].ppo
    yield f"{clone['ppo_iteration_seconds']:.1f} seconds, {ppo.rollout_size} answers of {ppo.max_new_tokens} tokens"
    yield " ".join(f"{run['seconds']['total'] / 60:.4f}" for run in every) + " minutes"
    spread = lambda some: f"{median(some):.4f} {min(some):.4f} {max(some):.4f}"  # noqa: E731
    sides = {side: [run["answers"][side] for run in every] for side in every[0]["answers"]}
    for side, answers in sides.items():
        yield f"{side}: {spread([one['words'] for one in answers])} words"
        for other in ("start", "sft"):
            yield spread([one["distinct_2"] / its["distinct_2"] for one, its in zip(answers, sides[other])])
    yield " ".join(spread([one["ended_share"] for one in answers]) for answers in sides.values()) + " end"
    yield f"{clone['kl_nats']:.4f} nats, {every[0]['kl_nats']:.4f} before"
    yield f"{spread([run['kl_nats'] for run in every])} nats, the shorter one {1 - every[0]['length_accuracy']:.4f}"
    yield f"{spread([run['reward_accuracy'] for run in every])} of {every[0]['reward_pairs']}"
    read = comparisons.read_comparisons(comparisons.BLIND, comparisons.read_prompts())
    runs = [[one for one in read if one.round == number] for number in (0, 1, 2)]
    for pair in PAIRS:
        yield " ".join(f"{of_pairs(blind.records(some, *pair))['win_rate'].rate:.4f}" for some in runs)
    yield f"at equal length {of_pairs(blind.records(read, 'policy', 'sft'))['length_controlled'].rate:.4f} by prompt"
    pairs = [one for pair in PAIRS for one in blind.records(read, *pair)]
    whole = of_pairs(pairs)
    bias = " ".join(f"{one:.4f}" for one in whole["position_bias"])
    yield f"{len(pairs)} pairs, the same in both orders {whole['consistency']:.4f}, first place {bias}"


@functools.cache
def stored():
    """Lines of figures by name: of every cell "NN/id", and of what the repository's files hold."""
    found = {
        f"{chapter}/{name}": as_lines(printed + "\n" + source)
        for chapter, path in CHAPTERS.items()
        for name, code, source, printed in cells(path)
        if code and not name.startswith("check-")
    }
    summary = {key: number for key, number in read_json(PUBLISHED / "summary.json").items() if key != "raters"}
    files = {
        "summary": json.dumps(summary, indent=0).splitlines(),
        "settings": (PUBLISHED / "settings.json").read_text(encoding="utf-8").splitlines(),
        "blind": read_blind(labels.BLIND),
        "pushed": read_blind(labels.PUSHED),
        "labels": all_labels(),
        "runs": laptop_runs(),
        "speed": speed(),
        "card": on_card(),
        "large": larger(),
        "lower": lower(),
        "read-large": read_blind(labels.LARGE),
        "assistant": assistant(),
    }
    return found | {name: as_lines("\n".join(lines)) for name, lines in files.items()}


def elsewhere(name):
    return [*chain(*(stored()[also] for also in ALSO.get(name, "").split()))]


def readings(chapter):
    """The texts of a chapter that may quote figures, as (name, groups, lines)."""
    lines, folded, every = [], False, list(cells(CHAPTERS[chapter]))
    for place, (cell, code, source, _) in enumerate(every):
        name = f"{chapter}/{cell}"
        if code:
            lines, folded = [] if folded else lines, False
            lines = lines + stored().get(name, [])
        elif not re.search(r"^### (Exercises?|Build it|Mend it|Investigation) ", source, re.MULTILINE):
            following = next((its for _, code, its, _ in every[place + 1 :] if code), "")
            yield name, groups(source), lines + as_lines(following) + elsewhere(name)
            folded |= "<summary>What" in source


def page(name_of_page):
    whole = (ROOT / f"{name_of_page}.md").read_text(encoding="utf-8")
    for section in re.split(r"^## ", whole, flags=re.MULTILINE)[1:]:
        name = f"{name_of_page}/" + section.splitlines()[0].replace(" ", "-")
        if name_of_page == "NEGATIVE_RESULTS":  # a row is a trial of its own, and its columns hold no like things
            section = section.replace("|\n|", "|\n\n|")
        folds = "<details>" if name in ALSO else ""  # a section that reports is held to the rule of readings
        yield name, groups(section + folds), elsewhere(name)


def texts(source):
    return page(source) if source in PAGES else readings(source)


SOURCES = [*CHAPTERS, *PAGES]


def known(name, lines):
    return Counter([*(figure for figure, _ in entries(GIVEN, name)), *derived(name, lines)])


# ----------------------------------------------------------------------------------------- the course's figures


@pytest.mark.parametrize("source", SOURCES)
def test_every_figure_is_tied(source):
    """And no entry of the tables is idle: without it a figure would be left, or an operand."""
    for name, found, lines in texts(source):
        left, entered = Counter(untied(found, lines)), known(name, lines)
        assert not left - entered, f"{name} quotes {[*left - entered]}: print it, mend it, or say in this file where it is from"
        operands = [operand for _, expression in entries(DERIVED, name) for operand in figures(expression)]
        assert not entered - left - Counter(operands), f"{name}: {[*entered - left]} of this file's tables is tied without"


def test_a_figure_that_is_wrong_by_one_in_its_last_digit_is_found():
    """Each figure is made one higher and one lower; at least 95 % of these are found. And one that is new always is."""
    caught = []
    for name, found, lines in chain(*map(texts, SOURCES)):
        left, entered = Counter(untied(found, lines)), known(name, lines)
        assert untied([[(0, ("98765.4321", False))]], lines) == [("98765.4321", False)]
        for place, its in {place: its for group in found for place, its in group}.items():
            around = [group for group in found if any(other == place for other, _ in group)]
            before = Counter(untied(around, lines))
            for near in neighbours(its):
                changed = [[(other, near if other == place else one) for other, one in group] for group in around]
                after = Counter(untied(changed, lines))
                caught.append(bool(left - (before - after) + (after - before) - entered))
    assert len(caught) > 1500 and sum(caught) >= 0.95 * len(caught), f"{sum(caught)} of {len(caught)}"


def test_the_tables_name_texts_that_are_there():
    names = {name for name, _, _ in chain(*map(texts, SOURCES))}
    assert {*ALSO, *DERIVED, *GIVEN} <= names
    assert {also for some in ALSO.values() for also in some.split()} <= stored().keys()


def test_a_negative_result_names_the_cells_that_its_figures_are_from():
    for section in re.split(r"^## ", (ROOT / "NEGATIVE_RESULTS.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:-1]:
        name = "NEGATIVE_RESULTS/" + section.splitlines()[0].replace(" ", "-")
        rows = [row for row in section.splitlines() if row.startswith("|")][2:]
        again = [row.strip("| ").split(" | ")[-1] for row in rows]
        assert all("`" in cell for cell in again), name
        named = {cell for row in again for cell in re.findall(r"`(\d\d/[\w-]+)`", row)}
        tied = {also for also in ALSO[name].split() if "/" in also}
        assert named <= stored().keys() and named <= tied, f"{name}: {named - tied}"


def test_a_card_counts_the_lines_of_its_answer():
    counted = 0
    for chapter, path in CHAPTERS.items():
        every = list(cells(path))
        for (card, _, text, _), (_, _, answer, _) in pairwise(every):
            if "BEGIN SOLUTION" in answer and (said := re.search(r"\b(\d+) lines", text)):
                parts = re.findall(r"### BEGIN SOLUTION\n(.*?)### END SOLUTION", answer, re.DOTALL)
                lines = [line for part in parts for line in part.splitlines() if line.strip()]
                assert int(said[1]) == len(lines), f"{chapter}/{card}"
                counted += 1
    assert counted >= 2


# ----------------------------------------------------------------------------------------- the rule itself


@pytest.mark.parametrize(
    ("printed", "quoted", "expected"),
    [
        ("2.1034", "2.10", True),
        ("2.1034", "2.11", False),
        ("2.1", "2.10", False),  # more digits than were printed
        ("0.1262", "13 %", True),
        ("12.6%", "13 %", True),
        ("12.6%", "12 %", False),
        ("12.6%", "0.13", False),
        ("4.7 %", "5 %", True),
        ("26.7", "27", True),
        ("7.4", "7", False),  # a digit is quoted as it stands
        ("8311", "8,300", True),
        ("8311", "8,400", False),
        ("14713", "15,000", True),
        ("1100", "1,000", False),
        ("0.003", "3e-3", True),
        ("0.004", "3e-3", False),
    ],
)
def test_a_printed_number_rounds_to_the_quoted_one(printed, quoted, expected):
    assert prints(figures(printed)[0], figures(quoted)[0]) == expected


@given(st.integers(0, 99999999).filter(lambda number: number % 10), st.integers(1, 3))  # never half way between two
def test_a_rounded_number_is_tied_and_its_neighbours_are_not(number, places):
    number = Decimal(number).scaleb(-5)
    quoted = (str(round(number, places)), False)
    lines = [figures(f"it is {number} so")]
    assert untied([[(0, quoted)]], lines) == []
    for near in neighbours(quoted):
        if value(near[0]) >= 0:
            assert untied([[(0, near)]], lines) == [near]


def test_what_is_no_figure():
    text = """## 3 · Of 17 things
See chapter 03, sections 2.3 and 4.5, exercise 1.7 and (2.2); Gao et al. 2023. `x[12]` is $12.5$ of [these](a_1.25.html).

    prints 44.4

```
33.3
```

2. In seed 11 a list of 12.
"""
    assert groups(text) == []
    assert groups(text + "<details>") == [[(0, ("12", False))]]


def test_a_figure_with_a_neighbour_needs_company():
    lines = [figures("a 0.27 at 28"), figures("b 0.28 at 39")]
    assert untied(groups("<details> Gold is 0.27."), lines) == [("0.27", False)]
    assert untied(groups("<details> Gold is 0.27 at 28 nats."), lines) == []
    assert untied(groups("<details> Gold is 0.27. At 28 nats."), lines) == [("0.27", False)]
    assert untied(groups("<details>\n| a | 0.27 | 28 |\n| b | 0.28 | 39 |\n"), lines) == []
    assert untied(groups("<details>\n| a | 0.28 | 28 |\n| b | 0.27 | 39 |\n"), lines) == [("0.28", False), ("0.27", False)]


@pytest.mark.parametrize("entry", ["0.03=2.145-2.116", "0.05=2.145-2.110", "3=9*9", "0.5=1/3"])
def test_arithmetic_that_does_not_hold_is_refused(entry, monkeypatch):
    monkeypatch.setitem(DERIVED, "a text", entry)
    with pytest.raises(AssertionError, match="a text"):
        list(derived("a text", [figures("2.145 and 2.110")]))


def test_the_report_says_by_how_much_the_gold_judge_flattered_the_three_runs():
    report = (ROOT / "rlhf_lib" / "pipelines" / "assistant_report.html.j2").read_text(encoding="utf-8")
    gold = [run["win_rate_policy"] for run in read_json(RESULTS / "assistant.json")["runs"].values()]
    read = comparisons.read_comparisons(comparisons.BLIND, comparisons.read_prompts())
    runs = ([one for one in read if one.round == number] for number in (0, 1, 2))
    people = [of_pairs(blind.records(some, "policy", "start"))["win_rate"].rate for some in runs]
    for rates in (gold, people):
        assert f"{100 * min(rates):.0f} to {100 * max(rates):.0f} %" in report
