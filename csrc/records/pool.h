// A pool of memory for decoded frames.
//
// A page fault costs more than filling the page, and malloc returns large blocks to the system as
// soon as a batch of records is dropped: without the pool, reading in batches is half as fast. The
// block that was dropped last is reused first, while it is in the cache.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdlib>
#include <map>
#include <new>
#include <vector>

namespace pyseg::records {

// Not synchronised: the Python module calls it with the GIL held, which also keeps it consistent in
// a forked process.
class Pool {
 public:
  static constexpr size_t kSmallest = size_t{1} << 16;  // malloc keeps smaller blocks by itself

  // Keeps up to `most_idle` unused bytes.
  explicit Pool(size_t most_idle = size_t{1} << 26) : most_idle_(most_idle) {}
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  ~Pool() {
    for (auto& [size, blocks] : idle_) {
      for (void* block : blocks) std::free(block);
    }
  }

  void* take(size_t size) {
    size = rounded(size);
    const auto found = idle_.find(size);
    if (found != idle_.end() && !found->second.empty()) {
      void* block = found->second.back();
      found->second.pop_back();
      idle_bytes_ -= size;
      return block;
    }
    void* block = std::malloc(size);
    if (!block) throw std::bad_alloc();
    return block;
  }

  // `size` is the argument of take().
  void give(void* block, size_t size) noexcept {
    size = rounded(size);
    if (size > most_idle_ - idle_bytes_) {
      std::free(block);
      return;
    }
    try {
      idle_[size].push_back(block);
      idle_bytes_ += size;
    } catch (const std::bad_alloc&) {
      std::free(block);
    }
  }

  size_t idle_bytes() const { return idle_bytes_; }

 private:
  // Four sizes between powers of two, so that videos of nearly the same length share blocks.
  static size_t rounded(size_t size) {
    const size_t step = std::bit_ceil(size) / 8;
    return step ? (size + step - 1) / step * step : size;
  }

  size_t most_idle_;
  size_t idle_bytes_ = 0;
  std::map<size_t, std::vector<void*>> idle_;
};

}  // namespace pyseg::records
