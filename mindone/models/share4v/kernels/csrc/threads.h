// The number of threads a kernel uses; by default, one for each CPU available to the process.
#pragma once

namespace share4v {

int thread_count();
void set_thread_count(int count);  // 0 restores the default

// Whether the system starts as many threads as a parallel region of the calling thread needs. OpenMP's library ends the
// process if it gets none, so this is asked before the first region of a thread, and again when more are needed.
bool can_start_threads();

}  // namespace share4v
