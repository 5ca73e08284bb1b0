// The protobuf messages tf.train.Example and tf.train.SequenceExample, parsed in place.
//
// It follows protobuf's rules: fields in any order; a field that occurs several times is merged,
// which for messages is the same as parsing their concatenated encodings; the last entry of a map
// key wins; repeated numbers may be packed or not; unknown fields are skipped. Features that are
// not requested are not parsed. Nothing is read past the end of the enclosing message, whatever the
// lengths say.
//
// pyseg/data/records/wire.py is the reference; its error texts are the same: change both.
#pragma once

#include <cstdint>
#include <cstring>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace pyseg::records {

// A range of bytes, not owned.
struct Bytes {
  const uint8_t* begin = nullptr;
  const uint8_t* end = nullptr;

  size_t size() const { return static_cast<size_t>(end - begin); }
  std::string_view text() const { return {reinterpret_cast<const char*>(begin), size()}; }
};

// The content of a record is invalid.
class Wrong : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Bytes as an error text shows them: printable ASCII, the rest escaped, cut.
inline std::string show(std::string_view bytes) {
  constexpr size_t kLimit = 40;
  constexpr char kDigits[] = "0123456789abcdef";
  std::string shown = "'";
  for (const char c : bytes.substr(0, kLimit)) {
    const auto byte = static_cast<uint8_t>(c);
    if (byte >= 0x20 && byte < 0x7F && byte != '\\' && byte != '\'') {
      shown += c;
    } else {
      shown += {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
    }
  }
  return shown + (bytes.size() > kLimit ? "'..." : "'");
}

// The unread rest of a message that is being parsed.
class Cursor {
 public:
  enum Wire : uint32_t { kVarint, kFixed64, kLength, kGroup, kGroupEnd, kFixed32 };

  struct Tag {
    uint32_t field;
    uint32_t wire;
    const uint8_t* start;
  };

  // `origin` is the start of the record; errors give positions relative to it.
  Cursor(Bytes message, const uint8_t* origin)
      : at_(message.begin), end_(message.end), origin_(origin) {}

  bool done() const { return at_ == end_; }
  const uint8_t* at() const { return at_; }
  size_t left() const { return static_cast<size_t>(end_ - at_); }
  void advance(size_t count) { at_ += count; }  // by no more than left()

  uint64_t varint() {
    if (at_ != end_ && *at_ < 0x80) return *at_++;
    uint64_t value = 0;
    for (size_t i = 0; i < 10; ++i) {
      if (i == left()) malformed(at_, "expected a varint, found the end of its message");
      const uint64_t byte = at_[i];
      if (i == 9 && byte > 1) break;
      value |= (byte & 0x7F) << (7 * i);
      if (byte < 0x80) {
        at_ += i + 1;
        return value;
      }
    }
    malformed(at_, "expected a varint of at most 64 bits, found a longer one");
  }

  Tag tag() {
    const uint8_t* start = at_;
    const uint64_t tag = varint();
    if (tag < 8 || tag > UINT32_MAX) {
      malformed(start,
                "expected a field number from 1 to 536870911, found " + std::to_string(tag >> 3));
    }
    if ((tag & 7) > kFixed32) {
      malformed(start, "expected a wire type from 0 to 5, found " + std::to_string(tag & 7));
    }
    return {static_cast<uint32_t>(tag >> 3), static_cast<uint32_t>(tag & 7), start};
  }

  // The next `count` bytes.
  Bytes bytes(uint64_t count) {
    if (count > left()) {
      malformed(at_, "expected " + std::to_string(count) + " bytes, found " +
                         std::to_string(left()) + " to the end of their message");
    }
    const Bytes taken{at_, at_ + count};
    at_ += count;
    return taken;
  }

  // The content of a field of wire type 2.
  Bytes length() { return bytes(varint()); }

  // Skips the field whose tag was just read.
  void skip(Tag tag) {
    constexpr size_t kDeepest = 100;  // protobuf's limit too
    std::vector<uint32_t> groups;
    while (true) {
      switch (tag.wire) {
        case kVarint:
          varint();
          break;
        case kFixed64:
          bytes(8);
          break;
        case kLength:
          length();
          break;
        case kFixed32:
          bytes(4);
          break;
        case kGroup:
          if (groups.size() == kDeepest)
            malformed(tag.start, "expected at most 100 nested groups, found more");
          groups.push_back(tag.field);
          break;
        default:
          if (groups.empty() || groups.back() != tag.field) {
            malformed(tag.start,
                      "expected a field, found the end of group " + std::to_string(tag.field));
          }
          groups.pop_back();
      }
      if (groups.empty()) return;
      tag = this->tag();
    }
  }

  [[noreturn]] void malformed(const uint8_t* at, const std::string& text) const {
    throw Wrong("malformed protobuf at byte " + std::to_string(at - origin_) +
                " of the record: " + text);
  }

 private:
  const uint8_t* at_;
  const uint8_t* end_;
  const uint8_t* origin_;
};

// tf.train.Feature's oneof, by field number.
enum Kind : uint32_t { kNone, kBytes, kFloat, kInt64 };
inline constexpr const char* kKinds[] = {"nothing", "bytes", "float", "int64"};

// A tf.train.Feature.
struct Value {
  uint32_t kind = kNone;
  std::vector<Bytes> strings;
  std::vector<Bytes> floats;  // runs of packed little-endian float32
  std::vector<int64_t> ints;

  size_t size() const {
    size_t count = strings.size() + ints.size();
    for (const Bytes& run : floats) count += run.size() / sizeof(float);
    return count;
  }

  void copy_floats(float* to) const {
    for (const Bytes& run : floats) {
      if (run.size() == 0) continue;  // `to` may be null where there is nothing to copy
      std::memcpy(to, run.begin, run.size());
      to += run.size() / sizeof(float);
    }
  }

  void clear(uint32_t new_kind) {
    kind = new_kind;
    strings.clear();
    floats.clear();
    ints.clear();
  }

  // Parses the feature whose encoding is the concatenation of `spans`.
  void parse(const Bytes* spans, size_t count, const uint8_t* origin) {
    clear(kNone);
    for (size_t i = 0; i < count; ++i) {
      Cursor feature(spans[i], origin);
      while (!feature.done()) {
        const Cursor::Tag tag = feature.tag();
        if (tag.field < kBytes || tag.field > kInt64 || tag.wire != Cursor::kLength) {
          feature.skip(tag);
          continue;
        }
        if (tag.field != kind) clear(tag.field);  // a oneof: the last kind set replaces another
        parse_list(Cursor(feature.length(), origin), origin);
      }
    }
  }

 private:
  void parse_list(Cursor list, const uint8_t* origin) {
    while (!list.done()) {
      const Cursor::Tag tag = list.tag();
      if (tag.field == 1 && kind == kBytes && tag.wire == Cursor::kLength) {
        strings.push_back(list.length());
      } else if (tag.field == 1 && kind == kFloat && tag.wire == Cursor::kLength) {
        const Bytes run = list.length();
        if (run.size() % sizeof(float)) {
          list.malformed(run.begin, "expected floats of 4 bytes, found " +
                                        std::to_string(run.size()) + " bytes");
        }
        floats.push_back(run);
      } else if (tag.field == 1 && kind == kFloat && tag.wire == Cursor::kFixed32) {
        floats.push_back(list.bytes(sizeof(float)));
      } else if (tag.field == 1 && kind == kInt64 && tag.wire == Cursor::kLength) {
        Cursor packed(list.length(), origin);
        while (!packed.done()) ints.push_back(static_cast<int64_t>(packed.varint()));
      } else if (tag.field == 1 && kind == kInt64 && tag.wire == Cursor::kVarint) {
        ints.push_back(static_cast<int64_t>(list.varint()));
      } else {
        list.skip(tag);
      }
    }
  }
};

// The names that a decoder requests, numbered.
class Names {
 public:
  size_t add(std::string_view name) {
    for (size_t i = 0; i < names_.size(); ++i) {
      if (names_[i] == name) return i;
    }
    names_.emplace_back(name);
    return names_.size() - 1;
  }

  // The number of `name`, or size() if it is not requested.
  size_t find(std::string_view name) const {
    size_t i = 0;
    while (i < names_.size() && names_[i] != name) ++i;
    return i;
  }

  size_t size() const { return names_.size(); }
  const std::string& operator[](size_t i) const { return names_[i]; }

 private:
  std::vector<std::string> names_;
};

// The positions of the requested context features and feature lists in a record. Reused from record
// to record, so that its memory is.
class Message {
 public:
  struct Slot {
    bool found = false;
    std::vector<Bytes> spans;  // the value's encoding, in parts
  };

  Message(const Names& context, const Names& lists)
      : context_(context.size()), lists_(lists.size()) {}

  void parse(Bytes record, const Names& context, const Names& lists) {
    record_ = record;
    for (Slot& slot : context_) slot.found = false;
    for (Slot& slot : lists_) slot.found = false;
    visit([&](bool in_context, Bytes key) {
      const Names& names = in_context ? context : lists;
      const size_t number = names.find(key.text());
      if (number == names.size()) return;
      Slot& slot = (in_context ? context_ : lists_)[number];
      slot.found = true;
      slot.spans.swap(values_);
    });
  }

  const Slot& context(size_t number) const { return context_[number]; }
  const Slot& list(size_t number) const { return lists_[number]; }
  const uint8_t* origin() const { return record_.begin; }

  // Throws an error that lists what the record has instead.
  [[noreturn]] void missing(const char* what, std::string_view name) {
    std::set<std::string_view> context, lists;
    visit([&](bool in_context, Bytes key) { (in_context ? context : lists).insert(key.text()); });
    throw Wrong(std::string("expected ") + what + " " + show(name) + ", found context features: " +
                listed(context) + "; feature lists: " + listed(lists));
  }

 private:
  // Calls `entry(in_context, key)`, with the value's encoding in values_, for every entry of the
  // two maps.
  template <typename Entry>
  void visit(const Entry& entry) {
    Cursor record(record_, record_.begin);
    while (!record.done()) {
      const Cursor::Tag tag = record.tag();
      if ((tag.field != 1 && tag.field != 2) || tag.wire != Cursor::kLength) {
        record.skip(tag);
        continue;
      }
      Cursor map(record.length(), record_.begin);
      while (!map.done()) {
        const Cursor::Tag inner = map.tag();
        if (inner.field != 1 || inner.wire != Cursor::kLength) {
          map.skip(inner);
          continue;
        }
        entry(tag.field == 1, key_and_value(Cursor(map.length(), record_.begin)));
      }
    }
  }

  Bytes key_and_value(Cursor pair) {
    Bytes key;
    values_.clear();
    while (!pair.done()) {
      const Cursor::Tag tag = pair.tag();
      if (tag.wire == Cursor::kLength && tag.field == 1) {
        key = pair.length();
      } else if (tag.wire == Cursor::kLength && tag.field == 2) {
        values_.push_back(pair.length());
      } else {
        pair.skip(tag);
      }
    }
    return key;
  }

  static std::string listed(const std::set<std::string_view>& names) {
    std::string text;
    size_t count = 0;
    for (const std::string_view name : names) {
      if (count) text += ", ";
      if (count++ == 10) return text + "...";
      text += show(name);
    }
    return count ? text : "none";
  }

  Bytes record_;
  std::vector<Slot> context_;
  std::vector<Slot> lists_;
  std::vector<Bytes> values_;
};

}  // namespace pyseg::records
