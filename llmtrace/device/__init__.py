"""Devices: compile, allocate, launch, capture. Hides compilers, ctypes and CuPy."""
