"""C++ kernels for the CPU, and what calls them; see docs/performance.md."""
