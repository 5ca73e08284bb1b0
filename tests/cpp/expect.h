// The failures of a native test, to return from main.
#pragma once

#include <cstdio>
#include <string>

namespace {

int failures = 0;

void expect(bool condition, const std::string& what) {
  if (condition) return;
  std::printf("FAILED: %s\n", what.c_str());
  ++failures;
}

}  // namespace
