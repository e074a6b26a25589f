"""Extraction: from many videos to a feature store.

Modules in reading order:

- `config`: the settings and the report.
- `progress`: the progress bar.
- `jobs`: which videos are still to do, and what became of each.
- `decoding`: processes that decode ahead of the encoder.
- `frame_choice`: which frames of a segment are encoded.
- `encoding`: batches that are filled across videos.
- `stream`: the features of one video, one segment after another. Detection uses it too.
- `threads`, `local`, `ray_engine`: the engines that put these together.
- `extract`: the function that does all of it.
"""
