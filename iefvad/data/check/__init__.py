"""Can this split be trusted? What lists, annotations and frame truth contain, and where they contradict each other."""
