"""The tested kernels and loops of RLHF from Shakespeare."""
