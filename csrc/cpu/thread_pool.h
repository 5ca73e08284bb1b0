// A thread pool for short tasks in quick succession, such as the blocks of a stream. Idle workers
// spin for about 0.2 ms, then block on a condition variable. A call does not wait for workers that
// have not begun its job.
//
// torch's parallel_for waits for all of its threads, which spin for each other: where other
// processes use the cores too, that takes until the system has scheduled every one of them.
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

class ThreadPool {
 public:
  // Calls task(i), which must not throw, for 0 <= i < count, on at most `threads` threads.
  template <typename Task>
  static void run(int64_t threads, int64_t count, const Task& task) {
    const int64_t workers = std::min(threads, count) - 1;
    if (workers < 1) {
      for (int64_t i = 0; i < count; ++i) task(i);
      return;
    }
    const auto call = [](const void* task, int64_t i) { (*static_cast<const Task*>(task))(i); };
    Job job(count, call, &task);
    instance().run(job, workers);
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
    std::atomic<int64_t> active = 0;  // workers in work()
    std::condition_variable done;
  };

  // Waking a thread takes up to 0.1 ms: spins for about twice as long.
  template <typename Condition>
  static void spin(const Condition& condition) {
    for (int i = 0; i < 500 && !condition(); ++i) std::this_thread::yield();
  }

  // The pool of this process: threads do not survive a fork. Pools are never destroyed, since
  // workers may still be blocked when the process ends.
  static ThreadPool& instance() {
    static std::atomic<ThreadPool*> current = nullptr;
    ThreadPool* pool = current.load();
    while (pool == nullptr || pool->process_ != ::getpid()) {
      auto* const created = new ThreadPool;
      if (current.compare_exchange_strong(pool, created)) return *created;
      delete created;
    }
    return *pool;
  }

  void run(Job& job, int64_t workers) {
    {
      const std::lock_guard lock(mutex_);
      try {
        for (; workers_ < workers; ++workers_) std::thread([this] { serve(); }).detach();
      } catch (const std::system_error&) {  // no more threads: fewer have to suffice
      }
      queue_.insert(queue_.end(), std::min(workers, workers_), &job);
      queue_size_ = static_cast<int64_t>(queue_.size());
    }
    if (workers == 1) {
      job_queued_.notify_one();
    } else {
      job_queued_.notify_all();
    }
    job.work();
    {
      const std::lock_guard lock(mutex_);
      std::erase(queue_, &job);
      queue_size_ = static_cast<int64_t>(queue_.size());
    }
    spin([&] { return job.active == 0; });  // the workers are about to end too
    std::unique_lock lock(mutex_);
    job.done.wait(lock, [&] { return job.active == 0; });
  }

  void serve() {
    std::unique_lock lock(mutex_);
    for (;;) {
      if (queue_.empty()) {
        lock.unlock();
        spin([&] { return queue_size_ != 0; });
        lock.lock();
      }
      job_queued_.wait(lock, [&] { return !queue_.empty(); });
      Job& job = *queue_.front();
      queue_.pop_front();
      queue_size_ = static_cast<int64_t>(queue_.size());
      ++job.active;
      lock.unlock();
      job.work();
      lock.lock();
      if (--job.active == 0) job.done.notify_one();
    }
  }

  const pid_t process_ = ::getpid();
  std::mutex mutex_;
  std::condition_variable job_queued_;
  std::deque<Job*> queue_;               // a job once for each worker that it wants
  std::atomic<int64_t> queue_size_ = 0;  // readable without the mutex
  int64_t workers_ = 0;
};

}  // namespace pyseg
