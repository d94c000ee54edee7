import contextlib

import pytest

from rlhf_lib import runs


@pytest.fixture(scope="session")
def interrupted():
    """`with interrupted(saved, stop) as done:` runs a stage that is stopped by Ctrl-C after step `stop`, and that saved its
    training state after step `saved` alone (0: never). Without them it saves as always. `after(step, model)` is called
    behind each step. `done` lists the steps that were done.
    """
    tick = runs.Progress.tick

    @contextlib.contextmanager
    def patched(saved=None, stop=None, after=None):
        done = []

        def stand_in(self, step, extra=None, now=False):
            done.append(step)
            if saved is None:
                tick(self, step, extra, now)
            elif step == saved:
                tick(self, step, extra, now=True)
            if after is not None:
                after(step, self.model)
            if step == stop:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runs.Progress, "tick", stand_in)
            yield done

    return patched
