// Threads for short tasks that follow one another at once, such as a block of a stream: they sleep
// where the next one does not come soon, and a call does not wait for one that has not begun.
//
// torch's parallel_for waits for all of its threads, which wait for each other without sleeping:
// where other processes use the cores too, that takes as long as the system lets those run.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>

namespace pyseg {

class Helpers {
 public:
  // Calls task(i), which must not throw, for 0 <= i < count, on so many threads at most.
  template <typename Task>
  static void run(int64_t threads, int64_t count, const Task& task) {
    const int64_t helpers = std::min(threads, count) - 1;
    if (helpers < 1) {
      for (int64_t i = 0; i < count; ++i) task(i);
      return;
    }
    const auto call = [](const void* task, int64_t i) { (*static_cast<const Task*>(task))(i); };
    Job job(count, call, &task);
    ours().run(job, helpers);
  }

 private:
  struct Job {
    Job(int64_t count, void (*call)(const void*, int64_t), const void* task)
        : count(count), call(call), task(task) {}

    void work() {
      for (int64_t i; (i = next.fetch_add(1)) < count;) call(task, i);
    }

    int64_t count;
    void (*call)(const void* task, int64_t i);
    const void* task;
    std::atomic<int64_t> next = 0;
    std::atomic<int64_t> active = 0;  // helpers that are at it
    std::condition_variable done;
  };

  // To be woken takes up to 0.1 ms: about twice that is waited awake for what is to come.
  template <typename Condition>
  static void wait_a_little(const Condition& condition) {
    for (int i = 0; i < 500 && !condition(); ++i) std::this_thread::yield();
  }

  // Those of this process: threads do not survive a fork. They are never destroyed, since at the
  // end of the process they may be asleep.
  static Helpers& ours() {
    static std::atomic<Helpers*> current = nullptr;
    Helpers* found = current.load();
    while (found == nullptr || found->process_ != ::getpid()) {
      auto* const made = new Helpers;
      if (current.compare_exchange_strong(found, made)) return *made;
      delete made;
    }
    return *found;
  }

  void run(Job& job, int64_t helpers) {
    {
      const std::lock_guard lock(mutex_);
      try {
        for (; threads_ < helpers; ++threads_) std::thread([this] { help(); }).detach();
      } catch (const std::system_error&) {  // fewer have to do
      }
      waiting_.insert(waiting_.end(), std::min(helpers, threads_), &job);
      tasks_ = static_cast<int64_t>(waiting_.size());
    }
    if (helpers == 1) {
      wanted_.notify_one();
    } else {
      wanted_.notify_all();
    }
    job.work();
    {
      const std::lock_guard lock(mutex_);
      std::erase(waiting_, &job);
      tasks_ = static_cast<int64_t>(waiting_.size());
    }
    wait_a_little([&] { return job.active == 0; });  // the others are about to end too
    std::unique_lock lock(mutex_);
    job.done.wait(lock, [&] { return job.active == 0; });
  }

  void help() {
    std::unique_lock lock(mutex_);
    for (;;) {
      if (waiting_.empty()) {
        lock.unlock();
        wait_a_little([&] { return tasks_ != 0; });
        lock.lock();
      }
      wanted_.wait(lock, [&] { return !waiting_.empty(); });
      Job& job = *waiting_.front();
      waiting_.pop_front();
      tasks_ = static_cast<int64_t>(waiting_.size());
      ++job.active;
      lock.unlock();
      job.work();
      lock.lock();
      if (--job.active == 0) job.done.notify_one();
    }
  }

  const pid_t process_ = ::getpid();
  std::mutex mutex_;
  std::condition_variable wanted_;
  std::deque<Job*> waiting_;        // once for each helper that is wanted
  std::atomic<int64_t> tasks_ = 0;  // how many those are
  int64_t threads_ = 0;
};

}  // namespace pyseg
