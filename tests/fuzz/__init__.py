"""Files damaged where their form is, and what their readers make of them: one sentence that names the file, little memory, and
nothing of it executed. `python -m tests.fuzz NAME --minutes 10` for a night; a short form of each is in the tests."""
