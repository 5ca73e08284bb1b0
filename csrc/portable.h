// Included before each source of the CPU libraries: keeps to the symbols of glibc 2.28 and of GCC
// 8's libstdc++, which the tag manylinux_2_28 promises, although newer ones are at hand.
#pragma once

// glibc 2.32 tells shared_ptr whether the process has one thread: one of torch has several.
#define _SYS_SINGLE_THREADED_H 1
constexpr char __libc_single_threaded = 0;

#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <limits>
#include <locale>
#include <new>
#include <ostream>
#include <string>
#include <system_error>

// GCC 11's library has new instances of string streams, and so these are compiled here.
#if defined(__GLIBCXX__)
#undef _GLIBCXX_EXTERN_TEMPLATE
#define _GLIBCXX_EXTERN_TEMPLATE 0
#include <sstream>
#undef _GLIBCXX_EXTERN_TEMPLATE
#define _GLIBCXX_EXTERN_TEMPLATE 1
#endif

// GCC 11's library, again: as many digits as it takes to read a number back. The shorter of two
// notations is not looked for.
#if defined(__GLIBCXX__)
namespace std {
template <typename T>
to_chars_result portable_to_chars(char* first, char* last, T value) noexcept {
  char found[32];
  int digits = 1;
  int size = snprintf(found, sizeof found, "%.*g", digits, static_cast<double>(value));
  while (static_cast<T>(strtod(found, nullptr)) != value &&
         digits < numeric_limits<T>::max_digits10) {
    size = snprintf(found, sizeof found, "%.*g", ++digits, static_cast<double>(value));
  }
  if (size > last - first) return {last, errc::value_too_large};
  return {char_traits<char>::copy(first, found, static_cast<size_t>(size)) + size, errc{}};
}
inline to_chars_result to_chars(char* first, char* last, float value) noexcept {
  return portable_to_chars(first, last, value);
}
inline to_chars_result to_chars(char* first, char* last, double value) noexcept {
  return portable_to_chars(first, last, value);
}
}  // namespace std
#endif

#if defined(__GLIBC__) && defined(__x86_64__)
__asm__(".symver exp, exp@GLIBC_2.2.5");  // 2.29 has one that leaves errno alone
#endif
