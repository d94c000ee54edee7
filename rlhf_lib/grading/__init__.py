"""For instructors: what a class handed in is read, run in a sandbox, judged outside of it, and entered in a gradebook."""
