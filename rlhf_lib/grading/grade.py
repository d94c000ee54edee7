"""Grading a class: `python -m rlhf_lib grade SUBMISSIONS --out DIR`.

Several processes grade one submission after another, each with a sandbox of its own. What is done is on the disk at once: the
same command, after it was stopped or when somebody handed in again, grades what has changed and nothing else.
"""

import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
import secrets
import sys
import traceback
from multiprocessing import connection
from pathlib import Path

import torch
from tqdm.auto import tqdm

from rlhf_lib.exercises.build import load_optimizers
from rlhf_lib.exercises.progress import number_of
from rlhf_lib.files import RunError, read_json, shown, write_json
from rlhf_lib.grading import gradebook, pages, similar, submissions, verdicts
from rlhf_lib.grading.gradebook import GRADED, NOT, Entry
from rlhf_lib.grading.jail import die_with_parent
from rlhf_lib.grading.sandbox import ROOT, Sandbox, bubblewrap
from rlhf_lib.grading.submissions import File, Submission

TRIES = 2  # how often a submission is taken up that ended the grader's own process
WORKED = "(worked answers)"


class Job:
    """What all submissions are graded with."""

    def __init__(self, submissions, out, seed, timeout, program, names):
        self.submissions, self.out, self.seed, self.timeout = submissions, Path(out), seed, timeout
        self.program, self.names = program, sorted(names)
        self.version = course_version()

    def path(self, submission):
        return self.out / "results" / f"{gradebook.slug(submission.student, submission.id)}.json"

    def fingerprint(self, submission):
        """Changes when what was handed in, the course's checks or the inputs do."""
        found = hashlib.sha256(json.dumps([self.version, self.seed, self.timeout, self.names, submission.skipped]).encode())
        for file in submission.files:
            try:
                found.update(hashlib.sha256(f"{file.name}\0".encode() + file.read()).digest())
            except submissions.UnreadableError as error:
                found.update(str(error).encode())
        return found.hexdigest()


