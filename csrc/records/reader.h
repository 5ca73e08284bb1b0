// TFRecord framing (TensorFlow's lib/io/record_writer.h):
//
//     uint64 length, uint32 masked CRC32C of the length, payload, uint32 masked CRC32C of the
//     payload
//
// pyseg/data/records/reference.py is the reference; its error texts are the same: change both.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

#include "crc32c.h"
#include "message.h"

namespace pyseg::records {

// A damaged record.
class Fault : public std::runtime_error {
 public:
  Fault(const std::string& text, uint64_t record, uint64_t offset, bool fatal)
      : std::runtime_error(text), record(record), offset(offset), fatal(fatal) {}

  uint64_t record;  // its number
  uint64_t offset;  // where it starts
  bool fatal;       // the position of the next record is unknown
};

// A stream of bytes.
class Source {
 public:
  virtual ~Source() = default;
  // Reads up to `count` bytes; 0 at the end.
  virtual size_t read(uint8_t* to, size_t count) = 0;
};

// An open file. It is read, not mapped into memory: if the file is truncated meanwhile, it ends
// early, where a mapping would crash the process.
class FileSource final : public Source {
 public:
  explicit FileSource(int descriptor) : descriptor_(descriptor) {}

  size_t read(uint8_t* to, size_t count) override {
    while (true) {
      const ssize_t got = ::read(descriptor_, to, std::min(count, size_t{1} << 30));
      if (got >= 0) return static_cast<size_t>(got);
      if (errno != EINTR) throw std::system_error(errno, std::generic_category());
    }
  }

 private:
  int descriptor_;  // not owned
};

inline constexpr uint64_t kLargestRecord = INT32_MAX;  // protobuf cannot hold a longer message

// Reads the records of a source in order and checks every checksum.
//
// The payload is returned where it was read, in a buffer of 256 KiB or the size of the largest
// record, so that checking and decoding find it in the L2 cache. A record that exceeds what was
// read ahead is completed by a read of the rest only: large records are never moved, and small ones
// do not cost a system call each.
class Reader {
 public:
  // `size` is the number of bytes in the source, or -1 if unknown. A record of more than `largest`
  // bytes is refused.
  explicit Reader(std::unique_ptr<Source> source, int64_t size = -1,
                  uint64_t largest = kLargestRecord)
      : source_(std::move(source)), size_(size), largest_(largest) {}

  // Number and offset of the record that was read last, or is being read.
  uint64_t record() const { return record_; }
  uint64_t offset() const { return offset_; }

  // The next record; false at the end. The payload is valid until the next call.
  bool next(Bytes* payload) {
    consume(pending_);
    pending_ = 0;
    record_ = next_record_;
    offset_ = next_offset_;
    const size_t header = gather(kHeader);
    if (header == 0) {
      if (size_ >= 0 && offset_ < static_cast<uint64_t>(size_)) {  // truncated since it was opened
        fault("expected " + std::to_string(size_) + " bytes in the file, found " +
              std::to_string(offset_));
      }
      return false;
    }
    if (header < 8) ended("8 bytes of record length", header);
    if (header < kHeader) ended("4 bytes of length checksum", header - 8);
    const auto length = load<uint64_t>(begin_);
    const uint32_t length_stored = load<uint32_t>(begin_ + 8);
    const uint32_t length_computed = mask(crc32c(begin_, 8));
    if (length_stored != length_computed) {
      fault("expected length checksum " + hex(length_stored) + ", found " + hex(length_computed) +
            " (the length is damaged)");
    }
    if (length > largest_) {
      fault("expected at most " + std::to_string(largest_) +
            " bytes in a record (PYSEG_MAX_RECORD_BYTES), found a length of " +
            std::to_string(length));
    }
    uint64_t available = length + kFooter;
    if (size_ >= 0) {  // before anything is allocated
      const uint64_t before = offset_ + kHeader;
      const auto size = static_cast<uint64_t>(size_);
      available = std::min(available, size > before ? size - before : 0);
    }
    if (available == length + kFooter) available = gather(kHeader + length + kFooter) - kHeader;
    if (available < length) ended(std::to_string(length) + " bytes of payload", available);
    if (available < length + kFooter) ended("4 bytes of payload checksum", available - length);
    pending_ = kHeader + length + kFooter;
    next_offset_ += pending_;
    ++next_record_;
    *payload = {begin_ + kHeader, begin_ + kHeader + length};
    const uint32_t stored = load<uint32_t>(payload->end);
    const uint32_t computed = mask(crc32c(payload->begin, length));
    if (stored != computed) {
      throw Fault("expected payload checksum " + hex(stored) + ", found " + hex(computed) + " (" +
                      std::to_string(length) + " bytes are damaged)",
                  record_, offset_, false);
    }
    return true;
  }

