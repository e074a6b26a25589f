"""What needs a CUDA device; TRITON_INTERPRET=1 runs the Triton part of it on the CPU, slowly."""
