"""What is trained and tested on: lists, annotations, data sets, and the embedded benchmark."""
