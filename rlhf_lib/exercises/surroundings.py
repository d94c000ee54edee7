"""What is around a call: the same settings for every function that is called, its own random numbers, and a limit of time.

What a notebook's cell left on (gradients off, another default dtype or device, warnings as errors, ...) changes no verdict, and
what a learner's function leaves on is put back.
"""

import contextlib
import ctypes
import functools
import math
import os
import random
import signal
import sys
import threading
import time
import warnings

import numpy as np
import torch

LIMIT = 10.0  # seconds that one call may take
AGAIN = 0.05  # seconds after which it is stopped once more, where something has swallowed the first stop
START = 20_488_221  # the seed of torch's global generator around a call: none that a learner would set it to
CLEANING = 1.0  # seconds in which the course may clean up behind the first stop
SOON = 1e-6  # seconds, for an alarm that is due: 0 would switch it off


class TimeUp(BaseException):
    """A call took too long. No Exception, so that a learner's `except Exception` does not swallow it."""


@contextlib.contextmanager
def settled():
    """Everything global as it is in a fresh session, and random numbers that begin anew; afterwards all is as it was before."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # of the oracle and the mistakes too: nothing that a learner could mend
        for name in ("cpu", "cuda"):
            if name == "cpu" or torch.is_autocast_enabled(name):
                stack.enter_context(torch.autocast(name, enabled=False))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autograd.set_detect_anomaly(False))
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        for read, write, value in SETTINGS.values():
            before = read()
            stack.callback(put_back, read, write, before)
            if value is not None and before != value:
                write(value)
        stack.callback(put_back, torch.get_default_device, default_device, torch.get_default_device())
        if torch.get_default_device() != torch.device("cpu"):
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(own_random_numbers())
        yield


@contextlib.contextmanager
def put_back_after():
    """What is done inside may leave other settings on; afterwards they are as they were before. Yields a dict, in which then
    stands what was left of the settings of TOLD: {what it is called: what it was}.

    But for the mode of gradients and the seed: some checks look what was left, and `settled` puts them back in the end.
    """
    left, before = {}, {name: read() for name, (read, _, _) in {**SETTINGS, **TOLD}.items()}
    try:
        yield left
    finally:
        left |= {name: read() for name, (read, _, _) in TOLD.items() if read() != before[name]}
        for name, (read, write, _) in {**SETTINGS, **TOLD}.items():
            if write:
                put_back(read, write, before[name])


def put_back(read, write, before):
    if read() != before:
        write(before)


def default_device(device):
    torch.set_default_device(None if str(device) == "cpu" else device)


def deterministic(found):
    torch.use_deterministic_algorithms(found[0], warn_only=found[1])


SETTINGS = {  # how a setting is read, how it is written, and what it is in a fresh session (None: as it is, but put back)
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    "deterministic algorithms": (
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        deterministic,
        (False, False),
    ),
    "precision of products": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
    "threads": (torch.get_num_threads, torch.set_num_threads, None),
    "recursion limit": (sys.getrecursionlimit, sys.setrecursionlimit, None),
}
SEED = "the seed of torch's global generator"
TOLD = {  # what a function must not leave behind, since every later cell would compute otherwise
    "torch.get_default_dtype()": SETTINGS["default dtype"],
    "torch.get_default_device()": (torch.get_default_device, default_device, None),
    "torch.is_grad_enabled()": (torch.is_grad_enabled, None, None),
    SEED: (torch.initial_seed, None, None),
}


@contextlib.contextmanager
def own_random_numbers():
    """Torch's generator starts at seed START, Python's and NumPy's at 0, and all are put back."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    cards = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    torch.default_generator.manual_seed(START)
    random.seed(0)
    np.random.seed(0)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])
        if cards is not None:
            torch.cuda.set_rng_state_all(cards)


@contextlib.contextmanager
def quiet():
    """Nothing is written by libraries below Python, which complain of what the search for a mistake tries out."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept, nowhere = [os.dup(1), os.dup(2)], os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        yield
    finally:
        for number, one in enumerate(kept, 1):
            os.dup2(one, number)
        for one in (*kept, nowhere):
            os.close(one)


# ----------------------------------------------------------------------------------------- the limit of time


def limited(function, seconds):
    """`function()`, stopped after `seconds`. Returns (what it returned, None) or (None, the exception that came out of it).

    What comes from outside is passed on instead: Ctrl-C, an alarm that was set before, the end of a call that this one is in.

    In the main thread an alarm stops whatever Python can interrupt, also `time.sleep`; in another thread, and on Windows, it is
    an exception that is thrown into the thread, which a long call of one C function delays until it returns.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        return next(thrown(function, seconds))
    if CLOCK.limits:
        return next(stopped(function, seconds))
    CLOCK.take()
    try:
        return next(stopped(function, seconds))
    finally:
        CLOCK.give_back()


def stopped(function, seconds):
    """Yields what `limited` returns.

    A generator, because a TimeUp that comes in the last lines of an `except:` or of a `with` stays what Python believes is being
    handled: in here until the generator ends, elsewhere for good, and each later error would be shown as if it came from it.
    """
    CLOCK.pass_on()
    limit, depth, trace = Limit(seconds, sys._getframe()), len(CLOCK.limits), sys.gettrace()
    CLOCK.limits.append(limit)
    CLOCK.set()
    try:
        result = function(), None
    except BaseException as error:  # a learner's function may raise anything, SystemExit too
        result = None, error
    del CLOCK.limits[depth:]
    sys.settrace(trace)
    limit.frame = None
    CLOCK.set()
    CLOCK.pass_on()
    yield result


