// Errors of operators.
#pragma once

#include <concepts>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>

namespace pyseg {

inline void append_text(std::string& text, const std::string& part) { text += part; }
inline void append_text(std::string& text, const char* part) { text += part; }

template <std::integral T>
void append_text(std::string& text, T number) {
  text += std::to_string(number);
}

// Appends a number with as many digits as it takes to read it back. std::to_chars does so too, but
// is newer than the libstdc++ of manylinux_2_28.
template <std::floating_point T>
void append_text(std::string& text, T number) {
  char found[32];
  int digits = 1;
  do {
    std::snprintf(found, sizeof found, "%.*g", digits, static_cast<double>(number));
  } while (static_cast<T>(std::strtod(found, nullptr)) != number &&
           digits++ < std::numeric_limits<T>::max_digits10);
  text += found;
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
