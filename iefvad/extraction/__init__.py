"""Extraction at scale, in reading order.

`config`: the settings and the report. `progress`: what a person sees. `record`: which videos are to be done, and what
became of them. `decoding`: processes that decode ahead of the encoder. `encoding`: batches filled across videos.
`local` and `ray_engine`: the two engines that put these together. `extract`: the function that does all of it.
`stream`: the features of one video, one segment after another, as detection uses them.
"""
