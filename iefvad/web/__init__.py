"""The web server that the pages of live detection and of labelling share."""
