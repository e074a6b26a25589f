"""Can this split be trusted? Finds contradictions between lists, annotations and frame truth of a data set.

Modules in reading order:

- `recognise`: finds the files of a data set and reads each of them.
- `findings`: what a check found, and the report.
- `list_checks`, `row_checks`, `label_checks`, `truth_checks`, `feature_checks`: the checks, by subject.
- `alignment`: which lengths of videos are possible for a given gt.npy.
- `all_checks`: runs everything for one data set.
- `render`: the report as text, Markdown and JSON.
"""
