"""Your own videos and cameras: detector, live input, alarms, result files and the overlay video."""
