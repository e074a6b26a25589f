"""Pages and figures: the report of a run and the timeline of one video."""
