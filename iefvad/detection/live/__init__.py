"""Live input: cameras and streams, their connections, their clock, and their scores as they come."""
