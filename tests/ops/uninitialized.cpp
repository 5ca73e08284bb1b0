// To be preloaded: every byte of new memory is 0xff, so a value that was never written is a NaN
// (or -1), and shows in each result that depends on it. glibc fills memory too (M_PERTURB), but not
// with NaN, and 0 times any number is 0.
#include <cerrno>
#include <cstddef>
#include <cstring>

extern "C" {

void* __libc_malloc(std::size_t size);
void* __libc_memalign(std::size_t alignment, std::size_t size);

void* malloc(std::size_t size) {
  void* const memory = __libc_malloc(size);
  if (memory != nullptr) std::memset(memory, 0xff, size);
  return memory;
}

void* aligned_alloc(std::size_t alignment, std::size_t size) {
  void* const memory = __libc_memalign(alignment, size);
  if (memory != nullptr) std::memset(memory, 0xff, size);
  return memory;
}

int posix_memalign(void** memory, std::size_t alignment, std::size_t size) {
  void* const found = aligned_alloc(alignment, size);
  if (found == nullptr) return ENOMEM;
  *memory = found;
  return 0;
}
}