  // Passes the next record whose number is `index` modulo `count` to `decode`; false at the end.
  template <typename Decode>
  bool decode(uint64_t index, uint64_t count, const Decode& decode) {
    Bytes payload;
    while (next(&payload)) {
      if (record_ % count != index) continue;
      try {
        decode(payload);
      } catch (const Wrong& wrong) {
        throw Fault(wrong.what(), record_, offset_, false);
      }
      return true;
    }
    return false;
  }

 private:
  static constexpr size_t kHeader = 12;
  static constexpr size_t kFooter = 4;
  static constexpr size_t kAhead = size_t{1} << 18;
  static constexpr size_t kTrusted = size_t{1}
                                     << 24;  // allocated for a length before its bytes have come

  struct Free {
    void operator()(uint8_t* memory) const { std::free(memory); }
  };

  template <typename Number>
  static Number load(const uint8_t* from) {
    Number number;
    std::memcpy(&number, from, sizeof(number));
    return number;
  }

  static std::string hex(uint32_t number) {
    std::string text = "0x00000000";
    for (size_t i = text.size(); number; number >>= 4) text[--i] = "0123456789abcdef"[number & 15];
    return text;
  }

  [[noreturn]] void fault(const std::string& text) const {
    throw Fault(text, record_, offset_, true);
  }

  [[noreturn]] void ended(const std::string& expected, uint64_t found) const {
    fault("expected " + expected + ", found " + std::to_string(found) +
          " before the end of the file");
  }

  void consume(size_t count) {
    begin_ += count;
    held_ -= count;
    if (held_ == 0) begin_ = buffer_.get();
  }

  // Reads until `count` bytes lie at begin_; returns their number, fewer at the end of the source.
  size_t gather(size_t count) {
    while (held_ < count) {
      size_t needed = count;
      if (size_ < 0 && count > kTrusted) {
        // The source may end long before a wrong length does: the buffer doubles only when full.
        const size_t here = static_cast<size_t>(buffer_.get() + capacity_ - begin_);
        needed = std::min(count, std::max(kTrusted, held_ < here ? here : 2 * held_));
      }
      reserve(std::max(kAhead, needed));
      const size_t room = static_cast<size_t>(buffer_.get() + capacity_ - (begin_ + held_));
      // Only the rest of a large record, else as much as there is room for.
      const size_t wanted =
          count > kAhead ? std::min(room, count - held_) : std::min(room, kAhead - held_);
      const size_t got = source_->read(begin_ + held_, wanted);
      if (got == 0) break;
      held_ += got;
    }
    return std::min(held_, count);
  }

  // Makes room for `count` bytes at begin_.
  void reserve(size_t count) {
    if (buffer_ && begin_ + count <= buffer_.get() + capacity_) return;
    if (count > capacity_) {
      std::unique_ptr<uint8_t, Free> larger(static_cast<uint8_t*>(std::malloc(count)));
      if (!larger) throw std::bad_alloc();
      if (held_) std::memcpy(larger.get(), begin_, held_);
      buffer_ = std::move(larger);
      capacity_ = count;
    } else {
      std::memmove(buffer_.get(), begin_, held_);
    }
    begin_ = buffer_.get();
  }

  std::unique_ptr<Source> source_;
  int64_t size_;
  uint64_t largest_;
  std::unique_ptr<uint8_t, Free> buffer_;
  size_t capacity_ = 0;
  uint8_t* begin_ = nullptr;  // bytes read and not consumed
  size_t held_ = 0;           // their number
  size_t pending_ = 0;        // of these, the record that was returned
  uint64_t record_ = 0;
  uint64_t offset_ = 0;
  uint64_t next_record_ = 0;
  uint64_t next_offset_ = 0;
};

}  // namespace pyseg::records
