// A reader of JSON, as much as features.json and class_names.json need.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

// A value of a JSON text: null, true and false have neither text nor parts.
struct Json {
  std::string text;  // of a string, or of a number as it is written
  std::vector<Json> items;
  std::map<std::string, Json> members;

  const Json& operator[](const std::string& name) const {
    const auto found = members.find(name);
    if (found == members.end()) throw std::runtime_error("JSON: expected the key " + name);
    return found->second;
  }

  int64_t integer() const { return std::strtoll(text.c_str(), nullptr, 10); }

  static Json parse(const std::string& text) {
    Reader reader{text};
    Json value = reader.value();
    if (reader.peek() != '\0') reader.wrong("the end");
    return value;
  }

 private:
  struct Reader {
    const std::string& text;
    size_t at = 0;

    [[noreturn]] void wrong(const std::string& expected) const {
      throw std::runtime_error("JSON: expected " + expected + " at character " +
                               std::to_string(at));
    }

    // The next character that is not white space; 0 at the end.
    char peek() {
      at = text.find_first_not_of(" \t\r\n", at);
      if (at == std::string::npos) at = text.size();
      return text[at];
    }

    void take(char expected) {
      if (peek() != expected) wrong(std::string(1, expected));
      ++at;
    }

    Json value() {
      Json found;
      const char first = peek();
      if (first == '{' || first == '[') {
        const char last = first == '{' ? '}' : ']';
        take(first);
        while (peek() != last) {
          if (first == '{') {
            std::string name = (peek(), string());
            take(':');
            found.members[std::move(name)] = value();
          } else {
            found.items.push_back(value());
          }
          if (peek() != last) take(',');
        }
        take(last);
      } else if (first == '"') {
        found.text = string();
      } else {  // a number, true, false or null
        const size_t end = std::min(text.find_first_of(",]} \t\r\n", at), text.size());
        if (end == at) wrong("a value");
        found.text = text.substr(at, end - at);
        at = end;
      }
      return found;
    }

    std::string string() {
      take('"');
      std::string found;
      while (at < text.size() && text[at] != '"') {
        if (text[at] != '\\') {
          found += text[at++];
          continue;
        }
        const char kind = text[at + 1];  // the text ends with a 0
        at += 2;
        const size_t plain = std::string("bfnrt").find(kind);
        if (kind == 'u') {
          append(&found, code_unit());
        } else {
          found += plain == std::string::npos ? kind : "\b\f\n\r\t"[plain];
        }
      }
      take('"');
      return found;
    }

    uint32_t code_unit() {
      if (at + 4 > text.size()) wrong("4 hexadecimal digits");
      const auto unit =
          static_cast<uint32_t>(std::strtoul(text.substr(at, 4).c_str(), nullptr, 16));
      at += 4;
      return unit;
    }

    // Appends a character in UTF-8; UTF-16 writes those from 0x10000 on as two units.
    void append(std::string* to, uint32_t code) {
      if (code >= 0xD800 && code < 0xDC00 && text.compare(at, 2, "\\u") == 0) {
        at += 2;
        code = 0x10000 + ((code - 0xD800) << 10) + (code_unit() - 0xDC00);
      }
      const int more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
      constexpr uint32_t kLead[] = {0, 0xC0, 0xE0, 0xF0};
      *to += static_cast<char>(kLead[more] | (code >> (6 * more)));
      for (int i = more - 1; i >= 0; --i) {
        *to += static_cast<char>(0x80 | ((code >> (6 * i)) & 0x3F));
      }
    }
  };
};
