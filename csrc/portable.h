// Included before each source of the CPU libraries: keeps to the symbols of glibc 2.28 and of GCC
// 8's libstdc++, which the tag manylinux_2_28 promises, although newer ones are at hand.
#pragma once

// glibc 2.32 tells shared_ptr whether the process has one thread: one of torch has several.
#define _SYS_SINGLE_THREADED_H 1
constexpr char __libc_single_threaded = 0;

#include <exception>
#include <locale>
#include <new>
#include <ostream>

// GCC 11's library has new instances of string streams, and so these are compiled here.
#if defined(__GLIBCXX__)
#undef _GLIBCXX_EXTERN_TEMPLATE
#define _GLIBCXX_EXTERN_TEMPLATE 0
#include <sstream>
#undef _GLIBCXX_EXTERN_TEMPLATE
#define _GLIBCXX_EXTERN_TEMPLATE 1
#endif

#if defined(__GLIBC__) && defined(__x86_64__)
__asm__(".symver exp, exp@GLIBC_2.2.5");  // 2.29 has one that leaves errno alone
#endif
