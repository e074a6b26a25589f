"""One's own videos and cameras: the detector, live input, alarms, the files it writes, the overlay video."""