class Limit:
    """Until when the call of `stopped` in `frame` may go on."""

    def __init__(self, seconds, frame):
        self.until, self.frame = time.monotonic() + seconds, frame
        self.seen = None  # the frames that it stopped first


class Clock:
    """The limits of the calls that are going on in the main thread, the outermost first, and what rings when one is over.

    It never raises in OURS: nothing there is left half done, and the next `pass_on` or the next alarm comes soon.
    """

    def __init__(self):
        self.limits = []
        self.outside = []  # what has come from outside meanwhile: Ctrl-C, or what an alarm raised that was set before

    def take(self):
        """Keep the handlers of SIGALRM and Ctrl-C, and the alarm that was set."""
        self.outside.clear()
        self.handler, self.ctrl_c = signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGINT)
        delay, self.interval = signal.setitimer(signal.ITIMER_REAL, 0)
        self.due = time.monotonic() + delay if delay and callable(self.handler) else math.inf
        signal.signal(signal.SIGALRM, self.ring)
        if callable(self.ctrl_c):
            signal.signal(signal.SIGINT, functools.partial(self.call, self.ctrl_c))

    def give_back(self):
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.handler if self.handler is not None else signal.SIG_DFL)
        if callable(self.ctrl_c):
            signal.signal(signal.SIGINT, self.ctrl_c)
        if self.due < math.inf:
            signal.setitimer(signal.ITIMER_REAL, max(self.due - time.monotonic(), SOON), self.interval)
        if self.outside:
            raise self.outside[0]

    def set(self):
        """Let SIGALRM come when the first limit is over, and then every AGAIN seconds."""
        first = min([self.due, *(limit.until for limit in self.limits)])
        signal.setitimer(signal.ITIMER_REAL, max(first - time.monotonic(), SOON) if first < math.inf else 0, AGAIN)

    def pass_on(self):
        """Raise what stops the calls that are going on, also where something has swallowed it on its way."""
        if self.outside:
            raise self.outside[0]
        if any(time.monotonic() >= limit.until for limit in self.limits):
            raise TimeUp

    def call(self, handler, number, frame):
        """Call what was the handler of a signal before."""
        try:
            handler(number, frame)
        except BaseException as error:
            self.outside.append(error)
            if frame.f_code.co_filename != __file__:
                raise

    def ring(self, number, frame):
        """The handler of SIGALRM."""
        if frame.f_code.co_filename in OURS:
            return
        if time.monotonic() >= self.due:
            self.due = self.due + self.interval if self.interval else math.inf
            self.call(self.handler, number, frame)
        now = time.monotonic()
        limit = next((limit for limit in self.limits if now >= limit.until), None)
        if limit is None or importing(frame, limit.frame):
            return
        at_work = theirs_in(frame, limit.frame)
        cleans_up = limit.seen is not None and not any(one in limit.seen for one in at_work)  # the course, behind the first stop
        if not cleans_up or now >= limit.until + CLEANING:
            limit.seen = at_work if limit.seen is None else limit.seen
            self.stop_at_the_next_line(at_work, limit)
            raise TimeUp

    def stop_at_the_next_line(self, frames, limit):
        """Raise TimeUp before the next line of one of `frames`: a bare `except:` may stand round this one."""

        def stop(frame, event, arg):
            if event == "line" and limit in self.limits:  # not "exception", which is still inside the `try:`
                raise TimeUp
            return stop

        for one in frames:
            one.f_trace = stop
        sys.settrace(lambda *_: None)  # frames are traced only while there is such a function


CLOCK = Clock()
OURS = {__file__, contextlib.__file__}


def importing(frame, end):
    """Whether a module is being imported: half of one would be left behind. PyTorch imports much when it is first needed."""
    return any(one.f_code.co_filename.startswith("<frozen importlib") for one in called(frame, end))


def called(frame, end):
    """The frames from `frame` up to what `end` called, the innermost first."""
    while frame is not None and frame is not end:
        yield frame
        frame = frame.f_back


def theirs_in(frame, end):
    """Those frames that may go on after a TimeUp: all but the course's, which have no bare `except:`, and clean up behind it."""
    return [one for one in called(frame, end) if not str(one.f_globals.get("__name__")).startswith(("rlhf_lib.", "contextlib"))]


def thrown(function, seconds):
    """Yields what `limited` returns; TimeUp is raised in this thread from another one."""
    here, frame, lock, done = threading.get_ident(), sys._getframe(), threading.Lock(), threading.Event()

    def throw():
        wait = seconds
        while not done.wait(wait):
            with lock:
                if not done.is_set() and not importing(sys._current_frames().get(here), frame):
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(here), ctypes.py_object(TimeUp))
            wait = AGAIN

    def stop():  # one that is on its way comes in the next lines; to take it back slows Python 3.11 down for good
        with lock:
            done.set()

    thread = threading.Thread(target=throw, daemon=True)
    try:
        thread.start()
        try:
            result = function(), None
        except BaseException as error:
            result = None, error
        finally:
            stop()
    except TimeUp as error:  # in the moment before it was switched off
        result = None, error
    stop()
    thread.join()
    frame = None
    yield result