@functools.cache
def course_version():
    """A fingerprint of what decides on verdicts."""
    found = hashlib.sha256()
    for folder in ("exercises", "grading"):
        for path in sorted((ROOT / "rlhf_lib" / folder).glob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()


def grade(path, out, points=None, seed=None, jobs=None, timeout=90.0, late=None, say=print, program=None, dry_run=True):
    """Grade the submissions at `path` into the folder `out`; see the module.

    Args:
        points, late: paths of small CSV files (gradebook.py). Marks for prose are read from `out`/prose.csv, where there is one.
        seed: of the inputs; drawn once, and kept in `out`, unless given.
        jobs: how many submissions at a time; as many as there are cores unless given.
        timeout: seconds of one question; a probe of a build has its own.
        program: of the sandbox: a path of bubblewrap's, "" for none; found unless given.
        dry_run: grade the worked answers of the chapters first, which must be right.

    Returns:
        The list of Entry.

    Raises:
        RunError: bad input, or the worked answers do not pass here.
    """
    if not hasattr(os, "fork"):
        raise RunError("grading needs Linux or macOS: on Windows, run it in WSL")
    if timeout <= 0 or (jobs is not None and jobs < 1):
        raise RunError("--timeout and --jobs must be above 0")
    torch.set_num_threads(1)
    marks = gradebook.read_points(points)
    found, lost = submissions.find(path)
    if not found:
        raise RunError(f"no submission in {path}: give a folder or zip of notebooks named or foldered by student")
    students = {one.student for one in found}
    shares = gradebook.read_late(late, students | {one.id for one in found})
    prose = gradebook.read_prose(Path(out) / "prose.csv", students)
    job = Job(path, out, settled_seed(out, seed), timeout, program, marks)
    for sentence in lost:
        say(f"left out: {sentence}")
    jobs = min(jobs or os.cpu_count() or 1, len(found))
    with tqdm(total=len(found), desc="grading", unit="submission", disable=None) as bar:
        graded = run(job, found, jobs, bar, say, dry_run)
    entries = [graded[one.student, one.id] for one in found]
    gradebook.write_tables(out, entries, marks, shares, prose)
    pages.write_feedback(out, entries, marks, shares, prose)
    pages.write_texts(out, entries, prose)
    pages.write_report(out, entries, marks, shares, prose, similar.pairs(entries, worked_entries(job)))
    return entries


def settled_seed(out, seed):
    """The seed: as given, else that of the folder, else a new one. Noted in the folder."""
    path = Path(out) / "seed.json"
    if seed is None:
        advice = "give --seed, or delete the folder to grade all again"
        seed = read_json(path, advice).get("seed") if path.exists() else secrets.randbelow(2**31)
        if type(seed) is not int or not 0 <= seed < 2**31:
            raise RunError(f"{path} is damaged: its seed is {shown(seed)}; {advice}")
    if not 0 <= seed < 2**31:
        raise RunError(f"--seed must be from 0 to {2**31 - 1}, got {seed}")
    write_json(path, {"seed": seed})
    return seed


# ----------------------------------------------------------------------------------------- one submission


def grade_one(job, submission, box):
    """Grade one submission as far as that has not been done; returns its Entry, which is on the disk after each exercise."""
    path, fingerprint = job.path(submission), job.fingerprint(submission)
    before = gradebook.load(path, fingerprint)
    if before is not None and before.status != "begun":
        return before
    found = verdicts.survey(submission, job.names)
    results = []
    entry = Entry(
        submission.student, submission.id, submission.email, "begun", [], results, submission.late, found.work, found.texts
    )
    for result in verdicts.grade(found, box, job.seed, job.timeout, before.results if before else ()):
        results.append(result)
        gradebook.save(path, fingerprint, entry)
    status, reasons = gradebook.status_of(found, results)
    entry = entry._replace(status=status, reasons=reasons)
    gradebook.save(path, fingerprint, entry)
    return entry


def worked(chapters):
    """The worked notebooks of some chapters, as a submission."""
    files = []
    for path in sorted((ROOT / "solutions").glob("*.ipynb")):
        if path.name[:2].isdigit() and int(path.name[:2]) in chapters:
            files.append(File(path.name, (str(path),), path.stat().st_size, (0, 0, 0)))
    return Submission(WORKED, "", "", files, [], False)


# ----------------------------------------------------------------------------------------- several at a time


def slot(job, place, wire, others):
    """A process that grades the submissions whose numbers it is told, one after another."""
    die_with_parent()
    for other in others:
        other.close()
    box = Sandbox(place, bubblewrap if job.program is None else job.program or None, (job.out, job.submissions))
    try:
        while True:
            task, submission = json.loads(wire.recv_bytes())
            submission = Submission(*submission)
            files = [File(name, tuple(where), size, tuple(rank)) for name, where, size, rank in submission.files]
            try:
                grade_one(job, submission._replace(files=files), box)
                answer = {"done": task, "warnings": box.warnings}
            except RunError as error:
                answer = {"error": str(error)}
            wire.send_bytes(json.dumps(answer).encode())
    except (EOFError, KeyboardInterrupt, BrokenPipeError):
        pass
    except Exception:
        traceback.print_exc()
    finally:
        box.close()
        os._exit(0)


class Slot:
    """A process that grades, and what it is at."""

    def __init__(self, job, place, others):
        self.place, self.task = place, None
        self.wire, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        self.process = context.Process(target=slot, args=(job, place, theirs, [*others, self.wire]), daemon=False)
        self.process.start()
        theirs.close()

    def give(self, task, submission):
        self.task = task
        self.wire.send_bytes(json.dumps([task, submission]).encode())

    def end(self):
        self.wire.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def run(job, found, jobs, bar, say, dry_run):
    """{(student, id): Entry} of all submissions. Those that are graded already cost no sandbox."""
    done, queue, tries, warned = {}, [], {}, set()
    for number, one in enumerate(found):
        entry = gradebook.load(job.path(one), job.fingerprint(one))
        if entry is not None and entry.status != "begun":
            done[one.student, one.id] = entry
            bar.update()
        else:
            queue.append(number)
    tasks = {number: found[number] for number in queue}
    if queue and dry_run:
        first = worked_first(job, tasks)
        tasks.update(first)
        queue = [*first, *queue]
    if queue:
        load_optimizers()  # here once, else in each slot's process
    slots = []
    try:
        while queue or any(one.task is not None for one in slots):
            while queue and len(slots) < min(jobs, len(queue)):
                slots.append(Slot(job, len(slots), [one.wire for one in slots]))
            for one in slots:
                if one.task is None and queue:
                    one.give(queue[0], tasks[queue.pop(0)])
            busy = [one for one in slots if one.task is not None]
            ready = connection.wait([one.wire for one in busy])
            for one in [one for one in busy if one.wire in ready]:
                answer = heard(one)
                task, one.task = one.task, None
                if answer is None:  # its process died
                    one.end()
                    slots[slots.index(one)] = Slot(job, one.place, [other.wire for other in slots if other is not one])
                    tries[task] = tries.get(task, 0) + 1
                    if tries[task] < TRIES:
                        queue.insert(0, task)
                        continue
                    gradebook.save(job.path(tasks[task]), job.fingerprint(tasks[task]), broken(job, tasks[task]))
                elif "error" in answer:
                    raise RunError(answer["error"])
                for sentence in set(answer["warnings"] if answer else ()) - warned:
                    warned.add(sentence)
                    say(f"warning: {sentence}")
                entry = gradebook.load(job.path(tasks[task]))
                if task < 0:
                    must_be_right(entry)
                else:
                    done[entry.student, entry.id] = entry
                    bar.update()
    finally:
        for one in slots:
            with contextlib.suppress(OSError):
                one.end()
    return done


def heard(one):
    """What a slot says; None where its process has died."""
    try:
        return json.loads(one.wire.recv_bytes())
    except (EOFError, OSError, ValueError):
        return None


def broken(job, submission):
    """The Entry of a submission on which the grader's own process died more than once."""
    before = gradebook.load(job.path(submission), job.fingerprint(submission))
    results = before.results if before else []
    reason = "the grader's own process ended while it graded this: look at it by hand"
    status = gradebook.PARTLY if results else NOT
    return Entry(submission.student, submission.id, submission.email, status, [reason], results, submission.late)


def worked_first(job, tasks):
    """{number: the worked notebook of a chapter}: those that are still to be tried, of the chapters that were handed in."""
    chapters = {number_of(name)[0] for one in tasks.values() for name in verdicts.survey(one, job.names).exercises}
    first = {}
    for chapter in sorted(chapters):
        one = worked({chapter})._replace(id=f"chapter {chapter:02}")
        entry = gradebook.load(job.path(one), job.fingerprint(one))
        if entry is None or entry.status == "begun":
            first[-1 - chapter] = one
        else:
            must_be_right(entry)
    return first


def worked_entries(job):
    """The Entries of the worked answers that are in the folder."""
    return [gradebook.load(path) for path in (job.out / "results").glob("worked-answers-*.json")]


def must_be_right(entry):
    wrong = [
        f"{one.number} {one.exercise} ({one.verdict}: {one.message})" for one in entry.results if one.verdict != verdicts.RIGHT
    ]
    if wrong or entry.status != GRADED:
        raise RunError(f"the worked answers of {entry.id} do not pass on this machine: {'; '.join(wrong or entry.reasons)}")


def main(options):
    entries = grade(
        options.submissions, options.out, options.points, options.seed, options.jobs, options.timeout, options.late,
        say=lambda text: print(text, file=sys.stderr),
    )  # fmt: skip
    for status in (GRADED, gradebook.PARTLY, NOT):
        names = [entry for entry in entries if entry.status == status]
        print(f"{len(names)} {status}" + "".join(f"\n  {one.student}: {'; '.join(one.reasons)}" for one in names if one.reasons))
    print(f"Read {Path(options.out) / 'class_report.html'}; marks in grades.csv, a page for each student in feedback/")
