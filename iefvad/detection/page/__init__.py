"""A local web page that shows the cameras, their scores and their alarms as they come."""
