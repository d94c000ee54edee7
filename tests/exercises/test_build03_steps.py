"""What Build it 3.10 says of the size of steps and of the gradients in them, where each verdict turns."""

import torch

from rlhf_lib.exercises import build03_steps as probes


def paths(**changed):
    """Five runs of 14 steps of length 1 in one of two directions, or in the other from step 6 on where that is said."""
    made = []
    for name in ("plain", "spiked", "shorter", "less", "nothing"):
        steps = torch.zeros(15, 2)
        steps[1:, 0] = 1.0
        steps[6] = torch.tensor(changed.get(name, (1.0, 0.0)))
        made.append(steps.cumsum(0))
    return made


def spike_fault(**changed):
    return probes.judge_spike(paths(**changed), None, None, 0)


def test_a_tensor_that_is_clipped_by_its_own_norm_hides_that_it_is_shorter():
    global_norm = dict(less=(0.6, 0.4), nothing=(0.6, 0.4))
    assert spike_fault(**global_norm) == ""
    assert "each tensor is clipped by its own norm" in spike_fault(nothing=(0.6, 0.4))
    assert spike_fault() == ""  # an optimiser that looks at signs alone: nothing can be said
    assert "different places" in spike_fault(**global_norm, shorter=(0.6, 0.4))
    assert "clipped to the norm 1" in spike_fault(**global_norm, spiked=(3.0, 0.0))
