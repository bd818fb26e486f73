// The number of threads a kernel uses; by default, one for each CPU available to the process.
#pragma once

namespace share4v {

int thread_count();
void set_thread_count(int count);  // 0 restores the default

}  // namespace share4v
