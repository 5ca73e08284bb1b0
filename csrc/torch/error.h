// Errors of operators.
#pragma once

#include <charconv>
#include <concepts>
#include <stdexcept>
#include <string>

namespace pyseg {

inline void append_text(std::string& text, const std::string& part) { text += part; }
inline void append_text(std::string& text, const char* part) { text += part; }

// Appends a number with as many digits as it takes to read it back.
template <typename T>
  requires std::integral<T> || std::floating_point<T>
void append_text(std::string& text, T number) {
  char digits[32];
  text.append(digits, std::to_chars(digits, digits + sizeof digits, number).ptr);
}

// Throws an exception that PyTorch turns into Python's RuntimeError.
template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::string text;
  (append_text(text, parts), ...);
  throw std::runtime_error(text);
}

}  // namespace pyseg

// Fails with the parts of a message unless `condition` holds. torch's STD_TORCH_CHECK begins the
// message with the path of this source on the machine that compiled it, and cuts numbers to six
// digits.
#define PYSEG_CHECK(condition, ...) \
  do {                              \
    if (!(condition)) [[unlikely]]  \
      ::pyseg::fail(__VA_ARGS__);   \
  } while (false)
