"""No worked cell raises, at any preset. Investigations are tagged "raises-exception" for what a learner has half written."""


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.suffix == ".ipynb":
            item.options["check_exception"] = False
