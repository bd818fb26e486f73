// How many threads a kernel uses: every CPU that the process may run on, unless told otherwise.
#pragma once

namespace share4v {

int thread_count();
void set_thread_count(int count);  // 0: the default again

}  // namespace share4v
