"""CPU kernels in C++ (csrc/) and their Python bindings; see docs/performance.md."""
