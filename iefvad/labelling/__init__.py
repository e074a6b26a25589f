"""A local web page on which a person marks what is abnormal in videos, and the lists that follow from the marks.

In reading order: `config`, `labels` (what is marked, and its file), `lists` (what training reads), `media` (pictures),
`server` (the page).
"""
