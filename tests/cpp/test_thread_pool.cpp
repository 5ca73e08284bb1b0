// csrc/cpu/thread_pool.h: every task runs once, with several callers and in a forked process too.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <thread>
#include <vector>

#include "../../csrc/cpu/thread_pool.h"

namespace {

// Whether each of `count` tasks ran once, and the caller sees what it wrote.
bool all_run(int64_t threads, int64_t count) {
  std::vector<int64_t> runs(count);
  pyseg::ThreadPool::run(threads, count, [&](int64_t i) { ++runs[i]; });
  for (const int64_t times : runs) {
    if (times != 1) return false;
  }
  return true;
}

bool all_run() {
  for (int round = 0; round < 500; ++round) {
    for (const int64_t threads : {1, 2, 5}) {
      for (const int64_t count : {0, 1, 2, 3, 50}) {
        if (!all_run(threads, count)) return false;
      }
    }
  }
  return true;
}

bool all_run_for_several_callers() {
  std::atomic<bool> all = true;
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&] {
      if (!all_run()) all = false;
    });
  }
  for (std::thread& caller : callers) caller.join();
  return all;
}

bool all_run_in_a_fork() {
  const pid_t child = fork();
  if (child == 0) _exit(all_run() ? 0 : 1);
  int status = 1;
  return waitpid(child, &status, 0) == child && status == 0;
}

}  // namespace

int main() {
  const bool first = all_run(), several = all_run_for_several_callers(), fork = all_run_in_a_fork();
  std::printf("thread pool: one caller %d, several %d, in a fork %d\n", first, several, fork);
  return first && several && fork ? 0 : 1;
}
