// Work on a few threads.
#pragma once

#include <thread>
#include <vector>

namespace langevin_xtal {

/// Runs work(thread) on `count` threads, the first of them this one.
template <class Work>
void run_threads(int count, Work&& work) {
    std::vector<std::thread> others;
    others.reserve(count);
    for (int t = 1; t < count; ++t) others.emplace_back(work, t);
    work(0);
    for (std::thread& other : others) other.join();
}

}  // namespace langevin_xtal
