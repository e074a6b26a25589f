"""Triton kernels on the CPU, run by `test_triton_interpreter.py` in a process with TRITON_INTERPRET=1."""
