"""The groups of the harness, one module per group; `tests.fuzz.case.Group` says what a module has."""
