"""Cells of a notebook without a notebook: code that is run so that its source is found, as IPython does it."""

import linecache


class Scene(dict):
    """The globals of a notebook; call it with the source of a cell to run it."""

    count = 0

    def __init__(self):
        super().__init__(__name__="__main__", __builtins__=__builtins__)

    def __call__(self, source):
        Scene.count += 1
        name = f"<cell {Scene.count}>"
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        exec(compile(source, name, "exec"), self)
        return self
